"""Checks of an instance made afresh from emitted source, no values loaded: it must be ready for training (SPEC 8.4)."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import torch
from torch import nn

from td_compiler.emission.leaves import is_of_torch
from td_compiler.graph.initialisation import Initialisation, own_hook, shows_first_values
from td_compiler.graph.parametrised import computed_tensors
from td_compiler.surroundings import neutral_surroundings
from td_compiler.verification.subject import Skipped, Subject, Violation

__all__ = ["drawn_alike", "other_classes", "trains"]

_CLASSES = 7
_ENOUGH = 64  # values, for their spread to say anything
_SAMPLE = 2**14
_FAR = 6.0  # standard errors
_ROUNDED = 0.06  # laws are written in numbers of a digit or two
_WRITTEN = 1e-6  # of a constant: source has the seven digits of single precision


def trains(subject: Subject) -> str:
    """A loss and all gradients are finite in training mode, where those of the network with its values are."""
    fresh = _fresh(subject)
    wild = [name for name, value in fresh.state_dict().items() if not _is_finite(value)]
    if wild:
        raise Violation(f"{wild[0]} is not finite{_and_more(wild)}")
    try:
        found = _wild_in_step(subject, fresh)
    except Exception:
        _wild_in_step(subject, copy.deepcopy(subject.td))  # fails as well, and says why
        raise
    if found and _wild_in_step(subject, copy.deepcopy(subject.td)):
        raise Skipped(f"the network with its values has no finite {found[0]} either")
    if found:
        raise Violation(f"the {found[0]} is not finite{_and_more(found)}")
    return f"loss and gradients of {len(list(fresh.parameters()))} parameters are finite"


def _wild_in_step(subject: Subject, network: nn.Module) -> list[str]:
    """What is not finite in a training step: the scores, or gradients."""
    network.train()
    with neutral_surroundings():
        scores = network(subject.images(subject.top_down(subject.small)))
        if scores.requires_grad:
            scores.float().square().mean().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    values = {"output": scores.detach(), **{f"gradient of {name}": value for name, value in gradients.items()}}
    return [name for name, value in values.items() if not _is_finite(value)]


def drawn_alike(subject: Subject) -> str:
    """Its parameters have the mean and the spread that `reverse(..., init="fresh")` gives them, and the source's own.

    The source's are compared, layer by layer, where it shows how they were drawn: trained ones say nothing of it. Those
    that weights are computed of are left out.
    """
    laws = dict(subject.td.report.initialisation)
    computing = tuple(f"{path}." for path, module in subject.td.named_modules() if computed_tensors(module))
    fresh = {name: p for name, p in _fresh(subject).named_parameters() if not name.startswith(computing)}
    drawn = copy.deepcopy(subject.td)
    with neutral_surroundings():
        Initialisation(laws=laws, hook=own_hook(subject.model)).draw("", drawn)
    own = dict(subject.model.named_parameters())
    resized = {_layer(name) for name, p in fresh.items() if name not in own or own[name].shape != p.shape}
    by_law = {path for path, module in drawn.named_modules() if is_of_torch(type(module))}  # others draw themselves
    told = {name: p for name, p in drawn.named_parameters() if name in laws and _layer(name) not in resized - by_law}
    like = {'reverse(init="fresh")': told}
    if shows_first_values(subject.model):
        like["the source"] = {name: p for name, p in own.items() if name in laws and _layer(name) not in resized}
    count = {}
    for where, values in like.items():
        found = {name: _difference(value, values[name]) for name, value in fresh.items() if name in values}
        wrong = [f"{name} {what}" for name, what in found.items() if what]
        if wrong:
            raise Violation(f"{wrong[0]} in {where}{_and_more(wrong)}")
        count[where] = sum(what is not None for what in found.values())
    if not any(count.values()):
        raise Skipped("no parameter has values enough to tell")
    return ", ".join(f"{number} of {len(fresh)} parameters as in {where}" for where, number in count.items())


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


@torch.no_grad()
def _difference(fresh: torch.Tensor, other: torch.Tensor) -> str | None:
    """How the values of two tensors differ more than chance allows, in words; None where they are too few to tell."""
    if not fresh.is_floating_point() or not fresh.numel():
        return None
    if fresh.numel() == other.numel() == 1 and not torch.equal(fresh, other):  # drawn, or not as it should be
        return None
    one, two = (tensor.flatten()[:: 1 + tensor.numel() // _SAMPLE].double() for tensor in (fresh, other))
    if bool((two == two[0]).all()):
        same = bool(one.isclose(two[0], rtol=_WRITTEN, atol=0).all())
        return "" if same else f"is not {two[0].item():.3g} throughout, as it is"
    if bool((one == one[0]).all()):
        return f"is {one[0].item():.3g} throughout, which it is not"
    if len(one) < _ENOUGH:
        return None
    (mean, square, tails), (mean2, square2, tails2) = _moments(one), _moments(two)
    error = math.sqrt((tails + tails2) / len(one))
    if abs(math.log(square / square2)) > _FAR * error + 2 * _ROUNDED:
        return f"has the deviation {math.sqrt(square):.3g}, which is {math.sqrt(square2):.3g}"
    if abs(mean - mean2) > _FAR * math.sqrt((square + square2) / len(one)) + _ROUNDED * math.sqrt(square2):
        return f"has the mean {mean:.3g}, which is {mean2:.3g}"
    return ""


def _moments(values: torch.Tensor) -> tuple[float, float, float]:
    """Mean, variance, and the variance of the squares in units of variance^2, at least that of a normal law."""
    mean = values.mean()
    squares = (values - mean).square()
    square = squares.mean().item()
    return mean.item(), square, max(2.0, squares.var().item() / square**2)


def other_classes(subject: Subject) -> str:
    """The emitted class takes `num_classes`, where there is a classifier, and scores as many."""
    if subject.on_meta:
        raise Skipped("there are no values on the meta device")
    make, _ = subject.emitted_class
    if "num_classes" not in inspect.signature(make).parameters:
        raise Skipped("it has no classifier that could be another one")
    network, images = subject.made_afresh(num_classes=_CLASSES).eval(), subject.images(subject.top_down(subject.small))
    with neutral_surroundings(), torch.no_grad():
        scores = network(images)
    expected = torch.Size((len(images), _CLASSES, *subject.expected_shape(subject.small)[2:]))
    if scores.shape != expected:
        raise Violation(f"scores of shape {tuple(scores.shape)} for num_classes={_CLASSES}, expected {tuple(expected)}")
    return f"num_classes={_CLASSES}: {tuple(expected)}"


def _fresh(subject: Subject) -> nn.Module:
    if subject.on_meta:
        raise Skipped("there are no values on the meta device")
    return subject.fresh


def _is_finite(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) or bool(value.isfinite().all())


def _and_more(found: list[str]) -> str:
    return f", and {len(found) - 1} more" if len(found) > 1 else ""
