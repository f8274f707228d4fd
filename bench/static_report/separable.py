"""Predicts, without a GPU, what fusing depthwise-separable blocks brings: one kernel against the two best.

    python -m bench.static_report.separable [--arch 90] [--batch 1 --batch 128] [--dtype float16] [--markdown FILE]

For every distinct block of a network, each of the planner's configurations is followed through its machine code
(docs/static_report.md says how). The planner chooses by a model of its own, csrc/cuda/separable_plan.cpp, which has to
be quick; the table shows what it chose beside what these predictions would choose.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.files import write_text
from bench.static_report.compile import ARCHITECTURES, ToolMissingError, compile_all, kernel_sources
from bench.static_report.execute import Program
from bench.static_report.kernels import KernelReport, read_kernels
from bench.static_report.launches import Block, Call, Plan, plan_separable
from bench.static_report.model import SAMPLES, LaunchPrediction, predict_launch
from bench.static_report.rates import ARCHITECTURES as RATES
from bench.static_report.rates import Architecture

#: The .cu files whose kernels a block may launch.
SOURCES = ("separable_nhwc", "depthwise_forward_nhwc", "grouped_forward_nhwc", "grouped_reduce_parts")
DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Prediction:
    """What one configuration of a block is predicted to take."""

    config: str
    launches: tuple[LaunchPrediction, ...]
    launch_seconds: float

    @property
    def is_fused(self) -> bool:
        """Whether it is one kernel."""
        return self.config.startswith("fused")

    @property
    def seconds(self) -> float:
        """The predicted time, the launches included."""
        return sum(launch.seconds for launch in self.launches) + self.launch_seconds

    @property
    def limits(self) -> str:
        """What holds each launch up."""
        return ", ".join(launch.limit for launch in self.launches)


@dataclass(frozen=True)
class BlockPrediction:
    """A block, and its configurations in the planner's order."""

    block: Block
    predictions: tuple[Prediction, ...]
    floor_seconds: float

    @property
    def fused(self) -> Prediction | None:
        """The planner's first fused configuration."""
        return next((p for p in self.predictions if p.is_fused), None)

    @property
    def best_fused(self) -> Prediction | None:
        """The fused configuration that is predicted to be fastest."""
        return min((p for p in self.predictions if p.is_fused), key=lambda p: p.seconds, default=None)

    @property
    def two(self) -> Prediction:
        """The two kernels."""
        return next(p for p in self.predictions if not p.is_fused)

    @property
    def chosen(self) -> Prediction:
        """What the planner prefers."""
        return self.predictions[0]


def separable_blocks(network: str, batch: int, dtype: str) -> list[Block]:
    """Return the distinct blocks of a network: depthwise convolutions that a 1x1 convolution follows."""
    import cnnext.models
    from bench.cases import input_size, shapes_in_order

    model = cnnext.models.create_model(network)
    shapes = shapes_in_order(model, input_size(model))
    blocks: dict[Block, None] = {}
    for first, second in itertools.pairwise(shapes):
        if first.kind == "depthwise" and first.K == first.C and second.kind == "pointwise" and second.C == first.K:
            sizes = (first.C, first.H, first.W, first.R, first.S)
            call = Call("forward", "nhwc", dtype, batch, *sizes, first.stride, first.padding)
            blocks[Block(call, second.K)] = None
    return list(blocks)


def dram_bytes(block: Block, plan: Plan, architecture: Architecture) -> list[int]:
    """Bytes that each launch of a plan moves to and from device memory.

    The second of two kernels reads the tensor between them from the L2 cache if it takes no more than half of it.
    """
    if len(plan.launches) == 1:
        return [block.input_bytes + block.output_bytes]
    reads = 0 if block.middle_bytes <= architecture.l2_bytes / 2 else block.middle_bytes
    second_stages = [0] * (len(plan.launches) - 2)  # of a split product, whose sums are in the L2 cache
    return [block.input_bytes + block.middle_bytes, reads + block.output_bytes, *second_stages]


def predict_block(
    block: Block,
    architecture: Architecture,
    program_of: Callable[[str], tuple[KernelReport, Program]],
    samples: int = SAMPLES,
) -> BlockPrediction:
    """Predict every configuration of a block.

    Args:
        block: the problem.
        architecture: of the card.
        program_of: gives a kernel by its mangled name.
        samples: blocks of each launch to follow.
    """
    predictions = []
    while (plan := plan_separable(block, architecture, len(predictions))) is not None:
        launches = [
            predict_launch(*program_of(launch.kernel), launch, moved, architecture, samples)
            for launch, moved in zip(plan.launches, dram_bytes(block, plan, architecture), strict=True)
        ]
        seconds = len(launches) * architecture.launch_seconds
        predictions.append(Prediction(plan.config, tuple(launches), seconds))
    floor = (block.input_bytes + block.output_bytes) / architecture.copy_bandwidth
    return BlockPrediction(block, tuple(predictions), floor)


COLUMNS = ("block", "batch", "floor", "one kernel", "limit", "two kernels", "limits", "gain", "planner", "its loss")


def rows(predictions: Sequence[BlockPrediction]) -> list[list[str]]:
    """Return the table's rows: times in us, launches included but in the floor."""
    lines = []
    for p in predictions:
        best = min(p.predictions, key=lambda prediction: prediction.seconds)
        fused = p.fused
        lines.append(
            [
                p.block.name,
                str(p.block.depthwise.N),
                f"{p.floor_seconds * 1e6:.1f}",
                "" if fused is None else f"{fused.seconds * 1e6:.1f}",
                "" if fused is None else fused.limits,
                f"{p.two.seconds * 1e6:.1f}",
                p.two.limits,
                "" if fused is None else f"{p.two.seconds / fused.seconds:.2f}x",
                "one" if p.chosen.is_fused else "two",
                f"{p.chosen.seconds / best.seconds - 1:.0%}",
            ]
        )
    return lines


def _print_details(console: Console, prediction: BlockPrediction) -> None:
    console.print(f"{prediction.block.name}, batch {prediction.block.depthwise.N}", highlight=False)
    for p in prediction.predictions:
        bounds = [
            " ".join(f"{name}={seconds * 1e6:.1f}" for name, seconds in launch.bounds.items() if seconds > 0)
            + f" warps={launch.occupancy.warps}"
            for launch in p.launches
        ]
        console.print(f"  {p.seconds * 1e6:.1f} us  {p.config}", highlight=False, soft_wrap=True)
        for line in bounds:
            console.print(f"      {line}", highlight=False, soft_wrap=True)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    prog = "python -m bench.static_report.separable"
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, choices=ARCHITECTURES, default=90, help="capability times 10 (default: 90)")
    parser.add_argument("--network", default="mobilenet_v1", help="whose blocks are predicted (default: mobilenet_v1)")
    parser.add_argument("--batch", action="append", type=int, help="may be repeated (default: 1, 32 and 128)")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="default: float16")
    parser.add_argument("--samples", type=int, default=4, help="blocks followed a launch (default: 4)")
    parser.add_argument("--details", action="store_true", help="every configuration, with the bound of each unit")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns 0. Bad options and missing tools exit with status 2."""
    parser = build_parser()
    options = parser.parse_args(argv)
    architecture = RATES[options.arch]
    try:
        compiled = compile_all([s for s in kernel_sources() if s.stem in SOURCES], [options.arch])
    except ToolMissingError as error:
        parser.error(str(error))
    kernels = {kernel.mangled: kernel for c in compiled for kernel in read_kernels(c)}
    programs: dict[str, Program] = {}

    def program_of(name: str) -> tuple[KernelReport, Program]:
        if name not in programs:
            programs[name] = Program(kernels[name].function, kernels[name].constants, architecture)
        return kernels[name], programs[name]

    blocks = [b for n in options.batch or (1, 32, 128) for b in separable_blocks(options.network, n, options.dtype)]
    console = Console(width=None if sys.stdout.isatty() else 200)
    progress = track(blocks, "following blocks", console=Console(stderr=True), transient=True)
    predictions = [predict_block(block, architecture, program_of, options.samples) for block in progress]
    if options.details:
        for prediction in predictions:
            _print_details(console, prediction)
    lines = rows(predictions)
    table = Table(*COLUMNS, title=f"{options.network}, {options.dtype}, {architecture.card}: predicted us")
    for line in lines:
        table.add_row(*line)
    console.print(table)
    if options.markdown:
        text = "\n".join(f"| {' | '.join(line)} |" for line in [COLUMNS, ["---"] * len(COLUMNS), *lines])
        write_text(options.markdown, f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
