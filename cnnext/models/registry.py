"""Names of networks and the functions that build them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
_Builder = TypeVar("_Builder", bound=Callable[..., nn.Module])


def register_model(builder: _Builder) -> _Builder:
    """Make ``builder`` known to `create_model` under its own name.

    Args:
        builder: a function ``(num_classes=1000, **kwargs) -> nn.Module``.

    Returns:
        The builder, unchanged, so that this works as a decorator.

    Raises:
        ValueError: if the name is taken.
    """
    name = builder.__name__
    if name in _BUILDERS:
        raise ValueError(f"a model named {name!r} is already registered")
    _BUILDERS[name] = builder
    return builder


def list_models() -> list[str]:
    """Return the names that `create_model` accepts, sorted.

    Example:
        >>> import cnnext.models
        >>> "mobilenet_v1" in cnnext.models.list_models()
        True
    """
    return sorted(_BUILDERS)


def create_model(name: str, num_classes: int = 1000, **kwargs: Any) -> nn.Module:
    """Build a network by name, with freshly initialised weights.

    Args:
        name: one of `list_models`.
        num_classes: number of outputs of the classifier.
        **kwargs: further arguments of the network's own function, for example ``width_multiplier`` of `mobilenet_v1`.

    Returns:
        The network in training mode. It maps images (N, 3, H, W) to logits (N, num_classes).

    Raises:
        ValueError: if no network has that name, or an argument is out of range.
        TypeError: if the network does not know a keyword argument.

    Example:
        >>> import torch, cnnext
        >>> model = cnnext.models.create_model("mobilenet_v1", num_classes=10, width_multiplier=0.25)
        >>> model.eval()(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """
    builder = _BUILDERS.get(name)
    if builder is None:
        close = difflib.get_close_matches(name, _BUILDERS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown model {name!r}{hint}; known models: {', '.join(list_models())}")
    return builder(num_classes=num_classes, **kwargs)
