"""Command line of the benchmark; ``python -m bench --help`` explains it."""

from __future__ import annotations

import contextlib
import datetime
import re
import shlex
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

try:
    import cnnext
except ImportError as error:
    sys.exit(f"bench: cnnext cannot be imported ({error}); install it first: pip install .")
try:
    import jinja2  # noqa: F401
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
except ImportError as error:
    sys.exit(f'bench: {error}; install what the benchmark needs: pip install ".[bench]"')

from bench import baselines, environment, networks, options, report
from bench.cases import KINDS, LAYOUTS, Layer, collect_layers, merge_layers
from bench.peaks import measure_peaks
from bench.runner import (
    NETWORK_WEIGHT,
    Case,
    Settings,
    layer_case_ids,
    measure_layer,
    measure_network,
    network_case_id,
)
from bench.timer import Budget, clock_for

_RESULTS = Path(__file__).resolve().parent / "results"
#: What reads results instead of measuring.
_READERS = ("compare", "report")
#: The backends of which one is needed, by the type of the device; "triton" on a CPU is an interpreter.
_KERNELS = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}
#: Above this share of the cores in use by others, timings are worth a warning.
_BUSY_LIMIT = 0.1
#: A run that is cut off, even without a chance to say goodbye, loses no more than this many seconds of results.
_SAVE_EVERY = 20.0


def _default_out(device: torch.device, command: str) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", environment.device_name(device).lower()).strip("-")
    middle = f"-{command}" if command else ""
    return _RESULTS / f"{datetime.datetime.now():%Y%m%d-%H%M%S}{middle}-{device.type}-{name}.json"


def _check_writable(path: Path) -> None:
    """Fail now rather than after the measurements."""
    if path.is_dir():
        raise OSError(f"{path} is a directory")
    path.parent.mkdir(parents=True, exist_ok=True)
    probe = path.parent / f".{path.name}.probe"
    probe.touch()
    probe.unlink()


class _Run:
    """What a command measures, and the document it fills in."""

    def __init__(self, command: str, given: Namespace, device: torch.device, argv: Sequence[str]) -> None:
        self.given = given
        self.settings = Settings(
            device=device,
            dtype=options.DTYPES[given.dtype],
            batch=given.batch or (128 if device.type == "cuda" else 8),
            layouts=tuple(LAYOUTS) if given.layout == "both" else (given.layout,),
            backward=not given.forward_only,
            passes=tuple(given.passes),
            wanted=given.case or "",
        )
        self.networks = given.networks if given.passes else []
        self.layers = self._layers(options.COMMANDS[command])
        self.command = shlex.join(["python", "-m", "bench", *argv])
        self.network_ids = [
            case_id
            for name in self.networks
            for pass_name in self.settings.passes
            for layout in self.settings.layouts
            if self.settings.wanted in (case_id := network_case_id(name, layout, pass_name))
        ]
        self.layer_ids = [case_id for layer in self.layers for case_id in layer_case_ids(layer, self.settings)]

    def _layers(self, command: options.Command) -> list[Layer]:
        if not command.layers:
            return []
        if command.from_files:
            layers = merge_layers({name: networks.load_layers(name) for name in self.given.networks})
            # A run that is cut off has measured what this library is for.
            layers.sort(key=lambda layer: list(KINDS).index(layer.shape.kind))
        else:
            layers = collect_layers({name: networks.create(name) for name in self.given.networks})
        return [layer for layer in layers if layer.shape.kind in self.given.kinds]

    def document(self, keeps_freed_memory: bool) -> dict[str, Any]:
        """The result without its cases."""
        settings = self.settings
        return {
            "format_version": report.FORMAT_VERSION,
            "environment": environment.describe(settings.device, keeps_freed_memory) | {"command": self.command},
            "settings": {
                "dtype": settings.dtype_name,
                "batch": settings.batch,
                "layouts": settings.layouts,
                "networks": self.given.networks,
                "backward": settings.backward,
                "backend": self.given.backend,
                "seconds": self.given.seconds,
                "seed": settings.seed,
            },
            "complete": False,
            "cases": [],
        }

    def measure(self, seconds: float, progress: Progress) -> Iterator[Case]:
        """Yield the cases as they are measured."""
        task = progress.add_task("", total=len(self.network_ids) + len(self.layer_ids))
        budget = Budget(seconds, weight=len(self.network_ids) * NETWORK_WEIGHT + len(self.layer_ids))
        clock = clock_for(self.settings.device)

        def announce(text: str) -> None:
            progress.update(task, description=text)

        for name in self.networks:
            for case in measure_network(name, self.settings, clock, budget, announce):
                progress.advance(task)
                yield case
        for layer in self.layers:
            for case in measure_layer(layer, self.settings, clock, budget, announce):
                progress.advance(task)
                yield case
        announce("done")

    def add_baselines(self, cases: Sequence[Case], progress: Progress, console: Console) -> None:
        """Time the baselines, and add their times to the cases."""
        settings = self.settings
        by_id = {case["id"]: case for case in cases}
        for name in self.given.baselines:
            reason = baselines.why_not(name, settings.device, settings.dtype)
            if reason is not None:
                console.print(f"baseline {name}: skipped, {reason}", highlight=False)
                continue
            wanted = [case for case in cases if baselines.takes(name, case)]
            task = progress.add_task(f"{name}, in a process of its own", total=None)
            request = [{key: case[key] for key in ("id", "network", "layout", "pass")} for case in wanted]
            share = self.given.seconds / max(1, 2 * len(cases))
            shared = {
                "device": str(settings.device),
                "dtype": settings.dtype_name,
                "batch": settings.batch,
                "threads": torch.get_num_threads(),
                "seed": settings.seed,
                "seconds": share,
            }
            for answer in baselines.measure(name, request, shared):
                by_id[answer.pop("id")].setdefault("baselines", {})[name] = answer
            progress.remove_task(task)


@contextlib.contextmanager
def _backend(name: str) -> Iterator[None]:
    """While open, cnnext's side runs as ``--backend`` says."""
    if name in ("auto", "measured"):
        before, cnnext.backends.benchmark = cnnext.backends.benchmark, name == "measured"
        try:
            yield
        finally:
            cnnext.backends.benchmark = before
    else:
        with cnnext.backends.use(name):
            yield


def _finish(document: dict[str, Any], path: Path, console: Console) -> int:
    """Summarise, print and write what was measured; return the exit status."""
    report.complete(document)
    written = report.write_all(path, document)
    report.print_report(console, document)
    took = document["wall_seconds"]
    names = ", ".join(str(name) for name in written)
    console.print(
        f"\n{len(document['cases'])} cases in {took:.0f} s, written to {names}", highlight=False, soft_wrap=True
    )
    if not document["complete"]:
        console.print("[red]interrupted: cases are missing[/]")
        return 130
    return 1 if document["summary"]["inaccurate"] or document["summary"]["failed"] else 0


def _describe(console: Console, document: dict[str, Any]) -> None:
    where, how = document["environment"], document["settings"]
    versions = f"cnnext {where['cnnext']} against PyTorch {where['torch']}"
    machine = f"{where['device_name']}, {where['threads']} threads"
    console.print(f"{versions} on {machine}, batch {how['batch']}, {how['dtype']}", highlight=False, soft_wrap=True)
    busy = where["busy_elsewhere"]
    if busy is not None and busy > _BUSY_LIMIT:
        console.print(f"[yellow]other processes keep {busy:.0%} of this machine busy: times will be too long[/]")


def _measure(run: _Run, out: Path, console: Console, keeps_freed_memory: bool) -> int:
    document = run.document(keeps_freed_memory)
    _describe(console, document)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    # A run that is told to stop, by ctrl-C or by a time limit, writes what it has.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = saved = time.monotonic()
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress, _backend(run.given.backend):
            if run.layers:
                clock, share = clock_for(run.settings.device), min(1.0, 0.01 * run.given.seconds)
                document["peaks"] = asdict(measure_peaks(run.settings.device, run.settings.dtype, clock, share))
            for case in run.measure(run.given.seconds - (time.monotonic() - started), progress):
                document["cases"].append(case)
                if time.monotonic() - saved > _SAVE_EVERY:
                    report.write_json(out, document)
                    saved = time.monotonic()
            run.add_baselines(document["cases"], progress, console)
        document["complete"] = True
    except KeyboardInterrupt:
        pass
    document["wall_seconds"] = time.monotonic() - started
    return _finish(document, out, console)


def _console() -> Console:
    console = Console()
    # A file or pipe has no width of its own; do not cut the tables at 80.
    return console if console.is_terminal else Console(width=200)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, or read its results.

    Args:
        argv: the command line without the program's name; `sys.argv` if None.

    Returns:
        0 if every result of cnnext is there and accurate, however fast it is; 1 if not; 130 if interrupted. Bad
        options exit with status 2. Of "compare": 1 if something became slower.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments and arguments[0] in (*options.COMMANDS, *_READERS) else ""
    rest = arguments[1:] if command else arguments
    if command == "compare":
        from bench import compare

        return compare.main(rest, _console())
    if command == "report":
        return report.main(rest, _console())

    parser, given = options.parse(command, rest)
    available = cnnext.backends.available()
    has_gpu = torch.cuda.is_available() and set(_KERNELS["cuda"]) & set(available)
    device = given.device or torch.device("cuda" if has_gpu else "cpu")
    if not set(_KERNELS[device.type]) & set(available):
        # Every call would go to PyTorch, and the benchmark would compare it with itself.
        where = Path(cnnext.__file__).parent
        parser.error(f"cnnext's kernels for {device.type} are not loaded in {where}; python -m cnnext.info says why")
    keeps_freed_memory = given.keep_freed_memory and environment.keep_freed_memory()
    if given.threads:
        torch.set_num_threads(given.threads)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    run = _Run(command, given, device, arguments)
    if not run.network_ids and not run.layer_ids:
        parser.error(f"no case: {len(given.networks)} networks, --case {given.case!r}, kinds {', '.join(given.kinds)}")
    if given.dry_run:
        print("\n".join([*run.network_ids, *run.layer_ids]))
        return 0
    out = given.out or _default_out(device, command)
    try:
        _check_writable(out)
    except OSError as error:
        parser.error(f"--out: cannot write {out}: {error.strerror or error}")
    return _measure(run, out, _console(), keeps_freed_memory)


if __name__ == "__main__":
    sys.exit(main())
