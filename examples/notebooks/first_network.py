# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first top-down network
#
# A convolutional network goes in, its top-down network comes out. It reads a pyramid of the image, coarsest
# scale first.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from td_compiler import reverse

torch.manual_seed(0)


def shapes(count, side=32):
    """Images (count, 1, side, side) of a square, a cross or a ring on noise, their labels and the shapes' masks."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    labels = torch.arange(count) % 3
    places = torch.randint(9, side - 9, (count, 2))
    down, across = (rows - places[:, :1, None]).abs(), (columns - places[:, 1:, None]).abs()
    square = (down < 5) & (across < 5)
    cross = ((down < 2) & (across < 7)) | ((across < 2) & (down < 7))
    radius = (down**2 + across**2).float().sqrt()
    ring = (radius > 3) & (radius < 7)
    masks = torch.stack([square, cross, ring])[labels, torch.arange(count)]
    return 0.5 * torch.rand(count, 1, side, side) + 0.5 * masks[:, None], labels, masks.long()


# %%
class SmallNet(torch.nn.Module):
    """Three stages, at scales 1, 2 and 4: images (N, 1, H, W) to class scores (N, num_classes)."""

    def __init__(self, num_classes):
        super().__init__()
        self.stage1 = self.unit(1, 8)
        self.stage2 = self.unit(8, 16)
        self.stage3 = self.unit(16, 32)
        self.classifier = torch.nn.Linear(32, num_classes)

    @staticmethod
    def unit(inputs, outputs):
        conv = torch.nn.Conv2d(inputs, outputs, 3, padding=1)
        return torch.nn.Sequential(conv, torch.nn.BatchNorm2d(outputs), torch.nn.ReLU())

    def forward(self, images):
        x = F.max_pool2d(self.stage1(images), 2)
        x = F.max_pool2d(self.stage2(x), 2)
        return self.classifier(self.stage3(x).mean((2, 3)))


# %%
source = SmallNet(num_classes=3)
td = reverse(source, input_size=(1, 32, 32))
print("scales, finest first:", td.scales)
for stage in td.report.stages:
    print(f"{stage.name:7} BU {stage.bottom_up.macs:9,} MACs   TD {stage.top_down.macs:9,} MACs")

# %% [markdown]
# The pyramid of an image, and the map after every stage, coarse to fine:

# %%
images, _, _ = shapes(3)
levels = td.pyramid(images)
figure, axes = plt.subplots(1, 3, figsize=(6, 2.2))
for axis, scale, level in zip(axes, td.scales, levels, strict=True):
    axis.imshow(level[0, 0], cmap="gray")
    axis.set_title(f"scale {scale}: {level.shape[-1]} pixels", fontsize=9)
    axis.axis("off")

# %%
for each in td.eval().stage_maps(levels):
    print(tuple(each.shape))

# %% [markdown]
# It is an ordinary module: gradients reach every parameter.

# %%
td.train()
F.cross_entropy(td(images), torch.tensor([0, 1, 2])).backward()
print(all(parameter.grad is not None for parameter in td.parameters()))
