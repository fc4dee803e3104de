"""The documentation: its code runs and prints what it says, its links lead somewhere, its pictures are up to date."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from td_compiler.capture import leaves
from td_compiler.graph import operators

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture
def own_tables() -> Iterator[None]:
    """Rows and leaves that a test adds are gone after it."""
    tables: list[Any] = [operators.LAYERS, operators.FUNCTIONS, operators.METHODS, leaves._LEAVES]
    before = [table.copy() for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


def blocks(page: Path, language: str) -> str:
    """All fenced blocks of one language on a page, one after the other."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no block in {language}"
    return "\n".join(found) if language == "python" else "".join(found)


@pytest.mark.usefixtures("own_tables")
def test_adding_an_operator_works_as_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "adding-an-operator.md"
    file = tmp_path / "own_operator.py"
    file.write_text(blocks(page, "python"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("own_operator", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "own_operator", module)  # source emission looks the class's file up there
    spec.loader.exec_module(module)
    assert capsys.readouterr().out == blocks(page, "text")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"
