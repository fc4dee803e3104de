"""The package as it is installed: what it exports, what importing it costs, what its wheel holds."""

import importlib.metadata
import re
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
    there = [*(ROOT / "td_compiler").rglob("__init__.py"), *(ROOT / "benchmarks").rglob("__init__.py")]
    names = [".".join(path.parent.relative_to(ROOT).parts) for path in there]
    inside = {name if name.startswith("td_compiler") else f"td_compiler.{name}" for name in names}
    assert set(listed) == inside | {"td_compiler.passes"}


def test_the_compiler_imports_no_benchmarks() -> None:
    """They are an extra: what is imported on use alone stands inside functions."""
    files = [*(ROOT / "td_compiler").rglob("*.py"), *(ROOT / "passes").rglob("*.py")]
    found = [
        file.name for file in files if re.search(r"^(from|import) td_compiler\.benchmarks", file.read_text(), re.M)
    ]
    assert not found


def test_experiments_without_their_extra_say_how_to_install_it(tmp_path: Path) -> None:
    code = (
        "import sys; from td_compiler.benchmarks import __main__, extra\n"
        "extra.find_spec = lambda name: None; __main__.main(['accuracy', 'lenet_fc'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.count("\n") == 1 and "pip install 'td-compiler[bench]'" in run.stderr
