"""The checks that the tests of every op share: values, gradients, layouts, strides and determinism."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cnnext.ops import FAMILIES
from tests.cases import (
    LAYOUTS,
    Case,
    apply_op,
    integer_operands,
    plain_conv2d,
    random_grad,
    random_operands,
    with_size,
)
from tests.reference import (
    Exact,
    assert_same_bits,
    assert_within,
    expect_exact,
    expect_forward,
    expect_gradients,
    upcast,
)


@dataclass(frozen=True)
class Result:
    """What one call and its backward pass gave."""

    output: torch.Tensor
    grad_input: torch.Tensor
    grad_weight: torch.Tensor
    grad_bias: torch.Tensor | None


def forward_and_backward(
    op: str,
    case: Case,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    grad_output: torch.Tensor,
    activation: str | None = None,
    backend: str | None = None,
) -> Result:
    """Runs `op` and asks autograd for all gradients; x and w keep their strides."""
    leaves = [t.detach().requires_grad_() for t in (x, w)]
    if bias is not None:
        leaves.append(bias.detach().requires_grad_())
    output = apply_op(op, case, *leaves, activation=activation, backend=backend)
    grads = torch.autograd.grad(output, leaves, grad_output)
    return Result(output.detach(), grads[0], grads[1], grads[2] if bias is not None else None)


def check_random_values(
    op: str,
    case: Case,
    dtype: torch.dtype,
    layout: str,
    activation: str | None = None,
    with_bias: bool = True,
    backend: str | None = None,
) -> None:
    """Forward and all gradients of normally distributed operands stay within the bounds of the reference."""
    x, w, bias = random_operands(case, dtype)
    x, grad = LAYOUTS[layout](x), LAYOUTS[layout](random_grad(case, dtype))
    used_bias = bias if with_bias else None
    result = forward_and_backward(op, case, x, w, used_bias, grad, activation, backend)
    _check_bookkeeping(result, x, w, used_bias)
    _check_activated_output(op, case, x, w, used_bias, activation, result, backend)
    expected = expect_gradients(case, grad, x, w, used_bias, activation)
    assert_within(result.grad_input, expected.input, "input gradient")
    assert_within(result.grad_weight, expected.weight, "weight gradient")
    if result.grad_bias is not None:
        assert_within(result.grad_bias, expected.bias, "bias gradient")


@functools.lru_cache(maxsize=64)
def exact_results(case: Case) -> Exact:
    """What the integer operands of `case` give, in whatever dtype and layout."""
    x, w, bias = integer_operands(case, torch.float64)
    return expect_exact(case, random_grad(case, torch.float64, integers=True), x, w, bias)


def _integer_problem(
    case: Case, dtype: torch.dtype, layout: str
) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor, Exact]:
    """Operands, output gradient, and what they give."""
    x, w, bias = integer_operands(case, dtype)
    x, grad = LAYOUTS[layout](x), LAYOUTS[layout](random_grad(case, dtype, integers=True))
    changes_values = layout.endswith("expanded")
    expected = expect_exact(case, grad, x, w, bias) if changes_values else exact_results(case)
    return (x, w, bias), grad, expected


def check_integer_values(op: str, case: Case, dtype: torch.dtype, layout: str, backend: str | None = None) -> None:
    """Forward and all gradients of small integers are right to the last bit."""
    operands, grad, expected = _integer_problem(case, dtype, layout)
    result = forward_and_backward(op, case, *operands, grad, backend=backend)
    assert_same_bits(result.output, expected.output, "forward")
    assert_same_bits(result.grad_input, expected.grad_input, "input gradient")
    assert_same_bits(result.grad_weight, expected.grad_weight, "weight gradient")
    assert result.grad_bias is not None
    assert_same_bits(result.grad_bias, expected.grad_bias, "bias gradient")


def check_activation_kinks(op: str, case: Case, dtype: torch.dtype, layout: str, activation: str) -> None:
    """At a kink, where sums are exactly 0, 3 or 6, value and slope are those of the activation itself."""
    x, w, bias = integer_operands(case, dtype)
    x, grad = LAYOUTS[layout](x), LAYOUTS[layout](random_grad(case, dtype, integers=True))
    before = plain_conv2d(case, upcast(x), upcast(w), upcast(bias))
    assert bool((before == 0).any()), "the case has no sum on the kink"
    assert bool(before.abs().max() <= 256), "a sum this large is no bfloat16"
    result = forward_and_backward(op, case, x, w, bias, grad, activation)
    _check_activated_output(op, case, x, w, bias, activation, result)
    expected = expect_gradients(case, grad, x, w, bias, activation, sum_is_exact=True)
    assert_within(result.grad_input, expected.input, "input gradient")
    assert_within(result.grad_weight, expected.weight, "weight gradient")
    assert_within(result.grad_bias, expected.bias, "bias gradient")


def check_backward_ops(op: str, case: Case, dtype: torch.dtype, layout: str) -> None:
    """The gradient operators, called directly, are exact on integers and obey `channels_last` and `with_bias`."""
    (x, w, _), grad, expected = _integer_problem(case, dtype, layout)
    family = FAMILIES[op]
    geometry = (case.stride, case.padding, case.dilation, *((case.groups,) if family.has_groups else ()))
    for channels_last in (False, True):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        grad_input = family.backward_input(grad, w, x.shape, *geometry, channels_last)
        assert grad_input.is_contiguous(memory_format=memory_format)
        assert_same_bits(grad_input, expected.grad_input, "input gradient")
        for with_bias in (False, True):
            grad_weight, grad_bias = family.backward_weight(grad, x, w.shape, *geometry, with_bias, channels_last)
            assert grad_weight.is_contiguous(memory_format=memory_format)
            assert_same_bits(grad_weight, expected.grad_weight, "weight gradient")
            if with_bias:
                assert_same_bits(grad_bias, expected.grad_bias, "bias gradient")
            else:
                assert grad_bias.shape == (0,)


def _check_activated_output(
    op: str,
    case: Case,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    result: Result,
    backend: str | None = None,
) -> None:
    """Without gradients the activation sees the unrounded sum; with them it may see one rounded to x's dtype."""
    expected = expect_forward(case, x, w, bias, activation)
    if activation is not None:
        fused = apply_op(op, case, x, w, bias, activation=activation, backend=backend)
        assert_within(fused, expected, "fused forward")
        expected = expect_forward(case, x, w, bias, activation, rounded_sum=True)
    assert_within(result.output, expected, "forward")


def _check_bookkeeping(result: Result, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> None:
    assert result.output.dtype == x.dtype
    assert (result.grad_input.shape, result.grad_input.dtype) == (x.shape, x.dtype)
    assert (result.grad_weight.shape, result.grad_weight.dtype) == (w.shape, w.dtype)
    if bias is not None:
        assert result.grad_bias is not None
        assert (result.grad_bias.shape, result.grad_bias.dtype) == (bias.shape, bias.dtype)


def check_strides(op: str, case: Case, dtype: torch.dtype, layout: str, weight_layout: str) -> None:
    """The output's strides are those that F.conv2d gives for the same input and filter, and so are the fake's.

    Strides of dimensions of size 1 mean nothing, and F.conv2d's differ between its backends; there its fake decides.
    """
    x, w, bias = random_operands(case, dtype)
    x, w = LAYOUTS[layout](x), LAYOUTS[weight_layout](w)
    expected, actual = plain_conv2d(case, x, w, bias), apply_op(op, case, x, w, bias)
    with FakeTensorMode() as mode:
        operands = [mode.from_tensor(t) for t in (x, w, bias)]
        expected_fake, fake = plain_conv2d(case, *operands), apply_op(op, case, *operands)
    assert _strides_that_matter(actual) == _strides_that_matter(expected)
    assert actual.stride() == fake.stride() == expected_fake.stride()
    assert (fake.shape, fake.dtype) == (expected.shape, expected.dtype)


def _strides_that_matter(tensor: torch.Tensor) -> list[int]:
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def enlarged(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """The cases with images large enough that a kernel splits them over threads."""
    return tuple(with_size(case, n=4, h=case.h + 41, w=case.w + 38) for case in cases)


def check_determinism(op: str, case: Case, dtype: torch.dtype, layout: str) -> None:
    """The same bits come out of every run, with one thread and with several, the fused activation included."""
    x, w, bias = random_operands(case, dtype)
    x, grad = LAYOUTS[layout](x), LAYOUTS[layout](random_grad(case, dtype))
    threads = torch.get_num_threads()
    results, activated = [], []
    try:
        for count in (1, 2, 1, 2, 3):
            torch.set_num_threads(count)
            results.append(forward_and_backward(op, case, x, w, bias, grad))
            activated.append(apply_op(op, case, x, w, bias, activation="silu"))
    finally:
        torch.set_num_threads(threads)
    for other, other_activated in zip(results[1:], activated[1:], strict=True):
        assert torch.equal(activated[0], other_activated), "the activated output differs between runs"
        for field in ("output", "grad_input", "grad_weight", "grad_bias"):
            assert torch.equal(getattr(results[0], field), getattr(other, field)), f"{field} differs between runs"


def check_poisoned_outputs(op: str, case: Case, dtype: torch.dtype, layout: str) -> None:
    """Fresh memory is filled with NaN by torch, so an element that no kernel writes is seen as one."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        assert bool(torch.empty(64, dtype=dtype).isnan().all()), "torch does not poison fresh memory"
        torch.set_num_threads(2)  # another split of the work than in the other tests
        check_integer_values(op, case, dtype, layout)
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
