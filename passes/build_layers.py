"""Make the layers, now that every width is known, on the source's device and with its weights where they fit."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import fx, nn

from td_compiler.capture.copying import copy_module
from td_compiler.capture.meta import META, is_meta
from td_compiler.capture.spelling import works_in_place
from td_compiler.errors import ConversionError
from td_compiler.graph.initialisation import Initialisation, read_initialisation
from td_compiler.graph.laws import fans_of
from td_compiler.graph.notes import plan, source_of
from td_compiler.graph.operators import layer_row
from td_compiler.graph.parametrised import (
    apply_again,
    clear_hooks,
    computed_tensors,
    faithful_copy,
    name_of,
    plain_copy,
)
from td_compiler.graph.states import Building, TopDown, layer_of
from td_compiler.graph.units import Layer
from td_compiler.layers.upsample import TransposedUpsample
from td_compiler.passes.nodes import is_depthwise, runs_along_channels, turned
from td_compiler.surroundings import own_draws

__all__ = ["build_layers"]


def build_layers(top_down: TopDown) -> Building:
    """The network with a module for every layer, and a parameter for every one outside a layer, that its graphs read.

    A layer of the source keeps its class, its settings and its training mode. Under `init="keep"` parameters and
    buffers of unchanged shape keep their values; everything else is drawn anew as the source draws its own (SPEC 8.4;
    `building.initialisation`). On the meta device nothing is read or drawn.
    """
    _requires(top_down)
    building = Building(
        bottom_up=top_down.bottom_up,
        options=top_down.options,
        stages=top_down.stages,
        notes=top_down.notes,
        prologue_graph=top_down.prologue_graph,
        head_graph=top_down.head_graph,
        layers=top_down.layers,
        done=top_down.done,
        initialisation=read_initialisation(top_down.bottom_up.model),
    )
    graphs = [*filter(None, [top_down.prologue_graph]), *top_down.graphs()]
    for graph in top_down.graphs():
        for node in graph.nodes:
            _spare_input(node, layer_of(top_down, node))
    with contextlib.nullcontext() if _has_no_values(top_down.bottom_up.model) else own_draws():
        for graph in graphs:
            for node in graph.nodes:
                layer = layer_of(top_down, node)
                if layer is not None and str(node.target) not in building.modules:
                    building.modules[str(node.target)] = _build(building, node, layer)
                elif node.op == "get_attr" and node.target != "training":
                    building.parameters[str(node.target)] = _build_parameter(building, node)
    if building.initialisation.shown is False:
        building.notes.append(
            "The values of the source's weights do not show how they were drawn, as if they had been trained: new"
            " weights are He-normal, new biases zero."
        )
    return building


def _requires(top_down: TopDown) -> None:
    for step in ("SetWidths", "RewriteSizes"):
        assert step in top_down.done, f"{step} has not run"


def _spare_input(node: fx.Node, layer: Layer | None) -> None:
    """An operation whose input others read too, or that a stage hands on, may not overwrite it."""
    if not works_in_place(node, layer.prototype if layer else None):
        return
    read = node.args[0]
    if isinstance(read, fx.Node) and (len(read.users) > 1 or read.op == "placeholder" or not _is_spare(node, read)):
        if layer is not None:
            layer.changes["inplace"] = False
        elif "inplace" in node.kwargs:
            node.update_kwarg("inplace", False)


def _is_spare(node: fx.Node, read: fx.Node) -> bool:
    """Whether the backward of what computed a value can do without it: as in the source, which reads the same there."""
    source, own = plan(node).source, plan(read).source
    return source is not None and own is not None and own in source.all_input_nodes


def _build(building: Building, node: fx.Node, layer: Layer) -> nn.Module:
    inputs = [plan(n).width for n in node.all_input_nodes if plan(n).carries]
    if isinstance(layer.prototype, TransposedUpsample):
        with META:  # drawn below, in the network's own type
            module: nn.Module = TransposedUpsample(plan(node).width, layer.prototype.conv.kernel_size)  # type: ignore[arg-type]
        module = module.to(building.bottom_up.dtype)
        _fill(building, node, layer, module, None)
        return module.train(building.bottom_up.model.training)
    original = building.bottom_up.parts.get(layer.source) if layer.source else None
    computed = computed_tensors(layer.prototype)
    module = plain_copy(layer.prototype) if computed else _clone(layer.prototype)
    module.training = original.training if original is not None else building.bottom_up.model.training
    for name, value in layer.changes.items():
        setattr(module, name, value)
    if isinstance(module, nn.Conv2d):
        # nn.Conv2d derives this from its padding when it is made; `F.pad` reads it for any mode but zeros
        module._reversed_padding_repeated_twice = _reversed_padding(module)
    _resize(building, node, module, layer, inputs[0], plan(node).width)
    if computed:
        return _build_parametrised(building, node, layer, module, original)
    if not layer.own:
        module.requires_grad_(True)  # a new layer, though modelled on one that may be frozen
    _fill(building, node, layer, module, original)
    return module


def _build_parametrised(
    building: Building,
    node: fx.Node,
    layer: Layer,
    module: nn.Module,
    original: nn.Module | None,
) -> nn.Module:
    """A layer whose weights are computed of others: a copy where its shapes stay, else made anew in the same way.

    Args:
        module: the plain layer in its new shape.
        original: the source's layer whose values it takes, None where there is none.

    Raises:
        ConversionError: if the source's layer changes its width and its parametrisation cannot.
    """
    like = original if original is not None else layer.prototype
    values = plain_copy(like)
    source, made = _tensors(values), _tensors(module)
    same = all(name in source and source[name].shape == value.shape for name, value in made.items())
    if original is not None and same and building.options.init == "keep":
        copied = faithful_copy(original)
        for name in {*layer.changes, "_reversed_padding_repeated_twice"} & vars(module).keys():
            setattr(copied, name, getattr(module, name))
        return copied if layer.own else copied.requires_grad_(True)
    _fill(building, node, layer, module, values if original is not None else None)
    computed = computed_tensors(like)
    for name in apply_again(module, computed, like):
        what = f"the {name} of {layer.source or node.target} is computed ({name_of(computed[name])})"
        shapes = f"from {tuple(source[name].shape)} to {tuple(made[name].shape)}"
        if layer.own:
            raise ConversionError(
                f"{what}, which cannot follow its change of shape {shapes}: make it a plain parameter, or choose"
                " filters under which its widths stay."
            )
        building.notes.append(f"{what}; that of {node.target}, of another shape, is a plain parameter.")
    if not layer.own:
        module.requires_grad_(True)
    return module.train(original.training if original is not None else building.bottom_up.model.training)


def _build_parameter(building: Building, node: fx.Node) -> torch.Tensor:
    """A parameter or buffer that stands outside any layer, such as a layer scale, with the widths of its maps."""
    path = str(source_of(node).target)
    constant = building.bottom_up.captured.constants.get(path)
    value = (
        constant.to(building.bottom_up.device) if constant is not None else _attribute(building.bottom_up.model, path)
    )
    widths: dict[int, int] = {**plan(node).widths, **dict(enumerate(plan(node).kernel_size or (), 2))}
    shape = [widths.get(axis, n) for axis, n in enumerate(value.shape)]
    law = building.initialisation.of_source.get(path)
    if law is not None:
        building.initialisation.laws[str(node.target)] = law
    made = value.detach().clone()
    if (number := plan(node).picks) is not None:
        made = _indices(path, made, next(iter(widths.values())), number)
    elif shape != list(value.shape):
        made = _of_a_kind(value, shape)
        if not value.is_meta and len(widths) == 1 and not _is_one_row(value, next(iter(widths))):
            building.notes.append(
                f"{path} has a value of its own for every channel: the {shape[next(iter(widths))]} here are those of"
                f" the source's {value.shape[next(iter(widths))]}, in order."
            )
    anew = building.options.init == "fresh" or (shape != list(value.shape) and building.initialisation.shown)
    if law is not None and anew and value.requires_grad and not made.is_meta:
        law.draw(made, fans_of(made))
    return nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made


def _of_a_kind(value: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Values of a new shape like those given: the same in turn, or, of filters that are trained, as widely spread.

    Filters that are all alike are the same in turn too, as those of a blur with one for each channel.
    """
    if value.is_meta:
        return value.new_empty(shape)
    changed = [axis for axis, n in enumerate(shape) if n != value.shape[axis]]
    is_filter = value.dim() > 1 and len(shape) - sum(n == 1 for n in shape) > 1
    if is_filter and value.requires_grad and not all(_is_one_row(value, axis) for axis in changed):
        made = torch.empty(list(shape), dtype=value.dtype, device=value.device)
        nn.init.kaiming_normal_(made)
        return made
    made = value.detach()
    for axis in changed:
        turn = torch.arange(shape[axis], device=value.device) % value.shape[axis]
        made = made.index_select(axis, turn)
    return made.clone()


def _is_one_row(value: torch.Tensor, axis: int) -> bool:
    """Whether all that lies along an axis is equal."""
    return bool((value == value.narrow(axis, 0, 1)).all())


def _indices(path: str, value: torch.Tensor, width: int, old: int) -> torch.Tensor:
    """The numbers of channels in a buffer, for another width: a permutation stays one, another choice cannot follow."""
    if width == old:
        return value
    if value.is_meta and value.numel() == old:
        return value.new_empty(width)
    order = None if value.is_meta or value.numel() != old else turned(value.flatten().tolist(), width)
    if order is None:
        raise ConversionError(
            f"the buffer {path!r} picks channels by their numbers among {old}, and here there are {width}: pick them"
            " by a slice, or give their map a width that stays, as filters='mirror' does within a stage."
        )
    return torch.tensor(order, dtype=value.dtype, device=value.device)


def _attribute(root: nn.Module, path: str) -> torch.Tensor:
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    assert isinstance(value, torch.Tensor)
    return value


def _has_no_values(model: nn.Module) -> bool:
    """Whether all of a model is on the meta device, where nothing is drawn."""
    return all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def _clone(module: nn.Module) -> nn.Module:
    """A copy with registries of its own, hooks left behind."""
    clone = copy_module(module)
    clear_hooks(clone)
    return clone


def _resize(building: Building, node: fx.Node, module: nn.Module, layer: Layer, width_in: int, width_out: int) -> None:
    """Give a module's parameters, buffers and size attributes their new widths, still on the meta device."""
    row, source = layer_row(layer.prototype), plan(node).source
    if row is None or not row.axes or (source is not None and runs_along_channels(building.bottom_up, source)):
        return
    if is_depthwise(layer.prototype):
        module.groups = width_in  # type: ignore[assignment]
    groups = math.gcd(int(getattr(module, "groups", 1)), width_in, width_out)
    if hasattr(module, "groups"):
        module.groups = groups  # type: ignore[assignment]
    if isinstance(module, nn.GroupNorm):
        module.num_groups = math.gcd(module.num_groups, width_in)
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return
    kernel = tuple(getattr(module, "kernel_size", ()))
    filters = (width_out, width_in // groups, *kernel)
    sizes = {"in": width_in, "out": width_out, "in/groups": width_in // groups, "filters": math.prod(filters)}
    for attribute, which in row.sizes.items():
        before = getattr(module, attribute, None)
        if isinstance(before, tuple):
            setattr(module, attribute, filters if which == "filters" else (sizes[which], *before[1:]))
        elif hasattr(module, attribute):
            setattr(module, attribute, sizes[which])
    old = getattr(layer.prototype, list(row.sizes)[-1])
    old = old[-1] if isinstance(old, tuple) else old
    for name, axes in row.axes.items():
        tensor = getattr(module, name, None)
        if tensor is None:
            continue
        rest = kernel if kernel and axes[-1] == "in/groups" else tuple(tensor.shape[len(axes) :])
        shape = (*(sizes.get(axis, n) for axis, n in zip(axes, tensor.shape, strict=False)), *rest)
        fresh = torch.empty(shape, device=META, dtype=tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            module._parameters[name] = nn.Parameter(fresh, tensor.requires_grad)
        else:
            module._buffers[name] = fresh
    _resize_others(module, layer.prototype, row.axes, old, width_out)


def _resize_others(module: nn.Module, before: nn.Module, known: Container[str], old: int, new: int) -> None:
    """Parameters that a subclass adds: one number per channel (the gain of a weight-standardised convolution), or one
    for each of the weight's (a mask).
    """
    weights: list[Any] = [getattr(each, "weight", None) for each in (before, module)]
    for name, parameter in list(module.named_parameters(recurse=False)):
        if name not in known and parameter.dim() and parameter.shape[0] == old:
            is_mask = weights[0] is not None and parameter.shape == weights[0].shape
            shape = tuple(weights[1].shape) if is_mask else (new, *parameter.shape[1:])
            fresh = torch.empty(shape, device=META, dtype=parameter.dtype)
            module._parameters[name] = nn.Parameter(fresh, parameter.requires_grad)


def _fill(building: Building, node: fx.Node, layer: Layer, module: nn.Module, original: nn.Module | None) -> None:
    """Move a module to the source's device and give it values."""
    building.initialisation.note(str(node.target), module, _modelled_on(building, layer), new=not layer.own)
    tensors = [*module.parameters(), *module.buffers()]
    device = next((t.device for t in (*original.parameters(), *original.buffers())), None) if original else None
    device = device or building.bottom_up.device
    if not tensors or is_meta(device):
        return
    module.to_empty(device=device)
    source = _tensors(original) if original is not None else {}
    values = _tensors(module)
    kept = [name for name in values if name in source and source[name].shape == values[name].shape]
    with torch.no_grad():
        if len(kept) < len(values) or building.options.init == "fresh":
            _draw(building.initialisation, str(node.target), module, values, source)
        for name in kept:
            if building.options.init == "keep":
                values[name].copy_(source[name])


def _modelled_on(building: Building, layer: Layer) -> str:
    """The path of the source's layer that a layer is or is modelled on; "" for none."""
    if layer.source:
        return layer.source
    return building.source_paths.get(layer.prototype, "")


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, those that no state dict holds included."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _draw(
    initialisation: Initialisation,
    path: str,
    module: nn.Module,
    values: dict[str, torch.Tensor],
    source: dict[str, torch.Tensor],
) -> None:
    """Give every tensor a new value: by the layer's own reset and the source's laws, else values like the source's.

    Buffers that are constants, such as the taps of a filter, keep theirs.
    """
    for name, value in values.items():
        if not isinstance(value, nn.Parameter) and name in source and source[name].shape == value.shape:
            value.copy_(source[name])
            continue
        known = name in source and source[name].numel() and source[name].dim() == value.dim()
        value.copy_(_of_a_kind(source[name], value.shape)) if known else value.zero_()
    initialisation.draw(path, module)


def _reversed_padding(conv: nn.Conv2d) -> list[int]:
    if isinstance(conv.padding, str):  # "same"
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [side for t in reversed(total) for side in (t // 2, t - t // 2)]
    return [side for extent in reversed(conv.padding) for side in (extent, extent)]
