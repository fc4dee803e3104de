"""Heat maps: where in an image a network finds a class (SPEC 6.3), computed by captum.

Grad-CAM (Selvaraju et al. 2017) at every tap of a network (`td_compiler.network.taps`),
saliency (Simonyan et al. 2014) and
guided backpropagation (Springenberg et al. 2015) at the image.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from captum.attr import GuidedBackprop, LayerGradCam, Saliency
from torch import Tensor, fx, nn

from td_compiler.benchmarks.training.training import Normalised
from td_compiler.network.taps import tapped

__all__ = ["Explainer", "at_image_size"]

Size = tuple[int, int, int]

_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}


class Explainer:
    """A network whose decisions are to be explained; it is not changed.

    Args:
        network: images (N, C, H, W) in [0, 1] to class scores (N, K), in evaluation mode.
        normalise: what is done to images before the network sees them; nothing by default.
        input_size: (C, H, W).

    Attributes:
        taps: the places that Grad-CAM looks at, in the order in which the network runs.

    Raises:
        ConversionError: if the compiler finds no stages in the network.
    """

    def __init__(self, network: nn.Module, input_size: Size, normalise: nn.Module | None = None) -> None:
        graph = tapped(network, input_size=input_size)
        _relus_as_layers(graph)
        taps = graph.taps
        assert isinstance(taps, nn.ModuleDict)
        self._taps = taps
        self._network = nn.Sequential(normalise or nn.Identity(), graph).eval()

    @classmethod
    def of(cls, network: Normalised, input_size: Size) -> Explainer:
        """The explainer of a trained network: its normalisation stands before the stages."""
        return cls(network.net, input_size, network.normalise)

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps by name: `input`, the stages as the network runs them, and `head` where the head has layers."""
        return tuple(self._taps)

    @property
    def has_relu(self) -> bool:
        """Whether guided backpropagation says more than saliency: it is about ReLUs."""
        return any(isinstance(module, nn.ReLU) for module in self._network.modules())

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """Class scores (N, K) for images (N, C, H, W)."""
        scores: Tensor = self._network(images)
        return scores

    def grad_cam(self, images: Tensor, classes: Tensor, tap: str) -> Tensor:
        """Grad-CAM before its ReLU, at the size of the tap's map: (N, 1, h, w).

        Args:
            images: (N, C, H, W) in [0, 1].
            classes: (N,), the class that each heat map is for.
            tap: one of `taps`.
        """
        maps: Tensor = LayerGradCam(self._network, self._taps[tap]).attribute(_leaf(images), classes)
        return maps.detach()

    def saliency(self, images: Tensor, classes: Tensor) -> Tensor:
        """The largest absolute gradient of the class score over the image's channels: (N, 1, H, W)."""
        gradient: Tensor = Saliency(self._network).attribute(_leaf(images), classes)
        return gradient.detach().amax(1, keepdim=True)

    def guided_backpropagation(self, images: Tensor, classes: Tensor) -> Tensor:
        """The same with negative gradients stopped at every ReLU."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Setting backward hooks")  # they are taken off again
            gradient: Tensor = GuidedBackprop(self._network).attribute(_leaf(images), classes)
        return gradient.detach().abs().amax(1, keepdim=True)


def _leaf(images: Tensor) -> Tensor:
    """The images as a start of gradients, which a tap may be too that is the image itself."""
    return images.detach().requires_grad_()


def _relus_as_layers(network: fx.GraphModule) -> None:
    """Guided backpropagation acts on `nn.ReLU`: functional ones become such."""
    relus = [node for node in network.graph.nodes if node.op.startswith("call_") and node.target in _RELUS]
    for number, node in enumerate(relus):
        path = f"relus.{number}"
        network.add_submodule(path, nn.ReLU())
        node.op, node.target, node.args, node.kwargs = "call_module", path, node.args[:1], {}
    network.recompile()


def at_image_size(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Heat maps (N, 1, h, w) grown bilinearly to (N, 1, H, W); `size` ends in H, W."""
    return F.interpolate(maps, tuple(size[-2:]), mode="bilinear", align_corners=False)
