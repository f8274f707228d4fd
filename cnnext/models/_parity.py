"""Compares the networks with those of torchvision and timm, by loading a state dict of theirs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from cnnext.models.registry import create_model


class Reference(NamedTuple):
    """The network of another package that has the same layers."""

    package: str  # "torchvision" or "timm"
    name: str
    options: Mapping[str, Any] = {}  # of its builder


REFERENCES = {
    "alexnet": Reference("torchvision", "alexnet"),
    "vgg16": Reference("torchvision", "vgg16"),
    "googlenet": Reference("torchvision", "googlenet", {"aux_logits": False, "init_weights": False}),
    "resnet18": Reference("torchvision", "resnet18"),
    "resnet34": Reference("torchvision", "resnet34"),
    "resnet50": Reference("torchvision", "resnet50"),
    "se_resnet18": Reference("timm", "legacy_seresnet18"),
    "densenet121": Reference("torchvision", "densenet121"),
    "squeezenet1_0": Reference("torchvision", "squeezenet1_0"),
    "mobilenet_v1": Reference("timm", "mobilenetv1_100"),
}


class Parity(NamedTuple):
    """How close a network is to its reference.

    Attributes:
        parameters: of the network.
        reference_parameters: of the reference.
        error: largest difference of the logits, over the largest logit of the reference.
        spread: standard deviation of the logits of the reference over the images and classes, over the largest logit:
            a comparison of logits that are all alike would say little.
    """

    parameters: int
    reference_parameters: int
    error: float
    spread: float


def randomise(model: nn.Module) -> None:
    """Fill weights and statistics with values as after training, so that a layer in the wrong place is seen.

    Variances stay about 1 from layer to layer; batch norms get scales, biases and statistics of their own.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = (6.0 / module.weight[0].numel()) ** 0.5
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.2, 0.2)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked = torch.tensor(100)


def build_reference(reference: Reference) -> nn.Module:
    """Build the network of the other package, without its own initialisation.

    Raises:
        ImportError: if the package is not installed.
    """
    with torch.device("meta"):
        if reference.package == "timm":
            model = importlib.import_module("timm").create_model(reference.name, **reference.options)
        else:
            models = importlib.import_module("torchvision.models")
            model = getattr(models, reference.name)(weights=None, **reference.options)
    model = model.to_empty(device="cpu").eval()
    randomise(model)
    return model


def compare(name: str, images: torch.Tensor, reference: Reference | None = None, **kwargs: Any) -> Parity:
    """Load the state dict of the reference into the network called ``name``, and compare the logits.

    Args:
        name: one of `REFERENCES`.
        images: (N, C, H, W).
        reference: another one than that of `REFERENCES`.
        **kwargs: arguments of the network.

    Raises:
        ImportError: if the package of the reference is not installed.
        RuntimeError: if the state dict does not fit.
    """
    theirs = build_reference(reference or REFERENCES[name])
    with torch.device("meta"):
        ours = create_model(name, **kwargs).eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    with torch.inference_mode():
        expected, logits = theirs(images), ours(images)
    largest = expected.abs().max()
    return Parity(
        sum(p.numel() for p in ours.parameters()),
        sum(p.numel() for p in theirs.parameters()),
        float((logits - expected).abs().max() / largest),
        float(expected.std() / largest),
    )
