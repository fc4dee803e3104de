"""Finding the network in a user's Python file."""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from td_compiler.sources.construct import Maker, SourceError, construct, missing_arguments, nearest, place, return_hint

__all__ = ["load_from_file"]


def load_from_file(path: Path, name: str, arguments: Mapping[str, Any], device: str | None) -> nn.Module:
    """Run a file and build the network that a name in it stands for, or its only candidate.

    Candidates are public and made in the file itself: an `nn.Module` class with a forward method or a factory (a
    function annotated to return an `nn.Module`) that needs no arguments beside the given ones, and a module-level
    network. What another class or factory of the file uses is a building block and no candidate. Only in a file
    without any of these, functions without a return annotation that return something are.

    Args:
        path: the file. It is imported under a private name, with its folder, the folder above its package and the
            current folder on `sys.path` while it and its factory run.
        name: a class, factory or network in it, or a method of a class that makes one (`Net.from_name`); "" for its
            only candidate.
        arguments: keyword arguments of the class or factory.
        device: where to build the network, see :func:`td_compiler.sources.names.load_source`.

    Raises:
        SourceError: if the file is missing, does not run, has no candidate or several, or its factory fails.
    """
    tree = _parse(path)
    file = path.resolve()
    root = _package_root(file, tree)
    with _import_paths(file, root), _no_command_line(file):
        module = _run(path, file, root, tree)
        if not name:
            name = _only_candidate(path, module, tree, arguments)
        label = f"{path}:{name}"
        owner, found = _member(module, name)
        if isinstance(found, nn.Module):
            if arguments:
                raise SourceError(f"{label} is a network already: it takes no --arg.", usage=True)
            return found
        if not callable(found):
            known = [key for key, value in vars(owner).items() if callable(value) or isinstance(value, nn.Module)]
            if inspect.isclass(owner):
                known = [key for key in dir(owner) if not key.startswith("_") and callable(getattr(owner, key))]
            kind = "is not there" if found is None else f"is of type {type(found).__name__}, not a model or a factory"
            raise SourceError(f"{label} {kind}{nearest(name.rpartition('.')[2], known)}", usage=True)
        return construct(found, arguments, label=label, file=file, device=device)


def _member(module: types.ModuleType, name: str) -> tuple[Any, Any]:
    """What a dotted name stands for, `Net` or `Net.from_name`, None where there is none; before it, what has it."""
    owner: Any = module
    *outer, last = name.split(".")
    for part in outer:
        owner = getattr(owner, part, None)
    return owner if owner is not None else module, getattr(owner, last, None)


def _parse(path: Path) -> ast.Module:
    if not path.exists():
        siblings = [each.name for each in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise SourceError(f"There is no file {path}{nearest(path.name, siblings)}", usage=True)
    if path.is_dir():
        raise SourceError(f"{path} is a folder: name a Python file in it, e.g. {path / 'model.py'}.", usage=True)
    if path.suffix != ".py":
        raise SourceError(f"{path} is not a Python file: its name does not end in .py.", usage=True)
    try:
        return ast.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.", usage=True) from error
    except SyntaxError as error:
        raise SourceError(f"{path}:{error.lineno or 1}: {type(error).__name__}: {error.msg}", usage=False) from error
    except ValueError as error:  # null bytes
        raise SourceError(f"{path} is not Python source: {error}.", usage=False) from error


@contextlib.contextmanager
def _import_paths(file: Path, root: Path) -> Iterator[None]:
    added = list(dict.fromkeys([str(file.parent), str(root), str(Path.cwd())]))
    sys.path[:0] = added
    try:
        yield
    finally:
        for entry in added:
            with contextlib.suppress(ValueError):  # the file may have taken it off itself
                sys.path.remove(entry)


class _WrongCommandLine(Exception):
    """What `argparse` says of a command line that is not the file's."""


@contextlib.contextmanager
def _no_command_line(file: Path) -> Iterator[None]:
    """A file that reads its command line finds none there; what it then misses is an error, not an exit."""

    def error(self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise _WrongCommandLine(message)

    words, own = sys.argv, argparse.ArgumentParser.error
    sys.argv = [str(file)]
    argparse.ArgumentParser.error = error  # type: ignore[method-assign]
    try:
        yield
    finally:
        sys.argv = words
        argparse.ArgumentParser.error = own  # type: ignore[method-assign]


def _package_root(file: Path, tree: ast.Module) -> Path:
    """The folder above the outermost package that a file belongs to, by `__init__.py` or by its relative imports."""
    folder = file.parent
    levels = max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0)
    for _ in range(levels - 1):
        folder = folder.parent
    while (folder / "__init__.py").exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _run(path: Path, file: Path, root: Path, tree: ast.Module) -> types.ModuleType:
    """Execute a file as a module below a private package, so that its relative imports work and nothing is shadowed."""
    private = f"_td_source_{hashlib.sha256(bytes(root)).hexdigest()[:12]}"
    if private not in sys.modules:
        package = types.ModuleType(private)
        package.__path__ = [str(root)]
        sys.modules[private] = package
    parent = ".".join([private, *file.parent.relative_to(root).parts])
    name = f"{parent}.{re.sub(r'[^0-9a-zA-Z_]', '_', file.stem)}"
    try:
        importlib.import_module(parent)
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None  # the name ends in .py
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise SourceError(f"{path} cannot be imported: {_reason(error, file, tree)}", usage=False) from error
    return module


def _reason(error: BaseException, file: Path, tree: ast.Module) -> str:
    """Why a file does not run, where, and what to do."""
    where = place(error, file)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"there is no module {error.name} ({where}): pip install what has it, or import it in the function that"
            " uses it"
        )
    guard = "; guard what is no definition by if __name__ == '__main__'"
    if isinstance(error, _WrongCommandLine):
        return f"it reads a command line, and {error} ({where}){guard}, or give them a default"
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in frames if frame.filename == str(file)), None)
    definitions = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    runs = line is not None and not any(
        isinstance(statement, definitions) and statement.lineno <= line <= (statement.end_lineno or line)
        for statement in tree.body
    )
    return f"{type(error).__name__}: {error} ({where}){guard if runs else ''}"


def _only_candidate(path: Path, module: types.ModuleType, tree: ast.Module, arguments: Mapping[str, Any]) -> str:
    used_by = {name: names for statement in tree.body for name, names in _uses(statement)}
    public = {name: value for name, value in vars(module).items() if name in used_by and not name.startswith("_")}
    classes = [name for name, value in public.items() if _is_network_class(value)]
    factories = [name for name, value in public.items() if inspect.isroutine(value) and _returns_network(value)]
    networks = [name for name, value in public.items() if isinstance(value, nn.Module)]

    blocks = {used for name in (*classes, *factories, *networks) for used in used_by[name] - {name}}
    made = [name for name in (*classes, *factories) if not missing_arguments(public[name], arguments)]
    candidates = [name for name in (*made, *networks) if name not in blocks] or [*made, *networks]
    if not candidates:
        candidates = [
            name
            for name, value in public.items()
            if inspect.isfunction(value) and _returns_something(tree, name) and return_hint(value) is None
            if not missing_arguments(value, arguments)
        ]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = ", ".join(candidates)
        message = f"{path} has {len(candidates)} candidates: {listed}; name one, e.g. {path}:{candidates[0]}"
        raise SourceError(message, usage=True)
    unmade = [name for name in (*classes, *factories) if name not in blocks]
    if unmade:
        needs = "; ".join(f"{name} needs {', '.join(missing_arguments(public[name], arguments))}" for name in unmade)
        raise SourceError(
            f"{path} has nothing that can be built without arguments: {needs}; give --arg, or write a function that"
            f" makes the network, and name it: {path}:FUNCTION.",
            usage=True,
        )
    raise SourceError(
        f"{path} has no model: no nn.Module class with a forward and no function that returns one.", usage=False
    )


def _uses(statement: ast.stmt) -> Iterator[tuple[str, set[str]]]:
    """The names that a top-level statement defines, each with all names that the statement mentions."""
    names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name, names
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        yield from ((target.id, names) for target in targets if isinstance(target, ast.Name))


def _is_network_class(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module) and value.forward is not nn.Module.forward


def _returns_network(function: Maker) -> bool:
    returned = return_hint(function)
    return inspect.isclass(returned) and issubclass(returned, nn.Module)


def _returns_something(tree: ast.Module, name: str) -> bool:
    definition = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), None)
    returns = (node for node in ast.walk(definition or ast.Pass()) if isinstance(node, ast.Return))
    return any(node.value is not None for node in returns)
