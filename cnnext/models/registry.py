"""Names of networks and the functions that build them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from cnnext.models.features import FeatureBackbone, Network

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


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a network by name, with freshly initialised weights.

    Args:
        name: one of `list_models`.
        num_classes: number of outputs of the classifier; None for that of the paper, 1000, or 10 for ``lenet``.
        features_only: build the network without its classifier, as a backbone for detection, segmentation or pose,
            that returns a list of feature maps, the last one of every stride, as timm does. Its
            ``feature_info.channels()`` and ``.reduction()`` say what they are. A state dict of the whole network loads
            into it with ``strict=False``.
        out_indices: with ``features_only``, which of the maps to return, counted from the finest, or with negative
            numbers from the coarsest; None for all. Modules that none of them needs are left out.
        **kwargs: further arguments of the network's own function, for example ``width_multiplier`` of `mobilenet_v1`.

    Returns:
        The network in training mode. It maps images (N, 3, H, W), for ``lenet`` (N, 1, H, W), to logits
        (N, num_classes), or to a list of feature maps (N, channels, H / reduction, W / reduction).

    Raises:
        ValueError: if no network has that name, or an argument is out of range.
        TypeError: if the network does not know a keyword argument, or has no feature maps to give.

    Example:
        >>> import torch, cnnext
        >>> model = cnnext.models.create_model("mobilenet_v1", num_classes=10, width_multiplier=0.25)
        >>> model.eval()(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
        >>> backbone = cnnext.models.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4))
        >>> backbone.feature_info.channels(), backbone.feature_info.reduction()
        ([64, 128, 256, 512], [4, 8, 16, 32])
        >>> [tuple(feature_map.shape) for feature_map in backbone(torch.zeros(1, 3, 64, 96))]
        [(1, 64, 16, 24), (1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]
    """
    builder = _BUILDERS.get(name)
    if builder is None:
        close = difflib.get_close_matches(name, _BUILDERS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown model {name!r}{hint}; known models: {', '.join(list_models())}")
    if out_indices is not None and not features_only:
        raise ValueError("out_indices is for features_only=True")
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    model = builder(**kwargs)
    if not features_only:
        return model
    if not isinstance(model, Network):
        raise TypeError(f"{name} has no feature maps to give: {type(model).__name__} is not a {Network.__name__}")
    return FeatureBackbone(model, out_indices)
