"""`python -m cnnext.info`: what was built, what loaded, what did not, and why."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

import cnnext
from cnnext import _extension, backends
from cnnext.backends import store

__all__ = ["report"]


def report() -> str:
    """The state of this installation as text, a line a fact.

    >>> print(report())  # doctest: +ELLIPSIS
    cnnext ...
    """
    cuda_built = _extension.BUILD_INFO.get("cuda", {})
    architectures = cuda_built.get("architectures")
    if torch.cuda.is_available():
        devices = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    else:
        devices = "none available"
    facts = {
        "cnnext": cnnext.__version__,
        "python": f"{platform.python_version()} on {platform.machine()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} CPU threads",
        "built against": f"torch {_extension.BUILD_INFO.get('torch', {}).get('version', 'unknown')}",
        "cpu kernels": f"loaded, {_cpu_isa()}" if _extension.cpu.loaded else _extension.cpu.reason,
        "cuda kernels": (
            f"loaded, for {architectures} (nvcc {cuda_built.get('nvcc')})"
            if _extension.cuda.loaded
            else _extension.cuda.reason
        ),
        "triton kernels": _triton(),
        "cuda devices": devices,
        "measured times": str(store.directory() or "not kept: CNNEXT_CACHE_DIR is empty, or there is no home"),
        "backends": ", ".join(backends.available()),
    }
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())


def _triton() -> str:
    reason = backends.triton.unavailable()
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return reason or "usable, of unknown version"
    if reason is not None:
        return f"Triton {version} is installed, but {reason}"
    return f"usable, Triton {version}" + (", interpreted" if backends.triton.INTERPRETED else "")


def _cpu_isa() -> str:
    """Instruction set of the CPU kernels in use."""
    import ctypes

    function = _extension.cpu.library().cnnext_cpu_isa
    function.restype = ctypes.c_char_p
    return function().decode()


if __name__ == "__main__":
    print(report())
