"""The depthwise-separable block of csrc/cuda, run by the emulator: every configuration, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from cnnext.ops import ACTIVATIONS
from tests.cases import Case
from tests.cuda_kernels import BUILD, WATCHED, CudaKernels, Operand, Placement, flat, place, place_output, run_in_build
from tests.emulator import build
from tests.reference import assert_same_bits, assert_within, upcast
from tests.separable_blocks import BLOCKS, BlockOperands, block, expected_of, operands_of

pytestmark = pytest.mark.skipif(build.cuda_headers() is None, reason="no CUDA headers: neither a toolkit nor a package")

FAST_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
IDS = {"ids": str}
NHWC = Placement("nhwc")
#: The widths that a tile's rectangle may have.
TILE_WIDTHS = (4, 8, 16, 32)

WATCHED_BLOCKS = (BLOCKS[1], BLOCKS[3], BLOCKS[5], BLOCKS[6], BLOCKS[7], BLOCKS[13])
CASES = WATCHED_BLOCKS if WATCHED else BLOCKS

# What the fused kernel does not take, and the words in which it is refused.
REFUSED = (
    (block("nchw", (1, 8, 6, 7), 8), torch.float16, Placement("nchw"), "channels_last"),
    (block("multiplier", (1, 8, 6, 7), 8, multiplier=2), torch.float16, NHWC, "multiplier"),
    (block("7x7", (1, 8, 6, 7), 8, kernel=7, padding=3), torch.float16, NHWC, "3x3"),
    (block("dilated", (1, 8, 6, 7), 8, dilation=2), torch.float16, NHWC, "dilated"),
    (block("stride_3", (1, 8, 6, 7), 8, stride=3), torch.float16, NHWC, "stride"),
    (block("float64", (1, 8, 6, 7), 8), torch.float64, NHWC, "float64"),
    (block("odd_channels", (1, 5, 6, 7), 8), torch.bfloat16, NHWC, "16 bytes"),
    (block("odd_outputs", (1, 8, 6, 7), 5), torch.float32, NHWC, "16 bytes"),
    (block("odd_strides", (1, 8, 6, 7), 8), torch.float16, Placement("nhwc", 3), "16 bytes"),
    (block("odd_addresses", (1, 8, 6, 7), 8), torch.float16, Placement("nhwc", 8, 1), "16 bytes"),
)


@pytest.fixture(scope="module")
def kernels() -> CudaKernels:
    return CudaKernels(name="separable")


class Run:
    """A block on operands in memory, whose configurations can be launched one after the other."""

    def __init__(
        self,
        kernels: CudaKernels,
        shape: tuple[Case, int],
        operands: BlockOperands,
        activations: tuple[str | None, str | None] = (None, None),
        placement: Placement = NHWC,
        allow_tf32: bool = False,
    ) -> None:
        self.kernels, self.module = kernels, kernels.module
        depthwise, outputs = shape
        n, _, p, q = depthwise.output_shape
        first, second = (0 if name is None else ACTIVATIONS.index(name) for name in activations)
        self.y = place_output("y", (n, outputs, p, q), operands.x.dtype, placement)
        residual = None if operands.residual is None else place("residual", operands.residual, placement)
        self.inputs = (
            place("x", operands.x, placement),
            flat("depthwise_w", operands.depthwise_w),
            flat("depthwise_bias", operands.depthwise_bias),
            flat("w", operands.w),
            flat("bias", operands.bias),
            residual,
        )
        problem = self.module.SeparableProblem()
        problem.depthwise = kernels.problem(depthwise, self.inputs[0], self.y, placement.layout, first).params
        problem.outputs, problem.activation = outputs, second
        problem.y_strides = self.module.Strides4(*self.y.tensor.stride())
        problem.has_residual = residual is not None
        problem.alignment = min(entry.alignment for entry in (*self.inputs, self.y) if entry is not None)
        problem.allow_tf32 = allow_tf32
        self.problem = problem

    def launch(self, config: Any) -> torch.Tensor:
        """y, of which nothing but its elements was written."""
        self.y.tensor.fill_(torch.nan)
        size = self.module.separable_workspace_bytes(self.problem, config)
        workspace = flat("workspace", torch.full((-(-size // 4),), torch.nan) if size else None, written=True)
        operands: list[Operand | None] = [*self.inputs, self.y, workspace]
        with self.kernels.registered(*operands):
            addresses = [0 if operand is None else operand.address for operand in operands]
            self.module.separable(self.problem, config, *addresses)
        self.y.check_gaps()
        return self.y.tensor

    def configs(self) -> list[Any]:
        return list(self.module.separable_configs(self.problem))

    def results(self) -> Iterator[tuple[str, torch.Tensor]]:
        for config in self.configs():
            yield repr(config), self.launch(config)


def check_exact(run: Run, expected: torch.Tensor) -> None:
    for config, y in run.results():
        assert_same_bits(y, expected, config)


@pytest.mark.parametrize("dtype", FAST_DTYPES, **IDS)
@pytest.mark.parametrize("shape", CASES, ids=lambda shape: str(shape[0]))
def test_integers_are_exact(kernels: CudaKernels, shape: tuple[Case, int], dtype: torch.dtype) -> None:
    operands = operands_of(shape, dtype)
    activations = ("relu6", "relu")
    run = Run(kernels, shape, operands, activations)
    assert [config.fused for config in run.configs()].count(False) == 1
    check_exact(run, expected_of(shape, operands, activations).value)
    if not WATCHED:
        bare = operands.bare()
        check_exact(Run(kernels, shape, bare), expected_of(shape, bare, (None, None)).value)


@pytest.mark.parametrize("shape", CASES[1::3], ids=lambda shape: str(shape[0]))
def test_tf32_is_exact_on_integers(kernels: CudaKernels, shape: tuple[Case, int]) -> None:
    operands = operands_of(shape, torch.float32)
    run = Run(kernels, shape, operands, ("relu", None), allow_tf32=True)
    configs = run.configs()
    assert {(config.fused, config.kernel.tf32) for config in configs} == {(True, True), (True, False), (False, False)}
    check_exact(run, expected_of(shape, operands, ("relu", None)).value)


@pytest.mark.skipif(WATCHED, reason="these builds look for wrong accesses, not for rounding")
@pytest.mark.parametrize("dtype", FAST_DTYPES, **IDS)
@pytest.mark.parametrize("shape", [BLOCKS[2], BLOCKS[7]], ids=lambda shape: str(shape[0]))
def test_random_values(kernels: CudaKernels, shape: tuple[Case, int], dtype: torch.dtype) -> None:
    operands = operands_of(shape, dtype, integers=False)
    expected = expected_of(shape, operands, ("relu6", None))
    for config, y in Run(kernels, shape, operands, ("relu6", None)).results():
        assert_within(y, expected, config)


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_activations(kernels: CudaKernels, activation: str) -> None:
    """Each behind the depthwise half, and behind the 1x1 half, where the residual comes before it."""
    shape = BLOCKS[0]
    for dtype in (torch.float32, torch.float16):
        operands = operands_of(shape, dtype, integers=False)
        for activations in ((activation, None), (None, activation)):
            expected = expected_of(shape, operands, activations)
            for config, y in Run(kernels, shape, operands, activations).results():
                assert_within(y, expected, f"{config}: {activations}")


@pytest.mark.parametrize("dtype", FAST_DTYPES, **IDS)
def test_slices_of_wider_tensors(kernels: CudaKernels, dtype: torch.dtype) -> None:
    for shape in (BLOCKS[0], BLOCKS[5]):
        operands = operands_of(shape, dtype)
        run = Run(kernels, shape, operands, placement=Placement("nhwc", 8, 8))
        assert any(config.fused for config in run.configs())
        check_exact(run, expected_of(shape, operands, (None, None)).value)


@pytest.mark.parametrize("shape", [BLOCKS[3], BLOCKS[4], BLOCKS[6], BLOCKS[7]], ids=lambda shape: str(shape[0]))
def test_every_rectangle(kernels: CudaKernels, shape: tuple[Case, int]) -> None:
    """The planner chooses the rectangle of a tile by its cost; here each has its turn."""
    depthwise, outputs = shape
    if WATCHED:
        shape = (replace(depthwise, c=24, k=24, groups=24), 16)
        depthwise, outputs = shape
    operands = operands_of(shape, torch.float16)
    run = Run(kernels, shape, operands)
    n, _, p, q = depthwise.output_shape
    expected = expected_of(shape, operands, (None, None)).value
    for config in (entry for entry in run.configs() if entry.fused):
        kernel = config.kernel
        pixels = kernel.tile_h * kernel.tile_w
        for width in TILE_WIDTHS:
            height = pixels // width
            tiles = -(-p // height) * -(-q // width) * -(-outputs // kernel.columns)
            kernel.tile_h, kernel.tile_w, kernel.grid = height, width, [n * tiles, 1, 1]
            kernel.shared_bytes = run.module.separable_shared_bytes(run.problem, kernel)
            config.kernel = kernel
            assert_same_bits(run.launch(config), expected, repr(config))


@pytest.mark.parametrize(
    ("shape", "dtype", "placement", "words"),
    REFUSED,
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_what_the_fused_kernel_does_not_take_runs_as_two(
    kernels: CudaKernels, shape: tuple[Case, int], dtype: torch.dtype, placement: Placement, words: str
) -> None:
    operands = operands_of(shape, dtype)
    for given in (operands, operands.bare()):
        run = Run(kernels, shape, given, ("relu6", "relu"), placement)
        (only,) = run.configs()
        assert not only.fused
        explanation = run.module.explain_separable(run.problem)
        assert explanation.startswith("two kernels: ")
        assert words in explanation
        # Values so small that a sum rounded ahead of the residual is exact too.
        check_exact(run, expected_of(shape, given, ("relu6", "relu")).value)


@pytest.mark.parametrize("dtype", FAST_DTYPES, **IDS)
def test_infinities_stay_where_they_belong(kernels: CudaKernels, dtype: torch.dtype) -> None:
    """An infinite value reaches the pixels whose taps meet it, and no others of the rectangle."""
    shape = BLOCKS[2]
    operands = operands_of(shape, dtype)
    operands.x[0, 0, 0, 0] = operands.x[-1, -1, -1, -1] = torch.inf
    exact = expected_of(shape, operands.bare(), (None, None)).value
    for config, y in Run(kernels, shape, operands.bare()).results():
        assert bool((upcast(y).isfinite() == exact.isfinite()).all()), config


# --- The planner. ---


def problem_of(module: Any, n: int, c: int, size: int, outputs: int, stride: int = 1, dtype: str = "float16") -> Any:
    """A block of dense channels_last tensors, 3x3, padded so that the size stays."""
    out = (size - 1) // stride + 1
    params = module.ConvParams()
    values = {"N": n, "C": c, "H": size, "W": size, "K": c, "R": 3, "S": 3, "P": out, "Q": out, "groups": c}
    values |= {"stride_h": stride, "stride_w": stride, "pad_h": 1, "pad_w": 1, "dilation_h": 1, "dilation_w": 1}
    for name, value in values.items():
        setattr(params, name, value)
    params.x_strides = module.Strides4(size * size * c, 1, size * c, c)
    params.layout, params.dtype = module.Layout.nhwc, getattr(module.DType, dtype)
    problem = module.SeparableProblem()
    problem.depthwise, problem.outputs = params, outputs
    problem.y_strides = module.Strides4(out * out * outputs, 1, out * outputs, outputs)
    return problem


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_memory_bound_blocks_are_fused_and_blocks_of_many_tiles_are_not(kernels: CudaKernels, dtype: str) -> None:
    """Blocks of MobileNet-V1 at batch 128, and one with so many outputs that it would make the middle often."""
    module = kernels.module
    for c, size, outputs, stride in ((32, 112, 64, 1), (64, 112, 128, 2), (128, 56, 128, 1)):
        problem = problem_of(module, 128, c, size, outputs, stride, dtype)
        problem.allow_tf32 = True
        best, *others = module.separable_configs(problem)
        assert best.fused
        assert best.microseconds < min(other.microseconds for other in others if not other.fused)
        assert module.explain_separable(problem).startswith("one kernel: predicted")
    problem = problem_of(module, 128, 512, 14, 8192, 1, dtype)
    best, *others = module.separable_configs(problem)
    assert not best.fused
    assert best.microseconds <= min(other.microseconds for other in others)
    assert module.explain_separable(problem).startswith("two kernels: predicted")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_no_limit_is_exceeded(kernels: CudaKernels, dtype: str) -> None:
    """Grids, and shared memory of a device with less of it; tensors past 2^31 elements."""
    module = kernels.module
    for n, c, size, outputs in ((2**20, 64, 56, 64), (1, 1024, 7, 1024), (100_000, 8, 7, 8), (2, 16, 20_000, 24)):
        problem = problem_of(module, n, c, size, outputs, 2, dtype)
        device = module.DeviceFacts()
        device.shared_bytes_per_multiprocessor, device.shared_bytes_per_block = 100 * 1024, 99 * 1024
        for facts in (module.DeviceFacts(), device):
            problem.device = facts
            configs = module.separable_configs(problem)
            assert sum(not config.fused for config in configs) == 1
            for config in configs:
                assert 1 <= config.kernel.grid[0] < 2**31, config
                assert config.kernel.shared_bytes <= facts.shared_bytes_per_block, config


def test_a_device_without_shared_memory_runs_two_kernels(kernels: CudaKernels) -> None:
    problem = problem_of(kernels.module, 8, 256, 28, 256)
    device = kernels.module.DeviceFacts()
    device.shared_bytes_per_block = 16 * 1024
    problem.device = device
    (only,) = kernels.module.separable_configs(problem)
    assert not only.fused
    assert "shared memory" in kernels.module.explain_separable(problem)


def test_configs_print_what_they_are(kernels: CudaKernels) -> None:
    texts = [repr(config) for config in kernels.module.separable_configs(problem_of(kernels.module, 8, 64, 28, 128))]
    fused = next(text for text in texts if text.startswith("fused"))
    for part in ("separable_nhwc", "grid=", "shared_bytes=", "tile_h=", "tile_w=", "columns=", "predicted"):
        assert part in fused, fused
    assert any(
        text.startswith("two kernels: depthwise_forward_nhwc") and "grouped_forward_nhwc" in text for text in texts
    )


@pytest.mark.parametrize("name", [name for name in build.BUILDS if name != "plain"])
@pytest.mark.skipif(BUILD != "plain", reason="this is a process that it starts")
def test_in_the_other_builds(name: str) -> None:
    run_in_build(name, __file__)
