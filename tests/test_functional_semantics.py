"""cnnext.functional accepts what F.conv2d accepts, gives what it gives, and rejects what it rejects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing._internal.common_methods_invocations import op_db

import cnnext

CONV2D = next(op for op in op_db if op.name == "nn.functional.conv2d")
DTYPES = sorted(CONV2D.supported_dtypes("cpu"), key=str)

Call = Callable[..., torch.Tensor]


def depthwise_by_aten(input: torch.Tensor, weight: torch.Tensor, bias: Any = None, *args: Any, **kw: Any) -> Any:
    """F.conv2d with as many groups as the input has channels."""
    groups = input.size(-3) if isinstance(input, torch.Tensor) and input.dim() in (3, 4) else 1
    return F.conv2d(input, weight, bias, *args, **kw, groups=groups)


PAIRS: dict[str, tuple[Call, Call]] = {
    "depthwise": (cnnext.functional.depthwise_conv2d, depthwise_by_aten),
    "grouped": (cnnext.functional.grouped_conv2d, F.conv2d),
    "pointwise": (cnnext.functional.pointwise_conv2d, F.conv2d),
}


def assert_same_result(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert (actual.shape, actual.dtype, actual.stride()) == (expected.shape, expected.dtype, expected.stride())
    torch.testing.assert_close(actual, expected)


# --- PyTorch's own samples --------------------------------------------------------------------------------------------


def _as_pointwise(sample: Any) -> Any:
    """The sample with its filter cut down to one tap and one group: PyTorch has no 1x1 samples of its own."""
    channels = sample.input.shape[-3]
    weight = sample.args[0][..., :1, :1].detach().clone().requires_grad_(sample.args[0].requires_grad)
    weight = weight.detach().repeat(1, channels // weight.shape[1], 1, 1).requires_grad_(weight.requires_grad)
    sample.args = (weight, *sample.args[1:])
    sample.kwargs = {name: value for name, value in sample.kwargs.items() if name != "groups"}
    return sample


def _samples(op: str, dtype: torch.dtype, requires_grad: bool) -> Iterator[Any]:
    for sample in CONV2D.sample_inputs("cpu", dtype, requires_grad=requires_grad):
        if op == "depthwise":
            kwargs = dict(sample.kwargs)
            if kwargs.pop("groups", 1) != sample.input.shape[-3]:
                continue
            sample.kwargs = kwargs
        yield _as_pointwise(sample) if op == "pointwise" else sample


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", PAIRS)
def test_samples_of_pytorch(op: str, dtype: torch.dtype) -> None:
    ours, theirs = PAIRS[op]
    differentiable = dtype.is_floating_point or dtype.is_complex
    count = 0
    for sample in _samples(op, dtype, requires_grad=differentiable):
        operands = (sample.input, *sample.args)
        actual = ours(*operands, **sample.kwargs)
        assert actual.stride() == theirs(*operands, **sample.kwargs).stride()
        # F.conv2d's own gradients in float16 are rounded many times over, so the truth is what it gives in float32.
        wide = [_widened(t) for t in operands]
        expected = theirs(*wide, **sample.kwargs)
        torch.testing.assert_close(actual, expected.to(dtype))
        if differentiable:
            leaves, wide_leaves = ([t for t in group if t is not None] for group in (operands, wide))
            grads = torch.autograd.grad(actual, leaves, torch.ones_like(actual))
            wide_grads = torch.autograd.grad(expected, wide_leaves, torch.ones_like(expected))
            for mine, other in zip(grads, wide_grads, strict=True):
                torch.testing.assert_close(mine, other.to(dtype))
        count += 1
    assert count >= 8


def _widened(tensor: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None or tensor.dtype not in (torch.float16, torch.bfloat16):
        return tensor
    return tensor.detach().float().requires_grad_(tensor.requires_grad)


def test_error_inputs_of_pytorch() -> None:
    count = 0
    for error in CONV2D.error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            cnnext.functional.grouped_conv2d(sample.input, *sample.args, **sample.kwargs)
        count += 1
    assert count >= 8


# --- Wrong calls ------------------------------------------------------------------------------------------------------


def _t(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


# A wrong call and what the message has to speak of. The filter of a good call is (4, 1, 3, 3) on four channels for the
# depthwise op, (4, 4, 3, 3) for the grouped one, (4, 4, 1, 1) for the pointwise one; {w} stands for it.
WRONG_CALLS: dict[str, tuple[Callable[[Call, torch.Tensor], object], str]] = {
    "input_2d": (lambda f, w: f(_t(4, 5), w), r"(?i)expected.*dim|3D.*4D"),
    "input_5d": (lambda f, w: f(_t(1, 4, 5, 5, 5), w), r"(?i)expected.*dim|3D.*4D"),
    "input_is_a_list": (lambda f, w: f([1.0], w), r"(?i)tensor"),
    "input_is_none": (lambda f, w: f(None, w), r"(?i)tensor"),
    "weight_is_none": (lambda f, w: f(_t(1, 4, 5, 5), None), r"(?i)tensor"),
    "weight_is_a_number": (lambda f, w: f(_t(1, 4, 5, 5), 3.0), r"(?i)tensor"),
    "bias_is_a_number": (lambda f, w: f(_t(1, 4, 5, 5), w, 1.0), r"(?i)tensor"),
    "bias_of_other_length": (lambda f, w: f(_t(1, 4, 5, 5), w, _t(5)), r"(?i)bias"),
    "bias_2d": (lambda f, w: f(_t(1, 4, 5, 5), w, _t(4, 1)), r"(?i)bias"),
    "bias_scalar": (lambda f, w: f(_t(1, 4, 5, 5), w, _t()), r"(?i)bias|dim|scalar"),
    "weight_of_other_dtype": (lambda f, w: f(_t(1, 4, 5, 5), w.double()), r"(?i)same|dtype|type"),
    "input_of_other_dtype": (lambda f, w: f(_t(1, 4, 5, 5, dtype=torch.float64), w), r"(?i)same|dtype|type"),
    "bias_of_other_dtype": (lambda f, w: f(_t(1, 4, 5, 5), w, _t(4, dtype=torch.float64)), r"(?i)same|dtype|type"),
    "integer_input_float_weight": (lambda f, w: f(_t(1, 4, 5, 5, dtype=torch.int64), w), r"(?i)same|dtype|type"),
    "stride_0": (lambda f, w: f(_t(1, 4, 5, 5), w, stride=0), r"(?i)non-positive stride"),
    "stride_negative": (lambda f, w: f(_t(1, 4, 5, 5), w, stride=(1, -2)), r"(?i)non-positive stride"),
    "stride_of_three": (lambda f, w: f(_t(1, 4, 5, 5), w, stride=(1, 1, 1)), r"(?i)stride"),
    "stride_of_none": (lambda f, w: f(_t(1, 4, 5, 5), w, stride=()), r"(?i)stride"),
    "stride_float": (lambda f, w: f(_t(1, 4, 5, 5), w, stride=1.5), r"(?i)stride|int|float"),
    "stride_string": (lambda f, w: f(_t(1, 4, 5, 5), w, stride="two"), r"(?i)stride|int|str"),
    "stride_none": (lambda f, w: f(_t(1, 4, 5, 5), w, stride=None), r"(?i)stride|int|None"),
    "padding_negative": (lambda f, w: f(_t(1, 4, 5, 5), w, padding=-1), r"(?i)negative padding"),
    "padding_half_negative": (lambda f, w: f(_t(1, 4, 5, 5), w, padding=(1, -1)), r"(?i)negative padding"),
    "padding_of_three": (lambda f, w: f(_t(1, 4, 5, 5), w, padding=(1, 1, 1)), r"(?i)padding"),
    "padding_word": (lambda f, w: f(_t(1, 4, 5, 5), w, padding="full"), r"(?i)padding"),
    "padding_float": (lambda f, w: f(_t(1, 4, 5, 5), w, padding=0.5), r"(?i)padding|int|float"),
    "same_with_stride": (lambda f, w: f(_t(1, 4, 5, 5), w, stride=2, padding="same"), r"(?i)stride"),
    "dilation_0": (lambda f, w: f(_t(1, 4, 5, 5), w, dilation=0), r"(?i)dilation"),
    "dilation_negative": (lambda f, w: f(_t(1, 4, 5, 5), w, dilation=-1), r"(?i)dilation"),
    "dilation_of_three": (lambda f, w: f(_t(1, 4, 5, 5), w, dilation=(1, 1, 1)), r"(?i)dilation"),
    "empty_image": (lambda f, w: f(_t(1, 4, 0, 0), w), r"(?i)non-empty|kernel size|negative|too small"),
    "stride_bool": (lambda f, w: f(_t(1, 4, 5, 5), w, stride=True), r"(?i)stride|int|bool"),
    "unknown_keyword": (lambda f, w: f(_t(1, 4, 5, 5), w, strides=1), r"(?i)strides|keyword|arguments"),
    "no_weight": (lambda f, w: f(_t(1, 4, 5, 5)), r"(?i)missing|arguments"),
}
WRONG_DENSE_CALLS: dict[str, tuple[Callable[[Call, torch.Tensor], object], str]] = {
    "weight_3d": (lambda f, w: f(_t(1, 4, 5, 5), w[0]), r"(?i)expected.*dim|3D.*4D"),
    "weight_5d": (lambda f, w: f(_t(1, 4, 5, 5), w[None]), r"(?i)expected.*dim|3D.*4D"),
    "channels": (lambda f, w: f(_t(1, 3, 5, 5), w), r"(?i)channels"),
    "channels_of_unbatched": (lambda f, w: f(_t(3, 5, 5), w), r"(?i)channels"),
}
WRONG_GROUPED_CALLS: dict[str, tuple[Callable[[Call, torch.Tensor], object], str]] = {
    "groups_0": (lambda f, w: f(_t(1, 4, 5, 5), w, groups=0), r"(?i)non-positive groups"),
    "groups_negative": (lambda f, w: f(_t(1, 4, 5, 5), w, groups=-2), r"(?i)non-positive groups"),
    "groups_not_dividing_outputs": (lambda f, w: f(_t(1, 12, 5, 5), w, groups=3), r"(?i)groups|divisible"),
    "groups_beyond_outputs": (lambda f, w: f(_t(1, 20, 5, 5), w, groups=5), r"(?i)groups|at least"),
    "groups_and_channels": (lambda f, w: f(_t(1, 4, 5, 5), w, groups=2), r"(?i)groups|channels"),
    "groups_float": (lambda f, w: f(_t(1, 4, 5, 5), w, groups=1.0), r"(?i)groups|int|float"),
}
WRONG_WINDOW_CALLS: dict[str, tuple[Callable[[Call, torch.Tensor], object], str]] = {
    "image_smaller_than_filter": (lambda f, w: f(_t(1, 4, 2, 5), w), r"(?i)kernel size|greater"),
    "dilated_filter_too_large": (lambda f, w: f(_t(1, 4, 5, 5), w, dilation=3), r"(?i)kernel size|greater"),
    "batch_empty_and_too_small": (lambda f, w: f(_t(0, 4, 2, 5), w), r"(?i)kernel size|greater"),
}
WRONG_DEPTHWISE_CALLS: dict[str, tuple[Callable[[Call, torch.Tensor], object], str]] = {
    "outputs_no_multiple": (lambda f, w: f(_t(1, 3, 5, 5), w), r"(?i)divisible|multiple|groups"),
    "fewer_outputs_than_channels": (lambda f, w: f(_t(1, 6, 5, 5), w), r"(?i)at least|groups|channels"),
    "two_channels_a_group": (lambda f, w: f(_t(1, 4, 5, 5), w.repeat(1, 2, 1, 1)), r"(?i)channels"),
}
FILTERS = {"depthwise": (4, 1, 3, 3), "grouped": (4, 4, 3, 3), "pointwise": (4, 4, 1, 1)}
TABLES = {
    "depthwise": WRONG_CALLS | WRONG_WINDOW_CALLS | WRONG_DEPTHWISE_CALLS,
    "grouped": WRONG_CALLS | WRONG_WINDOW_CALLS | WRONG_DENSE_CALLS | WRONG_GROUPED_CALLS,
    "pointwise": WRONG_CALLS | WRONG_DENSE_CALLS,
}


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, table in TABLES.items() for name in table])
def test_wrong_calls_fail_as_in_pytorch(op: str, name: str) -> None:
    call, words = TABLES[op][name]
    ours, theirs = PAIRS[op]
    weight = torch.zeros(FILTERS[op])
    with pytest.raises((RuntimeError, TypeError)) as expected:
        call(theirs, weight)
    with pytest.raises(expected.type, match=words):
        call(ours, weight)


def test_pointwise_takes_no_wider_filter() -> None:
    with pytest.raises(ValueError, match=r"1, 1.*\(4, 4, 3, 3\)"):
        cnnext.functional.pointwise_conv2d(_t(1, 4, 5, 5), _t(4, 4, 3, 3))


@pytest.mark.gpu
@pytest.mark.parametrize("op", PAIRS)
def test_operands_on_two_devices_are_refused(op: str) -> None:
    x, weight = _t(1, 4, 5, 5), _t(*FILTERS[op])
    for operands in ((x.cuda(), weight), (x, weight.cuda()), (x.cuda(), weight.cuda(), _t(4))):
        with pytest.raises(RuntimeError, match=r"(?i)device|type"):
            PAIRS[op][0](*operands)


@pytest.mark.parametrize("op", PAIRS)
def test_unknown_activation_is_named(op: str) -> None:
    weight = torch.zeros(FILTERS[op])
    with pytest.raises(ValueError, match=r"swish2.*|.*relu6") as error:
        PAIRS[op][0](_t(1, 4, 5, 5), weight, activation="swish2")
    assert "swish2" in str(error.value)
    assert "hardswish" in str(error.value), "the message should list what is known"


# --- Calls that F.conv2d accepts --------------------------------------------------------------------------------------

ACCEPTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride_list": {"stride": [2, 1]},
    "stride_of_one": {"stride": (2,)},
    "stride_size": {"stride": torch.Size([1, 2])},
    "padding_list_of_one": {"padding": [1]},
    "padding_valid": {"padding": "valid"},
    "padding_valid_stride": {"padding": "valid", "stride": 2},
    "padding_same": {"padding": "same"},
    "padding_same_dilated": {"padding": "same", "dilation": (2, 3)},
    "padding_uneven": {"padding": (2, 0)},
}
SHAPES = {
    "depthwise": [(4, 1, 3, 3), (8, 1, 2, 5), (4, 1, 4, 3)],
    "grouped": [(4, 4, 3, 3), (6, 4, 4, 1), (3, 4, 2, 2)],
    "pointwise": [(4, 4, 1, 1), (7, 4, 1, 1)],
}


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("op", PAIRS)
def test_argument_forms(op: str, name: str) -> None:
    ours, theirs = PAIRS[op]
    for shape in SHAPES[op]:
        weight, bias = torch.randn(shape), torch.randn(shape[0])
        for x in (torch.randn(2, 4, 11, 12), torch.randn(4, 11, 12), torch.randn(0, 4, 11, 12)):
            assert_same_result(ours(x, weight, bias, **ACCEPTED[name]), theirs(x, weight, bias, **ACCEPTED[name]))
            assert_same_result(ours(x, weight, **ACCEPTED[name]), theirs(x, weight, **ACCEPTED[name]))


@pytest.mark.parametrize("op", PAIRS)
def test_positional_arguments_are_in_the_order_of_pytorch(op: str) -> None:
    ours, theirs = PAIRS[op]
    weight, bias = torch.randn(FILTERS[op]), torch.randn(4)
    args = (torch.randn(1, 4, 9, 9), weight, bias, (2, 1), (1, 2), (1, 2))
    assert_same_result(ours(*args), theirs(*args))
    if op == "grouped":
        assert_same_result(ours(*args, 1), theirs(*args, 1))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("op", PAIRS)
def test_dtypes_that_no_kernel_takes(op: str, dtype: torch.dtype) -> None:
    ours, theirs = PAIRS[op]
    x, weight = torch.randint(-3, 4, (2, 4, 6, 6)).to(dtype), torch.randint(-3, 4, FILTERS[op]).to(dtype)
    bias = torch.randint(-3, 4, (4,)).to(dtype)
    for used in (bias, None):
        try:
            expected = theirs(x, weight, used, padding=1)
        except RuntimeError as error:
            with pytest.raises(type(error)):
                ours(x, weight, used, padding=1)
        else:
            assert_same_result(ours(x, weight, used, padding=1), expected)


@pytest.mark.parametrize("op", PAIRS)
def test_empty_dimensions(op: str) -> None:
    """An empty batch, no output channels and, for a dense filter, no input channels: as F.conv2d has it."""
    ours, theirs = PAIRS[op]
    weight = torch.randn(FILTERS[op])
    calls = [(torch.randn(0, 4, 6, 6), weight), (torch.randn(1, 4, 6, 6), weight[:0])]
    if op != "depthwise":
        calls += [(torch.randn(2, 0, 6, 6), weight[:, :0]), (torch.randn(0, 0, 6, 6), weight[:, :0])]
    for x, w in calls:
        leaves = [x.requires_grad_(), w.detach().requires_grad_()]
        try:
            expected = theirs(*leaves)
        except RuntimeError as error:
            with pytest.raises(type(error)):
                ours(*leaves)
            continue
        actual = ours(*leaves)
        assert_same_result(actual, expected)
        for mine, other in zip(
            torch.autograd.grad(actual.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
        ):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("op", PAIRS)
def test_meta_tensors(op: str) -> None:
    ours, theirs = PAIRS[op]
    x, weight = torch.empty(2, 4, 9, 9, device="meta"), torch.empty(FILTERS[op], device="meta")
    actual, expected = ours(x, weight, stride=2, padding=1), theirs(x, weight, stride=2, padding=1)
    assert actual.device.type == "meta"
    assert (actual.shape, actual.dtype, actual.stride()) == (expected.shape, expected.dtype, expected.stride())


class _Tagged(torch.Tensor):
    """A subclass that does nothing of its own."""


@pytest.mark.parametrize("op", PAIRS)
def test_subclasses_and_parameters(op: str) -> None:
    ours, theirs = PAIRS[op]
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(FILTERS[op])
    expected = theirs(x, weight)
    assert_same_result(ours(x, nn.Parameter(weight)).detach(), expected)
    for args in ((x.as_subclass(_Tagged), weight), (x, weight.as_subclass(_Tagged))):
        actual = ours(*args)
        assert type(actual) is type(theirs(*args))
        torch.testing.assert_close(actual.as_subclass(torch.Tensor), expected)


@pytest.mark.parametrize("op", PAIRS)
def test_the_operands_stay_as_they_were(op: str) -> None:
    operands = [torch.randn(2, 4, 6, 6), torch.randn(FILTERS[op]), torch.randn(4)]
    copies = [t.clone() for t in operands]
    versions = [t._version for t in operands]
    PAIRS[op][0](*operands, activation="relu")
    assert all(torch.equal(t, copy) for t, copy in zip(operands, copies, strict=True))
    assert [t._version for t in operands] == versions


@pytest.mark.parametrize("op", PAIRS)
def test_infinities_and_nans_pass_through(op: str) -> None:
    """An infinite pixel meets only its own taps, and padding never turns into NaN by 0 * inf."""
    ours, theirs = PAIRS[op]
    weight = torch.rand(FILTERS[op]) + 0.5
    for value in (torch.inf, -torch.inf, torch.nan):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(1, 4, 9, 20)
            x[0, 1, 0, 0] = x[0, 2, 4, 18] = value
            x = x.contiguous(memory_format=memory_format)
            for stride in (1, 2):
                expected = theirs(x, weight, stride=stride, padding=FILTERS[op][2] // 2)
                assert_same_nonfinite(ours(x, weight, stride=stride, padding=FILTERS[op][2] // 2), expected)


def assert_same_nonfinite(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, equal_nan=True)
