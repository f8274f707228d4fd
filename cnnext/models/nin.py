"""Network in Network: Lin et al., 2013, https://arxiv.org/abs/1312.4400.

The paper prints no table of layers. These are the ones of the authors' published definitions: for ImageNet
(https://gist.github.com/mavenlin/d802a5849de39225bcc6) and CIFAR-10
(https://gist.github.com/mavenlin/e56253735ef32c3c296d).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from cnnext.models._layers import check_positive_int, init_weights
from cnnext.models.features import Feature, FeatureInfo, Network
from cnnext.models.registry import register_model
from cnnext.modules import GroupedConv2d, PointwiseConv2d


class _Block(NamedTuple):
    """One mlpconv layer: a convolution, then 1x1 convolutions to these channels, each with a ReLU."""

    out_channels: int
    kernel_size: int
    stride: int
    padding: int
    pointwise: tuple[int, ...]
    pool: str = ""  # 3x3 pooling of stride 2 after it: "max", "avg" or none


class _Table(NamedTuple):
    resolution: int
    blocks: tuple[_Block, ...]  # the last 1x1 convolution, to the classes, is left out
    dropout_after: tuple[int, ...]  # numbers of the blocks whose pooling is followed by dropout


_TABLES = {
    "imagenet": _Table(
        224,
        (
            _Block(96, 11, 4, 0, (96, 96), "max"),
            _Block(256, 5, 1, 2, (256, 256), "max"),
            _Block(384, 3, 1, 1, (384, 384), "max"),
            _Block(1024, 3, 1, 1, (1024,)),
        ),
        dropout_after=(3,),
    ),
    "cifar10": _Table(
        32,
        (
            _Block(192, 5, 1, 2, (160, 96), "max"),
            _Block(192, 5, 1, 2, (192, 192), "avg"),
            _Block(192, 3, 1, 1, (192,)),
        ),
        dropout_after=(1, 2),
    ),
}
_POOLS: dict[str, Callable[..., nn.Module]] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}


def _mlpconv(in_channels: int, block: _Block) -> nn.Sequential:
    layers = nn.Sequential(
        GroupedConv2d(in_channels, block.out_channels, block.kernel_size, block.stride, block.padding),
        nn.ReLU(inplace=True),
    )
    channels = block.out_channels
    for out_channels in block.pointwise:
        layers.extend([PointwiseConv2d(channels, out_channels), nn.ReLU(inplace=True)])
        channels = out_channels
    return layers


class NetworkInNetwork(Network):
    """Network in Network; see `nin` for the arguments."""

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5, table: str = "imagenet"
    ) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes)
        check_positive_int("in_channels", in_channels)
        if table not in _TABLES:
            raise ValueError(f"table must be one of {', '.join(map(repr, _TABLES))}, got {table!r}")
        resolution, blocks, dropout_after = _TABLES[table]
        self.input_size = (in_channels, resolution, resolution)

        trunk, found = [], []
        channels, reduction = in_channels, 1
        for i, block in enumerate(blocks, start=1):
            self.add_module(f"block{i}", _mlpconv(channels, block))
            channels, reduction = block.pointwise[-1], reduction * block.stride
            trunk.append(f"block{i}")
            found.append(Feature(f"block{i}", channels, reduction))
            if block.pool:
                pool = nn.Sequential(_POOLS[block.pool](3, stride=2, ceil_mode=True))
                if i in dropout_after:
                    pool.append(nn.Dropout(dropout))
                self.add_module(f"pool{i}", pool)
                trunk.append(f"pool{i}")
                reduction *= 2
        self.trunk = tuple(trunk)
        self.feature_info = FeatureInfo(found)
        to_classes = PointwiseConv2d(channels, num_classes)
        self.classifier = nn.Sequential(to_classes, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))
        init_weights(self, to_classes)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(x).flatten(1)


@register_model
def nin(
    num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5, table: str = "imagenet"
) -> NetworkInNetwork:
    """Build Network in Network (https://arxiv.org/abs/1312.4400).

    With 1000 classes it has 7,595,176 parameters, and 1.1 billion multiply-adds at 224x224. As published, a ReLU comes
    before the average over the maps of the classes, so logits are not negative.

    Args:
        num_classes: number of outputs of the classifier.
        in_channels: channels of the input images.
        dropout: probability of dropping a value after some of the pooling layers, in training.
        table: "imagenet", or "cifar10" for the authors' network for 32x32 images (966,986 parameters with 10 classes).

    Returns:
        A network from images (N, in_channels, H, W) to logits (N, num_classes), in training mode. Images have at least
        51x51 pixels with the table "imagenet", 5x5 with "cifar10".

    Raises:
        ValueError: if a count is below 1, the table unknown or the dropout outside [0, 1].
        TypeError: if a count is not an int.

    Example:
        >>> import torch, cnnext
        >>> model = cnnext.models.nin(num_classes=10, table="cifar10")
        >>> sum(p.numel() for p in model.parameters())
        966986
        >>> model(torch.zeros(1, *model.input_size)).shape
        torch.Size([1, 10])
    """
    return NetworkInNetwork(num_classes, in_channels, dropout, table)
