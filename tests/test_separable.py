"""The depthwise-separable block: depthwise, activation, 1x1, activation, in one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cnnext
from tests.cases import LAYOUTS, NATIVE_LAYOUTS, generator
from tests.reference import ACTIVATIONS, DTYPES, activate, upcast

SHAPES: dict[str, dict[str, Any]] = {
    "mobilenet": {"size": (2, 16, 14, 14), "middle": 16, "outputs": 24, "kernel": (3, 3), "padding": 1},
    "mobilenet_s2": {"size": (1, 9, 14, 15), "middle": 9, "outputs": 17, "kernel": (3, 3), "padding": 1, "stride": 2},
    "multiplier": {"size": (2, 5, 7, 8), "middle": 10, "outputs": 3, "kernel": (5, 3), "padding": (2, 1)},
    "dilated": {"size": (1, 4, 11, 9), "middle": 4, "outputs": 4, "kernel": (3, 3), "dilation": 2},
    "same": {"size": (1, 4, 8, 9), "middle": 4, "outputs": 6, "kernel": (4, 3), "padding": "same"},
    "unbatched": {"size": (6, 8, 9), "middle": 6, "outputs": 5, "kernel": (3, 3), "padding": "valid"},
    "empty": {"size": (0, 6, 8, 9), "middle": 6, "outputs": 5, "kernel": (3, 3)},
}


def _operands(name: str, dtype: torch.dtype) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Small integers over powers of two: both halves are exact in float32, the first one in every dtype."""
    shape = dict(SHAPES[name])
    size, middle, outputs, kernel = (shape.pop(key) for key in ("size", "middle", "outputs", "kernel"))
    seed = generator(f"separable/{name}")
    shapes = (size, (middle, 1, *kernel), (outputs, middle, 1, 1), (middle,), (outputs,))
    return [torch.randint(-2, 3, entry, generator=seed).to(dtype) for entry in shapes], shape


def _expected(
    operands: list[torch.Tensor], geometry: dict[str, Any], first: str | None, second: str | None
) -> torch.Tensor:
    x, depthwise_weight, pointwise_weight, depthwise_bias, pointwise_bias = map(upcast, operands)
    middle = torch.nn.functional.conv2d(x, depthwise_weight, depthwise_bias, groups=x.size(-3), **geometry)
    middle = upcast(activate(middle, first).to(operands[0].dtype))
    return activate(torch.nn.functional.conv2d(middle, pointwise_weight, pointwise_bias), second)


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_values(name: str, dtype: torch.dtype, layout: str) -> None:
    operands, geometry = _operands(name, dtype)
    if operands[0].dim() == 4 and operands[0].numel():
        operands[0] = LAYOUTS[layout](operands[0])
    for first, second in ((None, None), ("relu6", "relu6"), ("relu", None), (None, "relu")):
        actual = cnnext.functional.separable_conv2d(
            *operands, **geometry, depthwise_activation=first, pointwise_activation=second
        )
        expected = _expected(operands, geometry, first, second)
        assert actual.dtype == dtype
        torch.testing.assert_close(actual, expected.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str) -> None:
    operands, geometry = _operands("mobilenet", torch.float32)
    actual = cnnext.functional.separable_conv2d(
        *operands, **geometry, depthwise_activation=activation, pointwise_activation=activation
    )
    expected = _expected(operands, geometry, activation, activation)
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=1e-4)


def test_gradients() -> None:
    operands, geometry = _operands("multiplier", torch.float64)
    leaves = [(t + 0.25 * torch.rand_like(t)).requires_grad_() for t in operands]
    assert torch.autograd.gradcheck(
        lambda *args: cnnext.functional.separable_conv2d(
            *args, **geometry, depthwise_activation="silu", pointwise_activation="tanh"
        ),
        leaves,
        fast_mode=True,
    )


def test_without_biases() -> None:
    operands, geometry = _operands("mobilenet_s2", torch.float32)
    actual = cnnext.functional.separable_conv2d(*operands[:3], **geometry)
    zeros = [torch.zeros_like(t) for t in operands[3:]]
    torch.testing.assert_close(actual, _expected([*operands[:3], *zeros], geometry, None, None).float(), rtol=0, atol=0)


def test_wrong_filters_are_named() -> None:
    operands, _ = _operands("mobilenet", torch.float32)
    with pytest.raises(RuntimeError, match="channels"):
        cnnext.functional.separable_conv2d(operands[0], operands[1], operands[2][:, :-1])
    with pytest.raises(ValueError, match="unknown activation"):
        cnnext.functional.separable_conv2d(*operands, depthwise_activation="swish2")
