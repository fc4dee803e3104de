"""Trained networks of the zoo: weights as safetensors, each with a card that says what they are.

A network has two files, here, in another folder, or below a URL:

    nin_light_td-fashion-mnist.safetensors   `net.` and the network's tensors; `normalise.mean` and `.deviation`
    nin_light_td-fashion-mnist.json          the card

Names are `NAME_bu`, `NAME_td`, `NAME_td_uniform` and `NAME_td_reversed`. A card has `name`, `data`, `source`,
`arrangement`, `options` of :func:`td_compiler.reverse`, `input_size`, `classes`, `parameters`, `sha256` of the weights,
`training` (the recipe, the seed, the number of images) and whatever facts were published with it: accuracy with its
interval, robustness.

`python -m td_compiler.weights CHECKPOINT... [--to FOLDER] [--facts FILE.json]` makes them of folders that trainings
leave in `OUT/checkpoints`; :func:`publish` is the same in Python.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import nn

from td_compiler.convert import reverse
from td_compiler.errors import ConversionError, one_line
from td_compiler.files import write_together
from td_compiler.network.normalised import Normalise, Normalised
from td_compiler.sources.construct import nearest
from td_compiler.surroundings import neutral_surroundings
from td_compiler.zoo import ZOO

__all__ = ["Pretrained", "available", "pretrained", "publish"]

HERE = Path(__file__).parent
_LARGEST = 1_000_000  # bytes of a file that the package holds
_NEEDED = {"format", "name", "source", "arrangement", "options", "input_size", "classes", "sha256"}
_SUFFIX = {"bu": "_bu", "mirror": "_td", "uniform": "_td_uniform", "reversed": "_td_reversed"}


class Pretrained(Normalised):
    """A trained network of the zoo: takes images (N, C, H, W) in [0, 1], gives scores (N, K).

    Attributes:
        card: what is known of it.
    """

    def __init__(self, normalise: nn.Module, net: nn.Module, card: Mapping[str, Any]) -> None:
        super().__init__(normalise, net)
        self.card = dict(card)


@neutral_surroundings()
def pretrained(name: str, *, data: str, where: str | Path | None = None, sha256: str | None = None) -> Pretrained:
    """A trained network of the zoo, on the CPU, in evaluation mode.

    Args:
        name: `nin_light_bu`, `nin_light_td`, `nin_light_td_uniform`, `nin_light_td_reversed` and so on.
        data: what it was trained on: `mnist`, `fashion-mnist`.
        where: a folder or a URL (`https://...`) of such files; by default those of the package. Downloads are kept in
            torch.hub's folder. Nothing but safetensors and JSON is read: no code runs.
        sha256: what the weights' SHA-256 begins with, where a card from elsewhere is not to be trusted for it.

    Raises:
        ConversionError: if there is no such network, a file is missing, damaged or of another network, or a download
            fails.
    """
    stem = f"{name}-{data}"
    if isinstance(where, str) and "://" in where:
        folder = _downloaded(where.rstrip("/"), stem)
    else:
        folder = HERE if where is None else Path(where)
    if not (folder / f"{stem}.json").is_file():
        names = available(folder)
        known = f"; there are {', '.join(names)}{nearest(stem, names)}" if names else "; there is none"
        raise ConversionError(f"{folder} has no {name} trained on {data}{known}.")
    card = _card(folder / f"{stem}.json")
    path = folder / f"{stem}.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConversionError(f"{path} cannot be read: {error.strerror}.") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != card["sha256"] or not digest.startswith(sha256 or ""):
        raise ConversionError(f"{path} is damaged or another file: its SHA-256 is {digest[:12]}...; get it anew.")
    return _built(card, content, path)


def available(where: str | Path | None = None) -> list[str]:
    """What a folder has, by default the package: `nin_light_td-fashion-mnist`, ..."""
    folder = HERE if where is None else Path(where)
    return sorted(path.stem for path in folder.glob("*.json") if path.with_suffix(".safetensors").exists())


def publish(
    checkpoint: str | Path, to: str | Path | None = None, facts: Mapping[str, Any] | None = None, *, force: bool = False
) -> Path:
    """Make the two files of a trained network of a folder that the experiments left in `OUT/checkpoints`.

    Args:
        checkpoint: that folder, with `training.json` and `weights.safetensors`.
        to: the folder to write into; by default the package's, which takes files below 1 MB.
        facts: more for the card: accuracy with its interval, robustness.
        force: replace files that exist.

    Returns:
        The path of the weights.

    Raises:
        ConversionError: if the folder has no trained network of the zoo's, or the files exist or cannot be written.
    """
    checkpoint, folder = Path(checkpoint), HERE if to is None else Path(to)
    try:
        about = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))
        training, state = about["training"], load_file(checkpoint / "weights.safetensors")
        network, data = training["network"], training["data"]
        library, _, source = network["name"].partition(":")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConversionError(f"{checkpoint} holds no trained network: {one_line(error)}.") from error
    if library != "zoo" or source not in ZOO:
        raise ConversionError(f"{checkpoint} holds {network['name']}, which is none of the zoo's networks.")
    content = save({name: tensor.contiguous() for name, tensor in sorted(state.items())}, {"format": "pt"})
    card = {
        "format": 1,
        "name": f"{source}{_SUFFIX[network['arrangement']]}",
        "data": data,
        "source": source,
        "arrangement": network["arrangement"],
        "options": dict(network["options"]),
        "input_size": about["input_size"],
        "classes": about["classes"],
        "sha256": hashlib.sha256(content).hexdigest(),
        "training": {**training["recipe"], "run": training["run"], "images": about["train_images"]},
        **(facts or {}),
    }
    built = _built(card, content, checkpoint / "weights.safetensors")
    card["parameters"] = sum(parameter.numel() for parameter in built.net.parameters())
    weights = folder / f"{card['name']}-{data}.safetensors"
    if to is None and len(content) >= _LARGEST:
        raise ConversionError(f"{weights.name} would have {len(content):,} bytes: the package takes less than 1 MB.")
    if weights.exists() and not force:
        raise ConversionError(f"{weights} exists: give --force (force=True) to replace it, or another folder.")
    text = json.dumps(card, indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_together(
            {
                weights: lambda path: path.write_bytes(content),
                weights.with_suffix(".json"): lambda path: path.write_text(text, encoding="utf-8"),
            }
        )
    except OSError as error:
        raise ConversionError(f"{weights} cannot be written: {error.strerror}.") from error
    return weights


def _card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} is no card of a trained network: {one_line(error)}.") from error
    lacking = _NEEDED - (card.keys() if isinstance(card, dict) else set())
    if lacking:
        raise ConversionError(f"{path} is no card of a trained network: it has no {min(lacking)}.")
    if card["format"] != 1 or card["source"] not in ZOO or card["arrangement"] not in _SUFFIX:
        raise ConversionError(f"{path} is the card of a network that this version of td-compiler does not know.")
    return dict(card)


def _built(card: Mapping[str, Any], content: bytes, path: Path) -> Pretrained:
    size = tuple(card["input_size"])
    source = ZOO[card["source"]](num_classes=card["classes"], in_channels=size[0])
    net: nn.Module = source
    if card["arrangement"] != "bu":
        net = reverse(source, filters=card["arrangement"], input_size=size, **card["options"])
    try:
        state = load(content)
        normalise: nn.Module = nn.Identity()
        if "normalise.mean" in state:
            normalise = Normalise(state["normalise.mean"], state["normalise.deviation"])
        made = Pretrained(normalise, net, card)
        made.load_state_dict(state)
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise ConversionError(f"{path} does not fit {card['name']}: {one_line(error)}.") from error
    return made.eval()


def _downloaded(url: str, stem: str) -> Path:
    """The folder where a URL's two files lie, downloaded if they are not there."""
    folder = Path(torch.hub.get_dir()) / "td_compiler" / hashlib.sha256(url.encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name in (f"{stem}.json", f"{stem}.safetensors"):
            if not (folder / name).exists():
                torch.hub.download_url_to_file(f"{url}/{name}", str(folder / name), progress=False)
    except (URLError, OSError) as error:
        raise ConversionError(f"{url} gives no {name}: {one_line(error)}.") from error
    return folder
