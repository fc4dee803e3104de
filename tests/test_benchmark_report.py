"""The report: what it says, that the page stands alone, and that no label covers another."""

from __future__ import annotations

import csv
import itertools
import re
import shutil
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

from td_compiler.benchmarks.experiments.accuracy import EXPERIMENT as ACCURACY
from td_compiler.benchmarks.experiments.heatmaps.explain import EXPERIMENT as EXPLAIN
from td_compiler.benchmarks.experiments.heatmaps.explain import encode
from td_compiler.benchmarks.experiments.heatmaps.localise import EXPERIMENT as LOCALISE
from td_compiler.benchmarks.experiments.heatmaps.tables import BASELINES, FORMS
from td_compiler.benchmarks.lab.journal import Result, Results
from td_compiler.benchmarks.lab.packing import packed
from td_compiler.benchmarks.show import command as report
from td_compiler.benchmarks.show.document import Document
from td_compiler.benchmarks.show.findings import findings
from td_compiler.benchmarks.show.style import COLOURS, INK, NAMES, STYLE, figure, save
from td_compiler.benchmarks.show.tables import Figure, Section, Table
from td_compiler.benchmarks.training.networks import ARRANGEMENTS, NetworkSpec
from td_compiler.benchmarks.training.recipes import Recipe
from td_compiler.benchmarks.training.training import Training

_COUNT = itertools.count()


def result(experiment: str, job: dict[str, Any], figures: dict[str, Any]) -> Result:
    versions = {"python": "3.11", "device": "CPU"}
    command = f"python -m benchmarks {experiment} --profile quick"
    conditions = {"revision": 1, "precision": "32-true", "processor": "CPU", "sources": "", "content": "0"}
    key, finished = f"{next(_COUNT):016x}", "2026-01-31T12:00:00"
    return Result(key, experiment, "a job", job, conditions, figures, command, versions, 1.0, finished)


def training(arrangement: str, data: str, network: str, run: int, **options: int) -> dict[str, Any]:
    spec = NetworkSpec(network, arrangement, tuple(options.items()))
    return asdict(Training(spec, data, Recipe(), run, 6_000, 500))


TESTED = 1_000


def rights(share: float, run: int, offset: int = 0) -> list[int]:
    """As many right images as the share says; which ones differs a little from run to run."""
    order = np.random.default_rng(0).permutation(TESTED)
    order = np.roll(order, 7 * run + offset)
    right = np.zeros(TESTED, dtype=int)
    right[order[: round(share * TESTED)]] = 1
    return right.tolist()


def accuracies(data: str, network: str, means: dict[str, float], runs: int = 2) -> list[Result]:
    """Runs of each arrangement, 0.2 points apart, around its mean in %."""
    costs = {"parameters": 7670, "macs": 829_000, "seconds_per_epoch": 1.5, "peak_memory": 3 << 20, "history": []}
    counts = {"train_images": 6_000, "test_images": TESTED}
    found = []
    for way, value in means.items():
        for run in range(runs):
            share = value / 100 + 0.002 * (run - (runs - 1) / 2)
            figures = {"accuracy": share, "right": packed(rights(share, run)), **costs, **counts}
            arrangement, _, width = way.partition(" ")
            options = {"head_width": int(width)} if width else {}
            found.append(
                result("accuracy", {"training": training(arrangement, data, network, run, **options)}, figures)
            )
    return found


def localisation(
    data: str, network: str, gain: float, runs: int = 1, accuracy: float = 1.0, blob: float = 0.1
) -> list[Result]:
    """TD's heat maps cover so much more of objects of 100 pixels than BU's 20 of 100; and the blob so much."""
    chance, found = np.random.default_rng(1), []
    for run in range(runs):
        maps: dict[str, Any] = {}
        for who, share in {**dict.fromkeys(BASELINES, blob), "bottom_up": 0.2, "top_down": 0.2 + gain}.items():
            hits = np.clip(np.round(100 * share + chance.normal(0, 2, 200)), 0, 100)
            maps[who] = {place: {form: packed(np.stack([hits, hits + 20], 1)) for form in FORMS} for place in PLACES}
        job = {"training": training("mirror", data, network, run), "bottom_up": training("bu", data, network, run)}
        right = {side: packed(rights(accuracy, run)) for side in ("bottom_up", "top_down")}
        counts = {"train_images": 6_000, "test_images": 200, "images": 200}
        figures = {**counts, "right": right, "objects": packed([100] * 200), "maps": maps}
        found.append(result("localise", {**job, "threshold": 0.2}, figures))
    return found


PLACES = ("last", "stage")


def explanation(arrangement: str, taps: int) -> Result:
    names = ["input", *(f"stage{2**i}" for i in range(taps))]
    maps = {name: encode(torch.rand(1, 28, 28)) for name in [*names, "saliency", "guided"]}
    shown = {
        "explained": "Ankle boot and more",
        "found": "Bag",
        "labelled": True,
        "image": encode(torch.rand(1, 28, 28)),
    }
    job = {"training": training(arrangement, "fashion-mnist", "nin_light", 0), "given": None, "shown": "fashion-mnist"}
    return result("explain", job, {"taps": names, "images": [{**shown, "maps": maps}] * 2})


def everything() -> list[Result]:
    means = dict(zip(ARRANGEMENTS, (99.0, 98.8, 98.7, 98.9), strict=True))
    both = [
        accuracies(data, network, means) for data in ("mnist", "fashion-mnist") for network in ("lenet_fc", "nin_light")
    ]
    places = [localisation(data, "nin_light", 0.03) for data in ("mnist", "fashion-mnist")]
    return [*itertools.chain(*both, *places), explanation("bu", 4), explanation("mirror", 5)]


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
    from td_compiler.benchmarks.show.command import document

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


def verdicts(results: list[Result], **more: float) -> dict[str, tuple[Any, ...]]:
    """By claim what is found, runs, images and the verdict."""
    (table,) = findings(results, **more).tables
    assert table.columns[3:8] == ("found", "runs", "images", "recipe", "verdict")
    return {str(row[0]): (row[3], row[4], row[5], row[7]) for row in table.rows}


CLAIMS = {
    "under": "ResNet32: TD is under BU, by 5.7 points",
    "above": "ResNet32: TD reversed is above BU",
    "width": "ResNet32: 32 filters at the end make TD better, by about 4 points",
    "par": "TD is on par with BU or above (at most 0.5 points under it)",
    "iou": "TD localises better, by +0.38 to +3.9 points of IoU",
}


def test_verdicts_are_what_whole_intervals_say() -> None:
    means = {"bu": 88.0, "mirror": 82.3, "reversed": 80.0, "mirror 32": 82.5}
    found = verdicts(accuracies("cifar10-jpeg", "resnet32", means, runs=4))
    assert found[CLAIMS["under"]][0].startswith("-5.70 [-") and found[CLAIMS["under"]][1:] == (4, TESTED, "supported")
    assert found[CLAIMS["above"]][3] == "contradicted"
    assert found[CLAIMS["width"]][3] == "undecided"
    far = verdicts(accuracies("cifar10-jpeg", "resnet32", {"bu": 88.0, "mirror": 60.0}, runs=4))
    assert far[CLAIMS["under"]][3] == "undecided", "it is under BU, but not by 5.7 points"


def test_too_few_runs_and_weak_networks_are_not_tested() -> None:
    """Of the issue: three claims rested on one run of one epoch at 25 %."""
    one = verdicts(accuracies("cifar10-jpeg", "resnet32", {"bu": 88.0, "mirror": 82.3}, runs=1))
    assert one[CLAIMS["under"]] == ("1 of at least 3 paired runs", 1, None, "not tested")
    weak = verdicts(accuracies("cifar10-jpeg", "resnet32", {"bu": 25.0, "mirror": 19.3}, runs=4))
    assert weak[CLAIMS["under"]] == ("BU reaches 25.0 %, not 82.0 %", 4, None, "not tested")
    other = accuracies("mnist", "timm:resnet18", {"bu": 90.0, "mirror": 95.0}, runs=3)
    found, *_, word = verdicts(other)[CLAIMS["par"]]
    assert word == "supported" and found.endswith("; BU reaches 90.0 %, which nothing here can judge")
    assert verdicts(other, floor=99.0)[CLAIMS["par"]][3] == "not tested"


def test_no_localisation_is_claimed_that_beats_no_baseline() -> None:
    gains = {"supported": (0.032, 0.1), "undecided": (0.032, 0.5), "contradicted": (-0.05, 0.1)}
    for word, (gain, blob) in gains.items():
        found = verdicts(localisation("mnist", "nin_light", gain, runs=4, accuracy=0.98, blob=blob))[CLAIMS["iou"]]
        assert found[3] == word and ("does not beat: whole image; blob" in found[0]) is (blob > 0.2), found
    weak = localisation("mnist", "nin_light", 0.032, runs=4, accuracy=0.9)
    assert verdicts(weak)[CLAIMS["iou"]][0] == "BU reaches 90.0 %, not 96.2 %"
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
    for each in figures:
        assert covered(each.draw) == []


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
    two = write(tmp_path / "two", localisation("mnist", "nin_light", 0.02))
    with (one / "results.jsonl").open("a") as file:
        file.write('{"key": "half a li')
    assert report.main([str(one), str(two), "--out", str(tmp_path / "report")], "report") == 0
    assert "line 5 is damaged" in capsys.readouterr().err
    text = (tmp_path / "report" / "report.md").read_text()
    assert "99.00 ± 0.14" in text and "IoU, TD - it" in text
    images = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert len(images) == 3 and all((tmp_path / "report" / image).is_file() for image in images)
    assert "Top-down networks: results" in (tmp_path / "report" / "report.html").read_text()
    with (tmp_path / "report" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 and {row["experiment"] for row in rows} == {"accuracy", "localise"}
    assert {
        (row["arrangement"], row["run"], row["precision"], row["threshold"]) for row in rows if row["accuracy"]
    } == {(way, run, "32-true", "") for way in ("bu", "mirror") for run in "01"}
    assert rows[0]["milestones"] == "[0.5, 0.8]" and float(rows[0]["accuracy"]) == 0.989


def test_columns_of_numbers_stand_right_and_cells_name_their_columns() -> None:
    rows = (
        ("lenet", "98.98 ± 0.16", None, "3.3M (3.95x)", "91 %", "up"),
        ("nin", "1,204", 2.5, "34.8 MiB", "-0.3", "3 up"),
    )
    page = Table("T", ("net", "a", "b", "c", "d", "<e>"), rows).html()
    assert re.findall(r"<th scope='col'( class='number')?>", page) == ["", *[" class='number'"] * 4, ""]
    assert page.count("data-column='&lt;e&gt;'") == 2 and "<table class='cards'>" in page
    assert "cards" not in Table("T", ("net", "a"), (("x", 1),)).html()
    said = Table("T", ("net", "found"), (("x", "-0.03 [-0.46, +0.39] points; TD does not beat it"),)).html()
    assert "class='number'" not in said


def test_one_folder_is_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "build" / "benchmarks", accuracies("mnist", "lenet_fc", {"bu": 50.0}))
    write(tmp_path / "own", accuracies("mnist", "lenet_fc", {"bu": 99.0}))
    assert report.main(["--out", "own"], "report") == 0
    text = (tmp_path / "own" / "report.md").read_text()
    assert "99.00" in text and "50.00" not in text
    assert not (tmp_path / "build" / "benchmarks" / "report.md").exists()


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a$b", "50 $x_{", "`x` | y", "a]\\(b"])
def test_names_are_text_in_pages_and_figures(tmp_path: Path, name: str) -> None:
    results = accuracies("mnist", f"{name}.py:Net", {"bu": 99.0, "mirror": 98.0})
    assert report.main([str(write(tmp_path, results))], "report") == 0
    for page in ("report.md", "report.html"):
        text = (tmp_path / page).read_text()
        assert "<script>" not in text and "Net" in text
    (picture,) = re.findall(r"!\[.*\]\((.*)\)", (tmp_path / "report.md").read_text())
    assert (tmp_path / picture).is_file()


def test_a_picture_survives_a_rewrite_that_fails(tmp_path: Path) -> None:
    """As on a full disk: what was drawn before stays."""
    path = tmp_path / "a.svg"
    save(lambda: figure(2, 2), path)
    before = path.read_bytes()

    def fails() -> Plot:
        plot = figure(2, 2)

        def savefig(target: Any, **_: Any) -> None:
            Path(target).write_bytes(before[:50])
            raise OSError(28, "No space left on device")

        plot.savefig = savefig  # type: ignore[assignment,method-assign]
        return plot

    with pytest.raises(OSError, match="No space"):
        save(fails, path)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["a.svg"]


def test_a_folder_without_results_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)], "report") == 2
    assert f"There is no {tmp_path / 'results.jsonl'}" in capsys.readouterr().err


def test_results_of_another_version_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [result("localise", {"network": "lenet_fc"}, {})])
    assert report.main([str(tmp_path)], "report") == 2
    assert "The results of localise were written by another version of it" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


QUICK = Path(__file__).parents[1] / "benchmarks" / "results" / "quick"


def test_the_page_of_an_earlier_version_says_so_before_its_first_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both its forms; and its results, which keep no answers, are refused by name."""
    for name, table in (("report.md", "\n| "), ("report.html", "<table")):
        head = (QUICK / name).read_text().partition(table)[0]
        assert "made by an earlier version: before upsampling and merges were folded" in head, name
    shutil.copy(QUICK / "results.jsonl", tmp_path)
    assert report.main([str(tmp_path)], "report") == 2
    assert "results.jsonl" in capsys.readouterr().err and not (tmp_path / "report.md").exists()
