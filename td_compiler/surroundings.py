"""What surrounds a call of this package, kept out of what it makes, and left as it was.

Gradients switched off, inference mode, autocast, another default device: a caller's modes are his own business. A
network that is made under them is the one that is made without. Random numbers come from a copy of the caller's
generator, so that they follow his seed and his generator does not move. All of this is held by the thread that calls;
nothing that other threads see is changed.
"""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

with warnings.catch_warnings():
    import torch.fx.experimental.symbolic_shapes  # the meta device needs it; it adds warning filters

__all__ = ["neutral_surroundings", "own_draws", "resting_collector"]

_DEVICE_TYPES = ("cpu", "cuda", "xpu", "mps")


@contextlib.contextmanager
def neutral_surroundings(*, draws: bool = True) -> Iterator[None]:
    """Gradients on, no inference mode, no autocast, the CPU as default device, random numbers of its own.

    To be used as a context or as a decorator. Without `draws` nothing may be drawn but under :func:`own_draws`, which
    takes time at every call of torch.
    """
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in _DEVICE_TYPES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_python_generators())
        if draws:
            stack.enter_context(own_draws())
        yield


@contextlib.contextmanager
def _python_generators() -> Iterator[None]:
    """Put back the generators of Python and NumPy, which nothing here uses, if a network's own code has.

    They are the whole process's, and by custom the main thread's: a call from another thread would disturb that one by
    putting them back.
    """
    numpy = sys.modules.get("numpy")
    before = random.getstate(), numpy.random.get_state() if numpy is not None else None
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            if random.getstate() != before[0]:
                random.setstate(before[0])
            if numpy is not None:
                numpy.random.set_state(before[1])


class _Collector:
    """How many conversions want Python's collector of cycles to rest, and whether it ran before the first of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting = 0
        self.ran = False


_collector = _Collector()


@contextlib.contextmanager
def resting_collector() -> Iterator[None]:
    """Let Python's collector of cycles rest.

    A conversion makes many small objects that stay until its end. With a large library in memory the collector looks
    through all of that, in vain, once or more in each conversion, which takes up to a third of its time. Of several
    threads the last one to come out lets it run again.
    """
    with _collector.lock:
        if not _collector.waiting:
            _collector.ran = gc.isenabled()
            gc.disable()
        _collector.waiting += 1
    try:
        yield
    finally:
        with _collector.lock:
            _collector.waiting -= 1
            if not _collector.waiting and _collector.ran:
                gc.enable()


class _Thread(threading.local):
    """Whether this thread runs on a generator that stands in for the caller's."""

    swapped = False


_thread = _Thread()


def own_draws() -> TorchFunctionMode:
    """A context in which random numbers come from a copy of the caller's generator."""
    return _OwnDraws()


class _OwnDraws(TorchFunctionMode):
    """Torch functions draw from a copy of the caller's generator, one for every device, made when it is first needed.

    What takes a generator is given that one. The others, such as dropout, run on the caller's while it stands where the
    copy does, and it is put back at once.
    """

    _swapping = threading.RLock()  # one thread may have several of these, one inside the other

    def __init__(self) -> None:
        super().__init__()
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name not in _DRAW_BY_GENERATOR and name not in _DRAW_BY_DEFAULT:
            return function(*args, **kwargs)
        device = _device_of(args, kwargs)
        given = kwargs.get("generator") is not None or any(isinstance(each, torch.Generator) for each in args)
        if given or _thread.swapped or device.type not in ("cpu", "cuda"):  # on the meta device nothing is drawn
            return function(*args, **kwargs)
        own = self._generator(device)
        if name in _DRAW_BY_GENERATOR:
            return function(*args, **{**kwargs, "generator": own})
        with self._swapping:
            before = _state(device)
            _set_state(device, own.get_state())
            _thread.swapped = True
            try:
                return function(*args, **kwargs)
            finally:
                _thread.swapped = False
                own.set_state(_state(device))
                _set_state(device, before)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
            self._generators[device].set_state(_state(device))
        return self._generators[device]


def _device_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """Where a call draws: on its first tensor's device, or on that which it names."""
    first = next((each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)), None)
    named = kwargs.get("device")
    device = torch.device(named) if named is not None else first.device if first is not None else torch.device("cpu")
    if str(device) == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _state(device: torch.device) -> torch.Tensor:
    return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)


def _set_state(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)


_DRAW_BY_GENERATOR = {
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"),
    *("normal_", "uniform_", "bernoulli_", "exponential_", "geometric_", "cauchy_", "log_normal_", "random_"),
    *("kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_", "trunc_normal_", "orthogonal_"),
}
_DRAW_BY_DEFAULT = {
    *("rand_like", "randn_like", "randint_like", "rrelu", "rrelu_", "gumbel_softmax", "fractional_max_pool2d"),
    *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "native_dropout", "feature_dropout"),
    *("alpha_dropout", "alpha_dropout_", "feature_alpha_dropout"),
}
