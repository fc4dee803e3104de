"""The repository's files as pages of the site: what a page links to outside `docs/` becomes a page, too.

The pages' links are those of the repository, so that they work on the site and where the files are read as they are.
mkdocs calls the functions whose names begin with `on_` (`hooks` in `mkdocs.yml`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from td_compiler.cli.app import app

DOCS = Path(__file__).parent
ROOT = DOCS.parent
NAV_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "develop/contributing.md",
}  # in the navigation
LANGUAGES = {".py": "python", ".toml": "toml", ".jsonl": "json", ".csv": "text", ".yml": "yaml"}
COMMANDS = "<!-- what `tdc` says of its commands stands here on the site -->"
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
ROLE = re.compile(r":(?:func|meth|mod|class|attr):(?=<code|<span)")

_sources: dict[str, Path] = {}  # a page of the site -> the file that it shows
_pages: dict[Path, str] = {}  # a file outside the pages of docs/ -> its place on the site


def _links(file: Path) -> list[Path]:
    """The files that a page links to."""
    found = [match[2] for match in LINK.finditer(file.read_text(encoding="utf-8"))]
    return [(file.parent / path).resolve() for path in found if ":" not in path]


def _is_page(file: Path) -> bool:
    return file.suffix == ".md" and file.is_relative_to(DOCS)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to, and what those pages link to in turn."""
    waiting = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    _sources.update({file.relative_to(DOCS).as_posix(): file for file in waiting})
    waiting += [ROOT / name for name in NAV_PAGES]
    seen = set(waiting)
    while waiting:
        file = waiting.pop()
        if not _is_page(file) and file.is_relative_to(ROOT):
            files.append(_added(file, config))
        if file.suffix == ".md":
            new = {target for target in _links(file) if target.exists() and _needs_a_page(target)} - seen
            seen |= new
            waiting += sorted(new)
    return files


def _needs_a_page(target: Path) -> bool:
    shown = target.suffix in {".svg", ".png", ".md"} and target.is_relative_to(DOCS)
    return not shown and target != ROOT / "README.md"


def _added(file: Path, config: MkDocsConfig) -> File:
    name = file.relative_to(ROOT).as_posix()
    if file.suffix in {".png", ".svg", ".html"}:
        place, made = f"repository/{name}", {"abs_src_path": str(file)}
    elif file.suffix == ".md":
        place, made = NAV_PAGES.get(name, f"repository/{name}"), {"content": file.read_text(encoding="utf-8")}
        _sources[place] = file
    else:
        place, made = f"repository/{name}.md", {"content": _shown(file, name)}
    _pages[file] = place
    return File.generated(config, place, **made)  # type: ignore[arg-type]


def _shown(file: Path, name: str) -> str:
    """A page that shows a file, or what is in a folder."""
    title = f"---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n# `{name}`\n\n"
    if file.is_dir():
        held = sorted(each.name for each in file.iterdir() if not each.name.startswith(("_", ".")))
        return title + "".join(f"- `{each}`\n" for each in held)
    text = file.read_text(encoding="utf-8")
    return f"{title}````{LANGUAGES.get(file.suffix, 'text')}\n{text}````\n"


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where their files are on the site, and put in what `tdc` says of itself."""
    place = page.file.src_uri
    source = _sources.get(place)

    def led(match: re.Match[str]) -> str:
        path = match[2]
        target = (source.parent / path).resolve() if source and ":" not in path else None
        if target == ROOT / "README.md":
            on_site = "index.md"
        elif target in _pages:
            on_site = _pages[target]
        elif target and _is_page(target):
            on_site = target.relative_to(DOCS).as_posix()
        else:
            return match[0]
        return match[1] + os.path.relpath(on_site, os.path.dirname(place) or ".") + match[3]

    markdown = LINK.sub(led, markdown) if source else markdown
    return markdown.replace(COMMANDS, _commands()) if COMMANDS in markdown else markdown


def _commands() -> str:
    """A section for each command of `tdc`: its `--help`."""
    sections = []
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        words = [sys.executable, "-c", "from td_compiler.cli.app import main; main()", name, "--help"]
        environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
        text = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
        sections.append(f"## `tdc {name}`\n\n```text\n{text.strip()}\n```\n")
    return "\n".join(sections)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name functions as Sphinx does; the site shows the name alone."""
    return ROLE.sub("", html)
