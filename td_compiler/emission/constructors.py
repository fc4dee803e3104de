"""The expression that builds a module anew: its class and the arguments in which it differs from the defaults."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from td_compiler.capture.meta import META
from td_compiler.emission.carry import Carrier, Importer
from td_compiler.emission.initial_values import first_values, kept_values
from td_compiler.emission.layout import Doc, Group, call, flat, has_literal, literal
from td_compiler.emission.leaves import is_of_torch, is_own, plain_layer
from td_compiler.errors import ConversionError
from td_compiler.graph.laws import Law
from td_compiler.graph.parametrised import computed_tensors, name_of, plain_copy, torch_function
from td_compiler.layers.steps import FunctionStep

__all__ = ["Constructors", "declare_tensor"]

_MISSING = object()
_BY_KEYWORD = {"kernel_size", "factor"}
_KERNEL = ("out_channels", "in_channels", "kernel_size", "kernel_size")  # the axes of a convolution's weight

# Arguments that are not kept as an attribute of the same name.
_READERS: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("TransposedUpsample", "bias"): lambda module: module.conv.bias is not None,
    ("MultiheadAttention", "bias"): lambda module: module.in_proj_bias is not None,
    ("PReLU", "init"): lambda module: 0.25,  # a value of the weight, which the state_dict brings
}


_BUILT: dict[tuple[type[nn.Module], str], tuple[Any, ...] | None] = {}
"""What expressions of torch's own layers build, in all networks."""
_MOST = 4096


class Constructors:
    """Writes constructor expressions and checks that they build modules of the same settings and shapes."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._built: dict[tuple[type[nn.Module], str], tuple[Any, ...] | None] = {}
        self._written: dict[tuple[object, ...], Doc] = {}

    def write(self, module: nn.Module, path: str) -> Doc:
        """The constructor expression of a leaf module, as the layer of torch that it is, if it is one in effect.

        Raises:
            ConversionError: if the class cannot be carried over or its arguments cannot be read off the module.
        """
        key = _key(module)
        if key is None:
            return self._write_layer(plain_layer(module), path)
        if key not in self._written:
            self._written[key] = self._write_layer(plain_layer(module), path)
        return self._written[key]

    def _write_layer(self, module: nn.Module, path: str) -> Doc:
        if not isinstance(self._carrier, Importer):
            return self._write(module, path)
        try:
            if is_of_torch(type(module)) or is_own(type(module)):
                return self._write(module, path)
        except ConversionError:
            pass
        return call("nn.Module")  # the network's own layer takes its place

    def _write(self, module: nn.Module, path: str) -> Doc:
        kind = type(module)
        if kind is nn.Sequential:  # which someone has put in the place of a layer
            children = {n: self.write(child, f"{path}.{n}") for n, child in module.named_children()}
            if list(children) == [str(i) for i in range(len(children))]:
                return call("nn.Sequential", *children.values())
            pairs = tuple(Group("(", (literal(n), child), ")", is_tuple=True) for n, child in children.items())
            return call("nn.Sequential", call("OrderedDict", Group("[", pairs, "]")))
        if isinstance(module, FunctionStep):
            return call(self._carrier.carry(kind, path), self._carrier.carry(module.function, path))
        if computed := computed_tensors(module):
            return self._write_parametrised(module, path, computed)
        of_torch = is_of_torch(kind)
        name = f"nn.{kind.__name__}" if of_torch else self._carrier.carry(kind, path)
        wanted = _description(module)
        for compact in (True, False):
            arguments = _arguments(module, path, compact=compact)
            positional = list(itertools.takewhile(lambda name: _is_positional(kind, name), arguments))
            docs = {name: literal(value, name) for name, value in arguments.items()}
            doc = call(name, *(docs.pop(name) for name in positional), **docs)
            if self._describe(kind, flat(doc), arguments) == wanted:
                return doc
        raise ConversionError(
            f"{path}: {kind.__module__}.{kind.__qualname__} cannot be written as source: {flat(doc)} would not build "
            "the same module; keep every argument of its __init__ as an attribute of the same name."
        )

    def _write_parametrised(self, module: nn.Module, path: str, computed: dict[str, list[Any]]) -> Doc:
        """A plain layer's expression inside those of torch's functions that compute its weights."""
        doc = self._write_layer(plain_copy(module), path)
        for name, makers in computed.items():
            for maker in makers:
                function, settings = torch_function(maker)
                if not function:
                    raise ConversionError(
                        f"{path}: its {name} is computed ({name_of(makers)}), for which emitted source has no form;"
                        " make it a plain parameter, or keep the network in Python and save its state_dict."
                    )
                keywords = {key: literal(value) for key, value in settings.items()}
                doc = call(f"nn.utils.{function}", doc, literal(name), **keywords)
        return doc

    def _describe(self, kind: type[nn.Module], text: str, arguments: dict[str, Any]) -> tuple[Any, ...] | None:
        built = _BUILT if is_of_torch(kind) else self._built
        found = built.get((kind, text), _MISSING)
        if found is not _MISSING:
            return cast("tuple[Any, ...] | None", found)
        if len(_BUILT) > _MOST:
            _BUILT.clear()
        made: tuple[Any, ...] | None = None
        try:
            with META:
                made = _description(kind(**arguments))
        except Exception:  # whatever a user's class raises: the expression is none that builds it
            pass
        built[kind, text] = made
        return made


_OF_ALL = frozenset(vars(nn.Module()))
_PLAIN = {int, float, bool, str, type(None)}


def _key(module: nn.Module) -> tuple[object, ...] | None:
    """All that decides how a layer is written; None of one with more to it than settings, a weight and a bias."""
    kind = type(module)
    if module._modules or module._forward_pre_hooks or module._state_dict_hooks:
        return None
    tensors = {**module._parameters, **module._buffers}
    if not is_of_torch(kind) and not tensors.keys() <= {"weight", "bias"}:
        return None
    settings = [(name, value) for name, value in vars(module).items() if name not in _OF_ALL]
    for _, value in settings:
        if type(value) not in _PLAIN and not (type(value) in (tuple, list) and _PLAIN.issuperset(map(type, value))):
            return None
    shapes = [(name, None if tensor is None else tuple(tensor.shape)) for name, tensor in tensors.items()]
    return kind, repr(settings), tuple(shapes), frozenset(module._non_persistent_buffers_set)


def _description(module: nn.Module) -> tuple[Any, ...]:
    shapes = [(name, tuple(tensor.shape)) for name, tensor in module.state_dict(keep_vars=True).items()]
    shown = is_of_torch(type(module)) or is_own(type(module))  # all that counts is in `repr`
    return repr(module), shapes, {} if shown else _settings(module)


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a forward may read besides tensors, and `repr` need not show."""
    plain = {name: value for name, value in vars(module).items() if name[0] != "_" and name != "training"}
    return {name: value for name, value in plain.items() if has_literal(value)}


def _parameters(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor that have a say in what it builds."""
    return _parameters_of(kind.__init__)


@functools.lru_cache(256)
def _parameters_of(constructor: Callable[..., None]) -> dict[str, inspect.Parameter]:
    parameters = list(inspect.signature(constructor).parameters.values())[1:]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    skipped = {"device", "dtype"}
    return {p.name: p for p in parameters if p.kind not in variadic and p.name not in skipped and p.name[0] != "_"}


def _is_positional(kind: type[nn.Module], name: str) -> bool:
    return _parameters(kind)[name].default is inspect.Parameter.empty and name not in _BY_KEYWORD


def _arguments(module: nn.Module, path: str, *, compact: bool) -> dict[str, Any]:
    kind = type(module)
    arguments: dict[str, Any] = {}
    for name, parameter in _parameters(kind).items():
        required = parameter.default is inspect.Parameter.empty
        value = _read(module, name)
        if compact:
            value = _compact(value)
        if value is _MISSING and required:
            raise ConversionError(
                f"{path}: {kind.__module__}.{kind.__qualname__} cannot be written as source: it does not keep its "
                f"argument {name} as an attribute; set self.{name} = {name} in its __init__."
            )
        if value is not _MISSING and (required or not _same(value, parameter.default)):
            arguments[name] = value
    if (
        arguments.get("stride", _MISSING) == arguments.get("kernel_size")
        and _parameters(kind)["stride"].default is None
    ):
        del arguments["stride"]  # a pooling's stride is its window unless said otherwise
    return arguments


def _read(module: nn.Module, name: str) -> Any:
    reader = _READERS.get((type(module).__name__, name))
    if reader is not None:
        return reader(module)
    value = getattr(module, name, _MISSING)
    if name == "bias" and (value is None or isinstance(value, torch.Tensor)):
        return value is not None
    return value if has_literal(value) else _MISSING


def _compact(value: Any) -> Any:
    """An int for a tuple of equal ints, which torch's layers read alike."""
    if isinstance(value, tuple) and value and all(type(item) is int and item == value[0] for item in value):
        return value[0]
    return value


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


def declare_tensor(
    tensor: torch.Tensor,
    path: str,
    law: Law | None = None,
    *,
    weight: torch.Tensor | None = None,
    persistent: bool = True,
    in_place: bool = False,
) -> tuple[str, Doc]:
    """How a parameter or buffer that belongs to no layer is declared: `parameter` or `buffer`, and its expression.

    Args:
        tensor: a buffer with its values; a parameter.
        path: where it stands.
        law: how a parameter's first values are drawn.
        weight: of a bias, the weight declared before it, whose connections its values follow.
        persistent: whether the state_dict has it; if not, its values are written out.
        in_place: a tensor that there is already takes its place, so that its values do not matter.

    Raises:
        ConversionError: if a buffer outside the state_dict is too large to be written out.
    """
    dtype: dict[str, Doc] = {} if tensor.dtype == torch.float32 else {"dtype": str(tensor.dtype)}
    if not persistent and not in_place:
        if tensor.numel() > 64 or tensor.is_meta:
            raise ConversionError(
                f"{path}: a buffer of shape {tuple(tensor.shape)} outside the state_dict cannot be written into "
                "source; register it with persistent=True."
            )
        return "buffer", call("torch.tensor", literal(tensor.tolist()), **dtype)
    roles = _KERNEL if tensor.dim() == len(_KERNEL) else ["channels"] * tensor.dim()
    sizes = [literal(size, role if size > 1 else "") for size, role in zip(tensor.shape, roles, strict=True)]
    if in_place:
        values = call("torch.empty", *(sizes or ["()"]), **dtype)
    elif isinstance(tensor, nn.Parameter):
        values = first_values(path.rpartition(".")[2], tensor, law, sizes, dtype, weight)
    else:
        values = kept_values(tensor, sizes, dtype)
    if not isinstance(tensor, nn.Parameter):
        return "buffer", values
    frozen = {} if tensor.requires_grad else {"requires_grad": "False"}
    return "parameter", call("nn.Parameter", values, **frozen)
