"""A top-down network is at home in PyTorch: one network of each family, one test a feature."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.func import functional_call, grad, stack_module_state, vmap

from td_compiler import from_pretrained, reverse, zoo
from tests.support.distributed_worker import PROCESSES, gradients, step, work
from tests.support.families import FAMILIES, converted

each = pytest.mark.parametrize("name", FAMILIES)

# A fixed pooling to 7x7 before a flatten, as VGG's, has no form in ONNX that follows the image's size.
FIXED_SIZE_IN_ONNX = {"vgg11_bn"}


def draw(count: int = 2, height: int = 64, width: int = 64, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """The largest difference, against the largest value."""
    assert actual.shape == expected.shape
    assert (actual.double() - expected.double()).abs().max() <= tolerance * expected.abs().max().double()


def without_dropout(network: nn.Module) -> nn.Module:
    """Training mode, so that norms use the batch, but nothing is left to chance."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    return network


@each
def test_compile(name: str) -> None:
    """As one graph, with the same scores, gradients and running statistics in training."""
    torch._dynamo.reset()
    images = draw(dtype=torch.float64)
    plain, twin = (without_dropout(copy.deepcopy(converted(name))).double() for _ in range(2))
    compiled = torch.compile(twin, fullgraph=True, backend="eager")
    torch.testing.assert_close(step(compiled, images), step(plain, images))
    for key, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(twin)[key], gradient, msg=key)
    for value, other in zip(twin.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(value, other)


def test_compile_for_inference() -> None:
    """Down to machine code where there is a C++ compiler, else to the graphs that inductor would get."""
    backend = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"
    td = reverse(zoo.lenet_fc()).eval()
    images = draw()[:, :1, :28, :28]
    torch._dynamo.reset()
    with torch.no_grad():
        assert_near(torch.compile(td, fullgraph=True, backend=backend)(images), td(images), 1e-5)


def export(network: nn.Module, *, any_size: bool = True) -> ExportedProgram:
    # More than the coarsest scale: PyTorch takes a map of one pixel for a special case.
    side = Dim.DYNAMIC(min=33) if any_size else None
    return torch.export.export(network, (draw(),), dynamic_shapes=({0: Dim.DYNAMIC, 2: side, 3: side},))


exported = functools.cache(lambda name: export(converted(name)))


@each
def test_export(name: str) -> None:
    """One exported program takes any batch and any image size."""
    program = exported(name).module()
    for size in ((1, 64, 64), (3, 77, 51)):
        assert_near(program(draw(*size)), converted(name)(draw(*size)), 1e-5)


@each
def test_onnx(name: str, tmp_path: Path) -> None:
    """ONNX Runtime computes the same, for any batch and, but for the exception, any image size."""
    any_size = name not in FIXED_SIZE_IN_ONNX
    program = exported(name) if any_size else export(converted(name), any_size=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        # Unoptimised, which takes two thirds of the time: ONNX Runtime optimises what it loads.
        torch.onnx.export(program, dynamo=True, optimize=False, verbose=False).save(tmp_path / "td.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "td.onnx", providers=["CPUExecutionProvider"])
    for size in ((1, 64, 64), (3, 77, 51) if any_size else (3, 64, 64)):
        (scores,) = session.run(None, {session.get_inputs()[0].name: draw(*size).numpy()})
        assert_near(torch.from_numpy(scores), converted(name)(draw(*size)), 1e-4)


@each
def test_jit_trace(name: str) -> None:
    """A trace takes any batch and image size, too, once it has been saved and loaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace may miss; and that TorchScript grows old
        traced = torch.jit.trace(converted(name), draw(), check_trace=False)
        torch.jit.save(traced, file := io.BytesIO())
        file.seek(0)
        traced = torch.jit.load(file)
    for size in ((1, 64, 64), (3, 77, 51)):
        assert_near(traced(draw(*size)), converted(name)(draw(*size)), 1e-5)


@each
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)], ids=["bf16", "fp16"])
def test_autocast(name: str, dtype: torch.dtype, tolerance: float) -> None:
    td = copy.deepcopy(converted(name))
    with torch.autocast("cpu", dtype), torch.no_grad():
        scores = td(draw())
    assert scores.dtype == dtype
    assert_near(scores, td(draw()), tolerance)
    with torch.autocast("cpu", dtype):
        loss = td.train()(draw()).float().logsumexp(1).mean()
    loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(td).values())


@each
def test_channels_last(name: str) -> None:
    td = copy.deepcopy(converted(name)).to(memory_format=torch.channels_last)
    outputs: list[torch.Tensor] = []
    for module in td.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    scores = td(draw().to(memory_format=torch.channels_last))
    assert outputs and all(output.is_contiguous(memory_format=torch.channels_last) for output in outputs)
    assert_near(scores, converted(name)(draw()), 1e-5)


@each
def test_per_sample_gradients(name: str) -> None:
    """`vmap(grad(...))` over images is a loop over images."""
    td = copy.deepcopy(converted(name)).double()
    parameters, buffers = dict(td.named_parameters()), dict(td.named_buffers())
    images = draw(3, 33, 40, torch.float64)

    def loss(parameters: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return functional_call(td, (parameters, buffers), (image[None],)).square().sum()

    together = vmap(grad(loss), (None, 0))(parameters, images)
    for index, image in enumerate(images):
        alone = torch.autograd.grad(loss(parameters, image), list(parameters.values()))
        for key, expected in zip(parameters, alone, strict=True):
            torch.testing.assert_close(together[key][index], expected, msg=key)


@each
def test_ensemble(name: str) -> None:
    """One `vmap` runs networks of different weights, and leaves the network's own alone."""
    td = copy.deepcopy(converted(name)).double()
    images = draw(2, 33, 40, torch.float64)
    before = td(images)
    other = copy.deepcopy(td)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    stacked = stack_module_state([td, other])
    scores = vmap(lambda *state: functional_call(td, state, (images,)))(*stacked)
    torch.testing.assert_close(scores, torch.stack([before, other(images)]))
    assert torch.equal(td(images), before)


def save_and_load(network: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda network: pickle.loads(pickle.dumps(network)),
    "save": save_and_load,
}


@each
@pytest.mark.parametrize("way", COPIES)
def test_copy(name: str, way: str) -> None:
    """A copy computes the same bits, and shares no weight with its original."""
    td = converted(name)
    before, twin = td(draw()), COPIES[way](td)
    assert torch.equal(twin(draw()), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(td(draw()), before)


@each
def test_image_gradient(name: str) -> None:
    """No gradient is computed for the image unless it is asked for."""
    td = converted(name)
    assert not any(level.requires_grad for level in td.pyramid(draw()))
    images = draw().requires_grad_()
    (gradient,) = torch.autograd.grad(td(images).square().sum(), images)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.fixture(scope="module")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every family's gradients from processes that train together."""
    folder = tmp_path_factory.mktemp("distributed")
    torch.save(draw(2 * PROCESSES, dtype=torch.float64), folder / "images.pt")
    for name in FAMILIES:
        torch.save(without_dropout(copy.deepcopy(converted(name))).double(), folder / f"{name}.network")
    torch.multiprocessing.spawn(work, (folder,), nprocs=PROCESSES)
    return folder


@each
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_distributed(name: str, way: str, distributed: Path) -> None:
    """The processes' gradients are the mean of those of each part of the images."""
    found: dict[str, Any] = torch.load(distributed / f"{name}.gradients", weights_only=True)
    td = without_dropout(copy.deepcopy(converted(name))).double()
    for images in draw(2 * PROCESSES, dtype=torch.float64).chunk(PROCESSES):
        step(td, images)
    for key, gradient in gradients(td).items():
        torch.testing.assert_close(found[way][key], gradient / PROCESSES, msg=key)


def test_emitted_source(tmp_path: Path) -> None:
    """The network as source compiles whole and exports as the network itself does."""
    td = converted("mobilenet_v2")
    model = from_pretrained(td.save_pretrained(tmp_path), trust_code=True)
    torch._dynamo.reset()
    assert_near(torch.compile(model, fullgraph=True, backend="eager")(draw()), td(draw()), 1e-5)
    assert_near(export(model).module()(draw(3, 77, 51)), td(draw(3, 77, 51)), 1e-5)
