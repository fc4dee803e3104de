"""First values in emitted source: a function `init_weights`, and expressions for tensors outside layers (SPEC 8.4)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from td_compiler.emission.layout import Doc, Group, Join, Statement, call, lay_out, literal, quoted
from td_compiler.graph.initialisation import default_law, is_depthwise, kind_of
from td_compiler.graph.laws import TRUNCATED, Law, fans_of
from td_compiler.graph.parametrised import computed_tensors

if TYPE_CHECKING:
    from td_compiler.network.base import TopDownNet

__all__ = ["INIT", "InitFunction", "drawn", "first_values", "init_function", "kept_values"]

INIT = "init_weights"
_GAINS = {math.sqrt(2): "math.sqrt(2)", math.sqrt(0.5): "math.sqrt(0.5)", 5 / 3: "5 / 3"}
_FEW = 64  # numbers that are written out
_FACTORS = {"weight", "gamma", "scale", "gain", "alpha", "layer_scale"}  # zeros would let nothing through


@dataclass(frozen=True)
class InitFunction:
    """The function that draws the first values of a network's layers.

    Attributes:
        lines: its text.
        calls: the lines of the network's `__init__` that call it.
        kinds: the classes of torch whose layers it draws.
        by_name: whether it takes a layer's name too.
    """

    lines: list[str]
    calls: list[str]
    kinds: frozenset[str]
    by_name: bool

    def call(self, layer: str, path: str) -> Doc:
        """The call that draws one layer's values, reached by an expression and standing at a path."""
        return call(INIT, layer, *([quoted(path)] if self.by_name else []))


@dataclass(frozen=True)
class _Rule:
    """What is done to the tensor `name` of layers for which a condition holds; "" for all of them."""

    condition: str
    name: str
    law: Law


def init_function(td: TopDownNet) -> InitFunction | None:
    """The function that gives layers of torch the source's kind of first values; None where torch's own are meant."""
    rules: dict[str, tuple[_Rule, ...]] = {}
    layers = _layers(td)
    for kind, members in layers.items():
        found = _rules_of(kind, members, td.report.initialisation)
        if found:
            rules[kind] = found
    if not rules:
        return None
    by_name = any("name" in rule.condition for found in rules.values() for rule in found)
    kinds: dict[tuple[_Rule, ...], list[str]] = defaultdict(list)
    for kind, found in rules.items():
        kinds[found].append(kind)
    statements: list[Statement] = []
    for found, names in kinds.items():
        statements += _branch(found, names, {name: layers[name] for name in names})
    signature = call(f"def {INIT}", "module: nn.Module", *(["name: str"] if by_name else []))
    lines = lay_out("", Join((signature, " -> None:")), 0)
    lines.append('    """Give a layer the first values that the source network\'s have."""')
    for statement in statements:
        lines += lay_out(statement.prefix, statement.doc, 4 + 4 * statement.level)
    if by_name:
        calls = ["        for name, module in self.named_modules():", f"            {INIT}(module, name)"]
    else:
        calls = [f"        self.apply({INIT})"]
    return InitFunction(lines, calls, frozenset(rules), by_name)


def _layers(td: nn.Module) -> dict[str, list[tuple[str, nn.Module]]]:
    """The layers with parameters of torch's own classes and of theirs, by the class of torch."""
    layers: dict[str, list[tuple[str, nn.Module]]] = defaultdict(list)
    for path, module in td.named_modules():
        if any(parameter is not None for parameter in module._parameters.values()):
            kind = kind_of(module)
            if hasattr(nn, kind):
                layers[kind].append((path, module))
    return layers


def _rules_of(kind: str, members: Sequence[tuple[str, nn.Module]], laws: Mapping[str, Law]) -> tuple[_Rule, ...]:
    """The rules for layers of one class: the law of most first, then those of the others, with what tells them."""
    rules: list[_Rule] = []
    for name in dict.fromkeys(name for _, module in members for name in module._parameters):
        having = [member for member in members if name not in computed_tensors(member[1])]
        if not all(name in module._parameters for _, module in having):
            continue  # one that a class of its own has added, which brings it itself
        groups: dict[Law | None, list[tuple[str, nn.Module]]] = defaultdict(list)
        for path, module in having:
            if module._parameters[name] is not None:
                law = laws.get(f"{path}.{name}")
                groups[law if law is not None else default_law(module, name)].append((path, module))
        most = max(groups, key=lambda law: len(groups[law]), default=None)
        for law in sorted(groups, key=lambda law: law is not most):
            plain = law is None or law == default_law(groups[law][0][1], name)
            if law is None or (law is most and plain):
                continue
            others = [member for other, found in groups.items() if other is not law for member in found]
            condition = "" if law is most else _condition(groups[law], others)
            rules.append(_Rule(condition, name, law))
    return tuple(rules)


def _taps(conv: nn.Module) -> int:
    sizes: Any = conv.kernel_size
    return math.prod(sizes)


def _condition(those: Sequence[tuple[str, nn.Module]], others: Sequence[tuple[str, nn.Module]]) -> str:
    """An expression that is true of some layers and not of others of their class."""
    traits: list[tuple[str, Callable[[nn.Module], bool]]] = []
    if all(hasattr(module, "groups") for _, module in [*those, *others]):
        traits = [
            ("module.groups == module.in_channels", is_depthwise),
            ("module.groups > 1", lambda module: bool(module.groups != 1)),
            ("math.prod(module.kernel_size) == 1", lambda module: _taps(module) == 1),
            ("math.prod(module.kernel_size) > 1", lambda module: _taps(module) > 1),
        ]
    for text, holds in traits:
        if all(holds(module) for _, module in those) and not any(holds(module) for _, module in others):
            return text
    suffixes: list[str] = []
    for path, _ in those:
        if any(path.endswith(suffix) for suffix in suffixes):
            continue
        names = path.split(".")
        ends = (".".join(names[i:]) for i in reversed(range(len(names))))
        clear = (end for end in ends if not any(other.endswith(end) for other, _ in others))
        suffixes.append(next(clear, path))
    texts = [quoted(suffix) for suffix in suffixes]
    if len(texts) == 1:
        return f"name == {texts[0]}" if texts[0] == quoted(those[0][0]) else f"name.endswith({texts[0]})"
    return f"name.endswith(({', '.join(texts)}))"


def _branch(
    rules: Sequence[_Rule], kinds: Sequence[str], layers: Mapping[str, Sequence[tuple[str, nn.Module]]]
) -> list[Statement]:
    """The `if` of layers of some classes that have the same rules."""
    classes = f"nn.{kinds[0]}" if len(kinds) == 1 else f"({', '.join(f'nn.{kind}' for kind in kinds)})"
    modules = [module for members in layers.values() for _, module in members]
    absent = {name: f"module.{name}" for each in modules for name, value in each._parameters.items() if value is None}
    absent |= {name: f'module._parameters.get("{name}")' for each in modules for name in computed_tensors(each)}
    conditions = list(dict.fromkeys(rule.condition for rule in rules))
    statements = []
    if conditions == [conditions[0]] and conditions[0]:
        return [
            Statement(f"if isinstance(module, {classes}) and {conditions[0]}:"),
            *(line for rule in rules for line in _of_rule(rule, 1, absent)),
        ]
    statements.append(Statement(f"if isinstance(module, {classes}):"))
    for condition in conditions:
        if condition:
            statements.append(Statement(f"if {condition}:", level=1))
        for rule in rules:
            if rule.condition == condition:
                statements += _of_rule(rule, 2 if condition else 1, absent)
    return statements


def _of_rule(rule: _Rule, level: int, absent: Mapping[str, str]) -> list[Statement]:
    """What draws a tensor; of those that a layer may lack, or compute of others, with the expression that tells."""
    where = f"module.{rule.name}"
    checked = [Statement(f"if {absent[rule.name]} is not None:", level=level)] if rule.name in absent else []
    weight = "module.weight" if rule.name == "bias" else where
    doc = drawn(rule.law, where, weight)
    return [*checked, Statement("", doc, level + len(checked))]


def drawn(law: Law, tensor: Doc, weight: Doc) -> Doc:
    """The call of `torch.nn.init` that draws a tensor by a law.

    Args:
        law: how its values are drawn.
        tensor: the expression of the tensor.
        weight: that of the weight whose connections count.
    """
    if law.shape == "constant":
        known = {0.0: "zeros_", 1.0: "ones_"}.get(law.value)
        return call(f"nn.init.{known}", tensor) if known else call("nn.init.constant_", tensor, _number(law.value))
    if law.shape == "orthogonal":
        gain = {} if law.value == 1.0 else {"gain": _number(law.value)}
        return call("nn.init.orthogonal_", tensor, **gain)
    if not law.fan:
        return _around(law, tensor)
    if law.fan == "mean" and law.shape != "truncated":
        gain = {} if law.value == 1.0 else {"gain": _number(law.value)}
        return call(f"nn.init.xavier_{law.shape}_", tensor, **gain)
    if law.fan in ("in", "out") and law.shape != "truncated" and tensor == weight:
        keywords: dict[str, Doc] = {} if law.fan == "in" else {"mode": '"fan_out"'}
        slope = math.sqrt(max(2 / law.value**2 - 1, 0.0))
        if law.value == 1.0:
            return call(f"nn.init.kaiming_{law.shape}_", tensor, **keywords, nonlinearity='"linear"')
        if law.value <= math.sqrt(2):
            a = "math.sqrt(5)" if abs(slope - math.sqrt(5)) < 1e-9 else literal(round(slope, 6))
            return call(f"nn.init.kaiming_{law.shape}_", tensor, **({"a": a} if slope > 1e-6 else {}), **keywords)
    return _by_fan(law, tensor, weight)


def _around(law: Law, tensor: Doc) -> Doc:
    if law.shape == "uniform":
        return call("nn.init.uniform_", tensor, _number(law.mean - law.value), _number(law.mean + law.value))
    keywords: dict[str, Doc] = {"mean": _number(law.mean)} if law.mean else {}
    keywords["std"] = _number(law.value)
    if law.shape == "truncated":
        bound = _number(2 * law.value)
        return call("nn.init.trunc_normal_", tensor, **keywords, a=Join(("-", bound)), b=bound)
    return call("nn.init.normal_", tensor, **keywords)


def _by_fan(law: Law, tensor: Doc, weight: Doc) -> Doc:
    """A deviation that follows a number of connections for which `torch.nn.init` has no function."""
    into, out = f"{weight}[0].numel()", f"{weight}[:, 0].numel()"
    fan = {"in": into, "mean": f"({into} + {out})"}.get(law.fan, out)
    times = " * module.groups" if law.fan == "out/groups" else ""
    half = 0.5 if law.fan == "mean" else 1.0
    if law.shape == "normal":
        return call("nn.init.normal_", tensor, std=_root(law.value**2 / half, times, fan))
    if law.shape == "truncated":
        std = _root((law.value / TRUNCATED) ** 2 / half, times, fan)
        return call("nn.init.trunc_normal_", tensor, std=std, a=f"-2 * {std}", b=f"2 * {std}")
    bound = _root(3 * law.value**2 / half, times, fan)
    return call("nn.init.uniform_", tensor, f"-{bound}", bound)


def _root(square: float, times: str, fan: str) -> str:
    """The square root of a number over a number of connections."""
    number = round(square) if abs(square - round(square)) < 1e-6 else float(f"{square:.6g}")
    return f"math.sqrt({number}{times} / {fan})"


def _number(value: float) -> Doc:
    return _GAINS.get(value) or literal(float(f"{value:.7g}"))


def first_values(
    name: str,
    tensor: torch.Tensor,
    law: Law | None,
    sizes: Sequence[Doc],
    dtype: Mapping[str, Doc],
    weight: torch.Tensor | None = None,
) -> Doc:
    """The expression of a new tensor outside layers, of that name in its class: drawn by its law, if that is known.

    A bias follows the connections of the weight beside it, which its class has as `self.weight` by then.
    """
    law = law or _guess(name, tensor)
    if law.is_constant:
        return _full(law.value, sizes, dtype)
    empty = call("torch.empty", *(sizes or ["()"]), **dtype)
    fans = fans_of(tensor)
    if law.fan in ("in", "out", "mean") and not fans and weight is not None and fans_of(weight):
        return _by_fan(law, empty, "self.weight")
    sayable = law.shape != "truncated" and (law.fan == "mean" or law.value <= math.sqrt(2))
    if law.fan and (not sayable or law.fan not in fans):
        law = Law("normal", float(f"{law.deviation(fans):.2g}")) if fans else Law("constant", 0.0)
    if law.fan == "out/groups":  # of one group
        law = replace(law, fan="out")
    return drawn(law, empty, empty)


def _guess(name: str, tensor: torch.Tensor) -> Law:
    """What a tensor starts with of which nothing is known: filters He-normal, a weight one, all else zero."""
    if not tensor.is_meta and tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
        return Law("constant", float(tensor.flatten()[0]))
    if sum(size > 1 for size in tensor.shape) > 1:
        return Law("normal", math.sqrt(2), "in")
    return Law("constant", 1.0 if name in _FACTORS else 0.0)


def _full(value: float, sizes: Sequence[Doc], dtype: Mapping[str, Doc]) -> Doc:
    known = {0.0: "torch.zeros", 1.0: "torch.ones"}.get(value)
    if known:
        return call(known, *(sizes or ["()"]), **dtype)
    return call("torch.full", Group("(", tuple(sizes), ")", is_tuple=True), _number(value), **dtype)


def kept_values(tensor: torch.Tensor, sizes: Sequence[Doc], dtype: Mapping[str, Doc]) -> Doc:
    """The expression of a buffer with its values: constant, few, or alike along its first axis; else zeros.

    What is none of these comes with the state_dict alone.
    """
    if tensor.is_meta or not tensor.numel():
        return _full(0.0, sizes, dtype)
    if bool((tensor == tensor.flatten()[0]).all()):
        return _full(tensor.flatten()[0].item(), sizes, dtype)
    if tensor.numel() <= _FEW:
        return call("torch.tensor", literal(tensor.tolist()), **dtype)
    if tensor[0].numel() <= _FEW and bool((tensor == tensor[:1]).all()):
        row = call("torch.tensor", literal(tensor[:1].tolist()), **dtype)
        return call(Join((row, ".repeat")), sizes[0], *["1"] * (tensor.dim() - 1))
    return _full(0.0, sizes, dtype)
