"""How many blocks of a kernel a multiprocessor holds at once, and what limits them."""

from __future__ import annotations

from dataclasses import dataclass

from bench.static_report.rates import WARP, Architecture

#: Registers are given to a warp in pieces of this many, and warps to a scheduler in turn.
_REGISTER_UNIT = 256
_SHARED_UNIT = 128


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps that a multiprocessor holds."""

    blocks: int
    warps: int
    #: Share of the warps that it could hold.
    share: float
    #: ``warps``, ``blocks``, ``registers`` or ``shared``.
    limit: str


def occupancy(architecture: Architecture, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Return what a multiprocessor holds of a kernel.

    Args:
        architecture: of the card.
        threads: of a block.
        registers: of a thread.
        shared_bytes: of a block, static and dynamic.

    Example:
        >>> from bench.static_report.rates import ARCHITECTURES
        >>> occupancy(ARCHITECTURES[90], threads=256, registers=64, shared_bytes=0)
        Occupancy(blocks=4, warps=32, share=0.5, limit='registers')
    """
    warps = -(-threads // WARP)
    per_warp = -(-registers * WARP // _REGISTER_UNIT) * _REGISTER_UNIT
    # Each scheduler has its own quarter of the registers.
    register_warps = architecture.registers // architecture.schedulers // per_warp * architecture.schedulers
    limits = {
        "warps": architecture.max_warps // warps,
        "registers": register_warps // warps,
        "blocks": architecture.max_blocks,
    }
    taken = -(-(shared_bytes + architecture.reserved_shared_bytes) // _SHARED_UNIT) * _SHARED_UNIT
    limits["shared"] = architecture.shared_bytes // taken
    if shared_bytes > architecture.shared_bytes_per_block:
        limits["shared"] = 0
    limit = min(limits, key=lambda name: limits[name])
    blocks = limits[limit]
    return Occupancy(blocks, blocks * warps, blocks * warps / architecture.max_warps, limit)
