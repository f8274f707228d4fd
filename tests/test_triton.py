"""The Triton kernels: values, gradients, layouts, activations. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cnnext
from cnnext import backends
from cnnext.backends import triton as backend
from tests import checking, triton_cases
from tests.cases import LAYOUTS, Case, apply_op, plain_conv2d, random_operands
from tests.reference import ACTIVATIONS
from tests.triton_cases import CASES, DEVICE, DTYPES

pytestmark = pytest.mark.skipif(backend.unavailable() is not None, reason=f"Triton: {backend.unavailable()}")
if backend.INTERPRETED and backend.unavailable() is None:
    from tests.triton_interpreter import repair

    repair()

ROOT = Path(__file__).resolve().parents[1]
ALL = [pytest.param(op, case, id=f"{op}-{case}") for op, cases in CASES.items() for case in cases]
NAMED = {case.name: (op, case) for op, cases in CASES.items() for case in cases}
FEW = [NAMED[name] for name in ("dw_s2", "dense_s2", "stem", "groups_of_2_to_3", "pw")]
LAYOUT_NAMES = ("nchw", "nhwc")


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    with triton_cases.poisoned_memory():
        yield


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "case"), ALL)
def test_integers_to_the_bit(op: str, case: Case, dtype: torch.dtype, layout: str) -> None:
    checking.check_integer_values(op, case, dtype, layout, backend="triton")


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "case"), FEW)
def test_rounding_stays_within_the_bound(op: str, case: Case, dtype: torch.dtype, layout: str) -> None:
    checking.check_random_values(
        op, case, dtype, layout, activation="silu", with_bias=dtype != torch.float16, backend="triton"
    )


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in LAYOUT_NAMES])
def test_every_layout(layout: str) -> None:
    for name in ("dw_s2", "stem", "pw"):
        op, case = NAMED[name]
        checking.check_integer_values(op, case, torch.float16, layout, backend="triton")


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_infinities_stay_where_they_belong(layout: str) -> None:
    for op, case in FEW:
        triton_cases.check_infinities(op, case, layout)


def test_gradient_operators_in_every_format() -> None:
    for op, case in FEW:
        triton_cases.check_all_formats(op, case)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_offsets_of_64_bits(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnext.triton_kernels import problem

    monkeypatch.setattr(problem, "_NARROW_LIMIT", 0)
    for op, case in FEW:
        checking.check_integer_values(op, case, torch.float32, layout, backend="triton")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_the_whole_range(activation: str) -> None:
    """A filter of a single one lets the activation be seen by itself, special values and small ones included."""
    values = [
        0.0,
        -0.0,
        torch.inf,
        -torch.inf,
        torch.nan,
        1e-30,
        -1e-30,
        1e-6,
        -1e-6,
        3.0,
        -3.0,
        6.0,
        88.0,
        -88.0,
        200.0,
    ]
    values += [*torch.linspace(-12, 12, 97).tolist(), -120.0, 0.62, -0.62, 0.63, -0.63]
    x = torch.tensor(values, device=DEVICE)[None, None, None]
    weight = torch.ones(1, 1, 1, 1, device=DEVICE)
    for op in ("depthwise", "pointwise"):
        function = getattr(cnnext.functional, f"{op}_conv2d")
        actual = function(x, weight, activation=activation, backend="triton")
        expected = ACTIVATIONS[activation](x.double()).float()
        torch.testing.assert_close(actual, expected, rtol=3e-6, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("weight_layout", LAYOUT_NAMES)
def test_output_strides_are_those_of_conv2d(weight_layout: str) -> None:
    for op, case in FEW:
        for layout in LAYOUT_NAMES:
            x, w, bias = random_operands(case, torch.float32)
            x, w = LAYOUTS[layout](x), LAYOUTS[weight_layout](w)
            expected = plain_conv2d(case, x, w, bias)
            actual = apply_op(op, case, x.to(DEVICE), w.to(DEVICE), bias.to(DEVICE), backend="triton")
            assert actual.stride() == expected.stride()


def test_the_same_bits_in_every_run() -> None:
    for op, case in (NAMED["dw_pixels_beyond_a_tile_and_a_part"], NAMED["pixels_beyond_a_tile_and_a_part"]):
        x, w, bias = (t.to(DEVICE) for t in random_operands(case, torch.float32))
        grad = torch.randn(case.output_shape, device=DEVICE)
        first, second = (checking.forward_and_backward(op, case, x, w, bias, grad, None, "triton") for _ in range(2))
        for field in ("output", "grad_input", "grad_weight", "grad_bias"):
            assert torch.equal(getattr(first, field), getattr(second, field))


def test_more_parts_than_are_added_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight gradient of few pixels has one part; here every few pixels are one, so that the sum takes turns."""
    from cnnext.triton_kernels import parts

    monkeypatch.setattr(parts, "_LEAST_PIXELS", 2)
    for name in ("dw_s3x2_dilated", "dense", "groups_of_2_to_3", "pw"):
        op, case = NAMED[name]
        checking.check_integer_values(op, case, torch.float32, "nhwc", backend="triton")


def test_an_empty_batch() -> None:
    from cnnext.triton_kernels.operators import FAMILIES

    x, w = torch.ones(0, 4, 3, 3, device=DEVICE), torch.ones(4, 1, 3, 3, device=DEVICE)
    geometry = ([1, 1], [1, 1], [1, 1])
    y = FAMILIES["depthwise"].forward(x, w, None, *geometry, 0)
    assert y.shape == (0, 4, 3, 3)
    assert FAMILIES["depthwise"].backward_input(y, w, x.shape, *geometry, False).shape == x.shape
    grads = FAMILIES["depthwise"].backward_weight(y, x, w.shape, *geometry, True, False)
    assert [bool((grad == 0).all()) for grad in grads] == [True, True]


@pytest.mark.parametrize("op", CASES)
def test_opcheck(op: str) -> None:
    from cnnext.triton_kernels.operators import FAMILIES

    family, case = FAMILIES[op], CASES[op][0]
    geometry = [[*case.stride], [*case.padding], [*case.dilation], *([case.groups] if family.has_groups else [])]
    x, w, bias = (t.to(DEVICE).requires_grad_() for t in random_operands(case, torch.float32))
    grad = torch.randn(case.output_shape, device=DEVICE, requires_grad=True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(family.forward, (x, w, bias, *geometry, 7), test_utils=tests)
    torch.library.opcheck(family.backward_input, (grad, w, [*x.shape], *geometry, True), test_utils=tests)
    torch.library.opcheck(family.backward_weight, (grad, x, [*w.shape], *geometry, True, False), test_utils=tests)


def test_double_backward_and_vmap_run_on_the_same_kernels() -> None:
    _, case = NAMED["dw_s2"]
    leaves = [t.to(DEVICE).requires_grad_() for t in random_operands(case, torch.float32)]
    reference = [t.detach().double().requires_grad_() for t in leaves]
    seconds = []
    for operands, call in (
        (leaves, lambda *args: apply_op("depthwise", case, *args, backend="triton")),
        (reference, lambda *args: plain_conv2d(case, *args)),
    ):
        first = torch.autograd.grad(call(*operands).square().sum(), operands[:2], create_graph=True)
        seconds.append(torch.autograd.grad(sum(grad.square().sum() for grad in first), operands[:2]))
    torch.testing.assert_close([grad.double() for grad in seconds[0]], [*seconds[1]], rtol=1e-4, atol=1e-3)

    from cnnext.triton_kernels.operators import FAMILIES

    x, w = leaves[0].detach(), leaves[1].detach()
    weights = torch.stack([w, 2 * w])
    args = (None, [*case.stride], [*case.padding], [*case.dilation], 0)
    batched = torch.vmap(lambda one: FAMILIES["depthwise"].forward(x, one, *args))(weights)
    torch.testing.assert_close(batched[1], 2 * batched[0])


def test_torch_compile_traces_a_call_whole() -> None:
    operands = [t.to(DEVICE).requires_grad_() for t in random_operands(NAMED["dw_3x3"][1], torch.float32)]

    def call(*args: torch.Tensor) -> torch.Tensor:
        return apply_op("depthwise", NAMED["dw_3x3"][1], *args, activation="relu", backend="triton")

    torch._dynamo.reset()
    results = []
    for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=False)):
        output = function(*operands)
        results.append([output, *torch.autograd.grad(output.sum(), operands)])
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_autocast_is_that_of_conv2d() -> None:
    x, w = torch.randn(1, 4, 5, 5, device=DEVICE), torch.randn(4, 1, 3, 3, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = apply_op("depthwise", triton_cases.case("dw", (1, 4, 5, 5), 4, 3, groups=4), x, w, backend="triton")
    assert y.dtype == torch.bfloat16


def test_wrong_calls_are_named() -> None:
    x, w = torch.ones(1, 4, 6, 6, device=DEVICE), torch.ones(4, 1, 3, 3, device=DEVICE)
    from cnnext.triton_kernels.operators import FAMILIES

    depthwise, ones = FAMILIES["depthwise"].forward, [1, 1]
    for args, words in (
        ((x, w, torch.ones(3, device=DEVICE), ones, ones, ones, 0), r"bias of size \[4\]"),
        ((x, w.half(), None, ones, ones, ones, 0), "one dtype"),
        ((x.double(), w.double(), None, ones, ones, ones, 0), "float64"),
        ((x, w, None, [0, 1], ones, ones, 0), "stride"),
        ((x[:, :, :2, :2], w, None, ones, [0, 0], ones, 0), "[Kk]ernel size"),
    ):
        with pytest.raises(RuntimeError, match=words):
            depthwise(*args)
    with pytest.raises(RuntimeError, match="gradient of size"):
        FAMILIES["depthwise"].backward_input(x, w, [1, 4, 6, 6], ones, [0, 0], ones, False)
    with pytest.raises(RuntimeError, match=r"\[K, C, 1, 1\]"):
        FAMILIES["pointwise"].forward(x, torch.ones(4, 4, 3, 3, device=DEVICE), None, ones, ones, ones, 0)


def test_the_backend_is_for_gpus_and_for_those_who_ask() -> None:
    x, w = torch.ones(1, 4, 6, 6), torch.ones(4, 1, 3, 3)
    lines = dict(line.split(": ", 1) for line in backends.explain("depthwise_conv2d", x, w).splitlines())
    assert list(lines) == ["cuda", "triton", "cpu", "aten"]
    assert lines["cpu"] == "chosen"
    if backend.INTERPRETED:
        assert "unless asked for by name" in lines["triton"]
        with backends.use("triton"):
            lines = dict(line.split(": ", 1) for line in backends.explain("depthwise_conv2d", x, w).splitlines())
        assert lines["triton"] == "chosen"
    with pytest.raises(backends.BackendError, match=r"'triton'.*float64"):
        apply_op(
            "depthwise", CASES["depthwise"][0], *random_operands(CASES["depthwise"][0], torch.float64), backend="triton"
        )


@pytest.mark.gpu
def test_tensors_beyond_32_bits() -> None:
    storage = torch.zeros(2**31 + 2**20, dtype=torch.float16, device="cuda")
    x = storage.as_strided((2, 4, 5, 5), (2**31, 25, 5, 1))
    x.copy_(torch.randint(-3, 4, x.shape, device="cuda"))
    w = torch.randint(-3, 4, (4, 1, 3, 3), device="cuda").half()
    case = triton_cases.case("wide", (2, 4, 5, 5), 4, 3, padding=1, groups=4)
    expected = plain_conv2d(case, x.contiguous().float(), w.float())
    torch.testing.assert_close(apply_op("depthwise", case, x, w, backend="triton").float(), expected, rtol=0, atol=0)


@pytest.mark.skipif(not backend.INTERPRETED, reason="guarded memory is the CPU's")
def test_nothing_beside_the_tensors_is_touched() -> None:
    """In a process of its own, which dies if something is."""
    command = [sys.executable, "-m", "tests.triton_cases"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, f"{result.stdout[-200:]}\n{result.stderr[-2000:]}"
