"""cnnext.fuse: the same outputs from fewer modules, on networks as their libraries make them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import cnnext
from cnnext.fusion.modules import FusedConv2d, FusedSeparableConv2d
from cnnext.inference_ops import FUSED_CONV2D, SEPARABLE_CONV2D, pack_filter


def _randomise(model: nn.Module) -> nn.Module:
    """Batch norms as after training: as they are initialised, folding them wrongly would change nothing."""
    seed = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=seed)
            module.running_var.uniform_(0.5, 1.5, generator=seed)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=seed)
                module.bias.data.normal_(0, 0.1, generator=seed)
    return model.eval()


def _error(output: torch.Tensor, reference: torch.Tensor) -> float:
    return float((output.double() - reference).norm() / reference.norm())


@torch.no_grad()
def _check(model: nn.Module, size: int = 64, channels: int = 3, batch: int = 2) -> nn.Module:
    """Against float64, the fused model errs at most one and a half times as much as PyTorch does in float32."""
    x = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(5))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = cnnext.fuse(model)
    assert before.keys() == model.state_dict().keys(), "the model passed in has changed"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    reference = copy.deepcopy(model).double()(x.double())
    with cnnext.backends.use("aten"):
        allowed = 1.5 * _error(model(x), reference)
    for layout in (torch.contiguous_format, torch.channels_last):
        output, plain = fused(x.contiguous(memory_format=layout)), model(x.contiguous(memory_format=layout))
        assert (output.shape, output.dtype, output.stride()) == (plain.shape, plain.dtype, plain.stride())
        assert _error(output, reference) <= allowed
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    return fused


def _count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def _residuals(model: nn.Module) -> int:
    assert isinstance(model, torch.fx.GraphModule)
    calls = [node for node in model.graph.nodes if node.op == "call_module" and len(node.args) == 2]
    return sum(isinstance(model.get_submodule(node.target), (FusedConv2d, FusedSeparableConv2d)) for node in calls)


# Network: fused modules in all, separable blocks among them, residual additions inside fused modules.
TORCHVISION = {
    "mobilenet_v2": (35, 17, 10),
    "mobilenet_v3_small": (50, 2, 6),
    "efficientnet_b0": (81, 0, 9),
    "resnet18": (20, 0, 8),
    "regnet_y_400mf": (85, 0, 16),
    "shufflenet_v2_x0_5": (37, 19, 0),
}
TIMM = {
    "mobilenetv1_100": (14, 13, 0),
    "mobilenetv2_050": (35, 17, 10),
    "mobilenetv3_small_050": (51, 2, 7),
    "efficientnet_lite0": (33, 16, 9),
    "resnet18": (20, 0, 8),
    "regnetx_002": (44, 0, 13),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_networks_of_torchvision(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    fused = _check(_randomise(getattr(torchvision.models, name)(weights=None, num_classes=10)))
    found = (_count(fused, (FusedConv2d, FusedSeparableConv2d)), _count(fused, FusedSeparableConv2d), _residuals(fused))
    assert found == TORCHVISION[name]


@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    fused = _check(_randomise(timm.create_model(name, pretrained=False, num_classes=10)))
    found = (_count(fused, (FusedConv2d, FusedSeparableConv2d)), _count(fused, FusedSeparableConv2d), _residuals(fused))
    assert found == TIMM[name]


def test_networks_without_anything_to_fuse_stay() -> None:
    timm, torchvision = pytest.importorskip("timm"), pytest.importorskip("torchvision")
    for model in (
        timm.create_model("convnext_atto", pretrained=False, num_classes=10),
        torchvision.models.convnext_tiny(weights=None, num_classes=10),
    ):
        fused = _check(_randomise(model))
        assert type(fused) is type(model)
        report = cnnext.fusion_report(fused)
        assert not report.fused
        assert set(report.left.values()) == {"nothing in the model can be fused"}


def test_own_networks() -> None:
    fused = _check(_randomise(cnnext.models.create_model("mobilenet_v1", num_classes=10, width_multiplier=0.5)))
    assert (_count(fused, FusedConv2d), _count(fused, FusedSeparableConv2d)) == (1, 13)
    fused = _check(_randomise(cnnext.models.create_model("resnet18", num_classes=10)))
    assert _residuals(fused) == 8
    blocks = _check(
        _randomise(
            nn.Sequential(cnnext.DepthwiseSeparableConv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        )
    )
    assert _count(blocks, FusedSeparableConv2d) == 1


class _Block(nn.Module):
    """An inverted bottleneck with the modules out of order, functions in between, and additions in place."""

    def __init__(self, channels: int = 8, act: Callable[[torch.Tensor], torch.Tensor] = torch.relu) -> None:
        super().__init__()
        self.project_norm = nn.BatchNorm2d(channels)
        self.project = nn.Conv2d(4 * channels, channels, 1, bias=False)
        self.depthwise = nn.Conv2d(4 * channels, 4 * channels, 3, padding="same", groups=4 * channels)
        self.expand = nn.Conv2d(channels, 4 * channels, 1)
        self.norm = nn.BatchNorm2d(4 * channels, affine=False)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.norm(self.expand(x)))
        y = nn.functional.hardswish(self.depthwise(y))
        y = self.project_norm(self.project(y))
        y += x
        return self.act(y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@torch.no_grad()
def test_order_of_execution_and_dtypes(dtype: torch.dtype) -> None:
    model = _randomise(_Block())
    fused = cnnext.fuse(copy.deepcopy(model).to(dtype))
    assert [type(child) for child in fused.children()] == [FusedConv2d, FusedSeparableConv2d]
    assert _residuals(fused) == 1
    x = torch.randn(2, 8, 9, 7).to(dtype)
    reference, output = copy.deepcopy(model).to(dtype).double()(x.double()), fused(x)
    assert output.dtype == dtype
    assert output.is_contiguous()
    assert _error(output, reference) < 8 * torch.finfo(dtype).eps


def test_exported_programs() -> None:
    model, x = _randomise(_Block()), torch.randn(2, 8, 9, 7)
    fused = cnnext.fuse(torch.export.export(model, (x,)))
    assert _count(fused, FusedConv2d) == _count(fused, FusedSeparableConv2d) == _residuals(fused) == 1
    assert not [node for node in fused.graph.nodes if "batch_norm" in str(node.target)]
    torch.testing.assert_close(fused(x), model(x))
    with pytest.raises(ValueError, match="in place"):
        cnnext.fuse(torch.export.export(model, (x,)), inplace=True)


def test_graph_modules() -> None:
    model, x = _randomise(_Block()), torch.randn(2, 8, 9, 7)
    fused = cnnext.fuse(torch.fx.symbolic_trace(model))
    assert _residuals(fused) == 1
    torch.testing.assert_close(fused(x), model(x))


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the model is in training mode: call model\.eval\(\) first"):
        cnnext.fuse(_Block())
    half = _Block().eval()
    half.norm.train()
    with pytest.raises(ValueError, match="'norm' \\(BatchNorm2d\\) is in training mode"):
        cnnext.fuse(half)
    with pytest.raises(TypeError, match=r"expected an nn\.Module, but got str"):
        cnnext.fuse("resnet18")


class _Odd(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


def _left_alone() -> dict[str, tuple[nn.Module, str]]:
    hooked = nn.Conv2d(3, 3, 3)
    hooked.register_forward_hook(lambda module, args, output: output * 2)
    return {
        "subclass": (_Odd(3, 3, 3), "_Odd is a subclass"),
        "padding_mode": (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), "padding_mode 'reflect'"),
        "uneven_padding": (nn.Conv2d(3, 3, 2, padding="same"), "padding 'same' is not the same on both sides"),
        "hooks": (hooked, "it has hooks"),
    }


@pytest.mark.parametrize("name", _left_alone())
def test_unknown_convolutions_are_left_alone(name: str) -> None:
    conv, reason = _left_alone()[name]
    model = _randomise(nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU()))
    x = torch.randn(2, 3, 9, 9)
    fused = cnnext.fuse(model)
    assert [type(child) for child in fused.children()] == [type(conv), nn.BatchNorm2d, nn.ReLU]
    report = cnnext.fusion_report(fused)
    assert reason in report.left["0"]
    assert report.left["1"] == "no convolution alone before it"
    torch.testing.assert_close(fused(x), model(x), rtol=0, atol=0)


class _Shared(nn.Module):
    """What a convolution gives is read twice; and a convolution is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.norm(y) + y + self.twice(self.twice(x))


class _Overwritten(nn.Module):
    """The input of a convolution is overwritten before the addition behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 1
        y = self.conv(x)
        x.add_(3.0)
        return torch.relu(y + x)


class _Broadcast(nn.Module):
    """Additions whose operands are not of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return torch.relu(self.conv(x) + pooled) + torch.sigmoid(self.gate(pooled) + x)


class _Views(nn.Module):
    """Looks at strides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y.view(y.size(0), -1) + y.permute(0, 3, 1, 2).reshape(y.size(0), -1)


@pytest.mark.parametrize("kind", [_Shared, _Overwritten, _Broadcast, _Views])
def test_what_other_nodes_see_stays(kind: type[nn.Module]) -> None:
    model, x = _randomise(kind()), torch.randn(2, 4, 6, 5)
    expected = model(x.clone())
    torch.testing.assert_close(cnnext.fuse(model)(x), expected)


class _Untraceable(nn.Module):
    """Depends on values, iterates over a container, and holds a convolution of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), _Block(4))
        self.more = nn.ModuleList([_Block(4)])
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            x = -x
        for block in [*self.blocks, *self.more]:
            x = block(x)
        return self.last(x)


def test_children_of_what_cannot_be_traced_are_fused() -> None:
    model, x = _randomise(_Untraceable()), torch.randn(2, 4, 6, 5)
    fused = cnnext.fuse(model)
    assert type(fused) is _Untraceable
    report = cnnext.fusion_report(fused)
    assert "TraceError" in report.untraced[""]
    assert "(the model): not traced" in str(report)
    assert len(report.fused) == 5
    assert report.left == {"last": "nothing in the model can be fused"}
    torch.testing.assert_close(fused(x), model(x))


def test_report() -> None:
    report = cnnext.fusion_report(cnnext.fuse(_randomise(_Block())))
    assert report.fused == {
        "depthwise": (
            ("depthwise", "Conv2d"),
            ("hardswish", "hardswish"),
            ("project", "Conv2d"),
            ("project_norm", "BatchNorm2d"),
            ("add", "add"),
            ("relu_1", "relu"),
        ),
        "expand": (("expand", "Conv2d"), ("norm", "BatchNorm2d"), ("relu", "relu")),
    }
    assert (report.left, report.untraced) == ({}, {})
    assert "expand: expand (Conv2d) + norm (BatchNorm2d) + relu (relu)" in str(report)


def test_in_place() -> None:
    model, x = _randomise(_Block()), torch.randn(2, 8, 6, 5)
    expected = model(x)
    assert cnnext.fuse(model, inplace=True) is model
    assert _count(model, FusedConv2d) == 1
    torch.testing.assert_close(model(x), expected)


@torch.no_grad()
def test_copies_pickles_and_state_dicts() -> None:
    x = torch.randn(2, 8, 6, 5)
    fused = cnnext.fuse(_randomise(_Block()))
    expected = fused(x)
    buffer = io.BytesIO()
    torch.save(fused, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(fused),
        pickle.loads(pickle.dumps(fused)),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(other(x), expected)
        assert cnnext.fusion_report(other) == cnnext.fusion_report(fused)
    fresh = cnnext.fuse(_Block().eval())
    assert not torch.equal(fresh(x), expected)
    fresh.load_state_dict(fused.state_dict())  # the packed filters follow
    assert torch.equal(fresh(x), expected)
    assert not any("packed" in key for key in fused.state_dict())


@torch.no_grad()
def test_casting_packs_again() -> None:
    x = torch.randn(2, 8, 6, 5)
    model = _randomise(_Block())
    fused = cnnext.fuse(model).double()
    torch.testing.assert_close(fused(x.double()), copy.deepcopy(model).double()(x.double()), rtol=1e-5, atol=1e-5)
    fused = fused.float().to(memory_format=torch.channels_last)
    torch.testing.assert_close(fused(x), model(x))
    with torch.autocast("cpu", torch.bfloat16):
        # A trace turns the addition in place, whose result would be bfloat16, into one that promotes.
        assert fused(x).dtype == torch.fx.symbolic_trace(model)(x).dtype
        torch.testing.assert_close(fused(x).float(), model(x).float(), rtol=0.1, atol=0.1)


def test_gradients_of_the_input() -> None:
    model = _randomise(_Block()).double()
    x = torch.randn(1, 8, 4, 3, dtype=torch.float64, requires_grad=True)
    fused = cnnext.fuse(model)
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    (actual,) = torch.autograd.grad(fused(x).square().sum(), x)
    torch.testing.assert_close(actual, expected)


@torch.no_grad()
def test_other_backends_and_unbatched_input() -> None:
    model, x = _randomise(_Block()), torch.randn(2, 8, 6, 5)
    fused = cnnext.fuse(model)
    with cnnext.backends.use("aten"):
        torch.testing.assert_close(fused(x), model(x))
    block = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1), nn.ReLU()).eval()
    torch.testing.assert_close(cnnext.fuse(block)(x[0]), block(x[0]))


@torch.no_grad()
def test_without_biases() -> None:
    x = torch.randn(2, 8, 6, 5)
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.Conv2d(8, 4, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1, bias=False),
    ).eval()
    fused = cnnext.fuse(model)
    assert _count(fused, FusedSeparableConv2d) == 1
    torch.testing.assert_close(fused(x), model(x))


@torch.no_grad()
def test_compiles() -> None:
    model, x = _randomise(_Block()), torch.randn(2, 8, 6, 5)
    compiled = torch.compile(cnnext.fuse(model), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_operators(layout: torch.memory_format) -> None:
    x = torch.randn(2, 4, 5, 6).contiguous(memory_format=layout)
    residual = torch.randn(2, 3, 5, 6)
    depthwise, weight, bias = torch.randn(4, 1, 3, 3), torch.randn(3, 4, 1, 1), torch.randn(3)
    checks = ("test_schema", "test_faketensor")
    numbers: tuple[Any, ...] = (1, 1, 0, 0, 1, 1, 1, 2)
    for channels_last in (False, True):
        args = (x, weight, bias, residual, pack_filter(weight), *numbers, channels_last)
        torch.library.opcheck(FUSED_CONV2D, args, test_utils=checks)
    args = (x, depthwise, None, weight, bias, None, None, 1, 1, 1, 1, 1, 1, 1, 0)
    torch.library.opcheck(SEPARABLE_CONV2D, args, test_utils=checks)


def test_wrong_operands_are_named() -> None:
    x, weight = torch.randn(1, 4, 5, 6), torch.randn(3, 4, 1, 1)
    numbers = (1, 1, 0, 0, 1, 1, 1, 0, False)
    with pytest.raises(RuntimeError, match=r"expected residual of size \[1, 3, 5, 6\], but got \[1, 3, 5, 5\]"):
        FUSED_CONV2D(x, weight, None, torch.randn(1, 3, 5, 5), None, *numbers)
    with pytest.raises(RuntimeError, match=r"packed_weight to be what cnnext\.inference_ops\.pack_filter makes"):
        FUSED_CONV2D(x, weight, None, None, pack_filter(weight)[:-1], *numbers)
