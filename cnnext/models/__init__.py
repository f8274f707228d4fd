"""Networks built from cnnext's convolutions.

Each family has a file of its own, with the layer table of its paper as data. State dicts of the usual implementations
load without renaming: torchvision's for AlexNet, VGG, GoogLeNet, ResNet, DenseNet and SqueezeNet, timm's for SE-ResNet
and MobileNet-V1.

Example:
    >>> import torch, cnnext
    >>> cnnext.models.list_models()  # doctest: +NORMALIZE_WHITESPACE
    ['alexnet', 'densenet121', 'googlenet', 'inception_v2', 'lenet', 'mobilenet_v1', 'nin', 'resnet18', 'resnet34',
     'resnet50', 'se_resnet18', 'squeezenet1_0', 'vgg16', 'zfnet']
    >>> cnnext.models.create_model("resnet18", num_classes=10).eval()(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 10])
"""

from cnnext.models.alexnet import AlexNet, alexnet
from cnnext.models.densenet import DenseNet, densenet121
from cnnext.models.features import Feature, FeatureBackbone, FeatureInfo, Network
from cnnext.models.googlenet import GoogLeNet, googlenet
from cnnext.models.inception_v2 import InceptionV2, inception_v2
from cnnext.models.lenet import LeNet5, lenet
from cnnext.models.mobilenet_v1 import MobileNetV1, mobilenet_v1
from cnnext.models.nin import NetworkInNetwork, nin
from cnnext.models.registry import create_model, list_models, register_model
from cnnext.models.resnet import ResNet, resnet18, resnet34, resnet50
from cnnext.models.se_resnet import SEResNet, se_resnet18
from cnnext.models.squeezenet import SqueezeNet, squeezenet1_0
from cnnext.models.summary import LayerRow, Summary, summary
from cnnext.models.vgg import VGG, vgg16
from cnnext.models.zfnet import ZFNet, zfnet

__all__ = [
    "VGG",
    "AlexNet",
    "DenseNet",
    "Feature",
    "FeatureBackbone",
    "FeatureInfo",
    "GoogLeNet",
    "InceptionV2",
    "LayerRow",
    "LeNet5",
    "MobileNetV1",
    "Network",
    "NetworkInNetwork",
    "ResNet",
    "SEResNet",
    "SqueezeNet",
    "Summary",
    "ZFNet",
    "alexnet",
    "create_model",
    "densenet121",
    "googlenet",
    "inception_v2",
    "lenet",
    "list_models",
    "mobilenet_v1",
    "nin",
    "register_model",
    "resnet18",
    "resnet34",
    "resnet50",
    "se_resnet18",
    "squeezenet1_0",
    "summary",
    "vgg16",
    "zfnet",
]
