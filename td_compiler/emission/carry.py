"""Definitions that emitted source carries over verbatim, with the imports and helpers that they need."""

from __future__ import annotations
import __future__

import ast
import builtins
import functools
import inspect
import sys
import textwrap
import types
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx
from torch.fx.node import map_aggregate

from td_compiler.capture.leaves import leaf
from td_compiler.emission.layout import Name, flat, has_literal, literal
from td_compiler.errors import ConversionError

__all__ = ["Carrier", "Importer"]


class Carrier:
    """Collects the definitions and imports of one emitted file.

    Attributes:
        definitions: source text by name, what is called before what calls it.
        fast: the names of those that compute in less time what a layer of torch does: they stand behind the blocks.
        foreign: whether a definition came from the user's own code, whose style is the user's.
    """

    def __init__(self) -> None:
        self.definitions: dict[str, str] = {}
        self.fast: set[str] = set()
        self.foreign = False
        self.future_annotations = False
        self._imports: set[tuple[str, str, str]] = set()  # (module, name or "", alias or "")
        self._objects: dict[str, Any] = {}

    def carry(self, definition: Any, where: str) -> str:
        """Carry a function or class over, with what it calls; returns its name in the emitted file.

        Raises:
            ConversionError: if its source is not at hand or refers to something that neither torch nor Python has.
        """
        name = getattr(definition, "__name__", type(definition).__name__)
        if name in self._objects:
            if self._objects[name] is not definition:
                raise _refusal(where, definition, f"another definition is called {name} too")
            return str(name)
        source, tree, home = _read(definition, where)
        self._objects[name] = definition
        ours = home["__name__"].partition(".")[0] == "td_compiler"
        self.foreign |= not ours
        self.future_annotations |= not ours and home.get("annotations") is __future__.annotations
        for needed in sorted(_global_names(tree) - {name}):
            if needed in home:
                self._need(needed, home[needed], where, definition)
            elif not hasattr(builtins, needed) and needed in _free_names(definition):
                raise _refusal(where, definition, f"it uses {needed} of the function around it")
        if home["__name__"] in _FAST:
            self.fast.add(name)
        self.definitions[name] = source if ours else f"# fmt: off\n{source}\n# fmt: on"
        return str(name)

    def operands(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a node is called with, as values that have literals."""
        return tuple(node.args), dict(node.kwargs)

    def use(self, text: str) -> None:
        """Note the imports that emitted text needs by the names `torch`, `F`, `nn` and `math`."""
        words = _names(text)
        for word, imported in _COMMON.items():
            if word in words:
                self._imports.add(imported)

    def _need(self, name: str, value: Any, where: str, definition: Any) -> None:
        home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        package = str(home).partition(".")[0]
        known = package == "torch" or package in sys.stdlib_module_names
        if isinstance(value, types.ModuleType) and known:
            parent, _, last = value.__name__.rpartition(".")
            if name == last and parent:
                self._imports.add((parent, name, ""))
            else:
                self._imports.add((value.__name__, "", "" if name == value.__name__ else name))
        elif isinstance(value, (bool, int, float, str, tuple)) and not hasattr(value, "_fields"):
            self.definitions.setdefault(name, f"{name} = {_constant(value, name, where, definition)}")
        elif known and getattr(sys.modules.get(str(home)), name, None) is value:
            self._imports.add((str(home), name, ""))
        elif f"{home}.{name}" in _STAND_INS:
            self.definitions[name] = _STAND_INS[f"{home}.{name}"]
        elif isinstance(value, (types.FunctionType, type)) and value.__name__ == name:
            self.carry(value, where)
        elif (statement := _assignment(name, value)) is not None:
            for needed in sorted(_global_names(statement) - {name}):
                if needed in vars(sys.modules[str(home)]):
                    self._need(needed, vars(sys.modules[str(home)])[needed], where, definition)
            self.definitions.setdefault(name, ast.unparse(statement))
        else:
            raise _refusal(where, definition, f"it refers to {name}, which is neither torch's nor Python's own")

    def import_lines(self) -> list[str]:
        """The import block: standard library, blank line, torch; sorted as ruff's isort rules want it."""
        lines = ["from __future__ import annotations"] if self.future_annotations else []
        stdlib = {entry for entry in self._imports if entry[0].partition(".")[0] != "torch"}
        for section in (stdlib, self._imports - stdlib):
            if section:
                lines += ([""] if lines else []) + _section(section)
        return lines


class Importer(Carrier):
    """Collects the imports of a text that runs where td-compiler is: nothing is carried over.

    Attributes:
        held: what has no name to import, such as a user's own function, by the name that the text has for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, Any] = {}
        self._names: dict[int, str] = {}

    def carry(self, definition: Any, where: str) -> str:
        """Import a definition of td-compiler's layers; hold any other. Returns its name in the text."""
        if id(definition) not in self._names:
            home, name = getattr(definition, "__module__", ""), getattr(definition, "__name__", "")
            if str(home).startswith("td_compiler.layers."):
                self._imports.add((home, name, ""))
            else:
                name = f"held{len(self.held)}"
                self.held[name] = definition
            self._names[id(definition)] = name
        return self._names[id(definition)]

    def use(self, text: str) -> None:
        """Import all that text may name: no text is parsed, which is slow, and in several threads at once breaks."""
        self._imports |= set(_COMMON.values())

    def operands(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a node is called with; values that have no literal are held."""

        def written(value: Any) -> Any:
            if isinstance(value, (fx.Node, slice)) or has_literal(value):
                return value
            return Name(self.carry(value, ""))

        args, kwargs = map_aggregate((tuple(node.args), dict(node.kwargs)), written)
        return args, kwargs


_COMMON = {
    "torch": ("torch", "", ""),
    "F": ("torch.nn.functional", "", "F"),
    "nn": ("torch", "nn", ""),
    "Tensor": ("torch", "Tensor", ""),
    "math": ("math", "", ""),
    "OrderedDict": ("collections", "OrderedDict", ""),
}

_FAST = ("td_compiler.layers.folding", "td_compiler.layers.dropout")

# Helpers that foreign code calls and that are no part of what it computes.
_STAND_INS = {
    "td_compiler.capture.leaves.leaf": "def leaf(module_class: type) -> type:\n"
    '    """Does nothing here; td-compiler keeps a list of what not to look into with it."""\n'
    "    return module_class",
    "timm.layers._fx.register_notrace_module": "def register_notrace_module(module: type) -> type:\n"
    '    """Does nothing here; timm keeps a list of what not to trace with it."""\n'
    "    return module",
    "torchvision.utils._log_api_usage_once": "def _log_api_usage_once(obj: object) -> None:\n"
    '    """Does nothing here; torchvision counts its uses with it."""',
}


def _names(text: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}


def _section(entries: set[tuple[str, str, str]]) -> list[str]:
    plain = sorted((module, alias) for module, name, alias in entries if not name)
    lines = [f"import {module}" + (f" as {alias}" if alias else "") for module, alias in plain]
    for module in sorted({module for module, name, _ in entries if name}):
        names = [name for home, name, _ in entries if home == module and name]
        names.sort(key=lambda name: (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name))
        lines.append(f"from {module} import {', '.join(names)}")
    return lines


def _read(definition: Any, where: str) -> tuple[str, ast.Module, dict[str, Any]]:
    if not isinstance(definition, (types.FunctionType, type)) or definition.__name__ != definition.__qualname__:
        raise _refusal(where, definition, "it is not a function or class at the top level of a module")
    try:
        source = textwrap.dedent(inspect.getsource(definition)).strip()
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError) as error:
        raise _refusal(where, definition, "its source is not at hand") from error
    if not isinstance(tree.body[0], (ast.FunctionDef, ast.ClassDef)):
        raise _refusal(where, definition, "it is not defined by def or class")
    home = sys.modules[definition.__module__].__dict__
    source = _without_leaf(source, tree.body[0].decorator_list, home)
    return source, ast.parse(source), home


def _without_leaf(source: str, decorators: Sequence[ast.expr], home: Mapping[str, Any]) -> str:
    """A definition without `@leaf`, which speaks to this compiler alone."""
    lines = source.splitlines()
    for decorator in reversed(decorators):
        value: Any = None
        if isinstance(decorator, (ast.Name, ast.Attribute)):
            first, *rest = ast.unparse(decorator).split(".")
            value = functools.reduce(lambda owner, name: getattr(owner, name, None), rest, home.get(first))
        if value is leaf:
            del lines[decorator.lineno - 1 : decorator.end_lineno]
    return "\n".join(lines)


def _assignment(name: str, value: Any) -> ast.Module | None:
    """The statement at the top level of a value's own module that names it, as `to_2tuple = _ntuple(2)` does."""
    home = sys.modules.get(str(getattr(value, "__module__", None)))
    if home is None or vars(home).get(name) is not value:
        return None
    statements = [node for node in ast.parse(inspect.getsource(home)).body if isinstance(node, ast.Assign)]
    found = next((node for node in statements if [ast.unparse(target) for target in node.targets] == [name]), None)
    return ast.Module([found], []) if found is not None else None


def _global_names(tree: ast.Module) -> set[str]:
    """The names that a definition reads and does not bind itself, as far as its text tells."""
    nodes = list(ast.walk(tree))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)} - bound


def _free_names(definition: Any) -> tuple[str, ...]:
    code = getattr(definition, "__code__", None)
    return code.co_freevars if code else ()


def _constant(value: Any, name: str, where: str, definition: Any) -> str:
    try:
        return flat(literal(value))
    except TypeError as error:
        raise _refusal(where, definition, f"its constant {name} has no literal") from error


def _refusal(where: str, definition: Any, reason: str) -> ConversionError:
    kind = definition if hasattr(definition, "__name__") else type(definition)
    name = f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', kind)}"
    return ConversionError(
        f"{where}: {name} cannot be carried into emitted source: {reason}; define it at the top level of a module "
        "from torch alone, or keep the network in Python and save its state_dict."
    )
