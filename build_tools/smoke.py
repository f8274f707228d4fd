"""Checks an installed cnnext: which kernels loaded, and that every operator computes what F.conv2d computes.

    python build_tools/smoke.py {cpu-torch,cuda-built,no-nvcc,any}

The argument says what the CUDA kernels are expected to be in this environment. Exits with an error where that is not
so.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F

import cnnext
from cnnext import _extension


def check_extensions(expect: str) -> None:
    assert _extension.cpu.loaded, _extension.cpu.reason
    assert cnnext.backends.available()[-2:] == ["cpu", "aten"], cnnext.backends.available()
    cuda = _extension.cuda
    if expect == "cpu-torch":
        assert torch.version.cuda is None, torch.__version__
        assert "built without CUDA" in str(cuda.reason), cuda.reason
    elif expect == "no-nvcc":
        assert torch.version.cuda is not None, torch.__version__
        assert "nvcc was not found" in str(cuda.reason), cuda.reason
    elif expect == "cuda-built":
        assert cuda.loaded, cuda.reason
        assert torch._C._dispatch_has_kernel_for_dispatch_key("cnnext::depthwise_conv2d", "CUDA")
        if not torch.cuda.is_available():
            assert "cuda" not in cnnext.backends.available()
            text = cnnext.backends.explain("depthwise_conv2d", torch.zeros(1, 2, 3, 3), torch.zeros(2, 1, 3, 3))
            assert "cuda: cannot run this: no CUDA device is available" in text, text


def check_values(device: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, 9, 9, device=device)
    cases = (
        (cnnext.functional.depthwise_conv2d, torch.randn(16, 1, 3, 3, device=device), 16, {}),
        (cnnext.functional.grouped_conv2d, torch.randn(8, 4, 3, 3, device=device), 4, {"groups": 4}),
        (cnnext.functional.pointwise_conv2d, torch.randn(8, 16, 1, 1, device=device), 1, {}),
    )
    for function, weight, groups, extra in cases:
        padding = weight.shape[-1] // 2
        results = []
        for convolve in (
            lambda x, w, f=function, p=padding, e=extra: f(x, w, padding=p, **e),
            lambda x, w, p=padding, g=groups: F.conv2d(x, w, padding=p, groups=g),
        ):
            leaves = [tensor.clone().requires_grad_() for tensor in (x, weight)]
            output = convolve(*leaves)
            results.append((output, *torch.autograd.grad(output.square().sum(), leaves)))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def main() -> None:
    expect = sys.argv[1]
    if expect not in ("cpu-torch", "cuda-built", "no-nvcc", "any"):
        raise SystemExit(__doc__)
    check_extensions(expect)
    check_values("cpu")
    if torch.cuda.is_available():
        check_values("cuda")
    print(f"smoke: cnnext {cnnext.__version__} on torch {torch.__version__} is as expected ({expect})")


if __name__ == "__main__":
    main()
