"""`torch.autocast` in a forward, on or off, is kept by a module that stays whole; elsewhere it is refused by place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from td_compiler import ConversionError, leaf, reverse, verify
from tests.test_idioms import SIZE, Net, Residual


def net(make: Callable[[int], nn.Module]) -> Net:
    return Net(lambda cin, cout, stride: Residual(cin, cout, stride, make(cout)))


class Off(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return x.float() * x.float().sigmoid()


class Decorated(nn.Module):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x: Tensor) -> Tensor:
        return x.float() * x.float().sigmoid()


class Swish(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return gradients[0] * (s + x * s * (1 - s))


class ByFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = Swish.apply(x)
        return made


class OnItsDevice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.amp.autocast(device_type=x.device.type, enabled=False):
            return x.float() * x.float().sigmoid()


@leaf
class Leaf(OnItsDevice):
    """Declared to be kept whole: torch knows no autocast on the meta device, where sizes are found."""


@pytest.mark.parametrize("filters", ["mirror", "uniform"])
@pytest.mark.parametrize("kind", [Off, Decorated, ByFunction, Leaf])
def test_kept_by_modules_that_stay_whole(kind: type[nn.Module], filters: str) -> None:
    """In full precision in the source and in the top-down network, whatever the caller's autocast asks for."""
    torch.manual_seed(0)
    model = net(lambda width: kind())
    result = verify(model, input_size=SIZE, filters=filters)
    assert not result.failures, str(result.failures[0])
    assert result.td is not None
    for network in (model, result.td):
        seen: list[torch.dtype] = []
        for module in network.modules():
            if type(module).__name__ == kind.__name__:
                module.register_forward_hook(lambda _, __, made, seen=seen: seen.append(made.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            network(torch.rand(2, *SIZE))
        assert len(seen) == 6 and set(seen) == {torch.float32}


class OffWithLayers(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            made: Tensor = self.norm(x.float())
        return made


class OffInTraining(OffWithLayers):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=not self.training):
            made: Tensor = self.norm(x)
        return made


class OffInHead(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        with torch.autocast("cuda", enabled=False):
            x = self.pool(x.float()).flatten(1)
        scores: Tensor = self.fc(x)
        return scores


class OnForAll(Net):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


class OnCuda(Net):
    """Ignored, with a warning, where there is no GPU."""

    def features(self, x: Tensor) -> Tensor:
        with torch.autocast("cuda"):
            return super().features(x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: net(OffWithLayers), r"'layer1.0.inner'.*test_autocast\.py"),
        (lambda: net(OffInTraining), r"'layer1.0.inner'.*test_autocast\.py"),
        (lambda: net(lambda width: OnItsDevice()), r"'layer1.0.inner'.*test_autocast\.py"),
        (OffInHead, r"the forward.*test_autocast\.py"),
        (OnForAll, r"'stem'.*test_idioms\.py"),
        (OnCuda, r"'stem'.*test_idioms\.py"),
    ],
)
def test_refused(make: Callable[[], nn.Module], where: str) -> None:
    with pytest.raises(ConversionError, match=rf"{where}:\d+.*around the call.*leaf"):
        reverse(make(), input_size=SIZE)


def test_of_the_caller() -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        reverse(Net(), input_size=SIZE)
