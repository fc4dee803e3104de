"""The documentation: its code runs and prints what it says, its links lead somewhere, its messages are real."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision

from td_compiler import reverse
from td_compiler.capture import leaves
from td_compiler.cli.app import app
from td_compiler.graph import operators
from tests.support.benchmark_data import write_folder, write_mnist

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
BLOCK = re.compile(
    r"^(?:<!-- needs (?P<needs>\w+) -->\n)?```(?P<language>\w+)(?: title=\"(?P<file>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        line: that it begins at.
        file: the name that it has as a file of its own; "" for none.
        needs: the package without which it is passed over; "" for none.
    """

    language: str
    text: str
    line: int
    file: str
    needs: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            found["language"],
            found["text"],
            text.count("\n", 0, found.start("text")),
            found["file"] or "",
            found["needs"] or "",
        )
        for found in BLOCK.finditer(text)
    ]


@pytest.fixture
def own_tables() -> Iterator[None]:
    """Rows and leaves that a test adds are gone after it."""
    tables: list[Any] = [operators.LAYERS, operators.FUNCTIONS, operators.METHODS, leaves._LEAVES]
    before = [table.copy() for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights that the pages' readers have from the page on own images."""
    file = tmp_path_factory.mktemp("trained") / "td_resnet18.pt"
    network = reverse(torchvision.models.resnet18(num_classes=3), input_size=(3, 64, 64))
    torch.save(network.state_dict(), file)
    return file


@pytest.fixture
def workplace(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder: tiny data sets, a photograph, weights, and the environment of one of torchrun's processes."""
    write_mnist(tmp_path / "data", train=48, test=10)
    (tmp_path / "data" / "MNIST").rename(tmp_path / "data" / "FashionMNIST")
    shutil.copy(write_folder(tmp_path / "images", side=80, each=3) / "test" / "a" / "0.png", tmp_path / "photo.jpg")
    shutil.copy(trained, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    torch.manual_seed(0)
    return tmp_path


WITH_CODE = [page for page in PAGES if any(block.language in {"python", "sh"} for block in blocks(page))]


@pytest.mark.filterwarnings("ignore")  # what other people's tools say of torch
@pytest.mark.usefixtures("own_tables")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_runs_and_prints_what_the_page_says(
    page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page's Python is one module, run block by block; lines of its shell that call `tdc` run where they stand."""
    module = page_as_module(page, workplace)
    monkeypatch.setitem(sys.modules, module.__name__, module)  # source emission looks a class's file up there
    shown = blocks(page)
    for block, next_block in zip(shown, [*shown[1:], None], strict=True):
        if block.needs and not importlib.util.find_spec(block.needs):
            continue
        if block.file:
            (workplace / block.file).write_text(block.text, encoding="utf-8")
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, str(module.__file__), "exec"), module.__dict__)
        for line in block.text.splitlines() if block.language == "sh" else ():
            if line.startswith("tdc "):
                with pytest.raises(SystemExit) as ended:
                    app(shlex.split(line, comments=True)[1:])
                assert ended.value.code == 0, f"{line}\n{capsys.readouterr().err}"
        printed = capsys.readouterr().out
        if block.language == "python" and next_block and next_block.language == "text":
            assert printed == next_block.text, f"{page.name}, line {block.line}"


def page_as_module(page: Path, folder: Path) -> ModuleType:
    """A module whose file is the page's Python, on the page's own lines."""
    lines = [""] * page.read_text(encoding="utf-8").count("\n")
    for block in blocks(page):
        if block.language == "python":
            lines[block.line : block.line + block.text.count("\n")] = block.text.splitlines()
    file = folder / f"page_{page.stem.replace('-', '_')}.py"
    file.write_text("\n".join(lines), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    return importlib.util.module_from_spec(spec)


def test_messages_are_those_of_the_sources() -> None:
    """Every error that the FAQ names by its message can be raised with it."""
    said: list[str] = []
    for folder in ("td_compiler", "passes"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                    said.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    said.append(node.value)
    text = "\n".join(said)
    titles = re.findall(r"^### (.*)$", (DOCS / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert titles
    for title in titles:
        for fragment in title.replace("ResNetTD", "...").split("..."):
            assert fragment.strip() in text, title


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebooks_are_their_python_files_with_outputs_fit_to_be_read(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    python = notebook.with_suffix(".py").read_text(encoding="utf-8").replace("# %matplotlib", "%matplotlib")
    outputs = []
    for cell in cells:
        lines = "".join(cell["source"]).splitlines()
        if cell["cell_type"] == "markdown":
            lines = [f"# {line}".rstrip() for line in lines]
        assert "\n".join(lines) in python, lines[:1]
        outputs += cell.get("outputs", [])
    assert outputs
    for output in outputs:
        assert output["output_type"] != "error" and output.get("name") != "stderr"
        text = "".join(output.get("text", ())) + "".join(output.get("data", {}).get("text/plain", ()))
        assert not re.search(r"/(home|root|tmp|usr|opt)/", text)


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
