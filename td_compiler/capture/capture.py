"""From a module to a graph: tracing on a weightless copy, with every node's value at hand (SPEC 1.1).

The source model is never run and never changed: a *skeleton*, the same modules with parameters on the meta device, is
traced instead, so a network of any size is captured in about the time of one Python forward pass. Every node carries
`meta["value"]`, what it computed (tensors on the meta device, plain numbers for sizes).
"""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from td_compiler.capture.copying import copy_module
from td_compiler.capture.tracing import NeedsLeaf, ValueTracer
from td_compiler.errors import ConversionError
from td_compiler.options import Task

__all__ = ["Capture", "capture", "check_output", "skeleton", "works_in_place"]

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


class Capture:
    """A traced network.

    Attributes:
        graph: its operations; `node.meta["value"]` is what each computed, `node.meta["nn_module_stack"]` where.
        modules: the skeleton's modules by path, parameters on the meta device.
        image: the placeholder of the images (N, C, H, W).
        output: the node of what the network returns: class scores (N, K), an encoder's map (N, C, h, w).
        dropped: paths of modules whose branches for training were left out.
    """

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.graph = graph
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.image = next(node for node in graph.nodes if node.op == "placeholder")
        self.dropped: list[str] = []

    @property
    def output(self) -> fx.Node:
        """What the graph returns."""
        return self.graph.output_node().args[0]  # type: ignore[return-value]

    def module(self, node: fx.Node) -> nn.Module | None:
        """The layer that a `call_module` node calls, else None."""
        return self.modules[str(node.target)] if node.op == "call_module" else None


def skeleton(model: nn.Module) -> nn.Module:
    """A deep copy of a model in evaluation mode whose parameters and buffers are on the meta device.

    No weight is copied or read, so this costs the memory of the module objects alone.
    """
    weightless: dict[int, torch.Tensor] = {}
    for parameter in model.parameters():
        weightless[id(parameter)] = nn.Parameter(_without_values(parameter), parameter.requires_grad)
    for buffer in model.buffers():
        weightless[id(buffer)] = _without_values(buffer)
    return copy_module(model, weightless).eval()


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    """The same on the meta device, where `empty_like` would take five times as long."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def capture(model: nn.Module, input_size: tuple[int, int, int]) -> Capture:
    """Trace a model for images of `input_size` (C, H, W).

    A submodule whose control flow depends on data becomes a leaf by itself; where that is the network itself, it is an
    error.

    Raises:
        ConversionError: if the model cannot be traced, or refuses the input size.
    """
    bones = skeleton(model)
    leaves: set[str] = set()
    while True:
        tracer = ValueTracer(input_size, leaves)
        try:
            graph = tracer.trace(bones)
            break
        except NeedsLeaf as reason:
            if not reason.path or reason.path in leaves:
                raise ConversionError(str(reason)) from None
            leaves.add(reason.path)
    _drop_asserts(graph)
    captured = Capture(graph, bones)
    _drop_identities(captured)
    captured.dropped = [path for path in tracer.branches_dropped if not isinstance(bones.get_submodule(path), _NORMS)]
    _functions_as_layers(captured)
    _values_for_places(captured)
    return captured


def _drop_asserts(graph: fx.Graph) -> None:
    """Assertions about sizes hold for the source's sizes, which are not the top-down network's."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target is torch._assert:
            graph.erase_node(node)


def _drop_identities(captured: Capture) -> None:
    """Layers that return their input make no stage, no unit and no projection."""
    for node in captured.graph.find_nodes(op="call_module"):
        if isinstance(captured.module(node), nn.Identity):
            node.replace_all_uses_with(node.args[0])
            captured.graph.erase_node(node)


def _values_for_places(captured: Capture) -> None:
    """What reads a tensor after an operation changed it in place reads that operation's result, as it did in fact."""
    order = {node: i for i, node in enumerate(captured.graph.nodes)}
    for node in list(captured.graph.nodes):
        if works_in_place(node, captured.module(node)):
            changed = node.args[0]
            later = [user for user in changed.users if order[user] > order[node]]
            for user in later:
                user.replace_input_with(changed, node)


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
        path, dot, name = str(getattr(given["weight"], "target", "")).rpartition(".")
        if name != "weight" or not dot or given["weight"].op != "get_attr" or path not in captured.modules:
            continue
        layer = make(given)
        owner = captured.modules[path]
        for part in list(layer._parameters):
            layer._parameters[part] = getattr(owner, part, None)
        for part in list(layer._buffers):
            layer._buffers[part] = getattr(owner, part, None)
        captured.modules[path] = layer
        made.add(path)
        node.op, node.target, node.args, node.kwargs = "call_module", path, (given["input"],), {}
    _rename_children(captured, made)


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
    momentum = given["momentum"]
    return nn.BatchNorm2d(_size_of(given["weight"])[0], given["eps"], momentum, device="meta")


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
