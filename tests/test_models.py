"""The networks: sizes, layers, and the logits of the state dicts that others publish."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import cnnext

CNNEXT_CONVOLUTIONS = (cnnext.DepthwiseConv2d, cnnext.GroupedConv2d, cnnext.PointwiseConv2d)
PARAMETERS = {"mobilenet_v1": 4_231_976, "resnet18": 11_689_512}
MULTIPLY_ADDS = {"mobilenet_v1": 568_740_352, "resnet18": 1_814_073_344}


def _randomise_norms(model: nn.Module) -> None:
    """Statistics and scales as after training, so that a batch norm in the wrong place changes the logits."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def _multiply_adds(model: nn.Module, x: torch.Tensor) -> int:
    total = 0

    def count(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        total += module.weight.numel() * output[0].numel() // output.shape[1]

    handles = [
        module.register_forward_hook(count) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.inference_mode():
        model(x)
    for handle in handles:
        handle.remove()
    return total


def test_names() -> None:
    assert set(PARAMETERS) <= set(cnnext.models.list_models())
    assert cnnext.models.list_models() == sorted(cnnext.models.list_models())
    with pytest.raises(ValueError, match=r"mobilenet_v11.*mobilenet_v1"):
        cnnext.models.create_model("mobilenet_v11")
    with pytest.raises(TypeError):
        cnnext.models.create_model("resnet18", width_multiplier=0.5)


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_those_of_the_papers(name: str) -> None:
    model = cnnext.models.create_model(name).eval()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert _multiply_adds(model, torch.zeros(1, 3, 224, 224)) == MULTIPLY_ADDS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_convolution_is_one_of_cnnext(name: str) -> None:
    model = cnnext.models.create_model(name)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) >= 20
    assert {type(module) for module in convolutions} <= set(CNNEXT_CONVOLUTIONS)
    for module in convolutions:
        if module.groups == module.in_channels > 1:
            assert isinstance(module, cnnext.DepthwiseConv2d)
        elif module.kernel_size == (1, 1):
            assert isinstance(module, cnnext.PointwiseConv2d)


def test_body_of_mobilenet_v1() -> None:
    """Stride and output channels of the depthwise layers and the 1x1 layers after them, as the paper lists them."""
    model = cnnext.models.mobilenet_v1()
    depthwise = [m for m in model.modules() if isinstance(m, cnnext.DepthwiseConv2d)]
    pointwise = [m for m in model.modules() if isinstance(m, cnnext.PointwiseConv2d)]
    assert [m.stride[0] for m in depthwise] == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    assert [m.out_channels for m in pointwise] == [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    assert all(m.kernel_size == (3, 3) and m.in_channels == m.out_channels for m in depthwise)


@pytest.mark.parametrize(("width", "parameters"), [(0.25, 470_072), (0.5, 1_331_592), (0.75, 2_585_560)])
def test_width_multipliers(width: float, parameters: int) -> None:
    model = cnnext.models.mobilenet_v1(width_multiplier=width)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("resolution", [224, 192, 160, 128])
def test_resolutions(resolution: int) -> None:
    model = cnnext.models.mobilenet_v1(num_classes=10, width_multiplier=0.25, resolution=resolution).eval()
    assert model.input_size == (3, resolution, resolution)
    assert model(torch.zeros(1, *model.input_size)).shape == (1, 10)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_classes": 0},
        {"width_multiplier": 0},
        {"width_multiplier": -1.0},
        {"resolution": 0},
        {"dropout": 1.5},
        {"in_channels": 0},
    ],
    ids=str,
)
def test_arguments_out_of_range(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        cnnext.models.mobilenet_v1(**kwargs)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", PARAMETERS)
def test_training_step_against_plain_convolutions(name: str, memory_format: torch.memory_format) -> None:
    """Loss and gradients are those of the same network on nn.Conv2d, in float64 so that rounding decides no ReLU."""
    kwargs = {"width_multiplier": 0.25} if name == "mobilenet_v1" else {}
    model = cnnext.models.create_model(name, num_classes=7, **kwargs).double().to(memory_format=memory_format)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64).contiguous(memory_format=memory_format)
    labels = torch.tensor([1, 5])
    results = []
    for backend in ("cpu", "aten"):
        with cnnext.backends.use(backend):
            loss = nn.functional.cross_entropy(model(x), labels)
            results.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-8)
    assert all(bool((grad != 0).any()) for grad in results[0][1:])


def test_resnet18_of_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision", reason="needs torchvision")
    theirs = torchvision.models.resnet18(weights=None).eval()
    _randomise_norms(theirs)
    ours = cnnext.models.resnet18().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "width"), [("mobilenetv1_100", 1.0), ("mobilenetv1_125", 1.25)])
def test_mobilenet_v1_of_timm(name: str, width: float) -> None:
    timm = pytest.importorskip("timm", reason="needs timm")
    theirs = timm.create_model(name, pretrained=False).eval()
    _randomise_norms(theirs)
    ours = cnnext.models.mobilenet_v1(width_multiplier=width).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-3)
