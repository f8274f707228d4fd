"""Depthwise, grouped and 1x1 convolution for PyTorch, as drop-in modules on hand-written kernels.

>>> import torch, cnnext
>>> layer = cnnext.DepthwiseConv2d(32, 32, 3, padding=1)  # instead of nn.Conv2d(32, 32, 3, padding=1, groups=32)
>>> layer(torch.zeros(1, 32, 8, 8)).shape
torch.Size([1, 32, 8, 8])
"""

from importlib.metadata import PackageNotFoundError, version

from cnnext import backends, functional, models, ops
from cnnext.convert import convert
from cnnext.fuse import fuse
from cnnext.fusion.report import FusionReport, fusion_report
from cnnext.modules import DepthwiseConv2d, DepthwiseSeparableConv2d, GroupedConv2d, PointwiseConv2d

try:
    __version__ = version("cnnext")
except PackageNotFoundError:  # imported from a source tree that is not installed
    __version__ = "unknown"

__all__ = [
    "DepthwiseConv2d",
    "DepthwiseSeparableConv2d",
    "FusionReport",
    "GroupedConv2d",
    "PointwiseConv2d",
    "backends",
    "convert",
    "functional",
    "fuse",
    "fusion_report",
    "models",
    "ops",
]
