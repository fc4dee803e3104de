"""Which networks the coverage sweep takes: libraries by family, groups, and patterns.

A family is a module of a library that defines a network class: `torchvision.models.resnet`, `timm.models.resnet`; see
`td_compiler.sources.timm_families` for timm's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from td_compiler.sources import timm_families
from td_compiler.sources.names import LIBRARIES, model_names

__all__ = ["GROUPS", "SMALLEST", "expand", "family"]

# The smallest network of every family, by parameters, timm's miniatures for tests left out. Every one of timm's
# families here defines exactly one network class.
SMALLEST: Mapping[str, Mapping[str, str]] = {
    "torchvision": {
        "alexnet": "alexnet",
        "convnext": "convnext_tiny",
        "densenet": "densenet121",
        "efficientnet": "efficientnet_b0",
        "googlenet": "googlenet",
        "inception": "inception_v3",
        "mnasnet": "mnasnet0_5",
        "mobilenetv2": "mobilenet_v2",
        "mobilenetv3": "mobilenet_v3_small",
        "regnet": "regnet_y_400mf",
        "resnet": "resnet18",
        "shufflenetv2": "shufflenet_v2_x0_5",
        "squeezenet": "squeezenet1_1",
        "vgg": "vgg11",
    },
    "timm": {
        "byobnet": "mobileone_s1",
        "convmixer": "convmixer_768_32",
        "convnext": "convnext_zepto_rms",
        "cspnet": "cs3darknet_focus_s",
        "cspnext": "cspnext_tiny",
        "densenet": "densenet121",
        "dla": "dla46x_c",
        "dpn": "dpn48b",
        "efficientnet": "mobilenetv2_035",
        "fasternet": "fasternet_t0",
        "ghostnet": "ghostnet_050",
        "hgnet": "hgnetv2_b0",
        "hrnet": "hrnet_w18_small",
        "inception_next": "inception_next_atto",
        "inception_resnet_v2": "inception_resnet_v2",
        "inception_v3": "inception_v3",
        "inception_v4": "inception_v4",
        "lcnetv2": "lcnetv2_small",
        "mambaout": "mambaout_femto",
        "mobilenetv3": "mobilenetv3_small_050",
        "nasnet": "nasnetalarge",
        "nfnet": "nf_regnet_b0",
        "pnasnet": "pnasnet5large",
        "rdnet": "rdnet_tiny",
        "regnet": "regnetx_002",
        "repghost": "repghostnet_050",
        "repvit": "repvit_m1",
        "resnet": "resnet10t",
        "resnetv2": "resnetv2_18",
        "rexnet": "rexnet_100",
        "selecsls": "selecsls42",
        "senet": "legacy_seresnet18",
        "starnet": "starnet_s050",
        "tresnet": "tresnet_m",
        "vgg": "vgg11",
        "vovnet": "ese_vovnet19b_slim_dw",
        "xception": "legacy_xception",
        "xception_aligned": "xception41p",
    },
}


def family(model: str) -> str:
    """`torchvision.resnet` for `torchvision:resnet18`; the library's name or `file` where there are no families."""
    library, _, name = model.rpartition(":")
    if library == "torchvision":
        import torchvision

        return f"torchvision.{torchvision.models.get_model_builder(name).__module__.rpartition('.')[2]}"
    if library == "timm":
        return f"timm.{timm_families.family(name)}"
    return library if library in LIBRARIES else "file"


def _torchvision_cnns() -> Iterator[str]:
    names = (f"torchvision:{name}" for name in model_names("torchvision"))
    return (name for name in names if family(name).partition(".")[2] in SMALLEST["torchvision"])


def _timm_cnns() -> Iterator[str]:
    return (f"timm:{name}" for name in timm_families.convolutional_names())


def _smallest(library: str) -> Iterator[str]:
    return (f"{library}:{name}" for name in SMALLEST[library].values())


GROUPS: Mapping[str, Callable[[], Iterable[str]]] = {
    "torchvision-cnns": _torchvision_cnns,
    "timm-cnns": _timm_cnns,
    "torchvision-families": lambda: _smallest("torchvision"),
    "timm-families": lambda: _smallest("timm"),
}


def expand(models: Sequence[str], families: Sequence[str] = ()) -> list[str]:
    """The networks that arguments name, each once, in order.

    Args:
        models: names (`timm:resnet50`, `model.py:Net`), patterns (`timm:resnet*`), groups (keys of GROUPS).
        families: keep only networks of families that match one of these patterns (`*.resnet`).

    Raises:
        ValueError: if a pattern matches nothing.
        SourceError: if a library is not installed.
    """
    names: list[str] = []
    for model in models:
        if model in GROUPS:
            names += GROUPS[model]()
        elif set("*?[") & set(model):
            names += _matching(model)
        else:
            names.append(model)
    unique = list(dict.fromkeys(names))
    if not families:
        return unique
    kept = [name for name in unique if any(fnmatchcase(family(name), pattern) for pattern in families)]
    if not kept:
        raise ValueError(f"none of these networks is of a family {' or '.join(families)}")
    return kept


def _matching(pattern: str) -> list[str]:
    library, _, names = pattern.partition(":")
    if library not in LIBRARIES:
        raise ValueError(f"{pattern!r}: a pattern begins with one of {', '.join(f'{each}:' for each in LIBRARIES)}")
    found = [f"{library}:{name}" for name in model_names(library) if fnmatchcase(name, names)]
    if not found:
        raise ValueError(f"{library} has no model {names!r}")
    return found
