"""Says what `cnnext.fuse` has done to a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from cnnext.fusion.modules import FusedConv2d, FusedSeparableConv2d

__all__ = ["FusionReport", "fusion_report"]


@dataclass(frozen=True)
class FusionReport:
    """What is fused in a model, and what is not.

    Attributes:
        fused: by the name of a fused module, the parts it is made of in order, as (name in the model before, kind).
        left: by the name of a convolution or batch norm that is as it was, why.
        untraced: by the name of a module whose forward function torch.fx cannot follow, why. Only what is inside each
            of its children is fused there.
    """

    fused: dict[str, tuple[tuple[str, str], ...]]
    left: dict[str, str]
    untraced: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} fused modules, {len(self.left)} convolutions and batch norms left alone"]
        for name, parts in self.fused.items():
            lines.append(f"{name or '(the model)'}: " + " + ".join(f"{part} ({kind})" for part, kind in parts))
        lines += [f"{name or '(the model)'}: left alone: {reason}" for name, reason in self.left.items()]
        lines += [f"{name or '(the model)'}: not traced: {reason}" for name, reason in self.untraced.items()]
        return "\n".join(lines)


def fusion_report(model: nn.Module) -> FusionReport:
    """What `cnnext.fuse` has fused in a model, what it has left alone, and why.

    Args:
        model: what `cnnext.fuse` returned, or anything that contains it.

    Returns:
        A report; `print` it, or look at its fields.

    >>> import torch, cnnext
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8)).eval()
    >>> print(fusion_report(cnnext.fuse(model)))
    1 fused modules, 1 convolutions and batch norms left alone
    0: 0 (Conv2d) + 1 (BatchNorm2d) + 2 (ReLU)
    3: left alone: no convolution alone before it
    """
    report = FusionReport({}, {}, {})
    for name, module in model.named_modules():
        if isinstance(module, (FusedConv2d, FusedSeparableConv2d)):
            report.fused[name] = module.parts
        elif isinstance(module, nn.Conv2d):
            report.left[name] = getattr(module, "_cnnext_left", "it is in no graph that was followed")
        elif isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            report.left[name] = "no convolution alone before it"
        if hasattr(module, "_cnnext_untraced"):
            report.untraced[name] = str(module._cnnext_untraced)
    return report
