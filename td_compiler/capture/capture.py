"""From a module to a graph, by running it (SPEC 1.1, DESIGN 1).

The source model is never changed: a *skeleton*, the same modules with parameters on the meta device, runs instead, so a
network of any size is read in about the time of a few Python forward passes. What is not constant is found by running
more than once and comparing: with other batch and image sizes, and in training. The facts about a
node (:mod:`td_compiler.graph.notes`) say what it computed and on which line of the user's code.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from td_compiler.capture.build import Ambiguous, Builder, Twins, key_of, shape_of
from td_compiler.capture.captured import Capture
from td_compiler.capture.functions import functions_as_layers
from td_compiler.capture.gradients import asks_autocast_on_meta, refusal_of_autocast
from td_compiler.capture.meta import dtype_of, empty_images
from td_compiler.capture.modes import aligned, drop_unread, training_steps, written_by_hand
from td_compiler.capture.places import at_line
from td_compiler.capture.recorder import NeedsScripts, Recorder, needs_data
from td_compiler.capture.recording import Recording, Stack, Value
from td_compiler.capture.skeleton import refuse_scripts, weightless
from td_compiler.capture.spans import differing, fold_functions, fold_modules, kept_whole, shrinking
from td_compiler.capture.watching import Watch
from td_compiler.errors import ConversionError
from td_compiler.graph.notes import facts
from td_compiler.options import Task

__all__ = ["RefusedImages", "capture", "check_output"]

_BATCH = 2  # not 1, so that nothing squeezes or specialises on it
_OTHER_BATCH = 3


class RefusedImages(ConversionError):
    """The network does not run on images of a size."""


def capture(model: nn.Module, input_size: tuple[int, int, int]) -> Capture:
    """Read a model, run on images of `input_size` (C, H, W).

    A module without parameters whose control flow depends on the values of tensors stays whole; one with parameters is
    an error.

    Raises:
        ConversionError: if the model cannot be read; `RefusedImages` where the images' size may be the reason.
    """
    reader = _Reader(model, input_size)
    try:
        return reader.read()
    finally:
        reader.watch.close()


class _Reader:
    def __init__(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        refuse_scripts(model)
        self.model = model
        self.input_size = input_size
        self.bones, self.values = weightless(model)
        self.modules = dict(self.bones.named_modules(remove_duplicate=False))
        self.scripts = False
        self.dtype = dtype_of(self.bones)
        self.images = self._images(_BATCH, *input_size[1:])
        _check_signature(self.bones)
        self.watch = Watch(self.bones)

    def read(self) -> Capture:
        base = self._first_run()
        name, value = _only_output(base, self.bones)
        self._check_batch(value)
        try:
            return self._compare(base, name, *self._both_at_once(base))
        except Ambiguous:
            training, notes = self._training_run()  # before the others: it may find modules that need values
            base = self._first_run()
            images, recordings = self._other_runs(base)
            return self._compare(base, name, images, recordings, training, notes)

    def _compare(
        self,
        base: Recording,
        name: str,
        images: list[torch.Tensor],
        recordings: list[Recording],
        training: Recording | None,
        notes: list[str],
    ) -> Capture:
        """The graph of the first run, what differs from others written as what it follows."""
        at_once = training in recordings
        runs = [base, *recordings, *([training] if training is not None and not at_once else [])]
        modules = self._fold(base, runs, training)
        _refuse_autocast(runs)
        pairs = [Twins(base, self.images, run, each) for run, each in zip(recordings, images, strict=True)]
        notes += _size_notes(pairs)
        tensors = {path: tensor for path, tensor in self._tensors()}
        modes: dict[Any, Any] = {}
        if training is not None:
            modes = aligned(base, training)
            steps, more = training_steps(
                base, training, modes, lambda: Builder(self.images, tensors, training.calls, ()), set(self.modules)
            )
            if at_once and (steps or more):
                raise Ambiguous
            modules |= steps
            notes += [*more, *written_by_hand(base, training)]
        builder = Builder(self.images, tensors, base.calls, pairs, strict=at_once)
        builder.trained_as(modes)
        builder.image("x")
        for call in base.calls:
            builder.write(call)
        output = builder.graph.output(builder.node(dict(base.outputs)[name]))
        facts(output).value = facts(output.args[0]).value
        self.modules.update(modules)
        captured = Capture(builder.graph, self.bones)
        captured.modules.update(modules)
        captured.constants = builder.constants
        captured.notes = notes
        captured.refusals = base.refusals
        _drop_unused(captured.graph)
        _drop_identities(captured)
        functions_as_layers(captured)
        return captured

    def _images(self, batch: int, height: int, width: int) -> torch.Tensor:
        return empty_images((self.input_size[0], height, width), self.dtype, batch)

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.bones.named_parameters(remove_duplicate=False)
        yield from self.bones.named_buffers(remove_duplicate=False)

    def _run(self, images: torch.Tensor) -> Recording:
        while True:
            try:
                self.watch.recorder = Recorder(self.bones, self.values, images, scripts=self.scripts)
                return self.watch.recorder.run()
            except NeedsScripts:
                self.scripts = True

    def _first_run(self) -> Recording:
        """The run in evaluation, at the size asked for; modules that need values are found on the way."""
        while True:
            base = self._run(self.images)
            error = base.error
            if error is None:
                return base
            if isinstance(error, NeedsScripts) and not self.scripts:
                self.scripts = True
                continue
            if not needs_data(error):
                raise self._refused(base, error) from error
            path = base.error_stack[-1][0] if base.error_stack else ""
            module = self.modules.get(path)
            if not path or path in self.watch.opaque or module is None or next(module.parameters(), None) is not None:
                raise ConversionError(_needs_values(base, self.bones)) from error
            self.watch.opaque.add(path)

    def _refused(self, run: Recording, error: BaseException) -> ConversionError:
        if asks_autocast_on_meta(error):
            return ConversionError(refusal_of_autocast(run.error_stack, run.error_place))
        where = run.error_stack[-1][0] if run.error_stack else ""
        size = "x".join(map(str, self.input_size))
        reason = (str(error).splitlines() or [""])[0]
        return RefusedImages(
            f"the network refuses images of {size} at {where or type(self.bones).__name__!r}"
            f" (inputs {', '.join(map(str, run.error_inputs)) or 'none'}"
            + (f"; {at_line(run.error_place)}" if run.error_place else "")
            + f"): {type(error).__name__}: {reason}; give another input_size=(C, H, W)."
        )

    def _check_batch(self, value: Value) -> None:
        shape = shape_of(value, self.images)
        if shape and shape[0] != _BATCH and len(shape) > 1:
            size = "x".join(map(str, self.input_size))
            raise RefusedImages(
                f"the network refuses images of {size}: it returns {shape[0]} rows for {_BATCH} images; give another"
                " input_size=(C, H, W)."
            )

    def _both_at_once(self, base: Recording) -> tuple[list[torch.Tensor], list[Recording], Recording | None, list[str]]:
        """One run in training and with another batch and size: enough for a network that does the same in it.

        Raises:
            Ambiguous: where it does not: what follows the size and what the mode then takes a run of each to tell.
        """
        images = self._images(_OTHER_BATCH, self.input_size[1] + 64, self.input_size[2] + 96)
        before = _python_draws()
        self.bones.train()
        try:
            run = self._run(images)
        finally:
            self.bones.eval()
        if run.error is None:
            drop_unread(run, base)
        same = run.error is None and [key_of(call) for call in run.calls] == [key_of(call) for call in base.calls]
        same = same and [span.path for span in run.spans] == [span.path for span in base.spans]
        if not same or _python_draws() != before:
            raise Ambiguous
        return [images], [run], run, []

    def _other_runs(self, base: Recording) -> tuple[list[torch.Tensor], list[Recording]]:
        """Runs with another batch and size: one where the network takes it, else one of each."""
        height, width = self.input_size[1:]
        found: tuple[list[torch.Tensor], list[Recording]] = [], []
        for down, across in ((64, 96), (64, 64)):
            images = self._images(_OTHER_BATCH, height + down, width + across)
            run = self._run(images)
            found[0].append(images)
            found[1].append(run)
            if run.error is None:
                return [images], [run]
        images = self._images(_OTHER_BATCH, height, width)
        run = self._run(images)
        if run.error is not None:
            raise self._refused(run, run.error) from run.error
        return [images, found[0][0]], [run, found[1][0]]

    def _training_run(self) -> tuple[Recording | None, list[str]]:
        """The run in training; None, and why, where there is none."""
        before = _python_draws()
        self.bones.train()
        try:
            run = self._run(self.images)
        finally:
            self.bones.eval()
        while run.error is not None and needs_data(run.error):
            path = run.error_stack[-1][0] if run.error_stack else ""
            module = self.modules.get(path)
            if not path or path in self.watch.opaque or module is None or next(module.parameters(), None) is not None:
                break
            self.watch.opaque.add(path)
            return self._training_run()
        if _python_draws() != before:
            return None, [
                "In training the network draws numbers by Python's or NumPy's generator, which no graph can hold: the"
                " top-down network does in training what the source does in evaluation; draw by torch instead."
            ]
        if run.error is None:
            return run, []
        where = run.error_stack[-1][0] if run.error_stack else ""
        reason = str(run.error).partition("\n")[0].partition(". ")[0]
        return None, [
            f"In training {where or type(self.bones).__name__!r} raises {type(run.error).__name__} ({reason}), at"
            f" {at_line(run.error_place)}: the top-down network does in training what the source does in evaluation."
        ]

    def _fold(self, base: Recording, runs: list[Recording], training: Recording | None) -> dict[str, nn.Module]:
        """Let modules without parameters stay whole where looking into them would lose what they do."""
        chosen = kept_whole(base)
        if chosen:
            fold_modules(runs, lambda i, span: {} if i in chosen else None)
        made, *_ = [fold_functions(run) for run in runs]
        if training is not None:
            while chosen := differing(base, training):
                before = len(base.calls)
                fold_modules(runs, lambda i, span, chosen=chosen: {} if i in chosen else None)  # type: ignore[misc]
                if len(base.calls) == before:
                    break
        factors = shrinking(base)
        if factors:
            fold_modules(runs, lambda i, span: {"factor": factors[i]} if i in factors else None)
        return made


def _python_draws() -> tuple[Any, ...]:
    """The state of the generators of Python and NumPy, which user code may draw from."""
    numpy = sys.modules.get("numpy")
    state = numpy.random.get_state() if numpy is not None else ()
    return random.getstate(), *(each.tobytes() if hasattr(each, "tobytes") else each for each in state)


def _check_signature(root: nn.Module) -> None:
    """Refuse a forward that cannot be called with a batch of images alone."""
    try:
        parameters = list(inspect.signature(root.forward).parameters.values())
    except (TypeError, ValueError):
        return
    name = type(root).__name__
    if not parameters or parameters[0].kind is inspect.Parameter.VAR_KEYWORD:
        raise ConversionError(f"{name}.forward takes no images: it must take a batch (N, C, H, W).")
    required = [
        p.name
        for p in parameters[1:]
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY, p.KEYWORD_ONLY)
    ]
    if required:
        raise ConversionError(f"{name}.forward needs {', '.join(required)} beside the images: give them defaults.")


def _only_output(base: Recording, root: nn.Module) -> tuple[str, Value]:
    """The one tensor that a network returns, and its name in what was returned."""
    distinct: dict[Value, str] = {}
    for name, value in base.outputs:
        distinct.setdefault(value, name)
    if len(distinct) == 1:
        value, name = next(iter(distinct.items()))
        return name, value
    kind = type(root).__name__
    if not distinct:
        raise ConversionError(f"{kind} returns no tensor: it must return one tensor (N, classes).")
    names = ", ".join(repr(name) for name in distinct.values())
    raise ConversionError(
        f"{kind} returns {len(distinct)} tensors ({names}), and which are the class scores cannot be told: let its"
        " forward return one tensor."
    )


def _needs_values(run: Recording, root: nn.Module) -> str:
    stack: Stack = run.error_stack
    named = f"module {stack[-1][0]!r} ({stack[-1][1].__name__})" if stack else f"the forward of {type(root).__name__}"
    return (
        f"control flow in {named} depends on the values of a tensor, at {at_line(run.error_place)}: move it into a"
        " submodule that keeps the shape of its input, and declare its class a leaf with td_compiler.leaf(Class)."
    )


def _refuse_autocast(runs: list[Recording]) -> None:
    """Refuse what runs under a `torch.autocast` of the network's own, in a module that does not stay whole."""
    for call in (call for run in runs for call in run.calls):
        if "autocast" in call.notes:
            raise ConversionError(refusal_of_autocast(call.stack, call.place))


def _size_notes(pairs: list[Twins]) -> list[str]:
    """A sentence where the network does other things with images of another size."""
    for each in pairs:
        if each.parts is not None:
            return [
                f"What runs behind {at_line(each.parts.place)} depends on the size of the image: the top-down network"
                " does what is done at the size that the source was read at."
            ]
    return []


def _drop_unused(graph: fx.Graph) -> None:
    """Take away what leads nowhere."""
    for node in reversed(graph.nodes):
        if (node.op.startswith("call_") or node.op == "get_attr") and not node.users:
            graph.erase_node(node)


def _drop_identities(captured: Capture) -> None:
    """Layers that return their input make no stage, no unit and no projection."""
    for node in captured.graph.find_nodes(op="call_module"):
        if isinstance(captured.module(node), nn.Identity):
            node.replace_all_uses_with(node.args[0])
            captured.graph.erase_node(node)


def check_output(captured: Capture, task: Task) -> None:
    """Refuse a network that does not return one tensor of the form that the task starts from.

    Raises:
        ConversionError: naming what the network returns instead.
    """
    output = captured.output
    value = facts(output).value if isinstance(output, fx.Node) else None
    allowed, dims = _OUTPUTS[task]
    if isinstance(value, torch.Tensor) and value.dim() in dims:
        return
    kind = type(output if value is None else value).__name__
    shape = f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"({kind})"
    raise ConversionError(f"the output {shape} is {allowed}")


_OUTPUTS: dict[Task, tuple[str, set[int]]] = {
    "classification": (
        "no class score: the network must return one tensor (N, classes), or, as an encoder for task='segmentation',"
        " one map (N, C, H, W).",
        {2},
    ),
    "segmentation": (
        "neither a map nor a class score: an encoder must return one tensor, (N, C, H, W) or (N, classes).",
        {2, 4},
    ),
}
