"""`tdc train`: train one network, and write its weights and how they came about."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from td_compiler.benchmarks.lab.files import checksum, write_synced
from td_compiler.benchmarks.lab.options import Setup, one_network, run_command
from td_compiler.benchmarks.training.networks import ARRANGEMENTS, NetworkSpec
from td_compiler.benchmarks.training.recipes import FAST

__all__ = ["main"]


def _train(
    setup: Setup,
    source: Annotated[str, typer.Argument(help="FILE.py, FILE.py:NAME, or NAME of zoo:, torchvision:, timm:.")],
    data: Annotated[
        str, typer.Option(help="folder:PATH or folder:PATH@SIZE, with train/CLASS/ and test/CLASS/; mnist, ...")
    ],
    bu: Annotated[bool, typer.Option("--bu", help="Train the bottom-up network itself.")] = False,
    filters: Annotated[str, typer.Option(metavar="WIDTHS", help="mirror, uniform or reversed.")] = "mirror",
    fast: Annotated[
        bool, typer.Option("--fast/--no-fast", help="The fast recipe; or the papers', of many epochs.")
    ] = True,
    teacher: Annotated[str, typer.Option(metavar="bu", help="Learn from the bottom-up network, too.")] = "",
    weights: Annotated[str, typer.Option(metavar="bu", help="Start from the trained bottom-up weights.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Train a network's top-down network on images and write OUT/NAME_td.safetensors and OUT/NAME_td.json.

    The same command goes on where an interrupted one stopped.

    The weights fit what `tdc convert` writes of the source for these classes.

    The JSON file has recipe, classes, normalisation and accuracy.
    """
    if filters not in ARRANGEMENTS[1:]:
        raise typer.BadParameter(f"{filters!r} is not one of {', '.join(ARRANGEMENTS[1:])}", param_hint="--filters")
    from td_compiler.benchmarks.data.datasets import opened
    from td_compiler.benchmarks.training.training import trained

    spec = NetworkSpec(source, "bu" if bu else filters)
    targets = [setup.machine.out / f"{_stem(spec)}{ending}" for ending in (".safetensors", ".json")]
    there = [path for path in targets if path.exists()]
    if there and not force:
        raise typer.BadParameter(f"{there[0]} exists: --force replaces it, --out names another folder")
    plan = setup.planned(spec, data, setup.seed, [FAST] * fast, teacher=teacher, start=weights)
    images = opened(data, setup.machine, train=True, limit=plan.train_images)
    opened(data, setup.machine, train=False)
    plan.network.costs(images.input_size, len(images.classes))  # refused before anything is trained
    found = trained(plan, setup.machine)
    if setup.machine.rank:
        return
    content = _safetensors(found.network.net)
    about = {
        "source": spec.name,
        "content": spec.content(),
        "network": plan.label,
        "data": data.partition(":")[0] if ":" in data else data,
        "classes": list(images.classes),
        "input_size": found.input_size,
        "accuracy": found.accuracy,
        **found.counts,
        "seed": plan.run,
        "recipe": {**asdict(plan.recipe), "label": plan.recipe.label or "the papers' or the default"},
        "precision": setup.machine.precision,
        "normalise": {name: each.tolist() for name, each in found.network.normalise.state_dict().items()},
        "seconds_per_epoch": found.seconds_per_epoch,
        "weights": checksum(content),
        "command": setup.command,
    }
    write_synced(dict(zip(targets, (content, json.dumps(about, indent=1).encode()), strict=True)))
    print(f"{100 * found.accuracy:.2f} % of {len(found.right):,} test images")
    print(f"wrote {targets[0]}, {targets[1]}")


def _stem(spec: NetworkSpec) -> str:
    """`Net_td` of `model.py:Net`, `resnet18_bu` of `torchvision:resnet18`."""
    path, _, name = spec.name.rpartition(":")
    plain = re.sub(r"\W+", "_", Path(name).stem if not path else name)
    return f"{plain}_{'bu' if spec.arrangement == 'bu' else 'td'}"


def _safetensors(network: Any) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()})


main = partial(run_command, _train, shared=one_network)
