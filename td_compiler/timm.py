"""timm makes top-down networks: importing this module registers `td_NAME` for each of its convolutional networks NAME.

    >>> import timm
    >>> import td_compiler.timm
    >>> td = timm.create_model("td_resnet50", num_classes=10, in_chans=1, filters="uniform")
    >>> timm.list_models("td_*")

Options of :func:`td_compiler.reverse` are taken out of the keyword arguments; the others go to timm's own constructor.
`pretrained=True` loads the source network's weights first, those of a tag with it (`td_resnet50.a1_in1k`);
`checkpoint_path` loads the top-down network's own. Nothing is built before it is asked for, so that a few of the names
are of networks that have no top-down counterpart: creating these raises a `ConversionError` that says why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from timm.models import generate_default_cfgs, get_arch_pretrained_cfgs, model_entrypoint, register_model
from torch import nn

from td_compiler.convert import reverse
from td_compiler.errors import ConversionError
from td_compiler.network.base import TopDownNet
from td_compiler.options import Options
from td_compiler.sources.timm_families import convolutional_names

__all__ = ["TimmTopDownNet"]

_OPTIONS = {field.name for field in dataclasses.fields(Options)} - {"num_classes"}  # timm's, but for segmentation
_NO_WEIGHTS: dict[str, Any] = {
    "url": None,
    "file": None,
    "hf_hub_id": None,
    "hf_hub_filename": None,
    "custom_load": False,
}


class TimmTopDownNet(TopDownNet):
    """A top-down network with what timm's scripts ask of a model.

    Attributes:
        pretrained_cfg: timm's data configuration of the source network: input size, mean, standard deviation, ...
        default_cfg: the same, under its older name.
        num_classes: the classes that it scores.
        in_chans: the channels of its images.
    """

    pretrained_cfg: dict[str, Any]
    default_cfg: dict[str, Any]
    num_classes: int
    in_chans: int
    _classifier: str  # its path, "" where the network has none
    _make_classifier: Callable[[int], nn.Module] | None  # of the kind that the network came with, for so many classes

    def get_classifier(self) -> nn.Module:
        """The last layer, which scores the classes; an identity where the network returns features."""
        return self.get_submodule(self._classifier) if self._classifier else nn.Identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in the place of the last layer; 0 classes: none, the network returns features (N, C).

        Raises:
            ConversionError: if another pooling is wanted, or the network has no linear or convolutional classifier.
        """
        if global_pool is not None:
            raise ConversionError(f"global_pool={global_pool!r} is for timm.create_model: the pooling stays as it is.")
        if self._make_classifier is None:
            kind = type(self.get_classifier()).__name__
            raise ConversionError(
                f"the classifier is no linear layer, but {kind}: give num_classes to timm.create_model."
            )
        like = next(self.parameters())
        new = self._make_classifier(num_classes) if num_classes else nn.Identity()
        self.set_submodule(self._classifier, new.to(like.device, like.dtype).train(self.training))
        self.num_classes = num_classes


def _create(source: str, pretrained: bool, arguments: dict[str, Any]) -> TimmTopDownNet:
    options = {name: arguments.pop(name) for name in _OPTIONS & arguments.keys()}
    if options.get("task") == "segmentation":
        options["num_classes"] = arguments.pop("num_classes", None)
    model = model_entrypoint(source)(pretrained=pretrained, **arguments)
    config = getattr(model, "pretrained_cfg", {})
    channels, *size = config.get("input_size", (3, 224, 224))
    channels = arguments.get("in_chans", channels)
    td = reverse(model, **{"input_size": (channels, *size), **options})
    td.__class__ = TimmTopDownNet  # the same network, with methods more
    td = cast(TimmTopDownNet, td)
    td.pretrained_cfg = td.default_cfg = {**config, "architecture": f"td_{source}"}
    td.num_classes = options.get("num_classes", getattr(model, "num_classes", 0))
    td.in_chans = channels
    td._classifier = "segmentation_head" if "num_classes" in options else _find_classifier(model, td)
    td._make_classifier = _maker(td.get_classifier())
    return td


def _find_classifier(model: nn.Module, td: TopDownNet) -> str:
    """The path of the source's classifier, if the top-down network has it too."""
    find = getattr(model, "get_classifier", None)
    found = find() if find is not None else None
    paths = [path for path, module in model.named_modules() if module is found]
    return next((path for path in paths if path in dict(td.named_modules())), "")


def _maker(classifier: nn.Module) -> Callable[[int], nn.Module] | None:
    """What makes a layer like this one for another number of classes."""
    bias = getattr(classifier, "bias", None) is not None
    if isinstance(classifier, nn.Linear):
        return partial(nn.Linear, classifier.in_features, bias=bias)
    if isinstance(classifier, nn.Conv2d):
        height, width = classifier.kernel_size
        return partial(nn.Conv2d, classifier.in_channels, kernel_size=(height, width), bias=bias)
    return None


def _entrypoint(source: str) -> Callable[..., TimmTopDownNet]:
    def create(pretrained: bool = False, **kwargs: Any) -> TimmTopDownNet:
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
