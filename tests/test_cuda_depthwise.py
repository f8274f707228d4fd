"""The depthwise CUDA kernels, run by the emulator: every configuration that a planner lists, against float64.

The process tests one build of the emulator, the plain one unless CNNEXT_EMULATOR_BUILD says otherwise; a test at the
end of this file starts a process for each of the others.
"""

from __future__ import annotations

import pytest
import torch

from cnnext.ops import ACTIVATIONS
from tests.cases import DEPTHWISE_CASES, DEPTHWISE_CUDA_CASES, Case, by_name, random_grad, random_operands
from tests.cuda_kernels import (
    BUILD,
    OPS,
    WATCHED,
    CudaKernels,
    Operands,
    Placement,
    Variant,
    check_integers,
    check_random,
    exact_results,
    integers,
    run_in_build,
)
from tests.emulator import build
from tests.reference import DTYPES, assert_within, expect_forward

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


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
@pytest.mark.parametrize("case", CASES, **IDS)
def test_integers_are_exact(kernels: CudaKernels, case: Case, dtype: torch.dtype, layout: str, op: str) -> None:
    check_integers(kernels, op, case, dtype, Placement(layout))


@pytest.mark.skipif(WATCHED, reason="these builds look for wrong accesses, not for rounding")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
@pytest.mark.parametrize("case", CASES[::2], **IDS)
def test_random_values(kernels: CudaKernels, case: Case, dtype: torch.dtype, layout: str, op: str) -> None:
    check_random(kernels, op, case, dtype, Placement(layout))


@pytest.mark.parametrize("op", OPS[:2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FAST_DTYPES, **IDS)
@pytest.mark.parametrize("name", ["mobilenet_14", "mobilenet_28_s2", "filter_5x5", "cuda_7x7"])
def test_filter_and_bias_that_are_not_aligned(
    kernels: CudaKernels, name: str, dtype: torch.dtype, layout: str, op: str
) -> None:
    (case,) = by_name("depthwise", name)
    check_integers(kernels, op, case, dtype, Placement(layout), Variant("depthwise", filter_offset=1))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("placement", SLICES, **IDS)
@pytest.mark.parametrize("dtype", FAST_DTYPES, **IDS)
@pytest.mark.parametrize("case", CASES[:: 8 if WATCHED else 4], **IDS)
def test_slices_of_wider_tensors(
    kernels: CudaKernels, case: Case, dtype: torch.dtype, placement: Placement, op: str
) -> None:
    check_integers(kernels, op, case, dtype, placement)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_activations_of_forward(kernels: CudaKernels, activation: str, dtype: torch.dtype, layout: str) -> None:
    for case in by_name("depthwise", "mobilenet_7", "mobilenet_14", "mobilenet_28_s2", "filter_5x5"):
        x, w, bias = random_operands(case, dtype)
        operands = Operands(2 * x, w, bias, random_grad(case, dtype))
        expected = expect_forward(case, 2 * x, w, bias, activation)
        for config, results in kernels.run("forward", case, Placement(layout), operands, ACTIVATIONS.index(activation)):
            assert_within(results["y"], expected, f"{config}: {activation}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_activations_of_forward_at_their_ends(kernels: CudaKernels, layout: str) -> None:
    """Sums far out, infinite and NaN give what torch gives."""
    ends = [-torch.inf, -200.0, -100.0, -30.0, -1e-3, 0.0, 1e-3, 30.0, 100.0, 200.0, torch.inf, torch.nan]
    for case in by_name("depthwise", "filter_1x1", "cuda_one_tap"):
        count = torch.Size(case.input_shape).numel()
        x = torch.tensor(ends)[torch.arange(count).remainder(len(ends))].reshape(case.input_shape)
        w = torch.zeros(case.weight_shape)
        w[:, :, case.r // 2, case.s // 2] = 1
        operands = Operands(x, w, None, torch.zeros(case.output_shape))
        for number, name in enumerate(ACTIVATIONS):
            sums = exact_results(case, operands)["y"]
            expected = sums if name == "none" else getattr(torch.nn.functional, name)(sums)
            for config, results in kernels.run("forward", case, Placement(layout), operands, number):
                torch.testing.assert_close(
                    results["y"],
                    expected.float(),
                    rtol=2e-6,
                    atol=1e-37,
                    equal_nan=True,
                    msg=lambda text, config=config, name=name: f"{config} {name}: {text}",
                )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FAST_DTYPES, **IDS)
def test_infinities_stay_where_they_belong(kernels: CudaKernels, dtype: torch.dtype, layout: str, op: str) -> None:
    """An infinite value reaches the results that use it and no others.

    The filter is finite: PyTorch's own backends differ in whether padding meets an infinite filter.
    """
    for case in by_name("depthwise", "mobilenet_7", "mobilenet_14_s2", "padding_beyond_filter", "filter_7x7"):
        operands = integers(case, dtype)
        operands.x[:, :, 0, :] = operands.x[:, :, :, -1] = torch.inf
        operands.dy[:, :, :, 0] = torch.inf
        exact = exact_results(case, operands)
        for config, results in kernels.run(op, case, Placement(layout), operands):
            for name, result in results.items():
                torch.testing.assert_close(
                    result,
                    exact[name].to(dtype),
                    rtol=0,
                    atol=0,
                    equal_nan=True,
                    msg=lambda text, config=config, name=name, case=case: f"{config}: {name} of {case}: {text}",
                )


@pytest.mark.parametrize("name", [name for name in build.BUILDS if name != "plain"])
@pytest.mark.skipif(BUILD != "plain", reason="this is a process that it starts")
def test_in_the_other_builds(name: str) -> None:
    run_in_build(name, __file__)
