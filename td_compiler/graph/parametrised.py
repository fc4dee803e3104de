"""Layers whose weights are computed of other tensors whenever they run (SPEC 2.14).

Weight and spectral normalisation, orthogonal weights and pruning, in torch's old form (a hook before the forward) and
in its new one (`torch.nn.utils.parametrize`). Such a layer is read by the weights that it has; a copy of it keeps how
they are computed, and at another width a plain layer is made and the same parametrisation applied to it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from td_compiler.capture.copying import copy_module

__all__ = ["apply_again", "clear_hooks", "computed_tensors", "faithful_copy", "name_of", "plain_copy", "torch_function"]

Maker = Any
"""What computes a tensor: a module of `torch.nn.utils.parametrize`, or a hook before the forward."""

_KNOWN_HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
_REGISTRIES = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")


def computed_tensors(module: nn.Module) -> dict[str, list[Maker]]:
    """The parameters of a layer that are computed of others, and what computes each, in order."""
    found: dict[str, list[Maker]] = {}
    if parametrize.is_parametrized(module):
        found = {name: list(steps) for name, steps in module.parametrizations.items()}  # type: ignore[operator, union-attr]
    hooks = list(module._forward_pre_hooks.values())
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor) and name in ("weight", "bias") and hooks:
            own = [hook for hook in hooks if _tensor_of(hook) == name]
            found[name] = own or [hook for hook in hooks if _tensor_of(hook) is None]
    return {name: makers for name, makers in found.items() if makers}


def _tensor_of(hook: Maker) -> str | None:
    name = getattr(hook, "name", getattr(hook, "_tensor_name", None))
    return name if isinstance(name, str) else None


def name_of(makers: list[Maker]) -> str:
    """What a user calls a parametrisation: `weight_norm`, `spectral_norm`, the class of another."""
    names = {
        "WeightNorm": "weight_norm",
        "_WeightNorm": "weight_norm",
        "SpectralNorm": "spectral_norm",
        "_SpectralNorm": "spectral_norm",
        "_Orthogonal": "orthogonal",
    }
    kinds = [getattr(maker, "__name__", type(maker).__name__) for maker in makers]
    pruned = [isinstance(maker, prune.BasePruningMethod) for maker in makers]
    return " and ".join("pruning" if p else names.get(kind, kind) for kind, p in zip(kinds, pruned, strict=True))


def faithful_copy(module: nn.Module) -> nn.Module:
    """A copy of a parametrised layer that computes its weights as the layer does; other hooks are left behind."""
    clone = copy_module(module)
    kept = [maker for makers in computed_tensors(clone).values() for maker in makers]
    before = {key: hook for key, hook in clone._forward_pre_hooks.items() if any(hook is each for each in kept)}
    with_kwargs = {key: value for key, value in clone._forward_pre_hooks_with_kwargs.items() if key in before}
    loading = clone._load_state_dict_pre_hooks.copy(), clone._state_dict_hooks.copy()
    clear_hooks(clone)
    clone._forward_pre_hooks.update(before)
    clone._forward_pre_hooks_with_kwargs.update(with_kwargs)
    clone._load_state_dict_pre_hooks.update(loading[0])  # they bring state dicts of other forms and versions
    clone._state_dict_hooks.update(loading[1])
    return clone


def plain_copy(module: nn.Module) -> nn.Module:
    """A copy of a parametrised layer with the weights that it has now as plain parameters, without hooks."""
    computed = computed_tensors(module)
    clone = copy_module(module).eval()  # spectral normalisation moves its vectors in training, whenever it is read
    trained = {name: _is_trained(clone, name) for name in computed}
    values: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, makers in computed_tensors(clone).items():
            for maker in makers:
                if isinstance(maker, _KNOWN_HOOKS):
                    maker(clone, ())
            values[name] = getattr(clone, name).detach().clone()
    clear_hooks(clone)
    if parametrize.is_parametrized(clone):
        clone.__class__ = type(clone).__bases__[0]
        del clone._modules["parametrizations"]
    for name in values:
        vars(clone).pop(name, None)
        for registry in (clone._parameters, clone._buffers):
            for other in [other for other in registry if other.startswith(f"{name}_")]:
                del registry[other]
    made = {name: nn.Parameter(value, trained[name]) for name, value in values.items()}
    clone._parameters = {**made, **clone._parameters}  # a layer's weight comes before its bias
    return clone.train(module.training)


def _is_trained(module: nn.Module, name: str) -> bool:
    made_of = [p for n, p in module.named_parameters() if n.startswith((f"{name}_", f"parametrizations.{name}."))]
    return any(parameter.requires_grad for parameter in made_of)


def clear_hooks(module: nn.Module) -> None:
    """Leave the hooks of a copy behind: they are the original's."""
    for name, value in vars(module).items():
        if name.endswith(_REGISTRIES) and hasattr(value, "clear"):
            value.clear()


def apply_again(module: nn.Module, computed: Mapping[str, list[Maker]], like: nn.Module) -> list[str]:
    """Compute the weights of a plain layer, of whatever width, as those of another are; in place.

    Args:
        module: a plain layer.
        computed: the other's `computed_tensors`.
        like: the other.

    Returns:
        The tensors for which that cannot be done, which stay plain parameters.
    """
    failed = []
    for name, makers in computed.items():
        try:
            for maker in makers:
                _apply(module, name, maker, like)
            if name in vars(module):  # torch copies no tensor with a history; the hook computes it before every run
                vars(module)[name] = vars(module)[name].detach()
        except Exception:  # whatever torch or a user's parametrisation makes of another shape
            failed.append(name)
    return failed


def torch_function(maker: Maker) -> tuple[str, dict[str, Any]]:
    """The function of `torch.nn.utils` that sets a parametrisation up, and its settings; "" where there is none."""
    if isinstance(maker, WeightNorm | parametrizations._WeightNorm):
        old = isinstance(maker, WeightNorm)
        return ("" if old else "parametrizations.") + "weight_norm", {"dim": None if maker.dim == -1 else maker.dim}
    if isinstance(maker, SpectralNorm | parametrizations._SpectralNorm):
        old = isinstance(maker, SpectralNorm)
        settings = {"n_power_iterations": getattr(maker, "n_power_iterations", 1), "eps": maker.eps, "dim": maker.dim}
        return ("" if old else "parametrizations.") + "spectral_norm", settings
    if isinstance(maker, parametrizations._Orthogonal):
        settings = {"orthogonal_map": maker.orthogonal_map.name, "use_trivialization": "base" in maker._buffers}
        return "parametrizations.orthogonal", settings
    return "", {}


def _apply(module: nn.Module, name: str, maker: Maker, like: nn.Module) -> None:
    if isinstance(maker, WeightNorm):
        inspect.unwrap(WeightNorm.apply)(module, name, maker.dim)  # past a warning that the old form is old
    elif isinstance(maker, SpectralNorm):
        SpectralNorm.apply(module, name, maker.n_power_iterations, maker.dim, maker.eps)
    elif isinstance(maker, prune.BasePruningMethod):
        mask = getattr(like, f"{name}_mask")
        if mask.shape != getattr(module, name).shape:
            raise ValueError("a mask has the shape of its weight")
        prune.custom_from_mask(module, name, mask)
    elif isinstance(maker, parametrizations._WeightNorm):
        parametrizations.weight_norm(module, name, maker.dim)
    elif isinstance(maker, parametrizations._SpectralNorm):
        iterations = getattr(maker, "n_power_iterations", 1)
        parametrizations.spectral_norm(module, name, iterations, maker.eps, maker.dim)
    elif isinstance(maker, parametrizations._Orthogonal):
        kind = maker.orthogonal_map.name
        parametrizations.orthogonal(module, name, kind, use_trivialization="base" in maker._buffers)
    elif isinstance(maker, nn.Module) and not maker.state_dict():
        parametrize.register_parametrization(module, name, copy_module(maker))
    else:
        raise TypeError(f"{name_of([maker])} has tensors of its own")
