"""Which of timm's networks are convolutional: known by the module that registers them, without building one.

A family is a module of `timm.models` that defines a network class. Some networks are registered in another module than
the one that defines their class; they count to the latter.

Convolutional means here: no layer is of a class with `Attention` in its name. What is left by this rule still includes
convolutional blocks that call themselves attention (selective kernels, split attention) and some 15 networks of
`byoanet` with local self-attention (halo, bottleneck, lambda).
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from td_compiler.sources.names import model_names

__all__ = ["FAMILIES", "convolutional_names", "family", "is_convolutional"]

FAMILIES = (
    "byobnet",
    "convmixer",
    "convnext",
    "cspnet",
    "cspnext",
    "densenet",
    "dla",
    "dpn",
    "efficientnet",
    "fasternet",
    "ghostnet",
    "hgnet",
    "hrnet",
    "inception_next",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnetv2",
    "mambaout",
    "mobilenetv3",
    "nasnet",
    "nfnet",
    "pnasnet",
    "rdnet",
    "regnet",
    "repghost",
    "repvit",
    "resnet",
    "resnetv2",
    "rexnet",
    "selecsls",
    "senet",
    "starnet",
    "tresnet",
    "vgg",
    "vovnet",
    "xception",
    "xception_aligned",
)

# The modules that register networks of classes defined in another one.
_DEFINED_IN = {
    "byoanet": "byobnet",
    "hardcorenas": "mobilenetv3",
    "res2net": "resnet",
    "resnest": "resnet",
    "sknet": "resnet",
}
# The networks of these families that do have a layer of a class named Attention.
_WITH_ATTENTION = ("resnet*_clip", "mobilenetv4_hybrid_*")


def family(name: str) -> str:
    """The family of a network of timm's, or of one registered with timm: `resnet` for `resnet50` and `skresnet18`.

    It is the whole module's name for a network that another package registered.
    """
    import timm

    module = str(timm.models.model_entrypoint(name).__module__)
    package, _, last = module.rpartition(".")
    return _DEFINED_IN.get(last, last) if package == "timm.models" else module


def convolutional_names() -> list[str]:
    """timm's convolutional networks by name, sorted, deprecated names left out.

    Raises:
        SourceError: if timm is not installed.
    """
    return [name for name in model_names("timm") if is_convolutional(name)]


def is_convolutional(name: str) -> bool:
    """Whether a network of timm's is convolutional, in the sense of this module."""
    return family(name) in FAMILIES and not any(fnmatchcase(name, pattern) for pattern in _WITH_ATTENTION)
