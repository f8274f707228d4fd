"""A backend of cnnext that runs convolutions with the kernels of csrc/cuda, in the emulator, on the CPU's tensors.

    with emulated() as calls:
        model(images).sum().backward()

So networks run as they are on a GPU, from the first layer to the last: planners, workspaces, launches and autograd are
the real ones; only the kernels are emulated. Each call is compared with float64 on the operands that it got, and
noted.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cnnext import backends, ops
from cnnext.backends import operators
from tests.cases import Case
from tests.cuda_kernels import BUILD, DEPTHWISE, CudaKernels, Operands, Placement, Variant, first
from tests.reference import Expected, assert_within, expect_forward, expect_gradients

_LIBRARY = torch.library.Library("cnnext_emulated", "DEF")
_UNREAD = torch.empty(0)


@dataclass(frozen=True)
class Noted:
    """One call of an operator: what it computed, and the configuration that ran it."""

    op: str
    case: Case
    config: str


_calls: list[Noted] = []


@functools.cache
def _kernels() -> CudaKernels:
    return CudaKernels(BUILD)


def _case(input_size: Sequence[int], weight_size: Sequence[int], geometry: ops.Geometry) -> Case:
    n, c, h, w = input_size
    k, _, r, s = weight_size
    stride, padding, dilation = (tuple(pair) for pair in geometry[:3])
    return Case(f"{c}x{h}x{w}_to_{k}", n, c, h, w, k, r, s, stride, padding, dilation, geometry.groups)


def _variant(family: str, weight: Tensor) -> Variant:
    if family == "depthwise":
        return DEPTHWISE
    in_channels_last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return Variant("grouped", filter_channels_last=in_channels_last)


def _run(
    op: str,
    case: Case,
    channels_last: bool,
    operands: Operands,
    variant: Variant,
    expected: Mapping[str, Expected],
    activation: int = 0,
) -> dict[str, Tensor]:
    """Runs the configuration that the planner prefers, on operands with nothing behind their last element."""
    placement = Placement("nhwc" if channels_last else "nchw")
    ((config, results),) = _kernels().run(op, case, placement, operands, activation, variant, first)
    for name, result in results.items():
        assert_within(result, expected[name], f"{case}, {config}: {name}")
    _calls.append(Noted(op, case, config))
    return results


def _implementations(family: str) -> ops.Implementations:
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ops.Geometry, activation: int) -> Tensor:
        case = _case(input.shape, weight.shape, geometry)
        operands = Operands(input, weight, bias, _UNREAD)
        name = ops.ACTIVATIONS[activation] if activation else None
        expected = {"y": expect_forward(case, input, weight, bias, name)}
        channels_last = ops.channels_last_result(input, weight)
        variant = _variant(family, weight)
        return _run("forward", case, channels_last, operands, variant, expected, activation)["y"]

    def backward_input(
        grad_output: Tensor, weight: Tensor, input_size: Sequence[int], geometry: ops.Geometry, channels_last: bool
    ) -> Tensor:
        case = _case(input_size, weight.shape, geometry)
        operands = Operands(_UNREAD, weight, None, grad_output)
        unread = torch.zeros(case.input_shape, dtype=grad_output.dtype)
        expected = {"dx": expect_gradients(case, grad_output, unread, weight).input}
        return _run("backward_input", case, channels_last, operands, _variant(family, weight), expected)["dx"]

    def backward_weight(
        grad_output: Tensor,
        input: Tensor,
        weight_size: Sequence[int],
        geometry: ops.Geometry,
        with_bias: bool,
        channels_last: bool,
    ) -> tuple[Tensor, Tensor]:
        case = _case(input.shape, weight_size, geometry)
        # The gradient lies in memory as the bindings lay it: like the activations.
        like = torch.zeros(case.weight_shape, dtype=input.dtype).contiguous(
            memory_format=ops.memory_format(channels_last)
        )
        bias = input.new_empty(case.k) if with_bias else None
        gradients = expect_gradients(case, grad_output, input, like)
        results = _run(
            "backward_weight",
            case,
            channels_last,
            Operands(input, like, bias, grad_output),
            _variant(family, like),
            {"dw": gradients.weight, "dbias": gradients.bias},
        )
        return results["dw"], results["dbias"] if with_bias else input.new_empty(0)

    return ops.Implementations(forward, backward_input, backward_weight)


_FAMILIES = ops.declare(_LIBRARY, {name: _implementations(name) for name in ("depthwise", "grouped", "pointwise")})


_BACKEND: Any = types.SimpleNamespace(
    name="emulated",
    families=_FAMILIES,
    unavailable=lambda: None,
    refuses=operators.refuses,
    run=lambda call: operators.run(call, _FAMILIES),
)


@contextmanager
def emulated() -> Iterator[list[Noted]]:
    """Every convolution of cnnext runs in the emulator; the calls are appended to the list."""
    _calls.clear()
    backends._BACKENDS["emulated"] = _BACKEND
    try:
        with backends.use("emulated"):
            yield _calls
    finally:
        del backends._BACKENDS["emulated"]
