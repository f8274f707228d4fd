"""The operators of the namespace `cnnext_triton`: those of `cnnext`, run by the Triton kernels.

    cnnext_triton::{family}_conv2d, ..._backward_input, ..._backward_weight    as in cnnext/ops.py
    cnnext_triton::separable_conv2d(input, depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, stride,
                                    padding, dilation, depthwise_activation, pointwise_activation) -> output

Schemas, fakes, derivatives, vmap and autocast are the same code. A second namespace rather than kernels registered for
`cnnext::*`: the backend asked for by name runs forward and backward whether or not there is a CUDA build, and nothing
is overridden. The separable block is for inference and has no derivative.

Under torch.compile an operator is taken apart into its launches, as `torch.library.triton_op` would: Inductor then
launches the kernels itself, without the dispatcher and the Python between. That needs sizes that are known, so with
dynamic shapes, and in a graph that torch.export serialises, the operator stays whole.

Importing this module imports no Triton; the modules with the kernels are imported at the first call.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode

from cnnext import ops
from cnnext.ops import Family, Geometry, Implementations

__all__ = ["FAMILIES", "separable_conv2d"]

_LIBRARY = torch.library.Library("cnnext_triton", "DEF")


def _late(module: str, function: str) -> Callable[..., Any]:
    """A function of a module of this package that is imported when it is first called."""

    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(f"cnnext.triton_kernels.{module}"), function)(*args)

    return call


def _kernels(module: str) -> Implementations:
    return Implementations(*(_late(module, direction) for direction in Implementations._fields))


_KERNELS = {name: _kernels(name) for name in ("depthwise", "grouped", "pointwise")}

#: The families by name, as `cnnext.ops.FAMILIES`.
FAMILIES: dict[str, Family] = ops.declare(_LIBRARY, _KERNELS)

_LIBRARY.define(
    "separable_conv2d(Tensor input, Tensor depthwise_weight, Tensor? depthwise_bias, Tensor pointwise_weight, "
    "Tensor? pointwise_bias, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, int depthwise_activation, "
    "int pointwise_activation) -> Tensor",
    tags=ops.TAGS,
)

#: The fused inference block; see `cnnext.functional.separable_conv2d`.
separable_conv2d = torch.ops.cnnext_triton.separable_conv2d.default

_separable_kernel = _late("separable", "forward")


def _separable(
    input: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    depthwise_activation: int,
    pointwise_activation: int,
) -> Tensor:
    geometry = Geometry(stride, padding, dilation, input.size(1))
    return _separable_kernel(
        input,
        depthwise_weight,
        depthwise_bias,
        pointwise_weight,
        pointwise_bias,
        geometry,
        depthwise_activation,
        pointwise_activation,
    )


def _fake_separable(
    input: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    depthwise_activation: int,
    pointwise_activation: int,
) -> Tensor:
    geometry = Geometry(stride, padding, dilation, input.size(1))
    middle = ops.fake_forward(input, depthwise_weight, depthwise_bias, geometry, depthwise_activation)
    one_tap = Geometry([1, 1], [0, 0], [1, 1], 1)
    return ops.fake_forward(middle, pointwise_weight, pointwise_bias, one_tap, pointwise_activation)


_LIBRARY.impl("separable_conv2d", _separable, "CompositeExplicitAutograd")
torch.library.register_fake(separable_conv2d, _fake_separable, lib=_LIBRARY)
ops.register_autocast(_LIBRARY, separable_conv2d, "cpu", torch._C.DispatchKey.AutocastCPU)
ops.register_autocast(_LIBRARY, separable_conv2d, "cuda", torch._C.DispatchKey.AutocastCUDA)


# -------------------------------------------------------------------------------------------------------- torch.compile


def _is_static(values: Any) -> bool:
    """Whether no size or number among the arguments of an operator is symbolic."""
    if isinstance(values, Tensor):
        return not any(isinstance(number, torch.SymInt) for number in (*values.shape, *values.stride()))
    if isinstance(values, (list, tuple)):
        return all(map(_is_static, values))
    return not isinstance(values, torch.SymInt)


def _register_decomposition(operator: Any, kernel: Callable[..., Any]) -> None:
    def take_apart(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from torch.export._trace import custom_triton_ops_decomposition_disabled

        from cnnext.triton_kernels import launching

        if custom_triton_ops_decomposition_disabled() or not _is_static(args) or not launching.can_trace():
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode, launching.tracing():
            return kernel(*args)

    torch.library.register_torch_dispatch(operator._schema.name, FunctionalTensorMode, take_apart, lib=_LIBRARY)


_register_decomposition(separable_conv2d, _separable)
for _family in FAMILIES.values():
    for _operator, _kernel in zip(_family[1:], ops.by_schema(_family, _KERNELS[_family.name]), strict=True):
        _register_decomposition(_operator, _kernel)
