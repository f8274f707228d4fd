"""The depthwise CUDA kernels, run by the emulator: every configuration that a planner lists, against float64.

The process tests one build of the emulator, the plain one unless CNNEXT_EMULATOR_BUILD says otherwise; a test at the
end of this file starts a process for each of the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cnnext.ops import ACTIVATIONS
from tests.cases import (
    DEPTHWISE_CASES,
    DEPTHWISE_CUDA_CASES,
    Case,
    by_name,
    integer_operands,
    random_grad,
    random_operands,
)
from tests.cuda_kernels import BUILD, CudaKernels, Placement
from tests.emulator import build
from tests.reference import DTYPES, assert_same_bits, assert_within, expect_exact, expect_forward, expect_gradients

pytestmark = pytest.mark.skipif(build.cuda_headers() is None, reason="no CUDA headers: neither a toolkit nor a package")

CASES = DEPTHWISE_CASES + DEPTHWISE_CUDA_CASES
FAST_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("nchw", "nhwc")
IDS = {"ids": str}

# Between elements: nothing that keeps 16-byte accesses, something that does, and something that does not; ahead of them
# an offset that leaves only the element's own alignment.
SLICES = [Placement(layout, gap, offset) for layout in LAYOUTS for gap, offset in ((8, 0), (3, 0), (0, 1), (8, 8))]


@pytest.fixture(scope="module")
def kernels() -> CudaKernels:
    return CudaKernels()


def check_integers(kernels: CudaKernels, case: Case, dtype: torch.dtype, placement: Placement) -> None:
    """Every product and sum of small integers is exact: the results must agree to the bit."""
    x, w, bias = integer_operands(case, dtype)
    dy = random_grad(case, dtype, integers=True)
    exact = expect_exact(case, dy, x, w, bias)
    for config, y in kernels.forward(case, placement, x, w, bias):
        assert_same_bits(y, exact.output, f"{config}: y")
    for config, dx in kernels.backward_input(case, placement, dy, w):
        assert_same_bits(dx, exact.grad_input, f"{config}: dx")
    for config, dw, dbias in kernels.backward_weight(case, placement, dy, x):
        assert dbias is not None
        assert_same_bits(dw, exact.grad_weight, f"{config}: dw")
        assert_same_bits(dbias, exact.grad_bias, f"{config}: dbias")


def check_random(kernels: CudaKernels, case: Case, dtype: torch.dtype, placement: Placement) -> None:
    x, w, _ = random_operands(case, dtype)
    dy = random_grad(case, dtype)
    expected_y = expect_forward(case, x, w, None)
    expected = expect_gradients(case, dy, x, w)
    for config, y in kernels.forward(case, placement, x, w):
        assert_within(y, expected_y, f"{config}: y")
    for config, dx in kernels.backward_input(case, placement, dy, w):
        assert_within(dx, expected.input, f"{config}: dx")
    for config, dw, _ in kernels.backward_weight(case, placement, dy, x, with_bias=False):
        assert_within(dw, expected.weight, f"{config}: dw")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
@pytest.mark.parametrize("case", CASES, **IDS)
def test_integers_are_exact(kernels: CudaKernels, case: Case, dtype: torch.dtype, layout: str) -> None:
    check_integers(kernels, case, dtype, Placement(layout))


@pytest.mark.skipif(BUILD != "plain", reason="the other builds look for wrong accesses, not for rounding")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
@pytest.mark.parametrize("case", CASES, **IDS)
def test_random_values(kernels: CudaKernels, case: Case, dtype: torch.dtype, layout: str) -> None:
    check_random(kernels, case, dtype, Placement(layout))


@pytest.mark.parametrize("placement", SLICES, **IDS)
@pytest.mark.parametrize("dtype", FAST_DTYPES, **IDS)
@pytest.mark.parametrize("case", CASES[::4] + DEPTHWISE_CUDA_CASES[::3], **IDS)
def test_slices_of_wider_tensors(kernels: CudaKernels, case: Case, dtype: torch.dtype, placement: Placement) -> None:
    check_integers(kernels, case, dtype, placement)


@pytest.mark.parametrize("dtype", DTYPES, **IDS)
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_activations(kernels: CudaKernels, activation: str, dtype: torch.dtype) -> None:
    for case in by_name("depthwise", "mobilenet_7", "mobilenet_14", "mobilenet_28_s2", "filter_5x5"):
        x, w, bias = random_operands(case, dtype)
        expected = expect_forward(case, 2 * x, w, bias, activation)
        for layout in LAYOUTS:
            number = ACTIVATIONS.index(activation)
            for config, y in kernels.forward(case, Placement(layout), 2 * x, w, bias, number):
                assert_within(y, expected, f"{config}: {activation}")


def test_activations_at_their_ends(kernels: CudaKernels) -> None:
    """Sums far out, infinite and NaN give what torch gives."""
    case = by_name("depthwise", "filter_1x1")[0]
    values = torch.tensor(
        [-torch.inf, -200.0, -100.0, -30.0, -1e-3, 0.0, 1e-3, 30.0, 100.0, 200.0, torch.inf, torch.nan]
    )
    x = values[torch.arange(700).remainder(len(values))].reshape(case.input_shape)
    w = torch.ones(case.weight_shape)
    for number, name in enumerate(ACTIVATIONS):
        expected = x if name is None else getattr(torch.nn.functional, name)(x.double()).float()
        for layout in LAYOUTS:
            for config, y in kernels.forward(case, Placement(layout), x, w, None, number):
                torch.testing.assert_close(y, expected, rtol=2e-6, atol=1e-37, equal_nan=True, msg=f"{config} {name}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FAST_DTYPES, **IDS)
def test_infinities_stay_where_they_belong(kernels: CudaKernels, dtype: torch.dtype, layout: str) -> None:
    """A tap outside the image is left out, not multiplied by zero: zero times infinity would be NaN."""
    for case in by_name("depthwise", "mobilenet_7", "mobilenet_14_s2", "padding_beyond_filter", "filter_7x7"):
        x, w, _ = integer_operands(case, dtype)
        dy = random_grad(case, dtype, integers=True)
        x[:, :, 0, :] = torch.inf
        w[0] = torch.inf
        dy[:, :, :, 0] = torch.inf
        exact = expect_exact(case, dy, x, w, None)

        def same(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
            torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=0, atol=0, equal_nan=True, msg=what)

        for config, y in kernels.forward(case, Placement(layout), x, w):
            same(y, exact.output, f"{config}: y of {case}")
        for config, dx in kernels.backward_input(case, Placement(layout), dy, w):
            same(dx, exact.grad_input, f"{config}: dx of {case}")
        for config, dw, _ in kernels.backward_weight(case, Placement(layout), dy, x):
            same(dw, exact.grad_weight, f"{config}: dw of {case}")


@pytest.mark.parametrize("name", [name for name in build.BUILDS if name != "plain"])
@pytest.mark.skipif(BUILD != "plain", reason="this is a process that it starts")
def test_in_the_other_builds(name: str) -> None:
    environment = {**os.environ, **build.environment(name), "CNNEXT_EMULATOR_BUILD": name}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", __file__]
    root = Path(__file__).parent.parent
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
