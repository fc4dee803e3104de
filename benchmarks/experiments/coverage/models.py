"""Which networks the coverage sweep takes: libraries by family, groups, and patterns.

A family is a module of a library that defines a network class: `torchvision.models.resnet`, `timm.models.resnet`; see
`td_compiler.sources.timm_families` for timm's. In pytorchcv it is the module that a network is made in.
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
    "pytorchcv": {  # the modules whose networks classify images
        "airnet": "airnet50_1x64d_r16",
        "airnext": "airnext50_32x4d_r2",
        "alexnet": "alexnetb",
        "bagnet": "bagnet9",
        "bamresnet": "bam_resnet18",
        "bninception": "bninception",
        "cbamresnet": "cbam_resnet18",
        "channelnet": "channelnet",
        "condensenet": "condensenet74_c8_g8",
        "darknet": "darknet_tiny",
        "darknet53": "darknet53",
        "darts": "darts",
        "densenet": "densenet121",
        "densenet_cifar": "densenet40_k12_bc_cifar10",
        "diapreresnet": "diapreresnet10",
        "diapreresnet_cifar": "diapreresnet20_cifar10",
        "diaresnet": "diaresnet10",
        "diaresnet_cifar": "diaresnet20_cifar10",
        "dicenet": "dicenet_wd5",
        "diracnetv2": "diracnet18v2",
        "dla": "dla46xc",
        "dpn": "dpn68",
        "drn": "drnd22",
        "efficientnet": "efficientnet_b0",
        "efficientnetedge": "efficientnet_edge_small_b",
        "espnetv2": "espnetv2_wd2",
        "fastseresnet": "fastseresnet101b",
        "fbnet": "fbnet_cb",
        "fdmobilenet": "fdmobilenet_wd4",
        "fishnet": "fishnet99",
        "fractalnet_cifar": "fractalnet_cifar10",
        "ghostnet": "ghostnet",
        "hardnet": "hardnet39ds",
        "hrnet": "hrnet_w18_small_v1",
        "ibnbresnet": "ibnb_resnet50",
        "ibndensenet": "ibn_densenet121",
        "ibnresnet": "ibn_resnet50",
        "ibnresnext": "ibn_resnext50_32x4d",
        "igcv3": "igcv3_wd4",
        "inceptionresnetv1": "inceptionresnetv1",
        "inceptionresnetv2": "inceptionresnetv2",
        "inceptionv3": "inceptionv3",
        "inceptionv4": "inceptionv4",
        "irevnet": "irevnet301",
        "isqrtcovresnet": "isqrtcovresnet18",
        "menet": "menet108_8x1_g3",
        "mixnet": "mixnet_s",
        "mnasnet": "mnasnet_small",
        "mobilenet": "mobilenet_wd4",
        "mobilenet_cub": "fdmobilenet_wd4_cub",
        "mobilenetb": "mobilenetb_wd4",
        "mobilenetv2": "mobilenetv2b_wd4",
        "mobilenetv3": "mobilenetv3_small_w7d20",
        "msdnet": "msdnet22",
        "msdnet_cifar10": "msdnet22_cifar10",
        "nasnet": "nasnet_4a1056",
        "nin_cifar": "nin_cifar10",
        "octresnet": "octresnet10_ad2",
        "peleenet": "peleenet",
        "pnasnet": "pnasnet5large",
        "polynet": "polynet",
        "preresnet": "preresnet18_wd4",
        "preresnet_cifar": "preresnet20_cifar10",
        "proxylessnas": "proxylessnas_mobile",
        "proxylessnas_cub": "proxylessnas_mobile_cub",
        "pyramidnet": "pyramidnet101_a360",
        "pyramidnet_cifar": "pyramidnet110_a48_cifar10",
        "regnet": "regnetx002",
        "resattnet": "resattnet56",
        "resdropresnet_cifar": "resdropresnet20_cifar10",
        "resnesta": "resnestabc14",
        "resnet": "resnet18_wd4",
        "resnet_cifar": "resnet20_cifar10",
        "resnet_cub": "resnet10_cub",
        "resneta": "resneta10",
        "resnetd": "resnetd50b",
        "resnext": "resnext14_32x2d",
        "resnext_cifar": "resnext20_32x2d_cifar10",
        "revnet": "revnet38",
        "rir_cifar": "rir_cifar10",
        "ror_cifar": "ror3_56_cifar10",
        "scnet": "scnet50",
        "selecsls": "selecsls42",
        "senet": "senet16",
        "sepreresnet": "sepreresnet10",
        "sepreresnet_cifar": "sepreresnet20_cifar10",
        "seresnet": "seresnet10",
        "seresnet_cifar": "seresnet20_cifar10",
        "seresnet_cub": "seresnet10_cub",
        "seresnext": "seresnext50_32x4d",
        "shakedropresnet_cifar": "shakedropresnet20_cifar10",
        "shakeshakeresnet_cifar": "shakeshakeresnet20_2x16d_cifar10",
        "sharesnet": "sharesnet18",
        "shufflenet": "shufflenet_g1_wd4",
        "shufflenetv2": "shufflenetv2_wd2",
        "shufflenetv2b": "shufflenetv2b_wd2",
        "sknet": "sknet50",
        "sparsenet": "sparsenet121",
        "spnasnet": "spnasnet",
        "squeezenet": "squeezenet_v1_1",
        "squeezenext": "sqnxt23_w1",
        "tresnet": "tresnet_m",
        "vgg": "vgg11",
        "vovnet": "vovnet27s",
        "wrn": "wrn50_2",
        "wrn1bit_cifar": "wrn20_10_1bit_cifar10",
        "wrn_cifar": "wrn16_10_cifar10",
        "xception": "xception",
        "xdensenet": "xdensenet121_2",
        "xdensenet_cifar": "xdensenet40_2_k24_bc_cifar10",
        "zfnet": "zfnet",
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
    if library == "pytorchcv":
        return f"pytorchcv.{LIBRARIES[library].maker(name).__module__.rpartition('.')[2]}"
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
    "pytorchcv-families": lambda: _smallest("pytorchcv"),
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
