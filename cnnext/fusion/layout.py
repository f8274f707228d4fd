"""Lets the inside of a graph run channels_last, which is the layout of the fused CPU kernels.

The input of a fused module is turned to channels_last where it enters, by the kernel itself if it is an image; whatever
follows keeps that layout by itself, as PyTorch's operators do. Values are the same in any layout, so most nodes need
not know. Turned back are what leaves the graph, and the arguments of nodes that look at strides or that are not
PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from cnnext.fusion.match import module_of
from cnnext.fusion.modules import FusedConv2d, FusedSeparableConv2d

__all__ = ["enter_channels_last", "leave_channels_last", "run_channels_last"]

_STRIDE_METHODS = {"view", "view_as", "as_strided", "stride", "is_contiguous", "data_ptr", "numpy", "unfold"}


def enter_channels_last(x: Tensor) -> Tensor:
    """`x` in channels_last, if it is a batch of images on a CPU."""
    return x.contiguous(memory_format=torch.channels_last) if x.is_cpu and x.dim() == 4 else x


def leave_channels_last(x: Any, source: Tensor) -> Any:
    """`x` as it would be without `enter_channels_last`: contiguous, unless `source`, which `x` comes from, is not."""
    if not isinstance(x, Tensor) or not x.is_cpu or x.dim() != 4 or not source.is_contiguous():
        return x
    return x.contiguous()


def _knows_strides(node: fx.Node) -> bool:
    """Whether a node may do something else for other strides."""
    if node.op == "call_method":
        return str(node.target) in _STRIDE_METHODS
    if node.op == "call_module":
        module = module_of(node)
        own = isinstance(module, (FusedConv2d, FusedSeparableConv2d))
        return not own and not type(module).__module__.startswith(("torch.nn.modules", "cnnext."))
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target in (torch.ops.aten.view.default, torch.ops.aten.as_strided.default)
    home = getattr(node.target, "__module__", None) or ""
    return not home.startswith(("torch", "_operator", "builtins", "math", "cnnext.")) and node.target is not getattr


def _insert(before: fx.Node, function: Callable[..., Any], *arguments: fx.Node) -> fx.Node:
    """A call of one of the functions above, which another trace, such as that of unpickling, must not look into."""
    with before.graph.inserting_before(before):
        call = before.graph.call_function(function, arguments)
    call.meta["is_wrapped"] = True
    return call


def run_channels_last(graph_module: fx.GraphModule) -> None:
    """Puts the conversions into a graph, in place."""
    graph = graph_module.graph
    # For a node that is channels_last, the tensor whose layout decides what the node's would have been without us.
    source: dict[fx.Node, fx.Node] = {}
    entered: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        inputs = [argument for argument in node.all_input_nodes if argument in source]
        if node.op == "output" or (node.op.startswith("call") and _knows_strides(node)):
            for argument in inputs:
                node.replace_input_with(argument, _insert(node, leave_channels_last, argument, source[argument]))
            continue
        if isinstance(module_of(node), (FusedConv2d, FusedSeparableConv2d)) and node.args[0] not in source:
            entry = node.args[0]
            assert isinstance(entry, fx.Node)
            source[node] = entry
            module = module_of(node)
            if isinstance(module, FusedConv2d) and module.reads_planes():
                module.return_channels_last()
                continue
            if entry not in entered:
                entered[entry] = _insert(node, enter_channels_last, entry)
            node.update_arg(0, entered[entry])
        elif inputs:
            source[node] = source[inputs[0]]
    graph_module.recompile()
