"""The CUDA kernels with wgmma and tensor copies (sm_90a), run by the emulator, against float64.

Their planner's configurations run with all others in test_cuda_grouped.py; here the kernels stand alone, so that all
builds of the emulator are made in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cnnext.ops import ACTIVATIONS
from tests.cases import WGMMA_CASES, Case, random_grad, random_operands
from tests.cuda_kernels import (
    BUILD,
    WATCHED,
    CudaKernels,
    Operands,
    Placement,
    exact_results,
    flat,
    integers,
    place,
    place_output,
    run_in_build,
)
from tests.emulator import build
from tests.reference import assert_same_bits, assert_within, expect_forward, expect_gradients

pytestmark = [
    pytest.mark.skipif(build.cuda_headers() is None, reason="no CUDA headers: neither a toolkit nor a package"),
    pytest.mark.skipif(BUILD not in build.BUILDS, reason="the module for coverage holds the other kernels too"),
]

OPS = ("forward", "backward_input")
HALVES = (torch.float16, torch.bfloat16)
#: Columns of a tile, and the slots of its ring.
TILES = {128: 3, 256: 4}
DENSE, GAPS = Placement("nhwc"), Placement("nhwc", 8)
IDS = {"ids": str}

CASES_AND_DTYPES = [
    (case, dtype) for i, case in enumerate(WGMMA_CASES) for dtype in (HALVES[i % 2 :][:1] if WATCHED else HALVES)
]


@pytest.fixture(scope="module")
def kernels() -> CudaKernels:
    return CudaKernels(name="wgmma")


def make_config(kernels: CudaKernels, op: str, case: Case, columns: int) -> Any:
    """What the planner gives for a tile, in as far as the kernels ask."""
    if op == "forward":
        (n, channels, h, w), classes = case.output_shape, (1, 1)
    else:
        (n, channels, h, w), classes = case.input_shape, case.stride
    pixels = n * -(-h // classes[0]) * -(-w // classes[1])
    tiles = -(-pixels // 128) * -(-channels // case.groups // columns)
    shared_bytes = TILES[columns] * 128 * (128 + columns) + 1024
    return kernels.module.LaunchConfig(columns, [tiles, case.groups, classes[0] * classes[1]], shared_bytes)


def run(
    kernels: CudaKernels, op: str, case: Case, operands: Operands, placement: Placement = DENSE, activation: int = 0
) -> Iterator[tuple[str, torch.Tensor]]:
    """What each tile gives."""
    w = flat("w", operands.w.permute(0, 2, 3, 1))
    for columns in TILES:
        if op == "forward":
            source = place("x", operands.x, placement)
            result = place_output("y", case.output_shape, operands.x.dtype, placement)
            inputs = (source, w, flat("bias", operands.bias))
            params = kernels.params(case, source, result, "nhwc", activation)
        else:
            source = place("dy", operands.dy, placement)
            result = place_output("dx", case.input_shape, operands.dy.dtype, placement)
            inputs = (source, w)
            params = kernels.params(case, result, source, "nhwc")
        with kernels.registered(*inputs, result):
            addresses = [0 if operand is None else operand.address for operand in (*inputs, result)]
            getattr(kernels.module, op)(params, make_config(kernels, op, case, columns), *addresses)
        result.check_gaps()
        yield f"{op}, {columns} columns", result.tensor


def check_integers(kernels: CudaKernels, op: str, case: Case, dtype: torch.dtype, placement: Placement) -> None:
    operands = integers(case, dtype)
    exact = exact_results(case, operands)["y" if op == "forward" else "dx"]
    for name, result in run(kernels, op, case, operands, placement):
        assert_same_bits(result, exact, name)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("case", "dtype"), CASES_AND_DTYPES, **IDS)
def test_integers_are_exact(kernels: CudaKernels, case: Case, dtype: torch.dtype, op: str) -> None:
    check_integers(kernels, op, case, dtype, DENSE)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", WGMMA_CASES[1::4], **IDS)
def test_slices_of_wider_tensors(kernels: CudaKernels, case: Case, op: str) -> None:
    check_integers(kernels, op, case, torch.float16, GAPS)


@pytest.mark.skipif(WATCHED, reason="these builds look for wrong accesses, not for rounding")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", HALVES, **IDS)
@pytest.mark.parametrize("case", WGMMA_CASES[3:10:3], **IDS)
def test_random_values(kernels: CudaKernels, case: Case, dtype: torch.dtype, op: str) -> None:
    x, w, _ = random_operands(case, dtype)
    operands = Operands(x, w, None, random_grad(case, dtype))
    gradients = expect_gradients(case, operands.dy, x, w)
    expected = {"forward": expect_forward(case, x, w, None), "backward_input": gradients.input}[op]
    for name, result in run(kernels, op, case, operands):
        assert_within(result, expected, name)


@pytest.mark.skipif(WATCHED, reason="these builds look for wrong accesses, not for rounding")
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_activations(kernels: CudaKernels, activation: str) -> None:
    case, dtype = WGMMA_CASES[0], torch.bfloat16
    x, w, bias = random_operands(case, dtype)
    operands = Operands(x, w, bias, random_grad(case, dtype))
    expected = expect_forward(case, x, w, bias, activation)
    for name, result in run(kernels, "forward", case, operands, activation=ACTIVATIONS.index(activation)):
        assert_within(result, expected, f"{name}: {activation}")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", WGMMA_CASES[3::5], **IDS)
def test_infinities_stay_where_they_belong(kernels: CudaKernels, case: Case, op: str) -> None:
    """Also in the channels past a group's or a tensor's last."""
    operands = integers(case, torch.float16)
    operands.x[0, 0, 0, 0] = operands.x[-1, -1, -1, -1] = torch.inf
    operands.dy[0, -1, -1, -1] = torch.nan
    finite = exact_results(case, operands)["y" if op == "forward" else "dx"].isfinite()
    for name, result in run(kernels, op, case, operands):
        assert bool((result.isfinite() == finite).all()), name


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_any_order_of_threads(kernels: CudaKernels, order: str) -> None:
    kernels.module.set_schedule(order, 1)
    try:
        for op in OPS:
            check_integers(kernels, op, WGMMA_CASES[3], torch.float16, DENSE)
    finally:
        kernels.module.set_schedule()


@pytest.mark.parametrize("name", [name for name in build.BUILDS if name != "plain"])
@pytest.mark.skipif(BUILD != "plain", reason="this is a process that it starts")
def test_in_the_other_builds(name: str) -> None:
    run_in_build(name, __file__)
