"""What a class of units does, in a sentence, as its layers and its forward tell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from td_compiler.emission.layout import Doc, Group, Join, Maybe, Repeat, Statement, flat
from td_compiler.emission.unify import is_call, keywords_of

__all__ = ["Role", "role_of"]

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_NORM = re.compile(r"nn\.\w*Norm\w*")
_GROWS = {True: "Given `image`, the map grows to its size.", False: "The map grows to the size of `image`."}


@dataclass(frozen=True)
class Role:
    """What a class does.

    Attributes:
        noun: what one of its instances is inside another block: `3x3 convolution`; "" for what is not worth a word.
        sentence: the class's docstring.
    """

    noun: str
    sentence: str


def role_of(
    base: str,
    layers: Sequence[Doc],
    statements: Sequence[Statement],
    arguments: Mapping[str, str],
    known: Mapping[str, Role],
    defaults: Mapping[str, Mapping[str, object]],
) -> Role:
    """The role of a class of units.

    Args:
        base: what its units are called.
        layers: the expressions of what it declares.
        statements: its forward; none for a chain of its layers.
        arguments: what its forward takes, by name.
        known: the roles of the classes that it uses, and `defaults` of their parameters.
    """
    nouns = [noun for doc in layers for noun in _nouns(doc, known, defaults)]
    of = _listed(nouns)
    text = "\n".join(statement.prefix + flat(statement.doc) for statement in statements)
    lines = [line for line in text.split("\n") if line]
    last = lines[-1] if lines else ""
    grown = ""
    if "image" in arguments and len(arguments) > 1:
        grown = " " + _GROWS["None" in arguments["image"]]
    if base == "Entry":
        return Role("", f"Lifts the image to the width of a stage{_by(of)}.")
    if base == "Merge":
        joined = "[x + e, e]" if re.search(r"cat\([\[(]x \+ e, e", text) else "x + e" if "x + e" in text else "[x, e]"
        return Role("", f"Joins the map x and the image's entry e{f': {of} of {joined}' if of else f' by {joined}'}.")
    if base == "Transition":
        return Role("", f"Brings a map to the width of the next stage{_by(of)}.")
    if "maps.append" in text:
        how = (
            "reads the maps of all before it"
            if "torch.cat(maps" in text.partition("maps.append")[2].split("\n")[0]
            else ""
        )
        what = f"Dense block: every layer {how}" if how else "Layers one after the other, whose maps are all joined"
        return Role("", f"{what}.{grown}")
    function = re.fullmatch(r"return (?:torch|F)\.(\w+)\(x\b.*", text)
    if function and not layers:
        return Role("", f"A layer without weights: {function[1].replace('_', ' ')}.")
    if not statements:
        steps = [step for doc in layers if (step := _step(doc, known))]
        chain = f"{of[:1].upper()}{of[1:]}{_ending(steps)}" if of else _words(base)
        return Role(nouns[0] if len(nouns) == 1 else "", f"{chain}.")
    weighs = re.search(r"pool|mean\(|sigmoid|gate|Sigmoid", text + " ".join(map(flat, layers)))
    if (
        weighs
        and nouns
        and re.search(r"return .*(\* x\b|\bx \* )|\bx \*= |x = x \* ", text)
        and "x" in arguments
        and " + x" not in text
    ):
        return Role("gate", f"Weighs the channels of a map{_by(of)}.{grown}")
    if re.search(r"(\+ x\b|\bx \+ |\+= x\b|torch\.add\(|shortcut)", text) and re.search(r"\+|add", text):
        return Role("residual block", f"Residual block{_by(of)}.{grown}")
    if "torch.cat(" in last or text.count("torch.cat(") == 1:
        return Role("", f"Branches, joined along the channels{_by(of)}.{grown}")
    return Role(nouns[0] if len(nouns) == 1 else "", f"{of[:1].upper()}{of[1:] or _words(base)}.{grown}")


def _words(name: str) -> str:
    """A class's name as words: `LayerNorm2d` is a layer norm 2d."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+\d*[a-z]?|\d+", name)
    text = " ".join(word if word.isupper() else re.sub(r"[123]d$", "", word.lower()) for word in words) or name
    return text[:1].upper() + text[1:]


def _by(what: str) -> str:
    return f": {what}" if what else ""


def _nouns(doc: Doc, known: Mapping[str, Role], defaults: Mapping[str, Mapping[str, object]]) -> list[str]:
    """The layers with weights in an expression, in order, as words."""
    match doc:
        case Maybe(inner) | Repeat(inner):
            return _nouns(inner, known, defaults)
        case Join() if is_call(doc):
            name = flat(doc.parts[0])
            positional, keywords = keywords_of(doc)
            given = {key: flat(value) for key, (_, value) in keywords.items()}
            if name in ("nn.Conv2d", "nn.ConvTranspose2d", "EvenConv2d") or known.get(name, Role("", "")).noun.endswith(
                "convolution"
            ):
                own = {key: str(value) for key, value in defaults.get(name, {}).items()}
                return [_convolution([flat(value) for _, value in positional], own | given, known.get(name))]
            if name == "nn.Linear":
                return ["linear layer"]
            if name in known:
                return [known[name].noun] if known[name].noun else []
            return [noun for _, value in positional for noun in _nouns(value, known, defaults)]
        case Join(parts) | Group(_, parts):
            return [noun for part in parts for noun in _nouns(part, known, defaults)]
    return []


def _convolution(positional: Sequence[str], given: Mapping[str, str], role: Role | None) -> str:
    kernel = given.get("kernel_size", "")
    size = ""
    if re.fullmatch(r"\d+", kernel):
        size = f"{kernel}x{kernel} "
    elif match := re.fullmatch(r"\((\d+), (\d+)\)", kernel):
        size = f"{match[1]}x{match[2]} "
    elif role is not None and not kernel:
        return role.noun
    depthwise = "depthwise " if given.get("groups", "1") in positional[:1] else ""
    return f"{size}{depthwise}convolution"


def _listed(nouns: Sequence[str]) -> str:
    """Words in a row: `a 1x1 and two 3x3 convolutions`."""
    if 1 < len(nouns) <= 6 and len(set(nouns)) > 1 and all(noun.endswith(" convolution") for noun in nouns):
        kernels = [f"{_article(noun)} {noun.removesuffix(' convolution')}" for noun in nouns]
        return ", ".join(kernels[:-1]) + f" and {kernels[-1]} convolution"
    items = []
    for noun, run in groupby(nouns):
        count = len(list(run))
        if count == 1:
            items.append(f"{_article(noun)} {noun}")
        else:
            items.append(f"{_NUMBERS[count] if count < len(_NUMBERS) else count} {noun}s")
    if len(items) > 4:
        return ""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + f" and {items[-1]}" if items else ""


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou8" or noun.startswith(("11x", "18x")) else "a"


def _step(doc: Doc, known: Mapping[str, Role]) -> str:
    name = flat(doc).partition("(")[0]
    return "norm" if _NORM.match(name) else name.removeprefix("nn.") if name.startswith("nn.") else ""


def _ending(steps: Sequence[str]) -> str:
    """What follows, or precedes, the convolutions of a chain."""
    norms = " with norm" if "norm" in steps else ""
    others = [step for step in steps if step != "norm" and "Conv" not in step and "Linear" not in step]
    return norms + (" and activation" if others and norms else " with activation" if others else "")
