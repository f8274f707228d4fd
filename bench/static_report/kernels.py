"""What is known of each kernel instantiation from its compilation alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.static_report import sass
from bench.static_report.compile import Compiled, Resources, parse_ptxas
from bench.static_report.cubin import Constants, read_constants

#: The vector kernels, by the names of their files: how many bytes a thread is to load from global memory (or copy from
#: there to shared memory) and to store there in one access, in at least one instantiation for each dtype. The kernels
#: of last resort have no such duty.
VECTOR_KERNELS = {
    "depthwise_forward_nhwc": (8, 8),
    "depthwise_forward_nchw": (16, 8),
    "depthwise_backward_input_nhwc": (8, 8),
    "depthwise_backward_input_nchw": (16, 16),
    "depthwise_backward_weight_nhwc": (16, 4),
    "depthwise_backward_weight_nchw": (16, 4),
    "separable_nhwc": (16, 16),
}


@dataclass(frozen=True)
class KernelReport:
    """One instantiation for one architecture."""

    architecture: int
    #: The .cu file's name without its suffix.
    source: str
    #: As g++ mangles it.
    mangled: str
    #: Readable, such as ``depthwise_forward_nhwc<fp16, 3, 1>``.
    name: str
    resources: Resources
    #: Instructions by class, of all of it and of its largest innermost loop.
    mix: Counter[str]
    loop_mix: Counter[str]
    function: sass.Function = field(repr=False, compare=False)
    constants: Constants = field(repr=False, compare=False)

    @property
    def loads16(self) -> int:
        """16-byte loads from global memory, or copies from there to shared memory, in the machine code."""
        return self.mix["global_load 16"] + self.mix["async_copy 16"]

    @property
    def stores16(self) -> int:
        """16-byte stores to global memory in the machine code."""
        return self.mix["global_store 16"]

    @property
    def widest_load(self) -> int:
        """Bytes of a thread's widest load from global memory, or copy from there to shared memory."""
        return self._widest("global_load", "async_copy")

    @property
    def widest_store(self) -> int:
        """Bytes of a thread's widest store to global memory."""
        return self._widest("global_store")

    @property
    def dtype(self) -> str:
        """The first type among the template arguments; empty if there is none."""
        match = re.search(r"\b(fp16|bf16|float|double)\b", self.name)
        return match[1] if match else ""

    def _widest(self, *kinds: str) -> int:
        return max((int(key.split(" ")[1]) for key in self.mix if key.split(" ")[0] in kinds), default=0)


def largest_inner_loop(function: sass.Function) -> Sequence[sass.Instruction]:
    """Return the instructions of the innermost loop with the most of them; of the whole function if it has no loop.

    In a kernel for tensor cores it is the smallest loop with the most matrix products.
    """
    loops = sass.loops(function)
    bodies = [list(sass.inside(function, loop)) for loop in loops]
    products = [sum(i.kind == "tensor" for i in body) for body in bodies]
    if any(products):
        return min((b for b, n in zip(bodies, products, strict=True) if n == max(products)), key=len)
    inner = [body for body, loop in zip(bodies, loops, strict=True) if loop.innermost]
    return max(inner, key=len, default=function.instructions)


def read_kernels(compiled: Compiled) -> list[KernelReport]:
    """Return a report on each kernel of a .cu file."""
    resources = parse_ptxas(compiled.ptxas)
    functions = sass.parse(compiled.sass)
    constants = read_constants(Path(compiled.cubin))
    names = sass.demangle(list(functions))
    return [
        KernelReport(
            architecture=compiled.architecture,
            source=compiled.source.stem,
            mangled=sass.normalise(mangled),
            name=names[mangled],
            resources=resources[mangled],
            mix=sass.opcode_mix(function.instructions),
            loop_mix=sass.opcode_mix(largest_inner_loop(function)),
            function=function,
            constants=constants[mangled],
        )
        for mangled, function in functions.items()
        if mangled in resources
    ]


def select(kernels: Sequence[KernelReport], pattern: str | None) -> list[KernelReport]:
    """Return the kernels in whose name the regular expression is found."""
    return [k for k in kernels if pattern is None or re.search(pattern, k.name)]
