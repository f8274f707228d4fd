"""Worked examples of a lecture on convolutional networks, with the numbers that it works out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cnnext

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
IMAGE = torch.tensor([[2.0, 4, 6], [8, 10, 12], [14, 16, 18]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_kernel_slides_over_one_channel(dtype: torch.dtype) -> None:
    """2*1 + 4*3 + 8*5 + 10*7 + 5 = 129, and so on for the other three places."""
    x = IMAGE.to(dtype).view(1, 1, 3, 3)
    w = torch.tensor([[1.0, 3], [5, 7]], dtype=dtype).view(1, 1, 2, 2)
    bias = torch.tensor([5.0], dtype=dtype)
    expected = torch.tensor([[129.0, 161], [225, 257]]).to(dtype).view(1, 1, 2, 2)
    assert torch.equal(cnnext.functional.grouped_conv2d(x, w, bias), expected)
    assert torch.equal(cnnext.functional.depthwise_conv2d(x, w, bias), expected)
    for kind in (cnnext.GroupedConv2d, cnnext.DepthwiseConv2d):
        layer = kind(1, 1, 2, dtype=dtype)
        layer.load_state_dict({"weight": w, "bias": bias})
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", [2, 3])
def test_two_channels_into_two_outputs(kernel: int, dtype: torch.dtype) -> None:
    """Channels of ones and twos; with 2x2 kernels 4 * (1*3 + 2*4) + 10 = 54 and 4 * (1*1 + 2*2) + 5 = 25."""
    x = torch.stack([torch.full((3, 3), 1.0), torch.full((3, 3), 2.0)]).to(dtype)
    w = torch.tensor([[3.0, 4], [1, 2]], dtype=dtype).view(2, 2, 1, 1).repeat(1, 1, kernel, kernel)
    bias = torch.tensor([10.0, 5], dtype=dtype)
    y = cnnext.functional.grouped_conv2d(x, w, bias)
    taps = kernel**2
    assert y.shape == (2, 4 - kernel, 4 - kernel)
    assert bool((y[0] == taps * 11 + 10).all())
    assert bool((y[1] == taps * 5 + 5).all())
    if kernel == 2:
        assert y[0].unique().tolist() == [54]
        assert y[1].unique().tolist() == [25]


@pytest.mark.parametrize(("channels", "outputs"), [(3, 2), (2, 3)])
def test_weights_of_a_3x3_layer(channels: int, outputs: int) -> None:
    layer = cnnext.GroupedConv2d(channels, outputs, 3)
    assert layer.weight.numel() == 54
    assert layer.bias.numel() == outputs
    assert layer(torch.zeros(1, channels, 5, 5)).shape == (1, outputs, 3, 3)


def test_separable_layers_need_fewer_weights() -> None:
    """From 3 to 2 channels: 27 depthwise weights and 6 of the 1x1 layer, instead of 54."""
    block = cnnext.DepthwiseSeparableConv2d(3, 2, 3)
    assert sum(p.numel() for p in block.parameters() if p.dim() == 4) == 27 + 6


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_pooling_after_a_convolution(memory_format: torch.memory_format) -> None:
    """Max, average and global average pooling of the feature map 129 161 / 225 257, and of the image itself."""
    layer = cnnext.GroupedConv2d(1, 1, 2)
    layer.load_state_dict({"weight": torch.tensor([[[[1.0, 3], [5, 7]]]]), "bias": torch.tensor([5.0])})
    x = IMAGE.view(1, 1, 3, 3).contiguous(memory_format=memory_format)
    feature_map = layer(x)
    assert nn.MaxPool2d(2)(feature_map).item() == 257
    assert nn.AvgPool2d(2)(feature_map).item() == 193
    assert nn.AdaptiveAvgPool2d(1)(feature_map).item() == 193
    assert nn.MaxPool2d(2, stride=1)(x).flatten().tolist() == [10, 12, 16, 18]
    assert nn.AvgPool2d(2, stride=1)(x).flatten().tolist() == [6, 8, 12, 14]
    assert nn.AdaptiveAvgPool2d(1)(x).item() == 10
    average = cnnext.functional.depthwise_conv2d(x, torch.full((1, 1, 3, 3), 1 / 9))
    torch.testing.assert_close(average.item(), 10.0)
