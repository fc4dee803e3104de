"""Which numbers of a network's layers are arguments of its class: the classes to score, the channels of the images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import fx, nn

from td_compiler.emission.drop_rates import as_drop_path, drop_rate, path_rates, with_rate
from td_compiler.emission.layout import Atom, Doc, Number, substitute
from td_compiler.graph.operators import Kind, lookup
from td_compiler.layers.drop_path import DropPath

if TYPE_CHECKING:
    from td_compiler.network.base import TopDownNet

__all__ = ["CHANNELS", "CLASSES", "DROP_PATH", "Arguments", "find_arguments"]

CLASSES = "num_classes"
CHANNELS = "in_chans"
DROP = "drop_rate"
DROP_PATH = "drop_path_rate"
_WIDTHS = ("num_features", "num_channels")  # what the channels of a norm are called


@dataclass
class Arguments:
    """The numbers that the network's class takes as arguments.

    Attributes:
        classifier: the node of the head that scores the classes: the last linear layer or 1x1 convolution; None where
            the head has none that could be another one.
        values: what the arguments are in this network, by name: `num_classes` where there is a classifier, `in_chans`
            where every layer that reads an image can read one of other channels.
        roles: which parameter of which layer they are, by the layer's path and the parameter's name.
        rates: by path of a layer that drops something, the rate and its expression.
        drop_paths: the layers that drop branches, by path.
        steps: in how many steps their rate grows from 0 to the highest; 1 or 0: it does not.
    """

    classifier: fx.Node | None = None
    values: dict[str, int] = field(default_factory=dict)
    roles: dict[str, dict[str, str]] = field(default_factory=dict)
    rates: dict[str, tuple[float, str]] = field(default_factory=dict)
    drop_paths: dict[str, DropPath] = field(default_factory=dict)
    steps: int = 0

    @property
    def signature(self) -> dict[str, str]:
        """What `__init__` takes: names with types and defaults."""
        found = {name: f"int = {value}" for name, value in self.values.items()}
        if any(argument == DROP for _, argument in self.rates.values()):
            found[DROP] = f"float = {next(p for p, argument in self.rates.values() if argument == DROP)}"
        if any(path in self.drop_paths for path in self.rates):
            found[DROP_PATH] = f"float = {max(layer.p for layer in self.drop_paths.values())}"
        return found

    def layer(self, path: str, module: nn.Module) -> nn.Module:
        """The layer that is written at a path: a `DropPath` for all that are one by another name."""
        return self.drop_paths.get(path, module)

    def mark(self, path: str, doc: Doc) -> Doc:
        """A layer's constructor expression in which these numbers are arguments."""
        if path in self.rates:
            return with_rate(doc, *self.rates[path])
        roles = self.roles.get(path)
        if not roles:
            return doc

        def marked(atom: Atom) -> Doc:
            argument = roles.get(atom.role) if isinstance(atom, Number) else None
            if not isinstance(atom, Number) or argument is None or atom.value != self.values[argument]:
                return atom
            return replace(atom, argument=argument)

        return substitute(doc, marked)


def find_arguments(td: TopDownNet, *, rates: bool = True) -> Arguments:
    """Find the classifier, the layers that read an image and, if `rates` are wanted, those that drop something."""
    found = Arguments()
    modules = dict(td.named_modules(remove_duplicate=False))
    calls = [str(node.target) for part in td.parts for node in part.graph.nodes if node.op == "call_module"]
    tensors = Counter(id(tensor) for _, tensor in td.named_parameters(remove_duplicate=False))
    once = {
        path
        for path, number in Counter(calls).items()
        if number == 1 and all(tensors[id(tensor)] == 1 for tensor in modules[path].parameters())
    }
    _find_classifier(td, modules, once, found)
    _find_channels(td, modules, once, found)
    if rates:
        _find_rates(td, modules, set(calls), found)
    return found


def _find_rates(td: TopDownNet, modules: dict[str, nn.Module], called: set[str], found: Arguments) -> None:
    head = {str(node.target) for node in td.segments[-1].graph.nodes}
    layers = {path: modules[path] for path in called}
    found.rates = {path: (p, DROP) for path, p in sorted(drop_rate(layers, head).items())}
    paths = {path: as_drop_path(layer) for path, layer in layers.items()}
    found.drop_paths = {path: layer for path, layer in sorted(paths.items()) if layer is not None}
    found.steps, places = path_rates(found.drop_paths)
    for path, place in places.items():
        argument = DROP_PATH if found.steps == 1 else f"rates[{place}]"
        found.rates[path] = found.drop_paths[path].p, argument


def _find_classifier(td: TopDownNet, modules: dict[str, nn.Module], once: set[str], found: Arguments) -> None:
    """Walk back from the scores to the layer that makes them, past what keeps their number."""
    if td.report.options is not None and td.report.options.num_classes == 0:
        return  # the classifier has been left out
    value = td.segments[-1].graph.output_node().args[0]
    roles: dict[str, dict[str, str]] = {}
    numbers: set[int] = set()
    while isinstance(value, fx.Node) and value.op.startswith("call_") and len(value.users) == 1:
        module = modules[str(value.target)] if value.op == "call_module" else None
        if module is not None and next(module.parameters(), None) is not None:
            if str(value.target) not in once:
                return
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and _is_linear(module)):
                linear = isinstance(module, nn.Linear)
                classes = module.out_features if isinstance(module, nn.Linear) else module.out_channels
                if classes not in numbers and all(modules[path] is not module for path in roles):
                    found.classifier, found.values[CLASSES] = value, classes
                    roles[str(value.target)] = {"out_features" if linear else "out_channels": CLASSES}
                    found.roles |= roles
                return
            width = next((name for name in _WIDTHS if hasattr(module, name)), "")
            if not width:
                return
            roles[str(value.target)] = {width: CLASSES}
        inputs = value.all_input_nodes
        if len(inputs) != 1:
            return
        numbers |= {n for n in (*value.args, *value.kwargs.values()) if isinstance(n, int)}
        value = inputs[0]


def _is_linear(module: nn.Conv2d) -> bool:
    return module.kernel_size == (1, 1) and module.groups == 1


def _find_channels(td: TopDownNet, modules: dict[str, nn.Module], once: set[str], found: Arguments) -> None:
    """Follow the images to the convolutions that read them; what a prologue does is for their channels alone."""
    if td.prologue is not None:
        return
    channels = td.report.input_size[0]
    roles: dict[str, dict[str, str]] = {}
    values = [
        node for part in td.segments for node in part.graph.find_nodes(op="placeholder") if node.target == "image"
    ]
    while values:
        value = values.pop()
        for user in value.users:
            module = modules[str(user.target)] if user.op == "call_module" else None
            row = lookup(user, module)
            kind = row.kind if row is not None else None
            width = next((name for name in ("in_channels", *_WIDTHS) if hasattr(module, name)), "")
            if kind is Kind.SIZE or user.all_input_nodes[0] is not value:
                continue  # a map that grows to the image's size
            if module is not None and width and next(module.parameters(), None) is not None:
                if getattr(module, width) != channels or getattr(module, "groups", 1) > 1 or user.target not in once:
                    return
                roles[str(user.target)] = {width: CHANNELS}
                values += [user] if width != "in_channels" else []
            elif kind in _KEEPING and user.all_input_nodes == [value]:
                values.append(user)
            else:
                return
    if roles:
        found.values[CHANNELS] = channels
        found.roles |= roles


_KEEPING = {Kind.ACTIVATION, Kind.DROPOUT, Kind.IDENTITY, Kind.PAD, Kind.POOL}
