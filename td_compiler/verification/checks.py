"""The checks behind `verify`: each looks at one property and returns what it saw, or raises.

Every check reads the finished network alone, none asks the passes that made it. A check returns what it looked at,
raises `Violation` where the property does not hold, and `Skipped` where it cannot tell.
"""

from __future__ import annotations

import copy
import itertools
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from td_compiler.capture.meta import META, ShapesOnly
from td_compiler.capture.skeleton import skeleton
from td_compiler.errors import one_line
from td_compiler.graph.notes import plan
from td_compiler.graph.operators import Width, lookup
from td_compiler.network.base import TopDownNet
from td_compiler.surroundings import neutral_surroundings
from td_compiler.verification.presence import changed_filters, presence
from td_compiler.verification.settings import compare_settings, made_anew
from td_compiler.verification.subject import Size, Skipped, Subject, Violation, needs_values, tensors_in

__all__ = [
    "Skipped",
    "Violation",
    "describe",
    "emitted_bits",
    "emitted_state",
    "fingerprint",
    "gradients",
    "names",
    "output_shape",
    "pyramid",
    "settings",
    "stage_maps",
    "untouched",
    "weights",
    "widths",
]


_RUNS = 3


def _times(size: Iterable[int]) -> str:
    return "x".join(map(str, size))


def _few(items: Iterable[str]) -> str:
    listed = list(items)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def describe(error: BaseException) -> str:
    """An unexpected error in one line, with the innermost line of this package that it came through."""
    here = str(Path(__file__).parents[2])
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(here)]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    kind, _, message = one_line(error).partition(":")
    return f"{kind}{where}:{message}"


def output_shape(subject: Subject) -> str:
    """Scores have the source's shape, or for pixels the image's, at the size read and at an odd one (SPEC 2.8)."""
    for size in subject.sizes:
        expected, scores = subject.expected_shape(size), subject.maps(size)[2]
        if scores.shape != expected:
            raise Violation(f"{tuple(scores.shape)} for images of {_times(size)}, expected {tuple(expected)}")
    shape = tuple(subject.expected_shape(subject.sizes[0]))
    other = f" and {_times(subject.sizes[1])}" if len(subject.sizes) > 1 else "; the source takes no odd size"
    return f"{shape} for images of {_times(subject.sizes[0])}{other}"


def gradients(subject: Subject) -> str:
    """Every trainable parameter gets a gradient, but for those that get none in the source either.

    Layers that skip themselves at random may miss a run: what one run reaches is reached.
    """
    names = [name for name, p in subject.td.named_parameters() if p.requires_grad]
    if not names:
        raise Skipped("no parameter is trainable")
    missing = set(names)
    for _ in range(_RUNS):
        missing &= _without_gradient(subject, of_source=False)
        if not missing:
            break
    if missing:
        missing -= _without_gradient(subject, of_source=True)
    if missing:
        raise Violation(f"no gradient for {_few(name for name in names if name in missing)}")
    return f"{len(names)} parameters"


def _without_gradient(subject: Subject, *, of_source: bool) -> set[str]:
    """The parameters that the loss of two images does not reach: seen on the meta device, if that will do."""
    network, size = (subject.model, subject.small) if of_source else (subject.td, subject.top_down(subject.small))
    try:
        return _unreached(skeleton(network), subject.images(size, META))
    except Exception as error:
        if subject.on_meta or not needs_values(error):
            raise
    return _unreached(copy.deepcopy(network), subject.images(size))


def _unreached(network: nn.Module, images: torch.Tensor) -> set[str]:
    network.train()
    network.zero_grad(set_to_none=True)
    with torch.enable_grad(), ShapesOnly():
        scores = next(iter(tensors_in(network(images))))
        if scores.requires_grad:
            scores.sum().backward()
    return {name for name, p in network.named_parameters() if p.requires_grad and p.grad is None}


def pyramid(subject: Subject) -> str:
    """As many levels as stages, each the image's size divided by its scale, rounded up (SPEC 2.1)."""
    td = subject.td
    stages = td.segments[:-1]
    if tuple(segment.scale for segment in stages) != tuple(reversed(td.scales)):
        raise Violation(f"the stages' scales {[s.scale for s in stages]} are not those of the pyramid {td.scales}")
    for size in subject.sizes:
        levels = subject.maps(size)[0]
        found = [tuple(level.shape[1:]) for level in levels]
        expected = [_at_scale(subject.prepared(size), scale) for scale in td.scales]
        if found != expected:
            raise Violation(f"levels {found} for images of {_times(size)}, expected {expected}")
    return f"{len(td.scales)} levels for the scales {', '.join(map(str, td.scales))}"


def _at_scale(size: Size, scale: int | tuple[int, int]) -> Size:
    down, across = _pair(scale)
    return size[0], -(-size[1] // down), -(-size[2] // across)


def stage_maps(subject: Subject) -> str:
    """Scales fall from stage to stage, the last one is 1, and every stage's map has its scale's size (SPEC 2.4)."""
    scales = [_pair(segment.scale) for segment in subject.td.segments[:-1]]
    for coarse, fine in itertools.pairwise(scales):
        if coarse == fine or coarse[0] % fine[0] or coarse[1] % fine[1]:
            raise Violation(f"the map does not grow from scale {coarse} to {fine}")
    if not scales or scales[-1] != (1, 1):
        raise Violation(f"the last stage is at scale {scales[-1] if scales else None}, not at the image's resolution")
    for size in subject.sizes:
        maps = subject.maps(size)[1]
        for segment, value in zip(subject.td.segments, maps, strict=False):
            expected = _at_scale(subject.prepared(size), segment.scale)[1:]
            if tuple(value.shape[2:]) != expected:
                raise Violation(
                    f"{segment.name} puts out {_times(value.shape[2:])} for images of {_times(size)},"
                    f" expected {_times(expected)}"
                )
    return " -> ".join(_times(value.shape[2:]) for value in subject.maps(subject.sizes[0])[1])


def _pair(scale: int | tuple[int, int]) -> tuple[int, int]:
    return (scale, scale) if isinstance(scale, int) else scale


def widths(subject: Subject) -> str:
    """The stages' widths are the source's in the order of the arrangement (SPEC 2.6).

    Under `uniform` a body that concatenates has the common width only about: it is the sum of parts that have groups to
    keep, or that add to what they read.
    """
    rows = subject.td.report.stages[:-1]
    before = [row.bottom_up.width for row in rows if row.bottom_up is not None and row.bottom_up.units]
    measured = [value.shape[1] for value in reversed(subject.maps(subject.sizes[0])[1])]  # finest first, as rows are
    after = [width for row, width in zip(rows, measured, strict=True) if row.top_down.units]
    how, wanted = subject.options.filters, subject.options.head_width
    if len(before) != len(after):
        raise Violation(f"{len(before)} stages with a body in the source, {len(after)} in the top-down network")
    sums = [how == "uniform" and _concatenates(subject.td, row.name) for row in rows if row.top_down.units]
    first = 1 if wanted is not None and len(after) > 1 else 0  # the finest stage may be wider than all others
    common = next((w for w, is_sum in zip(after[first:], sums[first:], strict=True) if not is_sum), min(after[first:]))
    arrangements = {"mirror": before, "reversed": before[::-1], "uniform": [common] * len(after)}
    expected = arrangements[how]
    compared = list(zip(after, expected, sums, strict=True))
    if wanted is not None:
        if after[0] < min(wanted, expected[0]):
            raise Violation(f"the last stage has {after[0]} filters where at least {wanted} were asked for")
        compared = compared[1:]
    if any(2 * found < should if is_sum else found != should for found, should, is_sum in compared):
        raise Violation(f"widths {after[::-1]}, coarse to fine, under {how!r}; expected {expected[::-1]}")
    if how != "uniform" and wanted is None:
        count, changed = changed_filters(subject)
        if changed:
            raise Violation(f"under {how!r} convolutions keep their filters, but not {_few(changed)}")
        inner = f"; so have {count} convolutions inside"
    else:
        inner = ""
    widths = f"{', '.join(map(str, after[::-1]))}, coarse to fine"
    return f"{widths}; in the source {', '.join(map(str, before[::-1]))}{inner}"


def _concatenates(td: TopDownNet, stage: str) -> bool:
    """Whether the body of a stage concatenates channels; that the merge does is no matter."""
    graph = next(segment.graph for segment in td.segments if segment.name == stage)
    rows = ((node, lookup(node, None)) for node in graph.nodes if node.op == "call_function")
    sums = [node for node, row in rows if row is not None and row.width is Width.SUM]
    return any(not str(plan(node).unit).startswith("merge.") for node in sums)


def settings(subject: Subject) -> str:
    """Kernel, groups, norm and activation settings, drop rates, modes: all but what SPEC 2 changes."""
    options = subject.options
    count, differences = compare_settings(
        subject.model, subject.td, options.filters, without_classifier=options.num_classes == 0
    )
    if differences:
        raise Violation(_few(differences))
    if not count:
        raise Skipped("no layer of the source is a module that the top-down network has too")
    return f"{count} layers"


def names(subject: Subject) -> str:
    """The source's layers are there under their names; only stem and projections may have gone (SPEC 2.2, 2.4).

    So may its classifier for the sake of one for pixels (SPEC 6.5).
    """
    found = presence(subject)
    if found.lost:
        raise Violation(f"gone from the top-down network: {_few(found.lost)}")
    if not found.kept:
        raise Skipped("the source has no layer that is a module")
    stem = f"; the stem's {_few(found.stem)} live on in the entries" if found.stem else ""
    shortcuts = f"; shortcuts lost {_few(found.projections)}" if found.projections else ""
    poolings = f"; upsampling stands in place of {_few(found.poolings)}" if found.poolings else ""
    return f"{found.kept} layers{stem}{shortcuts}{poolings}"


def weights(subject: Subject) -> str:
    """Parameters and buffers whose shape did not change keep their values (`init="keep"`); none is left undefined."""
    if subject.on_meta:
        raise Skipped("there are no values on the meta device")
    source, state = subject.model.state_dict(), subject.td.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    anew = (*made_anew(subject.model, subject.td), *_statistics_since(source, tensors))
    alike = [n for n, v in tensors.items() if n in source and _same_kind(v, source[n]) and not n.startswith(anew)]
    other = [n for n in alike if not _equal(tensors[n], source[n])]
    if subject.options.init == "keep" and other:
        raise Violation(f"other values in {_few(other)}")
    wild = [name for name, value in tensors.items() if not value.isfinite().all()]
    given = [name for name, value in source.items() if isinstance(value, torch.Tensor) and not value.isfinite().all()]
    if wild and not given:
        raise Violation(f"not finite: {_few(wild)}")
    if subject.options.init != "keep":
        return f"{len(tensors)} tensors are finite; drawn anew, they are not the source's"
    if not alike:
        raise Skipped("no tensor has the name and shape of one of the source")
    sound = "" if not given else f"; {_few(given)} of the source is not finite, so that was not asked of the others"
    return f"{len(alike)} of {len(tensors)} tensors have the source's name and shape{sound}"


def _statistics_since(source: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The running statistics of norms that have run in training since the network was made."""
    last = "num_batches_tracked"
    counts = [name for name in tensors if name.rpartition(".")[2] == last and name in source]
    ran = [name.removesuffix(last) for name in counts if int(tensors[name]) > int(source[name])]
    return [f"{norm}{what}" for norm in ran for what in (last, "running_mean", "running_var")]


def _same_kind(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in every value, NaN equal to itself."""
    return _same_kind(one, other) and bool(((one == other) | ((one != one) & (other != other))).all())


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """All of a model that a conversion must leave alone: modules, their modes and settings, hooks, tensor values."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        plain = {name: value for name, value in vars(module).items() if _is_plain(value)}
        hooks = {name: len(value) for name, value in vars(module).items() if name.endswith("_hooks")}
        found[f"module {path!r}"] = (id(module), type(module), plain, hooks)
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        value = None if tensor.is_meta else tensor.detach().clone()
        found[name] = (id(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad, value, tensor.grad)
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def untouched(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What `fingerprint` saw before and after the conversion is the same."""
    changed = [name for name in {**before, **after} if not _same(before.get(name), after.get(name))]
    if changed:
        raise Violation(f"changed: {_few(changed)}")
    return f"{len(after)} modules and tensors are as before"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one is other or _equal(one, other)
    return bool(one == other)


def emitted_state(subject: Subject) -> str:
    """The class that the emitted source defines takes the state strictly."""
    lines = subject.emitted_class[1]
    return f"{lines} lines, {len(subject.emitted.state_dict())} tensors"


def emitted_bits(subject: Subject) -> str:
    """In evaluation mode it puts out the same bits, the same random numbers given."""
    if subject.on_meta:
        raise Skipped("there are no values on the meta device")
    network, images = subject.emitted, subject.images(subject.top_down(subject.small))
    scores = []
    for each in (network, subject.td.eval()):
        with neutral_surroundings(), torch.no_grad():
            scores.append(each(images))
    found, expected = scores
    if found.shape != expected.shape:
        raise Violation(f"scores of shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    if not _equal(found, expected):
        raise Violation(f"scores differ by up to {(found - expected).abs().max().item():.3g}")
    if not found.isfinite().all():
        raise Skipped(f"scores of random images of {_times(subject.small)} are not finite")
    return f"images of {_times(subject.small)}"
