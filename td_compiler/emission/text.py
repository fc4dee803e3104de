"""Docstrings, methods and classes as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from td_compiler.emission.layout import WIDTH, Group, Join, Statement, call, lay_out, literal
from td_compiler.emission.sharing import Declaration, SharedClass
from td_compiler.graph.names import is_attribute

__all__ = ["TENSOR", "class_lines", "docstring", "init_lines", "method"]

TENSOR = "Tensor"
_ROLES = {
    "entry": "Lifts an image to the width of its stage",
    "merge": "Joins the map so far and the entry's map e",
    "transition": "Brings a map to the width of the next stage",
}


def docstring(summary: str, more: Sequence[str] = (), indent: int = 0) -> list[str]:
    """A docstring: its summary and further lines, wrapped at 120 columns."""
    margin = " " * indent
    summary = _escape(" ".join(summary.split()))
    if not more and len(margin) + len(summary) + 6 <= WIDTH:
        return [f'{margin}"""{summary}"""']
    lines = _wrap('"""' + summary, WIDTH - indent)
    lines += [part for line in ["", *more] for part in _wrap(_escape(line), WIDTH - indent)] if more else []
    return [margin + line if line else "" for line in [*lines, '"""']]


def _wrap(line: str, width: int) -> list[str]:
    inner = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line, width, subsequent_indent=inner * 2, break_long_words=False, break_on_hyphens=False) or [
        ""
    ]


def _escape(text: str) -> str:
    plain = text.replace("\\", "\\\\").replace('"""', "'''").replace("\t", " ").replace("\n", " ")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in plain)


def method(
    name: str, arguments: Mapping[str, str], returns: str, summary: str, statements: Sequence[Statement]
) -> list[str]:
    """A method: its signature from argument names and types, its docstring if any, its statements."""
    lines = _signature(name, arguments, returns) + (docstring(summary, indent=8) if summary else [])
    for statement in statements:
        lines += lay_out(statement.prefix, statement.doc, 8 + 4 * statement.level)
    return lines


def _signature(name: str, arguments: Mapping[str, str], returns: str) -> list[str]:
    items = ("self", *(f"{argument}: {kind}" for argument, kind in arguments.items()))
    return lay_out("", Join((f"def {name}", Group("(", items, ")", hug=True), f" -> {returns}:")), 4)


def init_lines(
    parameters: Mapping[str, str],
    stored: Sequence[str],
    declarations: Sequence[Declaration],
    statements: Sequence[Statement] = (),
) -> list[str]:
    """An `__init__` that takes parameters by name and type, keeps those that the forward reads, and declares layers.

    `statements`: what it does before it declares layers.
    """
    lines = [*_signature("__init__", parameters, "None"), "        super().__init__()"]
    lines += [f"        self.{name} = {name}" for name in stored]
    lines += [line for each in statements for line in lay_out(each.prefix, each.doc, 8 + 4 * each.level)]
    for declaration in declarations:
        name, doc = declaration.name, declaration.doc
        if declaration.kind == "call":
            lines += lay_out("", doc, 8)
            continue
        if declaration.kind in ("buffer", "constant"):
            keywords = {"persistent": "False"} if declaration.kind == "constant" else {}
            lines += lay_out("", call("self.register_buffer", literal(name), doc, **keywords), 8)
        elif is_attribute(name):
            lines += lay_out(f"self.{name} = ", doc, 8)
        else:
            register = "self.register_parameter" if declaration.kind == "parameter" else "self.add_module"
            lines += lay_out("", call(register, literal(name), doc), 8)
    return lines


def class_lines(shared: SharedClass) -> list[str]:
    """The class of one kind of unit."""
    paths = [draft.unit.path for draft in shared.drafts]
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    place, _, inside = paths[0].partition(".")
    role = "" if "." in inside else _ROLES.get(place, "")
    summary = f"{role}: `{paths[0]}`{more}." if role else f"`{paths[0]}`{more}."
    lines = [f"class {shared.name}(nn.Module):", *docstring(summary, indent=4), ""]
    lines += init_lines(shared.parameters, shared.stored, shared.declarations)
    unit = shared.drafts[0].unit
    if unit.result is not None:
        arguments = {name: "nn.Module" if isinstance(key, str) else TENSOR for key, name in unit.arguments.items()}
        lines += ["", *method("forward", arguments, TENSOR, "", shared.statements)]
    return lines
