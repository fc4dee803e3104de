"""The laws by which first values are drawn, and which of them given values follow (SPEC 8.4).

A law is tested on values, not guessed from names: of every tensor a sample is reduced to a few moments, and for tensors
of one kind together the law under which the sample is most probable wins, less a price for numbers that no one would
write (a gain of 0.6532). What no law explains, such as trained weights, is left unexplained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn

__all__ = [
    *("GAINS", "TRUNCATED", "Law", "Sample", "fans_of", "fits", "fits_together", "fitting_law", "like_values"),
    *("samples_of",),
]

Shape = Literal["constant", "normal", "uniform", "truncated", "orthogonal"]
Fan = Literal["", "in", "out", "out/groups", "mean"]

TRUNCATED = 0.87962566103423978
"""The standard deviation of a normal distribution cut at two of its own."""
_WITHIN = math.erf(math.sqrt(2.0))  # of a normal distribution, in two deviations
_LEFT = {"normal": 2.0, "uniform": 0.8, "truncated": 1.365}  # variance of x^2 in units of variance^2
_BOUND = {"normal": math.inf, "uniform": math.sqrt(3.0), "truncated": 2.0 / TRUNCATED}  # in deviations
_SAMPLE = 4096  # values of a tensor
_FAR = 5.0  # standard errors

GAINS: Mapping[float, float] = {
    math.sqrt(1 / 3): 5.0,
    math.sqrt(2): 1.0,  # He
    1.0: 1.0,  # LeCun, Xavier
    5 / 3: 3.0,  # tanh
    math.sqrt(1 / 2): 3.0,
    2.0: 3.0,
    math.sqrt(2 / 1.01): 12.0,  # leaky ReLU, slope 0.1
    math.sqrt(2 / 1.04): 9.0,  # slope 0.2
}
"""Gains that people write, and what each costs, in nats of evidence: chance alone must not turn one into another."""
_FAN_PRICES: Mapping[Fan, float] = {"in": 0.0, "": 0.2, "out": 0.3, "mean": 0.5, "out/groups": 0.6}


@dataclass(frozen=True)
class Law:
    """How the first values of a tensor are drawn.

    Attributes:
        shape: the distribution; `truncated` is a normal one cut at two deviations.
        value: a constant's value; with a fan the gain g, so that the deviation is g / sqrt(fan), as torch has it;
            else the deviation, of `uniform` the largest distance from the mean, of `truncated` that before the cut.
        fan: which number of connections the deviation follows: `in`, `out`, `out/groups`, their `mean` (Xavier), none.
        mean: of all values.
    """

    shape: Shape
    value: float
    fan: Fan = ""
    mean: float = 0.0

    @property
    def is_constant(self) -> bool:
        return self.shape == "constant"

    def deviation(self, fans: Mapping[Fan, float]) -> float:
        """The standard deviation of a tensor's values; a constant has none."""
        if self.fan:
            return self.value / math.sqrt(fans[self.fan])
        return {"normal": 1.0, "uniform": math.sqrt(1 / 3), "truncated": TRUNCATED}.get(self.shape, 0.0) * self.value

    def draw(self, tensor: torch.Tensor, fans: Mapping[Fan, float]) -> None:
        """Draw a tensor's values anew, in place."""
        std = self.deviation(fans)
        with torch.no_grad():
            if self.shape == "constant":
                tensor.fill_(self.value)
            elif self.shape == "uniform":
                bound = math.sqrt(3) * std
                tensor.uniform_(self.mean - bound, self.mean + bound)
            elif self.shape == "normal":
                tensor.normal_(self.mean, std)
            elif self.shape == "truncated":
                std /= TRUNCATED
                nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)
            else:
                plain = torch.empty_like(tensor, memory_format=torch.contiguous_format)
                tensor.copy_(nn.init.orthogonal_(plain, gain=self.value))


def fans_of(weight: torch.Tensor, groups: int = 1) -> dict[Fan, float]:
    """The connections of a weight (out, in / groups, ...) as `torch.nn.init` counts them; none of a vector."""
    if weight.dim() < 2 or not weight.numel():
        return {}
    outs, ins = weight.shape[0], weight.shape[1]
    field = weight[0, 0].numel()
    into, out = float(ins * field), float(outs * field)
    return {"in": into, "out": out, "out/groups": out / groups, "mean": (into + out) / 2}


class Sample(NamedTuple):
    """What a sample of a tensor's values shows.

    Attributes:
        fans: what its deviation may follow (:func:`fans_of`, for a bias those of its weight that it may follow).
        number: of values looked at.
        mean, square, fourth: the mean value, square and fourth power.
        low, high: the smallest and the largest value.
        gain: of a matrix, or of filters written as one, with orthogonal rows or columns their length; else 0.
        precision: by how much storage may have moved a value, relatively.
    """

    fans: Mapping[Fan, float]
    number: int
    mean: float
    square: float
    fourth: float
    low: float
    high: float
    gain: float = 0.0
    precision: float = 1e-6

    @property
    def largest(self) -> float:
        return max(abs(self.low), abs(self.high))

    @property
    def is_constant(self) -> bool:
        """Whether all values are one; a single value may have been drawn, where it is no number that people write."""
        is_written = abs(self.low - _rounded(self.low, 2)) <= self.precision * abs(self.low)
        return self.low == self.high and (self.number > 1 or is_written)


def samples_of(tensors: Sequence[tuple[torch.Tensor, Mapping[Fan, float]]]) -> list[Sample]:
    """Samples of tensors with values, each with its fans; at most 4,096 values of each are looked at."""
    moments = []
    for tensor, _ in tensors:
        x = _some(tensor.detach()).double()
        square = x * x
        low, high = x.aminmax()
        moments.append(torch.stack([x.mean(), square.mean(), (square * square).mean(), low, high]).cpu())
    rows = torch.stack(moments).tolist() if moments else []
    samples = []
    for (tensor, fans), row in zip(tensors, rows, strict=True):
        if row[3] == row[4] and tensor.numel() > _SAMPLE:  # one of filters that are nearly all zero
            row[3:5] = (float(end) for end in tensor.detach().aminmax())
        precision = max(1e-6, torch.finfo(tensor.dtype).eps)
        count, gain = min(tensor.numel(), _SAMPLE), _orthogonal_gain(tensor, row)
        samples.append(Sample(fans, count, row[0], row[1], row[2], row[3], row[4], gain, precision))
    return samples


def _some(tensor: torch.Tensor) -> torch.Tensor:
    """At most so many of a tensor's values, from all over it."""
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.permute(*_by_stride(tensor)).reshape(-1)
    return flat[:: -(-len(flat) // _SAMPLE)] if len(flat) > _SAMPLE else flat


def _by_stride(tensor: torch.Tensor) -> list[int]:
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda axis: -strides[axis])


def _orthogonal_gain(tensor: torch.Tensor, moments: Sequence[float]) -> float:
    """The length of a matrix's rows or columns, whichever are fewer, if they are orthogonal and equally long."""
    if tensor.dim() < 2 or moments[3] == moments[4] or tensor.numel() > 2**22:
        return 0.0
    matrix = tensor.detach().flatten(1)
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    if matrix.shape[0] < 4:
        return 0.0
    few = matrix[:8].double()  # rows enough to tell
    products = few @ few.mT
    length = float(products.diagonal().mean())
    error = (products - length * torch.eye(len(few), dtype=products.dtype, device=products.device)).abs().max()
    return math.sqrt(length) if float(error) < 1e-3 * length else 0.0


def fitting_law(samples: Sequence[Sample], *, apart: bool = False) -> Law | None:
    """The law that explains samples of one kind best; whether it explains every one of them, :func:`fits` says.

    Args:
        samples: at least one.
        apart: the tensors are nothing but themselves, parameters outside layers: two numbers may be fitted to them.
    """
    if all(sample.is_constant for sample in samples):
        values = {sample.low for sample in samples}
        return Law("constant", max(values, key=lambda value: sum(sample.low == value for sample in samples)))
    drawn = [sample for sample in samples if not sample.is_constant]
    if all(sample.gain for sample in drawn):
        gain = drawn[0].gain
        return Law("orthogonal", next((g for g in GAINS if abs(g / gain - 1) < 1e-3), _rounded(gain, 3)))
    scored = list(_scored(drawn, weak=apart or len(drawn) > 2))
    best = max(scored, key=lambda pair: pair[0])[1] if scored else None
    if best is not None and all(fits(best, sample) for sample in drawn):
        return best
    if apart or len(drawn) > 2:
        around = _around_a_mean(drawn)
        if best is None or all(fits(around, sample) for sample in drawn):
            return around
    return best


def _scored(samples: Sequence[Sample], *, weak: bool) -> Iterator[tuple[float, Law]]:
    """Laws around zero by the logarithm of the sample's probability, less their price."""
    for fan, fan_price in _FAN_PRICES.items():
        if fan and not all(fan in sample.fans for sample in samples):
            continue
        sizes = [sample.fans[fan] if fan else 1.0 for sample in samples]
        number = sum(sample.number for sample in samples)
        stretch = sum(s.number * math.log(size) for s, size in zip(samples, sizes, strict=True)) / 2
        squares = sum(s.number * s.square * size for s, size in zip(samples, sizes, strict=True))
        stored = max(s.largest * math.sqrt(size) for s, size in zip(samples, sizes, strict=True))
        largest = stored * (1 - max(s.precision for s in samples))
        for shape in ("normal", "uniform", "truncated"):
            for std, value, price in _candidates(shape, fan, math.sqrt(squares / number), largest, weak=weak):
                if largest > std * _BOUND[shape]:
                    continue
                if shape == "uniform":  # no bound is the better for lying below what storage has made of a value
                    log = -number * math.log(2 * max(std * math.sqrt(3), stored))
                else:
                    base = std / TRUNCATED if shape == "truncated" else std
                    within = _WITHIN if shape == "truncated" else 1.0
                    log = -number * math.log(base * math.sqrt(2 * math.pi) * within) - squares / (2 * base * base)
                yield log + stretch - price - fan_price, Law(shape, value, fan)


def _candidates(
    shape: str, fan: Fan, std: float, largest: float, *, weak: bool
) -> Iterator[tuple[float, float, float]]:
    """Deviation, the number that says it, and what that number costs: gains that people write, else rounded ones."""
    if fan:
        for gain, price in GAINS.items():
            usual = shape == "uniform" and fan == "in" and gain < 0.6  # torch's own, which most networks leave as it is
            yield gain, gain, -6.0 if usual else price
    if fan and not weak:
        return
    unit = 1.0 if fan else {"normal": 1.0, "uniform": math.sqrt(1 / 3), "truncated": TRUNCATED}[shape]
    value = largest / math.sqrt(3) / unit if shape == "uniform" else std / unit
    for digits, price in ((1, 3.0), (2, 12.0), (3, 20.0)):
        if digits == 3 and not weak:
            return
        near = _rounded(value, digits)
        step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
        for number in {near, _rounded(near + step, digits)} if shape == "uniform" else {near}:
            yield number * unit, number, price + (2.0 if fan else 0.0)


def _around_a_mean(samples: Sequence[Sample]) -> Law:
    """A normal or uniform law around another mean than zero."""
    number = sum(sample.number for sample in samples)
    mean = sum(sample.number * sample.mean for sample in samples) / number
    square = sum(sample.number * sample.square for sample in samples) / number
    std = math.sqrt(max(square - mean * mean, 0.0))
    low, high = min(sample.low for sample in samples), max(sample.high for sample in samples)
    if number > 30 and (high - low) / 2 < 1.75 * std:
        middle = _rounded((low + high) / 2, 2, of=high - low)
        return Law("uniform", _rounded((high - low) / 2 * (1 + 1 / number), 2), mean=middle)
    return Law("normal", _rounded(std, 2), mean=_rounded(mean, 2, of=max(abs(mean), std)))


def _rounded(value: float, digits: int, of: float | None = None) -> float:
    """A number to so many significant digits, of another number if that is given."""
    size = abs(value if of is None else of)
    return round(value, digits - 1 - math.floor(math.log10(size))) if size and math.isfinite(size) else value


def fits(law: Law, sample: Sample) -> bool:
    """Whether a sample's values may have been drawn by a law: its mean, spread, tails and largest value."""
    if law.is_constant or sample.is_constant:
        return law.is_constant and sample.low == sample.high == law.value
    if law.shape == "orthogonal":
        return abs(sample.gain / law.value - 1) < 1e-3
    if law.fan and law.fan not in sample.fans:
        return False
    std = law.deviation(sample.fans)
    if not math.isfinite(sample.square) or not std:
        return False
    square = sample.square - 2 * law.mean * sample.mean + law.mean**2
    spread = abs(square / std**2 - 1) / math.sqrt(_LEFT[law.shape] / sample.number)
    shift = abs(sample.mean - law.mean) / std * math.sqrt(sample.number)
    rounding = 0.02 / max(abs(law.mean) / std, 1.0) if law.mean else 0.0
    largest = max(abs(sample.low - law.mean), abs(sample.high - law.mean)) * (1 - sample.precision)
    if spread > _FAR * (1.5 if law.mean else 1.0) or shift > _FAR + rounding * sample.number:
        return False
    if largest > std * _BOUND[law.shape] * (1.01 if law.mean else 1.0):
        return False
    if sample.number < 64 or law.mean:
        return True
    tails = _LEFT[law.shape] + 1.0
    return abs(sample.fourth / std**4 - tails) < 6 * math.sqrt(96 / sample.number) + 0.05


def fits_together(law: Law, samples: Sequence[Sample]) -> bool:
    """Whether tensors that fit a law one by one have its spread together, which shows smaller differences."""
    if law.is_constant or law.shape == "orthogonal" or law.mean:
        return True
    squares = [sample.square / law.deviation(sample.fans) ** 2 - 1 for sample in samples]
    number = sum(sample.number for sample in samples)
    error = sum(sample.number * square for sample, square in zip(samples, squares, strict=True)) / number
    rounding = 0.02 if law.value not in GAINS else max(sample.precision for sample in samples)
    return abs(error) < _FAR * math.sqrt(_LEFT[law.shape] / number) + rounding


def like_values(samples: Iterable[Sample]) -> Law:
    """A law of the mean and the spread that values have, whatever drew them."""
    given = list(samples)
    if all(sample.is_constant for sample in given) and len({sample.low for sample in given}) == 1:
        return Law("constant", given[0].low)
    return _around_a_mean(given)
