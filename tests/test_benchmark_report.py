"""The report: what it says, that the page stands alone, and that no label covers another."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Plot
from matplotlib.text import Text

from benchmarks.experiments.accuracy import EXPERIMENT as ACCURACY
from benchmarks.experiments.explain import EXPERIMENT as EXPLAIN
from benchmarks.experiments.explain.pictures import encode
from benchmarks.experiments.localise import EXPERIMENT as LOCALISE
from benchmarks.lab.journal import Result, Results
from benchmarks.show import report
from benchmarks.show.document import Document
from benchmarks.show.findings import findings
from benchmarks.show.style import COLOURS, INK, NAMES, STYLE
from benchmarks.show.tables import Figure, Section, Table
from benchmarks.training.networks import ARRANGEMENTS, NetworkSpec
from benchmarks.training.recipes import Recipe
from benchmarks.training.training import Training

_COUNT = itertools.count()


def result(experiment: str, job: dict[str, Any], figures: dict[str, Any]) -> Result:
    versions = {"python": "3.11", "device": "CPU"}
    command = f"python -m benchmarks {experiment} --profile quick"
    return Result(
        f"{next(_COUNT):016x}", experiment, "a job", job, figures, command, versions, 1.0, "2026-01-31T12:00:00"
    )


def training(arrangement: str, data: str, network: str, run: int, **options: int) -> dict[str, Any]:
    spec = NetworkSpec(network, arrangement, tuple(options.items()))
    return asdict(Training(spec, data, Recipe(), run, 6_000, 500))


def accuracies(data: str, network: str, means: dict[str, float]) -> list[Result]:
    """Two runs of each arrangement, 0.2 points around its mean in %."""
    costs = {"parameters": 7670, "macs": 829_000, "seconds_per_epoch": 1.5, "peak_memory": 3 << 20, "history": []}
    return [
        result(
            "accuracy",
            {"training": training(way, data, network, run)},
            {"accuracy": value / 100 + 0.002 * (run - 0.5), **costs},
        )
        for way, value in means.items()
        for run in (0, 1)
    ]


def localisation(data: str, network: str, gain: float) -> Result:
    bottom_up = {"precision": 0.3, "recall": 0.8, "iou": 0.2, "image_iou": 0.2}
    top_down = {name: value + gain for name, value in bottom_up.items()}
    job = {side: training(way, data, network, 0) for side, way in (("bottom_up", "bu"), ("top_down", "mirror"))}
    figures = {side: {"last": each, "stage": each} for side, each in (("bottom_up", bottom_up), ("top_down", top_down))}
    return result("localise", {**job, "threshold": 0.2}, {"images": 400, "tested": 500, **figures})


def explanation(arrangement: str, taps: int) -> Result:
    names = ["input", *(f"stage{2**i}" for i in range(taps))]
    maps = {name: encode(torch.rand(1, 28, 28)) for name in [*names, "saliency", "guided"]}
    shown = {
        "explained": "Ankle boot and more",
        "found": "Bag",
        "labelled": True,
        "image": encode(torch.rand(1, 28, 28)),
    }
    job = {"training": training(arrangement, "fashion-mnist", "nin_light", 0), "given": None, "data": "fashion-mnist"}
    return result("explain", job, {"taps": names, "images": [{**shown, "maps": maps}] * 2})


def everything() -> list[Result]:
    means = dict(zip(ARRANGEMENTS, (99.0, 98.8, 98.7, 98.9), strict=True))
    both = [
        accuracies(data, network, means) for data in ("mnist", "fashion-mnist") for network in ("lenet_fc", "nin_light")
    ]
    places = [localisation(data, "nin_light", 0.03) for data in ("mnist", "fashion-mnist")]
    return [*itertools.chain(*both), *places, explanation("bu", 4), explanation("mirror", 5)]


class Page(HTMLParser):
    """What a page refers to and which ids it gives."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.references += [value or "" for name, value in attrs if name in {"href", "src", "xlink:href"}]
        self.references += re.findall(r"url\(([^)]*)\)", " ".join(value or "" for _, value in attrs))


def page_of(results: list[Result]) -> str:
    from benchmarks.show.command import document

    return document(results).html()


def test_the_page_stands_alone_and_every_reference_leads_somewhere() -> None:
    text = page_of(everything())
    page = Page(text)
    assert len(page.ids) == len(set(page.ids)) > 100
    inside = [each for each in page.references if not each.startswith("data:")]
    assert inside and {each.lstrip("#") for each in inside} <= set(page.ids)
    assert INK not in text and "currentColor" in text  # the figures' ink is the page's, light or dark
    assert text.count("<svg") == 4  # accuracy, precision and recall, IoU, heat maps
    assert "python -m benchmarks localise --profile quick" in text


def test_markup_in_names_is_text() -> None:
    section = Section("a <b>", "1 < 2", [Table("<i>", ("x & y",), (("<u>",),))], [], ["cmd <file>"])
    text = Document("<title>", "", [section], []).html()
    assert not re.search("<(b|i|u|file)>", text)
    assert "&lt;b&gt;" in text and "x &amp; y" in text


def test_findings_are_measured_against_the_papers() -> None:
    means = {"bu": 88.0, "mirror": 82.3, "reversed": 88.5}
    results = [*accuracies("cifar10-jpeg", "resnet32", means), localisation("mnist", "nin_light", -0.01)]
    (table,) = findings(results).tables
    found = {(row[0], row[3], row[4]) for row in table.rows}
    assert ("ResNet32: TD is under BU, by 5.7 points", "-5.70 points", "yes") in found
    assert ("ResNet32: TD reversed is above BU", "+0.50 points", "yes") in found
    assert ("TD localises better: IoU +0.4 to +3.9 points", "-1.00 points", "no") in found
    assert all("resnet32 on CIFAR-10 (JPEG)" in str(row[2]) for row in table.rows[:2])
    assert not findings([]).tables


def covered(draw: Callable[[], Plot]) -> list[tuple[str, str]]:
    """The pairs of labels of a figure that cover each other."""
    with matplotlib.rc_context(dict(STYLE)):
        plot = draw()
        renderer = FigureCanvasAgg(plot).get_renderer()
        plot.draw(renderer)
        off = {
            text
            for axes in plot.axes
            if not axes.axison
            for axis in (axes.xaxis, axes.yaxis)
            for text in axis.findobj(Text)
        }
        texts = [
            text for text in plot.findobj(Text) if text.get_visible() and text.get_text().strip() and text not in off
        ]
        boxes = [(text.get_text(), text.get_window_extent(renderer).padded(-0.5)) for text in texts]
    assert len(boxes) > 5
    return [(a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2) if one.overlaps(two)]


@pytest.mark.parametrize("experiment", [ACCURACY, LOCALISE, EXPLAIN], ids=lambda each: each.name)
def test_no_label_covers_another(experiment: Any) -> None:
    figures: list[Figure] = experiment.section(
        [each for each in everything() if each.experiment == experiment.name]
    ).figures
    assert figures
    for figure in figures:
        assert covered(figure.draw) == []


# How dichromats see linear RGB: Vienot, Brettel and Mollon 1999, and for tritanopia Machado et al. 2009.
_PROTAN = [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]]
_DEUTAN = [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]
_TRITAN = [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]


@pytest.mark.parametrize("sight", [np.eye(3), _PROTAN, _DEUTAN, _TRITAN], ids=["all", "protan", "deutan", "tritan"])
def test_arrangements_are_told_apart_under_colour_blindness(sight: Any) -> None:
    assert list(COLOURS) == list(NAMES) == list(ARRANGEMENTS)
    seen = [
        np.clip(np.asarray(sight) @ np.asarray(to_rgb(each)) ** 2.2, 0, 1) ** (1 / 2.2) for each in COLOURS.values()
    ]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 0.15


def write(folder: Path, results: list[Result]) -> Path:
    for each in results:
        Results(folder / "results.jsonl").add(each)
    return folder


def test_the_command_writes_page_markdown_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "one", accuracies("mnist", "lenet_fc", {"bu": 99.0, "mirror": 98.8}))
    two = write(tmp_path / "two", [localisation("mnist", "nin_light", 0.02)])
    with (one / "results.jsonl").open("a") as file:
        file.write('{"key": "half a li')
    assert report.main([str(one), str(two), "--out", str(tmp_path / "report")], "report") == 0
    assert "line 5 is damaged" in capsys.readouterr().err
    text = (tmp_path / "report" / "report.md").read_text()
    assert "99.00 ± 0.14" in text and "+2.00" in text
    images = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert len(images) == 3 and all((tmp_path / "report" / image).is_file() for image in images)
    assert "Top-down networks: results" in (tmp_path / "report" / "report.html").read_text()


def test_a_folder_without_results_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)], "report") == 2
    assert f"There is no {tmp_path / 'results.jsonl'}" in capsys.readouterr().err


def test_results_of_another_version_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [result("localise", {"network": "lenet_fc"}, {})])
    assert report.main([str(tmp_path)], "report") == 2
    assert "The results of localise were written by another version of it" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
