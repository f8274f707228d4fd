"""What surrounds the Triton kernels: settings, timing them, grids, parts, precision, refusals."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._prims_common import suggest_memory_format

from cnnext import backends
from cnnext.backends import triton as backend
from cnnext.backends.call import ConvCall
from cnnext.ops import Geometry
from cnnext.triton_kernels.problem import dense, input_precision, is_wide, next_power_of_2, suggests_channels_last

pytest.importorskip("triton")

from cnnext.triton_kernels import depthwise, grouped, grouped_narrow, launching, parts, pointwise, separable


def _meta(*shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> torch.Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


def test_settings_are_few_and_fit_the_problem() -> None:
    every: list[tuple[launching.Settings, ...]] = []
    for channels_last in (False, True):
        for extent in (1, 3, 17, 64, 1000):
            every += [depthwise.correlate_settings(extent, 4096, columns, channels_last) for columns in (3, 7)]
            every.append(depthwise.backward_weight_settings(extent, 9, channels_last))
            every += [grouped_narrow.narrow_settings(extent, 3, phases, channels_last) for phases in (1, 4)]
            for dtype, precision in ((torch.float32, "ieee"), (torch.float32, "tf32"), (torch.float16, "ieee")):
                for long_steps in (False, True):
                    every.append(grouped.product_settings(4096, extent, extent, dtype, precision, long_steps))
                every.append(grouped.backward_weight_settings(extent, extent, dtype, precision))
                every.append(separable.separable_settings(extent, dtype, precision))
    for candidates in every:
        assert 1 <= len(candidates) <= 3
        assert len({str(one) for one in candidates}) == len(candidates)
        for one in candidates:
            assert all(size & (size - 1) == 0 for size in one.blocks.values())
            assert one.warps in (4, 8)


def test_parts_follow_from_the_problem() -> None:
    assert parts.count_parts(1, 9) == 1
    assert parts.count_parts(513, 9) == 2
    assert parts.count_parts(10**7, 9) == 1024
    assert parts.count_parts(10**7, 2**20) == 4
    assert parts.count_parts(10**7, 2**23) == 1


def test_which_offsets_need_64_bits() -> None:
    assert not is_wide(_meta(1, 64, 4096, 4096))
    assert is_wide(_meta(2, 64, 4096, 4096))
    assert is_wide(_meta(1, 8, 4, 4), torch.empty(0, device="meta").as_strided((2, 1, 1, 1), (2**31, 1, 1, 1)))


def test_sizes_are_rounded_up() -> None:
    assert [next_power_of_2(value) for value in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]


def test_slices_of_wider_tensors_are_not_copied() -> None:
    wide = torch.empty(2, 9, 8, 7)
    assert dense(wide[:, 1:5, 2:, 1:3], False).data_ptr() == wide[:, 1:5, 2:, 1:3].data_ptr()
    assert dense(wide, True).is_contiguous(memory_format=torch.channels_last)
    assert dense(wide[..., ::2], False).is_contiguous()


def test_memory_formats_are_told_as_torch_tells_them() -> None:
    """Sizes of 1, where a tensor is of both formats at once, slices and permutations included."""
    for shape in itertools.product((1, 2, 3), repeat=4):
        x = torch.empty(shape)
        tensors = [x, x.contiguous(memory_format=torch.channels_last), torch.empty(4, 6, 5, 4)[:, 1:, ::2]]
        for tensor in [*tensors, *(t.permute(order) for t in tensors for order in ((1, 0, 2, 3), (0, 3, 1, 2)))]:
            assert suggests_channels_last(tensor) == (suggest_memory_format(tensor) == torch.channels_last)


def test_tf32_is_a_matter_of_pytorchs_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(launching, "run", lambda kernel, candidates, programs, arguments: seen.append(arguments))
    geometry = Geometry((1, 1), (0, 0), (1, 1), 1)
    for allowed in (False, True):
        # Flags that are set for good may have been frozen by whoever imported torch's own test helpers.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            expected = "tf32" if allowed else "ieee"
            assert backends.cuda.allows_tf32() is allowed, "one rule for both kinds of kernels"
            assert input_precision(torch.float32) == expected
            assert input_precision(torch.float16) == "ieee"
            pointwise.forward(_meta(1, 16, 4, 4), _meta(16, 16, 1, 1), None, geometry, 0)
            grouped.forward(_meta(1, 16, 4, 4), _meta(16, 16, 3, 3), None, geometry, 0)
            grouped.backward_weight(_meta(1, 16, 2, 2), _meta(1, 16, 4, 4), (16, 16, 3, 3), geometry, True, False)
            assert [arguments["PRECISION"] for arguments in seen if "PRECISION" in arguments] == [expected] * 3
            seen.clear()


class _Kernel:
    """Stands for a kernel: remembers how it is launched."""

    def __init__(self) -> None:
        self.launches: list[tuple[tuple[int, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda **arguments: self.launches.append((grid, arguments))


CANDIDATES = tuple(launching.settings(4, BLOCK=size) for size in (64, 32, 16))


def test_the_first_settings_are_launched() -> None:
    kernel = _Kernel()
    launching.run(kernel, CANDIDATES, lambda chosen: 128 // chosen.blocks["BLOCK"], {"x": torch.empty(3), "n": 3})
    ((grid, arguments),) = kernel.launches
    assert grid == (2,)
    assert (arguments["BLOCK"], arguments["num_warps"], arguments["num_stages"], arguments["n"]) == (64, 4, 2, 3)
    assert arguments["enable_fp_fusion"] is True, "a default of Triton's that changes"
    assert str(CANDIDATES[0]) == "BLOCK=64 warps=4 stages=2"


def test_benchmark_keeps_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, timed = _Kernel(), []

    def time(launch: Any) -> float:
        launch()
        timed.append(kernel.launches[-1][1]["BLOCK"])
        return {64: 3.0, 32: 1.0, 16: 2.0}[timed[-1]]

    monkeypatch.setattr(launching, "_time", time)
    monkeypatch.setattr(launching, "_fastest", {})
    monkeypatch.setattr(backends, "benchmark", True)
    for problem in (3, 3, 4):
        launching.run(kernel, CANDIDATES, lambda chosen: 1, {"x": torch.empty(3), "n": problem})
        assert kernel.launches[-1][1]["BLOCK"] == 32
    assert timed == [64, 32, 16] * 2, "each problem is timed once"
    monkeypatch.setattr(launching, "_is_capturing", lambda: True)
    launching.run(kernel, CANDIDATES, lambda chosen: 1, {"x": torch.empty(3), "n": 5})
    assert kernel.launches[-1][1]["BLOCK"] == 64, "nothing can be timed while a graph is captured"
    torch.use_deterministic_algorithms(True)
    launching.run(kernel, CANDIDATES, lambda chosen: 1, {"x": torch.empty(3), "n": 3})
    assert kernel.launches[-1][1]["BLOCK"] == 64, "what was fastest here need not be in the next process"


def test_a_grid_that_is_too_large_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="2147483648 programs"):
        launching.run(_Kernel(), CANDIDATES, lambda chosen: 2**31, {"x": torch.empty(1)})


def _call(**changes: Any) -> ConvCall:
    x, w = torch.ones(1, 4, 6, 6), torch.ones(4, 1, 3, 3)
    return ConvCall("depthwise", x, w, None, (1, 1), (0, 0), (1, 1), 4, 0)._replace(**changes)


class _OnCuda(torch.Tensor):
    """Says that it is on a GPU."""

    is_cuda = True
    is_cpu = False
    device = torch.device("cuda", 0)


def test_refusals_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cuda = _call(input=torch.ones(1, 4, 6, 6).as_subclass(_OnCuda))
    for (major, minor), reason in (
        ((7, 5), "compute capability 7.5 of cuda:0 is below 8.0"),
        ((8, 0), None),
        ((10, 3), None),
    ):
        monkeypatch.setattr(backend, "_device_reasons", {})
        properties = SimpleNamespace(major=major, minor=minor)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index, properties=properties: properties)
        assert backend.refuses(on_cuda) == reason
    assert "float64" in str(backend.refuses(_call(input=torch.ones(1, 4, 6, 6).double())))
    assert "meta" in str(backend.refuses(_call(input=_meta(1, 4, 6, 6))))
    monkeypatch.setattr(backend, "INTERPRETED", False)
    assert backend.refuses(_call()) == "the input is on cpu"


def test_triton_is_chosen_on_a_gpu_where_cuda_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried after the CUDA kernels and before ATen."""
    monkeypatch.setattr(backend, "refuses", lambda call: None)
    x = torch.ones(1, 4, 6, 6).as_subclass(_OnCuda)
    monkeypatch.setitem(backends._CANDIDATES, "cuda", (backends._BACKENDS["triton"], backends._BACKENDS["aten"]))
    assert backends.choose(_call(input=x)).name == "triton"
    assert backends._TRIED_ON["cuda"] == ("cuda", "triton", "aten")

    monkeypatch.setattr(backends.cuda, "unavailable", lambda: "not built")
    monkeypatch.setattr(backend, "_REASON", None)
    lines = dict(
        line.split(": ", 1) for line in backends.explain("depthwise_conv2d", x, torch.ones(4, 1, 3, 3)).splitlines()
    )
    assert lines["cuda"] == "cannot run this: not built"
    assert lines["triton"] == "chosen"
    assert lines["aten"] == "could run this, but an earlier one is chosen"
