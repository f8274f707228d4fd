"""Command line of the benchmark; ``python -m bench --help`` explains it."""

from __future__ import annotations

import argparse
import datetime
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

try:
    import cnnext
except ImportError as error:
    sys.exit(f"bench: cnnext cannot be imported ({error}); install it first: pip install .")
try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
except ImportError:
    sys.exit('bench: the package "rich" is missing; install what the benchmark needs: pip install ".[bench]"')

from bench import environment, report
from bench.cases import LAYOUTS, Layer, collect_layers
from bench.runner import NETWORK_PASSES, NETWORK_WEIGHT, Case, Settings, measure_layer, measure_network
from bench.timer import MIN_ROUNDS, Budget, clock_for

_RESULTS = Path(__file__).resolve().parent / "results"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DEFAULT_NETWORKS = ("mobilenet_v1", "resnet18")
_DEFAULT_SECONDS = 150.0
_QUICK_SECONDS = 15.0
_FORMAT_VERSION = 1
#: Above this share of the cores in use by others, timings are worth a warning.
_BUSY_LIMIT = 0.1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bench: {message}\n")


def _positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value


def _positive_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")
    return value


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no device; expected cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r} is not supported; expected cpu, cuda or cuda:N")
    if device.type == "cuda":
        if torch.version.cuda is None:
            raise argparse.ArgumentTypeError(f"PyTorch {torch.__version__} was built without CUDA; expected cpu")
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise argparse.ArgumentTypeError(f"{text!r} is not there: {count} CUDA devices are visible")
    return device


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = _Parser(
        prog="python -m bench",
        description="Measures accuracy and throughput of cnnext against PyTorch: networks, and each of their distinct "
        "convolution layers. Prints tables and writes a JSON file.",
    )
    parser.add_argument(
        "--device", type=_device, help="cpu, cuda or cuda:N (default: cuda if cnnext has kernels for it here)"
    )
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="of weights and images (default: float32)")
    parser.add_argument("--layout", choices=[*LAYOUTS, "both"], default="both", help="memory format (default: both)")
    parser.add_argument("--batch", type=_positive_int, help="images a call (default: 8 on a CPU, 128 on CUDA)")
    parser.add_argument(
        "--network",
        action="append",
        choices=cnnext.models.list_models(),
        help=f"may be repeated (default: {' and '.join(_DEFAULT_NETWORKS)})",
    )
    parser.add_argument("--threads", type=_positive_int, help="of the CPU (default: PyTorch's)")
    parser.add_argument(
        "--keep-freed-memory",
        action="store_true",
        help="make the C library's heap keep freed memory, so that no call is charged for the page faults of fresh "
        "memory, which come and go with what ran before",
    )
    parser.add_argument("--out", type=Path, help="JSON file to write (default: a dated name in bench/results)")
    parser.add_argument(
        "--seconds",
        type=_positive_seconds,
        help=f"to spend, about; cases are sampled {MIN_ROUNDS} times or more in it (default: {_DEFAULT_SECONDS:.0f})",
    )
    parser.add_argument("--forward-only", action="store_true", help="leave out gradients and training steps")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a first impression: forward only, batch 1, {_QUICK_SECONDS:.0f} s, unless given otherwise",
    )
    return parser


def _default_out(device: torch.device) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", environment.device_name(device).lower()).strip("-")
    return _RESULTS / f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{device.type}-{name}.json"


def _check_writable(path: Path) -> None:
    """Fail now rather than after the measurements."""
    if path.is_dir():
        raise OSError(f"{path} is a directory")
    path.parent.mkdir(parents=True, exist_ok=True)
    probe = path.parent / f".{path.name}.probe"
    probe.touch()
    probe.unlink()


def _measure_all(
    networks: Sequence[str], layers: Sequence[Layer], settings: Settings, seconds: float, progress: Progress
) -> Iterator[Case]:
    network_cases = len(networks) * (len(NETWORK_PASSES) if settings.backward else 1) * len(settings.layouts)
    layer_cases = sum(len(layer.passes) if settings.backward else 1 for layer in layers) * len(settings.layouts)
    task = progress.add_task("", total=network_cases + layer_cases)
    budget = Budget(seconds, weight=network_cases * NETWORK_WEIGHT + layer_cases)
    clock = clock_for(settings.device)

    def announce(text: str) -> None:
        progress.update(task, description=text)

    for name in networks:
        for case in measure_network(name, settings, clock, budget, announce):
            progress.advance(task)
            yield case
    for layer in layers:
        for case in measure_layer(layer, settings, clock, budget, announce):
            progress.advance(task)
            yield case
    announce("done")


def _finish(document: dict[str, Any], path: Path, console: Console) -> int:
    """Summarise, print and write what was measured; return the exit status."""
    summary = report.summarise(document["cases"])
    document["summary"] = summary
    report.write_json(path, document)
    report.print_report(console, document)
    took = document["wall_seconds"]
    console.print(
        f"\n{len(document['cases'])} cases in {took:.0f} s, written to {path}", highlight=False, soft_wrap=True
    )
    if not document["complete"]:
        console.print("[red]interrupted: cases are missing[/]")
        return 130
    return 1 if summary["inaccurate"] or summary["failed"] else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        argv: the command line without the program's name; `sys.argv` if None.

    Returns:
        0 if every result of cnnext is there and accurate, however fast it is; 1 if not; 130 if interrupted. Bad
        options exit with status 2.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    available = cnnext.backends.available()
    device = options.device or torch.device("cuda" if "cuda" in available else "cpu")
    if device.type not in available:
        # Every call would go to PyTorch, and the benchmark would compare it with itself.
        where = Path(cnnext.__file__).parent
        parser.error(f"cnnext's kernels for {device.type} are not loaded in {where}; python -m cnnext.info says why")
    keeps_freed_memory = options.keep_freed_memory and environment.keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    out = options.out or _default_out(device)
    try:
        _check_writable(out)
    except OSError as error:
        parser.error(f"--out: cannot write {out}: {error.strerror or error}")

    settings = Settings(
        device=device,
        dtype=_DTYPES[options.dtype],
        batch=options.batch or (1 if options.quick else 128 if device.type == "cuda" else 8),
        layouts=tuple(LAYOUTS) if options.layout == "both" else (options.layout,),
        backward=not (options.forward_only or options.quick),
    )
    seconds = options.seconds or (_QUICK_SECONDS if options.quick else _DEFAULT_SECONDS)
    networks = list(dict.fromkeys(options.network or _DEFAULT_NETWORKS))
    layers = collect_layers({name: cnnext.models.create_model(name) for name in networks})

    console = Console()
    if not console.is_terminal:
        console = Console(width=180)  # a file or pipe has no width of its own; do not cut the tables at 80
    document: dict[str, Any] = {
        "format_version": _FORMAT_VERSION,
        "environment": environment.describe(device, keeps_freed_memory),
        "settings": {
            "dtype": settings.dtype_name,
            "batch": settings.batch,
            "layouts": settings.layouts,
            "networks": networks,
            "backward": settings.backward,
            "seconds": seconds,
            "seed": settings.seed,
        },
        "complete": False,
        "cases": [],
    }
    where = document["environment"]
    versions = f"cnnext {where['cnnext']} against PyTorch {where['torch']}"
    machine = f"{where['device_name']}, {where['threads']} threads"
    title = f"{versions} on {machine}, batch {settings.batch}, {settings.dtype_name}"
    console.print(title, highlight=False, soft_wrap=True)
    busy = where["busy_elsewhere"]
    if busy is not None and busy > _BUSY_LIMIT:
        console.print(f"[yellow]other processes keep {busy:.0%} of this machine busy: times will be too long[/]")
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    # A run that is told to stop, by ctrl-C or by a time limit, writes what it has.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            for case in _measure_all(networks, layers, settings, seconds, progress):
                document["cases"].append(case)
        document["complete"] = True
    except KeyboardInterrupt:
        pass
    document["wall_seconds"] = time.monotonic() - started
    return _finish(document, out, console)


if __name__ == "__main__":
    sys.exit(main())
