"""`fuse`: the same top-down network for inference alone, with fewer and simpler steps."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter
from typing import Any, TypeGuard

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from td_compiler.capture.meta import dtype_of, empty_images
from td_compiler.capture.skeleton import skeleton
from td_compiler.emission.leaves import plain_layer
from td_compiler.emission.units import used_modules
from td_compiler.errors import ConversionError
from td_compiler.graph.operators import LAYERS, Kind
from td_compiler.layers.even_kernels import EvenConv2d
from td_compiler.network.base import TopDownNet
from td_compiler.network.fast import folded, pixels_of, plain
from td_compiler.network.segments import Segment
from td_compiler.surroundings import neutral_surroundings

__all__ = ["fuse"]

_FOLDABLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)

# Layers whose every output channel is linear in one slice of the weight: along which axis the slices lie.
_OUTPUT_AXIS: dict[type[nn.Module], int] = {nn.Conv2d: 0, EvenConv2d: 0, nn.Linear: 0, nn.ConvTranspose2d: 1}


@neutral_surroundings()
def fuse(td: TopDownNet) -> TopDownNet:
    """A copy of a top-down network for inference: same scores, same maps, fewer layers.

    A batch norm that alone reads a convolution, or a linear layer on vectors, becomes part of its weight and bias;
    dropout and identities go. All other layers stay as they are: a norm in front of its convolution (pre-activation
    networks), one that is called twice, and any layer with hooks or with a forward of its own.

    Args:
        td: what :func:`td_compiler.reverse` returns, in any mode, of any dtype, on any device. It is not changed.

    Returns:
        A network in evaluation mode that computes what `td.eval()` does, up to rounding: images (N, C, H, W) to class
        scores, with maps, names, emission and copies as before; layers that are gone are gone from its tree. Its
        `report` is that of `td`, with a note. It is not meant to be trained.

    Raises:
        ConversionError: if `td` is no top-down network.
    """
    if not isinstance(td, TopDownNet):
        raise ConversionError(f"td is a {type(td).__name__}, no top-down network: pass what reverse(model) returns.")
    network = plain(copy.deepcopy(td).eval())
    alone = _called_once(network)
    for node, module in list(_calls(network)):
        if module in alone and _passes_on(module):
            node.replace_all_uses_with(node.all_input_nodes[0])
            node.graph.erase_node(node)
    folded = 0
    for node, norm in list(_calls(network)):
        before = _only_source(node)
        if before is None or not _is_fixed(norm):
            continue
        layer = network.get_submodule(str(before.target))
        if {norm, layer} <= alone and _is_linear(network, layer):
            _fold(layer, norm)
            node.replace_all_uses_with(before)
            node.graph.erase_node(node)
            folded += 1
    note = f"Fused for inference: {folded} batch norms are part of the layers in front of them; costs are those before."
    return _with_used_layers(network, note, is_fast=td.unfolded is not None)


def _calls(network: TopDownNet) -> Iterator[tuple[fx.Node, nn.Module]]:
    """The nodes that call a layer, and the layer, in the order in which they run."""
    for segment in network.parts:
        for node in segment.graph.find_nodes(op="call_module"):
            yield node, network.get_submodule(str(node.target))


def _only_source(node: fx.Node) -> fx.Node | None:
    """The call of a layer whose value a node reads, and no other node does."""
    before = node.args[0] if node.args else None
    alone = isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1
    return before if alone else None  # type: ignore[return-value]


def _called_once(network: TopDownNet) -> set[nn.Module]:
    """The layers that one node calls, and that no one else looks at: no other node's layer has them, no hook is on."""
    calls = Counter(part for _, module in _calls(network) for part in module.modules())
    readers = {network.get_submodule(path.rpartition(".")[0]) for path in _attributes(network.parts)}
    return {module for module, count in calls.items() if count == 1 and not _has_hooks(module)} - readers


def _attributes(segments: list[Segment]) -> dict[str, None]:
    """The paths of parameters and buffers that graphs read by themselves, in order; `training` is the mode, no path."""
    nodes = (node for segment in segments for node in segment.graph.find_nodes(op="get_attr"))
    return {str(node.target): None for node in nodes if node.target != "training"}


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _passes_on(module: nn.Module) -> bool:
    """Whether a layer, in evaluation mode, returns its input: by its very class, since a user's may always drop."""
    row = LAYERS.get(type(module))
    return row is not None and row.kind in {Kind.DROPOUT, Kind.IDENTITY}


def _is_fixed(norm: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether a layer, in evaluation mode, scales and shifts channels by the same numbers for all images."""
    return type(norm) in _FOLDABLE and isinstance(norm.running_mean, torch.Tensor)


def _is_linear(network: TopDownNet, layer: nn.Module) -> bool:
    """Whether scaling and shifting a layer's output channels is scaling its weight and shifting its bias."""
    if isinstance(layer, nn.ConvTranspose2d) and layer.groups > 1:
        return False  # an axis of its weight has the channels of one group
    if isinstance(layer, nn.Linear) and not _reads_vectors(network, layer):
        return False  # a batch norm takes another axis for the channels
    return type(plain_layer(layer)) in _OUTPUT_AXIS


def _reads_vectors(network: TopDownNet, layer: nn.Module) -> bool:
    """Whether a linear layer gets (N, C): its channels are then on the axis on which a batch norm takes them."""
    bones = skeleton(network)
    path = next(path for path, module in network.named_modules() if module is layer)
    dimensions: list[int] = []
    bones.get_submodule(path).register_forward_pre_hook(lambda _, inputs: dimensions.append(inputs[0].dim()))
    with torch.no_grad():
        bones(empty_images(network.report.input_size, dtype_of(layer)))
    return dimensions == [2]


@torch.no_grad()
def _fold(layer: nn.Module, norm: _BatchNorm) -> None:
    """Scale and shift a layer's output channels as a norm behind it would."""
    transpose = any(axis == 1 and isinstance(layer, kind) for kind, axis in _OUTPUT_AXIS.items())
    own: tuple[Any, Any] = (layer.weight, layer.bias)
    mean, variance = attrgetter("running_mean", "running_var")(norm)
    fused = fuse_conv_bn_weights(*own, mean, variance, norm.eps, norm.weight, norm.bias, transpose=transpose)
    layer.weight, layer.bias = fused


def _with_used_layers(network: TopDownNet, note: str, *, is_fast: bool) -> TopDownNet:
    """The network on those of its layers that its graphs still call."""
    used = used_modules(network.parts)
    layers = {path: module for path, module in network.named_modules(remove_duplicate=False) if path in used}
    tensors = {path: attrgetter(path)(network) for path in _attributes(network.parts)}
    report = replace(network.report, notes=(*network.report.notes, note))
    segments, unfolded, prologue = network.segments, None, network.prologue
    if is_fast:
        unfolded, segments = segments, folded(segments, pixels_of(network), layers)
    made = {**layers, **tensors}
    return TopDownNet(
        made, segments, network.pyramid, report, prologue, unfolded, channels_last=network.channels_last
    ).eval()
