"""The modules that `cnnext.fuse` puts into a model: a convolution, or a separable block, with all that is fused to it.

Their weights are Parameters that need no gradient. On a CPU they also hold the filter of the matrix product in the
order in which the kernels read it: a buffer that is made anew whenever the weights are loaded, moved or cast. Whoever
writes into a weight in place calls `pack` afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from cnnext import _extension, backends, functional, inference_ops, ops
from cnnext.backends.call import KERNEL_DTYPES
from cnnext.backends.operators import needs_gradient

__all__ = ["FusedConv2d", "FusedSeparableConv2d"]

# Below this, most of a panel of 64 output channels would be zeros, once for each group.
_LEAST_OUTPUTS_OF_A_PACKED_GROUP = 32

_MOST_CHANNELS_OF_PLANES = 4


def _parameter(tensor: Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor.detach(), requires_grad=False)


def _lengths(sizes: Sequence[int], kernel: Sequence[int], stride: Any, padding: Any, dilation: Any) -> list[int]:
    """Height and width of a convolution's output."""
    return [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True)
    ]


class _Fused(nn.Module):
    """What the fused modules share: the packed filter, and which path a call takes."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    packed_weight: Tensor | None

    #: What was fused, as the report names it: (name in the model, kind), in order.
    parts: tuple[tuple[str, str], ...]

    def _groups(self) -> int:
        return 1

    def pack(self) -> None:
        """Makes the packed filter anew from the weight."""
        packed = None
        if self.weight.is_cpu and self.weight.dtype in KERNEL_DTYPES:
            # The kernels would make a contiguous copy at each call.
            self.weight.data = self.weight.data.contiguous()
            groups = self._groups()
            if groups == 1 or self.weight.shape[0] // groups >= _LEAST_OUTPUTS_OF_A_PACKED_GROUP:
                packed = inference_ops.pack_filter(self.weight, groups)
        self.register_buffer("packed_weight", packed, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Fused:
        super()._apply(fn, recurse)
        self.pack()
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, *args, **kwargs)
        self.pack()

    def _output_size(self, input: Tensor) -> list[int]:
        raise NotImplementedError

    def _has_kernel(self, input: Tensor) -> bool:
        """Whether the fused operator is more than plain convolutions on the device of the input."""
        return input.is_cpu

    def _takes_operator(self, input: Tensor, weight: Tensor, residual: Tensor | None) -> bool:
        """Whether the fused operator computes this call; else the plain convolutions do, which take any call."""
        if not self._has_kernel(input) or input.dim() != 4 or input.dtype not in KERNEL_DTYPES:
            return False
        if backends.is_forced(None):
            return False
        if residual is None:
            return not needs_gradient(input, weight)
        return (
            isinstance(residual, Tensor)
            and not needs_gradient(input, weight, residual)
            and residual.dtype == input.dtype
            and residual.device == input.device
            and list(residual.shape) == self._output_size(input)
        )


def _behind(output: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    """What follows a plain convolution that has no residual and no activation yet."""
    if residual is not None:
        output = output + residual
    return ops.apply_activation(output, functional.activation_index(activation))


class FusedConv2d(_Fused):
    """activation(conv(input) + bias + residual), for inference.

    Args:
        weight: (K, C / groups, R, S), with any batch norm folded in.
        bias: (K), likewise, or None.
        stride: (height, width).
        padding: (height, width).
        dilation: (height, width).
        groups: as in nn.Conv2d.
        activation: one of `cnnext.ops.ACTIVATIONS`, or None.
        parts: what was fused; see `cnnext.fusion_report`.

    Shapes: input (N, C, H, W); residual, if there is one, and output (N, K, P, Q).

    >>> import torch
    >>> FusedConv2d(torch.ones(4, 3, 1, 1), None, activation="relu")(torch.ones(1, 3, 2, 2)).unique()
    tensor([3.])
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        activation: str | None = None,
        parts: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__()
        self.weight = _parameter(weight)  # type: ignore[assignment]
        self.register_parameter("bias", _parameter(bias))
        self.stride, self.padding, self.dilation = list(stride), list(padding), list(dilation)
        self.groups = groups
        self.activation = activation
        # What the operator takes behind its tensors.
        geometry = (*stride, *padding, *dilation)
        self._numbers = (*geometry, groups, functional.activation_index(activation), False)
        self.parts = parts
        self.training = False
        self.pack()

    @property
    def in_channels(self) -> int:
        """C."""
        return self.weight.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        """K."""
        return self.weight.shape[0]

    def is_depthwise(self) -> bool:
        """Whether every channel is filtered on its own, without a multiplier."""
        return self.groups == self.in_channels == self.out_channels > 1

    def is_pointwise(self) -> bool:
        """Whether this is a matrix product over the channels of every pixel."""
        return (
            self.groups == 1
            and tuple(self.weight.shape[2:]) == (1, 1)
            and self.stride == [1, 1]
            and self.padding == [0, 0]
        )

    def reads_planes(self) -> bool:
        """Whether a channels-first input of so few channels is best turned by the kernel itself."""
        return self.groups == 1 and self.in_channels <= _MOST_CHANNELS_OF_PLANES

    def return_channels_last(self) -> None:
        """From now on the output on a CPU is channels_last, whatever the input is."""
        self._numbers = (*self._numbers[:-1], True)

    def _groups(self) -> int:
        return self.groups

    def extra_repr(self) -> str:
        k, c, r, s = self.weight.shape
        return (
            f"{c * self.groups}, {k}, kernel_size={(r, s)}, stride={tuple(self.stride)}, "
            f"padding={tuple(self.padding)}, dilation={tuple(self.dilation)}, groups={self.groups}, "
            f"bias={self.bias is not None}, activation={self.activation!r}"
        )

    def _output_size(self, input: Tensor) -> list[int]:
        lengths = _lengths(input.shape[2:], self.weight.shape[2:], self.stride, self.padding, self.dilation)
        return [input.shape[0], self.out_channels, *lengths]

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Runs on the fused operator on a CPU, and as plain convolutions elsewhere or where a gradient is needed."""
        # NOTE: nn.Module looks an attribute that is a Parameter up last, which takes longer than the checks.
        parameters = self._parameters
        weight = cast(Tensor, parameters["weight"])
        if self._takes_operator(input, weight, residual):
            return inference_ops.FUSED_CONV2D(
                input,
                weight,
                parameters["bias"],
                residual,
                self._buffers["packed_weight"],
                *self._numbers,
            )
        fused = self.activation if residual is None else None
        geometry = (self.stride, self.padding, self.dilation)
        if self.groups > 1 and self.groups == self.in_channels:
            output = functional.depthwise_conv2d(input, self.weight, self.bias, *geometry, activation=fused)
        elif self.groups == 1 and tuple(self.weight.shape[2:]) == (1, 1):
            output = functional.pointwise_conv2d(input, self.weight, self.bias, *geometry, activation=fused)
        else:
            output = functional.grouped_conv2d(input, self.weight, self.bias, *geometry, self.groups, activation=fused)
        return output if residual is None else _behind(output, residual, self.activation)


class FusedSeparableConv2d(_Fused):
    """Depthwise convolution, activation, 1x1 convolution, plus a residual, activation, for inference.

    Args:
        depthwise: the depthwise half, without a residual.
        pointwise: the 1x1 half; it takes the residual.

    Shapes: input (N, C, H, W); residual, if there is one, and output (N, K, P, Q).

    >>> import torch
    >>> depthwise = FusedConv2d(torch.ones(4, 1, 3, 3), None, padding=(1, 1), groups=4)
    >>> block = FusedSeparableConv2d(depthwise, FusedConv2d(torch.ones(2, 4, 1, 1), None))
    >>> block(torch.ones(1, 4, 1, 1)).flatten()
    tensor([4., 4.])
    """

    depthwise_weight: nn.Parameter
    depthwise_bias: nn.Parameter | None

    def __init__(self, depthwise: FusedConv2d, pointwise: FusedConv2d) -> None:
        super().__init__()
        self.depthwise_weight = depthwise.weight
        self.weight = pointwise.weight
        self.register_parameter("depthwise_bias", depthwise.bias)
        self.register_parameter("bias", pointwise.bias)
        self.stride, self.padding, self.dilation = depthwise.stride, depthwise.padding, depthwise.dilation
        self.depthwise_activation, self.activation = depthwise.activation, pointwise.activation
        activations = map(functional.activation_index, (self.depthwise_activation, self.activation))
        self._numbers = (*self.stride, *self.padding, *self.dilation, *activations)
        self.parts = depthwise.parts + pointwise.parts
        self.training = False
        self.pack()

    def extra_repr(self) -> str:
        k, c = self.weight.shape[:2]
        return (
            f"{c}, {k}, kernel_size={tuple(self.depthwise_weight.shape[2:])}, stride={tuple(self.stride)}, "
            f"padding={tuple(self.padding)}, dilation={tuple(self.dilation)}, "
            f"activations=({self.depthwise_activation!r}, {self.activation!r})"
        )

    def _output_size(self, input: Tensor) -> list[int]:
        kernel = self.depthwise_weight.shape[2:]
        lengths = _lengths(input.shape[2:], kernel, self.stride, self.padding, self.dilation)
        return [input.shape[0], self.weight.shape[0], *lengths]

    def _has_kernel(self, input: Tensor) -> bool:
        return input.is_cpu or (input.is_cuda and _extension.cuda.loaded)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Runs on the operator where it has a kernel, and on `cnnext.functional` elsewhere or for gradients."""
        parameters = self._parameters
        weight = cast(Tensor, parameters["weight"])
        if self._takes_operator(input, weight, residual):
            return inference_ops.SEPARABLE_CONV2D(
                input,
                parameters["depthwise_weight"],
                parameters["depthwise_bias"],
                weight,
                parameters["bias"],
                residual,
                self._buffers["packed_weight"],
                *self._numbers,
            )
        output = functional.separable_conv2d(
            input,
            self.depthwise_weight,
            self.weight,
            self.depthwise_bias,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            depthwise_activation=self.depthwise_activation,
            pointwise_activation=self.activation if residual is None else None,
        )
        return output if residual is None else _behind(output, residual, self.activation)
