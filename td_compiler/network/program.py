"""A network's text, executed: the classes that its modules are instances of.

The passes end in layers at their paths and in graphs of what runs. `td_compiler.emission` writes these as classes, and
here they become what they say: the bare containers at the paths turn into instances of the text's classes, around the
layers that they hold already.
"""

from __future__ import annotations

import hashlib
import linecache
import sys
import threading
import types
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from td_compiler.capture.copying import copy_module
from td_compiler.capture.meta import META
from td_compiler.emission.source import library_source
from td_compiler.emission.units import RESERVED, used_modules
from td_compiler.graph.names import GENERATED, is_attribute, is_written
from td_compiler.layers.numbered import Numbered

if TYPE_CHECKING:
    from td_compiler.network.base import TopDownNet

__all__ = ["Program", "bare", "take_form"]

_programs: dict[tuple[str, tuple[int, ...]], Program] = {}
_lock = threading.Lock()


class Program:
    """A text, executed once; networks of the same text share its classes.

    Attributes:
        text: the text.
        held: what it names without defining it.
        name: the name of the network's class.
        classes: the classes that it defines.
    """

    def __init__(self, text: str, held: dict[str, Any], name: str) -> None:
        self.text, self.held, self.name = text, held, name
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        module = types.ModuleType(f"{GENERATED}{name}_{digest}")
        # Debuggers, torch.compile and inspect look a class's module and its text up by these names.
        module.__file__ = f"<{module.__name__}>"
        linecache.cache[module.__file__] = (len(text), None, text.splitlines(keepends=True), module.__file__)
        sys.modules[module.__name__] = module
        module.__dict__.update(held)
        exec(compile(text, module.__file__, "exec"), module.__dict__)
        own = (value for value in vars(module).values() if isinstance(value, type))
        self.classes: dict[str, type[nn.Module]] = {
            kind.__name__: kind for kind in own if kind.__module__ == module.__name__ and issubclass(kind, nn.Module)
        }
        for kind in self.classes.values():
            kind.program, kind.__reduce_ex__ = self, _reduce  # type: ignore[attr-defined,method-assign,assignment]

    @staticmethod
    def of(text: str, held: dict[str, Any], name: str) -> Program:
        """The program of a text, executed where it has not been before."""
        key = (text, tuple(map(id, held.values())))
        with _lock:
            if key not in _programs:
                _programs[key] = Program(text, held, name)
            return _programs[key]

    @cached_property
    def network(self) -> type[TopDownNet]:
        """The network's class: the text's, with what the library adds."""
        from td_compiler.network.base import TopDownNet

        own = self.classes[self.name]
        attributes = {"__module__": own.__module__, "__doc__": own.__doc__, "__qualname__": self.name}
        made = type(self.name, (TopDownNet, own), attributes)
        return made

    @cached_property
    def instance(self) -> nn.Module:
        """The network as the text makes it, on the meta device."""
        with META:
            return self.classes[self.name]()

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The instance's modules by path, shared ones under each of theirs."""
        return dict(self.instance.named_modules(remove_duplicate=False))

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of the instance's state."""
        return {name: tensor.shape for name, tensor in self.instance.state_dict(keep_vars=True).items()}

    def kind(self, name: str) -> type[nn.Module]:
        """The class of a name; the network's with what the library adds."""
        return self.network if name == self.name else self.classes[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Program.of, (self.text, self.held, self.name)


def take_form(network: TopDownNet, bones: TopDownNet | None = None) -> None:
    """Make a network of layers, bare containers and graphs an instance of the class that its text defines, in place.

    Layers, and modules that have been put in the place of what the text made, stay what they are.

    Args:
        network: the network.
        bones: what its text is written from, if that is not the network itself.
    """
    name = f"{network.report.source}TD"
    if not is_attribute(name) or name in RESERVED:
        name = "Network"
    program = Program.of(*library_source(bones or network, name), name)
    own = dict(network.named_modules(remove_duplicate=False))
    if bones is None:
        _check(network, program)
    for path, made in program.modules.items():
        module, kind = own.get(path), type(made)
        if module is not None and _holds_others(module) and (kind in _BARE or is_written(kind)):
            module.__class__ = program.kind(kind.__name__) if is_written(kind) else kind
            _take_over(module, made)


def _check(network: TopDownNet, program: Program) -> None:
    """Assert that what the text makes has the network's layers, and tensors of its shapes; held layers have theirs."""
    lost = sorted(used_modules(network.parts) - program.modules.keys())
    assert not lost, f"the network's text has no layer {lost[0]}"
    state = network.state_dict(keep_vars=True)
    for name, shape in program.shapes.items():
        assert name in state and state[name].shape == shape, f"the network's text has {name} {tuple(shape)}"


def _take_over(module: nn.Module, made: nn.Module) -> None:
    """Give a module what the constructor of its new class sets besides layers and tensors."""
    for key, value in vars(made).items():
        if key not in _OF_MODULES:
            module.__dict__.setdefault(key, value)
    for registry in ("_parameters", "_buffers", "_modules"):
        for key, value in vars(made)[registry].items():
            if value is None:
                vars(module)[registry].setdefault(key, None)


def bare(network: TopDownNet) -> TopDownNet:
    """A network as its text makes it, without values, whatever has been put in the places of its modules since."""
    program: Program = type(network).program  # type: ignore[attr-defined]
    bones: TopDownNet = copy_module(program.instance)  # type: ignore[assignment]
    bones.__class__ = program.network
    bones._modules["pyramid"] = network.pyramid
    bones.segments, bones.prologue, bones.report = network.segments, network.prologue, network.report
    return bones


def _holds_others(module: nn.Module) -> bool:
    """Whether a module is an instance of a text's class, or one of those that only hold others."""
    kind = type(module)
    return kind in _BARE or is_written(kind) or kind.forward is nn.Module.forward


_OF_MODULES = frozenset(vars(nn.Module()))
"""What every module keeps of itself: its mode, its hooks, the registries of what is in it."""

_BARE: set[type[nn.Module]] = {nn.Sequential, nn.ModuleDict, nn.ModuleList, Numbered}


def _reduce(module: nn.Module, protocol: Any) -> Any:
    """How instances of a text's classes are copied and pickled: with the text, once for all of a network."""
    kind = type(module)
    program: Program = kind.program  # type: ignore[attr-defined]
    if not is_written(kind):  # a class that another library derived from it
        return object.__reduce_ex__(module, protocol)
    return _restore, (program, kind.__name__), module.__getstate__()


def _restore(program: Program, name: str) -> nn.Module:
    kind = program.kind(name)
    return kind.__new__(kind)
