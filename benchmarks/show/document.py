"""Sections as one self-contained web page and as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from td_compiler.benchmarks.show.style import INK, svg
from td_compiler.benchmarks.show.tables import Figure, Section, escaped

__all__ = ["Document"]

_PAGE = Path(__file__).with_name("page.html")
_PHONE = 270  # points: what is wider does not fit a page of 400 pixels


@dataclass(frozen=True)
class Document:
    """What a report says.

    Attributes:
        title, intro: the heading and a paragraph below it.
        sections: one for each experiment.
        made: lines that say with what it was made: versions, devices, dates.
        commands: those that made the whole of it, at its top.
    """

    title: str
    intro: str
    sections: Sequence[Section]
    made: Sequence[str]
    commands: Sequence[str] = ()

    def html(self) -> str:
        """The page, with all figures in it; it loads nothing."""
        return Template(_PAGE.read_text(encoding="utf-8")).substitute(
            title=html.escape(self.title),
            intro=f"<p>{html.escape(self.intro)}</p>{_commands_html(self.commands)}",
            contents="\n".join(
                f"<li><a href='#{_anchor(s.title)}'>{html.escape(s.title)}</a></li>" for s in self.sections
            ),
            sections="\n".join(map(_section_html, self.sections)),
            made="\n".join(f"<p class='soft'>{html.escape(line)}</p>" for line in self.made),
        )

    def markdown(self, figures: str) -> str:
        """The same as Markdown; figures are the files `NAME.svg` in the folder `figures`, a relative path."""
        parts = [f"# {escaped(self.title)}", escaped(self.intro), _commands_markdown(self.commands)]
        for section in self.sections:
            parts += [
                f"## {escaped(section.title)}",
                escaped(section.intro),
                *(table.markdown() for table in section.tables),
            ]
            for figure in section.figures:
                parts += [f"![{escaped(figure.title)}]({figures}/{figure.name}.svg)", _sentence(figure)]
            parts.append(_commands_markdown(section.commands))
        return "\n\n".join(part for part in [*parts, *map(escaped, self.made)] if part) + "\n"


def _section_html(section: Section) -> str:
    parts = [f"<h2 id='{_anchor(section.title)}'>{html.escape(section.title)}</h2>"]
    if section.intro:
        parts.append(f"<p>{html.escape(section.intro)}</p>")
    parts += map(_figure_html, section.figures)
    parts += [f"<div class='wide'>{table.html()}</div>" for table in section.tables]
    return f"<section>{''.join([*parts, _commands_html(section.commands)])}</section>"


def _commands_html(commands: Sequence[str]) -> str:
    if not commands:
        return ""
    name = "The command that made this" if len(commands) == 1 else "The commands that made this"
    return f"<details open><summary>{name}</summary><pre>{html.escape(chr(10).join(commands))}</pre></details>"


def _commands_markdown(commands: Sequence[str]) -> str:
    return "\n".join(f"    {' '.join(command.split())}" for command in commands)


def _figure_html(figure: Figure) -> str:
    caption = f"<strong>{html.escape(figure.title)}.</strong> {html.escape(figure.caption)}"
    source = svg(figure.draw)
    width = re.search(r'<svg[^>]* width="([\d.]+)pt"', source)
    goes_on = width is not None and float(width[1]) > _PHONE
    hint = "<p class='hint'>The figure goes on to the right.</p>" if goes_on else ""
    picture = f"<div class='wide' tabindex='0'>{_inline(source, figure.name)}</div>"
    return f"<figure>{picture}{hint}<figcaption>{caption}</figcaption></figure>"


def _inline(source: str, name: str) -> str:
    """A figure's SVG for a place in a page: in the page's own ink, with ids that are there once."""
    picture = source[source.index("<svg") :].replace(INK, "currentColor")
    picture = re.sub(r'((?:xlink:)?href="#)', rf"\g<1>{name}-", picture).replace("url(#", f"url(#{name}-")
    known: set[str] = set()

    def own(match: re.Match[str]) -> str:
        key = match[1]
        if key in known:  # the same picture twice: matplotlib names it after its content
            return ""
        known.add(key)
        return f' id="{name}-{key}"'

    return re.sub(r'\sid="([^"]*)"', own, picture)


def _sentence(figure: Figure) -> str:
    return f"**{escaped(figure.title)}.** {escaped(figure.caption)}".strip()


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
