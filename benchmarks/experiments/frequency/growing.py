"""Progressive growing (thesis 3.2.4, after Karras et al. 2017): a top-down network that gets its stages one by one."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from td_compiler.network.base import TopDownNet
from td_compiler.network.segments import Segment

__all__ = ["GrowingNet"]

Part = nn.Module | nn.Parameter


class GrowingNet(nn.Module):
    """The first so many stages of a top-down network, as a classifier: images (N, C, H, W) to scores (N, num_classes).

    Until its last stage is there, an auxiliary head (norm, activation, global average, linear) reads the finest map. A
    new stage is *staged in*: the scores go from those of the network without it to its own, linearly, over the first
    `ramp` steps of training.

    Attributes:
        td: the whole network. What belongs to stages still to come takes no part and gets no gradient.
        heads: the auxiliary heads of all stages but the last, coarse to fine.
        stages: how many stages there are, at least 1.
        step: how many steps of training the newest stage has seen.
    """

    step: torch.Tensor

    def __init__(self, td: TopDownNet, num_classes: int, *, stages: int, ramp: int, frozen: bool = False) -> None:
        """Take the first stages of `td`.

        Args:
            td: the whole network.
            num_classes: the number of scores.
            stages: how many of its stages take part.
            ramp: steps of training until the newest stage is fully staged in.
            frozen: leave all stages but the newest as they are, running statistics of norms included.

        Raises:
            ValueError: if `td` has not so many stages.
        """
        super().__init__()
        if not 1 <= stages <= len(td.scales):
            raise ValueError(f"stages={stages}: the network has 1 to {len(td.scales)}")
        self.td, self.stages, self.ramp = td, stages, ramp
        widths = [row.top_down.width for row in reversed(td.report.stages[:-1])]
        self.heads = nn.ModuleList(_head(width, num_classes) for width in widths[:-1])
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        fixed = list(self._parts(stages - 1)) if frozen else []
        self._fixed = [part for part in fixed if isinstance(part, nn.Module)]
        active = [*self._parts(stages), *self._head_of(stages - 1)]
        trained = set(_parameters(active)) - set(_parameters(fixed))
        for parameter in self.parameters():
            parameter.requires_grad_(parameter in trained)

    def grow_from(self, smaller: GrowingNet) -> None:
        """Take over the weights of the network with one stage less; the new stage's own stay."""
        self.load_state_dict({**smaller.state_dict(), "step": self.step})

    def train(self, mode: bool = True) -> GrowingNet:
        """As for any module, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._fixed:
            module.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self._maps(images)
        scores = self._classify(maps, self.stages)
        if self.stages == 1:
            return scores
        share = (self.step / self.ramp).clamp(max=1.0).to(scores.dtype)
        if self.training:
            self.step += 1
        return torch.lerp(self._classify(maps, self.stages - 1), scores, share)

    def _maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The maps of the stages that there are, coarse to fine."""
        levels = self.td.pyramid(images)[::-1]
        maps: list[torch.Tensor] = []
        for segment, image in zip(self.td.segments[: self.stages], levels, strict=False):
            maps.append(self.td.run_segment(segment, image=image, **({"x": maps[-1]} if maps else {})))
        return maps

    def _classify(self, maps: list[torch.Tensor], stages: int) -> torch.Tensor:
        """The scores of the network of so many stages."""
        if stages == len(self.td.scales):
            return self.td.run_segment(self.td.segments[-1], x=maps[stages - 1])
        scores: torch.Tensor = self.heads[stages - 1](maps[stages - 1])
        return scores

    def _parts(self, stages: int) -> Iterator[Part]:
        """What the network of so many stages has."""
        for segment in self.td.segments[:stages]:
            yield from self._parts_of(segment)
        yield from self._head_of(stages)

    def _head_of(self, stages: int) -> Iterator[Part]:
        if stages == len(self.td.scales):
            yield from self._parts_of(self.td.segments[-1])
        elif stages:
            yield self.heads[stages - 1]

    def _parts_of(self, segment: Segment) -> Iterator[Part]:
        for node in segment.graph.nodes:
            if node.op in {"call_module", "get_attr"}:
                part = operator.attrgetter(str(node.target))(self.td)
                if isinstance(part, nn.Module | nn.Parameter):
                    yield part


def _parameters(parts: Iterable[Part]) -> Iterator[nn.Parameter]:
    for part in parts:
        if isinstance(part, nn.Parameter):
            yield part
        else:
            yield from part.parameters()


def _head(width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    )
