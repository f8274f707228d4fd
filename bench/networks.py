"""The networks whose layers are measured: the data files of their layers, where these come from, and the networks.

`bench/layers/NAME.json` lists every convolution of a network in the order of running. `python -m bench.networks` writes
the files anew from torchvision and timm; tests/test_bench_networks.py compares them. RepLKNet is in neither, so
its layers are written down here from the paper.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cnnext
from bench.cases import LayerShape, shapes_in_order

_DIRECTORY = Path(__file__).resolve().parent / "layers"
_IMAGE_SIZE = (3, 224, 224)


def _torchvision(name: str) -> nn.Module:
    import torchvision

    # Otherwise its weights are made twice, once at random and once as they are meant to begin.
    options = {"init_weights": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, **options)


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name)


#: Where each network with a data file comes from: the package and its name there, or a paper.
SOURCES: dict[str, tuple[str, str]] = {
    "mobilenet_v1": ("timm", "mobilenetv1_100"),
    "mobilenet_v2": ("torchvision", "mobilenet_v2"),
    "mobilenet_v3_large": ("torchvision", "mobilenet_v3_large"),
    "efficientnet_b0": ("torchvision", "efficientnet_b0"),
    "convnext_tiny": ("torchvision", "convnext_tiny"),
    "resnet18": ("torchvision", "resnet18"),
    "resnext50_32x4d": ("torchvision", "resnext50_32x4d"),
    "regnety_040": ("timm", "regnety_040"),
    "shufflenet_v2_x1_0": ("torchvision", "shufflenet_v2_x1_0"),
    "replknet_31b": ("paper", "Ding et al., arXiv:2203.06717"),
}
_BUILDERS: dict[str, Callable[[str], nn.Module]] = {"torchvision": _torchvision, "timm": _timm}


def layer_networks() -> list[str]:
    """Names of the networks whose layers are in data files."""
    return list(SOURCES)


def networks() -> list[str]:
    """Names of the networks that `create` makes."""
    others = [name for name, (package, _) in SOURCES.items() if package in _BUILDERS]
    return list(dict.fromkeys([*cnnext.models.list_models(), *others]))


def create(name: str) -> nn.Module:
    """Make a network of `networks`, its convolutions those of cnnext, with an ``input_size``.

    Raises:
        ImportError: if it comes from a package that is not installed.
    """
    if name in cnnext.models.list_models():
        return cnnext.models.create_model(name)
    package, there = SOURCES[name]
    network = cnnext.convert(_BUILDERS[package](there), inplace=True)
    network.input_size = _IMAGE_SIZE  # type: ignore[assignment]
    return network


def load_layers(name: str) -> list[LayerShape]:
    """Read the layers of a network from its data file, in the order of running."""
    document = json.loads((_DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    pairs = ("stride", "padding", "dilation")
    return [LayerShape(**row | {key: tuple(row[key]) for key in pairs}) for row in document["layers"]]


def extract_layers(name: str) -> list[LayerShape]:
    """List the layers of a network as its source has them.

    Raises:
        ImportError: if it comes from a package that is not installed.
    """
    package, there = SOURCES[name]
    if package == "paper":
        return list(_replknet_31b())
    with torch.device("meta"):
        return shapes_in_order(_BUILDERS[package](there), _IMAGE_SIZE)


def _replknet_31b() -> Iterator[LayerShape]:
    """RepLKNet-31B for inference: the small filters are added to the large ones, batch norm is in the bias."""

    def layer(c: int, k: int, size: int, r: int = 1, stride: int = 1, groups: int = 1) -> LayerShape:
        return LayerShape(c, size, size, k, r, r, (stride,) * 2, (r // 2,) * 2, (1, 1), groups, True)

    channels = (128, 256, 512, 1024)
    yield layer(3, 128, 224, r=3, stride=2)
    yield layer(128, 128, 112, r=3, groups=128)
    yield layer(128, 128, 112)
    yield layer(128, 128, 112, r=3, stride=2, groups=128)
    size = 56
    for stage, (c, depth, r) in enumerate(zip(channels, (2, 2, 18, 2), (31, 29, 27, 13), strict=True)):
        for _ in range(depth):
            yield layer(c, c, size)
            yield layer(c, c, size, r=r, groups=c)
            yield layer(c, c, size)
            yield layer(c, 4 * c, size)
            yield layer(4 * c, c, size)
        if stage < 3:
            yield layer(c, 2 * c, size)
            yield layer(2 * c, 2 * c, size, r=3, stride=2, groups=2 * c)
            size //= 2


def document(name: str, shapes: Sequence[LayerShape]) -> str:
    """Write the text of a data file: a layer a line."""
    package, there = SOURCES[name]
    head: dict[str, Any] = {"network": name, "source": f"{package}: {there}", "input_size": _IMAGE_SIZE}
    rows = ",\n".join(f"  {json.dumps(asdict(shape))}" for shape in shapes)
    fields = "".join(f' "{key}": {json.dumps(value)},\n' for key, value in head.items())
    return f'{{\n{fields} "layers": [\n{rows}\n ]\n}}\n'


def main() -> int:
    """Write the data files anew, those whose source is installed."""
    _DIRECTORY.mkdir(exist_ok=True)
    for name in SOURCES:
        try:
            text = document(name, extract_layers(name))
        except ImportError as error:
            print(f"{name}: left as it is, {error}", file=sys.stderr)
            continue
        (_DIRECTORY / f"{name}.json").write_text(text, encoding="utf-8")
        print(f"{name}: {text.count('groups')} layers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
