"""The papers' figures (SPEC 7), to be shown beside ours.

Most of them stand in the papers as plots, or as 'about' in the text; what is only in a plot is not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

__all__ = ["PUBLISHED", "Published", "published"]


@dataclass(frozen=True)
class Published:
    """One published figure.

    Attributes:
        experiment: the experiment's name.
        data: shell patterns of data sets; `cifar10*` is also the JPEG copy, to which the figure only comes near.
        network: the source network, or what the paper calls it.
        arrangement: `bu`, `mirror`, ...; `mirror, head_width=32` with an option.
        figure: as published, with its unit.
        source: where.
    """

    experiment: str
    data: str
    network: str
    arrangement: str
    figure: str
    source: str


_TEXT = "thesis, Exp. 1"
_LOCALISATION = "thesis, Exp. 3, figure 10"

PUBLISHED = (
    Published("accuracy", "cifar10*", "resnet32", "bu", "about 88.7 %", _TEXT),
    Published("accuracy", "cifar10*", "resnet32", "mirror", "about 83 %", _TEXT),
    Published("accuracy", "cifar10*", "resnet32", "mirror, head_width=32", "about 87 %", _TEXT),
    Published("accuracy", "cifar10*", "resnet32", "reversed", "over 89 %", _TEXT),
    Published("accuracy", "cifar10*", "nin", "bu", "about 89.4 %", "thesis, section 3.2"),
    Published("accuracy", "imagenette", "resnet18_light", "mirror", "about 4 points under BU", "supplement, section 2"),
    Published("localise", "mnist", "nin_light", "mirror", "+2.6", _LOCALISATION),
    Published("localise", "fashion-mnist", "nin_light", "mirror", "+3.9", _LOCALISATION),
    Published("localise", "mnist", "lenet_fc", "mirror", "+0.38", _LOCALISATION),
    Published("localise", "fashion-mnist", "lenet_fc", "mirror", "+0.64", _LOCALISATION),
)


def published(experiment: str, data: str, network: str, arrangement: str) -> str:
    """The published figure for a setting, "" where there is none; `network` may have its `zoo:`."""
    return next(
        (
            each.figure
            for each in _of(experiment, data)
            if (each.network, each.arrangement) == _key(network, arrangement)
        ),
        "",
    )


def _of(experiment: str, data: str) -> Iterator[Published]:
    return (each for each in PUBLISHED if each.experiment == experiment and fnmatchcase(data, each.data))


def _key(network: str, arrangement: str) -> tuple[str, str]:
    return network.removeprefix("zoo:"), "bu" if arrangement == "BU" else arrangement
