"""The figures that are checked in, against which a change is held: bench/static_budget.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.files import write_json
from bench.static_report.kernels import VECTOR_KERNELS, KernelReport
from bench.static_report.model import Prediction

PATH = Path(__file__).resolve().parent.parent / "static_budget.json"

#: A predicted time may rise by this much without a change of the budget.
TOLERANCE = 0.05

Budget = dict[str, Any]


def kernel_entry(kernel: KernelReport) -> dict[str, int]:
    """Return what the budget says of a kernel."""
    return {
        "registers": kernel.resources.registers,
        "spill_bytes": kernel.resources.spill_bytes,
        "stack_bytes": kernel.resources.stack_bytes,
        "loads16": kernel.loads16,
        "stores16": kernel.stores16,
        "widest_load": kernel.widest_load,
        "widest_store": kernel.widest_store,
    }


def layer_key(prediction: Prediction) -> str:
    """Return the name of a layer's entry."""
    call = prediction.call
    return f"{call.op} {call.layout} {call.dtype} {call.name} batch {call.N}"


def section(kernels: Sequence[KernelReport], predictions: Sequence[Prediction], release: str) -> dict[str, Any]:
    """Return the part of the budget for one architecture, made by this release of nvcc."""
    return {
        "nvcc": release,
        "kernels": {k.name: kernel_entry(k) for k in sorted(kernels, key=lambda k: k.name)},
        "layers_us": {layer_key(p): round(p.seconds * 1e6, 2) for p in predictions},
    }


def load(path: Path = PATH) -> Budget:
    """Read the budget; an empty one if there is no file."""
    if not path.exists():
        return {"changes": []}
    budget: Budget = json.loads(path.read_text(encoding="utf-8"))
    return budget


def update(
    budget: Budget, sections: Mapping[int, dict[str, Any]], reason: str, complete: bool, path: Path = PATH
) -> None:
    """Write new figures, and why they changed.

    Args:
        budget: the old one, which is changed.
        sections: the new figures by architecture.
        reason: kept in the file.
        complete: whether the sections have everything; else entries that they lack are kept.
        path: of the file.

    Raises:
        ValueError: there is no reason.
    """
    if not reason.strip():
        raise ValueError("a change of the budget needs a reason")
    for architecture, new in sections.items():
        old = {} if complete else budget.get(f"sm_{architecture}", {})
        parts = {part: {**old.get(part, {}), **new[part]} for part in ("kernels", "layers_us")}
        budget[f"sm_{architecture}"] = {"nvcc": new["nvcc"], **parts}
    names = ", ".join(f"sm_{architecture}" for architecture in sections)
    budget.setdefault("changes", []).append({"architectures": names, "reason": reason.strip()})
    write_json(path, budget)


def check(
    budget: Budget, architecture: int, kernels: Sequence[KernelReport], predictions: Sequence[Prediction]
) -> list[str]:
    """Return what is worse than the budget allows, a sentence each."""
    old = budget.get(f"sm_{architecture}", {"kernels": {}, "layers_us": {}})
    failures = []
    for kernel in kernels:
        where = f"sm_{architecture} {kernel.name}"
        allowed = old["kernels"].get(kernel.name)
        entry = kernel_entry(kernel)
        for what in ("spill_bytes", "stack_bytes"):
            limit = allowed[what] if allowed else 0
            if entry[what] > limit:
                failures.append(f"{where}: {what} {entry[what]}, allowed {limit}")
        failures += _vector_failures(where, kernel, allowed)
        if allowed is None:
            failures.append(f"{where}: not in the budget")
    for prediction in predictions:
        key = layer_key(prediction)
        limit_us = old["layers_us"].get(key)
        time_us = prediction.seconds * 1e6
        if limit_us is None:
            failures.append(f"sm_{architecture} {key}: not in the budget")
        elif time_us > limit_us * (1 + TOLERANCE):
            rise = f"{time_us / limit_us - 1:.1%} more than the budget's {limit_us:.2f} us"
            failures.append(f"sm_{architecture} {key}: predicted {time_us:.2f} us, {rise}")
    return failures


def _vector_failures(where: str, kernel: KernelReport, allowed: Mapping[str, int] | None) -> list[str]:
    """Accesses that became narrower, or are no longer 16 bytes."""
    failures = []
    for key, what in (("load", "load from"), ("store", "store to")):
        widest = getattr(kernel, f"widest_{key}")
        if allowed and widest < allowed[f"widest_{key}"]:
            was = allowed[f"widest_{key}"]
            failures.append(f"{where}: the widest {what} global memory has {widest} bytes, was {was}")
    return failures


def check_vectors(kernels: Sequence[KernelReport]) -> list[str]:
    """Return the vector kernels that for some dtype have no instantiation with accesses as wide as they are to be."""
    groups: dict[tuple[int, str, str], list[KernelReport]] = {}
    for kernel in kernels:
        if kernel.source in VECTOR_KERNELS:
            groups.setdefault((kernel.architecture, kernel.source, kernel.dtype), []).append(kernel)
    failures = []
    for (architecture, source, dtype), group in groups.items():
        load, store = VECTOR_KERNELS[source]
        for what, wanted, widest in (
            ("load from", load, max(kernel.widest_load for kernel in group)),
            ("store to", store, max(kernel.widest_store for kernel in group)),
        ):
            if widest < wanted:
                failures.append(
                    f"sm_{architecture} {source} {dtype}: the widest {what} global memory has {widest} bytes, "
                    f"{wanted} wanted"
                )
    return failures


def check_wgmma(kernels: Sequence[KernelReport]) -> list[str]:
    """Return the kernels that are named after wgmma and have no use of it.

    Their machine code has matrix products of a warpgroup and tensor copies, and waits once for several products. ptxas
    makes it wait for each, and says so in a warning alone, if something else touches the sums in between.
    """
    failures = []
    for kernel in kernels:
        if "wgmma" not in kernel.source:
            continue
        where = f"sm_{kernel.architecture} {kernel.name}"
        products = [i for i in kernel.function.instructions if i.base == "HGMMA"]
        closing = [i for i in products if any(operand.startswith("gsb") for operand in i.operands)]
        if not products or not any(i.base == "UTMALDG" for i in kernel.function.instructions):
            failures.append(f"{where}: no wgmma, or no tensor copies")
        elif 2 * len(closing) > len(products):
            failures.append(f"{where}: waits for each wgmma")
    return failures
