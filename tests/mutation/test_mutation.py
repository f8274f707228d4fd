"""Every planted fault makes a kernel test fail; and every fault still fits the kernels."""

from __future__ import annotations

import shutil

import pytest

from tests.fused_sweep import KERNELS
from tests.mutation import triton_mutants
from tests.mutation.__main__ import COMPILER, SOURCES, check_unchanged, try_fault
from tests.mutation.cuda import ROOT, TESTS, kernel_files
from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.faults import FAULTS, Fault
from tests.mutation.mutants import choose, mutants_of

DIRECTIONS = ("forward", "backward_input", "backward_weight")


def _name(fault: Fault) -> str:
    return f"{fault.file}-{fault.direction}-{fault.name}".replace(" ", "_")


@pytest.mark.parametrize("fault", FAULTS, ids=_name)
def test_faults_fit_the_kernels(fault: Fault) -> None:
    text = (SOURCES / "cpu" / fault.file).read_text()
    assert text.count(fault.old) == 1, "the kernel has changed: change the fault with it"
    assert fault.old != fault.new


def test_every_kernel_has_a_fault() -> None:
    planted = {(fault.family, fault.direction) for fault in FAULTS}
    convolutions = {(family, direction) for family in ("depthwise", "grouped", "pointwise") for direction in DIRECTIONS}
    assert planted == convolutions | {("fused", kernel) for kernel in KERNELS}
    stems = ("depthwise_", "fused", "grouped_", "packed_", "separable")
    files = {path.name for path in (SOURCES / "cpu").glob("*.h") if path.name.startswith(stems)}
    assert files <= {fault.file for fault in FAULTS}, "a kernel file without a fault"


def test_equivalent_mutants_fit_the_kernels() -> None:
    cuda = (file for family in TESTS for file in kernel_files(family))
    known = {mutant.key for file in cuda for mutant in mutants_of(ROOT, file)}
    known |= {mutant.key for file in triton_mutants.kernel_files() for mutant in triton_mutants.mutants_of(ROOT, file)}
    assert set(EQUIVALENT) <= known, "the kernel has changed: change tests/mutation/equivalent.py with it"


def test_a_seed_decides_the_mutants() -> None:
    files = kernel_files("depthwise")
    chosen = choose(ROOT, files, 72, seed=0)
    assert chosen == choose(ROOT, files, 72, seed=0) != choose(ROOT, files, 72, seed=1)
    assert {mutant.file for mutant in chosen} == set(files)


def test_mutants_of_the_triton_kernels() -> None:
    files = triton_mutants.kernel_files()
    chosen = choose(ROOT, files, 100, 0, triton_mutants.mutants_of)
    assert {mutant.file for mutant in chosen} == set(files)
    assert len({mutant.kind for mutant in chosen}) == len(triton_mutants.RULES)
    for mutant in chosen:
        assert not mutant.old.lstrip().startswith(("#", "@", "def ")), "a line that Triton does not compile"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler")
def test_kernels_without_a_fault_pass() -> None:
    assert check_unchanged(FAULTS) == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("fault", FAULTS, ids=_name)
def test_faults_are_noticed(fault: Fault) -> None:
    assert try_fault(fault) is None
