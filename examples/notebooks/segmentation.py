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
# # Segmentation
#
# The last map of a top-down network has the image's size, so a 1x1 convolution on it scores every pixel. The
# classes here are background, square, cross and ring; images and masks are drawn.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

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
def train(network, images, targets, epochs=14, weight=None):
    """SGD with one cycle; the loss of the last batch."""
    batches = DataLoader(TensorDataset(images, targets), batch_size=32, shuffle=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=epochs * len(batches))
    network.train()
    for _ in range(epochs):
        for batch, wanted in batches:
            loss = F.cross_entropy(network(batch), wanted, weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
    network.eval()
    return loss.item()


# %%
images, labels, masks = shapes(360)
td = reverse(SmallNet(num_classes=3), task="segmentation", num_classes=4, input_size=(1, 32, 32))
loss = train(td, images, masks * (labels + 1)[:, None, None], weight=torch.tensor([0.1, 1, 1, 1]))
print(f"loss {loss:.2f}")

# %%
images, labels, masks = shapes(60)
wanted = masks * (labels + 1)[:, None, None]
with torch.no_grad():
    found = td(images).argmax(1)
for name, label in (("background", 0), ("square", 1), ("cross", 2), ("ring", 3)):
    both, either = ((found == label) & (wanted == label)).sum(), ((found == label) | (wanted == label)).sum()
    print(f"{name:10} intersection over union {both / either.clamp(min=1):.2f}")

# %%
figure, axes = plt.subplots(3, 3, figsize=(5, 5))
for row, *pictures in zip(axes, images[:, 0], wanted, found, strict=False):
    for axis, title, picture in zip(row, ("image", "wanted", "found"), pictures, strict=True):
        axis.imshow(picture, cmap="gray" if title == "image" else "viridis", vmin=0, vmax=1 if title == "image" else 3)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
