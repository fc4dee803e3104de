"""timm makes top-down networks: importing this module registers `td_NAME` for each of its convolutional networks NAME.

    >>> import timm
    >>> import td_compiler.timm
    >>> td = timm.create_model("td_resnet50", num_classes=10, in_chans=1, filters="uniform")
    >>> timm.list_models("td_*")

Options of :func:`td_compiler.reverse` are taken out of the keyword arguments; the others go to timm's own constructor.
`pretrained=True` loads the source network's weights first, those of a tag with it (`td_resnet50.a1_in1k`);
`checkpoint_path` loads the top-down network's own. `features_only=True` makes an encoder of maps, fine to coarse, for
decoders such as those of segmentation_models.pytorch (`tu-td_resnet18`). Nothing is built before it is asked for, so
that a few of the names are of networks that have no top-down counterpart: creating these raises a `ConversionError`
that says why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models import FeatureInfo, generate_default_cfgs, get_arch_pretrained_cfgs, model_entrypoint, register_model
from torch import nn

from td_compiler.convert import reverse
from td_compiler.network.base import TopDownNet
from td_compiler.options import Options
from td_compiler.sources.timm_families import convolutional_names

# What timm's own constructors take is theirs: they fit pretrained weights to other classes and channels.
_OPTIONS = {field.name for field in dataclasses.fields(Options)} - {"num_classes", "in_chans"}
_NO_WEIGHTS: dict[str, Any] = {
    "url": None,
    "file": None,
    "hf_hub_id": None,
    "hf_hub_filename": None,
    "custom_load": False,
}


class TopDownFeatures(nn.Module):
    """A top-down network as an encoder, as `timm.create_model(..., features_only=True)` makes them.

    Attributes:
        network: the network.
        feature_info: widths and scales of the maps, fine to coarse, as decoders want them.
        output_fmt: how the maps' axes stand.
    """

    output_fmt = "NCHW"

    def __init__(self, network: TopDownNet, out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.network = network
        info = network.feature_info[::-1]
        places = range(len(info))
        if out_indices is None:
            chosen = list(places)
        else:
            chosen = [*places[-out_indices:]] if isinstance(out_indices, int) else [places[i] for i in out_indices]
        self.feature_info = FeatureInfo(info, tuple(chosen))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The maps (N, C, H / scale, W / scale) of images (N, C, H, W), fine to coarse."""
        maps = self.network.stage_maps(self.network.pyramid(images))[::-1]
        return [maps[index] for index in self.feature_info.out_indices]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Checkpoint all stages, or none."""
        self.network.set_grad_checkpointing(enable)


def _create(source: str, pretrained: bool, arguments: dict[str, Any]) -> TopDownNet | TopDownFeatures:
    features, chosen = arguments.pop("features_only", False), arguments.pop("out_indices", None)
    td = _network(source, pretrained, arguments)
    return TopDownFeatures(td, chosen) if features else td


def _network(source: str, pretrained: bool, arguments: dict[str, Any]) -> TopDownNet:
    options = {name: arguments.pop(name) for name in _OPTIONS & arguments.keys()}
    if options.get("task") == "segmentation":
        options["num_classes"] = arguments.pop("num_classes", None)
    model = model_entrypoint(source)(pretrained=pretrained, **arguments)
    config = getattr(model, "pretrained_cfg", {})
    channels, *size = config.get("input_size", (3, 224, 224))
    channels = arguments.get("in_chans", channels)
    td = reverse(model, **{"input_size": (channels, *size), **options})
    td.in_chans = channels
    td.pretrained_cfg = td.default_cfg = {**config, "architecture": f"td_{source}"}
    return td


def _entrypoint(source: str) -> Callable[..., TopDownNet | TopDownFeatures]:
    def create(pretrained: bool = False, **kwargs: Any) -> TopDownNet | TopDownFeatures:
        return _create(source, pretrained, kwargs)

    create.__name__ = create.__qualname__ = f"td_{source}"
    create.__doc__ = f"The top-down network of timm's {source}; see :mod:`td_compiler.timm`."
    return create


_sources = convolutional_names()
_entrypoints = {f"td_{name}": _entrypoint(name) for name in _sources}
globals().update(_entrypoints)
# Without places to load from: there are weights for the source networks, none for these.
default_cfgs = generate_default_cfgs(
    {
        f"td_{name}": dataclasses.replace(config, **_NO_WEIGHTS)
        for source in _sources
        for name, config in get_arch_pretrained_cfgs(source).items()
    }
)
for _entry in _entrypoints.values():
    register_model(_entry)
