"""The modules stand in for nn.Conv2d: constructor, initialisation, state, errors, training."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import cnnext

# Each constructor beside the nn.Conv2d that it stands in for: (arguments, keyword arguments) on eight input channels.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride_padding_dilation": {"stride": 2, "padding": (1, 2), "dilation": 2},
    "no_bias": {"bias": False},
    "same": {"padding": "same"},
    "valid": {"padding": "valid"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": (2, 1), "padding_mode": "replicate"},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "reflect_same": {"padding": "same", "padding_mode": "reflect", "dilation": (1, 2)},
    "double": {"dtype": torch.float64},
}
KINDS: dict[str, tuple[type[nn.Conv2d], tuple[Any, ...], dict[str, Any]]] = {
    "depthwise": (cnnext.DepthwiseConv2d, (8, 8, 3), {"groups": 8}),
    "depthwise_multiplier": (cnnext.DepthwiseConv2d, (8, 16, (3, 2)), {"groups": 8}),
    "dense": (cnnext.GroupedConv2d, (8, 6, 3), {}),
    "grouped": (cnnext.GroupedConv2d, (8, 12, (2, 3)), {"groups": 4}),
    "pointwise": (cnnext.PointwiseConv2d, (8, 6, 1), {}),
}


def _pair(kind: str, name: str) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The cnnext module and the nn.Conv2d, each built from the same seed."""
    module, args, kwargs = KINDS[kind]
    kwargs = {**kwargs, **ARGUMENTS[name]}
    torch.manual_seed(7)
    theirs = nn.Conv2d(*args, **kwargs)
    torch.manual_seed(7)
    return module(*args, **kwargs), theirs


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_same_module_as_conv2d(kind: str, name: str) -> None:
    ours, theirs = _pair(kind, name)
    assert isinstance(ours, nn.Conv2d)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other), "the initialisation differs"
    for field in (
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
        "output_padding",
        "transposed",
    ):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert repr(ours) == repr(theirs).replace("Conv2d", type(ours).__name__)
    for shape in ((2, 8, 11, 12), (8, 11, 12), (0, 8, 11, 12)):
        x = torch.randn(shape, dtype=theirs.weight.dtype)
        if theirs.padding_mode == "circular" and 0 in shape:
            continue  # F.pad refuses it for both
        actual, expected = ours(x), theirs(x)
        assert actual.stride() == expected.stride()
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_signature_is_that_of_conv2d(kind: str) -> None:
    ours = inspect.signature(KINDS[kind][0]).parameters
    theirs = inspect.signature(nn.Conv2d).parameters
    assert list(ours) == list(theirs)
    for name, parameter in theirs.items():
        if (kind, name) in (("pointwise", "kernel_size"),) or name == "groups":
            continue
        assert ours[name].default == parameter.default, name


WRONG_ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "outputs_no_multiple": ((8, 12, 1), {"groups": 8}),
    "no_channels": ((8, 8, 1), {"groups": 0}),
    "padding_word": ((8, 8, 1), {"padding": "full"}),
    "same_with_stride": ((8, 8, 1), {"padding": "same", "stride": 2}),
    "padding_mode": ((8, 8, 1), {"padding_mode": "mirror"}),
    "unknown_keyword": ((8, 8, 1), {"kernel": 3}),
    "too_few": ((8,), {}),
}


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_wrong_arguments_fail_as_in_conv2d(name: str) -> None:
    args, kwargs = WRONG_ARGUMENTS[name]
    with pytest.raises((ValueError, TypeError)) as expected:
        nn.Conv2d(*args, **kwargs)
    with pytest.raises(expected.type) as actual:
        cnnext.GroupedConv2d(*args, **kwargs)
    assert str(actual.value).replace("GroupedConv2d", "Conv2d") == str(expected.value)


def test_depthwise_has_as_many_groups_as_channels() -> None:
    assert cnnext.DepthwiseConv2d(6, 12, 3).groups == 6
    assert cnnext.DepthwiseConv2d(6, 12, 3, groups=6).groups == 6
    assert cnnext.DepthwiseConv2d(6, 12, 3).weight.shape == (12, 1, 3, 3)
    for groups in (1, 2, 3, 5, 12):
        with pytest.raises(ValueError, match=rf"6.*groups={groups}"):
            cnnext.DepthwiseConv2d(6, 12, 3, groups=groups)
    with pytest.raises(ValueError, match="divisible"):
        cnnext.DepthwiseConv2d(6, 8, 3)


def test_pointwise_has_one_tap_and_one_group() -> None:
    for kernel_size in (1, (1, 1), [1, 1]):
        assert cnnext.PointwiseConv2d(4, 5, kernel_size).weight.shape == (5, 4, 1, 1)
    assert cnnext.PointwiseConv2d(4, 5).kernel_size == (1, 1)
    for kernel_size in (3, (1, 3), (3, 1), 0):
        with pytest.raises(ValueError, match="kernel_size"):
            cnnext.PointwiseConv2d(4, 4, kernel_size)
    with pytest.raises(ValueError, match="groups=2"):
        cnnext.PointwiseConv2d(4, 4, groups=2)


def _through_pickle(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def _through_torch_save(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copier", [copy.deepcopy, _through_pickle, _through_torch_save])
@pytest.mark.parametrize("kind", KINDS)
def test_copies_compute_the_same(kind: str, copier: Callable[[nn.Module], nn.Module]) -> None:
    module, _ = _pair(kind, "reflect")
    twin = copier(module)
    assert type(twin) is type(module)
    assert twin.weight is not module.weight
    x = torch.randn(1, 8, 6, 6)
    assert torch.equal(twin(x), module(x))


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_load_both_ways(kind: str) -> None:
    ours, theirs = _pair(kind, "plain")
    x = torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        theirs.weight.mul_(2)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    with torch.no_grad():
        ours.weight.add_(1)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_to_dtype_and_memory_format(kind: str, dtype: torch.dtype) -> None:
    ours, theirs = (module.to(dtype).to(memory_format=torch.channels_last) for module in _pair(kind, "plain"))
    assert ours.weight.stride() == theirs.weight.stride()
    for x in (
        torch.randn(2, 8, 6, 7, dtype=dtype),
        torch.randn(2, 8, 6, 7, dtype=dtype).to(memory_format=torch.channels_last),
    ):
        actual, expected = ours(x), theirs(x)
        assert (actual.dtype, actual.stride()) == (expected.dtype, expected.stride())
        torch.testing.assert_close(
            actual,
            expected,
            rtol=2e-2 if dtype != torch.float64 else None,
            atol=2e-2 if dtype != torch.float64 else None,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_meta_device(kind: str) -> None:
    module, args, kwargs = KINDS[kind]
    layer = module(*args, **kwargs, device="meta")
    assert layer(torch.empty(2, 8, 6, 6, device="meta")).device.type == "meta"
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert bool(layer(torch.zeros(1, 8, 6, 6)).isfinite().all())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_training_is_that_of_conv2d(memory_format: torch.memory_format) -> None:
    def network(depthwise: Any, dense: Any, pointwise: Any) -> nn.Module:
        torch.manual_seed(3)
        layers = (dense(3, 8, 3, stride=2, padding=1), nn.ReLU(), depthwise(8, 8, 3, padding=1, groups=8))
        return nn.Sequential(*layers, nn.ReLU6(), pointwise(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    models = [
        network(nn.Conv2d, nn.Conv2d, nn.Conv2d),
        network(cnnext.DepthwiseConv2d, cnnext.GroupedConv2d, cnnext.PointwiseConv2d),
    ]
    images, labels = torch.randn(16, 3, 12, 12), torch.randint(0, 4, (16,))
    images = images.contiguous(memory_format=memory_format)
    histories = []
    for model in models:
        model.to(memory_format=memory_format)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        history = []
        for _ in range(20):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        histories.append(history)
    assert histories[0][-1] < 0.8 * histories[0][0]
    torch.testing.assert_close(histories[1], histories[0], rtol=1e-3, atol=1e-4)


# --- DepthwiseSeparableConv2d -----------------------------------------------------------------------------------------

ACTIVATION_MODULES = {
    "relu6": nn.ReLU6,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "mish": nn.Mish,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    None: nn.Identity,
}


def _separable_of_pytorch(activation: str | None, **kwargs: Any) -> nn.Sequential:
    act = ACTIVATION_MODULES[activation]
    return nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8, bias=False, **kwargs),
        nn.BatchNorm2d(8),
        act(),
        nn.Conv2d(8, 12, 1, bias=False),
        nn.BatchNorm2d(12),
        act(),
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATION_MODULES)
def test_separable_block_is_its_six_layers(activation: str | None, training: bool) -> None:
    geometry = {"stride": 2, "padding": 1}
    theirs = _separable_of_pytorch(activation, **geometry)
    ours = cnnext.DepthwiseSeparableConv2d(8, 12, 3, **geometry, activation=activation)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    ours.train(training), theirs.train(training)
    for _ in range(2):  # the second call sees the statistics that the first one left
        x = torch.randn(4, 8, 9, 9)
        leaves = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        actual, expected = ours(leaves[0]), theirs(leaves[1])
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        actual.square().sum().backward(), expected.square().sum().backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-3, atol=1e-4)
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


def test_separable_block_starts_as_its_layers_would() -> None:
    torch.manual_seed(5)
    theirs = _separable_of_pytorch("relu6")
    torch.manual_seed(5)
    ours = cnnext.DepthwiseSeparableConv2d(8, 12, 3)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    kinds = [type(module) for module in ours.modules() if not list(module.children())]
    assert kinds == [
        cnnext.DepthwiseConv2d,
        nn.BatchNorm2d,
        nn.ReLU6,
        cnnext.PointwiseConv2d,
        nn.BatchNorm2d,
        nn.ReLU6,
    ]


def test_separable_block_copies_and_errors() -> None:
    block = cnnext.DepthwiseSeparableConv2d(8, 12, 3, padding="same", padding_mode="reflect", bias=True).eval()
    x = torch.randn(1, 8, 7, 7)
    for copier in (copy.deepcopy, _through_pickle, _through_torch_save):
        assert torch.equal(copier(block)(x), block(x))
    assert block(x).shape == (1, 12, 7, 7)
    with pytest.raises(ValueError, match=r"'swish2'.*hardswish"):
        cnnext.DepthwiseSeparableConv2d(8, 12, 3, activation="swish2")
    half = cnnext.DepthwiseSeparableConv2d(8, 12, 3, dtype=torch.bfloat16).eval()
    assert half(x.bfloat16()).dtype == torch.bfloat16
