"""1x1 convolution: forward and the gradients of input, filter and bias, against float64."""

from __future__ import annotations

import pytest
import torch

from tests import checking
from tests.cases import LAYOUTS, NATIVE_LAYOUTS, POINTWISE_CASES, Case, by_name
from tests.reference import ACTIVATIONS, DTYPES

OP = "pointwise"
FEW = by_name(OP, "mobilenet_7", "primes", "stride_2", "padded_and_strided", "one_pixel_many_channels")
IDS = {"ids": str}


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
@pytest.mark.parametrize("case", POINTWISE_CASES, **IDS)
def test_values_and_gradients(case: Case, dtype: torch.dtype, layout: str) -> None:
    checking.check_integer_values(OP, case, dtype, layout)
    checking.check_random_values(OP, case, dtype, layout)
    checking.check_random_values(OP, case, dtype, layout, with_bias=False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
def test_every_layout(dtype: torch.dtype, layout: str) -> None:
    for case in FEW:
        checking.check_integer_values(OP, case, dtype, layout)
        checking.check_random_values(OP, case, dtype, layout)


@pytest.mark.parametrize("layout", [*NATIVE_LAYOUTS, "nchw_slice", "nhwc_slice"])
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
def test_gradient_operators(dtype: torch.dtype, layout: str) -> None:
    for case in POINTWISE_CASES:
        checking.check_backward_ops(OP, case, dtype, layout)


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
def test_activations(dtype: torch.dtype, activation: str, layout: str) -> None:
    for case in by_name(OP, "mobilenet_7", "primes", "stride_2"):
        checking.check_random_values(OP, case, dtype, layout, activation)
        checking.check_random_values(OP, case, dtype, layout, activation, with_bias=False)
        checking.check_activation_kinks(OP, case, dtype, layout, activation)


@pytest.mark.parametrize("weight_layout", ["nchw", "nhwc", "nchw_slice"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_strides(layout: str, weight_layout: str) -> None:
    for case in FEW + by_name(OP, "one_pixel", "one_input_channel", "one_output_channel"):
        for dtype in (torch.float32, torch.float64):
            checking.check_strides(OP, case, dtype, layout, weight_layout)


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
def test_same_bits_in_every_run(dtype: torch.dtype, layout: str) -> None:
    for case in FEW + checking.enlarged(by_name(OP, "mobilenet_7", "stride_2")):
        checking.check_determinism(OP, case, dtype, layout)


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
def test_every_output_is_written(dtype: torch.dtype, layout: str) -> None:
    for case in POINTWISE_CASES:
        checking.check_poisoned_outputs(OP, case, dtype, layout)
