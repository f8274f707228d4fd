"""The networks against the tables of their papers: layers, sizes, parameters and multiply-adds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import cnnext


def _sizes_only(name: str, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return cnnext.models.create_model(name, **kwargs).eval()


def _trunk_sizes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Channels and height after each module of the trunk, without computing anything."""
    x = torch.zeros(1, *model.input_size, device="meta")
    sizes = {}
    for name in model.trunk:
        x = model.get_submodule(name)(x)
        assert x.shape[-1] == x.shape[-2]
        sizes[name] = (x.shape[1], x.shape[2])
    return sizes


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _multiply_adds(model: nn.Module) -> dict[str, int]:
    """By name of a convolution or linear layer, from the definition: one for each weight and place."""
    counts: dict[str, int] = {}
    names = {module: name for name, module in model.named_modules()}

    def count(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        places = output.shape[-1] * output.shape[-2] if output.dim() == 4 else 1
        counts[names[module]] = module.weight.numel() * places

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model(torch.zeros(1, *model.input_size, device="meta"))
    return counts


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("lenet", 60_850, 326_520),
        ("alexnet", 61_100_840, 714_188_480),
        ("zfnet", 62_357_608, 1_168_032_896),
        ("nin", 7_595_176, 1_100_188_800),
        ("vgg16", 138_357_544, 15_470_264_320),
        ("googlenet", 6_624_904, 1_498_376_192),
        ("inception_v2", 11_188_288, 1_934_857_216),
        ("resnet18", 11_689_512, 1_814_073_344),
        ("resnet34", 21_797_672, 3_663_761_408),
        ("resnet50", 25_557_032, 4_089_184_256),
        ("se_resnet18", 11_778_592, 1_814_160_384),
        ("densenet121", 7_978_856, 2_834_161_664),
        ("squeezenet1_0", 1_248_424, 818_924_576),
        ("mobilenet_v1", 4_231_976, 568_740_352),
    ],
)
def test_sums(name: str, parameters: int, multiply_adds: int) -> None:
    model = _sizes_only(name)
    assert _parameters(model) == parameters
    assert sum(_multiply_adds(model).values()) == multiply_adds


def test_lenet() -> None:
    """Section II.B: sizes, trainable parameters, and connections, which are multiply-adds and one bias an output."""
    model = _sizes_only("lenet")
    assert _trunk_sizes(model) == {"c1": (6, 28), "s2": (6, 14), "c3": (16, 10), "s4": (16, 5), "c5": (120, 1)}
    parameters = {name: _parameters(module) for name, module in model.named_children() if name != "pool"}
    assert parameters == {
        "c1": 156,
        "s2": 12,
        "c3": 1_516,
        "s4": 32,
        "c5": 48_120,
        "f6": 10_164,
        "output": 850,
    }
    counts = _multiply_adds(model)
    for layer, outputs, connections in (("c1", 6 * 28**2, 122_304), ("c3", 16 * 10**2, 151_600), ("c5", 120, 48_120)):
        assert sum(n for name, n in counts.items() if name.startswith(layer)) + outputs == connections


def test_connections_of_lenets_third_layer() -> None:
    """Table I: a map of C3 changes with the maps of S2 that are crossed there, and with no other."""
    rows = (
        "X...XXX..XXXX.XX",
        "XX...XXX..XXXX.X",
        "XXX...XXX..X.XXX",
        ".XXX..XXXX..X.XX",
        "..XXX..XXXX.XX.X",
        "...XXX..XXXX.XXX",
    )
    layer = cnnext.models.lenet().c3[0]
    x = torch.randn(1, 6, 14, 14)
    before = layer(x)
    for channel, row in enumerate(rows):
        changed = x.clone()
        changed[:, channel] += 1
        assert "".join(".X"[bool(c)] for c in (layer(changed) != before).any(dim=(0, 2, 3))) == row


def test_poolings_of_lenet() -> None:
    """A pixel is the sum of four times the coefficient, plus the bias."""
    pooling = cnnext.models.lenet().s2[0]
    with torch.no_grad():
        pooling.weight.copy_(torch.arange(6.0))
        pooling.bias.copy_(torch.arange(6.0) * 10)
    x = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 6, 4, 4)
    expected = torch.tensor([[10.0, 18], [42, 50]]) * torch.arange(6.0).view(6, 1, 1)
    assert torch.equal(pooling(x)[0], expected + 10 * torch.arange(6.0).view(6, 1, 1))


def test_alexnet_of_2012() -> None:
    """Section 3.5 and figure 2: 96 maps of 55x55, and filters of 48 and 192 channels in the layers of two groups."""
    model = _sizes_only("alexnet", towers=2)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [tuple(conv.weight.shape) for conv in convolutions] == [
        (96, 3, 11, 11),
        (256, 48, 5, 5),
        (384, 256, 3, 3),
        (384, 192, 3, 3),
        (256, 192, 3, 3),
    ]
    sizes = [size for name, size in _trunk_sizes(model).items() if isinstance(model.get_submodule(name), nn.Conv2d)]
    assert sizes == [(96, 55), (256, 27), (384, 13), (384, 13), (256, 13)]
    assert _parameters(model) == 60_965_224


def test_local_response_norm() -> None:
    """Section 3.3 of the same: b = a / (2 + 1e-4 * sum of five a^2)^0.75."""
    norm = next(m for m in _sizes_only("alexnet", towers=2).modules() if isinstance(m, nn.LocalResponseNorm))
    a = torch.randn(1, 9, 1, 1, dtype=torch.float64) * 100
    for i in range(9):
        squares = sum(a[0, j].item() ** 2 for j in range(max(0, i - 2), min(8, i + 2) + 1))
        assert norm(a)[0, i].item() == pytest.approx(a[0, i].item() / (2 + 1e-4 * squares) ** 0.75)


def test_zfnet() -> None:
    """Figure 3."""
    sizes = _trunk_sizes(_sizes_only("zfnet"))
    names = ["conv1", "norm1", "conv2", "norm2", "conv3", "conv4", "conv5", "pool5"]
    assert [sizes[f"features.{name}"] for name in names] == [
        (96, 110),
        (96, 55),
        (256, 26),
        (256, 13),
        (384, 13),
        (384, 13),
        (256, 13),
        (256, 6),
    ]
    model = _sizes_only("zfnet")
    assert [_parameters(m) for m in model.modules() if isinstance(m, nn.Conv2d)] == [
        3 * 96 * 7**2 + 96,
        96 * 256 * 5**2 + 256,
        256 * 384 * 3**2 + 384,
        384 * 384 * 3**2 + 384,
        384 * 256 * 3**2 + 256,
    ]
    assert [_parameters(m) for m in model.classifier if isinstance(m, nn.Linear)] == [37_752_832, 16_781_312, 4_097_000]


def test_nin() -> None:
    """The authors' definitions for ImageNet and CIFAR-10: filters, sizes of the maps, sums."""
    model = _sizes_only("nin")
    sizes = _trunk_sizes(model)
    assert [sizes[f"block{i}"] for i in (1, 2, 3, 4)] == [(96, 54), (256, 27), (384, 13), (1024, 6)]
    assert [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv2d)] == [
        *[(96, 3, 11, 11), (96, 96, 1, 1), (96, 96, 1, 1)],
        *[(256, 96, 5, 5), (256, 256, 1, 1), (256, 256, 1, 1)],
        *[(384, 256, 3, 3), (384, 384, 1, 1), (384, 384, 1, 1)],
        *[(1024, 384, 3, 3), (1024, 1024, 1, 1), (1000, 1024, 1, 1)],
    ]
    model = _sizes_only("nin", num_classes=10, table="cifar10")
    sizes = _trunk_sizes(model)
    assert [sizes[f"block{i}"] for i in (1, 2, 3)] == [(96, 32), (192, 16), (192, 8)]
    assert [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv2d)] == [
        *[(192, 3, 5, 5), (160, 192, 1, 1), (96, 160, 1, 1)],
        *[(192, 96, 5, 5), (192, 192, 1, 1), (192, 192, 1, 1)],
        *[(192, 192, 3, 3), (192, 192, 1, 1), (10, 192, 1, 1)],
    ]
    assert _parameters(model) == 966_986


def test_vgg16() -> None:
    """Table 1, column D."""
    model = _sizes_only("vgg16")
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert all(conv.kernel_size == (3, 3) and conv.stride == (1, 1) for conv in convolutions)
    pools = [size for name, size in _trunk_sizes(model).items() if isinstance(model.get_submodule(name), nn.MaxPool2d)]
    assert pools == [(64, 112), (128, 56), (256, 28), (512, 14), (512, 7)]


# Table 1 of the paper: channels and height of the output, and multiply-adds in millions. It prints parameters too, but
# those of 4c, 4d and 5a do not follow from its filters, nor do the 54 million multiply-adds of 5a: 51 do.
GOOGLENET = {
    "inception3a": (256, 28, 128),
    "inception3b": (480, 28, 304),
    "inception4a": (512, 14, 73),
    "inception4b": (512, 14, 88),
    "inception4c": (512, 14, 100),
    "inception4d": (528, 14, 119),
    "inception4e": (832, 14, 170),
    "inception5a": (832, 7, 51),
    "inception5b": (1024, 7, 71),
}


def test_googlenet_as_published() -> None:
    model = _sizes_only("googlenet", as_published=True)
    sizes = _trunk_sizes(model)
    assert {name: size for name, size in sizes.items() if "pool" in name} == {
        "maxpool1": (64, 56),
        "maxpool2": (192, 28),
        "maxpool3": (480, 14),
        "maxpool4": (832, 7),
    }
    counts = _multiply_adds(model)
    for name, (channels, height, millions) in GOOGLENET.items():
        assert sizes[name] == (channels, height)
        multiply_adds = sum(n for layer, n in counts.items() if layer.startswith(name))
        assert multiply_adds / 1e6 == pytest.approx(millions, abs=1), name


def test_inception_v2() -> None:
    """Figure 5: sizes of the outputs (for a module of stride 2 the paper prints the size before it)."""
    model = _sizes_only("inception_v2")
    assert _trunk_sizes(model) == {
        "conv1": (64, 112),
        "maxpool1": (64, 56),
        "conv2": (192, 56),
        "maxpool2": (192, 28),
        "inception3a": (256, 28),
        "inception3b": (320, 28),
        "inception3c": (576, 14),
        **{f"inception4{letter}": (576, 14) for letter in "abcd"},
        "inception4e": (1024, 7),
        "inception5a": (1024, 7),
        "inception5b": (1024, 7),
    }
    # Filters of the two convolutions of the stem, 7x7 with 8 outputs a channel and 1x1, and of each module.
    weights = {
        name: [tuple(p.shape) for p in model.get_submodule(name).parameters() if p.dim() == 4]
        for name in ("conv1", "conv2", "inception3b", "inception4e")
    }
    assert weights == {
        "conv1": [(24, 1, 7, 7), (64, 24, 1, 1)],
        "conv2": [(64, 64, 1, 1), (192, 64, 3, 3)],
        "inception3b": [
            (64, 256, 1, 1),
            *[(64, 256, 1, 1), (96, 64, 3, 3)],
            *[(64, 256, 1, 1), (96, 64, 3, 3), (96, 96, 3, 3)],
            (64, 256, 1, 1),
        ],
        "inception4e": [
            *[(128, 576, 1, 1), (192, 128, 3, 3)],
            *[(192, 576, 1, 1), (256, 192, 3, 3), (256, 256, 3, 3)],
        ],
    }
    pools = {
        name[9:11]: module
        for name, module in model.named_modules()
        if name.startswith("inception") and isinstance(module, nn.AvgPool2d | nn.MaxPool2d)
    }
    assert [name for name, pool in pools.items() if isinstance(pool, nn.MaxPool2d)] == ["3c", "4e", "5b"]


def test_padding_of_the_average_in_inception_v2() -> None:
    """The image of a constant under average pooling tells whether padding is counted; as in torch it is."""
    pool = _sizes_only("inception_v2").inception3a.branches["pool"][0]
    assert pool(torch.ones(1, 1, 3, 3))[0, 0, 0, 0].item() == pytest.approx(4 / 9)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("resnet18", (64, 128, 256, 512)), ("resnet34", (64, 128, 256, 512)), ("resnet50", (256, 512, 1024, 2048))],
)
def test_resnets(name: str, channels: tuple[int, ...]) -> None:
    """Table 1: sizes of the outputs, and as many layers with weights as the name says."""
    model = _sizes_only(name)
    sizes = _trunk_sizes(model)
    assert [sizes[layer] for layer in ("conv1", "layer1", "layer2", "layer3", "layer4")] == [
        (64, 112),
        *zip(channels, (56, 28, 14, 7), strict=True),
    ]
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "downsample" not in n]
    assert len(layers) == int(name.removeprefix("resnet"))


def test_se_resnet18() -> None:
    """Section 4: two linear layers around C / 16 units in each block, 2 C^2 / 16 weights."""
    model = _sizes_only("se_resnet18")
    modules = [module for name, module in model.named_modules() if name.endswith("se_module")]
    widths = [64, 64, 128, 128, 256, 256, 512, 512]
    assert [sum(p.numel() for p in module.parameters() if p.dim() == 4) for module in modules] == [
        2 * c * c // 16 for c in widths
    ]
    assert _parameters(model) == _parameters(_sizes_only("resnet18")) + sum(
        2 * c * c // 16 + c // 16 + c for c in widths
    )


def test_densenet121() -> None:
    """Table 1: sizes, layers, and channels that grow by 32 and are halved."""
    model = _sizes_only("densenet121")
    sizes = _trunk_sizes(model)
    names = ["conv0", "pool0"] + [f"{kind}{i}" for i in (1, 2, 3) for kind in ("denseblock", "transition")]
    assert [sizes[f"features.{name}"] for name in [*names, "denseblock4"]] == [
        *[(64, 112), (64, 56)],
        *[(64 + 6 * 32, 56), (128, 28)],
        *[(128 + 12 * 32, 28), (256, 14)],
        *[(256 + 24 * 32, 14), (512, 7)],
        (512 + 16 * 32, 7),
    ]
    assert len([m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]) == 121


def test_squeezenet() -> None:
    """Table 1: parameters before pruning of each layer, and sizes of the outputs."""
    model = _sizes_only("squeezenet1_0")
    fires = [model.features[i] for i in (3, 4, 5, 7, 8, 9, 10, 12)]
    assert _parameters(model.features[0]) == 14_208
    assert [_parameters(fire) for fire in fires] == [
        *[11_920, 12_432, 45_344],
        *[49_440, 104_880, 111_024, 188_992],
        197_184,
    ]
    assert _parameters(model.classifier) == 513_000
    sizes = _trunk_sizes(model)
    # The paper's first output of 111x111 needs images of 227x227, which it does not print.
    assert [sizes[f"features.{i}"] for i in (0, 2, 5, 6, 10, 11, 12)] == [
        *[(96, 109), (96, 54)],
        *[(256, 54), (256, 27)],
        *[(512, 27), (512, 13), (512, 13)],
    ]


def test_mobilenet_v1() -> None:
    """Table 1: stride and output channels of the depthwise layers and the 1x1 layers after them."""
    model = _sizes_only("mobilenet_v1")
    depthwise = [m for m in model.modules() if isinstance(m, cnnext.DepthwiseConv2d)]
    pointwise = [m for m in model.modules() if isinstance(m, cnnext.PointwiseConv2d)]
    assert [m.stride[0] for m in depthwise] == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    assert [m.out_channels for m in pointwise] == [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    assert all(m.kernel_size == (3, 3) and m.in_channels == m.out_channels for m in depthwise)


@pytest.mark.parametrize(("width", "parameters"), [(0.25, 470_072), (0.5, 1_331_592), (0.75, 2_585_560)])
def test_width_multipliers_of_mobilenet_v1(width: float, parameters: int) -> None:
    assert _parameters(_sizes_only("mobilenet_v1", width_multiplier=width)) == parameters
