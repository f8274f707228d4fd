"""The networks as backbones, and as tables of their layers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cnnext
from cnnext.models import __main__ as command
from cnnext.models import _parity

NAMES = cnnext.models.list_models()
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "networks.md"


def _sizes_only(name: str, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return cnnext.models.create_model(name, **kwargs).eval()


@pytest.mark.parametrize("name", NAMES)
def test_feature_maps_of_every_stride(name: str) -> None:
    """They have the channels and sizes that `feature_info` says, are the last of their stride, and have no head."""
    backbone = _sizes_only(name, features_only=True)
    channels, height, width = backbone.input_size
    maps = backbone(torch.zeros(2, channels, height, width, device="meta"))
    info = backbone.feature_info
    assert len(info) >= 3
    assert [feature_map.shape[1] for feature_map in maps] == info.channels()
    assert info.reduction() == [info.reduction()[0] << i for i in range(len(info))]
    for feature_map, reduction in zip(maps, info.reduction(), strict=True):
        # Layers without padding lose a border, of 7 pixels at most: LeNet's last.
        assert height / reduction - 7 <= feature_map.shape[2] <= height / reduction + 1
    assert not any(isinstance(module, nn.Linear) for module in backbone.modules())


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "resnet50", "densenet121", "mobilenetv1_100"])
def test_feature_info_is_timms(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model(name, pretrained=False, features_only=True).feature_info
    ours = _sizes_only({"mobilenetv1_100": "mobilenet_v1"}.get(name, name), features_only=True).feature_info
    assert ours.channels() == theirs.channels()
    assert ours.reduction() == theirs.reduction()


SMALL = {"mobilenet_v1": {"width_multiplier": 0.25}, "nin": {"table": "cifar10"}}
SLIM = ["lenet", "nin", "googlenet", "inception_v2", "resnet18", "densenet121", "squeezenet1_0", "mobilenet_v1"]


@pytest.mark.parametrize("name", SLIM)
def test_backbones_take_the_weights_of_classifiers(name: str) -> None:
    """Every weight of the backbone comes from the classifier's state dict, and the maps are those within it."""
    kwargs = SMALL.get(name, {})
    model = cnnext.models.create_model(name, **kwargs).eval()
    _parity.randomise(model)
    backbone = cnnext.models.create_model(name, features_only=True, **kwargs).eval()
    missing, unexpected = backbone.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all(key.startswith(("fc", "classifier", "f6", "output", "last_linear")) for key in unexpected)
    within: dict[str, torch.Tensor] = {}
    for key in backbone.feature_info.module_name():
        model.get_submodule(key).register_forward_hook(lambda m, args, y, key=key: within.update({key: y.clone()}))
    x = torch.randn(2, model.input_size[0], 33, 45)
    with torch.inference_mode():
        model(x)
        maps = backbone(x)
    for key, feature_map in zip(backbone.feature_info.module_name(), maps, strict=True):
        assert torch.equal(feature_map, within[key])
        assert feature_map.std() > 0.01


def test_some_of_the_maps() -> None:
    every = _sizes_only("resnet18", features_only=True)
    some = _sizes_only("resnet18", features_only=True, out_indices=(3, -4))
    assert some.feature_info.module_name() == ["layer3", "layer1"]
    assert some.feature_info == (every.feature_info[3], every.feature_info[1])
    assert [y.shape[1] for y in some(torch.zeros(1, 3, 64, 64, device="meta"))] == [256, 64]
    assert not hasattr(some, "layer4")
    assert [
        name for name, _ in _sizes_only("vgg16", features_only=True, out_indices=[0]).features.named_children()
    ] == [*"0123"]
    for out_indices in ((), (5,), (-6,)):
        with pytest.raises(ValueError, match="out_indices"):
            _sizes_only("resnet18", features_only=True, out_indices=out_indices)
    with pytest.raises(ValueError, match="features_only"):
        _sizes_only("resnet18", out_indices=(1,))


def test_backbones_train_and_export() -> None:
    backbone = cnnext.models.create_model("mobilenet_v1", features_only=True, width_multiplier=0.25)
    x = torch.randn(2, 3, 64, 64)
    sum(y.square().mean() for y in backbone(x)).backward()
    assert all(bool((p.grad != 0).any()) for p in backbone.parameters())
    exported = torch.export.export(backbone.eval(), (x,)).module()
    for ours, theirs in zip(exported(x), backbone(x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_networks_of_others_have_no_feature_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnext.models import registry

    monkeypatch.setitem(registry._BUILDERS, "plain", lambda num_classes=10: nn.Linear(3, num_classes))
    assert isinstance(cnnext.models.create_model("plain"), nn.Linear)
    with pytest.raises(TypeError, match="plain"):
        cnnext.models.create_model("plain", features_only=True)


def test_summary(capsys: pytest.CaptureFixture[str]) -> None:
    """The table of MobileNet-V1: the paper's columns, the sums of the paper, and the model as it was."""
    model = cnnext.models.mobilenet_v1()
    model.blocks[0].eval()
    table = cnnext.models.summary(model)
    lines = capsys.readouterr().out.splitlines()
    assert "\n".join(lines) == str(table)
    assert re.split(r"\s{2,}", lines[0]) == [
        "layer",
        "type / stride",
        "filter shape",
        "input size",
        "parameters",
        "multiply-adds",
        "backend",
    ]
    row = next(line for line in lines if line.startswith("blocks.1.0.conv_dw"))
    assert " ".join(row.split()) == "blocks.1.0.conv_dw conv dw / s2 3 x 3 x 1 x 64 112 x 112 x 64 576 1,806,336 cpu"
    row = next(line for line in lines if line.startswith("classifier"))
    assert " ".join(row.split()) == "classifier fc 1024 x 1000 1024 1,025,000 1,024,000"
    assert lines[-1].split() == ["sum", "4,231,976", "568,740,352"]
    assert table.parameters == 4_231_976
    assert table.multiply_adds == 568_740_352
    norms = sum(p.numel() for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    assert sum(row.parameters for row in table.rows) + norms == table.parameters
    assert len(repr(table)) < 100
    assert model.training
    assert not model.blocks[0].training
    assert not any(module._forward_hooks for module in model.modules())


def test_summary_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    class Net(nn.Sequential):
        input_size = (8, 6, 6)

    shared = cnnext.PointwiseConv2d(8, 8, bias=False)
    net = Net(
        nn.Conv2d(8, 8, 3, padding=1),
        cnnext.GroupedConv2d(8, 8, (3, 1), groups=2, stride=(1, 2), padding=1, padding_mode="reflect"),
        shared,
        shared,
    ).double()
    rows = cnnext.models.summary(net).rows
    assert [row.backend for row in rows] == ["aten", "cpu", "cpu", "cpu"]
    assert [row.parameters for row in rows] == [584, 104, 64, 0]
    assert [row.multiply_adds for row in rows] == [8 * 8 * 9 * 36, 8 * 4 * 3 * 24, 8 * 8 * 24, 8 * 8 * 24]
    assert rows[1].kind == "conv 2 groups / s1x2"
    assert rows[1].filter_shape == (3, 1, 4, 8)
    with cnnext.backends.use("aten"):
        assert {row.backend for row in cnnext.models.summary(net).rows} == {"aten"}
    assert cnnext.models.summary(net, (8, 12, 12)).rows[0].input_size == (8, 12, 12)
    del Net.input_size
    with pytest.raises(ValueError, match="input_size"):
        cnnext.models.summary(net)


def test_table_in_the_documentation() -> None:
    """Parameters and multiply-adds in docs/networks.md are those of the networks, and its errors are small."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert command.BEGIN in text
    table = text.partition(command.BEGIN)[2].partition(command.END)[0]
    rows = {
        cells[1]: cells for cells in ([c.strip() for c in line.split("|")] for line in table.splitlines()) if cells[1:]
    }
    assert {f"`{name}`" for name in NAMES} <= set(rows)
    for name in NAMES:
        cells = rows[f"`{name}`"]
        assert cells[4] == f"{sum(p.numel() for p in _sizes_only(name).parameters()):,}"
        if name in _parity.REFERENCES:
            assert cells[8] == cells[4]
            assert float(cells[9]) < 1e-4


def test_command_writes_into_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_PAPERS", {"lenet": "a paper"})
    monkeypatch.setattr(command, "list_models", lambda: ["lenet"])
    document = tmp_path / "document.md"
    document.write_text(f"before\n{command.BEGIN}\nold\n{command.END}\nafter\n")
    monkeypatch.setattr("sys.argv", ["models", str(document)])
    command.main()
    lines = document.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    assert any(line.startswith("| `lenet` | a paper | 32 x 32 x 1 | 60,850 | 326,520 |") for line in lines)
    document.write_text("nothing")
    with pytest.raises(SystemExit, match="has no lines"):
        command.main()
