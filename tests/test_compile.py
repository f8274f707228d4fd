"""torch.compile, dynamic shapes and torch.export see cnnext's operators, whole, and give what eager gives."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import cnnext
from tests.cases import apply_op, case, plain_conv2d, random_operands

GEOMETRY = {
    "depthwise": case("dw", (2, 8, 9, 10), 8, 3, stride=2, padding=1, groups=8),
    "grouped": case("grouped", (2, 8, 9, 10), 12, 3, padding=1, groups=4),
    "pointwise": case("pw", (2, 8, 9, 10), 6, 1),
}


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Network(nn.Module):
    """One module of each kind, with what usually stands between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cnnext.GroupedConv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.block = cnnext.DepthwiseSeparableConv2d(8, 12, 3, padding=1)
        self.head = cnnext.PointwiseConv2d(12, 5)
        self.reflect = cnnext.DepthwiseConv2d(5, 5, 3, padding="same", padding_mode="reflect")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.reflect(self.head(self.block(x))).mean((2, 3))


def _loss_and_gradients(model: nn.Module, call: object, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    output = call(x)  # type: ignore[operator]
    output.square().sum().backward()
    return [output.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_training_step_of_a_network(memory_format: torch.memory_format) -> None:
    model = Network().to(memory_format=memory_format)
    twin = copy.deepcopy(model)
    x = torch.randn(2, 3, 17, 18).contiguous(memory_format=memory_format)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    actual, expected = _loss_and_gradients(model, compiled, x), _loss_and_gradients(twin, twin, x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_inductor() -> None:
    """Inductor hands the operator the strides that it was traced with, whatever it fuses around it."""
    entry = GEOMETRY["depthwise"]
    x, w, bias = random_operands(entry, torch.float32)
    x = x.contiguous(memory_format=torch.channels_last)

    def function(x: torch.Tensor) -> torch.Tensor:
        return apply_op("depthwise", entry, x * 2 - 1, w, bias, activation="silu") + 1

    compiled = torch.compile(function, fullgraph=True, backend="inductor", dynamic=False)
    actual, expected = compiled(x), function(x)
    assert actual.stride() == expected.stride()
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("op", GEOMETRY)
def test_dynamic_shapes_compile_once(op: str) -> None:
    entry = GEOMETRY[op]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x, w, bias: apply_op(op, entry, x, w, bias, activation="relu6"),
        fullgraph=True,
        backend=counter,
        dynamic=True,
    )
    _, w, bias = (t.requires_grad_() for t in random_operands(entry, torch.float32))
    for shape in ((5, 8, 9, 10), (6, 8, 12, 11), (7, 8, 17, 16)):  # in the first, no size of the filter's
        x = torch.randn(shape, requires_grad=True)
        actual = compiled(x, w, bias)
        expected = torch.nn.functional.relu6(plain_conv2d(entry, x, w, bias))
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            torch.autograd.grad(actual.square().sum(), (x, w, bias)),
            torch.autograd.grad(expected.square().sum(), (x, w, bias)),
            rtol=1e-4,
            atol=1e-4,
        )
    assert counter.frame_count == 1


@pytest.mark.parametrize("op", GEOMETRY)
def test_the_graph_holds_the_operator_itself(op: str) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph

    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=keep)
    operands = random_operands(GEOMETRY[op], torch.float32)
    torch.compile(lambda *args: apply_op(op, GEOMETRY[op], *args), fullgraph=True, backend=backend)(*operands)
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert any(target.startswith(f"cnnext.{op}_conv2d") for target in targets), targets


def test_compile_under_autocast() -> None:
    entry = GEOMETRY["depthwise"]
    operands = random_operands(entry, torch.float32)
    compiled = torch.compile(lambda *args: apply_op("depthwise", entry, *args), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = compiled(*operands), apply_op("depthwise", entry, *operands)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, expected)


def test_export_and_load(tmp_path: Path) -> None:
    model = Network().eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "network.pt2")
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    for n in (2, 7):
        x = torch.randn(n, 3, 16, 16)
        torch.testing.assert_close(loaded(x), model(x))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"cnnext.depthwise_conv2d.default", "cnnext.pointwise_conv2d.default"} <= targets


def test_make_fx_with_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    entry = GEOMETRY["grouped"]
    with FakeTensorMode():
        x = torch.empty(entry.input_shape).to(memory_format=torch.channels_last)
        output = apply_op("grouped", entry, x, torch.empty(entry.weight_shape), torch.empty(entry.k))
    assert tuple(output.shape) == entry.output_shape
    assert output.is_contiguous(memory_format=torch.channels_last)
