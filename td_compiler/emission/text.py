"""Docstrings, methods and classes as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from td_compiler.emission.classes import Declaration, SharedClass
from td_compiler.emission.layout import WIDTH, Group, Join, Repeat, Statement, call, flat, lay_out, literal
from td_compiler.graph.names import is_attribute

__all__ = ["TENSOR", "class_lines", "docstring", "init_lines", "method"]

TENSOR = "Tensor"


def docstring(summary: str, more: Sequence[str] = (), indent: int = 0) -> list[str]:
    """A docstring: its summary and further lines, wrapped at 120 columns."""
    margin = " " * indent
    summary = _escape(" ".join(summary.split()))
    if not more and len(margin) + len(summary) + 6 <= WIDTH:
        return [f'{margin}"""{summary}"""']
    lines = _wrap('"""' + summary, WIDTH - indent)
    if len(lines) == 1 and not more:  # fits without the closing quotes alone, which would stand by themselves
        lines = _wrap('"""' + summary, WIDTH - indent - 3)
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
    stored: Mapping[str, str],
    declarations: Sequence[Declaration],
    statements: Sequence[Statement] = (),
) -> list[str]:
    """An `__init__` that takes parameters by name and type, keeps what the forward reads, and declares layers.

    `statements`: what it does before it declares layers.
    """
    lines = [*_signature("__init__", parameters, "None"), "        super().__init__()"]
    lines += [f"        self.{name} = {value}" for name, value in stored.items()]
    lines += [line for each in statements for line in lay_out(each.prefix, each.doc, 8 + 4 * each.level)]
    before = ""
    for declaration in declarations:
        if declaration.condition and declaration.kind in ("module", "parameter") and is_attribute(declaration.name):
            lines.append(f"        self.{declaration.name} = None")
        elif declaration.condition and declaration.kind in ("buffer", "constant"):
            lines += lay_out("", call("self.register_buffer", literal(declaration.name), "None"), 8)
        if declaration.condition and (declaration.condition != before or "None" in lines[-1]):
            lines.append(f"        if {declaration.condition}:")
        lines += _declare(declaration, 12 if declaration.condition else 8)
        before = declaration.condition
    return lines


def _declare(declaration: Declaration, indent: int) -> list[str]:
    name, doc = declaration.name, declaration.doc
    if declaration.kind == "call":
        return lay_out("", doc, indent)
    if declaration.kind == "family":
        assert isinstance(doc, Join)
        first, repeat = doc.parts
        assert isinstance(repeat, Repeat)
        place = "{i}" if flat(first) == "0" else f"{{i + {flat(first)}}}"
        head = f"{' ' * indent}{repeat.ending}:"
        return [head, *lay_out("", call("self.add_module", f'f"{name}{place}"', repeat.doc), indent + 4)]
    if declaration.kind in ("buffer", "constant"):
        keywords = {"persistent": "False"} if declaration.kind == "constant" else {}
        return lay_out("", call("self.register_buffer", literal(name), doc, **keywords), indent)
    if is_attribute(name):
        return lay_out(f"self.{name} = ", doc, indent)
    register = "self.register_parameter" if declaration.kind == "parameter" else "self.add_module"
    return lay_out("", call(register, literal(name), doc), indent)


def _listed_lines(shared: SharedClass) -> list[str]:
    """The `__init__` of a Sequential without names."""
    declarations = shared.declarations
    lines = _signature("__init__", shared.parameters, "None")
    stored = [f"        self.{name} = {value}" for name, value in shared.stored.items()]
    if not any(declaration.condition for declaration in declarations):
        items = tuple(declaration.doc for declaration in declarations)
        return [*lines, *lay_out("", call("super().__init__", *items), 8), *stored]
    lines.append("        layers: list[nn.Module] = []")
    before = ""
    for declaration in declarations:
        if declaration.condition and declaration.condition != before:
            lines.append(f"        if {declaration.condition}:")
        lines += lay_out("", call("layers.append", declaration.doc), 12 if declaration.condition else 8)
        before = declaration.condition
    return [*lines, "        super().__init__(*layers)", *stored]


def class_lines(shared: SharedClass) -> list[str]:
    """The class of one kind of unit."""
    lines = [f"class {shared.name}({shared.base}):", *docstring(shared.summary, indent=4), ""]
    if shared.is_list:
        lines += _listed_lines(shared)
    elif shared.parameters or shared.declarations or not shared.statements:
        lines += init_lines(shared.parameters, shared.stored, shared.declarations)
    if shared.statements:
        between = [""] if lines[-1] else []
        lines += [*between, *method("forward", shared.arguments, TENSOR, "", shared.statements)]
    return lines
