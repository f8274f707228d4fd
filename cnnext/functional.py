"""Functional form of cnnext's convolutions, with the arguments and the semantics of torch.nn.functional.conv2d.

Every function takes an input (N, C, H, W) or unbatched (C, H, W), in any memory format, of any dtype that F.conv2d
takes; float32, float64, float16 and bfloat16 run on cnnext's kernels, the rest on PyTorch's. The output has the shape,
dtype and memory format that F.conv2d would give; sums are accumulated in float32 or wider.

An activation is applied to the sum before it is rounded to the output's dtype. Where a gradient will be needed it is a
step of its own instead, after the rounding, as it would be behind F.conv2d.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from cnnext import backends, ops
from cnnext.backends.call import ConvCall

__all__ = ["depthwise_conv2d", "grouped_conv2d", "pointwise_conv2d", "separable_conv2d"]

_ACTIVATION_INDEX: dict[str | None, int] = {None: 0, **{name: i for i, name in enumerate(ops.ACTIVATIONS)}}


def activation_index(activation: str | None) -> int:
    """The number of an activation in `cnnext.ops.ACTIVATIONS`; None is "none".

    Raises:
        ValueError: unknown activation.

    >>> activation_index("relu")
    1
    """
    if activation not in _ACTIVATION_INDEX:
        expected = ", ".join(map(repr, ops.ACTIVATIONS))
        raise ValueError(f"unknown activation {activation!r}: expected None or one of {expected}")
    return _ACTIVATION_INDEX[activation]


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    *,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Depthwise convolution: every input channel is filtered on its own, giving K / C output channels.

    The same as `F.conv2d(..., groups=C)`, followed by `activation`.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weight: (K, 1, R, S), K a multiple of C.
        bias: (K), or None.
        stride: pixels between outputs, an int or (height, width).
        padding: zeros added on both sides, an int or (height, width); or "valid" or "same".
        dilation: pixels between taps of the filter, an int or (height, width).
        activation: one of `cnnext.ops.ACTIVATIONS`; see this module's note on them.
        backend: "cuda", "triton", "cpu" or "aten" to insist on one; None to let cnnext choose.

    Returns:
        (N, K, P, Q) or (K, P, Q), in the memory format that F.conv2d gives.

    Raises:
        ValueError: unknown activation or backend.
        RuntimeError, TypeError: what F.conv2d raises for the same arguments.
        BackendError: the backend insisted on cannot run this call.

    >>> import torch
    >>> x, w = torch.ones(1, 2, 4, 4), torch.ones(2, 1, 3, 3)
    >>> depthwise_conv2d(x, w, padding=1)[0, 0, 0]
    tensor([4., 6., 6., 4.])
    """
    return _run("depthwise", input, weight, bias, stride, padding, dilation, 0, activation, backend)


def grouped_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Grouped convolution; dense convolution is the case of one group.

    The same as `F.conv2d`, followed by `activation`.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weight: (K, C / groups, R, S).
        bias: (K), or None.
        stride: pixels between outputs, an int or (height, width).
        padding: zeros added on both sides, an int or (height, width); or "valid" or "same".
        dilation: pixels between taps of the filter, an int or (height, width).
        groups: number of groups; C and K must be multiples of it.
        activation: one of `cnnext.ops.ACTIVATIONS`; see this module's note on them.
        backend: "cuda", "triton", "cpu" or "aten" to insist on one; None to let cnnext choose.

    Returns:
        (N, K, P, Q) or (K, P, Q), in the memory format that F.conv2d gives.

    Raises:
        ValueError: unknown activation or backend.
        RuntimeError, TypeError: what F.conv2d raises for the same arguments.
        BackendError: the backend insisted on cannot run this call.

    >>> import torch
    >>> x, w = torch.ones(1, 4, 3, 3), torch.ones(2, 2, 3, 3)
    >>> grouped_conv2d(x, w, groups=2).flatten()
    tensor([18., 18.])
    """
    return _run("grouped", input, weight, bias, stride, padding, dilation, groups, activation, backend)


def pointwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    *,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """1x1 convolution: a matrix product over the channels of every pixel.

    The same as `F.conv2d` with a 1x1 filter, followed by `activation`.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weight: (K, C, 1, 1).
        bias: (K), or None.
        stride: pixels between outputs, an int or (height, width).
        padding: zeros added on both sides, an int or (height, width); or "valid" or "same".
        dilation: as in F.conv2d; a filter of one tap has nothing to dilate.
        activation: one of `cnnext.ops.ACTIVATIONS`; see this module's note on them.
        backend: "cuda", "triton", "cpu" or "aten" to insist on one; None to let cnnext choose.

    Returns:
        (N, K, P, Q) or (K, P, Q), in the memory format that F.conv2d gives.

    Raises:
        ValueError: unknown activation or backend; a filter that is not 1x1.
        RuntimeError, TypeError: what F.conv2d raises for the same arguments.
        BackendError: the backend insisted on cannot run this call.

    >>> import torch
    >>> x, w = torch.ones(1, 3, 2, 2), torch.ones(1, 3, 1, 1)
    >>> pointwise_conv2d(x, w, torch.tensor([-4.0]), activation="relu").flatten()
    tensor([0., 0., 0., 0.])
    """
    return _run("pointwise", input, weight, bias, stride, padding, dilation, 1, activation, backend)


def separable_conv2d(
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    depthwise_bias: Tensor | None = None,
    pointwise_bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    *,
    depthwise_activation: str | None = None,
    pointwise_activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Depthwise-separable convolution: depthwise, activation, 1x1, activation.

    Batch normalisation in evaluation mode is folded into the weights and biases by the caller. Stride, padding and
    dilation are those of the depthwise half. Where the backend has a kernel for the whole block, and no gradient will
    be needed, the middle is never written to memory; it is rounded to the dtype of the input all the same. Source:
    Howard et al., "MobileNets", arXiv:1704.04861.

    Args:
        input: (N, C, H, W) or (C, H, W).
        depthwise_weight: (M, 1, R, S), M a multiple of C.
        pointwise_weight: (K, M, 1, 1).
        depthwise_bias: (M), or None.
        pointwise_bias: (K), or None.
        stride: see `depthwise_conv2d`.
        padding: see `depthwise_conv2d`.
        dilation: see `depthwise_conv2d`.
        depthwise_activation: one of `cnnext.ops.ACTIVATIONS`.
        pointwise_activation: one of `cnnext.ops.ACTIVATIONS`.
        backend: see `depthwise_conv2d`.

    Returns:
        (N, K, P, Q) or (K, P, Q).

    Raises:
        The same as `depthwise_conv2d` and `pointwise_conv2d`.

    >>> import torch
    >>> x = torch.ones(1, 2, 3, 3)
    >>> separable_conv2d(x, torch.ones(2, 1, 3, 3), torch.ones(1, 2, 1, 1)).flatten()
    tensor([18.])
    """
    output = None
    if backends.HAS_SEPARABLE:
        try:
            index = _ACTIVATION_INDEX[pointwise_activation]
            call = _make_call(
                "depthwise", input, depthwise_weight, depthwise_bias, stride, padding, dilation, 0, depthwise_activation
            )
            output = backends.run_separable(call, pointwise_weight, pointwise_bias, index, backend)
        except (RuntimeError, TypeError, AttributeError, KeyError):
            pass  # what is wrong, or of a form that only F.conv2d takes, is found again below
    if output is not None:
        return output if input.dim() == 4 else output.squeeze(0)
    middle = depthwise_conv2d(
        input,
        depthwise_weight,
        depthwise_bias,
        stride,
        padding,
        dilation,
        activation=depthwise_activation,
        backend=backend,
    )
    return pointwise_conv2d(middle, pointwise_weight, pointwise_bias, activation=pointwise_activation, backend=backend)


def _run(
    family: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    activation: str | None,
    backend: str | None,
) -> Tensor:
    try:
        call = _make_call(family, input, weight, bias, stride, padding, dilation, groups, activation)
        output = backends.run(call, backend)
        return output if input.dim() == 4 else output.squeeze(0)
    except backends.BackendError:
        raise
    except (RuntimeError, TypeError, AttributeError) as error:
        failure = error
    # The call is wrong, or of a form that only F.conv2d takes. If it is wrong, F.conv2d says so in its own words.
    if family == "depthwise" and isinstance(input, Tensor) and input.dim() in (3, 4):
        groups = input.size(-3)
    output = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if backends.is_forced(backend):
        raise failure
    return ops.apply_activation(output, _ACTIVATION_INDEX[activation])


def _make_call(
    family: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    activation: str | None,
) -> ConvCall:
    """The call that a backend gets: batched, with symmetric numeric padding."""
    index = activation_index(activation)
    if family == "pointwise" and weight.dim() == 4 and weight.shape[2:] != (1, 1):
        raise ValueError(f"pointwise_conv2d expects a weight of shape (K, C, 1, 1), but got {tuple(weight.shape)}")
    if input.dim() == 3:
        input = input.unsqueeze(0)
    if isinstance(padding, str):
        input, padding = _numeric_padding(input, weight, stride, padding, dilation)
    if family == "depthwise":
        groups = input.size(1)
    return ConvCall(
        family,
        input,
        weight,
        bias,
        _as_pair(stride),
        _as_pair(padding),
        _as_pair(dilation),
        groups,
        index,
    )


def _numeric_padding(
    input: Tensor, weight: Tensor, stride: int | Sequence[int], padding: str, dilation: int | Sequence[int]
) -> tuple[Tensor, Sequence[int]]:
    """Turns "valid" and "same" into numbers; what "same" adds on one side only is added to the input."""
    if padding == "valid":
        return input, (0, 0)
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: {padding!r}")
    if any(step != 1 for step in _pair(stride)):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    total_h, total_w = (d * (size - 1) for d, size in zip(_pair(dilation), weight.shape[-2:], strict=True))
    if total_h % 2 or total_w % 2:
        input = F.pad(input, (0, total_w % 2, 0, total_h % 2))
    return input, (total_h // 2, total_w // 2)


def _as_pair(value: int | Sequence[int]) -> Sequence[int]:
    """The operators take lists only. NOTE: a bool is no number here, as for F.conv2d."""
    return (value, value) if type(value) is int else value  # type: ignore[return-value]


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    first, *rest = _as_pair(value)
    return first, rest[0] if rest else first


_FAMILY_OF: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "depthwise_conv2d": ("depthwise", depthwise_conv2d),
    "grouped_conv2d": ("grouped", grouped_conv2d),
    "pointwise_conv2d": ("pointwise", pointwise_conv2d),
}


def make_call(op: str, *args: Any, **kwargs: Any) -> tuple[ConvCall, str | None]:
    """The call that the function named `op` makes for these arguments, and the backend they insist on."""
    if op not in _FAMILY_OF:
        raise ValueError(f"unknown op {op!r}: expected one of {', '.join(map(repr, _FAMILY_OF))}")
    family, function = _FAMILY_OF[op]
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    values = dict(bound.arguments)
    backend = values.pop("backend")
    values.setdefault("groups", 1)
    return _make_call(family, **values), backend


def make_separable_call(*args: Any, **kwargs: Any) -> tuple[ConvCall, Tensor, Tensor | None, str | None]:
    """What `separable_conv2d` makes of these arguments.

    Returns:
        The call of its depthwise half, filter and bias of the 1x1 half, and the backend that the arguments insist on.
    """
    bound = inspect.signature(separable_conv2d).bind(*args, **kwargs)
    bound.apply_defaults()
    v = bound.arguments
    geometry = (v["stride"], v["padding"], v["dilation"])
    call = _make_call(
        "depthwise", v["input"], v["depthwise_weight"], v["depthwise_bias"], *geometry, 0, v["depthwise_activation"]
    )
    return call, v["pointwise_weight"], v["pointwise_bias"], v["backend"]
