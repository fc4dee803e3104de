"""Recipes written as Python, in as many manners as people have: all are the same network (SPEC 9.2)."""

from __future__ import annotations

import linecache
import random
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import nn

from tests.support.recipes import RESIDUAL, Recipe, Unit

__all__ = ["PLAIN", "Style", "build", "draw_style", "explain", "last_map", "write"]


@dataclass(frozen=True)
class Style:
    """A manner of writing.

    Attributes:
        seed: of the choices that a manner leaves open, and of names.
        units: how a unit is written: `classes` (a module with a forward of its own), `sequential` (plain ones as
            `nn.Sequential`), `inline` (in the network's forward).
        stages: how units are kept: `attributes`, `sequential`, `list` or `dict` (an `nn.ModuleList`, an
            `nn.ModuleDict`).
        functional: functions of bare parameters in place of layers.
        in_place: operations that overwrite what they read.
        arithmetic: sizes computed from `x.shape`.
        passing: modules made and called in passing, `nn.ReLU()(x)`.
        handed_on: what goes from unit to unit: `tensor`, `list` or `dict`.
        wrapped: whether the network stands in an outer module.
        normalised: whether the images are normalised inside.
    """

    seed: int = 0
    units: str = "classes"
    stages: str = "attributes"
    functional: bool = False
    in_place: bool = False
    arithmetic: bool = False
    passing: bool = False
    handed_on: str = "tensor"
    wrapped: bool = False
    normalised: bool = False


PLAIN = Style()
MEAN, STD = 0.4, 0.3


def draw_style(seed: int) -> Style:
    """The style of a seed."""
    pick = random.Random(seed)
    units = pick.choice(("classes", "classes", "sequential", "inline"))
    return Style(
        seed=seed,
        units=units,
        stages="attributes" if units == "inline" else pick.choice(("attributes", "sequential", "list", "dict")),
        functional=pick.random() < 0.4,
        in_place=pick.random() < 0.4,
        arithmetic=pick.random() < 0.4,
        passing=pick.random() < 0.3,
        handed_on=pick.choice(("tensor", "tensor", "tensor", "list", "dict")) if units == "classes" else "tensor",
        wrapped=pick.random() < 0.3,
        normalised=pick.random() < 0.3,
    )


def build(recipe: Recipe, style: Style = PLAIN) -> nn.Module:
    """The bottom-up network of a recipe, written in a style and executed."""
    text = write(recipe, style)
    filename = f"<{abs(hash((recipe, style))):x}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    space: dict[str, type[nn.Module]] = {}
    exec(compile(text, filename, "exec"), space)
    return space["Network"]()


def write(recipe: Recipe, style: Style = PLAIN) -> str:
    """The text of a module whose class `Network` is the network."""
    return _Writer(recipe, style).text()


def explain(style: Style) -> str:
    """In what a style differs from the plain one."""
    changed = [f"{f.name}={getattr(style, f.name)!r}" for f in fields(style) if getattr(style, f.name) != f.default]
    return f"Style({', '.join(changed)})"


_WORDS = {
    "conv": ("conv", "c", "filters", "weights"),
    "norm": ("norm", "bn", "n"),
    "unit": ("block", "unit", "layer", "cell"),
    "stage": ("stage", "layer", "features", "group"),
    "class": ("Block", "Cell", "Bottle", "Part"),
}


class _Scope:
    """A class being written: the lines of its `__init__` and of its `forward`."""

    def __init__(self, writer: _Writer, prefix: str = "") -> None:
        self.writer, self.prefix = writer, prefix
        self.init: list[str] = []
        self.lines: list[str] = []
        self._count = 0

    def let(self, expression: str) -> str:
        """Give a value a name."""
        self._count += 1
        name = f"{self.writer.variable}{self._count}"
        self.lines.append(f"{name} = {expression}")
        return name

    def name(self, label: str) -> str:
        """The attribute of a part."""
        return f"{self.prefix}{label}"

    def text(self, name: str, result: str, start: str = "x") -> str:
        """The class."""
        body = "\n".join(f"        {line}" for line in self.lines)
        init = "\n".join(f"        {line}" for line in self.init)
        return (
            f"class {name}(nn.Module):\n    def __init__(self):\n        super().__init__()\n{init}\n\n"
            f"    def forward(self, {start}):\n{body}\n        return {result}\n\n\n"
        )


class _Writer:
    def __init__(self, recipe: Recipe, style: Style) -> None:
        self.recipe, self.style = recipe, style
        self.pick = random.Random(style.seed)
        self.words = {kind: words[0] if style == PLAIN else self.pick.choice(words) for kind, words in _WORDS.items()}
        self.variable = "y" if style == PLAIN else self.pick.choice(("y", "out", "t", "h"))
        self.classes: dict[str, str] = {}  # what a class does -> its name
        self.texts: list[str] = []

    def choose(self, *options: str) -> str:
        """One way to say a thing; the plain style says all things in the first."""
        return options[0] if self.style == PLAIN else self.pick.choice(options)

    # operations, each an expression -------------------------------------------------------------------------------

    def conv(
        self, scope: _Scope, label: str, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1, pad: int = -1,
    ) -> str:  # fmt: skip
        """A convolution."""
        pad = kernel // 2 if pad < 0 else pad
        name = scope.name(self.words["conv"] + label)
        if not self.style.functional:
            scope.init.append(
                f"self.{name} = nn.Conv2d({inputs}, {outputs}, {kernel}, stride={stride}, padding={pad}, "
                f"bias={self.recipe.bias})"
            )
            return f"self.{name}({x})"
        scope.init.append(f"self.{name}_kernel = nn.Parameter(torch.randn({outputs}, {inputs}, {kernel}, {kernel}))")
        bias = "None"
        if self.recipe.bias:
            scope.init.append(f"self.{name}_bias = nn.Parameter(torch.zeros({outputs}))")
            bias = f"self.{name}_bias"
        return self.choose(
            f"F.conv2d({x}, self.{name}_kernel, {bias}, stride={stride}, padding={pad})",
            f"torch.conv2d({x}, self.{name}_kernel, {bias}, {stride}, {pad})",
            f"F.conv2d({x}, weight=self.{name}_kernel, bias={bias}, stride=({stride},) * 2, padding=({pad},) * 2)",
        )

    def norm(self, scope: _Scope, label: str, x: str, width: int) -> str:
        """A batch norm, if the network has any."""
        if not self.recipe.norm:
            return x
        name = scope.name(self.words["norm"] + label)
        if not self.style.functional:
            scope.init.append(f"self.{name} = nn.BatchNorm2d({width})")
            return f"self.{name}({x})"
        scope.init += [
            f"self.{name}_gain = nn.Parameter(torch.ones({width}))",
            f"self.{name}_shift = nn.Parameter(torch.zeros({width}))",
            f"self.register_buffer('{name}_mean', torch.zeros({width}))",
            f"self.register_buffer('{name}_var', torch.ones({width}))",
        ]
        args = f"self.{name}_mean, self.{name}_var, self.{name}_gain, self.{name}_shift"
        return f"F.batch_norm({x}, {args}, self.training, 0.1, 1e-5)"

    def act(self, scope: _Scope, label: str, x: str, own: bool = True) -> str:
        """An activation; `own` says that no one else reads what it reads."""
        module, function, options = {
            "relu": ("nn.ReLU", "F.relu", ""),
            "leaky": ("nn.LeakyReLU", "F.leaky_relu", "0.1"),
            "silu": ("nn.SiLU", "F.silu", ""),
        }[self.recipe.act]
        more = f", {options}" if options else ""
        in_place = self.style.in_place and own and self.pick.random() < 0.7
        if self.style.passing:
            return f"{module}({options})({x})"
        if in_place:
            ways = [f"{function}({x}{more}, inplace=True)"]
            if self.recipe.act == "relu":
                ways += [f"{x}.relu_()", f"torch.relu_({x})"]
            return self.choose(*ways)
        if self.style.functional:
            ways = [f"{function}({x}{more})"]
            if self.recipe.act == "relu":
                ways += [f"{x}.relu()", f"torch.relu({x})", f"{x}.clamp(min=0)"]
            return self.choose(*ways)
        name = scope.name(f"act{label}")
        given = ", ".join(filter(None, (options, "inplace=True" if in_place else "")))
        scope.init.append(f"self.{name} = {module}({given})")
        return f"self.{name}({x})"

    def add(self, scope: _Scope, x: str, other: str) -> str:
        """A sum of two maps, the first of which no one else reads."""
        if self.style.in_place and self.pick.random() < 0.6:
            scope.lines.append(self.choose(f"{x} += {other}", f"{x}.add_({other})"))
            return x
        return scope.let(
            self.choose(f"{x} + {other}", f"torch.add({x}, {other})", f"{x}.add({other})", f"sum([{x}, {other}])")
        )

    def cat(self, scope: _Scope, parts: list[str]) -> str:
        """A concatenation of channels."""
        listed = ", ".join(parts)
        if self.style.arithmetic and self.choose("no", "yes") == "yes":
            scope.lines.append("parts = []")
            scope.lines += [f"parts.append({part})" for part in parts]
            listed = "*parts"
        return scope.let(
            self.choose(f"torch.cat([{listed}], 1)", f"torch.cat(({listed},), dim=1)", f"torch.cat([{listed}], dim=-3)")
        )

    def pool(self, scope: _Scope, label: str, x: str, how: str) -> str:
        """A pooling that halves the map."""
        kind = "avg" if how == "average" else "max"
        kernel, pad = (3, 1) if how == "overlap" else (2, 0)
        if not self.style.functional and not self.style.passing:
            name = scope.name(f"pool{label}")
            layer = "AvgPool2d" if kind == "avg" else "MaxPool2d"
            scope.init.append(f"self.{name} = nn.{layer}({kernel}, 2, {pad})")
            return f"self.{name}({x})"
        if self.style.passing:
            return f"nn.{'AvgPool2d' if kind == 'avg' else 'MaxPool2d'}({kernel}, stride=2, padding={pad})({x})"
        if self.style.arithmetic and kernel == 2:
            scope.lines.append(f"side = min(2, {x}.shape[2])")
            return f"F.{kind}_pool2d({x}, side)"
        return f"F.{kind}_pool2d({x}, {kernel}, 2, {pad})"

    def average(self, scope: _Scope, x: str) -> str:
        """The average of a map: (N, C)."""
        if not self.style.arithmetic:
            return self.choose(
                f"F.adaptive_avg_pool2d({x}, 1).flatten(1)",
                f"{x}.mean((2, 3))",
                f"torch.flatten(F.adaptive_avg_pool2d({x}, (1, 1)), 1)",
                f"{x}.mean(3).mean(2)",
                f"{x}.flatten(2).mean(-1)",
            )
        scope.lines.append(f"n, c, h, w = {x}.shape")
        return self.choose(
            f"{x}.view(n, c, -1).mean(2)",
            f"F.avg_pool2d({x}, (h, w)).view({x}.size(0), -1)",
            f"{x}.sum((2, 3)) / (h * w)",
            f"{x}.reshape(n, c, h * w).mean(dim=2)",
            f"F.adaptive_avg_pool2d({x}, 1).view(n, c)",
            f"F.avg_pool2d({x}, {x}.size()[2:]).squeeze(-1).squeeze(-1)",
        )

    def linear(self, scope: _Scope, x: str, inputs: int, outputs: int) -> str:
        """A linear layer."""
        if not self.style.functional:
            scope.init.append(f"self.classes = nn.Linear({inputs}, {outputs})")
            return f"self.classes({x})"
        scope.init.append(f"self.classes = nn.Parameter(torch.randn({outputs}, {inputs}))")
        scope.init.append(f"self.offsets = nn.Parameter(torch.zeros({outputs}))")
        return f"F.linear({x}, self.classes, self.offsets)"

    # units --------------------------------------------------------------------------------------------------------

    def plain(self, scope: _Scope, label: str, x: str, inputs: int, unit: Unit, stride: int = 1) -> str:
        """A convolution with norm and activation; returns the name of its value."""
        pad = 0 if self.recipe.valid else -1
        x = scope.let(self.conv(scope, label, x, inputs, unit.width, unit.kernel, stride, pad))
        x = scope.let(self.norm(scope, label, x, unit.width)) if self.recipe.norm else x
        return scope.let(self.act(scope, label, x))

    def unit(self, scope: _Scope, label: str, x: str, inputs: int, unit: Unit, stride: int) -> str:
        """Any unit; returns the name of its value."""
        if unit.kind == "conv":
            return self.plain(scope, label, x, inputs, unit, stride)
        if unit.kind in RESIDUAL:
            return self.residual(scope, label, x, inputs, unit, stride)
        half = unit.width // 2
        if unit.kind == "inception":
            one = self.plain(scope, f"{label}a", x, inputs, Unit("conv", half, 1))
            other = self.plain(scope, f"{label}b", x, inputs, Unit("conv", unit.width - half, unit.kernel))
            return self.cat(scope, [one, other])
        return self.shuffle(scope, label, x, unit, half)

    def shuffle(self, scope: _Scope, label: str, x: str, unit: Unit, half: int) -> str:
        """Half of the channels through a convolution; then the halves' channels take turns."""
        if self.style.arithmetic:
            middle = scope.let(f"{x}.shape[1] // 2")
            kept, worked = scope.let(f"{x}[:, :{middle}]"), scope.let(f"{x}[:, {middle}:]")
        else:
            self_split = self.choose(f"{x}.chunk(2, 1)", f"torch.split({x}, {half}, 1)", f"torch.chunk({x}, 2, dim=1)")
            halves = scope.let(self_split)
            kept, worked = scope.let(f"{halves}[0]"), scope.let(f"{halves}[1]")
        worked = self.plain(scope, label, worked, half, Unit("conv", half, unit.kernel))
        x = self.cat(scope, [kept, worked])
        scope.lines.append(f"n, c, h, w = {x}.shape")
        return scope.let(
            self.choose(
                f"{x}.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)",
                f"{x}.reshape(n, 2, c // 2, h, w).permute(0, 2, 1, 3, 4).flatten(1, 2)",
                f"{x}.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)",
            )
        )

    def residual(self, scope: _Scope, label: str, x: str, inputs: int, unit: Unit, stride: int) -> str:
        """A residual block."""
        width, kernel, pre = unit.width, unit.kernel, self.recipe.pre
        sizes = [(inputs, width, kernel, stride), (width, width, kernel, 1)]
        if unit.kind == "bottleneck":
            sizes = [(inputs, unit.inner, 1, 1), (unit.inner, unit.inner, kernel, stride), (unit.inner, width, 1, 1)]
        y = read = x
        for i, (before, after, size, step) in enumerate(sizes):
            if pre:
                y = scope.let(self.norm(scope, f"{label}{i + 1}", y, before)) if self.recipe.norm else y
                y = scope.let(self.act(scope, f"{label}{i + 1}", y, own=self.recipe.norm or i > 0))
                read = y if i == 0 else read
            y = scope.let(self.conv(scope, f"{label}{i + 1}", y, before, after, size, step))
            if not pre:
                y = scope.let(self.norm(scope, f"{label}{i + 1}", y, after)) if self.recipe.norm else y
                y = scope.let(self.act(scope, f"{label}{i + 1}", y)) if i < len(sizes) - 1 else y
        if unit.kind == "gated":
            y = self.gate(scope, label, y, unit)
        short = x
        if stride > 1 or inputs != width:
            short = scope.let(self.conv(scope, f"{label}_short", read, inputs, width, 1, stride))
            if not pre:
                short = scope.let(self.norm(scope, f"{label}_short", short, width)) if self.recipe.norm else short
        y = self.add(scope, y, short)
        return y if pre else scope.let(self.act(scope, f"{label}_last", y))

    def gate(self, scope: _Scope, label: str, x: str, unit: Unit) -> str:
        """Squeeze and excitation."""
        g = scope.let(self.choose(f"F.adaptive_avg_pool2d({x}, 1)", f"{x}.mean((2, 3), keepdim=True)"))
        g = scope.let(self.conv(scope, f"{label}_squeeze", g, unit.width, unit.inner, 1))
        g = scope.let(self.choose(f"F.relu({g})", f"{g}.relu()"))
        g = scope.let(self.conv(scope, f"{label}_excite", g, unit.inner, unit.width, 1))
        return scope.let(
            self.choose(f"{x} * torch.sigmoid({g})", f"{g}.sigmoid() * {x}", f"torch.mul({x}, F.sigmoid({g}))")
        )

    # the network --------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """The whole module."""
        recipe, style = self.recipe, self.style
        net = _Scope(self)
        x, width = "x", recipe.size[0]
        name = "Network" if not style.wrapped else "Inner"
        if style.normalised and not style.wrapped:
            x = self._normalise(net, x)
        if recipe.stem:
            x, width = self._stem(net, x), recipe.stem.width
        for i, stage in enumerate(recipe.stages):
            if stage.down and stage.down != "stride":
                x = net.let(self.pool(net, str(i), x, stage.down))
            if stage.drop:
                x = net.let(self._drop(net, str(i), x))
            x, width = self._stage(net, i, x, width)
        net.lines.append(f"return {self._head(net, x, width)}")
        network = net.text(name, "None").replace("        return None\n", "")
        if style.wrapped:
            outer = _Scope(self)
            outer.init.append("self.inner = Inner()")
            y = self._normalise(outer, "x") if style.normalised else "x"
            network += outer.text("Network", f"self.inner({y})")
        return (
            "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n" + "".join(self.texts) + network
        ).rstrip() + "\n"

    def _normalise(self, scope: _Scope, x: str) -> str:
        channels = self.recipe.size[0]
        scope.init += [
            f"self.register_buffer('mean', torch.full((1, {channels}, 1, 1), {MEAN}))",
            f"self.register_buffer('std', torch.full((1, {channels}, 1, 1), {STD}))",
        ]
        return scope.let(
            self.choose(f"({x} - self.mean) / self.std", f"{x}.sub(self.mean).div(self.std)", f"({x} - {MEAN}) / {STD}")
        )

    def _stem(self, net: _Scope, x: str) -> str:
        stem, channels = self.recipe.stem, self.recipe.size[0]
        assert stem is not None
        x = net.let(self.conv(net, "_stem", x, channels, stem.width, stem.kernel, stem.stride))
        if not self.recipe.pre:
            x = net.let(self.norm(net, "_stem", x, stem.width)) if self.recipe.norm else x
            x = net.let(self.act(net, "_stem", x))
        return net.let(self.pool(net, "_stem", x, "overlap")) if stem.pool else x

    def _drop(self, scope: _Scope, label: str, x: str) -> str:
        if self.style.functional:
            return f"F.dropout({x}, 0.3, self.training)"
        scope.init.append(f"self.drop{label} = nn.Dropout(0.3)")
        return f"self.drop{label}({x})"

    def _stage(self, net: _Scope, index: int, x: str, width: int) -> tuple[str, int]:
        stage = self.recipe.stages[index]
        made: list[str] = []
        for i, unit in enumerate(stage.units):
            stride = 2 if stage.down == "stride" and i == 0 else 1
            if self.style.units == "inline":
                x = self.unit(net, f"{index}_{i}_", x, width, unit, stride)
            elif self.style.units == "sequential" and unit.kind == "conv" and not self.style.functional:
                made.append(self._sequential(width, unit, stride))
            else:
                made.append(f"{self._class(width, unit, stride)}()")
            width = unit.width
        return (self._run(net, index, made, x) if made else x), width

    def _run(self, net: _Scope, index: int, made: list[str], x: str) -> str:
        """Keep a stage's units and run them."""
        word, listed = self.words["stage"], ", ".join(made)
        hand = {"tensor": "{}", "list": "[{}]", "dict": "dict(map={})"}[self.style.handed_on]
        take = {"tensor": "{}", "list": "{}[0]", "dict": "{}['map']"}[self.style.handed_on]
        value = net.let(hand.format(x))
        name = f"{word}{index}"
        if self.style.stages == "attributes":
            for i, call in enumerate(made):
                net.init.append(f"self.{self.words['unit']}{index}_{i} = {call}")
                value = net.let(f"self.{self.words['unit']}{index}_{i}({value})")
        elif self.style.stages == "sequential":
            net.init.append(f"self.{name} = nn.Sequential({listed})")
            value = net.let(f"self.{name}({value})")
        elif self.style.stages == "list":
            net.init.append(f"self.{name} = nn.ModuleList([{listed}])")
            net.lines += [f"for part in self.{name}:", f"    {value} = part({value})"]
        else:
            pairs = ", ".join(f"'p{i}': {call}" for i, call in enumerate(made))
            net.init.append(f"self.{name} = nn.ModuleDict({{{pairs}}})")
            net.lines += [f"for key, part in self.{name}.items():", f"    {value} = part({value})"]
        return net.let(take.format(value)) if take != "{}" else value

    def _sequential(self, inputs: int, unit: Unit, stride: int) -> str:
        scope = _Scope(self)
        module = {"relu": "nn.ReLU()", "leaky": "nn.LeakyReLU(0.1)", "silu": "nn.SiLU()"}[self.recipe.act]
        self.conv(scope, "", "x", inputs, unit.width, unit.kernel, stride, 0 if self.recipe.valid else -1)
        if self.recipe.norm:
            self.norm(scope, "", "x", unit.width)
        return f"nn.Sequential({', '.join([line.partition(' = ')[2] for line in scope.init] + [module])})"

    def _class(self, inputs: int, unit: Unit, stride: int) -> str:
        """The name of a class for a unit; equal units share one."""
        key = repr((inputs, unit, stride))
        if key not in self.classes:
            scope = _Scope(self)
            start = {"tensor": "x", "list": "maps", "dict": "maps"}[self.style.handed_on]
            if start == "maps":
                scope.lines.append("x = maps[0]" if self.style.handed_on == "list" else "x = maps['map']")
            result = self.unit(scope, "", "x", inputs, unit, stride)
            back = {"tensor": result, "list": f"[{result}]", "dict": f"{{'map': {result}}}"}[self.style.handed_on]
            self.classes[key] = f"{self.words['class']}{len(self.classes)}"
            self.texts.append(scope.text(self.classes[key], back, start))
        return self.classes[key]

    def _head(self, net: _Scope, x: str, width: int) -> str:
        recipe = self.recipe
        if recipe.pre:
            x = net.let(self.norm(net, "_last", x, width)) if recipe.norm else x
            x = net.let(self.act(net, "_last", x))
        if recipe.head == "conv":
            x = net.let(self.conv(net, "_classes", x, width, recipe.classes, 1))
            x = net.let(self.norm(net, "_classes", x, recipe.classes)) if recipe.norm else x
            x = net.let(self.act(net, "_classes", x))
            return self.average(net, x)
        if recipe.head == "flatten":
            height, across = last_map(recipe)
            flat = net.let(self.choose(f"{x}.flatten(1)", f"torch.flatten({x}, 1)", f"{x}.view({x}.shape[0], -1)"))
            return self.linear(net, flat, width * height * across, recipe.classes)
        return self.linear(net, net.let(self.average(net, x)), width, recipe.classes)


def last_map(recipe: Recipe) -> tuple[int, int]:
    """Height and width of a network's last map."""
    maps: list[torch.Tensor] = []
    headless = Recipe(**{**{f.name: getattr(recipe, f.name) for f in fields(recipe)}, "head": "linear"})
    with torch.device("meta"):
        model = build(headless)
    hook: Callable[..., None] = lambda module, given, made: maps.append(made)  # noqa: E731
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(hook)
    model(torch.empty(2, *recipe.size, device="meta"))
    height, width = next(m for m in reversed(maps) if m.dim() == 4 and m.shape[2:] != (1, 1)).shape[2:]
    return height, width
