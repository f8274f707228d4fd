"""What is right: float64 convolutions on the CPU, and how far from them a result may be.

The bound on an error is derived, not tuned. A sum of `depth` products that is accumulated in any order in a type of
unit roundoff u is off by at most about u * depth * sum(|x| * |w|); rounding it to the output's dtype adds
u_out * |value|. `Expected` carries both, element by element, so one wrong term among many is seen while honest rounding
never is. Integer-valued operands leave no room at all: every product and sum is exact and only the last rounding
remains, which `assert_same_bits` demands to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tests.cases import Case

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "mish": F.mish,
    "silu": F.silu,
    "hardswish": F.hardswish,
}

# Where the slope of an activation jumps, by at most 1.
_KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0), "leaky_relu": (0.0,), "hardswish": (-3.0, 3.0)}

# The steepest slope of any activation (hardswish at 3) and the error, in units of the accumulator's epsilon, that
# evaluating one may add.
_STEEPEST_SLOPE = 1.5
_ACTIVATION_ULPS = 8.0


@dataclass(frozen=True)
class Expected:
    """A float64 result and the largest error that each of its elements may have."""

    value: torch.Tensor
    bound: torch.Tensor


@dataclass(frozen=True)
class ExpectedGradients:
    """The gradients of one convolution with respect to its three operands."""

    input: Expected
    weight: Expected
    bias: Expected


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The narrowest type in which a kernel may add up products of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def activate(value: torch.Tensor, activation: str | None) -> torch.Tensor:
    return value if activation is None else ACTIVATIONS[activation](value)


def rounding_bound(dtype: torch.dtype, value: torch.Tensor, magnitude: torch.Tensor, depth: int) -> torch.Tensor:
    """The one tolerance: the largest error of a sum of `depth` products, `magnitude` being the sum of their moduli."""
    unit = torch.finfo(accumulation_dtype(dtype)).eps / 2
    unit_out = torch.finfo(dtype).eps / 2
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    bound = 1.02 * (unit * (depth + 2) * magnitude + unit_out * value.abs()) + smallest
    # The reference itself is computed in float64 and errs as much as a float64 kernel may.
    return 2 * bound if dtype == torch.float64 else bound


def upcast(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach().cpu().to(torch.float64).contiguous()


def _geometry(case: Case) -> dict[str, object]:
    return {"stride": case.stride, "padding": case.padding, "dilation": case.dilation, "groups": case.groups}


def _gradients(
    case: Case, grad: torch.Tensor, x: torch.Tensor, w: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.ops.aten.convolution_backward(
        grad, x, w, [w.shape[0]], case.stride, case.padding, case.dilation, False, [0, 0], case.groups, [True] * 3
    )


def expect_forward(
    case: Case,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None = None,
    rounded_sum: bool = False,
) -> Expected:
    """activation(conv(x, w) + bias) in float64, with the bound for a result in x's dtype.

    With `rounded_sum` the sum may have been rounded to x's dtype before the activation.
    """
    dtype = x.dtype
    x64, w64, bias64 = upcast(x), upcast(w), upcast(bias)
    value = F.conv2d(x64, w64, bias64, **_geometry(case))
    magnitude = F.conv2d(x64.abs(), w64.abs(), None if bias64 is None else bias64.abs(), **_geometry(case))
    depth = w64[0].numel() + 1
    if activation is None:
        return Expected(value, rounding_bound(dtype, value, magnitude, depth))
    before = rounding_bound(dtype if rounded_sum else accumulation_dtype(dtype), value, magnitude, depth)
    return _activated(dtype, value, before, activation)


def expect_separable(
    case: Case,
    x: torch.Tensor,
    depthwise: tuple[torch.Tensor, torch.Tensor | None, str | None],
    pointwise: tuple[torch.Tensor, torch.Tensor | None, str | None],
    residual: torch.Tensor | None = None,
) -> Expected:
    """The depthwise convolution of `case` and a 1x1 convolution in float64, each with filter, bias and activation.

    The bound is for a result in x's dtype, computed from a middle that has been rounded to it.
    """
    middle = expect_forward(case, x, *depthwise)
    w64, bias64, activation = upcast(pointwise[0]), upcast(pointwise[1]), pointwise[2]
    value = F.conv2d(middle.value, w64, bias64)
    magnitude = F.conv2d(middle.value.abs() + middle.bound, w64.abs(), None if bias64 is None else bias64.abs())
    if residual is not None:
        value, magnitude = value + upcast(residual), magnitude + upcast(residual).abs()
    carried, depth = F.conv2d(middle.bound, w64.abs()), w64.shape[1] + 2
    if activation is None:
        return Expected(value, carried + rounding_bound(x.dtype, value, magnitude, depth))
    before = carried + rounding_bound(accumulation_dtype(x.dtype), value, magnitude, depth)
    return _activated(x.dtype, value, before, activation)


def _activated(dtype: torch.dtype, value: torch.Tensor, before: torch.Tensor, activation: str) -> Expected:
    """An activation of sums that are off by `before`, rounded to `dtype`."""
    result = activate(value, activation)
    bound = (
        _STEEPEST_SLOPE * before
        + _ACTIVATION_ULPS * torch.finfo(accumulation_dtype(dtype)).eps * (1 + result.abs())
        + torch.finfo(dtype).eps / 2 * result.abs() * 1.02
        + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    )
    return Expected(result, bound)


def expect_gradients(
    case: Case,
    grad_output: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    sum_is_exact: bool = False,
) -> ExpectedGradients:
    """Gradients of sum(grad_output * activation(conv(x, w) + bias)) in float64, with bounds for results in x's dtype.

    Unless `sum_is_exact`, a sum within rounding of a kink of the activation may fall on either side of it.
    """
    dtype = x.dtype
    grad64, x64, w64, bias64 = upcast(grad_output), upcast(x), upcast(w), upcast(bias)
    grad_error = None
    if activation is not None:
        before = F.conv2d(x64, w64, bias64, **_geometry(case)).requires_grad_()
        (slope,) = torch.autograd.grad(activate(before, activation).sum(), before)
        # The gradient before the activation is a tensor of x's dtype, computed from values of x's dtype.
        grad_error = 3 * torch.finfo(dtype).eps * grad64.abs() * (1 + before.detach().abs())
        if not sum_is_exact:
            for kink in _KINKS.get(activation, ()):
                near = (before.detach() - kink).abs() <= 2 * torch.finfo(dtype).eps * (1 + abs(kink))
                grad_error += near * grad64.abs()
        grad64 = grad64 * slope
    values = _gradients(case, grad64, x64, w64)
    magnitudes = _gradients(case, grad64.abs(), x64.abs(), w64.abs())
    carried = (0.0,) * 3 if grad_error is None else _gradients(case, grad_error, x64.abs(), w64.abs())
    taps = w64.shape[2] * w64.shape[3]
    pixels = grad64.shape[0] * grad64.shape[2] * grad64.shape[3]
    depths = (w64.shape[0] // case.groups * taps, pixels, pixels)
    return ExpectedGradients(
        *(
            Expected(value, rounding_bound(dtype, value, magnitude, depth) + error)
            for value, magnitude, depth, error in zip(values, magnitudes, depths, carried, strict=True)
        )
    )


@dataclass(frozen=True)
class Exact:
    """What operands give whose every product and sum is exact: float64 values, to be rounded once."""

    output: torch.Tensor
    grad_input: torch.Tensor
    grad_weight: torch.Tensor
    grad_bias: torch.Tensor


def expect_exact(
    case: Case, grad_output: torch.Tensor, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None
) -> Exact:
    """Output and gradients of integer-valued operands."""
    grad64, x64, w64, bias64 = upcast(grad_output), upcast(x), upcast(w), upcast(bias)
    return Exact(F.conv2d(x64, w64, bias64, **_geometry(case)), *_gradients(case, grad64, x64, w64))


def _worst(actual: torch.Tensor, expected: torch.Tensor, excess: torch.Tensor, what: str) -> str:
    index = torch.unravel_index(excess.flatten().argmax(), excess.shape)
    place = tuple(int(i) for i in index)
    wrong = int((excess > 0).sum())
    return (
        f"{what}: {wrong} of {excess.numel()} elements are wrong; the worst is {place}: "
        f"got {float(actual[place])!r}, expected {float(expected[place])!r}"
    )


def assert_within(actual: torch.Tensor, expected: Expected, what: str) -> None:
    """Fails unless every element of `actual` is within its bound; a NaN never is."""
    assert actual.shape == expected.value.shape, f"{what}: shape {tuple(actual.shape)}"
    if actual.numel() == 0:
        return
    result = upcast(actual)
    excess = (result - expected.value).abs() - expected.bound
    excess = torch.where(result.isnan(), torch.inf, excess)
    assert bool((excess <= 0).all()), _worst(result, expected.value, excess, what)


def assert_same_bits(actual: torch.Tensor, exact: torch.Tensor, what: str) -> None:
    """Fails unless `actual` is the float64 value `exact`, rounded once to actual's dtype."""
    assert actual.shape == exact.shape, f"{what}: shape {tuple(actual.shape)}"
    if actual.numel() == 0:
        return
    result, rounded = upcast(actual), upcast(exact.to(actual.dtype))
    differs = torch.where(result.isnan(), torch.inf, (result - rounded).abs())
    assert bool((differs == 0).all()), _worst(result, rounded, differs, what)
