"""The static report: parsers, the model of memory, what a block does, occupancy, the budget."""

from __future__ import annotations

import shutil
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench.static_report import budget, compile, execute, kernels, launches, memory, model, rates, sass
from bench.static_report.cubin import Constants
from bench.static_report.memory import Traffic
from bench.static_report.occupancy import occupancy
from bench.static_report.operands import State, UnsupportedError
from bench.static_report.semantics import build

DATA = Path(__file__).parent / "data" / "static_report"
H100 = rates.ARCHITECTURES[90]


@pytest.fixture(scope="module")
def functions() -> dict[str, sass.Function]:
    """The kernels of data/static_report/kernels.cu, for sm_90."""
    return sass.parse((DATA / "kernels_sm_90.sass").read_text(encoding="utf-8"))


def program(function: sass.Function) -> execute.Program:
    return execute.Program(function, Constants(0x210, 0x18, {}), H100)


# -------------------------------------------------------------------------------------------------------------- parsers


def test_ptxas() -> None:
    resources = compile.parse_ptxas((DATA / "kernels_sm_90.ptxas").read_text(encoding="utf-8"))
    assert resources["scale"] == compile.Resources(registers=18, shared_bytes=0, stack_bytes=0, spill_bytes=0)
    assert resources["columns"].shared_bytes == 4096


def test_instructions(functions: dict[str, sass.Function]) -> None:
    assert list(functions) == ["divide", "columns", "scale"]
    load = next(i for i in functions["scale"].instructions if i.base == "LDG")
    assert (load.address, load.opcode, load.operands) == (0xE0, "LDG.E.128.CONSTANT", ("R12", "desc[UR6][R2.64]"))
    assert (load.kind, load.access_bytes, load.lines) == ("global_load", 16, (("kernels.cu", 7),))
    first_use = next(i for i in functions["scale"].instructions if i.base == "FADD")
    assert load.control.write_barrier in first_use.control.wait
    branch = functions["divide"].instructions[0x24]
    assert (branch.guard, branch.opcode, sass.branch_label(branch)) == ("P0", "BRA", ".L_x_1")


def test_loops(functions: dict[str, sass.Function]) -> None:
    assert sass.loops(functions["scale"]) == [sass.Loop(0xD0, 0x170, innermost=True)]
    assert sass.loops(functions["columns"]) == []
    mix = sass.opcode_mix(kernels.largest_inner_loop(functions["scale"]))
    expected = {"imad": 2, "global_load 16": 1, "alu": 2, "fp32": 4, "global_store 16": 1, "branch": 1}
    assert mix == Counter(expected)


def test_nested_loops() -> None:
    lines = ['.section .text.k,"ax"', ".L_a:", "/*0000*/ NOP ;", ".L_b:", "/*0010*/ NOP ;"]
    lines += ["/*0020*/ @P0 BRA `(.L_b) ;", "/*0030*/ @P1 BRA `(.L_a) ;"]
    (function,) = sass.parse("\n".join(lines)).values()
    assert sass.loops(function) == [sass.Loop(0, 0x30, innermost=False), sass.Loop(0x10, 0x20, innermost=True)]


def test_names() -> None:
    nvcc = "_ZN6cnnext4cuda61_GLOBAL__N__bf8095f8_28_depthwise_forward_general_cu_4cf3067a6kernelI6__halfEEvPKT_"
    gcc = "_ZN6cnnext4cuda12_GLOBAL__N_16kernelI6__halfEEvPKT_"
    assert sass.normalise(nvcc) == sass.normalise(gcc) == gcc
    if shutil.which("c++filt"):
        assert sass.demangle([nvcc]) == {nvcc: "kernel<fp16>"}


# --------------------------------------------------------------------------------------------------------------- memory


def lanes(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint64)


@pytest.mark.parametrize(
    ("addresses", "size", "sectors", "wavefronts"),
    [
        ([4 * i for i in range(32)], 4, 4, 1),
        ([16 * i for i in range(32)], 16, 16, 4),
        ([128 * i for i in range(32)], 4, 32, 8),
        ([0] * 32, 4, 1, 1),
        ([4 * i + 4 for i in range(32)], 4, 5, 2),
    ],
    ids=["words", "vectors", "strided", "broadcast", "misaligned"],
)
def test_global_request(addresses: list[int], size: int, sectors: int, wavefronts: int) -> None:
    traffic, found, counts = memory.global_request(lanes(addresses), np.ones(32, bool), size)
    assert (traffic.requests, traffic.sectors, traffic.wavefronts) == (1, sectors, wavefronts)
    assert len(found) == counts.sum() == sectors


@pytest.mark.parametrize(
    ("addresses", "size", "wavefronts", "ideal"),
    [
        ([4 * i for i in range(32)], 4, 1, 1),
        ([128 * i for i in range(32)], 4, 32, 1),
        ([8 * i for i in range(32)], 4, 2, 1),
        ([0] * 32, 4, 1, 1),
        ([16 * i for i in range(32)], 16, 4, 4),
        ([64 * i for i in range(32)], 16, 16, 4),
        ([2 * i for i in range(32)], 2, 1, 1),
        ([8 * i for i in range(32)], 8, 2, 2),
    ],
    ids=["words", "one_bank", "even_banks", "broadcast", "vectors", "every_fourth_vector", "halves", "doubles"],
)
def test_shared_request(addresses: list[int], size: int, wavefronts: int, ideal: int) -> None:
    traffic = memory.shared_request(lanes(addresses), np.ones(32, bool), size)
    assert (traffic.requests, traffic.wavefronts, traffic.ideal) == (1, wavefronts, ideal)


def test_lanes_that_do_not_take_part() -> None:
    mask = np.arange(64) < 8
    traffic, _, counts = memory.global_request(lanes([128 * i for i in range(64)]), mask, 4)
    assert (traffic.requests, traffic.sectors, traffic.bytes, counts.tolist()) == (1, 8, 32, [8, 0])
    assert memory.shared_request(lanes([128 * i for i in range(64)]), mask, 4).wavefronts == 8


# --------------------------------------------------------------------------------------------------------- instructions


def evaluate(text: str, **registers: int) -> State:
    """The state after an instruction such as ``IADD3 R0, R1, R2, RZ``."""
    state = State(32, {0: np.array([7, 9], np.uint32)}, {})
    for name, value in registers.items():
        if name.startswith("P"):
            state.predicates[int(name[1:])] = bool(value)
        else:
            state.registers[int(name[1:])] = value & 0xFFFFFFFF
    (function,) = sass.parse(f".section .text.k\n/*0000*/ {text} ;").values()
    step = build(function.instructions[0])
    assert step is not None
    with np.errstate(over="ignore"):
        step(state, None)
    return state


@pytest.mark.parametrize(
    ("text", "registers", "result"),
    [
        ("IADD3 R0, R1, -R2, 0x1", {"R1": 5, "R2": 7}, -1),
        ("IADD3.X R0, R1, ~R2, RZ, P0, !PT", {"R1": 5, "R2": 7, "P0": 1}, -2),
        ("IMAD R0, R1, R2, R3", {"R1": -3, "R2": 4, "R3": 5}, -7),
        ("IMAD.HI.U32 R0, R1, R2, R4", {"R1": 1 << 31, "R2": 6, "R5": 1}, 4),
        ("IMAD.MOV.U32 R0, RZ, RZ, c[0x0][0x4]", {}, 9),
        ("LEA R0, R1, R2, 0x3", {"R1": 5, "R2": 2}, 42),
        ("LEA.HI.X R0, R1, R2, R3, 0x1, P0", {"R1": 1 << 31, "R2": 10, "R3": 2, "P0": 1}, 16),
        ("LEA.HI.SX32 R0, R1, R2, 0x1e", {"R1": -8, "R2": 1}, -1),
        ("SHF.R.S32.HI R0, RZ, 0x1f, R1", {"R1": -5}, -1),
        ("SHF.R.U32.HI R0, RZ, 0x4, R1", {"R1": 0x80000000}, 0x08000000),
        ("SHF.L.U64.HI R0, R1, 0x2, R2", {"R1": 0xC0000000, "R2": 1}, 7),
        ("SHF.R.U64 R0, R1, 0x4, R2", {"R1": 0x10, "R2": 0x3}, 0x30000001),
        ("LOP3.LUT R0, R1, R2, RZ, 0xc0, !PT", {"R1": 12, "R2": 10}, 8),
        ("LOP3.LUT R0, R1, R2, R3, 0x96, !PT", {"R1": 12, "R2": 10, "R3": 1}, 7),
        ("SEL R0, R1, R2, !P1", {"R1": 1, "R2": 2, "P1": 1}, 2),
        ("VIMNMX R0, R1, R2, PT", {"R1": -1, "R2": 2}, -1),
        ("VIMNMX.U32 R0, R1, R2, PT", {"R1": -1, "R2": 2}, 2),
        ("IMNMX.S64 PT, PT, R0, R2, R4, PT, !PT", {"R2": 9, "R3": 1, "R4": 8, "R5": 1}, 8),
        ("IMNMX.S64 PT, PT, R0, R2, R4, !PT, !PT", {"R2": 9, "R3": 1, "R4": 8, "R5": -1}, 9),
        ("VIADDMNMX.RELU R0, R1, R2, R3, PT", {"R1": -4, "R2": 2, "R3": 5}, 0),
        ("PRMT R0, R1, 0x5410, R2", {"R1": 0xAAAA1111, "R2": 0xBBBB2222}, 0x22221111),
        ("IABS R0, R1", {"R1": -9}, 9),
        ("HFMA2.MMA R0, -RZ, RZ, 0, 1.1920928955078125e-07", {}, 2),
        ("HFMA2 R0, -RZ, RZ, 1, 0", {}, 0x3C000000),
    ],
    ids=lambda value: value.split(" ")[0] if isinstance(value, str) else "",
)
def test_arithmetic(text: str, registers: dict[str, int], result: int) -> None:
    assert int(evaluate(text, **registers).registers[0, 0]) == result & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("text", "registers", "result"),
    [
        ("ISETP.GE.AND P3, PT, R1, R2, PT", {"R1": -1, "R2": 1}, False),
        ("ISETP.GE.U32.AND P3, PT, R1, R2, PT", {"R1": -1, "R2": 1}, True),
        ("ISETP.GE.AND.EX P3, PT, R1, R2, PT, P0", {"R1": 4, "R2": 4, "P0": 0}, False),
        ("ISETP.LT.OR P3, PT, R1, R2, P0", {"R1": 4, "R2": 4, "P0": 1}, True),
        ("IADD3 R5, P3, R1, R2, RZ", {"R1": -1, "R2": 1}, True),
        ("IADD3 R5, P3, R1, -R2, RZ", {"R1": 5, "R2": 5}, True),
        ("IADD3 R5, P3, R1, -R2, RZ", {"R1": 5, "R2": 6}, False),
        ("PLOP3.LUT P3, PT, P0, P1, PT, 0x80, 0x0", {"P0": 1, "P1": 1}, True),
        ("FSETP.GT.AND P3, PT, R1, R2, PT", {"R1": 0x3F800000}, False),
    ],
    ids=lambda value: value.split(" ")[0] if isinstance(value, str) else "",
)
def test_predicates(text: str, registers: dict[str, int], result: bool) -> None:
    assert bool(evaluate(text, **registers).predicates[3, 0]) is result


def test_unknown_instructions_are_named() -> None:
    with pytest.raises(UnsupportedError, match=r"FROB\.X"):
        evaluate("FROB.X R0, R1")


# --------------------------------------------------------------------------------------------------------------- blocks


def test_counts_of_a_loop(functions: dict[str, sass.Function]) -> None:
    """13 instructions, then 11 a turn, then EXIT; the 4 warps of block 0 turn 3, 3, 2 and 2 times."""
    n = 2 * 256 + 64  # a grid of 2 blocks of 128 threads goes round twice, and 64 threads once more
    launch = launches.Launch("scale", (2, 1, 1), (128, 1, 1), 0, struct.pack("<QQi", 1 << 40, 1 << 41, n))
    run = execute.run_block(program(functions["scale"]), launch, (0, 0, 0))
    assert run.issued.sum() == 4 * (13 + 1) + 11 * (3 + 3 + 2 + 2)
    (load, store) = (run.traffic[i] for i in sorted(run.traffic))
    assert (load.requests, load.sectors, load.bytes) == (10, 160, 10 * 512)
    assert (store.requests, store.ideal) == (10, 160)
    assert len(run.sectors_read) == len(run.sectors_written) == 160
    # A load and its use, 2 or 3 times over.
    assert 3 * H100.memory_latency < run.cycles < 3 * H100.memory_latency + 500


def test_bank_conflicts_and_barrier(functions: dict[str, sass.Function]) -> None:
    launch = launches.Launch("columns", (1, 1, 1), (1024, 1, 1), 0, struct.pack("<Q", 1 << 40))
    run = execute.run_block(program(functions["columns"]), launch, (0, 0, 0))
    instructions = functions["columns"].instructions
    traffic = {instructions[i].kind: t for i, t in run.traffic.items()}
    assert (traffic["shared_store"].wavefronts, traffic["shared_store"].ideal) == (32 * 32, 32)
    assert (traffic["shared_load"].wavefronts, traffic["shared_load"].ideal) == (32, 32)
    assert run.issued.sum() == 32 * 19


@pytest.mark.parametrize("divisor", [1, 3, 7, 100])
def test_division_and_divergence(functions: dict[str, sass.Function], divisor: int) -> None:
    n, block = 500, 1
    launch = launches.Launch("divide", (2, 1, 1), (128, 1, 1), 0, struct.pack("<Qii", 1 << 40, n, divisor))
    run = execute.run_block(program(functions["divide"]), launch, (block, 0, 0))
    i = 128 * block + np.arange(128)
    address = (1 << 40) + 4 * np.where(i // divisor % 2 == 0, i // divisor, n - i % divisor)
    assert run.sectors_written == set((address // 32).tolist())
    # The warps meet again before the store.
    assert run.traffic[max(run.traffic)].requests == 4


def test_sampled_blocks() -> None:
    launch = launches.Launch("k", (7, 5, 3), (32, 1, 1), 0, b"")
    blocks = model.sample_blocks(launch, 8)
    assert len(set(blocks)) == 8
    assert all(x < 7 and y < 5 and z < 3 for x, y, z in blocks)
    assert len(model.sample_blocks(launch, 1000)) == 105


# ----------------------------------------------------------------------------------------------------- occupancy, model


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks", "limit"),
    [
        # NVIDIA's occupancy calculator.
        (90, 256, 32, 0, 8, "warps"),
        (90, 256, 64, 0, 4, "registers"),
        (90, 128, 168, 0, 3, "registers"),
        (90, 32, 16, 0, 32, "blocks"),
        (90, 128, 32, 48 * 1024, 4, "shared"),
        (80, 256, 40, 0, 6, "registers"),
        (80, 1024, 64, 0, 1, "registers"),
        (80, 128, 32, 32 * 1024, 4, "shared"),
        (120, 256, 32, 0, 6, "warps"),
        (100, 512, 255, 0, 0, "registers"),
    ],
)
def test_occupancy(architecture: int, threads: int, registers: int, shared: int, blocks: int, limit: str) -> None:
    found = occupancy(rates.ARCHITECTURES[architecture], threads, registers, shared)
    assert (found.blocks, found.limit) == (blocks, limit)


def test_pipes() -> None:
    cycles = model.pipe_cycles(
        {"fp32": 100, "imad": 60, "alu": 40, "xu": 2, "branch": 8}, wavefronts=30, architecture=H100
    )
    assert cycles["issue"] == 210 / 4
    assert cycles["fma"] == max((100 + 60) / 4, 60 / 2)
    assert cycles["alu"] == 40 / 2
    assert cycles["xu"] == 2 * 2
    assert cycles["lsu"] == 30


def kernel_report(function: sass.Function, registers: int = 18, spill_bytes: int = 0) -> kernels.KernelReport:
    return kernels.KernelReport(
        architecture=90,
        source="scale",
        mangled=function.name,
        name=function.name,
        resources=compile.Resources(registers, 0, 0, spill_bytes),
        mix=sass.opcode_mix(function.instructions),
        loop_mix=Counter(),
        function=function,
        constants=Constants(0x210, 0x18, {}),
    )


def test_predicted_launch(functions: dict[str, sass.Function]) -> None:
    blocks = 132 * 16
    n = blocks * 128 * 15
    launch = launches.Launch("scale", (blocks, 1, 1), (128, 1, 1), 0, struct.pack("<QQi", 1 << 40, 1 << 41, n))
    prediction = model.predict_launch(
        kernel_report(functions["scale"]), program(functions["scale"]), launch, 32 * n, H100, samples=4
    )
    assert prediction.bounds["memory"] == pytest.approx(32 * n / 3.0e12)
    assert prediction.bounds["l2"] == pytest.approx(32 * n / 5.5e12, rel=0.01)
    turns = n / 32  # of warps
    instructions = 11 * turns + 14 * blocks * 4
    assert sum(prediction.issued.values()) == pytest.approx(instructions, rel=0.01)
    assert prediction.bounds["issue"] == pytest.approx(instructions / (4 * 132 * 1.75e9), rel=0.01)
    assert prediction.bounds["lsu"] == pytest.approx(8 * turns / (132 * 1.75e9), rel=0.01)
    assert (prediction.occupancy.blocks, prediction.waves) == (16, 1.0)
    assert prediction.limit == "memory"


# --------------------------------------------------------------------------------------------------------------- budget


@pytest.fixture
def prediction() -> SimpleNamespace:
    call = launches.Call("forward", "nhwc", "float16", 128, 32, 112, 112, 3, 3, (1, 1), (1, 1))
    return SimpleNamespace(call=call, seconds=100e-6)


@pytest.fixture
def kernel(functions: dict[str, sass.Function]) -> kernels.KernelReport:
    return kernel_report(functions["scale"])


@pytest.fixture
def saved(tmp_path: Path, kernel: kernels.KernelReport, prediction: SimpleNamespace) -> Iterator[dict[str, object]]:
    path = tmp_path / "budget.json"
    new = budget.section([kernel], [prediction], "13.0")  # type: ignore[list-item]
    budget.update(budget.load(path), {90: new}, "the first", complete=True, path=path)
    return budget.load(path)  # type: ignore[return-value]


def failures(saved: dict, kernel: kernels.KernelReport, prediction: SimpleNamespace) -> list[str]:
    return budget.check(saved, 90, [kernel], [prediction])  # type: ignore[list-item]


def test_budget_that_is_kept(saved: dict, kernel: kernels.KernelReport, prediction: SimpleNamespace) -> None:
    assert failures(saved, kernel, prediction) == []
    prediction.seconds = 104e-6
    assert failures(saved, kernel, prediction) == []
    assert saved["changes"] == [{"architectures": "sm_90", "reason": "the first"}]


def test_budget_time(saved: dict, kernel: kernels.KernelReport, prediction: SimpleNamespace) -> None:
    prediction.seconds = 106e-6
    (failure,) = failures(saved, kernel, prediction)
    assert "6.0% more than the budget's 100.00 us" in failure


def test_budget_spill(saved: dict, kernel: kernels.KernelReport, prediction: SimpleNamespace) -> None:
    spilled = replace(kernel, resources=replace(kernel.resources, spill_bytes=8))
    (failure,) = failures(saved, spilled, prediction)
    assert "spill_bytes 8, allowed 0" in failure


@pytest.mark.parametrize("access", ["global_load", "global_store"])
def test_budget_vector(saved: dict, kernel: kernels.KernelReport, prediction: SimpleNamespace, access: str) -> None:
    mix = Counter({k: n for k, n in kernel.mix.items() if k != f"{access} 16"} | {f"{access} 4": 4})
    (failure,) = failures(saved, replace(kernel, mix=mix), prediction)
    assert "global memory has 4 bytes, was 16" in failure


def test_budget_unknown(kernel: kernels.KernelReport, prediction: SimpleNamespace) -> None:
    assert all("not in the budget" in failure for failure in failures({}, kernel, prediction))


def test_declared_vector_kernels(kernel: kernels.KernelReport) -> None:
    narrow = replace(kernel, source="depthwise_backward_input_nchw", mix=Counter({"async_copy 4": 1}))
    wide = replace(narrow, mix=Counter({"async_copy 16": 1, "global_store 16": 1}))
    assert len(budget.check_vectors([narrow])) == 2
    assert budget.check_vectors([narrow, wide]) == []


@pytest.mark.parametrize(
    ("lines", "failure"),
    [
        (("UTMALDG.3D [UR8], [UR4]", "HGMMA.64x128x16.F32 R24, gdesc[UR8], R24"), None),
        (("HGMMA.64x128x16.F32 R24, gdesc[UR8], R24",), "no wgmma, or no tensor copies"),
        (("UTMALDG.3D [UR8], [UR4]", "HMMA.16816.F32 R4, R8, R12, R4"), "no wgmma, or no tensor copies"),
        (("UTMALDG.3D [UR8], [UR4]", "HGMMA.64x128x16.F32 R24, gdesc[UR8], R24, gsb0"), "waits for each wgmma"),
    ],
)
def test_kernels_with_wgmma(kernel: kernels.KernelReport, lines: tuple[str, ...], failure: str | None) -> None:
    control = sass.Control(1, None, None, ())
    instructions = [
        sass.Instruction(16 * i, None, opcode, sass.split_operands(operands), control)
        for i, (opcode, _, operands) in enumerate(line.partition(" ") for line in lines)
    ]
    report = replace(kernel, source="grouped_forward_wgmma_nhwc", function=sass.Function("wgmma", instructions))
    assert budget.check_wgmma([report]) == ([f"sm_90 scale: {failure}"] if failure else [])
    assert budget.check_wgmma([kernel]) == []


def test_update_needs_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reason"):
        budget.update({}, {}, " ", complete=True, path=tmp_path / "budget.json")


def test_partial_update_keeps_the_rest(saved: dict, tmp_path: Path) -> None:
    new = {"nvcc": "13.0", "kernels": {"other": {"registers": 1}}, "layers_us": {}}
    budget.update(saved, {90: new}, "one more", complete=False, path=tmp_path / "budget.json")
    assert set(saved["sm_90"]["kernels"]) == {"scale", "other"}
    assert len(saved["sm_90"]["layers_us"]) == 1


# ---------------------------------------------------------------------------------------- against compiler and emulator


def tools() -> bool:
    try:
        compile.nvcc()
        compile.nvdisasm()
    except compile.ToolMissingError:
        return False
    return True


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(compile.ToolMissingError, match="CUDA toolkit"):
        compile.nvcc()


@dataclass(frozen=True)
class Accesses:
    """Of one direction and one width, to global memory."""

    requests: int
    sectors: int
    bytes: int


def followed(call: launches.Call) -> dict[tuple[str, int], Accesses]:
    """What all blocks of a call's first launch do to global memory, by direction and width."""
    plan = launches.plan(call, H100)
    assert plan is not None
    (launch, *_) = plan.launches
    # The input gradient of stride 1 is the forward kernel's.
    sources = [compile.CUDA_SOURCES / f"depthwise_{op}_{call.layout}.cu" for op in ("forward", "backward_input")]
    compiled = [compile.compile_source(source, 90) for source in sources]
    (report,) = (k for c in compiled for k in kernels.read_kernels(c) if k.mangled == launch.kernel)
    ready = execute.Program(report.function, report.constants, H100)
    totals: dict[tuple[str, int], Traffic] = {}
    for block in model.sample_blocks(launch, launch.blocks):
        for index, traffic in execute.run_block(ready, launch, block).traffic.items():
            instruction = report.function.instructions[index]
            if instruction.kind not in ("shared_load", "shared_store"):
                direction = "write" if instruction.kind.endswith("store") else "read"
                totals.setdefault((direction, instruction.access_bytes), Traffic()).add(traffic)
    return {key: Accesses(t.requests, t.sectors, t.bytes) for key, t in totals.items() if t.requests}


def emulated(call: launches.Call) -> dict[tuple[str, int], Accesses]:
    """The same, counted by the checked emulator while it runs the call."""
    import torch

    from tests.cases import Case
    from tests.cuda_kernels import CudaKernels, Operands, Placement

    cuda = CudaKernels("checked")
    sizes = (call.N, call.C, call.H, call.W, call.C, call.R, call.S)
    case = Case("static_report", *sizes, stride=call.stride, padding=call.padding, groups=call.C)
    dtype = getattr(torch, call.dtype)
    operands = Operands(
        x=torch.ones(case.input_shape, dtype=dtype),
        w=torch.ones(case.weight_shape, dtype=dtype),
        bias=None,
        dy=torch.ones(case.output_shape, dtype=dtype),
    )
    cuda.module.clear_statistics()
    cuda.module.collect_statistics(True)
    try:
        next(iter(cuda.run(call.op, case, Placement(call.layout), operands)))
        found = cuda.module.statistics()
    finally:
        cuda.module.collect_statistics(False)
        cuda.module.clear_statistics()
    totals: dict[tuple[str, int], Accesses] = {}
    for line in found:
        if line.space == "global":
            before = totals.get((line.access, line.bytes), Accesses(0, 0, 0))
            totals[line.access, line.bytes] = Accesses(
                before.requests + line.requests,
                before.sectors + line.cost,
                before.bytes + line.accesses * line.bytes,
            )
    return totals


@pytest.mark.slow
@pytest.mark.skipif(not tools(), reason="nvcc or nvdisasm is missing")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("op", ["forward", "backward_input"])
class TestAgainstTheEmulator:
    """What is followed in machine code is what the same text does when g++ has compiled it and the CPU runs it."""

    #: Where lanes also stay together in float16, with 64 channels of 14x14, and vectors are written whole.
    TOGETHER_IN_FLOAT16 = frozenset(
        {
            ("forward", "nchw", 1),
            ("forward", "nchw", 2),
            ("backward_input", "nchw", 1),
            ("forward", "nhwc", 1),
            ("backward_input", "nhwc", 1),
        }
    )

    def test_requests_are_those_of_the_emulator(self, op: str, layout: str, stride: int) -> None:
        """As many requests, with as many sectors.

        The lanes of a warp stay together here, the channels of a pixel or the planes of a block being many: where some
        of them skip an iteration, the emulator counts one request where a GPU makes two (docs/emulator.md).
        """
        of_dtype = {"float32": (64, 16) if layout == "nchw" else (256, 14)}
        if (op, layout, stride) in self.TOGETHER_IN_FLOAT16:
            of_dtype["float16"] = 64, 14
        for dtype, (channels, size) in of_dtype.items():
            call = launches.Call(op, layout, dtype, 2, channels, size, size, 3, 3, (stride, stride), (1, 1))
            found = followed(call)
            assert {direction for direction, _ in found} == {"read", "write"}
            assert found == emulated(call)

    def test_bytes_are_those_of_the_emulator(self, op: str, layout: str, stride: int) -> None:
        """As many bytes, also where lanes go different ways, and in whatever pieces the compiler writes a vector."""

        def moved(accesses: dict[tuple[str, int], Accesses]) -> dict[str, int]:
            return {
                direction: sum(a.bytes for (of, _), a in accesses.items() if of == direction)
                for direction in ("read", "write")
            }

        call = launches.Call(op, layout, "float16", 2, 64, 14, 14, 3, 3, (stride, stride), (1, 1))
        found = moved(followed(call))
        assert all(found.values()), found
        assert found == moved(emulated(call))
