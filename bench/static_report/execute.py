"""Follows a block of a launch through its machine code: which instruction each warp issues how often, what its accesses
touch, and how long the block takes if nothing but its own latencies holds it up.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bench.static_report.cubin import Constants
from bench.static_report.launches import Launch
from bench.static_report.memory import Traffic, global_request, shared_request
from bench.static_report.operands import (
    Mask,
    State,
    UnsupportedError,
    memory_address,
    predicate_row,
    read32,
    read64,
    read_predicate,
)
from bench.static_report.rates import Architecture
from bench.static_report.sass import Function, Instruction, branch_label
from bench.static_report.semantics import build

#: Positions of threads that have ended or wait at a barrier of the block, and of those that wait for their warp.
_NEVER = 1 << 60
_PARKED = _NEVER - 1
_MAX_STEPS = 2_000_000

_GLOBAL = ("global_load", "global_store")
_SHARED = ("shared_load", "shared_store")


@dataclass
class BlockRun:
    """What happened in one block."""

    #: How many warps issued each instruction, by its position.
    issued: npt.NDArray[np.int64]
    #: What the instructions that access memory did, by position.
    traffic: dict[int, Traffic] = field(default_factory=dict)
    #: Distinct sectors that the block reads and writes.
    sectors_read: set[int] = field(default_factory=set)
    sectors_written: set[int] = field(default_factory=set)
    #: From the first instruction to the last.
    cycles: float = 0.0


class Program:
    """A kernel made ready to be followed."""

    def __init__(self, function: Function, constants: Constants, architecture: Architecture) -> None:
        self.function = function
        self.constants = constants
        self.architecture = architecture
        self.instructions = function.instructions
        self.position = {instruction.address: i for i, instruction in enumerate(self.instructions)}
        self.leaders = self._find_leaders()
        self.blocks = {begin: self._prepare(begin, end) for begin, end in self._spans()}

    def _find_leaders(self) -> list[int]:
        leaders = {0, *(self.position[a] for a in self.function.labels.values() if a in self.position)}
        for index, instruction in enumerate(self.instructions):
            if instruction.kind == "branch" or instruction.base == "BAR":
                leaders.add(index + 1)
        for table in self.constants.banks.values():  # targets of switches
            for target in np.frombuffer(table[: len(table) // 4 * 4], np.uint32):
                if int(target) in self.position:
                    leaders.add(self.position[int(target)])
        return sorted(leader for leader in leaders if leader < len(self.instructions))

    def _spans(self) -> list[tuple[int, int]]:
        return list(zip(self.leaders, [*self.leaders[1:], len(self.instructions)], strict=True))

    def _prepare(self, begin: int, end: int) -> tuple[int, list[Callable[[_Runner, Mask | None], None]]]:
        """Return the end of the basic block, and what is to be done in it: registers, traffic, time."""
        steps: list[Callable[[_Runner, Mask | None], None]] = []
        elapsed = 0  # cycles since the block's begin or the last wait
        for index in range(begin, end):
            instruction = self.instructions[index]
            control = instruction.control
            if control.wait:
                steps.append(_wait(elapsed, control.wait))
                elapsed = 0
            action = self._action(index, instruction, elapsed)
            if action is not None:
                steps.append(action)
            elapsed += max(control.stall, 1)
        if elapsed:
            steps.append(_wait(elapsed, ()))
        return end, steps

    def _action(
        self, index: int, instruction: Instruction, elapsed: int
    ) -> Callable[[_Runner, Mask | None], None] | None:
        guard = None
        if instruction.guard not in (None, "PT", "UPT"):
            guard = read_predicate(instruction.guard or "")
        kind = instruction.kind
        if kind in _GLOBAL or kind in _SHARED or kind == "async_copy":
            return _access(index, instruction, guard, elapsed)
        if instruction.base in ("LDGDEPBAR", "DEPBAR"):
            return _async_group(instruction, elapsed)
        try:
            step = build(instruction)
        except UnsupportedError as error:
            return _unsupported(f"{error} at {self.function.name}+{instruction.address:#x}")
        latency = self.architecture.latency_of(instruction)
        barriers = tuple(
            (barrier, latency if barrier == instruction.control.write_barrier else self.architecture.operand_latency)
            for barrier in (instruction.control.write_barrier, instruction.control.read_barrier)
            if barrier is not None
        )
        if step is None and not barriers:
            return None

        def action(runner: _Runner, mask: Mask | None) -> None:
            if step is not None:
                if guard is not None:
                    allowed = guard(runner.state)
                    mask = allowed if mask is None else mask & allowed
                step(runner.state, mask)
            for barrier, after in barriers:
                runner.release(barrier, elapsed + after)

        return action

    def target(self, instruction: Instruction) -> int | None:
        """Return the position that a direct branch or call goes to."""
        label = branch_label(instruction)
        if label is None:
            return None
        return self.position[self.function.labels[label]]


def _unsupported(message: str) -> Callable[[_Runner, Mask | None], None]:
    def action(runner: _Runner, mask: Mask | None) -> None:
        raise UnsupportedError(message)

    return action


def _wait(elapsed: int, barriers: tuple[int, ...]) -> Callable[[_Runner, Mask | None], None]:
    def action(runner: _Runner, mask: Mask | None) -> None:
        runner.advance(elapsed, barriers)

    return action


def _async_group(instruction: Instruction, elapsed: int) -> Callable[[_Runner, Mask | None], None] | None:
    if instruction.base == "LDGDEPBAR":
        return lambda runner, mask: runner.commit_group()
    pending = next((int(text, 16) for text in instruction.operands if text.startswith("0x")), 0)
    return lambda runner, mask: runner.wait_group(elapsed, pending)


def _access(
    index: int, instruction: Instruction, guard: Callable[[State], Mask] | None, elapsed: int
) -> Callable[[_Runner, Mask | None], None]:
    kind, width = instruction.kind, instruction.access_bytes
    addresses = [text for text in instruction.operands if "[" in text and not text.startswith("c[")]
    reads = [memory_address(text) for text in addresses]
    control = instruction.control
    is_copy = kind == "async_copy"
    is_store = kind in ("global_store", "shared_store")
    # The predicate after the addresses of an asynchronous copy: false fills with zeros without reading.
    extra = [text for text in instruction.operands if predicate_row(text) is not None] if is_copy else []
    valid = read_predicate(extra[-1]) if extra else None
    bypass = "BYPASS" in instruction.suffixes
    if instruction.base in ("LDSM", "STSM"):
        width = 16  # a lane's address is that of a row of 16 bytes; see Traffic of matrix loads in docs

    def action(runner: _Runner, mask: Mask | None) -> None:
        state = runner.state
        taking = runner.everyone if mask is None else mask
        if guard is not None:
            taking = taking & guard(state)
        latency: float | npt.NDArray[np.float64]
        if kind in _SHARED:
            address = np.broadcast_to(reads[0](state), (state.threads,))
            runner.record(index, shared_request(address, taking, width))
            latency = runner.architecture.shared_latency
        elif is_copy:
            target = shared_request(np.broadcast_to(reads[0](state), (state.threads,)), taking, width)
            source = taking if valid is None else taking & valid(state)
            address = np.broadcast_to(reads[1](state), (state.threads,))
            latency = runner.touch(index, address, source, width, False, target.wavefronts, bypass)
            runner.copy(elapsed + latency)
        else:
            address = np.broadcast_to(reads[0](state), (state.threads,))
            latency = runner.touch(index, address, taking, width, is_store)
        if control.write_barrier is not None:
            runner.release(control.write_barrier, elapsed + latency)
        if control.read_barrier is not None:
            runner.release(control.read_barrier, elapsed + runner.architecture.operand_latency)

    return action


class _Runner:
    """One block on its way."""

    def __init__(self, program: Program, launch: Launch, block: tuple[int, int, int]) -> None:
        self.program = program
        self.architecture = program.architecture
        x, y, z = launch.block
        count = x * y * z
        padded = -(-count // 32) * 32
        lanes = np.arange(padded, dtype=np.uint32)
        self.everyone = np.ones(padded, np.bool_)
        self.state = State(padded, self._constants(launch), self._special(lanes, launch, block))
        self.run = BlockRun(np.zeros(len(program.instructions), np.int64))
        warps = padded // 32
        #: The position each thread goes on from; where it waits at a barrier, that is kept in `resume`.
        self.position = np.zeros(padded, np.int64)
        self.position[count:] = _NEVER
        self.resume = np.full(padded, _NEVER, np.int64)
        #: For each of a warp's convergence barriers, the threads that take part, and those that have arrived.
        self.taking_part = np.zeros((16, padded), np.bool_)
        self.parked = np.zeros((16, padded), np.bool_)
        self.parked_next = np.zeros(padded, np.int64)
        self.time = np.zeros(warps)
        self.scoreboards = np.zeros((6, warps))
        self.copies = np.zeros(warps)
        self.groups: list[npt.NDArray[np.float64]] = []
        self.active = np.ones(warps, np.bool_)

    def _constants(self, launch: Launch) -> dict[int, npt.NDArray[np.uint32]]:
        constants = self.program.constants
        bank = np.zeros(0x1400, np.uint8)
        first = constants.parameter_offset
        # The compiler drops nothing, but pads.
        bank[first : first + len(launch.parameters)] = np.frombuffer(launch.parameters, np.uint8)
        words = bank.view(np.uint32)
        block_at, grid_at, stack_at = self.architecture.launch_constants
        words[block_at // 4 : block_at // 4 + 3] = launch.block
        words[grid_at // 4 : grid_at // 4 + 3] = launch.grid
        words[stack_at // 4] = 0xFFFE00
        banks = {0: words}
        for number, table in constants.banks.items():
            banks[number] = np.frombuffer(table[: len(table) // 4 * 4], np.uint32)
        return banks

    def _special(
        self, lanes: npt.NDArray[np.uint32], launch: Launch, block: tuple[int, int, int]
    ) -> dict[str, npt.NDArray[np.uint32]]:
        x, y, _ = launch.block
        values = {
            "SR_TID.X": lanes % x,
            "SR_TID.Y": lanes // x % y,
            "SR_TID.Z": lanes // (x * y),
            "SR_LANEID": lanes % 32,
            "SRZ": np.zeros_like(lanes),
            "SR_CgaCtaId": np.zeros_like(lanes),
            "SR_SWINHI": np.zeros_like(lanes),
        }
        for axis, index in zip("XYZ", block, strict=True):
            values[f"SR_CTAID.{axis}"] = np.full_like(lanes, index)
        return {name: value.astype(np.uint32) for name, value in values.items()}

    # --- time ---

    def advance(self, cycles: float, barriers: tuple[int, ...]) -> None:
        """Let the active warps' time pass, then wait for scoreboards."""
        time = self.time + cycles
        for barrier in barriers:
            np.maximum(time, self.scoreboards[barrier], out=time)
        np.copyto(self.time, time, where=self.active)

    def release(self, barrier: int, after: float | npt.NDArray[np.float64]) -> None:
        """Hold a scoreboard until some cycles from the last wait."""
        row = self.scoreboards[barrier]
        np.copyto(row, np.maximum(row, self.time + after), where=self.active)

    def copy(self, after: float | npt.NDArray[np.float64]) -> None:
        """Start an asynchronous copy."""
        np.copyto(self.copies, np.maximum(self.copies, self.time + after), where=self.active)

    def commit_group(self) -> None:
        """Close a group of asynchronous copies."""
        self.groups.append(self.copies.copy())

    def wait_group(self, elapsed: int, pending: int) -> None:
        """Wait until at most `pending` groups of copies are on their way."""
        if len(self.groups) > pending:
            done = self.groups[-1 - pending]
            # The time of the last wait is `elapsed` cycles ago; so that later offsets stay right, hold back by it.
            np.copyto(self.time, np.maximum(self.time, done - elapsed), where=self.active)

    # --- memory ---

    def record(self, index: int, traffic: Traffic) -> None:
        """Add to an instruction's traffic."""
        self.run.traffic.setdefault(index, Traffic()).add(traffic)

    def touch(
        self,
        index: int,
        addresses: npt.NDArray[np.uint64],
        mask: Mask,
        width: int,
        is_store: bool,
        shared_wavefronts: int = 0,
        bypass: bool = False,
    ) -> npt.NDArray[np.float64]:
        """Record a request to global memory; return the cycles until each warp has the data.

        A copy writes it to shared memory in `shared_wavefronts` passes. Data that go past the L1 cache pass once, on
        their way there, and the larger number counts; others are read from the cache first.
        """
        traffic, sectors, counts = global_request(addresses, mask, width)
        if bypass:
            traffic.wavefronts = max(traffic.wavefronts, shared_wavefronts)
        else:
            traffic.wavefronts += shared_wavefronts
        self.record(index, traffic)
        if is_store:
            self.run.sectors_written.update(sectors.tolist())
            return np.zeros(len(counts))
        known = self.run.sectors_read
        latency = np.full(len(counts), float(self.architecture.l1_latency))
        start = 0
        values = sectors.tolist()
        for warp, count in enumerate(counts.tolist()):
            part = values[start : start + count]
            start += count
            if not known.issuperset(part):
                latency[warp] = self.architecture.memory_latency
                known.update(part)
        return latency

    # --- control flow ---

    def go(self) -> BlockRun:
        """Run the block to its end."""
        program = self.program
        for _ in range(_MAX_STEPS):
            current = int(self.position.min())
            if current == _NEVER:
                if not (self.resume < _NEVER).any():
                    self.run.cycles = float(self.time.max())
                    return self.run
                # All that are left wait at a barrier.
                self.time[:] = self.time.max()
                self.position, self.resume = self.resume, np.full_like(self.resume, _NEVER)
                continue
            if current == _PARKED:  # for threads that never come, as the compiler knows
                waiting = self.position == _PARKED
                self.position[waiting] = self.parked_next[waiting]
                self.parked[:, waiting] = self.taking_part[:, waiting] = False
                continue
            here = self.position == current
            mask = None if here.all() else here
            self.active = here.reshape(-1, 32).any(1)
            end, steps = program.blocks[current]
            self.run.issued[current:end] += int(self.active.sum())
            for step in steps:
                step(self, mask)
            self._leave(program.instructions[end - 1], end, here)
        raise RuntimeError(f"{program.function.name} does not come to an end")

    def _leave(self, last: Instruction, end: int, here: Mask) -> None:
        """Send the threads on from the end of a basic block."""
        next_position = end if end < len(self.program.instructions) else _NEVER
        taken = here
        if last.guard not in (None, "PT", "UPT"):
            taken = here & read_predicate(last.guard or "")(self.state)
        base = last.base
        if last.kind == "branch" and base in ("BRA", "JMP"):
            conditions = [text for text in last.operands if predicate_row(text) is not None]
            for text in conditions:
                taken = taken & read_predicate(text)(self.state)
            if {"DIV", "CONV"} & set(last.suffixes):
                taken = np.zeros_like(here)  # warps are taken to be whole where the compiler asks
            self.position[here] = next_position
            target = self.program.target(last)
            if target is None:
                raise UnsupportedError(f"{last.opcode} {last.operands}")
            self.position[taken] = target
        elif base in ("BRX", "BRXU", "RET"):
            self.position[here] = next_position
            for lane_target in np.unique(self._indirect(last)[taken]).tolist():
                lanes = taken & (self._indirect(last) == lane_target)
                self.position[lanes] = self._leader(int(lane_target))
        elif base == "CALL":
            self.position[here] = next_position
            target = self.program.target(last)
            if target is None:
                raise UnsupportedError(f"{last.opcode} {last.operands}")
            self.position[taken] = target
        elif base == "EXIT":
            self.position[here] = next_position
            self.position[taken] = _NEVER
            self.taking_part[:, taken] = False
            for number in np.nonzero(self.parked.any(1))[0].tolist():
                self._converge(number)
        elif base in ("BSSY", "BSYNC", "BREAK"):
            self._convergence_barrier(last, here, taken, next_position)
        elif base == "BAR" and "SYNC" in last.suffixes:
            self.position[here] = next_position
            self.resume[taken] = next_position
            self.position[taken] = _NEVER
        else:
            self.position[here] = next_position

    def _convergence_barrier(self, last: Instruction, here: Mask, taken: Mask, next_position: int) -> None:
        """Let the threads of a warp that went different ways meet again."""
        number = next(int(text[1:]) for text in last.operands if re.fullmatch(r"B\d+", text))
        self.position[here] = next_position
        for text in last.operands:
            if predicate_row(text) is not None:
                taken = taken & read_predicate(text)(self.state)
        if last.base == "BSSY":
            self.taking_part[number, taken] = True
        elif last.base == "BREAK":
            self.taking_part[number, taken] = False
            self._converge(number)
        else:
            self.parked[number, taken] = True
            self.parked_next[taken] = next_position
            self.position[taken] = _PARKED
            self._converge(number)

    def _converge(self, number: int) -> None:
        """Send on the threads of the warps of which all that take part have arrived."""
        parked = self.parked[number]
        missing = (self.taking_part[number] & ~parked).reshape(-1, 32).any(1)
        ready = parked & ~np.repeat(missing, 32)
        self.position[ready] = self.parked_next[ready]
        parked[ready] = False
        self.taking_part[number, ready] = False

    def _leader(self, address: int) -> int:
        position = self.program.position[address]
        index = bisect.bisect_left(self.program.leaders, position)
        if index == len(self.program.leaders) or self.program.leaders[index] != position:
            raise UnsupportedError(f"an indirect branch into a basic block, to {address:#x}")
        return position

    def _indirect(self, instruction: Instruction) -> npt.NDArray[np.int64]:
        """Return the address that an indirect branch goes to, for each thread."""
        first, *_ = instruction.operands
        register, _, offset = first.partition(" ")
        if instruction.base == "RET":
            return np.broadcast_to(read32(register)(self.state), (self.state.threads,)).astype(np.int64)
        base = np.broadcast_to(read64(register)(self.state), (self.state.threads,)).view(np.int64)
        displacement = int(offset.replace(" ", "") or "0", 16)
        return base + displacement + instruction.address + 16


def run_block(program: Program, launch: Launch, block: tuple[int, int, int]) -> BlockRun:
    """Follow one block of a launch.

    Raises:
        UnsupportedError: an instruction is reached that is not known.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _Runner(program, launch, block).go()
