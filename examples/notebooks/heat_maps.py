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
# # Heat maps
#
# Where does a network look? Grad-CAM weighs a layer's maps by how much each speaks for a class. The last maps of a
# bottom-up network are small; those of its top-down network have the image's size. The objects here are drawn, so
# that it is known where a network should look.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, LayerGradCam
from torch.utils.data import DataLoader, TensorDataset

from td_compiler import reverse
from td_compiler.network.taps import tapped
from td_compiler.report.heat_maps import draw_heat_maps, heat_maps

torch.manual_seed(0)
plt.rcParams["figure.dpi"] = 130


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


# %% [markdown]
# The maps of random weights mean nothing, so both networks are trained first.


# %%
def train(network, images, targets, epochs=10):
    """SGD with one cycle; the loss of the last batch."""
    batches = DataLoader(TensorDataset(images, targets), batch_size=32, shuffle=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=epochs * len(batches))
    network.train()
    for _ in range(epochs):
        for batch, wanted in batches:
            loss = F.cross_entropy(network(batch), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
    network.eval()
    return loss.item()


images, labels, _ = shapes(360)
test_images, test_labels, masks = shapes(90)
bu = SmallNet(num_classes=3)
td = reverse(bu, input_size=(1, 32, 32))
for name, network in (("BU", bu), ("TD", td)):
    train(network, images, labels)
    with torch.no_grad():
        right = (network(test_images).argmax(1) == test_labels).float().mean()
    print(f"{name}: {100 * right:.0f} % of {len(test_labels)} test images are right")

# %% [markdown]
# ## Stage by stage
#
# `heat_maps` runs Grad-CAM at the image that the first stage reads, after every stage, and before the head pools;
# `draw_heat_maps` draws what it finds, in the order in which each network runs. The bottom-up network's maps get
# coarser, the top-down network's finer. `tdc explain` does the same with photographs.

# %%
shown = [0, 1, 2]
found = {
    "BU": heat_maps(bu, test_images, test_labels.tolist(), input_size=(1, 32, 32)),
    "TD": heat_maps(td, test_images, test_labels.tolist()),
}
names = ["square", "cross", "ring"]
draw_heat_maps([test_images[i] for i in shown], names, {name: [each[i] for i in shown] for name, each in found.items()})

# %% [markdown]
# ## How much of the heat is on the object?
#
# The share of a map's heat that lies on the object, over all test images. A map that is the same everywhere has the
# share of the image that objects cover.

# %%
print(f"the same everywhere: {100 * masks.float().mean():.0f} %")
for name, each in found.items():
    for place in each[0].maps:
        heat = torch.stack([one.maps[place] for one in each])
        share = (heat * masks).sum((1, 2)) / heat.sum((1, 2)).clamp(min=1e-9)
        print(f"{name} {place:8} {100 * share.mean():3.0f} %")

# %% [markdown]
# One training each says nothing about which of the two looks better; `tdc compare` measures it over several.
#
# ## With a tool of your own
#
# `tapped` gives a network a module at every stage's end, for tools that hook modules, such as captum's or
# pytorch-grad-cam's. Integrated gradients need no layer at all.

# %%
seen = tapped(td)
image, label = test_images[:1], int(test_labels[0])
heats = {
    name: LayerGradCam(seen, seen.taps[name]).attribute(image, target=label, relu_attributions=True)
    for name in ("stage4", "stage2", "stage1")
}
heats["integrated gradients"] = IntegratedGradients(td).attribute(image, target=label, n_steps=32).abs()

figure, axes = plt.subplots(1, 1 + len(heats), figsize=(8, 1.9))
for axis, (name, heat) in zip(axes, {"image": image, **heats}.items(), strict=True):
    axis.imshow(heat[0, 0].detach(), cmap="gray" if name == "image" else "inferno")
    axis.set_title(f"{name}\n{heat.shape[-2]} x {heat.shape[-1]}", fontsize=9)
    axis.axis("off")
figure.tight_layout()
