"""One table of assumptions for each architecture: a card, its rates and its latencies.

The figures of sm_90 are those of docs/kernels: measured on an H100 SXM where they say so. All others are from NVIDIA's
documents (CUDA C++ Programming Guide: throughput of arithmetic instructions, technical specifications) or, for copy
bandwidths and latencies, estimates. They await a calibration on a card.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.static_report.sass import Instruction

WARP = 32


@dataclass(frozen=True)
class Architecture:
    """What is assumed of a card."""

    architecture: int
    card: str
    multiprocessors: int
    clock_ghz: float
    #: Bytes a second of a copy, reads and writes together.
    copy_bandwidth: float
    #: Bytes a second between the L2 cache and all multiprocessors.
    l2_bandwidth: float
    l2_bytes: int

    # --- what a multiprocessor holds ---
    max_warps: int
    max_blocks: int
    shared_bytes: int
    shared_bytes_per_block: int
    #: Dense 16-bit matrix products with float32 sums, as the best kernels reach them under load.
    tensor_flops: float
    registers: int = 65536
    #: Shared memory that the system takes of each block.
    reserved_shared_bytes: int = 1024

    # --- results a clock and multiprocessor, in lanes ---
    schedulers: int = 4
    lanes: dict[str, int] = field(default_factory=dict)

    # --- cycles ---
    memory_latency: float = 700.0
    l1_latency: float = 38.0
    shared_latency: float = 30.0
    #: Until the operands of a memory instruction have been read.
    operand_latency: float = 12.0
    #: A launch, from an empty card to its first instruction and from its last to an empty card, in seconds.
    launch_seconds: float = 2e-6

    #: Offsets in constant bank 0 of the block's size, the grid's size and the stack pointer.
    launch_constants: tuple[int, int, int] = (0x0, 0xC, 0x28)

    def latency_of(self, instruction: Instruction) -> float:
        """Cycles until the result of an instruction that is no access to memory is there."""
        return _LATENCIES.get(instruction.kind, 12.0)

    def arithmetic_rate(self, dtype: str) -> float:
        """Multiply-adds a second that a convolution in this dtype can hope for: on tensor cores if it has 16 bits."""
        if dtype in ("float16", "bfloat16"):
            return self.tensor_flops / 2
        return self.lanes["fp64" if dtype == "float64" else "fma"] * self.multiprocessors * self.clock_ghz * 1e9


_LATENCIES = {
    "xu": 24.0,
    "constant": 30.0,
    "shuffle": 24.0,
    "fp64": 16.0,
    "tensor": 34.0,
    "local": 38.0,
    "atomic": 700.0,
}

#: Lanes of sm_80: half of the FP32 units of its successors. Of the tensor cores: 32 over the clocks that an SM takes
#: for an mma.m16n8k16 of 16 bits, 2 on sm_80. On sm_90 it takes 1.6: mma.sync reaches 62 % of what wgmma does.
_LANES_80 = {
    **{"fp32": 64, "imad": 64, "fma": 64, "alu": 64, "fp16": 256, "fp64": 32, "xu": 16, "shuffle": 32},
    "tensor": 16,
}
_LANES_90 = {**_LANES_80, "fp32": 128, "fma": 128, "fp64": 64, "tensor": 20}

ARCHITECTURES = {
    80: Architecture(
        architecture=80,
        card="A100 SXM 80 GB",
        multiprocessors=108,
        clock_ghz=1.41,
        copy_bandwidth=1.70e12,
        l2_bandwidth=4.0e12,
        l2_bytes=40 << 20,
        max_warps=64,
        max_blocks=32,
        shared_bytes=164 * 1024,
        shared_bytes_per_block=163 * 1024,
        tensor_flops=250e12,
        lanes=_LANES_80,
        memory_latency=600.0,
    ),
    90: Architecture(
        architecture=90,
        card="H100 SXM",
        multiprocessors=132,
        clock_ghz=1.75,
        copy_bandwidth=3.0e12,
        l2_bandwidth=5.5e12,
        l2_bytes=50 << 20,
        max_warps=64,
        max_blocks=32,
        shared_bytes=228 * 1024,
        shared_bytes_per_block=227 * 1024,
        tensor_flops=800e12,
        lanes=_LANES_90,
    ),
    100: Architecture(
        architecture=100,
        card="B200",
        multiprocessors=148,
        clock_ghz=1.85,
        copy_bandwidth=6.8e12,
        l2_bandwidth=10.0e12,
        l2_bytes=126 << 20,
        max_warps=64,
        max_blocks=32,
        shared_bytes=228 * 1024,
        shared_bytes_per_block=227 * 1024,
        tensor_flops=1800e12,
        lanes=_LANES_90,
        memory_latency=800.0,
        launch_constants=(0x360, 0x370, 0x37C),
    ),
    120: Architecture(
        architecture=120,
        card="RTX 5090",
        multiprocessors=170,
        clock_ghz=2.40,
        copy_bandwidth=1.55e12,
        l2_bandwidth=6.0e12,
        l2_bytes=96 << 20,
        max_warps=48,
        max_blocks=24,
        shared_bytes=100 * 1024,
        shared_bytes_per_block=99 * 1024,
        tensor_flops=205e12,
        lanes={**_LANES_90, "fp64": 2, "fp16": 128, "tensor": 4},
        memory_latency=800.0,
        launch_constants=(0x360, 0x370, 0x37C),
    ),
}
