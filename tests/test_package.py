"""The package as it is installed: what it exports, what importing it costs, what its wheel holds."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import td_compiler

ROOT = Path(__file__).parents[1]


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, td_compiler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", td_compiler.__all__)
def test_every_exported_name_is_there_and_listed(name: str) -> None:
    assert getattr(td_compiler, name) is not None
    assert name in dir(td_compiler)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'revers'"):
        td_compiler.revers  # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    assert td_compiler.__version__ == importlib.metadata.version("td-compiler")


def test_every_package_folder_is_installed() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "td_compiler").rglob("__init__.py")]
    assert set(listed) == {".".join(folder.parts) for folder in folders} | {"td_compiler.passes"}
