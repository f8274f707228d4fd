"""Sectors of requests to global memory, and wavefronts of requests to shared memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.static_report.operands import Longs, Mask

SECTOR_BYTES = 32
_BANKS = 32
_BANK_BYTES = 4


@dataclass
class Traffic:
    """What an instruction that accesses memory did, summed over the warps that ran it."""

    requests: int = 0
    #: Of all lanes together.
    bytes: int = 0
    #: 32-byte pieces of global memory; each counted once a request.
    sectors: int = 0
    #: Passes through the load/store unit.
    wavefronts: int = 0
    #: The fewest that this many bytes can have: sectors in global memory, wavefronts in shared memory.
    ideal: int = 0

    def add(self, other: Traffic) -> None:
        """Add another's counts."""
        for name in ("requests", "bytes", "sectors", "wavefronts", "ideal"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def _distinct(rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Sort each row, and mark the first of equal entries; negative entries stand for no lane."""
    ordered = np.sort(rows, axis=1)
    first = np.ones(ordered.shape, np.bool_)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return ordered, first & (ordered >= 0)


def global_request(
    addresses: Longs, mask: Mask, access_bytes: int
) -> tuple[Traffic, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Count a request to global memory.

    Args:
        addresses: a thread's address each.
        mask: threads that take part.
        access_bytes: of a thread; addresses are multiples of it.

    Returns:
        What was moved; the distinct sectors of each warp, one after the other; how many of them each warp has.
    """
    sectors = (addresses // np.uint64(SECTOR_BYTES)).astype(np.int64)
    ordered, first = _distinct(np.where(mask, sectors, -1).reshape(-1, 32))
    counts = first.sum(1)
    lanes = mask.reshape(-1, 32).sum(1)
    moved = lanes * access_bytes
    ideal = -(-moved // SECTOR_BYTES)
    # A pass returns 128 bytes: 4 sectors, or what 128 bytes of registers hold where lanes share sectors.
    passes = np.maximum(-(-counts // 4), -(-moved // 128))
    traffic = Traffic(int((lanes > 0).sum()), int(moved.sum()), int(counts.sum()), int(passes.sum()), int(ideal.sum()))
    return traffic, ordered[first], counts


def shared_request(addresses: Longs, mask: Mask, access_bytes: int) -> Traffic:
    """Count a request to shared memory: accesses of 8 and 16 bytes go by half and quarter warps.

    A bank holds every 32nd word of 4 bytes; lanes that access the same words share a pass.
    """
    width = max(access_bytes, _BANK_BYTES)
    lanes_a_pass = min(32, _BANKS * _BANK_BYTES // width)
    units = (addresses // np.uint64(width)).astype(np.int64)
    groups = np.where(mask, units, -1).reshape(-1, lanes_a_pass)
    ordered, first = _distinct(groups)
    slots = _BANKS * _BANK_BYTES // width  # units that lie beside each other in all banks
    rows, columns = np.nonzero(first)
    hits = np.zeros((groups.shape[0], slots), np.int64)
    np.add.at(hits, (rows, ordered[rows, columns] % slots), 1)
    passes = hits.max(1)
    lanes = mask.reshape(-1, 32).sum(1)
    distinct_bytes = first.sum(1).reshape(len(lanes), -1).sum(1) * width
    ideal = -(-distinct_bytes // (_BANKS * _BANK_BYTES))
    return Traffic(int((lanes > 0).sum()), int(lanes.sum()) * access_bytes, 0, int(passes.sum()), int(ideal.sum()))
