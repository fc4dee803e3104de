"""Every case of the corpus: a network converts to the right one, or is refused with what helps.

A file of the corpus has `CASES` (label, make_network, image size (C, H, W) or None, options of `reverse`) and
`check(label, model, td)`; `EXPECT` is "converts" (default), "refused" or "either"; `WORDS` must stand in a refusal (a
tuple among them: any one of its members) and `UNWANTED` must not.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from td_compiler import ConversionError, reverse

HERE = Path(__file__).parent


def load(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"fault_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(HERE))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(HERE))
    return module


def cases() -> Iterator[Any]:
    for path in sorted(HERE.glob("[0-9]*_*.py")):
        module = load(path)
        for label, make, size, options in module.CASES:
            yield pytest.param(module, label, make, size, options, id=f"{path.stem}[{label}]")


def given(module: types.ModuleType, name: str, default: Any, label: str) -> Any:
    """A file's `EXPECT`, `WORDS` or `UNWANTED`, for all its cases or by label."""
    value = getattr(module, name, default)
    return value.get(label, default) if isinstance(value, Mapping) else value


def missing(message: str, words: tuple[Any, ...]) -> list[Any]:
    choices = [word if isinstance(word, tuple) else (word,) for word in words]
    return [choice for choice in choices if not any(word.lower() in message.lower() for word in choice)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("module", "label", "make", "size", "options"), list(cases()))
def test_case(
    module: types.ModuleType,
    label: str,
    make: Callable[[], nn.Module],
    size: tuple[int, int, int] | None,
    options: dict[str, Any],
) -> None:
    expect = given(module, "EXPECT", "converts", label)
    torch.manual_seed(0)
    model = make()
    try:
        if hasattr(module, "convert"):
            td = module.convert(label, model, size, dict(options))
        else:
            td = reverse(model, **({} if size is None else {"input_size": size}), **options)
    except ConversionError as error:
        assert expect != "converts", f"refused: {error}"
        assert not missing(str(error), given(module, "WORDS", (), label)), str(error)
        assert not any(word.lower() in str(error).lower() for word in given(module, "UNWANTED", (), label)), str(error)
        return
    assert expect != "refused", "converted without a word"
    module.check(label, model, td)
