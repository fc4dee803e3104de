"""Other people's tools work on a top-down network as on the network that it was made of: one test a tool."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import captum.attr
import pytest
import segmentation_models_pytorch
import timm
import torch
import torch_pruning
import torchinfo
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torchvision.models.feature_extraction import create_feature_extractor

import td_compiler.timm
from td_compiler import TopDownNet, reverse
from tests.support.families import FAMILIES, converted

pytestmark = pytest.mark.filterwarnings("ignore")  # what the tools say of torch


class Own(nn.Module):
    """A network of a user's: functions in the forward, and a block without a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bodies = nn.ModuleList(nn.Conv2d(8 * 2**i, 16 * 2**i, 3, padding=1) for i in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 * 2**i) for i in range(2))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for conv, norm in zip(self.bodies, self.norms, strict=True):
            x = torch.relu(norm(conv(torch.max_pool2d(x, 2))))
        return self.head(x.mean((2, 3)))


NETWORKS = [*FAMILIES, "own"]
each = pytest.mark.parametrize("name", NETWORKS)


def each_but(*left_out: str, **reasons: str) -> pytest.MarkDecorator:
    """Every network but those left out; some have to fail, for a reason that lies in the tool."""
    marks = {name: [pytest.mark.xfail(strict=True, reason=reason)] for name, reason in reasons.items()}
    names = [name for name in NETWORKS if name not in left_out]
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks.get(name, [])) for name in names])


def draw() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def network(name: str) -> TopDownNet:
    if name == "own":
        torch.manual_seed(0)
        return reverse(Own(), input_size=(3, 64, 64)).eval()
    return copy.deepcopy(converted(name))


def near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@each
def test_hooks(name: str) -> None:
    """Whatever computes something is called as a module, and a hook that changes its output changes the scores."""
    td = network(name)
    fired: set[str] = set()
    for path, module in td.named_modules():
        module.register_forward_hook(lambda *_, path=path: fired.add(path))
    before = td(draw())
    silent = {path for path, module in td.named_modules() if path not in fired}
    holders = (nn.ModuleDict, nn.ModuleList, nn.Sequential)
    assert all(isinstance(td.get_submodule(path), holders) for path in silent), silent
    units = [path for path in fired if path.startswith(("entry.", "merge.")) and path.count(".") == 1]
    entries = list(td.get_submodule("entry").children())  # the coarsest stage of a plain network reads its image itself
    assert len(entries) >= len(td.scales) - 1 and len(units) == len(entries) + len(td.scales) - 1
    for path in units:
        handle = td.get_submodule(path).register_forward_hook(lambda _, __, output: output + 1)
        assert not torch.equal(td(draw()), before), path
        handle.remove()


def test_containers_of_the_source_fire() -> None:
    td = network("resnet18")
    fired: list[str] = []
    for path in ("layer4", "layer4.0", "layer3", "layer2", "merge.1", "entry.32"):
        td.get_submodule(path).register_forward_hook(lambda *_, path=path: fired.append(path))
    td(draw())
    assert sorted(fired) == ["entry.32", "layer2", "layer3", "layer4", "layer4.0", "merge.1"]
    assert td.layer4[0](torch.randn(1, 512, 4, 4)).shape == (1, 512, 4, 4)  # type: ignore[operator]


class Adapter(nn.Module):
    """A low-rank path beside a block that keeps its width."""

    def __init__(self, block: nn.Module, width: int) -> None:
        super().__init__()
        self.block, self.down, self.up = block, nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.block(*inputs)
        return made + self.up(self.down(made))


@each
def test_a_block_can_be_wrapped(name: str) -> None:
    td = network(name)
    before = td(draw())
    width = td.feature_info[-1]["num_chs"]
    finest = td.get_submodule("merge.1")
    td.set_submodule("merge.1", Adapter(finest, width))
    assert torch.equal(td(draw()), before)
    td(draw()).sum().backward()
    assert td.get_submodule("merge.1.up").weight.grad is not None


@each
def test_captum(name: str) -> None:
    """Grad-CAM of the finest merge is what the gradient of its map says."""
    td = network(name)
    maps: list[torch.Tensor] = []
    layer = td.get_submodule("merge.1")
    heat = captum.attr.LayerGradCam(td, layer).attribute(draw(), target=1)
    with_map = layer.register_forward_hook(lambda _, __, output: maps.append(output))
    score = td(draw())[:, 1].sum()
    with_map.remove()
    (gradient,) = torch.autograd.grad(score, maps[0])
    near(heat, (gradient.mean((2, 3), keepdim=True) * maps[0]).sum(1, keepdim=True).detach())


@each
def test_pytorch_grad_cam(name: str) -> None:
    td = network(name)
    heat = GradCAM(model=td, target_layers=[td.get_submodule("merge.1")])(
        input_tensor=draw(), targets=[ClassifierOutputTarget(1)] * 2
    )
    assert heat.shape == (2, 64, 64) and heat.max() > 0


@each
def test_torch_fx(name: str) -> None:
    td = network(name)
    traced = torch.fx.symbolic_trace(td)
    near(traced(draw()), td(draw()))
    assert any(node.target == "merge.1.conv" for node in torch.fx.symbolic_trace(td.plain()).graph.nodes)


@each
def test_feature_extractor(name: str) -> None:
    """torchvision's, which traces in both modes."""
    td = network(name)
    seen: list[torch.Tensor] = []
    last = td.get_submodule("merge.1")
    extractor = create_feature_extractor(td, {"merge.1": "map"})
    last.register_forward_hook(lambda _, __, output: seen.append(output))
    td(draw())
    near(extractor(draw())["map"], seen[0])


@each
def test_fx_quantisation(name: str) -> None:
    td = network(name).plain()
    observed = prepare_fx(copy.deepcopy(td), get_default_qconfig_mapping("x86"), (draw(),))
    observed(draw())
    near(convert_fx(observed)(draw()), td(draw()), 0.2)


# Where norms stand before convolutions torchao takes a minute, however small the network: DenseNet is one for all.
@each_but("resnet32", resnet18="torchao fails on shortcuts, those of the bottom-up network too")
def test_pt2e_quantisation(name: str) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    td = network(name).plain()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    observed = prepare_pt2e(torch.export.export(td, (draw(),)).module(), quantizer)
    observed(draw())
    near(convert_pt2e(observed)(draw()), td(draw()), 0.2)


@each_but(shufflenet_v2="Torch-Pruning does not follow a shuffle of channels, in the bottom-up network either")
def test_torch_pruning(name: str) -> None:
    td = network(name).plain()
    before = sum(p.numel() for p in td.parameters())
    classifier = td.get_classifier()
    torch_pruning.pruner.MetaPruner(
        td, draw(), torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=0.5, ignored_layers=[classifier]
    ).step()
    assert td(draw()).shape == (2, 10)
    assert sum(p.numel() for p in td.parameters()) < 0.5 * before
    td(draw()).sum().backward()


@each
def test_torchinfo(name: str) -> None:
    td = network(name)
    summary = torchinfo.summary(td, input_data=draw(), verbose=0)
    layers = {path for path, module in td.named_modules() if not list(module.children())}
    assert len(layers) <= len(summary.summary_list)
    assert summary.total_params >= sum(p.numel() for p in td.parameters())


@each
def test_timms_weights_average(name: str) -> None:
    td = network(name).train()
    average = ModelEmaV3(td, decay=0.5)
    first = copy.deepcopy(td)
    with torch.no_grad():
        for parameter in td.parameters():
            parameter.add_(1)
    average.update(td)
    for key, value in average.module.named_parameters():
        torch.testing.assert_close(value, first.get_parameter(key) + 0.5)


@each
def test_timms_layer_decay(name: str) -> None:
    """Rates grow in the order in which layers run: the coarsest entry learns slowest, the classifier fastest."""
    td = network(name)
    groups = param_groups_layer_decay(td, weight_decay=0.05, layer_decay=0.7)
    rates = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert len(rates) == len(list(td.parameters()))
    coarse, *_, fine = td.get_submodule("entry").children()
    entries = [rates[id(next(entry.parameters()))] for entry in (coarse, fine)]
    classifier = rates[id(next(td.get_classifier().parameters()))]
    assert entries[0] < entries[1] < classifier == 1


@each
def test_timms_contract(name: str) -> None:
    td = network(name)
    last = td.forward_features(draw())
    assert last.shape == (2, td.num_features, 64, 64)
    assert torch.equal(td.forward_head(last), td(draw()))
    features = td.forward_head(last, pre_logits=True)
    assert torch.equal(td.get_classifier()(features).flatten(1), td(draw()))
    maps = td.forward_intermediates(draw(), intermediates_only=True)
    assert [(info["num_chs"], info["reduction"]) for info in td.feature_info] == [
        (each.shape[1], 64 // each.shape[2]) for each in maps
    ]
    final, some = td.forward_intermediates(draw(), indices=[0, 1], stop_early=True)
    assert torch.equal(final, maps[1]) and all(torch.equal(a, b) for a, b in zip(some, maps, strict=False))
    td.set_grad_checkpointing()
    assert len(td.checkpointed) == len(td.scales)
    td.reset_classifier(7)
    assert td(draw()).shape == (2, 7) and td.num_classes == 7
    td.reset_classifier(0)
    assert td(draw()).shape == features.shape


def test_features_only() -> None:
    encoder: Any = timm.create_model("td_resnet18", features_only=True, out_indices=(0, 2, 4))
    maps = encoder.eval()(draw())
    assert encoder.feature_info.channels() == [m.shape[1] for m in maps] == [64, 64, 256]
    assert encoder.feature_info.reduction() == [64 // m.shape[-1] for m in maps] == [1, 4, 16]
    assert encoder.network.__class__.__mro__[1] is TopDownNet and td_compiler.timm


def test_segmentation_models() -> None:
    """`tu-td_resnet18` is an encoder of segmentation_models.pytorch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unet = segmentation_models_pytorch.Unet("tu-td_resnet18", encoder_weights=None, classes=5)
    scores = unet(draw())
    assert scores.shape == (2, 5, 64, 64)
    scores.sum().backward()
    trained = unet.encoder.model.network.get_submodule("layer4")
    assert all(parameter.grad is not None for parameter in trained.parameters())
