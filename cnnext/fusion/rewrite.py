"""Rewrites a torch.fx graph: chains of nodes around each convolution become one call of a fused module.

    convolution -> batch norm -> + residual -> activation        FusedConv2d
    depthwise FusedConv2d -> 1x1 FusedConv2d                     FusedSeparableConv2d

A node is taken into a chain if the chain before it has no other reader. The fused call stands where the last node of
the chain stood, so that a residual that is computed in between exists; a chain ends before that move would carry a read
past a node that overwrites a tensor.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx, nn

from cnnext.fusion.match import (
    Conv,
    Norm,
    NotFusable,
    activation_of,
    addends_of,
    conv_of,
    is_dimension_check,
    is_in_place,
    module_of,
    norm_of,
    passed_through,
)
from cnnext.fusion.modules import FusedConv2d, FusedSeparableConv2d

__all__ = ["fold_norm", "fuse_graph"]


def fold_norm(weight: Tensor, bias: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
    """The filter and bias of a convolution with the batch norm behind it, computed in float64 and rounded once.

    Args:
        weight: (K, C / groups, R, S).
        bias: (K), or None.
        norm: of K channels.

    Returns:
        Both with the dtype and the memory format of `weight`.
    """
    scale = (norm.variance.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.mean.double() if bias is None else bias.double() - norm.mean.double()
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    folded = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
    return folded.to(weight.dtype), shift.to(weight.dtype)


def _label(node: fx.Node) -> tuple[str, str]:
    """A node as the report names it: where it is in the model, and what it is."""
    module = module_of(node)
    if module is not None:
        return str(node.target), type(module).__name__
    name = getattr(node.target, "__name__", str(node.target))
    return node.name, name.partition(".")[0]


def _sole_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _eliminate_dead_code(graph: fx.Graph) -> None:
    """Takes out nodes that nobody reads, unless they overwrite what others read."""
    graph.eliminate_dead_code(lambda node: node.is_impure() or is_in_place(node))


def _simplify(graph: fx.Graph) -> None:
    """Takes out nodes that do nothing, and assertions that hold, which would count as readers of what they look at."""
    for node in list(graph.nodes):
        same = passed_through(node)
        if same is not None:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
        elif is_dimension_check(node):
            graph.erase_node(node)
    _eliminate_dead_code(graph)


class _Rewriter:
    def __init__(self, graph_module: fx.GraphModule) -> None:
        self._root = graph_module
        self._graph = graph_module.graph
        _simplify(self._graph)
        self._calls = Counter(str(node.target) for node in self._graph.nodes if node.op == "call_module")
        self._order = {node: index for index, node in enumerate(self._graph.nodes)}
        # Nodes that overwrite tensors and have not become part of a fused call, which overwrites nothing.
        self._overwriting = {node for node in self._graph.nodes if is_in_place(node)}

    def run(self) -> None:
        for node in list(self._graph.nodes):
            try:
                conv = conv_of(node)
                if conv is not None:
                    self._fuse_conv(node, conv)
            except NotFusable as reason:
                self._leave(node, str(reason))
        for node in list(self._graph.nodes):
            self._pair(node)
        _eliminate_dead_code(self._graph)
        self._root.delete_all_unused_submodules()
        self._root.recompile()

    def _leave(self, node: fx.Node, reason: str) -> None:
        module = module_of(node)
        if module is not None:
            module._cnnext_left = reason  # type: ignore[assignment]  # read by the report

    def _is_movable(self, first: fx.Node, last: fx.Node) -> bool:
        """Whether what `first` reads can be read where `last` stands."""
        between = range(self._order[first] + 1, self._order[last])
        return not any(self._order[node] in between for node in self._overwriting)

    def _fuse_conv(self, node: fx.Node, conv: Conv) -> None:
        if node.op == "call_module" and self._calls[conv.name] > 1:
            raise NotFusable("it is called more than once")
        chain = [node]
        weight, bias = conv.weight, conv.bias
        residual: fx.Node | None = None
        activation: str | None = None

        def follow() -> fx.Node | None:
            user = _sole_user(chain[-1])
            return user if user is not None and user.args and self._is_movable(node, user) else None

        user = follow()
        norm = None if user is None else norm_of(user)
        if user is not None and norm is not None and norm.input is chain[-1] and norm.mean.numel() == weight.shape[0]:
            weight, bias = fold_norm(weight, bias, norm)
            chain.append(user)
            user = follow()
        addends = None if user is None else addends_of(user)
        if user is not None and addends is not None and addends[0] is not addends[1]:
            other = addends[1] if addends[0] is chain[-1] else addends[0]
            overwritten = addends[0] if is_in_place(user) else None
            if overwritten is not other or len(other.users) == 1:
                residual = other
                chain.append(user)
                user = follow()
        if user is not None and user.args[0] is chain[-1]:
            activation = activation_of(user)
            if activation is not None:
                chain.append(user)
        parts = tuple(_label(part) for part in chain)
        fused = FusedConv2d(
            weight.detach().clone(memory_format=torch.preserve_format),
            None if bias is None else bias.detach().clone(),
            *(conv.stride, conv.padding, conv.dilation, conv.groups, activation, parts),
        )
        self._replace(chain, self._place_for(node, conv.name), fused, (conv.input, *([residual] if residual else [])))

    def _place_for(self, node: fx.Node, name: str) -> str:
        """The name for a fused module: that of the convolution's own module, if nothing else lives there."""
        if node.op == "call_module":
            return name
        try:
            holder: nn.Module | None = self._root.get_submodule(name) if name else None
        except AttributeError:
            holder = None
        # torch.export keeps the parameters of a module in a plain nn.Module.
        if holder is not None and type(holder) is nn.Module and not any(holder.children()):
            return name
        taken = {key.partition(".")[0] for key, _ in self._root.named_modules()}
        index = sum(key.startswith("fused_conv") for key in taken)
        return f"fused_conv{index}"

    def _replace(self, chain: list[fx.Node], name: str, module: nn.Module, args: tuple[fx.Node, ...]) -> None:
        self._root.add_submodule(name, module)
        last = chain[-1]
        with self._graph.inserting_before(last):
            call = self._graph.call_module(name, args)
        self._order[call] = self._order[last]
        last.replace_all_uses_with(call)
        for node in reversed(chain):
            self._overwriting.discard(node)
            self._graph.erase_node(node)

    def _pair(self, node: fx.Node) -> None:
        """A depthwise convolution and the 1x1 convolution that alone reads it become one block."""
        depthwise, user = module_of(node), _sole_user(node)
        if not isinstance(depthwise, FusedConv2d) or not depthwise.is_depthwise() or len(node.args) != 1:
            return
        pointwise = None if user is None else module_of(user)
        if user is None or not isinstance(pointwise, FusedConv2d) or not pointwise.is_pointwise():
            return
        if user.args[0] is not node or not self._is_movable(node, user):
            return
        block = FusedSeparableConv2d(depthwise, pointwise)
        input = node.args[0]
        self._replace([node, user], str(node.target), block, (input, *user.args[1:]))  # type: ignore[arg-type]


def fuse_graph(graph_module: fx.GraphModule) -> None:
    """Fuses what can be fused in a graph, in place; a convolution left alone keeps the reason as an attribute."""
    _Rewriter(graph_module).run()
