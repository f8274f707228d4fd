"""Compiles kernels with g++ and the emulator into Python modules.

    from tests.emulator import build
    module = build.load("plain")

Objects and modules lie in build/emulator/<build>. An object is compiled again when its source, one of the headers that
it includes, or the command has changed, as told by their contents. Processes that build at once wait for each other.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CUDA = ROOT / "csrc" / "cuda"
OUTPUT = ROOT / "build" / "emulator"


@dataclass(frozen=True)
class Build:
    """How one of the builds is made. Of debug information, the lines and what was inlined there (-g1) are enough."""

    flags: tuple[str, ...]  # for everything but the bindings
    kernel_flags: tuple[str, ...] = ()  # for .cu files, in addition
    link_flags: tuple[str, ...] = ()
    memory: tuple[str, ...] = ("memory_plain.cpp",)  # what watches memory


_SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize=vptr,pointer-overflow", "-fno-sanitize-recover=undefined")

#: The builds by name; docs/emulator.md says what each sees.
BUILDS = {
    "plain": Build(flags=("-O2",)),
    "checked": Build(
        flags=("-O2", "-g1"),
        # Structures stay whole, so that a vector's access is seen as the one that it is on a GPU.
        kernel_flags=(
            *("-O1", "-fno-tree-sra", "-fno-ipa-sra"),
            *("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"),
        ),
        memory=("happens_before.cpp", "memory_checked.cpp", "tsan_hooks.cpp"),
    ),
    "sanitized": Build(flags=("-O1", "-g1", *_SANITIZERS), link_flags=_SANITIZERS),
}

#: One more, for python -m tests.emulator.coverage: it counts how often each line runs.
COVERAGE = Build(flags=("-O1", "--coverage"), link_flags=("--coverage",))

#: What every module is made of, beside the file that watches memory.
EMULATOR_SOURCES = (
    "bindings_emulator.cpp",
    "copy_async.cpp",
    "fiber.cpp",
    "mbarrier.cpp",
    "place.cpp",
    "scheduler.cpp",
    "sanitizer_report.cpp",
    "shared_memory.cpp",
    "source_lines.cpp",
    "statistics.cpp",
    "tensor_copy.cpp",
    "warp.cpp",
    "warpgroup.cpp",
)


def sources(bindings: Sequence[str], *kernels: str, without: tuple[str, ...] = ()) -> list[Path]:
    """The bindings, and the sources of csrc/cuda whose names match the patterns and begin with none of `without`."""
    found = sorted(source for pattern in kernels for source in CUDA.glob(pattern))
    return [*(HERE / f"bindings{name}.cpp" for name in bindings), *(s for s in found if not s.stem.startswith(without))]


#: The modules that can be loaded: the sources of each.
MODULES = {
    "convolutions": lambda: sources(("", "_params", "_convolutions"), "*.cpp", "*.cu", without=("separable",)),
    # All of csrc/cuda: the planner of blocks weighs them against two convolutions.
    "separable": lambda: sources(("", "_params", "_separable"), "*.cpp", "*.cu"),
    # Of the convolutions those which are compiled in seconds.
    "wgmma": lambda: sources(("_params", "_wgmma"), "*_wgmma_nhwc.cu"),
    "planted_bugs": lambda: [HERE / "bindings_planted_bugs.cpp", *sorted(HERE.glob("planted_bugs*.cu"))],
}


#: CUDA's headers that kernels need, and the package on PyPI that each is from.
_HEADERS = {
    "cuda_fp16.h": "nvidia-cuda-runtime",
    "crt/host_defines.h": "nvidia-cuda-crt",
    "nv/target": "nvidia-cuda-cccl",
}


def cuda_headers() -> Path | None:
    """Directory with CUDA's headers: of a toolkit, or of packages from PyPI."""
    candidates = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "include")]
    if nvcc := shutil.which("nvcc"):
        candidates.append(Path(nvcc).resolve().parent.parent / "include")
    spec = importlib.util.find_spec("nvidia")
    for location in spec.submodule_search_locations or [] if spec else []:
        candidates.extend(sorted(Path(location).glob("*/include")))
    return next((c for c in candidates if all((c / header).exists() for header in _HEADERS)), None)


def environment(build: str) -> dict[str, str]:
    """Environment that a Python process needs in order to load `build`."""
    if build != "sanitized":
        return {}
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Python itself is not clean of leaks.
    return {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}


@functools.cache
def load(build: str = "plain", module: str = "convolutions") -> ModuleType:
    """Compiles what changed and imports one of `MODULES`, made as one of `BUILDS`, or "coverage", says.

    Raises:
        RuntimeError: CUDA's headers are not found, or the compiler fails; the message holds its output.
    """
    name = f"cnnext_emulator_{module}"
    library = _build(build, name, MODULES[module]())
    # With the build in its name: pybind11 takes modules of one name for one module.
    spec = importlib.util.spec_from_file_location(f"{build}.{name}", library)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    order, seed = os.environ.get("CNNEXT_EMULATOR_ORDER", "random"), os.environ.get("CNNEXT_EMULATOR_SEED", "0")
    loaded.set_schedule(order, int(seed))
    return loaded


def _build(build: str, name: str, sources: list[Path]) -> Path:
    headers = cuda_headers()
    if headers is None:
        raise RuntimeError(
            f"CUDA's headers were not found: install a toolkit, or `pip install {' '.join(_HEADERS.values())}`"
        )
    settings = {**BUILDS, "coverage": COVERAGE}[build]
    directory = OUTPUT / build
    directory.mkdir(parents=True, exist_ok=True)
    emulator = [HERE / source for source in (*EMULATOR_SOURCES, *settings.memory)]
    with ThreadPoolExecutor(_jobs()) as pool:
        compile_one = functools.partial(_compile, settings, headers, directory)
        objects = list(pool.map(compile_one, [*sources, *emulator]))
    library = directory / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    _make(library, ["g++", "-shared", *settings.link_flags, *map(str, objects), "-ldl"], objects)
    return library


def _compile(settings: Build, headers: Path, directory: Path, source: Path) -> Path:
    """The object of a source, compiled if it has to be."""
    command = ["g++", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
    if source.name.startswith("bindings"):  # the same for all builds
        directory = OUTPUT / "bindings"
        directory.mkdir(exist_ok=True)
        command += ["-O1"]
    else:
        command += [*settings.flags, *(settings.kernel_flags if source.suffix == ".cu" else ())]
    includes = [pybind11.get_include(), sysconfig.get_path("include"), str(headers)]
    command += [f"-I{HERE}", f"-I{CUDA}", *(f"-isystem{path}" for path in includes), "-x", "c++", "-c", str(source)]
    result = directory / f"{source.stem}.o"
    _make(result, command, [source])
    return result


def _make(result: Path, command: list[str], inputs: list[Path]) -> None:
    """Runs `command -o result`, unless that has been done with the same command and inputs.

    What was done is kept in a file beside the result; the headers among the inputs are those that g++ lists.
    """
    with _locked(result):
        record = result.with_name(f"{result.name}.json")
        if result.exists() and record.exists():
            known = json.loads(record.read_text())
            if known == {"command": shlex.join(command), "inputs": _digests(known["inputs"])}:
                return
        record.unlink(missing_ok=True)
        digests = _digests(map(str, inputs))  # of what is read now, should a file change meanwhile
        # Under another name first: a process that is interrupted leaves no half file, and one that has loaded the old
        # module keeps it.
        unfinished = result.with_name(f"{result.name}.{os.getpid()}")
        dependencies = result.with_name(f"{result.name}.d")
        listing = ["-MMD", "-MF", str(dependencies)] if "-c" in command else []
        done = subprocess.run([*command, *listing, "-o", str(unfinished)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"g++ failed: {shlex.join(command)}\n{done.stderr}")
        if listing and dependencies.exists():
            headers = dependencies.read_text().replace("\\\n", " ").split()[1:]
            digests = {**_digests(headers), **digests}
        unfinished.replace(result)
        record.write_text(json.dumps({"command": shlex.join(command), "inputs": digests}))


def _digests(paths: Iterable[str]) -> dict[str, str | None]:
    """A digest of each file's content; None for a file that is not there."""
    return {p: hashlib.sha256(Path(p).read_bytes()).hexdigest() if Path(p).exists() else None for p in paths}


def _jobs() -> int:
    return int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))


@contextmanager
def _locked(result: Path) -> Iterator[None]:
    """Others that make the same result wait."""
    with open(result.with_name(f"{result.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
