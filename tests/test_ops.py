"""The operators as PyTorch sees them: opcheck, numerical gradients, fakes, autocast, vmap, torch.func."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

import cnnext
from cnnext.ops import ACTIVATIONS, FAMILIES
from tests.cases import LAYOUTS, Case, apply_op, case, plain_conv2d, random_grad, random_operands
from tests.reference import ACTIVATIONS as REFERENCE_ACTIVATIONS
from tests.reference import DTYPES

OPS = tuple(FAMILIES)
SMALL: dict[str, tuple[Case, ...]] = {
    "depthwise": (
        case("dw_s2", (2, 3, 6, 5), 3, 3, stride=2, padding=1, groups=3),
        case("dw_multiplier", (1, 2, 5, 6), 4, (2, 3), padding=(0, 1), dilation=(1, 2), groups=2),
    ),
    "grouped": (
        case("dense", (2, 3, 5, 6), 2, 3, stride=(2, 1), padding=1),
        case("groups", (1, 4, 5, 5), 6, 2, dilation=2, groups=2),
    ),
    "pointwise": (
        case("pw", (2, 3, 4, 5), 4, 1),
        case("pw_s2_padded", (1, 2, 5, 4), 3, 1, stride=2, padding=1),
    ),
}
ALL_SMALL = [(op, entry) for op in OPS for entry in SMALL[op]]


def geometry_args(op: str, case: Case) -> tuple[Any, ...]:
    tail = (case.groups,) if FAMILIES[op].has_groups else ()
    return [*case.stride], [*case.padding], [*case.dilation], *tail


# --- opcheck ----------------------------------------------------------------------------------------------------------


def _operator_samples(
    op: str, case: Case, dtype: torch.dtype, layouts: tuple[tuple[str, str], ...]
) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    family, args = FAMILIES[op], geometry_args(op, case)
    for layout, weight_layout in layouts:
        x, w, bias = (t.requires_grad_() for t in random_operands(case, dtype))
        x = LAYOUTS[layout](x.detach()).requires_grad_()
        w = LAYOUTS[weight_layout](w.detach()).requires_grad_()
        grad_output = LAYOUTS[layout](random_grad(case, dtype)).requires_grad_()
        channels_last = "nhwc" in (layout, weight_layout)
        yield family.forward, (x, w, bias, *args, 0)
        yield family.forward, (x, w, None, *args, ACTIVATIONS.index("silu"))
        yield family.backward_input, (grad_output, w, [*x.shape], *args, channels_last)
        yield family.backward_weight, (grad_output, x, [*w.shape], *args, True, channels_last)
        yield family.backward_weight, (grad_output, x, [*w.shape], *args, False, channels_last)


@pytest.mark.parametrize(("layout", "op"), [("nchw", "depthwise"), ("nhwc", "grouped"), ("nchw", "pointwise")])
def test_opcheck(op: str, layout: str) -> None:
    for operator, args in _operator_samples(op, SMALL[op][0], torch.float32, ((layout, layout),)):
        torch.library.opcheck(operator, args)


@pytest.mark.parametrize(("op", "case"), ALL_SMALL, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_of_schemas_and_fakes(op: str, case: Case, dtype: torch.dtype) -> None:
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    layouts = (
        ("nchw", "nchw"),
        ("nhwc", "nhwc"),
        ("nchw", "nhwc"),
        ("nhwc_slice", "nchw"),
        ("transposed_image", "nchw"),
    )
    for operator, args in _operator_samples(op, case, dtype, layouts):
        torch.library.opcheck(operator, args, test_utils=tests)


def test_the_activations_of_the_operators_are_those_of_the_reference() -> None:
    assert ("none", *REFERENCE_ACTIVATIONS) == ACTIVATIONS


# --- gradients against differences ------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", REFERENCE_ACTIVATIONS)
@pytest.mark.parametrize("op", OPS)
def test_gradients_with_activations(op: str, activation: str) -> None:
    case = SMALL[op][1]
    leaves = [t.requires_grad_() for t in random_operands(case, torch.float64)]

    def function(*operands: torch.Tensor) -> torch.Tensor:
        return apply_op(op, case, *operands, activation=activation)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(("op", "case"), ALL_SMALL, ids=str)
def test_gradients_of_first_and_second_order(op: str, case: Case, layout: str) -> None:
    x, w, bias = (t.requires_grad_() for t in random_operands(case, torch.float64))
    x = LAYOUTS[layout](x.detach()).requires_grad_()
    for leaves in ((x, w, bias), (x, w)):
        assert torch.autograd.gradcheck(lambda *operands: apply_op(op, case, *operands), leaves)
        assert torch.autograd.gradgradcheck(lambda *operands: apply_op(op, case, *operands), leaves, fast_mode=True)


@pytest.mark.parametrize(("op", "case"), ALL_SMALL, ids=str)
def test_every_subset_of_gradients(op: str, case: Case) -> None:
    """Asking for some gradients gives what asking for all gives, and nothing where none is asked for."""
    operands = random_operands(case, torch.float64)
    reference = [t.clone().requires_grad_() for t in operands]
    full = torch.autograd.grad(plain_conv2d(case, *reference).square().sum(), reference)
    for wanted in itertools.product((False, True), repeat=3):
        leaves = [t.clone().requires_grad_(flag) for t, flag in zip(operands, wanted, strict=True)]
        output = apply_op(op, case, *leaves)
        assert output.requires_grad == any(wanted)
        if any(wanted):
            output.square().sum().backward()
        for leaf, flag, expected in zip(leaves, wanted, full, strict=True):
            if flag:
                torch.testing.assert_close(leaf.grad, expected)
            else:
                assert leaf.grad is None


@pytest.mark.parametrize(("op", "case"), ALL_SMALL, ids=str)
def test_without_gradients(op: str, case: Case) -> None:
    operands = [t.requires_grad_() for t in random_operands(case, torch.float32)]
    expected = plain_conv2d(case, *operands).detach()
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            output = apply_op(op, case, *operands)
        assert not output.requires_grad
        torch.testing.assert_close(output.clone(), expected)
    with torch.inference_mode():
        assert apply_op(op, case, *operands).is_inference()


def test_gradients_accumulate_and_graphs_are_freed() -> None:
    x, w, bias = (t.requires_grad_() for t in random_operands(SMALL["depthwise"][0], torch.float64))
    loss = apply_op("depthwise", SMALL["depthwise"][0], x, w, bias).sum()
    loss.backward(retain_graph=True)
    first = w.grad.clone()
    loss.backward()
    torch.testing.assert_close(w.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_changed_operand_is_noticed() -> None:
    case = SMALL["depthwise"][0]
    x, w, bias = random_operands(case, torch.float64)
    output = apply_op("depthwise", case, x, w.requires_grad_(), bias)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


# --- autocast ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("op", "case"), ALL_SMALL, ids=str)
def test_autocast_treats_operands_as_conv2d_does(op: str, case: Case, autocast_dtype: torch.dtype) -> None:
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    for input_dtype, weight_dtype, bias_dtype in itertools.product(dtypes, dtypes, (*dtypes, None)):
        x, w, bias = random_operands(case, torch.float32)
        operands = [x.to(input_dtype), w.to(weight_dtype)]
        if bias_dtype is not None:
            operands.append(bias.to(bias_dtype))
        with torch.autocast("cpu", autocast_dtype):
            try:
                expected = plain_conv2d(case, *operands)
            except RuntimeError:
                with pytest.raises(RuntimeError):
                    apply_op(op, case, *operands)
                continue
            actual = apply_op(op, case, *operands)
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize(("op", "case"), ALL_SMALL, ids=str)
def test_autocast_gives_gradients_in_the_dtype_of_the_leaves(op: str, case: Case) -> None:
    leaves = [t.requires_grad_() for t in random_operands(case, torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        output = apply_op(op, case, *leaves, activation="relu6")
    output.float().square().sum().backward()
    for leaf in leaves:
        assert leaf.grad.dtype == torch.float32
        assert bool(leaf.grad.isfinite().all())
        assert bool((leaf.grad != 0).any())


# --- vmap and torch.func ----------------------------------------------------------------------------------------------

IN_DIMS = [
    dims for dims in itertools.product((0, None, 1), (0, None, -1), (0, None)) if any(d is not None for d in dims)
]


@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_vmap_over_any_operands(op: str, in_dims: tuple[int | None, ...]) -> None:
    batch = 3
    for entry in SMALL[op]:
        operands = []
        for index, (tensor, dim) in enumerate(zip(random_operands(entry, torch.float64), in_dims, strict=True)):
            if dim is not None:
                torch.manual_seed(index)
                tensor = torch.stack([tensor * (1 + i) + torch.randn(()) for i in range(batch)], dim=dim)
            operands.append(tensor)
        for activation in (None, "silu"):

            def function(*args: torch.Tensor) -> torch.Tensor:
                return apply_op(op, entry, *args, activation=activation)  # noqa: B023

            actual = vmap(function, in_dims=in_dims)(*operands)
            slices = [
                [t if dim is None else t.select(dim, i) for t, dim in zip(operands, in_dims, strict=True)]
                for i in range(batch)
            ]
            torch.testing.assert_close(actual, torch.stack([function(*entry) for entry in slices]))


@pytest.mark.parametrize(("op", "case"), ALL_SMALL, ids=str)
def test_vmap_without_bias_and_nested(op: str, case: Case) -> None:
    x, w, _ = random_operands(case, torch.float64)
    xs, ws = torch.stack([x, 2 * x, x - 1]), torch.stack([w, w + 1])
    actual = vmap(vmap(lambda a, b: apply_op(op, case, a, b), (None, 0)), (0, None))(xs, ws)
    expected = torch.stack([torch.stack([plain_conv2d(case, a, b) for b in ws]) for a in xs])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("activation", [None, "relu", "mish"])
@pytest.mark.parametrize(("op", "case"), ALL_SMALL, ids=str)
def test_gradients_per_sample(op: str, case: Case, activation: str | None) -> None:
    x, w, bias = random_operands(case, torch.float64)

    def loss(w: torch.Tensor, bias: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return apply_op(op, case, image[None], w, bias, activation=activation).square().sum()

    images = torch.cat([x, x.flip(2) + 0.25])
    actual = vmap(grad(loss, argnums=(0, 1, 2)), in_dims=(None, None, 0))(w, bias, images)
    for index, image in enumerate(images):
        leaves = [t.clone().requires_grad_() for t in (w, bias, image)]
        expected = torch.autograd.grad(loss(*leaves), leaves)
        for mine, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(mine[index], other)


@pytest.mark.parametrize(("op", "case"), ALL_SMALL, ids=str)
def test_jacobian_by_reverse_mode(op: str, case: Case) -> None:
    operands = random_operands(case, torch.float64)
    for argnum in range(3):
        actual = jacrev(lambda *args: apply_op(op, case, *args), argnums=argnum)(*operands)
        expected = jacrev(lambda *args: plain_conv2d(case, *args), argnums=argnum)(*operands)
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("op", "case"), ALL_SMALL, ids=str)
def test_forward_mode(op: str, case: Case) -> None:
    operands = random_operands(case, torch.float64)
    tangents = random_operands(case, torch.float64, tag="tangents")
    actual = jvp(lambda *args: apply_op(op, case, *args, activation="silu"), operands, tangents)
    expected = jvp(lambda *args: F.silu(plain_conv2d(case, *args)), operands, tangents)
    torch.testing.assert_close(actual, expected)
    actual_jacobian = jacfwd(lambda w: apply_op(op, case, operands[0], w))(operands[1])
    torch.testing.assert_close(actual_jacobian, jacfwd(lambda w: plain_conv2d(case, operands[0], w))(operands[1]))


@pytest.mark.parametrize(("op", "case"), ALL_SMALL, ids=str)
def test_hessian_vector_product(op: str, case: Case) -> None:
    x, w, bias = random_operands(case, torch.float64)

    def by(function: Callable[..., torch.Tensor]) -> torch.Tensor:
        inner = grad(lambda t: function(x, t, bias).square().sum())
        return grad(lambda t: (inner(t) * torch.arange(t.numel(), dtype=t.dtype).view_as(t)).sum())(w)

    actual = by(lambda *args: apply_op(op, case, *args, activation="tanh"))
    expected = by(lambda *args: torch.tanh(plain_conv2d(case, *args)))
    torch.testing.assert_close(actual, expected)


def test_functional_call_of_a_module() -> None:
    module = cnnext.DepthwiseConv2d(4, 8, 3, padding=1).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    params = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    expected = F.conv2d(x, params["weight"], params["bias"], padding=1, groups=4)
    torch.testing.assert_close(functional_call(module, params, x), expected)
