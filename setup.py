"""Builds the shared objects with the kernels: one for the CPU and, where a CUDA torch and nvcc are found, one for CUDA.

Environment variables:
    CNNEXT_SKIP_CUDA_BUILD=1  leave the CUDA kernels out
    CNNEXT_FORCE_CUDA=1       fail, instead of leaving them out, if they cannot be built
    TORCH_CUDA_ARCH_LIST      architectures, for example "8.0;9.0a;12.0+PTX"; default: the GPUs present, else a common
                              list. The kernels with wgmma are compiled for "9.0a" alone
    MAX_JOBS                  parallel compile jobs
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent
# Only what is declared at or before this version of torch is used, so one build serves every later one.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
PYTHON_ABI = "cp310"
CXX_FLAGS = ["-O3", "-g0", "-Wall", "-fvisibility=hidden", *STABLE_ABI]
# Compute capability 9.0 with wgmma. It has no successor that would run code for plain 9.0, so nothing is lost.
HOPPER = "9.0a"
# What nvcc must at least be for an architecture, from the newest down.
DEFAULT_ARCHITECTURES = (("8.0", (11, 0)), (HOPPER, (12, 0)), ("10.0", (12, 8)), ("12.0+PTX", (12, 8)))


def flag(name: str) -> bool:
    return os.environ.get(name, "0").lower() not in ("", "0", "false", "no", "off")


def sources(*patterns: str) -> list[str]:
    found = (path for pattern in patterns for path in ROOT.glob(pattern))
    return sorted(str(path.relative_to(ROOT)) for path in found)


def headers() -> list[str]:
    return sources("csrc/**/*.h", "csrc/**/*.cuh")


@functools.cache
def cuda_home() -> Path | None:
    """The CUDA toolkit: what CUDA_HOME says, else the one nvcc belongs to, else the usual place.

    torch takes the parent of the directory where nvcc is on PATH, which is no toolkit if that is a link or a wrapper.
    """
    if named := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        candidates = [Path(named)]
    else:
        nvcc = shutil.which("nvcc")
        candidates = [Path(nvcc).parent.parent, Path(nvcc).resolve().parent.parent] if nvcc else []
        candidates.append(Path("/usr/local/cuda"))
    for candidate in candidates:
        if (candidate / "bin" / "nvcc").exists() and (candidate / "include" / "cuda_runtime_api.h").exists():
            return candidate
    return None


@functools.cache
def nvcc_version() -> tuple[int, int] | None:
    """Version of nvcc, or None if there is none."""
    if cuda_home() is None:
        return None
    try:
        text = subprocess.run([cuda_home() / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.search(r"release (\d+)\.(\d+)", text.stdout)
    return (int(match[1]), int(match[2])) if match else None


def why_no_cuda() -> str | None:
    """Why the CUDA kernels cannot be built here, or None if they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    version = nvcc_version()
    if version is None:
        return "nvcc was not found: put the CUDA toolkit's bin directory on PATH or set CUDA_HOME"
    if version[0] != int(torch.version.cuda.partition(".")[0]):
        return f"nvcc {version[0]}.{version[1]} and torch's CUDA {torch.version.cuda} differ in their major version"
    return None


def choose_architectures() -> str:
    """Sets TORCH_CUDA_ARCH_LIST where neither the user nor a GPU decides, and returns what will be built for."""
    if "TORCH_CUDA_ARCH_LIST" not in os.environ:
        if torch.cuda.is_available():
            present = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
            names = [HOPPER if version == (9, 0) else "{}.{}".format(*version) for version in sorted(present)]
            os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(names)
        else:
            version = nvcc_version() or (0, 0)
            names = [name for name, minimum in DEFAULT_ARCHITECTURES if version >= minimum]
            os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(names)
    return os.environ["TORCH_CUDA_ARCH_LIST"]


def cpu_extension() -> cpp_extension.CppExtension:
    return cpp_extension.CppExtension(
        "cnnext._C_cpu",
        sources("csrc/bindings/cpu.cpp", "csrc/bindings/problem.cpp", "csrc/cpu/*.cpp", "csrc/cpu/isa/*.cpp"),
        depends=headers(),
        extra_compile_args={"cxx": CXX_FLAGS},
        extra_link_args=["-ldl"],
        py_limited_api=True,
    )


def wgmma_flags() -> list[str]:
    """What tells the planners that the kernels with wgmma are compiled in, where they are."""
    return ["-DCNNEXT_WITH_WGMMA"] if HOPPER in os.environ["TORCH_CUDA_ARCH_LIST"] else []


def cuda_extension() -> cpp_extension.CUDAExtension:
    return cpp_extension.CUDAExtension(
        "cnnext._C_cuda",
        sources("csrc/bindings/cuda.cpp", "csrc/bindings/problem.cpp", "csrc/cuda/*.cpp", "csrc/cuda/*.cu"),
        depends=headers(),
        extra_compile_args={
            "cxx": [*CXX_FLAGS, "-DUSE_CUDA", *wgmma_flags()],
            "nvcc": ["-O3", "-DUSE_CUDA", "-Xcompiler=-fvisibility=hidden", "--threads=2", *STABLE_ABI],
        },
        py_limited_api=True,
    )


class BuildExtension(cpp_extension.BuildExtension):
    """Builds the extensions, says so in one line, and writes down beside the package what was built."""

    info: dict[str, dict[str, object]]

    def run(self) -> None:
        cuda = self.info["cuda"]
        if cuda["built"]:
            parts = f"CPU kernels and CUDA kernels for {cuda['architectures']} (nvcc {cuda['nvcc']})"
        else:
            parts = f"CPU kernels; no CUDA kernels: {cuda['reason']}"
        print(f"cnnext: building against torch {torch.__version__}: {parts}", flush=True)
        super().run()
        in_source_tree = self.inplace or self.editable_mode
        package = ROOT / "cnnext" if in_source_tree else Path(self.build_lib, "cnnext")
        package.mkdir(parents=True, exist_ok=True)
        (package / "build_info.json").write_text(json.dumps(self.info, indent=2) + "\n")

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(Path(self.build_lib, "cnnext", "build_info.json"))]


def plan_cuda() -> dict[str, object]:
    """Whether the CUDA kernels will be built: for which architectures, or why not."""
    reason = "CNNEXT_SKIP_CUDA_BUILD is set" if flag("CNNEXT_SKIP_CUDA_BUILD") else why_no_cuda()
    if reason is None:
        nvcc = ".".join(map(str, nvcc_version() or ()))
        return {"built": True, "architectures": choose_architectures(), "nvcc": nvcc}
    if flag("CNNEXT_FORCE_CUDA"):
        raise SystemExit(f"cnnext: CNNEXT_FORCE_CUDA is set, but the CUDA kernels cannot be built: {reason}")
    return {"built": False, "reason": reason}


def main() -> None:
    cuda = plan_cuda()
    extensions = [cpu_extension()]
    if cuda["built"]:
        cpp_extension.CUDA_HOME = str(cuda_home())
        extensions.append(cuda_extension())
    info = {"torch": {"version": torch.__version__}, "cpu": {"built": True}, "cuda": cuda}
    setup(
        ext_modules=extensions,
        cmdclass={"build_ext": type("build_ext", (BuildExtension,), {"info": info})},
        options={"bdist_wheel": {"py_limited_api": PYTHON_ABI}},
    )


if __name__ == "__main__":
    main()
