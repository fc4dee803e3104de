"""`tdc export`: what other programs compute from its files is what the network computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from td_compiler import ConversionError, reverse, zoo
from td_compiler.network.base import TopDownNet
from tests.test_cli import folder, tdc

__all__ = ["folder"]  # a fixture


@pytest.fixture
def trained(folder: Path) -> TopDownNet:
    """A network whose weights are in td.safetensors, under the names of a training program."""
    torch.manual_seed(5)
    td = reverse(zoo.lenet_fc(), init="fresh").eval()
    save_file({f"net.{name}": value for name, value in td.state_dict().items()}, "td.safetensors")
    return td


def test_onnx_has_the_weights_and_takes_any_batch_and_size(trained: TopDownNet) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    printed = tdc("export", "zoo:lenet_fc", "-o", "td.onnx", "--weights", "td.safetensors")
    assert printed.startswith("wrote td.onnx\ntakes any number of images (N, 1, H, W) of any size\n")
    assert printed.count("scores differ by") == 2
    session = onnxruntime.InferenceSession("td.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(4, 1, 31, 45)
    (scores,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(scores), trained(images), rtol=1e-4, atol=1e-4)


def test_a_program_of_torch_export_from_a_file_that_convert_wrote(trained: TopDownNet) -> None:
    tdc("convert", "zoo:lenet_fc")
    words = ("lenet_fc_td.py", "-o", "td.pt2", "--weights", "td.safetensors")
    assert "says no image size: give --input-size" in tdc("export", *words, code=2)
    assert "takes no --filters" in tdc("export", *words, "--filters", "uniform", code=2)
    tdc("export", *words, "--input-size", "1,28,28")
    images = torch.randn(3, 1, 29, 40)
    with torch.no_grad():
        program = torch.export.load("td.pt2").module()
        torch.testing.assert_close(program(images), trained(images), rtol=1e-5, atol=1e-5)
    assert "td.pt2 exists: give --force" in tdc("export", *words, code=2)


def test_what_cannot_be_exported_is_one_line_and_leaves_no_file(
    trained: TopDownNet, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {each.name for each in folder.iterdir()}
    for words, said in {
        "zoo:lenet_fc -o td.tflite": "OUT is a .onnx or .pt2 file",
        "zoo:lenet_fc -o no/td.pt2": "there is no folder no",
        "zoo:lenet_fc -o td.pt2 --weights no.pth": "--weights no.pth: there is no such file",
        "zoo:nin_light -o td.pt2 --weights td.safetensors": "does not fit",
        "zoo:lenet_fc --filters uniform -o td.pt2 --weights td.safetensors": "has the shape",
    }.items():
        assert said in tdc("export", *words.split(), code=2)
    Path("tiny.txt").write_text("no weights")
    assert "cannot be read as a checkpoint" in tdc(
        "export", *["zoo:lenet_fc", "-o", "t.pt2", "--weights", "tiny.txt"], code=1
    )
    Path("tiny.txt").unlink()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'td-compiler[export]'" in tdc("export", "zoo:lenet_fc", "-o", "td.onnx", code=1)
    assert {each.name for each in folder.iterdir()} - {"__pycache__"} == before


def test_what_computes_something_else_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from td_compiler.cli import export

    network = torch.nn.Conv2d(3, 4, 1)
    (line,) = export.compared(network, network, 3, [(2, 5, 6)])
    assert line.startswith("2 random images of 3x5x6: scores differ by 0.0e+00 at most, of ")
    with pytest.raises(ConversionError, match="differs from the network by"):
        export.compared(network, lambda images: network(images) * 1.001, 3, [(2, 5, 6)])
    with pytest.raises(ConversionError, match=r"gives \(2, 3, 5, 6\) for .*, not \(2, 4, 5, 6\)"):
        export.compared(network, lambda images: images, 3, [(2, 5, 6)])

    monkeypatch.setattr(export, "exported", lambda *_: torch.zeros(2) + torch.zeros(3))
    assert "the network cannot be exported: RuntimeError: The size" in tdc("export", "tiny.py", "-o", "t.pt2", code=1)
    assert not Path("t.pt2").exists()
