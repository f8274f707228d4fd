"""The operators of cnnext: schemas, fake kernels, autograd, autocast and vmap.

Three families of convolution, `depthwise`, `grouped` and `pointwise`, each with a forward operator and two gradient
operators of its own:

    cnnext::{family}_conv2d(input, weight, bias, stride, padding, dilation[, groups], activation) -> output
    cnnext::{family}_conv2d_backward_input(grad_output, weight, input_size, ...) -> grad_input
    cnnext::{family}_conv2d_backward_weight(grad_output, input, weight_size, ...) -> (grad_weight, grad_bias)

Shapes: input (N, C, H, W); weight (K, C / groups, R, S); bias (K); output and grad_output (N, K, P, Q). In the
depthwise family groups = C, in the pointwise family groups = 1 and R = S = 1. `activation` is an index into
`ACTIVATIONS`.

The three form a closed set under differentiation: the gradient of any is made of the other two, which is how double
backward works. Kernels for a device are registered by the shared objects in `cnnext/_extension.py`; where there is
none, the operators run on ATen's convolution.

`declare` makes such a set for another namespace: `cnnext_triton` (cnnext/triton_kernels/operators.py) has the same
schemas, fakes and derivatives, and other kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

__all__ = [
    "ACTIVATIONS",
    "ATEN",
    "FAMILIES",
    "TAGS",
    "Family",
    "Geometry",
    "Implementations",
    "apply_activation",
    "by_schema",
    "channels_last_result",
    "declare",
    "fake_forward",
    "memory_format",
    "register_autocast",
]

#: Activations of the epilogue; the position is the `activation` argument of the operators (csrc/conv_params.h).
ACTIVATIONS = ("none", "relu", "relu6", "leaky_relu", "sigmoid", "tanh", "mish", "silu", "hardswish")

aten = torch.ops.aten

_LIBRARY = torch.library.Library("cnnext", "DEF")

# A kernel gets its arguments with the strides that its fake was given: the memory format of the output depends on them.
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


class Family(NamedTuple):
    """The three operators of one kind of convolution."""

    name: str
    forward: Any
    backward_input: Any
    backward_weight: Any

    @property
    def has_groups(self) -> bool:
        """Whether the operators take `groups` as an argument."""
        return self.name == "grouped"

    def split(self, args: Sequence[Any], channels: int) -> tuple[Geometry, Sequence[Any]]:
        """Splits what follows the tensors and sizes of a call into its geometry and the rest."""
        stride, padding, dilation, *rest = args
        if self.has_groups:
            groups, *rest = rest
        else:
            groups = channels if self.name == "depthwise" else 1
        return Geometry(stride, padding, dilation, groups), rest

    def join(self, geometry: Geometry) -> tuple[Any, ...]:
        """The geometry as arguments of the operators: the inverse of `split`."""
        return tuple(geometry) if self.has_groups else tuple(geometry[:3])


class Geometry(NamedTuple):
    """Stride, padding and dilation, each (height, width), and the number of groups."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int


class Implementations(NamedTuple):
    """The functions behind the three operators of a family, with `Geometry` in place of its separate arguments."""

    forward: Callable[..., Tensor]
    backward_input: Callable[..., Tensor]
    backward_weight: Callable[..., tuple[Tensor, Tensor]]


# ---------------------------------------------------------------------------------------------------------- activations


def apply_activation(x: Tensor, activation: int) -> Tensor:
    """Activation number `activation` of `ACTIVATIONS` on a tensor of any shape, as torch.nn.functional computes it."""
    return _ACTIVATION_FORWARD[activation](x)


_ACTIVATION_FORWARD: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x,
    torch.relu,
    torch.nn.functional.relu6,
    torch.nn.functional.leaky_relu,
    torch.sigmoid,
    torch.tanh,
    torch.nn.functional.mish,
    torch.nn.functional.silu,
    torch.nn.functional.hardswish,
)


# ATen's gradients of mish and silu are not differentiable themselves; where a second gradient may be asked for, they
# are written out.


def _mish_backward(grad: Tensor, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return aten.mish_backward(grad, x)
    tanh_softplus = torch.tanh(torch.nn.functional.softplus(x))
    return grad * (tanh_softplus + x * torch.sigmoid(x) * (1 - tanh_softplus.square()))


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return aten.silu_backward(grad, x)
    sigmoid = torch.sigmoid(x)
    return grad * sigmoid * (1 + x * (1 - sigmoid))


_ACTIVATION_BACKWARD: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda grad, x: grad,
    lambda grad, x: aten.threshold_backward(grad, x, 0),
    lambda grad, x: aten.hardtanh_backward(grad, x, 0, 6),
    lambda grad, x: aten.leaky_relu_backward(grad, x, 0.01, False),
    lambda grad, x: aten.sigmoid_backward(grad, torch.sigmoid(x)),
    lambda grad, x: aten.tanh_backward(grad, torch.tanh(x)),
    _mish_backward,
    _silu_backward,
    lambda grad, x: aten.hardswish_backward(grad, x),
)


# ------------------------------------------------------------------------------------------------------- memory formats


def channels_last_result(input: Tensor, weight: Tensor) -> bool:
    """Whether the output and the gradients are channels_last: if the input or the weight is, as F.conv2d decides."""
    return any(suggest_memory_format(tensor) == torch.channels_last for tensor in (input, weight))


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _in_format(tensor: Tensor, channels_last: bool) -> Tensor:
    return tensor.contiguous(memory_format=memory_format(channels_last))


# ------------------------------------------------------------------------------------------------------ ATen's versions


def _aten_forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: int) -> Tensor:
    stride, padding, dilation, groups = geometry
    output = aten.convolution(input, weight, bias, stride, padding, dilation, False, [0, 0], groups)
    return apply_activation(_in_format(output, channels_last_result(input, weight)), activation)


def _unread(like: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    """An operand of which ATen only looks at the size. NOTE: it first brings one of another layout into this one."""
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format(channels_last))


def _aten_backward_input(
    grad_output: Tensor, weight: Tensor, input_size: Sequence[int], geometry: Geometry, channels_last: bool
) -> Tensor:
    stride, padding, dilation, groups = geometry
    input = _unread(grad_output, input_size, channels_last)
    grad_input, _, _ = aten.convolution_backward(
        grad_output, input, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
    )
    return _in_format(grad_input, channels_last)


def _aten_backward_weight(
    grad_output: Tensor,
    input: Tensor,
    weight_size: Sequence[int],
    geometry: Geometry,
    with_bias: bool,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    stride, padding, dilation, groups = geometry
    weight = _unread(input, weight_size, channels_last)
    _, grad_weight, grad_bias = aten.convolution_backward(
        grad_output,
        input,
        weight,
        [weight_size[0]],
        stride,
        padding,
        dilation,
        False,
        [0, 0],
        groups,
        [False, True, with_bias],
    )
    return _in_format(grad_weight, channels_last), grad_bias if with_bias else input.new_empty(0)


# ---------------------------------------------------------------------------------------------------------------- fakes


def fake_forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: int) -> Tensor:
    # ATen's own fake checks the sizes, in its own words.
    stride, padding, dilation, groups = geometry
    output = aten.convolution(input, weight, bias, stride, padding, dilation, False, [0, 0], groups)
    return torch.empty_like(output, memory_format=memory_format(channels_last_result(input, weight)))


def _fake_backward_input(
    grad_output: Tensor, weight: Tensor, input_size: Sequence[int], geometry: Geometry, channels_last: bool
) -> Tensor:
    return torch.empty(
        input_size,
        dtype=grad_output.dtype,
        device=grad_output.device,
        memory_format=memory_format(channels_last),
    )


def _fake_backward_weight(
    grad_output: Tensor,
    input: Tensor,
    weight_size: Sequence[int],
    geometry: Geometry,
    with_bias: bool,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    grad_weight = torch.empty(
        weight_size, dtype=input.dtype, device=input.device, memory_format=memory_format(channels_last)
    )
    return grad_weight, input.new_empty(weight_size[0] if with_bias else 0)


# ------------------------------------------------------------------------------------------------------------- autograd


def _register_autograd(library: torch.library.Library, family: Family) -> None:
    def save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, bias, *rest = inputs
        ctx.geometry, (ctx.activation,) = family.split(rest, input.size(1))
        ctx.channels_last = channels_last_result(input, weight)
        ctx.has_bias = bias is not None
        # The bias is only needed to compute again what went into the activation.
        ctx.save_for_backward(input, weight, bias if ctx.activation else None)

    def backward_forward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        input, weight, bias = ctx.saved_tensors
        args = family.join(ctx.geometry)
        if ctx.activation:
            before_activation = family.forward(input, weight, bias, *args, 0)
            grad_output = _ACTIVATION_BACKWARD[ctx.activation](grad_output, before_activation)
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_input = grad_weight = grad_bias = None
        if needs_input:
            grad_input = family.backward_input(grad_output, weight, input.size(), *args, ctx.channels_last)
        if needs_weight:
            with_bias = ctx.has_bias and needs_bias
            grad_weight, grad_bias = family.backward_weight(
                grad_output, input, weight.size(), *args, with_bias, ctx.channels_last
            )
            grad_bias = grad_bias if with_bias else None
        elif needs_bias:
            grad_bias = grad_output.sum((0, 2, 3))
        return grad_input, grad_weight, grad_bias, *[None] * (len(args) + 1)

    def save_backward_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_output, weight, input_size, *rest = inputs
        ctx.geometry, (ctx.channels_last,) = family.split(rest, input_size[1])
        ctx.save_for_backward(grad_output, weight)

    def backward_backward_input(ctx: Any, grad_grad_input: Tensor) -> tuple[Any, ...]:
        grad_output, weight = ctx.saved_tensors
        args = family.join(ctx.geometry)
        grad_grad_output = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_grad_output = family.forward(grad_grad_input, weight, None, *args, 0)
        if ctx.needs_input_grad[1]:
            grad_weight, _ = family.backward_weight(
                grad_output, grad_grad_input, weight.size(), *args, False, ctx.channels_last
            )
        return grad_grad_output, grad_weight, None, *[None] * (len(args) + 1)

    def save_backward_weight(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        grad_output, input, _, *rest = inputs
        ctx.geometry, (ctx.with_bias, ctx.channels_last) = family.split(rest, input.size(1))
        ctx.save_for_backward(grad_output, input)

    def backward_backward_weight(ctx: Any, grad_grad_weight: Tensor, grad_grad_bias: Tensor) -> tuple[Any, ...]:
        grad_output, input = ctx.saved_tensors
        args = family.join(ctx.geometry)
        grad_grad_output = grad_input = None
        if ctx.needs_input_grad[0]:
            bias = grad_grad_bias if ctx.with_bias else None
            grad_grad_output = family.forward(input, grad_grad_weight, bias, *args, 0)
        if ctx.needs_input_grad[1]:
            grad_input = family.backward_input(grad_output, grad_grad_weight, input.size(), *args, ctx.channels_last)
        return grad_grad_output, grad_input, None, *[None] * (len(args) + 2)

    for operator, save, backward in (
        (family.forward, save_forward, backward_forward),
        (family.backward_input, save_backward_input, backward_backward_input),
        (family.backward_weight, save_backward_weight, backward_backward_weight),
    ):
        torch.library.register_autograd(operator, backward, setup_context=save, lib=library)


# ----------------------------------------------------------------------------------------------------------------- vmap


def _batch_first(tensor: Tensor, dim: int | None, batch_size: int) -> Tensor:
    """`tensor` with the batch in front; a tensor without the batch is repeated along it, without a copy."""
    return tensor.expand(batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _into_channels(tensor: Tensor) -> Tensor:
    """(B, N, C, H, W) to (N, B * C, H, W)."""
    return tensor.movedim(0, 1).flatten(1, 2)


def _register_vmap(library: torch.library.Library, family: Family, families: Mapping[str, Family]) -> None:
    """Batching rules: a batch that only activations have goes into N, any other into the channels as more groups."""

    def widen(rest: Sequence[Any], channels: int, batch: int) -> tuple[Family, tuple[Any, ...]]:
        geometry, tail = family.split(rest, channels)
        wide = family if family.name == "depthwise" else families["grouped"]
        return wide, (*wide.join(geometry._replace(groups=geometry.groups * batch)), *tail)

    def forward(
        info: Any, in_dims: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
    ) -> tuple[Tensor, int]:
        batch = info.batch_size
        input = _batch_first(input, in_dims[0], batch)
        if in_dims[1] is None and in_dims[2] is None:
            output = family.forward(input.flatten(0, 1), weight, bias, *rest)
            return output.unflatten(0, (batch, input.size(1))), 0
        weight = _batch_first(weight, in_dims[1], batch)
        if bias is not None:
            bias = _batch_first(bias, in_dims[2], batch).flatten()
        wide, args = widen(rest, input.size(2), batch)
        output = wide.forward(_into_channels(input), weight.flatten(0, 1), bias, *args)
        return output.unflatten(1, (batch, weight.size(1))), 1

    def backward_input(
        info: Any, in_dims: Any, grad_output: Tensor, weight: Tensor, input_size: Sequence[int], *rest: Any
    ) -> tuple[Tensor, int]:
        batch = info.batch_size
        n, c, *plane = input_size
        grad_output = _batch_first(grad_output, in_dims[0], batch)
        if in_dims[1] is None:
            grad_input = family.backward_input(grad_output.flatten(0, 1), weight, [batch * n, c, *plane], *rest)
            return grad_input.unflatten(0, (batch, n)), 0
        weight = _batch_first(weight, in_dims[1], batch)
        wide, args = widen(rest, c, batch)
        grad_input = wide.backward_input(
            _into_channels(grad_output), weight.flatten(0, 1), [n, batch * c, *plane], *args
        )
        return grad_input.unflatten(1, (batch, c)), 1

    def backward_weight(
        info: Any, in_dims: Any, grad_output: Tensor, input: Tensor, weight_size: Sequence[int], *rest: Any
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        batch = info.batch_size
        k, *filter_size = weight_size
        grad_output = _batch_first(grad_output, in_dims[0], batch)
        input = _batch_first(input, in_dims[1], batch)
        wide, args = widen(rest, input.size(2), batch)
        grad_weight, grad_bias = wide.backward_weight(
            _into_channels(grad_output), _into_channels(input), [batch * k, *filter_size], *args
        )
        # Without a bias its gradient has no elements: (B, 0).
        return (grad_weight.unflatten(0, (batch, k)), grad_bias.reshape(batch, grad_bias.numel() // batch)), (0, 0)

    for operator, rule in (
        (family.forward, forward),
        (family.backward_input, backward_input),
        (family.backward_weight, backward_weight),
    ):
        torch.library.register_vmap(operator, rule, lib=library)


# ------------------------------------------------------------------------------------------------------------- autocast


def register_autocast(
    library: torch.library.Library, operator: Any, device_type: str, key: torch._C.DispatchKey
) -> None:
    """Casts floating-point arguments, the bias too, to autocast's dtype, as it does for F.conv2d.

    A filter packed for inference stays as it is: it holds accumulators.
    """
    names = [argument.name for argument in operator._schema.arguments]
    keyset = torch._C.DispatchKeySet(key)

    def cast_and_call(*args: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)

        def cast(name: str, arg: Any) -> Any:
            if (
                not isinstance(arg, Tensor)
                or name == "packed_weight"
                or not arg.is_floating_point()
                or arg.dtype == torch.float64
            ):
                return arg
            return arg.to(dtype) if arg.device.type == device_type else arg

        with torch._C._ExcludeDispatchKeyGuard(keyset):
            return operator(*map(cast, names, args))

    library.impl(operator._schema.name.partition("::")[2], cast_and_call, key.name)


# --------------------------------------------------------------------------------------------------------- declarations


def by_schema(family: Family, functions: Implementations) -> Implementations:
    """The functions with the arguments that the schemas of `family` have, instead of a `Geometry`."""

    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        geometry, (activation,) = family.split(rest, input.size(1))
        return functions.forward(input, weight, bias, geometry, activation)

    def backward_input(grad_output: Tensor, weight: Tensor, input_size: Sequence[int], *rest: Any) -> Tensor:
        geometry, (channels_last,) = family.split(rest, input_size[1])
        return functions.backward_input(grad_output, weight, input_size, geometry, channels_last)

    def backward_weight(
        grad_output: Tensor, input: Tensor, weight_size: Sequence[int], *rest: Any
    ) -> tuple[Tensor, Tensor]:
        geometry, (with_bias, channels_last) = family.split(rest, input.size(1))
        return functions.backward_weight(grad_output, input, weight_size, geometry, with_bias, channels_last)

    return Implementations(forward, backward_input, backward_weight)


def _declare(
    library: torch.library.Library, name: str, kernels: Implementations, families: Mapping[str, Family]
) -> Family:
    geometry = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation" + (
        ", SymInt groups" if name == "grouped" else ""
    )
    schemas = {
        f"{name}_conv2d": f"(Tensor input, Tensor weight, Tensor? bias, {geometry}, int activation) -> Tensor",
        f"{name}_conv2d_backward_input": (
            f"(Tensor grad_output, Tensor weight, SymInt[4] input_size, {geometry}, bool channels_last) -> Tensor"
        ),
        f"{name}_conv2d_backward_weight": (
            f"(Tensor grad_output, Tensor input, SymInt[4] weight_size, {geometry}, bool with_bias, "
            "bool channels_last) -> (Tensor grad_weight, Tensor grad_bias)"
        ),
    }
    for operator, schema in schemas.items():
        library.define(operator + schema, tags=TAGS)
    namespace = getattr(torch.ops, library.ns)
    family = Family(name, *(getattr(namespace, operator).default for operator in schemas))

    kernels, fakes = by_schema(family, kernels), by_schema(family, _FAKES)
    for operator, kernel, fake in zip(schemas, kernels, fakes, strict=True):
        library.impl(operator, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{library.ns}::{operator}", fake, lib=library)

    _register_autograd(library, family)
    _register_vmap(library, family, families)
    register_autocast(library, family.forward, "cpu", torch._C.DispatchKey.AutocastCPU)
    register_autocast(library, family.forward, "cuda", torch._C.DispatchKey.AutocastCUDA)
    return family


def declare(library: torch.library.Library, kernels: Mapping[str, Implementations]) -> dict[str, Family]:
    """Declares the operators of `library`'s namespace, with everything about them that is not a kernel.

    Args:
        library: made with kind "DEF".
        kernels: what runs them on a device for which no kernel is registered, by family.

    Returns:
        The families by name.
    """
    families: dict[str, Family] = {}
    for name, implementations in kernels.items():
        families[name] = _declare(library, name, implementations, families)
    return families


_FAKES = Implementations(fake_forward, _fake_backward_input, _fake_backward_weight)
_ON_ATEN = Implementations(_aten_forward, _aten_backward_input, _aten_backward_weight)

#: The families by name.
FAMILIES: dict[str, Family] = declare(_LIBRARY, dict.fromkeys(("depthwise", "grouped", "pointwise"), _ON_ATEN))

#: ATen's versions with the arguments of the operators, by family.
ATEN: dict[str, Implementations] = {name: by_schema(family, _ON_ATEN) for name, family in FAMILIES.items()}
