"""Reads the nodes of a torch.fx graph: what is a convolution, a batch norm, an activation, an addition.

A node may call a module, a function of torch or torch.nn.functional, a method of a tensor, or an operator of ATen, as
the graphs of torch.export do. Each reader returns what it found, or None for a node that is something else.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from cnnext.modules import DepthwiseConv2d, GroupedConv2d, PointwiseConv2d

__all__ = [
    "CONV_TYPES",
    "Conv",
    "Norm",
    "NotFusable",
    "activation_of",
    "addends_of",
    "conv_of",
    "is_dimension_check",
    "is_in_place",
    "module_of",
    "norm_of",
    "passed_through",
]

aten = torch.ops.aten

#: Modules that are convolutions and nothing else. Other subclasses of nn.Conv2d may compute something else.
CONV_TYPES: tuple[type[nn.Conv2d], ...] = (nn.Conv2d, DepthwiseConv2d, GroupedConv2d, PointwiseConv2d)

_NORM_TYPES = (nn.BatchNorm2d, nn.SyncBatchNorm)


class Conv(NamedTuple):
    """A convolution: its operands, and the name of the module that holds them."""

    name: str
    input: fx.Node
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class Norm(NamedTuple):
    """A batch norm in evaluation mode."""

    input: fx.Node
    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float


class NotFusable(Exception):
    """A convolution that is left alone, and why."""


def module_of(node: fx.Node) -> nn.Module | None:
    """The module that a node calls."""
    if node.op != "call_module":
        return None
    return node.graph.owning_module.get_submodule(node.target)  # type: ignore[union-attr,arg-type]


def _tensor(argument: Any) -> Tensor | None:
    """The Parameter or buffer that a get_attr node reads."""
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    value: Any = argument.graph.owning_module
    for part in str(argument.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, Tensor) else None


def _arguments(node: fx.Node, *names: str, **defaults: Any) -> dict[str, Any] | None:
    """The arguments of a call by name, of which the first `names` have no default; None if they are others."""
    order = [*names, *defaults]
    if len(node.args) > len(order) or any(key not in order for key in node.kwargs):
        return None
    found = {**defaults, **dict(zip(order, node.args, strict=False)), **node.kwargs}
    return found if all(name in found for name in names) else None


def _pair(value: Any) -> tuple[int, int]:
    values = (value,) if isinstance(value, int) else tuple(value)
    if not all(type(entry) is int for entry in values) or len(values) not in (1, 2):
        raise NotFusable("its geometry is computed while the model runs")
    return values[0], values[-1]


def _padding(value: Any, weight: Tensor, stride: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(value, str):
        return _pair(value)
    totals = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
    if value == "valid":
        return 0, 0
    if value == "same" and stride == (1, 1) and not any(total % 2 for total in totals):
        return totals[0] // 2, totals[1] // 2
    raise NotFusable(f"padding {value!r} is not the same on both sides")


def _has_hooks(module: nn.Module) -> bool:
    return any(
        getattr(module, name)
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


_CONV_FUNCTIONS = {torch.conv2d, F.conv2d, aten.conv2d.default, aten.conv2d.padding}


def conv_of(node: fx.Node) -> Conv | None:
    """The 2-d convolution that a node computes.

    Raises:
        NotFusable: it is one, but not one whose filter can be taken out of it.
    """
    if node.op == "call_module":
        return _conv_of_module(node)
    if node.op != "call_function" or node.target not in _CONV_FUNCTIONS:
        return None
    found = _arguments(node, "input", "weight", bias=None, stride=1, padding=0, dilation=1, groups=1)
    if found is None:
        return None
    weight, bias = _tensor(found["weight"]), _tensor(found["bias"])
    if weight is None or (bias is None and found["bias"] is not None):
        raise NotFusable("its filter is computed while the model runs")
    stride, dilation = _pair(found["stride"]), _pair(found["dilation"])
    name = str(found["weight"].target).rpartition(".")[0]
    padding = _padding(found["padding"], weight, stride, dilation)
    return Conv(name, found["input"], weight, bias, stride, padding, dilation, found["groups"])


def _conv_of_module(node: fx.Node) -> Conv | None:
    module = module_of(node)
    if not isinstance(module, nn.Conv2d):
        return None
    if type(module) not in CONV_TYPES:
        raise NotFusable(f"{type(module).__name__} is a subclass of nn.Conv2d that may compute something else")
    if _has_hooks(module):
        raise NotFusable("it has hooks")
    if module.padding_mode != "zeros":
        raise NotFusable(f"padding_mode {module.padding_mode!r}")
    found = _arguments(node, "input")
    if found is None or not isinstance(found["input"], fx.Node):
        return None
    stride, dilation = _pair(module.stride), _pair(module.dilation)
    padding = _padding(module.padding, module.weight, stride, dilation)
    return Conv(str(node.target), found["input"], module.weight, module.bias, stride, padding, dilation, module.groups)


def norm_of(node: fx.Node) -> Norm | None:
    """The batch norm in evaluation mode, with running statistics, that a node computes."""
    if node.op == "call_module":
        module, found = module_of(node), _arguments(node, "input")
        if not isinstance(module, _NORM_TYPES) or type(module) not in _NORM_TYPES or found is None:
            return None
        if module.training or _has_hooks(module):
            return None
        if module.running_mean is None or module.running_var is None:
            return None
        return Norm(found["input"], module.running_mean, module.running_var, module.weight, module.bias, module.eps)
    found = None
    if node.op == "call_function" and node.target is F.batch_norm:
        found = _arguments(
            node, "input", "running_mean", "running_var", weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
        )
    elif node.op == "call_function" and node.target in (torch.batch_norm, aten.batch_norm.default):
        operands = ("input", "weight", "bias", "running_mean", "running_var")
        found = _arguments(node, *operands, "training", "momentum", "eps", "cudnn_enabled")
    if found is None or found["training"] is not False or not isinstance(found["input"], fx.Node):
        return None
    mean, variance, weight, bias = (_tensor(found[key]) for key in ("running_mean", "running_var", "weight", "bias"))
    computed = (weight is None and found["weight"] is not None) or (bias is None and found["bias"] is not None)
    if mean is None or variance is None or computed:
        return None
    return Norm(found["input"], mean, variance, weight, bias, found["eps"])


_ACTIVATION_TYPES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.Mish: "mish",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}
_ACTIVATION_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, aten.relu.default, aten.relu_.default), "relu"),
    **dict.fromkeys((F.relu6, aten.relu6.default), "relu6"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, aten.sigmoid.default, aten.sigmoid_.default), "sigmoid"),
    **dict.fromkeys((F.tanh, torch.tanh, aten.tanh.default, aten.tanh_.default), "tanh"),
    **dict.fromkeys((F.mish, aten.mish.default, aten.mish_.default), "mish"),
    **dict.fromkeys((F.silu, aten.silu.default, aten.silu_.default), "silu"),
    **dict.fromkeys((F.hardswish, aten.hardswish.default, aten.hardswish_.default), "hardswish"),
}
_ACTIVATION_METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid"} | {
    "tanh": "tanh",
    "tanh_": "tanh",
}
_CLAMPS = {F.hardtanh, F.hardtanh_, aten.hardtanh.default, aten.hardtanh_.default}
_LEAKY = {F.leaky_relu, F.leaky_relu_, aten.leaky_relu.default, aten.leaky_relu_.default}


def activation_of(node: fx.Node) -> str | None:
    """The activation that a node applies to its first argument, if it is one of `cnnext.ops.ACTIVATIONS`."""
    if node.op == "call_module":
        module = module_of(node)
        if module is None or len(node.args) != 1 or node.kwargs or _has_hooks(module):
            return None
        if type(module) is nn.LeakyReLU:
            return "leaky_relu" if module.negative_slope == 0.01 else None
        if type(module) is nn.Hardtanh:
            return "relu6" if (module.min_val, module.max_val) == (0, 6) else None
        return _ACTIVATION_TYPES.get(type(module))
    if node.op == "call_method":
        plain = len(node.args) == 1 and not node.kwargs
        return _ACTIVATION_METHODS.get(str(node.target)) if plain else None
    if node.op != "call_function":
        return None
    if node.target in _CLAMPS:
        found = _arguments(node, "input", min_val=-1, max_val=1, inplace=False)
        return "relu6" if found is not None and (found["min_val"], found["max_val"]) == (0, 6) else None
    if node.target in _LEAKY:
        found = _arguments(node, "input", negative_slope=0.01, inplace=False)
        return "leaky_relu" if found is not None and found["negative_slope"] == 0.01 else None
    if _arguments(node, "input", inplace=False) is None:
        return None
    return _ACTIVATION_FUNCTIONS.get(node.target)


_ADD_FUNCTIONS = {operator.add, torch.add, aten.add.Tensor}
_IN_PLACE_ADD_FUNCTIONS = {operator.iadd, aten.add_.Tensor}


def addends_of(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors that a node adds; the first is overwritten if the node `is_in_place`."""
    function = node.op == "call_function" and node.target in _ADD_FUNCTIONS | _IN_PLACE_ADD_FUNCTIONS
    method = node.op == "call_method" and node.target in ("add", "add_", "__add__", "__iadd__")
    if not (function or method) or node.kwargs or len(node.args) != 2:
        return None
    first, second = node.args
    return (first, second) if isinstance(first, fx.Node) and isinstance(second, fx.Node) else None


def passed_through(node: fx.Node) -> fx.Node | None:
    """What a node returns as it is: the argument of nn.Identity, and in evaluation mode that of dropout and of
    torchvision's stochastic depth.
    """
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node):
        return None
    module = module_of(node)
    if module is not None:
        drops_nothing = isinstance(module, nn.modules.dropout._DropoutNd) and not module.training
        same = type(module) is nn.Identity or drops_nothing
        return first if same and len(node.args) == 1 and not _has_hooks(module) else None
    if getattr(node.target, "__name__", "") == "stochastic_depth" and node.op == "call_function":
        found = _arguments(node, "input", "p", "mode", training=True)
        return first if found is not None and found["training"] is False else None
    return None


def is_dimension_check(node: fx.Node) -> bool:
    """Whether a node asserts that a convolution's output has four dimensions, as timm's norms do."""
    if node.target is not torch._assert or not isinstance(node.args[0], fx.Node):
        return False
    condition = node.args[0]
    if condition.target is not operator.eq or condition.args[1] != 4 or not isinstance(condition.args[0], fx.Node):
        return False
    dimension = condition.args[0]
    if dimension.target is not getattr or dimension.args[1] != "ndim" or not isinstance(dimension.args[0], fx.Node):
        return False
    try:
        return conv_of(dimension.args[0]) is not None
    except NotFusable:
        return True


_IN_PLACE_OPERATORS = {
    *(getattr(operator, f"i{name}") for name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow")),
    *(getattr(operator, f"i{name}") for name in ("and", "or", "xor", "lshift", "rshift")),
    operator.setitem,
}


def is_in_place(node: fx.Node) -> bool:
    """Whether a node may overwrite one of its arguments."""
    if node.op == "call_module":
        return bool(getattr(module_of(node), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
    if node.op != "call_function":
        return False
    if node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return True
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable
    name = getattr(node.target, "__name__", "")
    flag = _arguments(node, "input", inplace=False) if node.target in _ACTIVATION_FUNCTIONS else None
    return node.target in _IN_PLACE_OPERATORS or name.endswith("_") or bool(flag and flag["inplace"])
