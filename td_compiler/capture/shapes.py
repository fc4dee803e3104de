"""What common operations return on the meta device, told from their arguments' shapes alone.

In the table are operations that torch breaks down into many steps in Python there; for the others torch itself is as
fast. What a rule does not know for sure, wrong shapes included, it leaves to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["returned"]

Rule = Callable[..., torch.Tensor | None]


def returned(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """What a function returns for tensors on the meta device: a tensor of its shape, type and memory format.

    No gradient flows through it. None where the table has no rule, or the rule leaves it to torch.
    """
    rule = _RULES.get(function)
    if rule is None or not args:
        return None
    first = args[0][0] if isinstance(args[0], (list, tuple)) and args[0] else args[0]
    known = isinstance(first, torch.Tensor) and first.is_meta and first.is_floating_point()
    return rule(*args, **kwargs) if known else None


def _like(value: torch.Tensor, shape: Sequence[int]) -> torch.Tensor | None:
    """An empty tensor of a value's type and memory format."""
    if value.is_contiguous():
        return _contiguous(value, shape)
    if value.dim() == len(shape) == 4 and value.is_contiguous(memory_format=torch.channels_last):
        return torch.empty(shape, dtype=value.dtype, device=value.device, memory_format=torch.channels_last)
    strides = value.stride()
    if value.shape == shape and value.permute(sorted(range(len(shape)), key=lambda i: -strides[i])).is_contiguous():
        return torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device)
    return None


def _contiguous(value: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return torch.empty(shape, dtype=value.dtype, device=value.device)


def _activation(input: torch.Tensor, *settings: Any, inplace: bool = False, **_: Any) -> torch.Tensor | None:
    """Of an activation's settings the one that can be True says that it works in place."""
    return input if inplace or any(setting is True for setting in settings) else _like(input, input.shape)


def _batch_norm(
    input: torch.Tensor, running_mean: torch.Tensor | None, *_: Any, weight: torch.Tensor | None = None, **__: Any
) -> torch.Tensor | None:
    channels = {len(given) for given in (running_mean, weight) if given is not None}
    return _like(input, input.shape) if channels <= {input.shape[1]} else None


def _layer_norm(input: torch.Tensor, normalized_shape: Sequence[int], *_: Any, **__: Any) -> torch.Tensor | None:
    fits = input.shape[-len(normalized_shape) :] == tuple(normalized_shape)
    return _contiguous(input, input.shape) if fits else None


def _group_norm(input: torch.Tensor, num_groups: int, weight: Any = None, *_: Any, **__: Any) -> torch.Tensor | None:
    fits = input.shape[1] % num_groups == 0 and (weight is None or len(weight) == input.shape[1])
    return _like(input, input.shape) if fits else None


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
    fits = weight.shape[1:] == input.shape[-1:] and weight.dtype is input.dtype
    return _contiguous(input, (*input.shape[:-1], len(weight))) if fits else None


def _sum_or_product(input: torch.Tensor, other: Any, **settings: Any) -> torch.Tensor | None:
    """Of two tensors, one of which may be a gate (N, C, 1, 1) or a scale (C, 1, 1), or of a tensor and a number."""
    if settings or not isinstance(other, (torch.Tensor, int, float)):
        return None
    if not isinstance(other, torch.Tensor):
        return _like(input, input.shape)
    larger, smaller = (input, other) if input.numel() >= other.numel() else (other, input)
    if larger.dtype is not smaller.dtype or larger.dim() < smaller.dim() or not other.is_meta:
        return None
    # Where both have the same shape, the first one's format wins over the second one's.
    same_format = smaller.numel() < larger.numel() or larger.stride() == smaller.stride()
    ends = zip(reversed(larger.shape), reversed(smaller.shape), strict=False)
    fits = same_format and all(b in (1, a) for a, b in ends)
    return _like(larger, larger.shape) if fits else None


def _in_place(input: torch.Tensor, other: Any, **settings: Any) -> torch.Tensor | None:
    made = _sum_or_product(input, other, **settings)
    return input if made is not None and made.shape == input.shape else None


def _concatenation(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor | None:
    first = tensors[0]
    before, after = first.shape[:dim], first.shape[dim:][1:]
    if any((t.shape[:dim], t.shape[dim:][1:], t.dtype) != (before, after, first.dtype) for t in tensors):
        return None
    return _like(first, (*before, sum(t.shape[dim] for t in tensors), *after))


def _global_pool(input: torch.Tensor, output_size: Any) -> torch.Tensor | None:
    return _like(input, (*input.shape[:-2], 1, 1)) if output_size in (1, (1, 1)) and input.dim() == 4 else None


def _elementwise(input: torch.Tensor, **settings: Any) -> torch.Tensor | None:
    return None if settings else _like(input, input.shape)


def _mean(input: torch.Tensor, dim: Any = None, keepdim: bool = False, **settings: Any) -> torch.Tensor | None:
    """Over the sides of a map."""
    pooled = isinstance(dim, (tuple, list)) and tuple(dim) in {(2, 3), (-2, -1)}
    if settings or not pooled or input.dim() != 4 or not _is_plain(input):
        return None
    return _contiguous(input, (*input.shape[:2], 1, 1) if keepdim else input.shape[:2])


def _convolution(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor | None:
    """Of maps and filters in torch's usual format."""
    tensors = [weight] if bias is None else [weight, bias]
    if input.dim() != 4 or weight.dim() != 4 or not all(t.is_meta and t.dtype is input.dtype for t in tensors):
        return None
    outputs, inputs, *kernel = weight.shape
    fits = bias is None or bias.shape == (outputs,)
    if (
        not fits
        or input.shape[1] != inputs * groups
        or outputs % groups
        or not (_is_plain(input) and _is_plain(weight))
    ):
        return None
    given = [each if isinstance(each, tuple) else (each, each) for each in (stride, padding, dilation)]
    if any(len(each) != 2 or not all(type(n) is int for n in each) for each in given):
        return None
    steps = zip(input.shape[2:], kernel, *given, strict=True)
    sides = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in steps if s > 0]
    fits = len(sides) == 2 and min(sides) > 0 and min(*given[1]) >= 0 and min(*given[2]) > 0
    return _contiguous(input, (input.shape[0], outputs, *sides)) if fits else None


def _is_plain(value: torch.Tensor) -> bool:
    """Whether a tensor of four axes lies in memory as torch makes it."""
    _, channels, height, width = value.shape
    return value.stride() == (channels * height * width, height * width, width, 1)


_RULES: Mapping[Any, Rule] = {
    **dict.fromkeys((F.relu, F.relu6, F.hardtanh, F.leaky_relu, F.elu, F.selu, F.celu), _activation),
    **dict.fromkeys((F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.softplus), _activation),
    **dict.fromkeys((torch.add, torch.mul, torch.Tensor.add, torch.Tensor.mul), _sum_or_product),
    **dict.fromkeys((torch.sigmoid, torch.Tensor.sigmoid, torch.tanh, torch.Tensor.tanh), _elementwise),
    **dict.fromkeys((torch.mean, torch.Tensor.mean), _mean),
    F.conv2d: _convolution,
    **dict.fromkeys((torch.Tensor.__iadd__, torch.Tensor.add_, torch.Tensor.__imul__, torch.Tensor.mul_), _in_place),
    torch.cat: _concatenation,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.linear: _linear,
    F.group_norm: _group_norm,
    F.adaptive_avg_pool2d: _global_pool,
}
