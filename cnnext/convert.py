"""Puts cnnext's modules into a model that was built with torch.nn.Conv2d."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from cnnext.modules import DepthwiseConv2d, GroupedConv2d, PointwiseConv2d

__all__ = ["convert"]

_Model = TypeVar("_Model", bound=nn.Module)


def convert(
    model: _Model, *, filter_fn: Callable[[nn.Conv2d, str], bool] | None = None, inplace: bool = False
) -> _Model:
    """Turns every nn.Conv2d of a model into the cnnext module that computes the same.

    Parameters and buffers are shared with the model passed in, so training one trains the other. Names, `state_dict`,
    hooks and the training flag stay. Subclasses of nn.Conv2d are left alone: they may compute something else.

    Args:
        model: any module; an nn.Conv2d itself too.
        filter_fn: called with each nn.Conv2d and its name in the model; False leaves it alone.
        inplace: change `model` itself instead of a copy.

    Returns:
        The converted model.

    Raises:
        TypeError: `model` is not an nn.Module.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    >>> converted = convert(model)
    >>> [type(module).__name__ for module in converted]
    ['DepthwiseConv2d', 'PointwiseConv2d']
    >>> converted[0].weight is model[0].weight
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected an nn.Module, but got {type(model).__name__}")
    if not inplace:
        shared = [*model.parameters(), *model.buffers()]
        model = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    for name, module in model.named_modules():
        if type(module) is nn.Conv2d and (filter_fn is None or filter_fn(module, name)):
            # The replacement differs in its methods alone, so everything the module holds can stay where it is.
            module.__class__ = _replacement(module)
    return model


def _replacement(module: nn.Conv2d) -> type[nn.Conv2d]:
    if module.groups == 1:
        return PointwiseConv2d if module.kernel_size == (1, 1) else GroupedConv2d
    return DepthwiseConv2d if module.groups == module.in_channels else GroupedConv2d
