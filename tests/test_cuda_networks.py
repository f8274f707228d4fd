"""Networks on the CUDA kernels in the emulator: whole ones, planned and launched as on a GPU, and layers one by one."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

import cnnext
from bench.cases import LayerShape
from bench.networks import load_layers
from cnnext import backends
from cnnext.models import resnet
from tests.cases import Case
from tests.cuda_kernels import BUILD, DEPTHWISE, OPS, CudaKernels, Placement, Variant, check_integers, first
from tests.emulated_backend import emulated
from tests.emulator import build

pytestmark = [
    pytest.mark.skipif(build.cuda_headers() is None, reason="no CUDA headers: neither a toolkit nor a package"),
    pytest.mark.skipif(BUILD not in ("plain", "coverage"), reason="the other builds watch one kernel at a time"),
]

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}

#: A result's error may exceed that of PyTorch's own convolution in the same dtype by this factor: the roundings of two
#: orders of summation are as large as each other, but not the same.
MARGIN = 3.0


def _narrow_resnet18(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A quarter of the channels."""
    monkeypatch.setattr(resnet, "_STEM_CHANNELS", 16)
    monkeypatch.setattr(resnet, "STAGES", tuple((width // 4, stride) for width, stride in resnet.STAGES))
    return cnnext.models.resnet18(num_classes=10)


NARROW: dict[str, Callable[[pytest.MonkeyPatch], nn.Module]] = {
    "mobilenet_v1": lambda monkeypatch: cnnext.models.mobilenet_v1(num_classes=10, width_multiplier=0.25),
    "resnet18": _narrow_resnet18,
}


def _smooth(model: nn.Module) -> nn.Module:
    """The network with SiLU for ReLU: a sum within rounding of zero would else switch its gradient on or off."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(module, name, nn.SiLU())
    return model


def _results(model: nn.Module, images: torch.Tensor, backend: str) -> dict[str, torch.Tensor]:
    """Logits of a training step, and the gradients of their cross entropy with respect to images and parameters."""
    model = copy.deepcopy(model).train()
    images = images.clone().requires_grad_()
    with backends.use(backend):
        logits = model(images)
        nn.functional.cross_entropy(logits.float(), torch.arange(len(images))).backward()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    assert images.grad is not None
    return {"logits": logits.detach(), "gradient of the images": images.grad, **gradients}


def _errors(results: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, float]:
    def norm(t: torch.Tensor) -> float:
        return float(torch.linalg.vector_norm(t.double()))

    return {name: norm(results[name].double() - exact[name]) / norm(exact[name]) for name in exact}


def _check_step(model: nn.Module, size: int, batch: int, dtype: torch.dtype, layout: str) -> None:
    images = torch.randn(batch, 3, size, size).to(dtype, memory_format=LAYOUTS[layout])
    model = _smooth(model).to(dtype, memory_format=LAYOUTS[layout])
    with emulated() as calls:
        results = _results(model, images, "emulated")
    exact = _results(copy.deepcopy(model).double(), images.double(), "aten")
    errors, of_aten = (_errors(r, exact) for r in (results, _results(model, images, "aten")))
    eps = torch.finfo(dtype).eps
    for name, error in errors.items():
        assert of_aten[name] < 0.25, f"{name}: rounding alone hides a wrong result"
        assert error <= MARGIN * of_aten[name] + 4 * eps, f"{name}: off by {error:.2e}, aten by {of_aten[name]:.2e}"

    # Every convolution, in all three directions, by kernels made for it.
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert Counter(call.op for call in calls) == dict.fromkeys(OPS, convolutions)
    assert not [str(call) for call in calls if "general" in call.config]


@pytest.mark.parametrize(("dtype", "layout"), [(torch.float32, "nchw"), (torch.float16, "nhwc")], ids=str)
@pytest.mark.parametrize("name", NARROW)
def test_training_step(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, layout: str) -> None:
    _check_step(NARROW[name](monkeypatch), 64, 2, dtype, layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", NARROW)
def test_training_step_at_full_width(name: str, dtype: torch.dtype, layout: str) -> None:
    _check_step(cnnext.models.create_model(name, num_classes=10), 64, 2, dtype, layout)


# --- Layers: every distinct shape of five networks, a batch of one. ---

NETWORKS = ("mobilenet_v1", "resnet18", "resnext50_32x4d", "regnety_040", "shufflenet_v2_x1_0")
LAYERS = tuple(dict.fromkeys(shape for name in NETWORKS for shape in load_layers(name)))

#: Rows and columns that a layer's image keeps in continuous integration, and multiplications of the layers left in.
SMALL_IMAGE = 9
MOST_WORK = 8_000_000


def _case(shape: LayerShape, image: int) -> Case:
    return Case(
        shape.name,
        n=1,
        c=shape.C,
        h=min(shape.H, image),
        w=min(shape.W, image),
        k=shape.K,
        r=shape.R,
        s=shape.S,
        stride=shape.stride,
        padding=shape.padding,
        dilation=shape.dilation,
        groups=shape.groups,
    )


def _variant(case: Case) -> Variant:
    return DEPTHWISE if case.groups == case.c else Variant("grouped", filter_channels_last=case.k % 64 != 0)


def _work(case: Case) -> int:
    n, k, p, q = case.output_shape
    return n * k * p * q * (case.c // case.groups) * case.r * case.s


SMALL = tuple(dict.fromkeys(case for shape in LAYERS if _work(case := _case(shape, SMALL_IMAGE)) <= MOST_WORK))


@pytest.fixture(scope="module")
def kernels() -> CudaKernels:
    return CudaKernels()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_layers_of_networks(kernels: CudaKernels, case: Case, op: str) -> None:
    check_integers(kernels, op, case, torch.float16, Placement("nhwc"), _variant(case), select=first)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float16, "nhwc"), (torch.bfloat16, "nchw"), (torch.float32, "nhwc")], ids=str
)
@pytest.mark.parametrize("shape", LAYERS, ids=lambda shape: shape.name)
def test_layers_of_networks_at_full_size(
    kernels: CudaKernels, shape: LayerShape, dtype: torch.dtype, layout: str, op: str
) -> None:
    case = _case(shape, image=max(shape.H, shape.W))
    check_integers(kernels, op, case, dtype, Placement(layout), _variant(case), select=first)
