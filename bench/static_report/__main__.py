"""Command line of the static report; ``python -m bench.static_report --help`` explains it."""

from __future__ import annotations

import argparse
import multiprocessing
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench.files import write_json
from bench.report import load
from bench.static_report import budget, calibrate, report
from bench.static_report.compile import ARCHITECTURES, ToolMissingError, compile_all, jobs, kernel_sources, nvcc_release
from bench.static_report.execute import Program
from bench.static_report.kernels import KernelReport, read_kernels, select
from bench.static_report.launches import LAYOUTS, OPS, Call, plan
from bench.static_report.layers import DTYPES, GROUPED_DTYPES, GROUPED_LAYOUTS, KINDS, depthwise_calls, grouped_calls
from bench.static_report.model import SAMPLES, Prediction, predict
from bench.static_report.rates import ARCHITECTURES as RATES
from bench.static_report.rates import Architecture

#: Networks whose layers are predicted unless one is named.
NETWORKS = ("mobilenet_v1", "resnet18")

#: Blocks followed of a launch of the grouped kernels: they are long, and one does what another does.
GROUPED_SAMPLES = 2


class _Predictor:
    """Predicts calls for one architecture; a process forked from this one inherits what it knows."""

    def __init__(self, kernels: Sequence[KernelReport], architecture: Architecture, samples: int) -> None:
        self.kernels = {kernel.mangled: kernel for kernel in kernels}
        self.programs: dict[str, Program] = {}
        self.architecture = architecture
        self.samples = samples

    def __call__(self, call: Call) -> Prediction:
        chosen = plan(call, self.architecture)
        if chosen is None:
            raise RuntimeError(f"no config for {call}")
        for launch in chosen.launches:
            if launch.kernel not in self.programs:
                kernel = self.kernels[launch.kernel]
                self.programs[launch.kernel] = Program(kernel.function, kernel.constants, self.architecture)
        samples = self.samples if call.is_depthwise else min(self.samples, GROUPED_SAMPLES)
        return predict(call, chosen, self.kernels, self.programs, self.architecture, samples)


_predictor: _Predictor | None = None


def _predict_one(call: Call) -> Prediction:
    assert _predictor is not None
    return _predictor(call)


def predict_all(
    calls: Sequence[Call], kernels: Sequence[KernelReport], architecture: Architecture, samples: int
) -> list[Prediction]:
    """Predict calls, several at a time."""
    global _predictor
    _predictor = _Predictor(kernels, architecture, samples)
    if not calls:
        return []
    first = _predictor(calls[0])  # builds the recorder once, before there are several processes
    if jobs() == 1:
        return [first, *map(_predictor, calls[1:])]
    # Calls of one op, layout and dtype share their kernels; neighbours go to one process.
    with multiprocessing.get_context("fork").Pool(jobs()) as pool:
        return [first, *pool.imap(_predict_one, calls[1:], chunksize=5)]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.static_report",
        description="Reports, without a GPU, on the machine code of the CUDA kernels: registers, spills, instructions, "
        "and the predicted times of networks' layers against their floor.",
    )
    parser.add_argument(
        "--arch",
        action="append",
        type=int,
        choices=ARCHITECTURES,
        help="compute capability times 10; may be repeated (default: 90)",
    )
    parser.add_argument("--kernel", metavar="REGEX", help="only kernels in whose name this is found")
    parser.add_argument("--source", metavar="REGEX", default="", help="only .cu files in whose name this is found")
    parser.add_argument(
        "--network",
        action="append",
        help=f"whose layers are predicted; may be repeated (default: {' and '.join(NETWORKS)})",
    )
    parser.add_argument("--kind", action="append", choices=KINDS, help="layers; may be repeated (default: both)")
    parser.add_argument("--batch", type=int, default=128, help="images a call (default: 128)")
    parser.add_argument("--op", action="append", choices=OPS, help="may be repeated (default: all)")
    parser.add_argument("--layout", action="append", choices=LAYOUTS, help="may be repeated (default: all)")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="may be repeated (default: all)")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"blocks followed a launch (default: {SAMPLES})")
    parser.add_argument("--no-layers", action="store_true", help="report on the kernels alone")
    parser.add_argument(
        "--measured",
        action="append",
        type=Path,
        metavar="FILE",
        help="result of python -m bench ops on the card, to show beside the predictions and fit the rates to; "
        "may be repeated (takes one --arch)",
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--markdown", type=Path, help="document to write, for one architecture")
    parser.add_argument("--layers-markdown", type=Path, help="short table of the layers to write, for one architecture")
    parser.add_argument("--check", action="store_true", help=f"fail if something is worse than in {budget.PATH.name}")
    parser.add_argument("--update-budget", action="store_true", help="write the figures there; needs --reason")
    parser.add_argument("--reason", default="", help="why the budget changes")
    return parser


def _calls(options: argparse.Namespace) -> list[Call]:
    """The calls that the options name, each once."""
    calls: list[Call] = []
    ops = options.op or OPS
    for network in options.network or NETWORKS:
        if "depthwise" in (options.kind or KINDS):
            calls += depthwise_calls(network, options.batch, ops, options.layout or LAYOUTS, options.dtype or DTYPES)
        if "grouped" in (options.kind or KINDS):
            layouts, dtypes = options.layout or GROUPED_LAYOUTS, options.dtype or GROUPED_DTYPES
            calls += grouped_calls(network, options.batch, ops, layouts, dtypes)
    return list(dict.fromkeys(calls))


def main(argv: Sequence[str] | None = None) -> int:
    """Make the report.

    Returns:
        0, or 1 if ``--check`` finds something. Bad options and missing tools exit with status 2.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.update_budget and not options.reason.strip():
        parser.error("--update-budget needs --reason")
    architectures = options.arch or [90]
    if (options.markdown or options.layers_markdown) and len(architectures) > 1:
        parser.error("--markdown and --layers-markdown take one --arch")
    times: dict[tuple[str, str, str, int, str], float] = {}
    if options.measured:
        if len(architectures) > 1 or options.no_layers:
            parser.error("--measured takes one --arch, and no --no-layers")
        try:
            for path in options.measured:
                times |= calibrate.measured_times(load(path), RATES[architectures[0]])
        except (OSError, ValueError) as error:
            parser.error(f"--measured: {error}")
    calls = []
    if not options.no_layers:
        calls = _calls(options)
    console = Console()
    if not console.is_terminal:
        console = Console(width=230)  # a file or pipe has no width of its own
    try:
        compiled = compile_all([s for s in kernel_sources() if re.search(options.source, s.stem)], architectures)
    except ToolMissingError as error:
        parser.error(str(error))

    old = budget.load()
    sections, documents, failures = {}, [], []
    for architecture in architectures:
        kernels = [k for c in compiled if c.architecture == architecture for k in read_kernels(c)]
        predictions = predict_all(calls, kernels, RATES[architecture], options.samples)
        shown = select(kernels, options.kernel)
        report.print_report(console, RATES[architecture], shown, predictions)
        documents.append(report.document(RATES[architecture], shown, predictions))
        if options.measured:
            try:
                found = calibrate.calibrate(predictions, times)
            except ValueError as error:
                parser.error(f"--measured: {error}")
            calibrate.print_calibration(
                console, found, RATES[architecture], ", ".join(path.name for path in options.measured)
            )
            documents[-1]["calibration"] = calibrate.document(found)
        sections[architecture] = budget.section(shown, predictions, nvcc_release())
        if options.check:
            release = old.get(f"sm_{architecture}", {}).get("nvcc", nvcc_release())
            if release != nvcc_release():
                console.print(f"The budget is of nvcc {release}, this is {nvcc_release()}: figures differ a little.")
            failures += budget.check(old, architecture, shown, predictions)
            failures += budget.check_vectors(shown)
            failures += budget.check_wgmma(shown)
        if options.markdown:
            command = shlex.join(["python", "-m", "bench.static_report", *(argv if argv is not None else sys.argv[1:])])
            title = f"Static report, sm_{architecture}"
            options.markdown.write_text(
                report.markdown(title, command, RATES[architecture], shown, predictions), encoding="utf-8"
            )
        if options.layers_markdown:
            options.layers_markdown.write_text(report.layers_markdown(predictions), encoding="utf-8")
    if options.out:
        write_json(options.out, {"reports": documents})
    if options.update_budget:
        filters = (
            options.kernel,
            options.source,
            options.network,
            options.kind,
            options.op,
            options.layout,
            options.dtype,
            options.no_layers,
        )
        budget.update(old, sections, options.reason, complete=not any(filters))
    for failure in failures:
        console.print(f"[red]worse than the budget:[/] {failure}", highlight=False, soft_wrap=True)
    if failures:
        console.print("Make it better, or say why not: --update-budget --reason '...'", highlight=False)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
