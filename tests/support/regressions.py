"""Networks and options that a conversion once got wrong, made as small as they go: (what it was, network, options)."""

from __future__ import annotations

from typing import Any

from tests.support.graphs import (
    Conv,
    Dense,
    Drop,
    Head,
    Inception,
    Inverted,
    Network,
    NormAct,
    Pool,
    Residual,
    Separable,
)

__all__ = ["REGRESSIONS"]

SIZE = (3, 16, 16)

REGRESSIONS: list[tuple[str, Network, dict[str, Any]]] = [
    (
        "the factor of a pooling is its stride, not the ratio of two small maps",
        Network((1, 27, 8), (Residual(4), Pool(kernel=3, functional=True))),
        {},
    ),
    (
        "the factor of a padded pooling is its stride",
        Network((4, 29, 8), (Conv(4, stride=2), Separable(8), Pool(padding=1, functional=True))),
        {},
    ),
    (
        "the factor of a pooling by 3 is 3",
        Network((4, 13, 28), (Conv(4, stride=2), Residual(6), Pool(stride=3, functional=True))),
        {},
    ),
    (
        "a pooling that leaves one pixel but sees less than the whole map is no head",
        Network((4, 8, 8), (Conv(4), Residual(4), Pool("avg"), Residual(4), Pool("avg", kernel=3), Dense(4))),
        {},
    ),
    (
        "nor is it part of a flatten head",
        Network(SIZE, (Conv(4, stride=4), Dense(3), Pool(kernel=3)), Head("flatten", 2)),
        {},
    ),
    (
        "leading: bottom-up stages at scales that the top-down network lacks are reported",
        Network((3, 36, 36), (Conv(4, stride=3), Residual(4), Residual(8, stride=2))),
        {"stem": "leading"},
    ),
    (
        "leading: the same where the last scale has no body",
        Network((3, 32, 32), (Conv(4, stride=4), Dense(3, act="F.relu"), Pool("avg"))),
        {"stem": "leading"},
    ),
    (
        "no stem: a strided concatenation with a pooling branch",
        Network(SIZE, (Inception((2, 2, 2, 2)), Inception((2, 2), stride=2))),
        {},
    ),
    (
        "uniform: a strided concatenation with a pooling branch",
        Network(SIZE, (Conv(4), Inception((2, 2, 2, 2)), Inception((2, 2), stride=2))),
        {"filters": "uniform"},
    ),
    (
        "no stem: a dense stage",
        Network(SIZE, (Dense(2, act="F.relu"), Pool(), Dense(2, act="F.relu"), Pool(), Dense(4, act="F.relu"))),
        {},
    ),
    (
        "no stem, uniform: a dense stage",
        Network(SIZE, (Dense(3, act="F.relu"), Pool(), Dense(4, act="F.relu"))),
        {"filters": "uniform"},
    ),
    (
        "uniform: rounded branches add up to the common width",
        Network(SIZE, (Conv(12), Inception((2, 1, 1, 3)), Pool(), Inception((4, 1, 4, 3)))),
        {"filters": "uniform"},
    ),
    (
        "no stem: a depthwise convolution as the first unit of the coarsest stage",
        Network(SIZE, (Residual(4), Pool(), Conv(4, groups=4))),
        {},
    ),
    (
        "no stem: residual blocks, the last one strided",
        Network(SIZE, (Residual(6), Pool(), Residual(6, pre=True), Residual(4, stride=2, pre=True))),
        {},
    ),
    (
        "no stem: strided blocks without a shortcut alone",
        Network(SIZE, (Inverted(4, stride=2), Inverted(4, stride=2))),
        {},
    ),
    (
        "reversed: the projection of a strided block, behind a pooling",
        Network(SIZE, (Conv(4), Residual(4), Residual(3, stride=2, pooled_shortcut=True))),
        {"filters": "reversed"},
    ),
    (
        "reversed: a new group norm takes groups that its width divides into, not the width of its groups",
        Network(SIZE, (Conv(4, norm="group"), Residual(8, norm="group"), Residual(3, stride=2, norm="group"))),
        {"filters": "reversed"},
    ),
    (
        "a flatten head behind a map of one pixel",
        Network(SIZE, (Conv(4), Pool(kernel=4, stride=4), Conv(8, 4, padding=0)), Head("flatten")),
        {},
    ),
    (
        "the report's width of the last stage is not the classifier's",
        Network(SIZE, (Residual(4), Pool(), Residual(6)), Head("conv", 10)),
        {},
    ),
    (
        "an in-place activation changes what a shortcut reads: emitted source",
        Network(SIZE, (Residual(4, pre=True, act="relu"), Residual(6, stride=2, pre=True, act="relu"))),
        {"merge": "add"},
    ),
    (
        "an in-place activation changes what a concatenation reads: emitted source",
        Network(SIZE, (Dense(3, act="relu"), Pool(), Dense(4, act="relu"))),
        {},
    ),
    (
        "an in-place activation on a value that others read: gradients",
        Network(
            (4, 17, 10),
            (
                Conv(8, stride=2, act="relu"),
                Conv(16, act="relu"),
                Residual(3, pre=True, squeeze=4),
                Drop("dropout", 0.25),
                Residual(6, stride=2, pre=True, squeeze=1),
                Residual(12, pre=True, drop=0.25),
                NormAct("none", "relu"),
            ),
        ),
        {"merge": "add", "upsample": "transposed"},
    ),
]
