"""Everything that only a GPU can show, in one command: ``python -m bench.gpu_check``; ``--help`` explains it.

Steps, each a process of its own, so that none can take the others down:

    build      compiles the kernels for the GPUs present, with the torch that is there, without the network
    test       the tests that need a GPU (tests/test_gpu.py and others marked so)
    sanitize   compute-sanitizer's four tools over small problems of every kernel
    ops        the benchmark of layers, depthwise ones first, in each dtype
    models     the benchmark of networks: inference and training

After each step the summary is written anew, and a step that runs out of time leaves its log and what it measured.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench import environment
from bench.files import write_json
from bench.options import Parser

_ROOT = Path(__file__).resolve().parent.parent
_MINUTES = 10.0
_DTYPES = ("bfloat16", "float16", "float32")
_NETWORKS = ("mobilenet_v1", "resnet18")
_TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_SANITIZER_PLACES = ("/usr/local/cuda/bin/compute-sanitizer", "/usr/local/cuda/compute-sanitizer/compute-sanitizer")
#: A process that is told to stop writes what it has; after this many seconds more it is killed.
_LAST_WORDS = 15.0


@dataclass(frozen=True)
class Command:
    """A process of a step."""

    name: str
    command: list[str]
    environment: dict[str, str]


@dataclass
class Outcome:
    """How a process ended."""

    name: str
    status: str  # "passed", "failed", "out of time" or "skipped"
    reason: str
    seconds: float
    command: str
    log: str | None


@dataclass(frozen=True)
class Step:
    """A part of the check.

    Attributes:
        share: of the time that is left when it begins; parts that end early leave theirs to the later ones.
        why_not: why it cannot run here, or None.
        commands: what it runs, given the output directory and the seconds it has.
    """

    share: float
    why_not: Callable[[], str | None]
    commands: Callable[[Path, float], list[Command]]


# ---------------------------------------------------------------------------------------------------------- the steps


def _no_compiler() -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    if shutil.which("nvcc") is None and not Path(home, "bin", "nvcc").exists():
        return "nvcc is not found"
    return None


def _no_gpu(*packages: str) -> str | None:
    """Why nothing can run on a GPU, or what needs these packages cannot."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else None


def _cannot_test() -> str | None:
    return _no_gpu("pytest")


def _cannot_measure() -> str | None:
    return _no_gpu("rich", "jinja2")


def _sanitizer() -> str | None:
    places = [shutil.which("compute-sanitizer"), *_SANITIZER_PLACES]
    return next((place for place in places if place and Path(place).exists()), None)


def _cannot_sanitize() -> str | None:
    return _cannot_test() or (None if _sanitizer() else "compute-sanitizer is not found")


def _python(name: str, *arguments: str, **variables: str) -> Command:
    return Command(name, [sys.executable, *arguments], variables)


def _build(out: Path, seconds: float) -> list[Command]:
    variables = {"MAX_JOBS": os.environ.get("MAX_JOBS", str(os.cpu_count() or 1)), "CNNEXT_FORCE_CUDA": "1"}
    if not torch.cuda.is_available():
        variables["TORCH_CUDA_ARCH_LIST"] = os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0a")
    return [
        _python("build", "setup.py", "build_ext", "--inplace", **variables),
        _python("info", "-m", "cnnext.info"),
    ]


def _test(out: Path, seconds: float) -> list[Command]:
    processes = ("-n", "4") if importlib.util.find_spec("xdist") else ("-o", "addopts=")
    # Only these files, so that none of the others needs a package that is not there.
    files = [str(path) for path in sorted(_ROOT.glob("tests/test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    flags = ("-q", "--maxfail=50", "--durations=10", "--continue-on-collection-errors")
    return [_python("test", "-m", "pytest", *processes, "-m", "gpu", *flags, *files)]


def _sanitize(out: Path, seconds: float) -> list[Command]:
    # torch's own kernels are not the question, and its allocator would hide what lies behind the end of a tensor.
    small = ["-m", "pytest", "-o", "addopts=", "-m", "gpu", "-q", "tests/test_gpu.py", "-k", "small"]
    return [
        Command(
            tool,
            [
                _sanitizer() or "compute-sanitizer",
                *("--tool", tool, "--error-exitcode", "86", "--kernel-regex", "kns=cnnext"),
                *(sys.executable, *small),
            ],
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        for tool in _TOOLS
    ]


def _bench(name: str, out: Path, seconds: float, *arguments: str) -> Command:
    budget = f"{max(5.0, 0.85 * seconds):.0f}"
    given = ("--device", "cuda", "--seconds", budget, "--out", str(out / f"{name}.json"))
    return _python(name, "-m", "bench", *arguments, *given)


def _ops(out: Path, seconds: float) -> list[Command]:
    # What this library is for comes first.
    runs = [
        (f"ops-{kinds[0]}-{dtype}", [*(word for kind in kinds for word in ("--kind", kind)), "--dtype", dtype])
        for kinds in (("depthwise",), ("pointwise", "grouped", "dense"))
        for dtype in _DTYPES
    ]
    networks = [word for name in (*_NETWORKS, "resnext50_32x4d") for word in ("--network", name)]
    return [_bench(name, out, seconds / len(runs), "ops", *networks, *arguments) for name, arguments in runs]


def _models(out: Path, seconds: float) -> list[Command]:
    networks = [word for name in _NETWORKS for word in ("--network", name)]
    runs = [(command, dtype) for dtype in ("bfloat16", "float32") for command in ("models", "train")]
    return [
        _bench(
            f"{command}-{dtype}", out, seconds / len(runs), command, *networks, "--dtype", dtype, "--baseline", "none"
        )
        for command, dtype in runs
    ]


STEPS = {
    "build": Step(0.45, _no_compiler, _build),
    "test": Step(0.35, _cannot_test, _test),
    "sanitize": Step(0.35, _cannot_sanitize, _sanitize),
    "ops": Step(0.65, _cannot_measure, _ops),
    "models": Step(1.0, _cannot_measure, _models),
}


# ------------------------------------------------------------------------------------------------------------ running


def run_command(command: Command, log: Path, seconds: float) -> Outcome:
    """Run a process, its output in a file.

    Args:
        command: what to run.
        log: the file.
        seconds: after which the process is told to stop, as by ctrl-C, and a little later killed.
    """
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command.command,
            cwd=_ROOT,
            env=os.environ | command.environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children are told too
        )
        try:
            process.wait(timeout=seconds)
            status, reason = ("passed", "") if process.returncode == 0 else ("failed", _last_line(log))
        except subprocess.TimeoutExpired:
            status, reason = "out of time", f"after {seconds:.0f} s"
        finally:
            _end(process)
    words = " ".join([*(f"{key}={value}" for key, value in command.environment.items()), *command.command])
    return Outcome(command.name, status, reason, time.monotonic() - started, words, log.name)


def _end(process: subprocess.Popen[bytes]) -> None:
    for sign, patience in ((signal.SIGINT, _LAST_WORDS), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, sign)
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            continue


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "no output"


def run_steps(names: Sequence[str], out: Path, minutes: float) -> Iterator[tuple[str, Outcome]]:
    """Run steps one after the other, within a time for all of them.

    Args:
        names: of `STEPS`.
        out: directory for logs and results.
        minutes: for all of it.

    Yields:
        The name of the step and how a process of it ended, or why the step was skipped.
    """
    deadline = time.monotonic() + 60 * minutes
    for name in names:
        step = STEPS[name]
        reason = step.why_not()
        if reason is not None:
            yield name, Outcome(name, "skipped", reason, 0.0, "", None)
            continue
        left = max(0.0, deadline - time.monotonic())
        # The last step asked for may use all that is left.
        mine = left if name == names[-1] else step.share * left
        ends = time.monotonic() + mine
        commands = step.commands(out, mine)
        for position, command in enumerate(commands):
            share = (ends - time.monotonic()) / (len(commands) - position)
            if name in ("build", "test"):  # what is left of these is no use
                share = ends - time.monotonic()
            if share < 1:
                yield name, Outcome(command.name, "skipped", "no time is left", 0.0, "", None)
                continue
            yield name, run_command(command, out / f"{command.name}.log", share)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check.

    Returns:
        0 if every step asked for passed, 1 if one failed or ran out of time, 3 if none did but some were skipped.
    """
    parser = Parser(
        prog="python -m bench.gpu_check",
        description=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)} (default: all, in this order)")
    parser.add_argument("--out", type=Path, help="directory to write to (default: a dated one in bench/results)")
    parser.add_argument("--minutes", type=float, default=_MINUTES, help=f"for everything (default: {_MINUTES:.0f})")
    given = parser.parse_args(argv)
    unknown = [name for name in given.steps if name not in STEPS]
    if unknown:
        parser.error(f"unknown step {unknown[0]!r}: expected {', '.join(STEPS)}")
    names = [name for name in STEPS if name in given.steps] or list(STEPS)
    out = given.out or _ROOT / "bench" / "results" / f"{datetime.datetime.now():%Y%m%d-%H%M%S}-gpu-check"
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    document: dict[str, Any] = {
        "environment": environment.describe(device, keeps_freed_memory=False),
        "steps": [],
    }
    write_json(out / "summary.json", document)
    for name, outcome in run_steps(names, out, given.minutes):
        document["steps"].append({"step": name, **asdict(outcome)})
        write_json(out / "summary.json", document)
        title = name if name == outcome.name else f"{name} {outcome.name}"
        reason = f": {outcome.reason}" if outcome.reason else ""
        print(f"{outcome.seconds:6.0f} s  {title:<32} {outcome.status}{reason}", flush=True)
    print(f"written to {out}")
    statuses = {step["status"] for step in document["steps"]}
    if statuses & {"failed", "out of time"}:
        return 1
    return 3 if "skipped" in statuses else 0


if __name__ == "__main__":
    sys.exit(main())
