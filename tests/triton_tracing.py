"""What torch.compile makes of the operators of cnnext_triton: `python -m tests.triton_tracing`, not interpreted.

No GPU is needed: graphs are captured and never run. Triton must believe in one to say which arguments a kernel changes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch._functorch.aot_autograd import aot_module_simplified
from triton.backends.compiler import GPUTarget

from cnnext.triton_kernels.operators import FAMILIES, separable_conv2d


class _Driver:
    """A GPU that can only be asked what it is."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class _Captured(Exception):
    pass


def capture(function: Any, *args: Any, dynamic: bool = False) -> torch.fx.GraphModule:
    """The graph that a compiler would get from `function`."""
    graphs: list[torch.fx.GraphModule] = []

    def compiler(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        raise _Captured

    def backend(graph: Any, inputs: Any) -> Any:
        return aot_module_simplified(graph, inputs, fw_compiler=compiler)

    torch._dynamo.reset()
    try:
        torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)(*args)
    except Exception as error:
        if not graphs:
            raise error
    return graphs[0]


def _launches(graph: torch.fx.GraphModule) -> list[list[str]]:
    """The arguments that each launch in the graph changes."""
    wrapper = torch.ops.higher_order.triton_kernel_wrapper_functional
    return [list(node.kwargs["tensors_to_clone"]) for node in graph.graph.nodes if node.target is wrapper]


def _operators(graph: torch.fx.GraphModule) -> list[str]:
    targets = [node.target for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return [str(target) for target in targets if target.namespace == "cnnext_triton"]


def main() -> None:
    """Fails by assertion."""
    triton.runtime.driver.set_active(_Driver())
    x, w, bias = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3), torch.randn(8)
    dense, second = torch.randn(8, 8, 3, 3), torch.randn(4, 8, 1, 1)
    ones = [1, 1]
    depthwise, grouped, pointwise = (FAMILIES[name] for name in ("depthwise", "grouped", "pointwise"))
    forward = (ones, ones, ones)
    for name, function, changed in (
        ("depthwise", lambda: depthwise.forward(x, w, bias, *forward, 1).relu(), [["output"]]),
        ("dense", lambda: grouped.forward(x, dense, None, *forward, 1, 0), [["output"]]),
        ("narrow", lambda: grouped.forward(x, dense[:, :4], None, *forward, 2, 0), [["output"]]),
        ("pointwise", lambda: pointwise.forward(x, second, None, ones, [0, 0], ones, 0), [["output"]]),
        ("input", lambda: depthwise.backward_input(x, w, x.shape, *forward, False), [["output"]]),
        (
            "weight",
            lambda: depthwise.backward_weight(x, x, w.shape, *forward, False, False),
            [["partials"], ["grad_weight"]],
        ),
        (
            "weight and bias",
            lambda: grouped.backward_weight(x, x, dense.shape, *forward, 1, True, False),
            [["partials"], ["grad_weight", "grad_bias"]],
        ),
        ("separable", lambda: separable_conv2d(x, w, bias, second, None, *forward, 2, 2), [["output"]]),
    ):
        graph = capture(function)
        assert _launches(graph) == changed, (name, _launches(graph))
        assert _operators(graph) == [], name
    dynamic = capture(lambda t: depthwise.forward(t, w, None, *forward, 0), x, dynamic=True)
    assert _launches(dynamic) == []
    assert _operators(dynamic) == ["cnnext_triton.depthwise_conv2d.default"]
    exported = torch.export.export(_Layer(w), (x,))
    assert any("cnnext_triton" in str(node.target) for node in exported.graph.nodes)
    print("traced")


class _Layer(torch.nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return FAMILIES["depthwise"].forward(x, self.weight, None, [1, 1], [1, 1], [1, 1], 0)


if __name__ == "__main__":
    main()
