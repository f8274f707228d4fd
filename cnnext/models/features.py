"""Networks as a trunk of modules, and the trunk alone as a backbone that returns feature maps.

The convention is timm's: ``features_only=True`` gives the last feature map of every stride, and ``feature_info`` says
how many channels each has and how many pixels of the image one of its pixels stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn


class Feature(NamedTuple):
    """One feature map that a network can give out.

    Attributes:
        module: name of the module whose output it is.
        channels: its channels.
        reduction: its stride, pixels of the image for a pixel of the map, along each side.
    """

    module: str
    channels: int
    reduction: int


class FeatureInfo(tuple[Feature, ...]):
    """The feature maps of a network, finest first.

    Example:
        >>> info = FeatureInfo([Feature("layer1", 64, 4), Feature("layer2", 128, 8)])
        >>> info.channels(), info.reduction(), info.module_name()
        ([64, 128], [4, 8], ['layer1', 'layer2'])
    """

    __slots__ = ()

    def channels(self) -> list[int]:
        """Return the channels of each map."""
        return [feature.channels for feature in self]

    def reduction(self) -> list[int]:
        """Return the stride of each map."""
        return [feature.reduction for feature in self]

    def module_name(self) -> list[str]:
        """Return the names of the modules that the maps come from."""
        return [feature.module for feature in self]


class Network(nn.Module):
    """A classifier made of a trunk, modules that run one after another, and a head on top.

    Subclasses fill in the attributes and write `forward_head`.

    Attributes:
        input_size: (channels, height, width) the network is meant for. Other sizes work too.
        trunk: names of the modules of the trunk, in the order in which they run.
        feature_info: the feature maps of the trunk, the last one of every stride.
    """

    input_size: tuple[int, int, int]
    trunk: tuple[str, ...]
    feature_info: FeatureInfo

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, C, H, W) to the last feature map."""
        for name in self.trunk:
            x = self.get_submodule(name)(x)
        return x

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        """Map the last feature map to logits (N, num_classes)."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


class FeatureBackbone(nn.Module):
    """The trunk of a network, which returns feature maps; see `create_model`.

    Modules keep their names, so a state dict of the classifier loads with ``strict=False``. The network that is passed
    in loses its modules to the backbone and must not be used any more.

    Args:
        network: the network to take the trunk of.
        out_indices: which of ``network.feature_info`` to return; negative ones count from the coarsest. All if None.

    Attributes:
        feature_info: the maps returned: ``channels()``, ``reduction()`` and ``module_name()``.
        input_size: that of the network.

    Shapes:
        input (N, C, H, W); output a list with, for each map, (N, ``channels``, about H / ``reduction``, about
        W / ``reduction``).

    Raises:
        ValueError: if ``out_indices`` is empty, or one of them is out of range.
    """

    def __init__(self, network: Network, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        available = network.feature_info
        indices = range(len(available)) if out_indices is None else out_indices
        if not indices or any(not -len(available) <= index < len(available) for index in indices):
            raise ValueError(f"out_indices must be some of 0 to {len(available) - 1}, got {tuple(indices)}")
        self.feature_info = FeatureInfo(available[index] for index in indices)
        self.input_size = network.input_size

        wanted = set(self.feature_info.module_name())
        last = max(network.trunk.index(name) for name in wanted)
        self.trunk = network.trunk[: last + 1]
        for name, child in network.named_children():
            inside = [path.partition(".")[2] for path in self.trunk if path.partition(".")[0] == name]
            if not inside:
                continue
            if inside != [""]:  # a container that is run module by module: keep those that run
                for grandchild in [key for key, _ in child.named_children() if key not in inside]:
                    delattr(child, grandchild)
            self.add_module(name, child)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = {}
        for name in self.trunk:
            x = self.get_submodule(name)(x)
            maps[name] = x
        return [maps[feature.module] for feature in self.feature_info]
