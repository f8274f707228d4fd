"""The grouped CUDA kernels (dense and 1x1 included), run by the emulator: every configuration, against float64."""

from __future__ import annotations

import pytest
import torch

from cnnext.ops import ACTIVATIONS
from tests.cases import GROUPED_CASES, GROUPED_CUDA_CASES, POINTWISE_CASES, Case, by_name, random_grad, random_operands
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
    ends,
    exact_results,
    first,
    integers,
    run_in_build,
)
from tests.emulator import build
from tests.reference import DTYPES, assert_within, expect_forward

pytestmark = pytest.mark.skipif(build.cuda_headers() is None, reason="no CUDA headers: neither a toolkit nor a package")

# The 1x1 convolutions run on the grouped kernels, as one group with one tap.
CASES = GROUPED_CUDA_CASES + (GROUPED_CASES[::5] if WATCHED else GROUPED_CASES + POINTWISE_CASES)
FAST_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("nchw", "nhwc")
# The two 16-bit dtypes run the same code.
DTYPES_AND_LAYOUTS = [(dtype, layout) for dtype in (torch.float32, torch.float64) for layout in LAYOUTS]
DTYPES_AND_LAYOUTS += [(torch.float16, "nhwc"), (torch.bfloat16, "nchw")]
GROUPED = Variant("grouped")
IDS = {"ids": str}


@pytest.fixture(scope="module")
def kernels() -> CudaKernels:
    return CudaKernels()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("dtype", "layout"), DTYPES_AND_LAYOUTS, **IDS)
@pytest.mark.parametrize("case", CASES, **IDS)
def test_integers_are_exact(kernels: CudaKernels, case: Case, dtype: torch.dtype, layout: str, op: str) -> None:
    # Every configuration runs on the cases that were made for its tiles.
    select = list if case in GROUPED_CUDA_CASES else ends
    check_integers(kernels, op, case, dtype, Placement(layout), GROUPED, select)


@pytest.mark.skipif(WATCHED, reason="these builds look for wrong accesses, not for rounding")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("dtype", "layout"), DTYPES_AND_LAYOUTS, **IDS)
@pytest.mark.parametrize("case", CASES[::4], **IDS)
def test_random_values(kernels: CudaKernels, case: Case, dtype: torch.dtype, layout: str, op: str) -> None:
    check_random(kernels, op, case, dtype, Placement(layout), GROUPED, first)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", GROUPED_CUDA_CASES, **IDS)
def test_tf32_is_exact_on_integers(kernels: CudaKernels, case: Case, op: str) -> None:
    variant = Variant("grouped", True, filter_channels_last=GROUPED_CUDA_CASES.index(case) % 2 == 0)
    check_integers(kernels, op, case, torch.float32, Placement("nhwc"), variant)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", GROUPED_CUDA_CASES[::3], **IDS)
def test_tf32_rounds_the_factors_only(kernels: CudaKernels, case: Case, op: str) -> None:
    """With factors that TF32 holds exactly, results are as good as float32's."""
    x, w, _ = random_operands(case, torch.bfloat16)
    dy = random_grad(case, torch.bfloat16)
    operands = Operands(x.float(), w.float(), None, dy.float())
    exact = exact_results(case, operands)
    for config, results in kernels.run(op, case, Placement("nhwc"), operands, variant=Variant("grouped", True)):
        for name, result in results.items():
            torch.testing.assert_close(result.double(), exact[name], rtol=1e-5, atol=1e-4, msg=f"{config}: {name}")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FAST_DTYPES, **IDS)
@pytest.mark.parametrize("case", GROUPED_CUDA_CASES[::2] + GROUPED_CASES[::9], **IDS)
def test_filter_in_channels_last(kernels: CudaKernels, case: Case, dtype: torch.dtype, layout: str, op: str) -> None:
    check_integers(kernels, op, case, dtype, Placement(layout), Variant("grouped", filter_channels_last=True), ends)


@pytest.mark.parametrize("op", OPS[:2])
@pytest.mark.parametrize("dtype", FAST_DTYPES, **IDS)
@pytest.mark.parametrize("name", ["cuda_1x1_s2", "cuda_groups_of_8", "cuda_dense_16", "cuda_split_odd_outputs"])
def test_filter_and_bias_that_are_not_aligned(kernels: CudaKernels, name: str, dtype: torch.dtype, op: str) -> None:
    (case,) = by_name("grouped", name)
    variant = Variant("grouped", filter_channels_last=True, filter_offset=1)
    check_integers(kernels, op, case, dtype, Placement("nhwc"), variant)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("placement", [Placement("nhwc", 8), Placement("nhwc", 3), Placement("nchw", 3, 1)], **IDS)
@pytest.mark.parametrize("dtype", FAST_DTYPES, **IDS)
@pytest.mark.parametrize("case", GROUPED_CUDA_CASES[:: 4 if WATCHED else 2] + GROUPED_CASES[::9], **IDS)
def test_slices_of_wider_tensors(
    kernels: CudaKernels, case: Case, dtype: torch.dtype, placement: Placement, op: str
) -> None:
    check_integers(kernels, op, case, dtype, placement, GROUPED, ends)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, **IDS)
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_activations_of_forward(kernels: CudaKernels, activation: str, dtype: torch.dtype, layout: str) -> None:
    for case in by_name("grouped", "dense_stem", "cuda_dense_16", "cuda_groups_of_8", "cuda_split_odd_outputs"):
        x, w, bias = random_operands(case, dtype)
        operands = Operands(x, w, bias, random_grad(case, dtype))
        expected = expect_forward(case, x, w, bias, activation)
        number = ACTIVATIONS.index(activation)
        for config, results in kernels.run("forward", case, Placement(layout), operands, number, GROUPED, ends):
            assert_within(results["y"], expected, f"{config}: {activation}")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FAST_DTYPES, **IDS)
def test_infinities_stay_where_they_belong(kernels: CudaKernels, dtype: torch.dtype, layout: str, op: str) -> None:
    """An infinite or NaN value reaches the results that use it and no others, whatever shares its tile."""
    for case in by_name("grouped", "dense_stem", "cuda_groups_of_8", "resnext_group_of_4", "cuda_dense_16"):
        operands = integers(case, dtype)
        operands.x[0, 0, 0, 0] = operands.x[-1, -1, -1, -1] = torch.inf
        operands.dy[0, -1, -1, -1] = torch.nan
        exact = exact_results(case, operands)
        for config, results in kernels.run(op, case, Placement(layout), operands, variant=GROUPED):
            for name, result in results.items():
                # A padded tap is a product of zero and a finite weight; which results are not finite is what counts.
                finite = exact[name].isfinite()
                assert bool((result.isfinite() == finite).all()), f"{config}: {name} of {case}"


@pytest.mark.skipif(BUILD != "checked", reason="only this build counts passes through the banks")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", FAST_DTYPES, **IDS)
@pytest.mark.parametrize(
    "name", ["cuda_dense_72_to_136", "cuda_groups_of_8", "cuda_groups_of_16_s2", "cuda_groups_of_32"]
)
def test_main_loops_have_no_bank_conflicts(kernels: CudaKernels, name: str, dtype: torch.dtype, op: str) -> None:
    """What a block reads in its main loop, and the 16-byte copies that it reads from, go through the banks at once."""
    (case,) = by_name("grouped", name)
    module = kernels.module
    module.clear_statistics()
    module.collect_statistics(True)
    try:
        for _ in kernels.run(op, case, Placement("nhwc"), integers(case, dtype), 0, Variant("grouped", True), ends):
            pass
    finally:
        module.collect_statistics(False)
    # The epilogue and the sums of dy pass through shared memory once a block.
    steady = [
        line
        for line in module.statistics()
        if line.space == "shared" and "epilogue" not in line.file and (line.access == "read" or line.bytes == 16)
    ]
    assert {line.access for line in steady} == {"read", "write"}
    conflicts = [
        f"{line.file}:{line.line} {line.access} {line.bytes} bytes: {line.cost} for {line.ideal}"
        for line in steady
        if line.cost > line.ideal
    ]
    assert not conflicts


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param("not_aligned or bank_conflicts or infinities", id="a few"),
        pytest.param("", id="all", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", [name for name in build.BUILDS if name != "plain"])
@pytest.mark.skipif(BUILD != "plain", reason="this is a process that it starts")
def test_in_the_other_builds(name: str, expression: str) -> None:
    run_in_build(name, __file__, expression)
