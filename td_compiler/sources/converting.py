"""Which networks of the libraries convert, as the sweeps found it (`benchmarks/results/coverage*.md`).

What is here are the refusals, each with its reason in a few words: what :func:`td_compiler.reverse` says has more.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from td_compiler.sources import timm_families
from td_compiler.sources.names import LIBRARIES

__all__ = ["why_not"]

_ATTENTION = "attention: only CNNs convert"
_SIDE_BY_SIDE = "several resolutions side by side"
_MANY = "no point that every path runs through"
_ONE = "one resolution: nothing to reverse"
_UNTRIED = "not tried: no pure CNN"

# Families of torchvision's without convolutional stages; all others have been tried.
_TORCHVISION = {"vision_transformer": _ATTENTION, "swin_transformer": _ATTENTION, "maxvit": _ATTENTION}

# Names of timm's among its convolutional families, as patterns.
_TIMM: Mapping[str, str] = {
    **dict.fromkeys(("bat_*", "*botnet*", "*bot*ext*", "*halo*", "lambda_*"), _ATTENTION),
    **dict.fromkeys(("hrnet_*",), _SIDE_BY_SIDE),
    **dict.fromkeys(("convmixer_*",), _ONE),
}

# Families of pytorchcv's, of each of which one network has been tried.
_PYTORCHCV: Mapping[str, str] = {
    **dict.fromkeys(("fishnet", "hrnet", "irevnet", "msdnet", "msdnet_cifar10", "octresnet"), _SIDE_BY_SIDE),
    **dict.fromkeys(("espnetv2", "rir_cifar", "ror_cifar"), _MANY),
    "dicenet": "filters for rows of a map",
    "condensenet": "channels picked by number",
    "revnet": "a backward of its own",
}

# Those of pytorchcv's families that do no classification of images.
_OTHER_TASKS = (
    *("alphapose_coco", "bisenet", "centernet", "cgnet", "contextnet", "dabnet", "danet", "deeplabv3", "edanet"),
    *("enet", "erfnet", "esnet", "espcnet", "fastscnn", "fcn8sd", "fpenet", "ibppose_coco", "icnet", "jasper"),
    *("jasperdr", "lednet", "lffd", "linknet", "lwopenpose_cmupan", "ntsnet_cub", "nvpattexp", "pfpcnet", "prnet"),
    *("propainter", "propainter_ip", "propainter_rfc", "pspnet", "quartznet", "raft", "segnet", "simplepose_coco"),
    *("simpleposemobile_coco", "sinet", "sqnet", "superpointnet", "unet", "visemenet", "voca"),
)


def why_not(library: str, name: str) -> str:
    """Why a network of a library does not convert, or is not known to, in a few words; "" where it converts.

    Args:
        library: a key of LIBRARIES, which must be installed.
        name: one of its names.
    """
    if library == "timm":
        reason = next((reason for pattern, reason in _TIMM.items() if fnmatchcase(name, pattern)), "")
        return reason or ("" if timm_families.is_convolutional(name) else _UNTRIED)
    if library == "torchvision":
        return _TORCHVISION.get(_module(library, name), "")
    if library == "pytorchcv":
        family = _module(library, name)
        return "classifies no images" if family in _OTHER_TASKS else _PYTORCHCV.get(family, "")
    return ""


def _module(library: str, name: str) -> str:
    return LIBRARIES[library].maker(name).__module__.rpartition(".")[2]
