"""The networks: names, arguments, gradients, and the logits of the state dicts that others publish."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import cnnext
from cnnext.models import _parity

CNNEXT_CONVOLUTIONS = (cnnext.DepthwiseConv2d, cnnext.GroupedConv2d, cnnext.PointwiseConv2d)
CLASSICS = ["lenet", "alexnet", "zfnet", "nin", "vgg16", "googlenet", "inception_v2"]
RESNETS = ["resnet18", "resnet34", "resnet50", "se_resnet18"]
NAMES = [*CLASSICS, *RESNETS, "densenet121", "squeezenet1_0", "mobilenet_v1"]


def _sizes_only(name: str, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return cnnext.models.create_model(name, **kwargs)


def test_names() -> None:
    assert cnnext.models.list_models() == sorted(NAMES)
    with pytest.raises(ValueError, match=r"mobilenet_v11.*mobilenet_v1"):
        cnnext.models.create_model("mobilenet_v11")
    with pytest.raises(TypeError):
        cnnext.models.create_model("resnet18", width_multiplier=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_every_convolution_is_one_of_cnnext(name: str) -> None:
    convolutions = [module for module in _sizes_only(name).modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) >= 5
    assert {type(module) for module in convolutions} <= set(CNNEXT_CONVOLUTIONS)
    for module in convolutions:
        if module.groups == module.in_channels > 1:
            assert isinstance(module, cnnext.DepthwiseConv2d)
        elif module.kernel_size == (1, 1):
            assert isinstance(module, cnnext.PointwiseConv2d)


@pytest.mark.parametrize("name", NAMES)
def test_classes_and_channels_are_arguments(name: str) -> None:
    model = _sizes_only(name, num_classes=7, in_channels=2).eval()
    channels, height, width = model.input_size
    assert channels == 2
    assert model(torch.zeros(3, 2, height, width, device="meta")).shape == (3, 7)
    for argument in ("num_classes", "in_channels"):
        with pytest.raises(ValueError, match=argument):
            _sizes_only(name, **{argument: 0})
        with pytest.raises(TypeError, match=argument):
            _sizes_only(name, **{argument: 1.5})


@pytest.mark.parametrize("resolution", [224, 192, 160, 128])
def test_resolutions_of_mobilenet_v1(resolution: int) -> None:
    model = cnnext.models.mobilenet_v1(num_classes=10, width_multiplier=0.25, resolution=resolution).eval()
    assert model.input_size == (3, resolution, resolution)
    assert model(torch.zeros(1, *model.input_size)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("mobilenet_v1", {"width_multiplier": 0}),
        ("mobilenet_v1", {"width_multiplier": -1.0}),
        ("mobilenet_v1", {"resolution": 0}),
        *[(name, {"dropout": 1.5}) for name in ("mobilenet_v1", "nin", "squeezenet1_0", "googlenet", "inception_v2")],
        ("alexnet", {"towers": 3}),
        ("nin", {"table": "mnist"}),
        ("googlenet", {"transform_input": True, "in_channels": 1}),
    ],
    ids=str,
)
def test_arguments_out_of_range(name: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        _sizes_only(name, **kwargs)


# Wide networks are trained without their last layers, which are of kinds that come earlier too, to save time.
TRAINED: dict[str, dict[str, Any]] = {
    "lenet": {"num_classes": 7, "in_channels": 3},
    "alexnet": {"features_only": True, "towers": 2},
    "zfnet": {"features_only": True},
    "nin": {"num_classes": 7, "table": "cifar10", "dropout": 0.0},
    "vgg16": {"features_only": True, "out_indices": (0, 1, 2)},
    "googlenet": {"features_only": True, "out_indices": (0, 1, 2, 3)},
    "inception_v2": {"features_only": True, "out_indices": (1, 2, 3)},
    "resnet18": {"features_only": True, "out_indices": (0, 1, 2, 3)},
    "resnet50": {"features_only": True, "out_indices": (1, 2)},
    "se_resnet18": {"features_only": True, "out_indices": (1, 2, 3)},
    "densenet121": {"features_only": True, "out_indices": (1, 2)},
    "squeezenet1_0": {"num_classes": 7, "dropout": 0.0},
    "mobilenet_v1": {"num_classes": 7, "width_multiplier": 0.25},
}
TRAINED_SIZES = {"alexnet": 64, "zfnet": 64, "mobilenet_v1": 64}


@pytest.mark.parametrize("name", TRAINED)
def test_training_step_against_plain_convolutions(name: str) -> None:
    """Loss and gradients are those of the same network on torch's convolutions; in float64, so that rounding decides
    no ReLU.
    """
    model = _sizes_only(name, **TRAINED[name]).to_empty(device="cpu").double()
    _parity.randomise(model)
    if name == "lenet":  # has poolings with parameters, which `randomise` does not know
        for parameter in model.parameters():
            if parameter.dim() == 1:
                nn.init.uniform_(parameter, 0.1, 0.5)
    memory_format = torch.channels_last if len(name) % 2 == 0 else torch.contiguous_format  # each on some networks
    model = model.to(memory_format=memory_format)
    size = TRAINED_SIZES.get(name, 32)
    x = torch.randn(2, 3, size, size, dtype=torch.float64).contiguous(memory_format=memory_format)
    results = []
    for backend in ("cpu", "aten"):
        with cnnext.backends.use(backend):
            outputs = model(x)
            maps = [outputs] if isinstance(outputs, torch.Tensor) else outputs
            loss = torch.stack([(y.flatten(1) * torch.linspace(-1, 1, y[0].numel())).sum() for y in maps]).sum()
            results.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-8)
    zero = [n for (n, _), g in zip(model.named_parameters(), results[0][1:], strict=True) if not bool((g != 0).any())]
    assert not zero


@pytest.mark.parametrize("name", [*_parity.REFERENCES])
def test_state_dicts_of_torchvision_and_timm(name: str) -> None:
    """Same logits and as many parameters; images of odd sizes, so that the rounding of poolings counts."""
    pytest.importorskip(_parity.REFERENCES[name].package)
    size = (224, 224) if name in ("alexnet", "vgg16") else (107, 91)
    parity = _parity.compare(name, torch.randn(1, 3, *size))
    assert parity.parameters == parity.reference_parameters
    assert parity.error < 1e-4
    assert parity.spread > 0.05


@pytest.mark.parametrize(
    ("name", "reference", "kwargs"),
    [
        (
            "googlenet",
            _parity.Reference("torchvision", "googlenet", {"aux_logits": True, "init_weights": False}),
            {"aux_logits": True},
        ),
        (
            "googlenet",
            _parity.Reference(
                "torchvision", "googlenet", {"aux_logits": False, "init_weights": False, "transform_input": True}
            ),
            {"transform_input": True},
        ),
        ("mobilenet_v1", _parity.Reference("timm", "mobilenetv1_125"), {"width_multiplier": 1.25}),
    ],
    ids=["auxiliary classifiers", "transformed input", "wider"],
)
def test_variants_of_torchvision_and_timm(name: str, reference: _parity.Reference, kwargs: dict[str, Any]) -> None:
    pytest.importorskip(reference.package)
    parity = _parity.compare(name, torch.randn(1, 3, 75, 91), reference, **kwargs)
    assert parity.parameters == parity.reference_parameters
    assert parity.error < 1e-4
    assert parity.spread > 0.05


def test_auxiliary_logits_of_torchvision() -> None:
    """In training, where they are returned; torchvision and cnnext name them in the same order."""
    pytest.importorskip("torchvision")
    options = {"aux_logits": True, "init_weights": False, "dropout": 0.0, "dropout_aux": 0.0}
    theirs = _parity.build_reference(_parity.Reference("torchvision", "googlenet", options)).double().train()
    ours = cnnext.models.googlenet(aux_logits=True, dropout=0.0, aux_dropout=0.0).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected, outputs = theirs(x), ours(x)
    assert len(outputs) == len(expected) == 3
    for ours_, theirs_ in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-6, atol=1e-9)
    assert ours.eval()(x).shape == (2, 1000)
