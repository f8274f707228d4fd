"""Prints the table of the networks, or writes it into a document.

    python -m cnnext.models [DOCUMENT]

Parameters and multiply-adds are counted, and the logits are compared with those of torchvision and timm with the same
weights, where these are installed. In a document the table goes between two lines that mark its place.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from pathlib import Path

import torch

from cnnext.models import _parity
from cnnext.models.features import Network
from cnnext.models.registry import create_model, list_models
from cnnext.models.summary import summary

BEGIN, END = "<!-- begin: python -m cnnext.models docs/networks.md -->", "<!-- end -->"

_PAPERS = {
    "lenet": "[LeCun et al. 1998](http://yann.lecun.com/exdb/publis/pdf/lecun-01a.pdf)",
    "alexnet": "[Krizhevsky 2014](https://arxiv.org/abs/1404.5997)",
    "zfnet": "[Zeiler & Fergus 2013](https://arxiv.org/abs/1311.2901)",
    "nin": "[Lin et al. 2013](https://arxiv.org/abs/1312.4400)",
    "vgg16": "[Simonyan & Zisserman 2014](https://arxiv.org/abs/1409.1556)",
    "googlenet": "[Szegedy et al. 2014](https://arxiv.org/abs/1409.4842)",
    "inception_v2": "[Ioffe & Szegedy 2015](https://arxiv.org/abs/1502.03167)",
    "resnet18": "[He et al. 2015](https://arxiv.org/abs/1512.03385)",
    "resnet34": "as resnet18",
    "resnet50": "as resnet18",
    "se_resnet18": "[Hu et al. 2017](https://arxiv.org/abs/1709.01507)",
    "densenet121": "[Huang et al. 2016](https://arxiv.org/abs/1608.06993)",
    "squeezenet1_0": "[Iandola et al. 2016](https://arxiv.org/abs/1602.07360)",
    "mobilenet_v1": "[Howard et al. 2017](https://arxiv.org/abs/1704.04861)",
}


def _comparison(name: str) -> tuple[str, str, str]:
    """With what the network is compared, its parameters, and the error of the logits."""
    reference = _parity.REFERENCES.get(name)
    if reference is None:
        return "the paper's table", "", ""
    label = f"{reference.package} `{reference.name}`"
    torch.manual_seed(0)
    try:
        parity = _parity.compare(name, torch.randn(2, 3, 224, 224))
    except ImportError:
        return f"{label}: not installed", "", ""
    return label, f"{parity.reference_parameters:,}", f"{parity.error:.1e}"


def table() -> str:
    """Return the table of all networks, in Markdown."""
    lines = [
        "| name | paper | input | parameters | multiply-adds | feature maps: channels (stride) "
        "| compared with | its parameters | error of the logits |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in [*_PAPERS, *sorted(set(list_models()) - set(_PAPERS))]:
        model = create_model(name)
        assert isinstance(model, Network)
        with contextlib.redirect_stdout(io.StringIO()):
            counted = summary(model)
        maps = ", ".join(f"{feature.channels} ({feature.reduction})" for feature in model.feature_info)
        channels, height, width = model.input_size
        cells = (
            f"`{name}`",
            _PAPERS.get(name, ""),
            f"{height} x {width} x {channels}",
            f"{counted.parameters:,}",
            f"{counted.multiply_adds:,}",
            maps,
            *_comparison(name),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m cnnext.models", description="Prints the table of the networks.")
    parser.add_argument("document", type=Path, nargs="?", help="a Markdown file to write it into, between its marks")
    path = parser.parse_args().document
    if path is None:
        print(table())
        return
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{path} has no lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
