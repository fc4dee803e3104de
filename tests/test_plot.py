"""The pictures of `tdc inspect --plot`: what stands in them, and that nothing lies over anything else."""

from __future__ import annotations

import errno
import itertools
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from td_compiler import ConversionError, TopDownNet, reverse, zoo
from td_compiler.cli import app as cli
from td_compiler.sources.names import load_source

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch
from matplotlib.transforms import Bbox

from td_compiler.report.plot import draw_networks, plot_networks


class Lopsided(nn.Module):
    """An oblong image, maps smaller in width alone, many filters beside few, 'valid' convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(12, 1, 3)
        self.two = nn.Conv2d(1, 4096, 3)
        self.fc = nn.Linear(4096, 21_843)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.one(x)), (1, 3))
        return self.fc(F.relu(self.two(x)).mean((2, 3)))


def load(source: str, **options: Any) -> TopDownNet:
    loaded = load_source(source, {}, device="meta")
    return reverse(loaded.model, **{"input_size": loaded.input_size, **options})


NETWORKS = {
    "lenet": lambda: load("zoo:lenet_fc", merge="concat"),
    "resnet152": lambda: load("torchvision:resnet152"),
    "mobilenet": lambda: load("torchvision:mobilenet_v2", merge="add"),
    "pooled": lambda: load("torchvision:mobilenet_v2", head="pooled"),
    "vgg": lambda: load("torchvision:vgg11_bn"),
    "lopsided": lambda: reverse(Lopsided().to("meta"), input_size=(12, 100, 902)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_label_lies_over_another_a_box_or_the_edge(name: str) -> None:
    if name not in {"lenet", "lopsided"}:
        pytest.importorskip("torchvision")
    figure = draw_networks(NETWORKS[name]())
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.axes[0]
    labels = {text: text.get_window_extent(renderer) for text in axes.texts if text.get_text()}
    shapes = [patch.get_window_extent(renderer) for patch in axes.patches]
    assert len(labels) > 20
    for one, other in itertools.combinations(labels, 2):
        assert not Bbox.intersection(labels[one], labels[other]), (one, other)
    for text, place in labels.items():
        assert min(place.x0, place.y0) >= 0, text
        assert place.x1 <= figure.bbox.width and place.y1 <= figure.bbox.height, text
        for shape in shapes:
            inside = shape.x0 <= place.x0 and place.x1 <= shape.x1 and shape.y0 <= place.y0 and place.y1 <= shape.y1
            assert inside or not Bbox.intersection(shape, place), (text, shape)
    for pair in itertools.combinations(shapes, 2):
        overlap = Bbox.intersection(*pair)
        assert overlap is None or min(overlap.width, overlap.height) < 2, pair


def test_what_stands_in_a_picture_of_lenet() -> None:
    axes = draw_networks(reverse(zoo.lenet_fc()), "LeNet").axes[0]
    said = [text.get_text() for text in axes.texts]
    assert said.count("6 filters") == said.count("16 filters") == said.count("32 filters") == 2
    assert [line for line in said if line.startswith("1/")] == ["1/1", "1/2", "1/4"]
    assert {"7.7k parameters, 829.5k MACs", "pool: 10 classes", "LeNet, images of 1x28x28"} <= set(said)
    assert {"1x1 conv, 6", "1x1 conv, 16"} <= set(said)  # transitions, before the merges
    assert {"6", "16"} <= set(said)  # the entries' widths
    assert said.count("x2") == said.count("/2") == said.count("m") == 2
    # Merges at scales 1 and 2, and the "+" of the figure that explains them.
    assert sum(isinstance(patch, Circle) for patch in axes.patches) == 3
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    sizes = sorted({round(box.get_height() ** 2 / 1.1**2 * 28, 3) for box in boxes if box.get_height() >= 0.5})
    assert sizes == [7, 14, 28]  # the maps' sides
    # Images 3, entries 2 (the coarsest stage reads the image itself), stages 3 + 3 with their maps' heights.
    assert len([box for box in boxes if box.get_height() >= 0.5]) == 11


def test_first_blocks_stand_before_merges_and_a_pooled_head_pools_first() -> None:
    residual = [text.get_text() for text in draw_networks(load("zoo:resnet32")).axes[0].texts]
    assert {"first block, 16", "first block, 32"} <= set(residual)
    assert residual.count("4 units") == 2  # what follows those blocks, of 5 units
    assert residual.count("5 units") == 4  # bottom-up, and the coarsest stage
    mobile = [text.get_text() for text in draw_networks(NETWORKS["pooled"]()).axes[0].texts]
    assert [line for line in mobile if "pool" in line] == ["pool", "pool", "pool first"]


def test_an_image_stands_where_the_network_reads_it() -> None:
    network, image = reverse(zoo.lenet_fc()), torch.rand(1, 28, 28)
    axes = draw_networks(network, image=image).axes[0]
    sizes = [shown.get_array().shape[:2] for shown in axes.images]
    assert sizes == [(7, 7), (14, 14), (28, 28)]
    torch.testing.assert_close(torch.from_numpy(axes.images[-1].get_array()[..., 0]), image[0])
    boxes = {tuple(round(edge, 6) for edge in patch.get_window_extent().extents) for patch in axes.patches}
    for shown in axes.images:
        assert tuple(round(edge, 6) for edge in shown.get_window_extent().extents) in boxes


def test_a_merge_that_only_adds_is_drawn_as_a_sum() -> None:
    said = [text.get_text() for text in draw_networks(reverse(zoo.lenet_fc(), merge="add")).axes[0].texts]
    assert said.count("+") == 3
    assert "conv 3x3" not in said


def test_a_file_is_the_same_every_time_and_its_text_can_be_read(tmp_path: Path) -> None:
    network = reverse(zoo.lenet_fc())
    for name in ("a.svg", "b.svg", "a.png"):
        plot_networks(network, tmp_path / name)
    svg = (tmp_path / "a.svg").read_bytes()
    assert svg == (tmp_path / "b.svg").read_bytes()
    assert "32 filters" in "".join(ElementTree.fromstring(svg).itertext())
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_survives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, path = reverse(zoo.lenet_fc()), tmp_path / "a.svg"
    plot_networks(network, path)
    before = path.read_bytes()

    def full(figure: Figure, target: Path, **_: object) -> None:
        Path(target).write_bytes(before[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        plot_networks(network, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--image a.png", "--plot FILE draws"),
        ("--image none.png --plot b.png", "there is no image none.png"),
        ("--image words.png --plot b.png", "words.png cannot be read as an image"),
    ],
)
def test_an_image_that_cannot_be_shown_is_said_before_anything_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.png").write_text("words")
    result = CliRunner().invoke(cli.app, ["inspect", "zoo:lenet_fc", *given.split()])
    assert result.exit_code == 2 and said in result.stderr and result.stdout == ""
    assert not (tmp_path / "b.png").exists()


def test_without_matplotlib_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConversionError, match=r"pip install 'td-compiler\[plot\]'"):
        plot_networks(reverse(zoo.lenet_fc()), tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("a.pdf", ".svg or .png"),
        ("nowhere/a.svg", "no folder"),
        ("folder.svg", "not a file"),
        ("mine.svg", "exists: give --force to replace it"),
    ],
)
def test_a_picture_that_cannot_be_written_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "mine.svg").touch()
    result = CliRunner().invoke(cli.app, ["inspect", "zoo:no_such_network", "--plot", file])
    assert result.exit_code == 2
    assert said in result.stderr


def test_inspect_plots_beside_its_table(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["inspect", "zoo:lenet_fc", "--plot", str(tmp_path / "a.svg")])
    assert result.exit_code == 0
    assert "TD/BU" in result.stdout
    assert result.stdout.endswith(f"wrote {tmp_path / 'a.svg'}\n")
    assert "lenet_fc, images of 1x28x28" in (tmp_path / "a.svg").read_text()
