"""The planners of the CUDA kernels: what they choose, and that nothing they choose exceeds a grid."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cuda_kernels import BUILD, OPS
from tests.emulator import build

pytestmark = [
    pytest.mark.skipif(build.cuda_headers() is None, reason="no CUDA headers: neither a toolkit nor a package"),
    pytest.mark.skipif(BUILD not in ("plain", "coverage"), reason="planners run on the host in every build"),
]

MAX_GRID = (2**31 - 1, 65535, 65535)
FAMILIES = ("depthwise", "grouped")

# (C, H, stride) of MobileNet-V1's depthwise layers.
MOBILENET = ((32, 112, 1), (64, 112, 2), (128, 56, 1), (128, 56, 2), (256, 28, 1), (256, 28, 2), (512, 14, 1))


@pytest.fixture(scope="module")
def module() -> Any:
    return build.load(BUILD)


def make_problem(
    module: Any,
    n: int,
    c: int,
    size: int,
    k: int | None = None,
    groups: int | None = None,
    filter_size: int = 3,
    stride: int = 1,
    layout: str = "nhwc",
    dtype: str = "float16",
) -> Any:
    """A problem with dense tensors, padded so that the size stays."""
    k = c if k is None else k
    params = module.ConvParams()
    out = (size - 1) // stride + 1
    values = {"N": n, "C": c, "H": size, "W": size, "K": k, "R": filter_size, "S": filter_size, "P": out, "Q": out}
    values |= {"groups": c if groups is None else groups, "stride_h": stride, "stride_w": stride}
    values |= {"pad_h": filter_size // 2, "pad_w": filter_size // 2, "dilation_h": 1, "dilation_w": 1, "activation": 0}
    for name, value in values.items():
        setattr(params, name, value)

    def strides(channels: int, side: int) -> Any:
        if layout == "nhwc":
            return module.Strides4(side * side * channels, 1, side * channels, channels)
        return module.Strides4(side * side * channels, side * side, side, 1)

    params.x_strides, params.y_strides = strides(c, size), strides(k, out)
    params.layout, params.dtype = getattr(module.Layout, layout), getattr(module.DType, dtype)
    problem = module.Problem()
    problem.params = params
    return problem


def configs_of(module: Any, family: str, op: str, problem: Any) -> list[Any]:
    return list(getattr(module, f"{family}_{op}_configs")(problem))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_mobilenet_runs_on_the_kernels_made_for_it(module: Any, dtype: str, layout: str, op: str) -> None:
    for c, size, stride in MOBILENET:
        for n in (1, 128):
            problem = make_problem(module, n, c, size, stride=stride, layout=layout, dtype=dtype)
            best = configs_of(module, "depthwise", op, problem)[0]
            assert str(best).startswith(f"depthwise_{op}_{layout}"), best
            assert best.block[0] * best.block[1] * best.block[2] <= 1024
            assert best.shared_bytes <= problem.device.shared_bytes_per_block


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_resnet_runs_on_tensor_cores(module: Any, dtype: str, layout: str, op: str) -> None:
    for c, k, size, filter_size, stride in (
        (64, 64, 56, 3, 1),
        (64, 128, 56, 3, 2),
        (256, 256, 14, 3, 1),
        (3, 64, 224, 7, 2),
    ):
        problem = make_problem(module, 128, c, size, k, 1, filter_size, stride, layout, dtype)
        best = configs_of(module, "grouped", op, problem)[0]
        assert str(best).startswith(f"grouped_{op}_nhwc"), best
        assert best.converts == (layout == "nchw")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("width", [4, 8, 16, 32])
def test_narrow_groups_have_their_own_kernel(module: Any, width: int, op: str) -> None:
    for stride in (1, 2):
        problem = make_problem(module, 8, 32 * width, 28, groups=32, stride=stride)
        assert str(configs_of(module, "grouped", op, problem)[0]).startswith(f"grouped_{op}_narrow_nhwc")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_grid_is_exceeded(module: Any, family: str, dtype: str, layout: str, op: str) -> None:
    """Tensors past 2^31 elements, and more images, channels or groups than a grid's y and z hold."""
    sizes = ((2**20, 64, 56), (3, 2**17, 9), (100_000, 8, 7), (2, 16, 20_000))
    for n, c, size in sizes:
        problem = make_problem(
            module, n, c, size, groups=None if family == "depthwise" else 1, layout=layout, dtype=dtype
        )
        configs = configs_of(module, family, op, problem)
        assert configs
        for config in configs:
            for axis, blocks in enumerate(config.grid):
                assert 1 <= blocks <= MAX_GRID[axis], (n, c, size, str(config))


@pytest.mark.parametrize("op", OPS)
def test_the_last_choice_takes_anything(module: Any, op: str) -> None:
    for family in FAMILIES:
        groups = None if family == "depthwise" else 1
        problem = make_problem(module, 1, 7, 9, groups=groups, filter_size=4, stride=3, dtype="float64")
        (only,) = configs_of(module, family, op, problem)
        assert "general" in str(only)


def test_parts_of_a_weight_gradient_follow_from_problem_and_device(module: Any) -> None:
    problem = make_problem(module, 128, 256, 28)
    first = configs_of(module, "depthwise", "backward_weight", problem)[0]
    assert str(configs_of(module, "depthwise", "backward_weight", problem)[0]) == str(first)
    assert first.parts >= 1
    assert module.workspace_bytes(problem, first) == first.parts * 256 * 10 * 4

    few = make_problem(module, 1, 256, 7)
    assert configs_of(module, "depthwise", "backward_weight", few)[0].parts <= first.parts


def test_tf32_is_used_only_if_allowed(module: Any) -> None:
    problem = make_problem(module, 8, 64, 28, groups=1, dtype="float32")
    assert not any(config.tf32 for config in configs_of(module, "grouped", "forward", problem))
    problem.allow_tf32 = True
    assert configs_of(module, "grouped", "forward", problem)[0].tf32
    half = make_problem(module, 8, 64, 28, groups=1)
    half.allow_tf32 = True
    assert not any(config.tf32 for config in configs_of(module, "grouped", "forward", half))


def test_a_filter_is_packed_only_if_it_has_to_be(module: Any) -> None:
    problem = make_problem(module, 8, 64, 28, groups=1)
    assert configs_of(module, "grouped", "forward", problem)[0].packs_filter
    problem.filter_channels_last = True
    assert not configs_of(module, "grouped", "forward", problem)[0].packs_filter
    pointwise = make_problem(module, 8, 64, 28, groups=1, filter_size=1)
    assert not configs_of(module, "grouped", "forward", pointwise)[0].packs_filter


def test_a_larger_problem_gets_a_larger_tile(module: Any) -> None:
    def tile(n: int, c: int, size: int) -> int:
        best = configs_of(module, "grouped", "forward", make_problem(module, n, c, size, groups=1))[0]
        return best.tile_h * best.tile_w

    assert tile(128, 256, 28) > tile(1, 64, 7)


@pytest.mark.parametrize("op", OPS[:2])
def test_few_outputs_and_many_channels_are_split(module: Any, op: str) -> None:
    few = configs_of(module, "grouped", op, make_problem(module, 1, 512, 7, groups=1))
    assert few[0].parts > 1
    assert few[0].grid[2] == few[0].parts
    assert not all(config.parts for config in few), "the same tile without parts is a choice too"
    # What the parts save must be more than the second stage costs, and there must be work for each.
    assert configs_of(module, "grouped", op, make_problem(module, 128, 512, 7, groups=1))[0].parts == 0
    assert configs_of(module, "grouped", op, make_problem(module, 1, 64, 7, groups=1, filter_size=1))[0].parts == 0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shared_kib", [227, 163, 99, 64])
def test_tiles_fit_the_shared_memory_of_the_device(module: Any, shared_kib: int, op: str) -> None:
    problem = make_problem(module, 128, 256, 28, groups=1)
    problem.device.shared_bytes_per_block = shared_kib * 1024
    problem.device.shared_bytes_per_multiprocessor = (shared_kib + 1) * 1024
    configs = configs_of(module, "grouped", op, problem)
    assert all(config.shared_bytes <= shared_kib * 1024 for config in configs)
    assert "general" not in str(configs[0])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_any_number_of_channels_runs_on_tensor_cores(module: Any, layout: str, op: str) -> None:
    for c, k, filter_size in ((3, 10, 3), (58, 58, 1), (116, 1001, 1), (17, 16, 5)):
        problem = make_problem(module, 4, c, 14, k, 1, filter_size, layout=layout)
        best = configs_of(module, "grouped", op, problem)[0]
        assert str(best).startswith(f"grouped_{op}_nhwc"), best
        assert (best.padded_channels, best.padded_outputs) == tuple(0 if n % 8 == 0 else -(-n // 8) * 8 for n in (c, k))


@pytest.mark.parametrize("op", OPS)
def test_tensors_that_are_not_aligned_are_copied(module: Any, op: str) -> None:
    problem = make_problem(module, 4, 64, 14, groups=1)
    problem.alignment = 2
    best = configs_of(module, "grouped", op, problem)[0]
    assert (best.padded_channels, best.padded_outputs) == (64, 64)
    problem.alignment = 16
    problem.params.x_strides = module.Strides4(14 * 14 * 67, 1, 14 * 67, 67)
    best = configs_of(module, "grouped", op, problem)[0]
    assert (best.padded_channels, best.padded_outputs) == (64, 0)


def wgmma_problem(module: Any, *args: Any, **kwargs: Any) -> Any:
    problem = make_problem(module, *args, **kwargs)
    problem.device.wgmma = True
    return problem


@pytest.mark.parametrize("op", OPS[:2])
def test_wgmma_comes_after_its_twin_unless_preferred(module: Any, op: str) -> None:
    """Nothing has been measured on a card."""
    problem = wgmma_problem(module, 128, 256, 28, groups=1)
    names = [str(config).split()[0] for config in configs_of(module, "grouped", op, problem)]
    assert names[0] == f"grouped_{op}_nhwc"
    assert names[-3:] == [*[f"grouped_{op}_wgmma_nhwc"] * 2, f"grouped_{op}_general"]
    problem.prefer_wgmma = True
    names = [str(config).split()[0] for config in configs_of(module, "grouped", op, problem)]
    assert names[:3] == [*[f"grouped_{op}_wgmma_nhwc"] * 2, f"grouped_{op}_nhwc"]


@pytest.mark.parametrize("op", OPS[:2])
def test_wgmma_takes_the_wide_tile_where_it_fills_the_device(module: Any, op: str) -> None:
    for n, c, columns in ((128, 256, 256), (128, 128, 128), (1, 256, 128)):
        problem = wgmma_problem(module, n, c, 14, groups=1)
        problem.prefer_wgmma = True
        assert configs_of(module, "grouped", op, problem)[0].tile_w == columns


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"},
        {"c": 32},
        {"c": 96, "groups": 2},  # a line would hold channels of two groups
        {"filter_size": 257},  # padding of 128 pixels
        {"stride": 9},
        {"device": False},
        {"stride_of_images": 0},
    ],
    ids=str,
)
def test_wgmma_refuses_what_a_tensor_map_has_no_room_for(module: Any, change: dict[str, Any], op: str) -> None:
    values = {"n": 2, "c": 64, "size": 300, "groups": 1, **change}
    has_wgmma, stride_of_images = values.pop("device", True), values.pop("stride_of_images", None)
    problem = make_problem(module, **values)
    problem.device.wgmma = has_wgmma
    if stride_of_images is not None:
        params = problem.params
        params.x_strides.n = params.y_strides.n = stride_of_images
    assert not any("wgmma" in str(config) for config in configs_of(module, "grouped", op, problem))


def test_configs_print_what_they_are(module: Any) -> None:
    problem = make_problem(module, 8, 64, 28, groups=1, layout="nchw")
    text = str(configs_of(module, "grouped", "forward", problem)[0])
    for part in ("grouped_forward_nhwc", "grid=", "block=", "tile_h=", "packs_filter", "converts"):
        assert part in text, text
