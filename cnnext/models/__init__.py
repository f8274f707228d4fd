"""Networks built from cnnext's convolutions.

Each family has a file of its own, with the layer table of its paper as data. State dicts of the usual implementations
load without renaming: torchvision's for ResNet, timm's for MobileNet-V1.

Example:
    >>> import torch, cnnext
    >>> cnnext.models.list_models()
    ['mobilenet_v1', 'resnet18']
    >>> cnnext.models.create_model("resnet18", num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 10])
"""

from cnnext.models.mobilenet_v1 import MobileNetV1, mobilenet_v1
from cnnext.models.registry import create_model, list_models, register_model
from cnnext.models.resnet import ResNet, resnet18

__all__ = [
    "MobileNetV1",
    "ResNet",
    "create_model",
    "list_models",
    "mobilenet_v1",
    "register_model",
    "resnet18",
]
