"""The CUDA kernels, run on the CPU by the emulator: a plain build, and one under the address and UB sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnext.ops import ACTIVATIONS
from tests.cases import DEPTHWISE_CASES, Case
from tests.emulator import build
from tests.kernel_library import dense_strides
from tests.reference import DTYPES, assert_same_bits, assert_within, expect_forward

# Set for the process in which these tests run on the sanitized build.
BUILD = os.environ.get("CNNEXT_EMULATOR_BUILD", "plain")

pytestmark = pytest.mark.skipif(build.cuda_headers() is None, reason="no CUDA headers: neither a toolkit nor a package")


@pytest.fixture(scope="module")
def kernels() -> Any:
    return build.load(BUILD)


def make_params(kernels: Any, case: Case, dtype: torch.dtype, layout: str, gap: int, activation: str | None) -> Any:
    params = kernels.ConvParams()
    values = {
        **dict(zip("NCHW", case.input_shape, strict=True)),
        **dict(zip("NKPQ", case.output_shape, strict=True)),
        **{"R": case.r, "S": case.s, "groups": case.groups},
        **dict(zip(("stride_h", "stride_w"), case.stride, strict=True)),
        **dict(zip(("pad_h", "pad_w"), case.padding, strict=True)),
        **dict(zip(("dilation_h", "dilation_w"), case.dilation, strict=True)),
        "x_strides": kernels.Strides4(*dense_strides(case.input_shape, layout, gap)),
        "y_strides": kernels.Strides4(*dense_strides(case.output_shape, layout, gap)),
        "layout": getattr(kernels.Layout, layout),
        "dtype": getattr(kernels.DType, str(dtype).removeprefix("torch.")),
        "activation": 0 if activation is None else ACTIVATIONS.index(activation),
    }
    for name, value in values.items():
        setattr(params, name, value)
    return params


def place(values: torch.Tensor, layout: str, gap: int) -> torch.Tensor:
    """`values` in memory of its own that ends with its last element, so that the sanitizer sees a read past it."""
    strides = dense_strides(values.shape, layout, gap)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True))
    return torch.empty(extent, dtype=values.dtype).as_strided(values.shape, strides).copy_(values)


def forward(
    kernels: Any,
    case: Case,
    layout: str,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None = None,
    gap: int = 0,
) -> torch.Tensor:
    params = make_params(kernels, case, x.dtype, layout, gap, activation)
    y = place(torch.full(case.output_shape, torch.nan, dtype=x.dtype), layout, gap)
    x, w = place(x, layout, gap), w.contiguous()
    kernels.depthwise_forward_general(
        params, x.data_ptr(), w.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr()
    )
    return y


def random_operands(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(case.name))
    shapes = (case.input_shape, case.weight_shape, (case.k,))
    x, w, bias = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return x, w, bias


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", DEPTHWISE_CASES, ids=str)
def test_values(kernels: Any, case: Case, dtype: torch.dtype, layout: str) -> None:
    x, w, bias = random_operands(case, dtype)
    assert_within(forward(kernels, case, layout, x, w, bias), expect_forward(case, x, w, bias), str(case))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", DEPTHWISE_CASES[::4], ids=str)
def test_integers_are_exact(kernels: Any, case: Case, dtype: torch.dtype) -> None:
    x, w, bias = ((t * 1.5).round().clamp(-3, 3) for t in random_operands(case, dtype))
    for layout in ("nchw", "nhwc"):
        y = forward(kernels, case, layout, x, w, bias)
        assert_same_bits(y, expect_forward(case, x, w, bias).value, f"{case} {layout}")


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("case", DEPTHWISE_CASES[::5], ids=str)
def test_slices_of_wider_tensors(kernels: Any, case: Case, layout: str) -> None:
    x, w, _ = random_operands(case, torch.float32)
    y = forward(kernels, case, layout, x, w, None, gap=3)
    assert_within(y, expect_forward(case, x, w, None), str(case))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_activations(kernels: Any, activation: str, dtype: torch.dtype) -> None:
    case = DEPTHWISE_CASES[2]
    x, w, bias = random_operands(case, dtype)
    y = forward(kernels, case, "nhwc", 2 * x, w, bias, activation)
    assert_within(y, expect_forward(case, 2 * x, w, bias, activation), activation)


def test_nan_passes_through_every_activation(kernels: Any) -> None:
    case = DEPTHWISE_CASES[0]
    for activation in ACTIVATIONS:
        x = torch.full(case.input_shape, torch.nan)
        assert forward(kernels, case, "nchw", x, torch.ones(case.weight_shape), None, activation).isnan().all()


def test_plan(kernels: Any) -> None:
    params = make_params(kernels, DEPTHWISE_CASES[2], torch.float32, "nchw", 0, None)
    config = kernels.plan_depthwise_forward_general(params)
    outputs = params.N * params.K * params.P * params.Q
    assert config.blocks * config.threads >= outputs > (config.blocks - 1) * config.threads
    assert repr(config) == f"LaunchConfig(blocks={config.blocks}, threads={config.threads})"

    params.N, params.K, params.P, params.Q = 2**13, 2**13, 2**10, 2**10  # more outputs than a grid has threads
    assert kernels.plan_depthwise_forward_general(params).blocks == 2**31 - 1


@pytest.mark.skipif(BUILD != "plain", reason="this is the process that it starts")
def test_under_sanitizers() -> None:
    environment = {**os.environ, **build.sanitizer_environment(), "CNNEXT_EMULATOR_BUILD": "sanitized"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-n",
        "0",
        __file__,
        "-k",
        "slices or integers",
    ]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
