"""The module tree of a network: which modules are layers, which only hold others, and how code reaches each."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import nn

from td_compiler.emission.layout import quoted
from td_compiler.graph.names import is_attribute, is_written

__all__ = ["Tree", "is_bare", "is_numbered", "own_children"]


def is_numbered(names: Iterable[str]) -> bool:
    """Whether names are 0, 1, ... n-1 in this order, as in an `nn.Sequential`."""
    names = list(names)
    return bool(names) and names == [str(i) for i in range(len(names))]


def _is_number(name: str) -> bool:
    return name.isdecimal() and name.isascii() and str(int(name)) == name


def own_children(module: nn.Module) -> dict[str, nn.Module]:
    """A module's direct children by name."""
    return {name: child for name, child in module._modules.items() if child is not None}


def is_bare(module: nn.Module) -> bool:
    """Whether a container can only be written as a class: it holds tensors, or names that no ModuleDict takes."""
    tensors = bool(module._parameters or module._buffers)
    return tensors or any(hasattr(nn.ModuleDict, name) for name in module._modules)


def _kind_of_class(module: nn.Module) -> str:
    """How an instance of an emitted class holds others: by place where no name of theirs is an attribute's."""
    names = own_children(module)
    if not names or any(map(is_attribute, names)) or module._parameters or module._buffers:
        return "class"
    return "sequence" if is_numbered(names) else "chain"


class Tree:
    """The module tree below one root: the network's, or a unit's.

    Attributes:
        root: the module that paths start from.
        classes: paths, from the network's root, of the containers that become instances of an emitted class.
        chains: paths, from there, of the containers that become a Sequential with names of its own.
    """

    def __init__(self, root: nn.Module, called: set[str], classes: set[str], chains: set[str] | None = None) -> None:
        self.root = root
        self._called = called
        self.classes = classes
        self.chains = chains if chains is not None else set()
        self._modules = dict(root.named_modules(remove_duplicate=False))
        self._start = ""  # of the paths in what trees below this one share with it

    def below(self, path: str) -> Tree:
        """The tree of the module at a path; it shares the paths of containers with this one."""
        tree = copy.copy(self)
        tree.root, tree._start = self.module(path), f"{self._start}{path}."
        return tree

    def module(self, path: str) -> nn.Module:
        """The module at a path, which there must be."""
        return self._modules[self._start + path] if path else self.root

    def has(self, path: str) -> bool:
        """Whether there is a module at a path."""
        return not path or self._start + path in self._modules

    def holds_tensors(self, path: str) -> bool:
        """Whether the module at a path has parameters or buffers of its own, beside its children."""
        module = self.module(path)
        return bool(module._parameters or module._buffers)

    def is_container(self, path: str, module: nn.Module) -> bool:
        """Whether a module only holds others: nothing calls it, and it is a Sequential or has no forward of its own."""
        if self._start + path in self._called:
            return False
        if is_written(type(module)):
            return True
        without_forward = type(module).forward is nn.Module.forward
        return without_forward or type(module) is nn.Sequential or isinstance(module, nn.ModuleDict)

    def kind(self, path: str) -> str:
        """How a module holds others: `class` (by attribute), `sequence`, `chain` (named), `numbers`, `dict`."""
        module, own = self.module(path), self._start + path
        if path == "" or own in self.classes:
            return _kind_of_class(module)
        if not self.is_container(path, module) or is_bare(module):
            return "class"
        if own in self.chains:
            return "chain"
        names = own_children(module)
        if is_numbered(names):
            return "sequence"
        return "numbers" if names and all(map(_is_number, names)) else "dict"

    def is_layer(self, path: str) -> bool:
        """Whether a module is called as it stands, neither a container nor an instance of an emitted class."""
        return self._start + path not in self.classes and not self.is_container(path, self.module(path))

    def access(self, path: str) -> str:
        """The expression that reaches a module or parameter from a method of the root: `self.layer4[0].conv1`."""
        text, done = "self", ""
        for name in path.split("."):
            text = self._step(text, done, name)
            done = f"{done}.{name}" if done else name
        return text

    def _step(self, text: str, parent: str, name: str) -> str:
        """How a child is reached from its parent's expression: `.name`, `[0]`, `["name"]` or `getattr`."""
        kind = self.kind(parent)
        if kind == "sequence":
            return f"{text}[{name}]"
        if kind == "chain" and not is_attribute(name):
            return f"{text}[{list(own_children(self.module(parent))).index(name)}]"
        if kind == "numbers":
            return f"{text}[{name}]"
        if kind == "dict" and (not is_attribute(name) or hasattr(nn.ModuleDict, name)):
            return f"{text}[{quoted(name)}]"
        return f"{text}.{name}" if is_attribute(name) else f"getattr({text}, {quoted(name)})"
