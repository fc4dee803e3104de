"""From a module to a graph, by running it (SPEC 1.1, DESIGN 1).

The source model is never changed: a *skeleton*, the same modules with parameters on the meta device, runs instead, so a
network of any size is read in about the time of a few Python forward passes. What is not constant is found by running
more than once and comparing: with other batch and image sizes, and in training. Every node carries `meta["value"]`,
what it computed (tensors on the meta device, plain numbers for sizes), and `meta["place"]`, the user's line of code.
"""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from td_compiler.capture.build import Ambiguous, Builder, Twins, key_of, shape_of
from td_compiler.capture.copying import copy_module
from td_compiler.capture.modes import aligned, training_steps
from td_compiler.capture.places import at_line
from td_compiler.capture.recorder import NeedsScripts, Recorder, needs_data
from td_compiler.capture.recording import Parameter, Recording, Stack, Value
from td_compiler.capture.spans import differing, fold_functions, fold_modules, shrinking, with_functions
from td_compiler.capture.watching import Watch
from td_compiler.errors import ConversionError
from td_compiler.options import Task

__all__ = ["Capture", "RefusedImages", "capture", "check_output", "skeleton", "unwrapped", "works_in_place"]

_BATCH = 2  # not 1, so that nothing squeezes or specialises on it
_OTHER_BATCH = 3


class RefusedImages(ConversionError):
    """The network does not run on images of a size."""


class Capture:
    """A network as a graph.

    Attributes:
        graph: its operations; `node.meta["value"]` is what each computed, `node.meta["nn_module_stack"]` in which
            modules, `node.meta["place"]` on which line.
        modules: the skeleton's modules by path, parameters on the meta device.
        constants: tensors that the network makes or keeps beside its parameters and buffers, by path.
        image: the placeholder of the images (N, C, H, W).
        output: the node of what the network returns: class scores (N, K), an encoder's map (N, C, h, w).
        notes: sentences for the report on what could not be kept.
        refusals: what the network does that no graph can say, as sentences.
    """

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.graph = graph
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.constants: dict[str, torch.Tensor] = {}
        self.image = next(node for node in graph.nodes if node.op == "placeholder")
        self.notes: list[str] = []
        self.refusals: list[str] = []

    @property
    def output(self) -> fx.Node:
        """What the graph returns."""
        return self.graph.output_node().args[0]  # type: ignore[return-value]

    def module(self, node: fx.Node) -> nn.Module | None:
        """The layer that a `call_module` node calls, else None."""
        return self.modules[str(node.target)] if node.op == "call_module" else None


def unwrapped(model: nn.Module) -> nn.Module:
    """The network behind `torch.compile` or data parallelism."""
    while True:
        if type(model).__name__ == "OptimizedModule" and isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def skeleton(model: nn.Module) -> nn.Module:
    """A deep copy of a model in evaluation mode whose parameters and buffers are on the meta device.

    No weight is copied or read, so this costs the memory of the module objects alone.
    """
    return _skeleton(model)[0]


def _skeleton(model: nn.Module) -> tuple[nn.Module, dict[int, Value]]:
    """The skeleton, and what the tensors of both model and skeleton are, by `id`."""
    weightless: dict[int, Any] = {}
    values: dict[int, Value] = {}
    for path, parameter in model.named_parameters():
        weightless[id(parameter)] = nn.Parameter(_without_values(parameter), parameter.requires_grad)
        values[id(parameter)] = Parameter(path.replace("_orig_mod.", ""))
    for module in model.modules():
        for value in vars(
            module
        ).values():  # what an old weight_norm computes before every run cannot be copied as it is
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                weightless[id(value)] = _without_values(value)
    for path, buffer in model.named_buffers():
        weightless[id(buffer)] = _without_values(buffer)
        values[id(buffer)] = Parameter(path.replace("_orig_mod.", ""))
    values |= {id(tensor): values[key] for key, tensor in weightless.items() if key in values}
    bones = copy_module(model, weightless).eval()
    for module in bones.modules():
        if module._compiled_call_impl is not None:
            module._compiled_call_impl = None
        for name, child in module._modules.items():
            if child is not None and (inner := unwrapped(child)) is not child:
                module._modules[name] = inner
    return bones, values


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    """The same on the meta device, where `empty_like` would take five times as long."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


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
        _refuse_scripts(model)
        self.model = model
        self.input_size = input_size
        self.bones, self.values = _skeleton(model)
        self.modules = dict(self.bones.named_modules(remove_duplicate=False))
        self.scripts = False
        floating = (p.dtype for p in self.bones.parameters() if p.is_floating_point())
        self.dtype = next(floating, torch.get_default_dtype())
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
            base = self._first_run()
            images, recordings = self._other_runs(base)
            training, notes = self._training_run(base)
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
        pairs = [Twins(base, self.images, run, each) for run, each in zip(recordings, images, strict=True)]
        notes += _size_notes(pairs)
        tensors = {path: tensor for path, tensor in self._tensors()}
        modes: dict[Any, Any] = {}
        if training is not None:
            modes = aligned(base, training)
            steps, more = training_steps(
                base, training, modes, lambda: Builder(self.images, tensors, ()), set(self.modules)
            )
            if at_once and (steps or more):
                raise Ambiguous
            modules |= steps
            notes += more
        builder = Builder(self.images, tensors, pairs, strict=at_once)
        builder.trained_as(modes)
        builder.image("x")
        for call in base.calls:
            builder.write(call)
        output = builder.graph.output(builder.node(dict(base.outputs)[name]))
        output.meta["value"] = output.args[0].meta["value"]
        self.modules.update(modules)
        captured = Capture(builder.graph, self.bones)
        captured.modules.update(modules)
        captured.constants = builder.constants
        captured.notes = notes
        captured.refusals = base.refusals
        _drop_unused(captured.graph)
        _drop_identities(captured)
        _functions_as_layers(captured)
        return captured

    def _images(self, batch: int, height: int, width: int) -> torch.Tensor:
        return torch.empty(batch, self.input_size[0], height, width, device="meta", dtype=self.dtype)

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.bones.named_parameters(remove_duplicate=False)
        yield from self.bones.named_buffers(remove_duplicate=False)

    def _run(self, images: torch.Tensor) -> Recording:
        while True:
            try:
                self.watch.recorder = Recorder(self.bones, self.values, images, scripts=self.scripts)
                return self.watch.recorder.run()
            except NeedsScripts:
                if self.scripts:
                    raise ConversionError(
                        "the network computes a tensor outside torch's Python functions: nothing says from what."
                    ) from None
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
        self.bones.train()
        try:
            run = self._run(images)
        finally:
            self.bones.eval()
        same = run.error is None and [key_of(call) for call in run.calls] == [key_of(call) for call in base.calls]
        if not same or [span.path for span in run.spans] != [span.path for span in base.spans]:
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

    def _training_run(self, base: Recording) -> tuple[Recording | None, list[str]]:
        """The run in training; None, and why, where there is none."""
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
            return self._training_run(base)
        if run.error is None:
            return run, []
        where = run.error_stack[-1][0] if run.error_stack else ""
        reason = (str(run.error).splitlines() or [""])[0]
        return None, [
            f"In training {where or type(self.bones).__name__!r} raises {type(run.error).__name__} ({reason}), at"
            f" {at_line(run.error_place)}: the top-down network does in training what the source does in evaluation."
        ]

    def _fold(self, base: Recording, runs: list[Recording], training: Recording | None) -> dict[str, nn.Module]:
        """Let modules without parameters stay whole where looking into them would lose what they do."""
        chosen = with_functions(base)
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


def _refuse_scripts(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"{path!r} is" if path else "the network is"
            raise ConversionError(
                f"{where} a TorchScript module, which cannot be read: hand over the module that it was scripted from."
            )


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


def works_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether an operation overwrites its first input."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_module":
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    name = str(getattr(node.target, "__name__", ""))
    return node.kwargs.get("inplace") is True or node.target is operator.iadd or name.endswith("_")


def _functions_as_layers(captured: Capture) -> None:
    """`F.batch_norm(x, ..., self.weight, ...)` and its kin become plain layers at the path of their parameters.

    So a norm with an activation of its own is read as norm and activation, and follows the mode as any norm does.
    """
    made: set[str] = set()
    for node in captured.graph.nodes:
        make = _LAYERS_OF.get(node.target) if node.op == "call_function" else None
        if make is None:
            continue
        given = _arguments(node)
        path = str(getattr(given["weight"], "target", "")).rpartition(".")[0]
        if not path or path not in captured.modules or not _named_alike(given, path):
            continue
        layer = make(given)
        owner = captured.modules[path]
        for part in list(layer._parameters):
            layer._parameters[part] = getattr(owner, part, None)
        for part in list(layer._buffers):
            if hasattr(owner, part) or (given.get(part) is None and part in given):
                layer._buffers[part] = getattr(owner, part, None)
        captured.modules[path] = layer
        made.add(path)
        node.op, node.target, node.args, node.kwargs = "call_module", path, (given["input"],), {}
    _rename_children(captured, made)


def _named_alike(given: dict[str, Any], path: str) -> bool:
    """Whether a function reads its parameters from the names that a layer at a path would keep them under."""
    tensors = {name: given[name] for name in ("weight", "bias", "running_mean", "running_var") if name in given}
    return all(
        value is None or (isinstance(value, fx.Node) and value.op == "get_attr" and value.target == f"{path}.{name}")
        for name, value in tensors.items()
    )


def _arguments(node: fx.Node) -> dict[str, Any]:
    """A call's arguments by name, defaults filled in; torch's own functions have no signature to ask."""
    if node.target in _BUILTIN_ARGUMENTS:
        defaults = _BUILTIN_ARGUMENTS[node.target]
        return defaults | dict(zip(defaults, node.args, strict=False)) | node.kwargs
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    bound.apply_defaults()
    return bound.arguments


_BUILTIN_ARGUMENTS: dict[Any, dict[str, Any]] = {
    F.conv2d: {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1},
    F.linear: {"input": None, "weight": None, "bias": None},
}


def _size_of(node: Any) -> torch.Size:
    size: torch.Size = node.meta["value"].shape
    return size


def _batch_norm(given: dict[str, Any]) -> nn.Module:
    tracks = given["running_mean"] is not None
    size, momentum = _size_of(given["weight"])[0], given["momentum"]
    return nn.BatchNorm2d(size, given["eps"], momentum, track_running_stats=tracks, device="meta")


def _conv(given: dict[str, Any]) -> nn.Module:
    outputs, inputs, height, width = _size_of(given["weight"])
    groups = given["groups"]
    return nn.Conv2d(
        inputs * groups, outputs, (height, width), given["stride"], given["padding"], given["dilation"], groups,
        bias=given["bias"] is not None, device="meta",
    )  # fmt: skip


def _linear(given: dict[str, Any]) -> nn.Module:
    outputs, inputs = _size_of(given["weight"])
    return nn.Linear(inputs, outputs, given["bias"] is not None, device="meta")


_LAYERS_OF: dict[Any, Callable[[dict[str, Any]], nn.Module]] = {
    F.batch_norm: _batch_norm,
    F.layer_norm: lambda given: nn.LayerNorm(_size_of(given["weight"]), given["eps"], device="meta"),
    F.group_norm: lambda given: nn.GroupNorm(
        given["num_groups"], _size_of(given["weight"])[0], given["eps"], device="meta"
    ),
    F.conv2d: _conv,
    F.linear: _linear,
}


def _rename_children(captured: Capture, made: set[str]) -> None:
    """What was a child of a module that is now a layer stands beside it: `bn1.act` -> `bn1_act`."""
    for node in captured.graph.find_nodes(op="call_module"):
        target = str(node.target)
        parents = itertools.accumulate(target.split(".")[:-1], "{}.{}".format)
        path = next((parent for parent in parents if parent in made), None)
        module = captured.modules[target]
        if path is not None and next(module.parameters(), None) is None:
            node.target = path + "_" + target[len(path) + 1 :].replace(".", "_")
            captured.modules[node.target] = module


def check_output(captured: Capture, task: Task) -> None:
    """Refuse a network that does not return one tensor of the form that the task starts from.

    Raises:
        ConversionError: naming what the network returns instead.
    """
    output = captured.output
    value = output.meta["value"] if isinstance(output, fx.Node) else None
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
