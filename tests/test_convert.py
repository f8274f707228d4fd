"""convert() swaps cnnext's modules into a model and leaves everything else as it was."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import cnnext

CNNEXT_MODULES = (cnnext.DepthwiseConv2d, cnnext.GroupedConv2d, cnnext.PointwiseConv2d)


class SpecialConv2d(nn.Conv2d):
    """A subclass that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class Model(nn.Module):
    """Every kind of layer that convert() has to tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleDict(
            {
                "depthwise": nn.Conv2d(8, 16, 3, padding=1, groups=8, bias=False),
                "grouped": nn.Conv2d(16, 16, 3, padding="same", groups=4, padding_mode="reflect"),
                "pointwise": nn.Conv2d(16, 8, 1),
                "grouped_1x1": nn.Conv2d(8, 8, 1, groups=2),
            }
        )
        self.norm = nn.BatchNorm2d(8)
        self.special = SpecialConv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.line = nn.Conv1d(8, 8, 3, padding=1)
        self.known = cnnext.GroupedConv2d(8, 8, 1)
        self.alias = self.blocks["pointwise"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dense(x)
        for block in self.blocks.values():
            x = block(x)
        x = self.known(self.up(self.special(self.norm(x))))
        return self.line(x.flatten(2))


KINDS: dict[str, type[nn.Module]] = {
    "dense": cnnext.GroupedConv2d,
    "blocks.depthwise": cnnext.DepthwiseConv2d,
    "blocks.grouped": cnnext.GroupedConv2d,
    "blocks.pointwise": cnnext.PointwiseConv2d,
    "blocks.grouped_1x1": cnnext.GroupedConv2d,
    "norm": nn.BatchNorm2d,
    "special": SpecialConv2d,
    "up": nn.ConvTranspose2d,
    "line": nn.Conv1d,
    "known": cnnext.GroupedConv2d,
    "alias": cnnext.PointwiseConv2d,
}


def _kinds(model: nn.Module) -> dict[str, type[nn.Module]]:
    return {name: type(model.get_submodule(name)) for name in KINDS}


@pytest.mark.parametrize("inplace", [False, True])
def test_every_layer_becomes_what_it_should(inplace: bool) -> None:
    model = Model().eval()
    before, x = _kinds(model), torch.randn(2, 3, 6, 6)
    expected, state = model(x), copy.deepcopy(model.state_dict())
    parameters = dict(model.named_parameters())
    converted = cnnext.convert(model, inplace=inplace)
    assert (converted is model) == inplace
    assert _kinds(converted) == KINDS
    if not inplace:
        assert _kinds(model) == before, "the original was changed"
    assert list(converted.state_dict()) == list(state)
    for name, parameter in converted.named_parameters():
        assert parameter is parameters[name], f"{name} is not shared"
    torch.testing.assert_close(converted(x), expected)
    assert converted.blocks["pointwise"] is converted.alias, "a shared module was torn apart"


def test_filter_chooses_by_module_and_name() -> None:
    seen: dict[str, nn.Module] = {}

    def only_grouped(module: nn.Conv2d, name: str) -> bool:
        seen[name] = module
        return module.groups > 1

    model = Model()
    converted = cnnext.convert(model, filter_fn=only_grouped)
    assert set(seen) >= {"dense", "blocks.depthwise", "blocks.grouped", "blocks.pointwise", "blocks.grouped_1x1"}
    assert not {"special", "up", "line", "norm"} & set(seen), "the filter is asked about Conv2d only"
    assert type(converted.dense) is nn.Conv2d
    assert type(converted.blocks["pointwise"]) is nn.Conv2d
    assert type(converted.blocks["depthwise"]) is cnnext.DepthwiseConv2d
    assert _kinds(cnnext.convert(model, filter_fn=lambda module, name: False)) == _kinds(model)


def test_training_one_trains_the_other() -> None:
    model = Model()
    converted = cnnext.convert(model)
    x = torch.randn(2, 3, 6, 6)
    optimizer = torch.optim.SGD(converted.parameters(), lr=0.1)
    converted(x).square().mean().backward()
    optimizer.step()
    assert model.dense.weight.grad is not None
    assert torch.equal(model.norm.running_mean, converted.norm.running_mean), "buffers are shared too"
    torch.testing.assert_close(model.eval()(x), converted.eval()(x))


def test_flags_hooks_and_attributes_stay() -> None:
    model = Model()
    model.blocks.eval()
    model.dense.weight.requires_grad_(False)
    model.dense.note = "kept"  # type: ignore[assignment]
    calls: list[str] = []
    model.dense.register_forward_hook(lambda module, args, output: calls.append("forward"))
    model.dense.register_forward_pre_hook(lambda module, args: calls.append("before"))
    model.blocks["depthwise"].register_full_backward_hook(lambda module, grad_in, grad_out: calls.append("backward"))
    converted = cnnext.convert(model)
    assert converted.training
    assert not converted.blocks["depthwise"].training
    assert not converted.dense.weight.requires_grad
    assert converted.dense.note == "kept"
    converted(torch.randn(1, 3, 6, 6)).sum().backward()
    assert calls == ["before", "forward", "backward"]


def test_a_model_that_is_a_convolution() -> None:
    conv = nn.Conv2d(4, 8, 3, groups=4)
    converted = cnnext.convert(conv)
    assert type(converted) is cnnext.DepthwiseConv2d
    assert converted.weight is conv.weight
    assert type(conv) is nn.Conv2d
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(converted(x), conv(x))
    assert cnnext.convert(conv, inplace=True) is conv
    assert type(conv) is cnnext.DepthwiseConv2d


def test_converting_twice_changes_nothing_more() -> None:
    once = cnnext.convert(Model())
    assert _kinds(cnnext.convert(once)) == _kinds(once)


def test_a_model_with_nothing_to_convert() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    assert [type(module) for module in cnnext.convert(model)] == [nn.Linear, nn.ReLU]


def test_converted_models_can_be_copied_and_pickled() -> None:
    converted = cnnext.convert(Model().eval())
    x = torch.randn(1, 3, 6, 6)
    for twin in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert _kinds(twin) == KINDS
        assert torch.equal(twin(x), converted(x))
        assert twin.dense.weight is not converted.dense.weight


def test_one_input_channel_of_one_group_is_dense_or_depthwise_alike() -> None:
    conv = nn.Conv2d(1, 6, 3)
    converted = cnnext.convert(conv)
    assert isinstance(converted, CNNEXT_MODULES)
    x = torch.randn(2, 1, 7, 7)
    torch.testing.assert_close(converted(x), conv(x))


def test_parametrized_convolutions_still_compute_what_they_did() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3, groups=4))
    model = nn.Sequential(conv, nn.ReLU())
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(cnnext.convert(model)(x), model(x))


@pytest.mark.parametrize("wrong", [None, 3, "model", torch.zeros(1), nn.Conv2d])
def test_only_modules_are_converted(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"nn\.Module"):
        cnnext.convert(wrong)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_models_of_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision.models", reason="needs torchvision")
    model = getattr(models, name)(weights=None).eval()
    converted = cnnext.convert(model)
    assert not any(type(module) is nn.Conv2d for module in converted.modules())
    assert list(converted.state_dict()) == list(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(converted(x), model(x), rtol=1e-3, atol=1e-4)
