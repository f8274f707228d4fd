"""Depthwise convolution: forward and the gradients of input, filter and bias, against float64."""

from __future__ import annotations

import pytest
import torch

from tests import checking
from tests.cases import DEPTHWISE_CASES, LAYOUTS, NATIVE_LAYOUTS, Case, by_name
from tests.reference import ACTIVATIONS, DTYPES

OP = "depthwise"
FEW = by_name(
    OP, "mobilenet_7", "mobilenet_14_s2", "prime_everything", "filter_5x5_s2", "dilation_3x2_s2", "multiplier_3_s2"
)
IDS = {"ids": str}


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
@pytest.mark.parametrize("case", DEPTHWISE_CASES, **IDS)
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
    for case in DEPTHWISE_CASES:
        checking.check_backward_ops(OP, case, dtype, layout)


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
def test_activations(dtype: torch.dtype, activation: str, layout: str) -> None:
    for case in by_name(OP, "mobilenet_7", "filter_5x5_s2", "multiplier_2"):
        checking.check_random_values(OP, case, dtype, layout, activation)
        checking.check_random_values(OP, case, dtype, layout, activation, with_bias=False)
        checking.check_activation_kinks(OP, case, dtype, layout, activation)


@pytest.mark.parametrize("weight_layout", ["nchw", "nhwc", "nchw_slice"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_strides(layout: str, weight_layout: str) -> None:
    for case in FEW + by_name(OP, "one_pixel", "one_pixel_padded", "multiplier_of_one_channel", "filter_1x1"):
        for dtype in (torch.float32, torch.float64):
            checking.check_strides(OP, case, dtype, layout, weight_layout)


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
def test_same_bits_in_every_run(dtype: torch.dtype, layout: str) -> None:
    large = checking.enlarged(by_name(OP, "mobilenet_28", "filter_5x5_s2", "multiplier_3_s2", "dilation_2"))
    for case in FEW + large:
        checking.check_determinism(OP, case, dtype, layout)


@pytest.mark.parametrize("layout", NATIVE_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
def test_every_output_is_written(dtype: torch.dtype, layout: str) -> None:
    for case in DEPTHWISE_CASES:
        checking.check_poisoned_outputs(OP, case, dtype, layout)
