"""Turns a model that is done with training into a faster one that computes the same."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from cnnext.fusion.layout import run_channels_last
from cnnext.fusion.modules import FusedConv2d, FusedSeparableConv2d
from cnnext.fusion.rewrite import fuse_graph

__all__ = ["fuse"]


class _Tracer(fx.Tracer):
    """Follows every module but torch's own and convolutions, which are read as they are."""

    def __init__(self, only_root: bool = False) -> None:
        super().__init__()
        self._only_root = only_root

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A subclass of a batch norm does more, as timm's, and is followed to find the norm in it.
        if self._only_root or isinstance(m, (nn.Conv2d, FusedConv2d, FusedSeparableConv2d)):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def fuse(model: Any, *, inplace: bool = False) -> nn.Module:
    """Makes a model in evaluation mode faster, on the same inputs and with the same outputs up to rounding.

    Batch norms are folded into the convolutions before them, activations and residual additions become part of the
    convolution's kernel, and a depthwise convolution with the 1x1 convolution behind it becomes one block whose middle
    is never written to memory. What follows what is read from a torch.fx trace, so the order in which modules were
    created does not matter. Convolutions, norms and activations are found as modules, as functions and as operators of
    ATen. Everything else is left alone; `cnnext.fusion_report` says what was done.

    A model that torch.fx can trace becomes a torch.fx.GraphModule: it has the forward function of the model, its
    remaining parameters under their names, and none of its other methods. Of a model that cannot be traced, each child
    that can be is fused on its own. On a CPU the inside of a graph runs channels_last; what it returns has the memory
    format that it had. A model in which there is nothing to fuse stays as it is.

    Args:
        model: a module in evaluation mode; a torch.fx.GraphModule; or a torch.export.ExportedProgram, which stays
            specialised to what it was exported for.
        inplace: change `model` itself, whose class becomes that of the result, instead of a copy.

    Returns:
        The fused model. It can be copied, pickled, compiled and saved as a `state_dict`, whose entries are those of the
        fused convolutions. Its weights are Parameters that need no gradient; gradients of the input can be had.

    Raises:
        TypeError: `model` is not a module.
        ValueError: `model` is in training mode, where batch norms depend on the batch; or `inplace` with an exported
            program.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> fused = fuse(model)
    >>> [type(module).__name__ for module in fused.children()]
    ['FusedConv2d']
    """
    if isinstance(model, torch.export.ExportedProgram):
        if inplace:
            raise ValueError("an exported program cannot be changed in place: call fuse(program) without inplace=True")
        return _fuse_graph_module(model.module())
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected an nn.Module, but got {type(model).__name__}")
    _check_evaluation_mode(model)
    if not inplace:
        model = copy.deepcopy(model)
    result = _fuse_module(model)
    if not inplace or result is model:
        return result
    # The class of a GraphModule is its own, and all that an object has is in its __dict__.
    model.__class__ = result.__class__
    model.__dict__ = result.__dict__
    return model


def _check_evaluation_mode(model: nn.Module) -> None:
    for name, module in model.named_modules():
        changes = isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd))
        if module.training and (module is model or changes):
            what = f"its module {name!r} ({type(module).__name__})" if name else "the model"
            raise ValueError(
                f"fuse() needs a model in evaluation mode, but {what} is in training mode: call model.eval() first"
            )


def _is_worthwhile(module: nn.Module) -> bool:
    return any(isinstance(child, nn.Conv2d) for child in module.modules())


def _fuse_graph_module(graph_module: fx.GraphModule) -> fx.GraphModule:
    fuse_graph(graph_module)
    run_channels_last(graph_module)
    return graph_module


def _trace(module: nn.Module, only_root: bool = False) -> fx.GraphModule:
    tracer = _Tracer(only_root)
    graph = tracer.trace(module)
    for node in graph.nodes:
        if isinstance(node.type, str):
            node.type = None  # an annotation that is not evaluated: torch 2.13 could not pickle it
    return fx.GraphModule(tracer.root, graph, type(module).__name__)


def _fuse_module(module: nn.Module) -> nn.Module:
    """The fused form of a module: a graph where its forward function can be traced, else itself with fused children."""
    if not _is_worthwhile(module):
        return module
    if isinstance(module, fx.GraphModule):
        return _fuse_graph_module(module)
    try:
        traced = _trace(module)
    except Exception as error:  # a forward function may raise anything when it is called with a proxy
        module._cnnext_untraced = f"{type(error).__name__}: {error}"  # type: ignore[assignment]
        for name, child in list(module.named_children()):
            setattr(module, name, _fuse_child(child))
        return module
    traced.eval()
    fused = _fuse_graph_module(traced)
    if not any(
        isinstance(part, (FusedConv2d, FusedSeparableConv2d)) and len(part.parts) > 1 for part in fused.modules()
    ):
        # Running channels_last is no gain by itself.
        for child in module.modules():
            if isinstance(child, nn.Conv2d) and not hasattr(child, "_cnnext_left"):
                child._cnnext_left = "nothing in the model can be fused"  # type: ignore[assignment]
        return module
    return fused


def _fuse_child(child: nn.Module) -> nn.Module:
    """The fused form of a child of a module that could not be traced, and that may take a container apart."""
    if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
        for name, entry in list(child.named_children()):
            setattr(child, name, _fuse_child(entry))
        return child
    if type(child) is nn.Sequential:
        return _fuse_sequential(child)
    return _fuse_module(child)


def _fuse_sequential(sequential: nn.Sequential) -> nn.Sequential:
    """Keeps the container and the places in it: what is fused into the module before becomes nn.Identity."""
    if not _is_worthwhile(sequential):
        return sequential
    names = [name for name, _ in sequential.named_children()]
    traced = _trace(sequential, only_root=True)
    fuse_graph(traced)
    kept = dict(traced.named_children())
    for name in names:
        replacement = kept.get(name, nn.Identity())
        is_fused = isinstance(replacement, (FusedConv2d, FusedSeparableConv2d, nn.Identity))
        setattr(sequential, name, replacement if is_fused else _fuse_child(replacement))
    return sequential
