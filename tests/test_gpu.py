"""The kernels on a GPU, against float64 on the CPU.

On the CPU the same checks run over a few cases, so that they are known to work where there is no GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch

from cnnext import backends, inference_ops
from cnnext._extension import BUILD_INFO
from cnnext.ops import ACTIVATIONS
from tests import checking
from tests.cases import (
    CASES,
    CUDA_CASES,
    LARGE_WGMMA_CASES,
    LAYOUTS,
    WGMMA_CASES,
    Case,
    apply_op,
    integer_operands,
    random_grad,
    random_operands,
)
from tests.reference import (
    DTYPES,
    assert_same_bits,
    assert_within,
    expect_exact,
    expect_forward,
    expect_gradients,
)
from tests.separable_blocks import BLOCKS, BlockOperands, expected_of, operands_of

#: Device and backend.
PLACES = ["cpu-cpu", *(pytest.param(f"cuda-{name}", marks=pytest.mark.gpu) for name in ("cuda", "triton"))]
OPS = tuple(CASES)
ALL_CASES = {op: CASES[op] + CUDA_CASES.get(op, ()) for op in OPS}
#: The layouts in which an input comes from another device unchanged.
NATIVE = ("nchw", "nhwc", "nchw_slice", "nhwc_slice")


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """The bounds are those of float32, not of TF32; F.conv2d must not choose it on its side either."""
    cudnn = torch.backends.cudnn
    # A context, because assignments are refused once torch.testing has been imported.
    with cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False):
        yield


def _cases(op: str, device: str) -> tuple[Case, ...]:
    return ALL_CASES[op] if device == "cuda" else ALL_CASES[op][:3]


def _run(
    op: str, case: Case, operands: tuple[torch.Tensor, ...], grad: torch.Tensor, device: str, backend: str, layout: str
) -> checking.Result:
    """Forward and gradients on the device, the results on the CPU; the layout is made there, so slices stay slices."""
    x, w, bias = operands
    on_device = [t.to(device) for t in (x, w, bias, grad)]
    with torch.device(device):  # where the layouts make their wider tensors
        on_device[0], on_device[3] = LAYOUTS[layout](on_device[0]), LAYOUTS[layout](on_device[3])
    result = checking.forward_and_backward(op, case, *on_device, backend=backend)
    return checking.Result(**{f.name: getattr(result, f.name).cpu() for f in dataclasses.fields(result)})


def _skip_what_the_backend_refuses(backend: str, dtype: torch.dtype) -> None:
    if backend not in backends.available():
        pytest.skip(f"{backend} is not available: {backends._BACKENDS[backend].unavailable()}")
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("the Triton kernels do not take float64")


def _check_exact(op: str, case: Case, dtype: torch.dtype, device: str, backend: str, layout: str) -> None:
    operands, grad = integer_operands(case, dtype), random_grad(case, dtype, integers=True)
    result = _run(op, case, operands, grad, device, backend, layout)
    expected = expect_exact(case, grad, *operands)
    assert_same_bits(result.output, expected.output, f"{case}: forward")
    assert_same_bits(result.grad_input, expected.grad_input, f"{case}: input gradient")
    assert_same_bits(result.grad_weight, expected.grad_weight, f"{case}: weight gradient")
    assert result.grad_bias is not None
    assert_same_bits(result.grad_bias, expected.grad_bias, f"{case}: bias gradient")


@pytest.mark.parametrize("layout", NATIVE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("place", PLACES)
def test_integers_are_exact(place: str, op: str, dtype: torch.dtype, layout: str) -> None:
    device, backend = place.split("-")
    _skip_what_the_backend_refuses(backend, dtype)
    for case in _cases(op, device):
        _check_exact(op, case, dtype, device, backend, layout)


@pytest.mark.parametrize("layout", NATIVE[:2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("place", PLACES)
def test_random_values_are_within_rounding(place: str, op: str, dtype: torch.dtype, layout: str) -> None:
    device, backend = place.split("-")
    _skip_what_the_backend_refuses(backend, dtype)
    for case in _cases(op, device):
        operands, grad = random_operands(case, dtype), random_grad(case, dtype)
        result = _run(op, case, operands, grad, device, backend, layout)
        assert_within(result.output, expect_forward(case, *operands, None), f"{case}: forward")
        expected = expect_gradients(case, grad, *operands, None)
        assert_within(result.grad_input, expected.input, f"{case}: input gradient")
        assert_within(result.grad_weight, expected.weight, f"{case}: weight gradient")
        assert_within(result.grad_bias, expected.bias, f"{case}: bias gradient")
        again = _run(op, case, operands, grad, device, backend, layout)
        assert torch.equal(result.grad_weight, again.grad_weight), f"{case}: the weight gradient differs between runs"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("place", PLACES[:2])
def test_small_problems(place: str, op: str, dtype: torch.dtype) -> None:
    """What compute-sanitizer watches: a case of each shape that the CUDA kernels tell apart, in both layouts."""
    device, backend = place.split("-")
    _skip_what_the_backend_refuses(backend, dtype)
    small = sorted(_cases(op, device), key=lambda case: case.n * case.c * case.h * case.w)
    for case in small[: len(small) // 2 or 1]:
        for layout in NATIVE[:2]:
            _check_exact(op, case, dtype, device, backend, layout)


def _wgmma_kernels(run: Callable[[], checking.Result]) -> tuple[checking.Result, set[str]]:
    """What `run` gives, and the kernels with wgmma that it has launched."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        result = run()
        torch.cuda.synchronize()
    return result, {event.name for event in profile.events() if "wgmma" in event.name}


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", WGMMA_CASES + LARGE_WGMMA_CASES, ids=str)
def test_wgmma_agrees_with_its_twin(
    case: Case, dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and input gradient, asked for by CNNEXT_PREFER_WGMMA, against float64 and the kernels with mma.sync."""
    _skip_what_the_backend_refuses("cuda", dtype)
    if torch.cuda.get_device_capability() != (9, 0) or "9.0a" not in BUILD_INFO["cuda"]["architectures"]:
        pytest.skip("this needs compute capability 9.0, and a build for 9.0a")
    if case in LARGE_WGMMA_CASES and layout == "nchw":
        pytest.skip("the conversion does not depend on the size")
    operands, grad = integer_operands(case, dtype), random_grad(case, dtype, integers=True)
    random, random_dy = random_operands(case, dtype), random_grad(case, dtype)
    monkeypatch.setenv("CNNEXT_PREFER_WGMMA", "0")
    twin, none = _wgmma_kernels(lambda: _run("grouped", case, operands, grad, "cuda", "cuda", layout))
    monkeypatch.setenv("CNNEXT_PREFER_WGMMA", "1")
    result, both = _wgmma_kernels(lambda: _run("grouped", case, operands, grad, "cuda", "cuda", layout))
    assert not none
    assert len(both) == 2, both
    assert torch.equal(result.output, twin.output)
    assert torch.equal(result.grad_input, twin.grad_input)
    if case in WGMMA_CASES:  # float64 on the CPU takes seconds for the others
        expected = expect_exact(case, grad, *operands)
        assert_same_bits(result.output, expected.output, f"{case}: forward")
        assert_same_bits(result.grad_input, expected.grad_input, f"{case}: input gradient")
        result = _run("grouped", case, random, random_dy, "cuda", "cuda", layout)
        assert_within(result.output, expect_forward(case, *random, None), f"{case}: forward")
        gradients = expect_gradients(case, random_dy, *random, None)
        assert_within(result.grad_input, gradients.input, f"{case}: input gradient")


def _run_block(
    shape: tuple[Case, int], operands: BlockOperands, activations: tuple[str, str], device: str, layout: str
) -> torch.Tensor:
    """The block on the device by its operator, the result on the CPU."""
    o = operands
    tensors = (o.x, o.depthwise_w, o.depthwise_bias, o.w, o.bias, o.residual)
    x, *rest = (None if t is None else t.to(device) for t in tensors)
    with torch.device(device):
        x = LAYOUTS[layout](x)
    depthwise = shape[0]
    geometry = (*depthwise.stride, *depthwise.padding, *depthwise.dilation)
    numbers = (ACTIVATIONS.index(name) for name in activations)
    return inference_ops.SEPARABLE_CONV2D(x, *rest, None, *geometry, *numbers).cpu()


@pytest.mark.parametrize("layout", NATIVE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("place", PLACES[:2])
def test_separable_blocks(place: str, dtype: torch.dtype, layout: str) -> None:
    """Fused where the planner says so, with biases, both activations, and the residual."""
    device, backend = place.split("-")
    _skip_what_the_backend_refuses(backend, dtype)
    for shape in BLOCKS if device == "cuda" else BLOCKS[:3]:
        operands = operands_of(shape, dtype)
        for given in (operands, operands.bare()):
            y = _run_block(shape, given, ("relu6", "relu"), device, layout)
            assert_same_bits(y, expected_of(shape, given, ("relu6", "relu")).value, str(shape[0]))
        operands = operands_of(shape, dtype, integers=False)
        y = _run_block(shape, operands, ("silu", "hardswish"), device, layout)
        assert_within(y, expected_of(shape, operands, ("silu", "hardswish")), str(shape[0]))
        again = _run_block(shape, operands, ("silu", "hardswish"), device, layout)
        assert torch.equal(y, again), f"{shape[0]}: results differ between runs"


@pytest.mark.gpu
def test_a_separable_block_is_explained() -> None:
    x = torch.ones(8, 64, 56, 56, dtype=torch.float16, device="cuda").to(memory_format=torch.channels_last)
    w, pointwise = torch.ones(64, 1, 3, 3).to(x), torch.ones(64, 64, 1, 1).to(x)
    if backends.chosen("depthwise_conv2d", x, w)["forward"] != "cuda":
        pytest.skip("the CUDA kernels are not available")
    text = backends.explain("separable_conv2d", x, w, pointwise, padding=1)
    assert "cuda: chosen; one kernel: predicted" in text
    assert "two kernels: the input is not channels_last" in backends.explain(
        "separable_conv2d", x.contiguous(), w, pointwise, padding=1
    )


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS)
def test_a_cuda_graph_gives_the_same(op: str) -> None:
    """While a graph is captured nothing is measured, whatever `benchmark` says."""
    case = ALL_CASES[op][0]
    x, w, bias = (t.cuda() for t in random_operands(case, torch.float32))
    expected = apply_op(op, case, x, w, bias)
    before, backends.benchmark = backends.benchmark, True
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = apply_op(op, case, x, w, bias)
        graph.replay()
        torch.cuda.synchronize()
    finally:
        backends.benchmark = before
    torch.testing.assert_close(output, expected)
