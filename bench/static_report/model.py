"""Predicts the time of a launch: the largest of what each unit of the card needs, none of which waits for another.

See docs/static_report.md for what that leaves out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.static_report.execute import BlockRun, Program, run_block
from bench.static_report.kernels import KernelReport
from bench.static_report.launches import Call, Launch, Plan
from bench.static_report.memory import SECTOR_BYTES, Traffic
from bench.static_report.occupancy import Occupancy, occupancy
from bench.static_report.rates import WARP, Architecture
from bench.static_report.sass import Instruction

#: Blocks of a launch that are followed; the rest is taken to be like them on average.
SAMPLES = 8
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class LaunchPrediction:
    """What a launch is predicted to take, and why."""

    kernel: str
    launch: Launch
    occupancy: Occupancy
    registers: int
    #: Seconds that each unit needs; the largest is the prediction.
    bounds: dict[str, float]
    #: Warp instructions by class, of the whole launch.
    issued: dict[str, float]
    #: What was accessed, of the whole launch, by class of instructions.
    traffic: dict[str, dict[str, float]]
    #: Blocks over the blocks that the card holds at once.
    waves: float

    @property
    def seconds(self) -> float:
        """The predicted time, without the launch itself."""
        return max(self.bounds.values())

    @property
    def limit(self) -> str:
        """The unit that decides."""
        return max(self.bounds, key=lambda name: self.bounds[name])


@dataclass(frozen=True)
class Prediction:
    """What a call is predicted to take."""

    call: Call
    config: str
    launches: tuple[LaunchPrediction, ...]
    floor_seconds: float
    launch_seconds: float

    @property
    def seconds(self) -> float:
        """The predicted time, without the launches themselves."""
        return sum(launch.seconds for launch in self.launches)

    @property
    def main(self) -> LaunchPrediction:
        """The launch that takes longest."""
        return max(self.launches, key=lambda launch: launch.seconds)

    @property
    def share_of_floor(self) -> float:
        """The floor over the prediction; 1 is perfect."""
        return self.floor_seconds / self.seconds

    def per_output(self, *kinds: str) -> float:
        """Instructions of a thread for each output, of some classes, or of all."""
        total = sum(n for p in self.launches for kind, n in p.issued.items() if not kinds or kind in kinds)
        return total * WARP / self.call.outputs


def sample_blocks(launch: Launch, count: int) -> list[tuple[int, int, int]]:
    """Choose blocks spread over a grid so that they fall in step with no period of it."""
    total = launch.blocks
    indices = range(total) if total <= count else sorted({int((0.5 + i * _GOLDEN) % 1 * total) for i in range(count)})
    x, y, _ = launch.grid
    return [(i % x, i // x % y, i // (x * y)) for i in indices]


@dataclass
class _Average:
    """What a block does on average."""

    issued: Counter[str] = field(default_factory=Counter)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    sectors: float = 0.0
    cycles: float = 0.0
    blocks: int = 0

    def add(self, instructions: Sequence[Instruction], run: BlockRun) -> None:
        self.blocks += 1
        for instruction, count in zip(instructions, run.issued.tolist(), strict=True):
            if count and instruction.base != "NOP":
                self.issued[instruction.kind] += count
        for index, traffic in run.traffic.items():
            self.traffic.setdefault(instructions[index].kind, Traffic()).add(traffic)
        self.sectors += len(run.sectors_read) + len(run.sectors_written)
        self.cycles += run.cycles


def pipe_cycles(issued: Mapping[str, float], wavefronts: float, architecture: Architecture) -> dict[str, float]:
    """Return the cycles that each unit of a multiprocessor needs for some warp instructions.

    Args:
        issued: warp instructions by class.
        wavefronts: passes through the load/store unit.
        architecture: of the card.
    """
    lanes = architecture.lanes

    def cycles(kind: str) -> float:
        return issued.get(kind, 0) * WARP / lanes[kind]

    # Multiply-adds of integers run on half of the units for those of floats.
    fma = (issued.get("fp32", 0) + issued.get("imad", 0)) * WARP / lanes["fma"]
    return {
        "issue": sum(issued.values()) / architecture.schedulers,
        "fma": max(fma, cycles("imad")),
        "alu": cycles("alu"),
        "fp16": cycles("fp16"),
        "fp64": cycles("fp64"),
        "xu": cycles("xu"),
        "tensor": cycles("tensor"),
        "lsu": wavefronts + cycles("shuffle"),
    }


def predict_launch(
    kernel: KernelReport,
    program: Program,
    launch: Launch,
    dram_bytes: float,
    architecture: Architecture,
    samples: int = SAMPLES,
) -> LaunchPrediction:
    """Predict the time of one launch.

    Args:
        kernel: what is launched.
        program: the same, ready to be followed.
        launch: grid, block, arguments.
        dram_bytes: that it must move to and from device memory.
        architecture: of the card.
        samples: blocks to follow.

    Raises:
        UnsupportedError: an instruction is reached that is not known.
    """
    average = _Average()
    for block in sample_blocks(launch, samples):
        average.add(program.instructions, run_block(program, launch, block))
    held = occupancy(
        architecture, launch.threads, kernel.resources.registers, kernel.resources.shared_bytes + launch.shared_bytes
    )
    blocks, n = launch.blocks, average.blocks
    multiprocessors = architecture.multiprocessors
    clock = architecture.clock_ghz * 1e9
    per_block = {kind: count / n for kind, count in average.issued.items()}
    wavefronts = sum(traffic.wavefronts for traffic in average.traffic.values()) / n
    busiest = -(-blocks // multiprocessors)  # blocks of the multiprocessor that has most
    bounds = {
        "memory": dram_bytes / architecture.copy_bandwidth,
        "l2": average.sectors / n * SECTOR_BYTES * blocks / architecture.l2_bandwidth,
    }
    for pipe, cycles in pipe_cycles(per_block, wavefronts, architecture).items():
        bounds[pipe] = cycles * busiest / clock
    at_once = max(held.blocks, 1)
    rounds = -(-busiest // at_once)
    bounds["latency"] = rounds * average.cycles / n / clock
    return LaunchPrediction(
        kernel=kernel.name,
        launch=launch,
        occupancy=held,
        registers=kernel.resources.registers,
        bounds=bounds,
        issued={kind: count * blocks for kind, count in sorted(per_block.items())},
        traffic={
            kind: {name: value / n * blocks for name, value in vars(traffic).items()}
            for kind, traffic in sorted(average.traffic.items())
        },
        waves=blocks / (multiprocessors * at_once),
    )


def floor_seconds(call: Call, architecture: Architecture) -> float:
    """Return the least time of a call: of its bytes, or of the multiplications of one that is not depthwise."""
    memory = call.least_bytes / architecture.copy_bandwidth
    if call.is_depthwise:
        return memory
    return max(memory, call.multiply_adds / architecture.arithmetic_rate(call.dtype))


def predict(
    call: Call,
    plan: Plan,
    kernels: Mapping[str, KernelReport],
    programs: Mapping[str, Program],
    architecture: Architecture,
    samples: int = SAMPLES,
) -> Prediction:
    """Predict the time of a call.

    The bytes of the operands are charged to its first launch; what later ones read, the sums of parts, is in the cache.

    Args:
        call: the problem.
        plan: what it launches.
        kernels: reports by mangled name.
        programs: the kernels ready to be followed, by mangled name.
        architecture: of the card.
        samples: blocks of each launch to follow.
    """
    predictions = []
    for index, launch in enumerate(plan.launches):
        kernel = kernels[launch.kernel]
        dram_bytes = call.least_bytes if index == 0 else 0
        program = programs[launch.kernel]
        predictions.append(predict_launch(kernel, program, launch, dram_bytes, architecture, samples))
    return Prediction(
        call=call,
        config=plan.config,
        launches=tuple(predictions),
        floor_seconds=floor_seconds(call, architecture),
        launch_seconds=len(plan.launches) * architecture.launch_seconds,
    )
