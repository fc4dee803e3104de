"""What must not change unseen: the top-down networks of one network of every family, under every arrangement.

    python -m tests.snapshots compare             # all; what differs is printed, and the exit status is 1
    python -m tests.snapshots compare zoo:nin     # some
    python -m tests.snapshots write [NAME ...]    # after a change that is meant

A snapshot says whether a network converts, and of its top-down network every parameter's name and shape and, where it
is cheap enough, the first scores for one image. The scores are computed in double precision with parameters whose
values follow from their shapes alone, so they do not depend on names, on the order of parameters or on the machine.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import math
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict, get_args

import torch
from torch import nn

from td_compiler import ConversionError, TopDownNet, reverse, zoo
from td_compiler.benchmarks.experiments.coverage.models import expand
from td_compiler.options import Filters
from td_compiler.sources.names import load_source

__all__ = ["FILTERS", "Snapshot", "differences", "fill", "names", "read", "take"]

FILTERS: tuple[Filters, ...] = get_args(Filters)
_FILE = Path(__file__).parent / "data" / "snapshots.json.gz"
_SIDE = 64  # of the image for the scores, where the network takes it
_AFFORDABLE = 4e10  # products for one image; more in double precision takes more than seconds
_SCORES = 8
_TOLERANCE = 1e-4  # of the largest score


class Snapshot(TypedDict, total=False):
    """What is kept of one network under one arrangement.

    Keys:
        refused: the reason, which is not compared; the others are missing then.
        parameters: "name shape"; the order is not compared.
        scores: the first scores for one image; missing where they would take too long.
    """

    refused: str
    parameters: list[str]
    scores: list[float]


def names() -> list[str]:
    """The networks: the zoo, and the smallest of every family of torchvision and timm."""
    return [f"zoo:{name}" for name in zoo.ZOO] + expand(["torchvision-families", "timm-families"])


def take(name: str, filters: Filters, scores: bool | None = None) -> Snapshot:
    """Convert a network and look at the result.

    Args:
        name: the network, such as `timm:vgg11`.
        filters: the arrangement.
        scores: whether to compute scores; None: where it is cheap enough.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        device = "meta" if scores is False else "cpu"
        source = load_source(name, {}, device=device)
        try:
            td = reverse(source.model, filters=filters, input_size=source.input_size)
        except ConversionError as error:
            return {"refused": " ".join(str(error).split())}
    snapshot: Snapshot = {"parameters": [f"{n} {'x'.join(map(str, p.shape))}" for n, p in td.named_parameters()]}
    cost = sum(stage.top_down.macs for stage in td.report.stages)
    channels, height, width = td.report.input_size
    size = channels, min(height, _SIDE), min(width, _SIDE)
    if scores or (scores is None and cost * size[1] * size[2] / (height * width) < _AFFORDABLE):
        scored = _scores(td, size)
        if all(map(math.isfinite, scored)):
            snapshot["scores"] = scored
    return snapshot


@torch.no_grad()
def _scores(td: TopDownNet, size: tuple[int, int, int]) -> list[float]:
    net = fill(td.double())
    image = torch.rand(1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [float(f"{score:.7g}") for score in net(image).flatten()[:_SCORES].tolist()]


def fill(net: nn.Module) -> nn.Module:
    """Give parameters of equal shape equal values, and norms unit statistics; returns the network in eval mode."""
    values: dict[torch.Size, torch.Tensor] = {}
    with torch.no_grad():
        for parameter in net.parameters():
            shape = parameter.shape
            if shape not in values:
                seed = sum((i + 1) * 7919 * n for i, n in enumerate(shape)) + 104729 * len(shape)
                drawn = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
                fan_in = drawn[0].numel() if drawn.dim() > 1 else 1
                values[shape] = drawn / fan_in**0.5 if drawn.dim() > 1 else 0.6 + 0.1 * drawn
            parameter.copy_(values[shape])
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()
    return net.eval()


def differences(found: Snapshot, kept: Snapshot) -> list[str]:
    """What is not as it was, a sentence each."""
    if "refused" in kept or "refused" in found:
        if "refused" in kept and "refused" in found:
            return []
        return ["it converts now"] if "refused" in kept else [f"it is refused now: {found['refused']}"]
    return [*_of_parameters(found["parameters"], kept["parameters"]), *_of_scores(found, kept)]


def _of_parameters(found: Sequence[str], kept: Sequence[str]) -> Iterator[str]:
    if set(found) == set(kept):
        return
    now, before = (dict(line.rsplit(" ", 1) for line in lines) for lines in (found, kept))
    kinds = {
        "new": [f"{n} {now[n]}" for n in now if n not in before],
        "gone": [f"{n} {before[n]}" for n in before if n not in now],
        "of another shape": [f"{n} {now[n]}, was {before[n]}" for n in now if n in before and now[n] != before[n]],
    }
    for kind, lines in kinds.items():
        if lines:
            yield f"{len(lines)} parameters {kind}: {', '.join(lines[:3])}{', ...' if len(lines) > 3 else ''}"
    if sorted(now.values()) == sorted(before.values()):
        yield "the shapes are the same, but for names"


def _of_scores(found: Snapshot, kept: Snapshot) -> Iterator[str]:
    if "scores" not in found or "scores" not in kept:
        return
    now, before = torch.tensor(found["scores"]), torch.tensor(kept["scores"])
    if now.shape != before.shape:
        yield f"{len(now)} scores, were {len(before)}"
    elif not (off := ((now - before).abs().max() / before.abs().max()).item()) < _TOLERANCE:
        yield f"the scores are off by {off:.1e} of the largest"


def read() -> dict[str, dict[str, Snapshot]]:
    """What is kept: network -> arrangement -> snapshot."""
    if not _FILE.exists():
        return {}
    kept: dict[str, dict[str, Snapshot]] = json.loads(gzip.decompress(_FILE.read_bytes()))
    return kept


def _write(chosen: Iterable[str]) -> int:
    kept: dict[str, Any] = read()
    for name in chosen:
        started = time.monotonic()
        kept[name] = {}
        for filters in FILTERS:
            kept[name][filters] = take(name, filters)
            gc.collect()
        print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)
        text = json.dumps({name: kept[name] for name in sorted(kept)}, separators=(",", ":"))
        _FILE.write_bytes(gzip.compress(text.encode(), mtime=0))
    return 0


def _compare(chosen: Iterable[str]) -> int:
    kept = read()
    count = wrong = 0
    for name in chosen:
        for filters in FILTERS:
            before = kept[name][filters]
            found = differences(take(name, filters, "scores" in before), before)
            count, wrong = count + 1, wrong + bool(found)
            for sentence in found:
                print(f"{name} {filters}: {sentence}", flush=True)
            gc.collect()
    print(f"{count - wrong} of {count} as they were")
    return bool(wrong)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=["write", "compare"])
    parser.add_argument("names", nargs="*", help="networks such as zoo:nin; all, if none is named")
    given = parser.parse_args()
    return {"write": _write, "compare": _compare}[given.what](given.names or names())


if __name__ == "__main__":
    sys.exit(main())
