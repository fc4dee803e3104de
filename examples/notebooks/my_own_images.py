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
# # My own images
#
# From a folder of images to a trained network and its trained top-down network, side by side. The folder has the
# form that torchvision's `ImageFolder` reads: `train/CLASS/*.png` and `test/CLASS/*.png`.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from td_compiler import from_pretrained, reverse

torch.manual_seed(0)
SIDE, EPOCHS, BATCH = 32, 10, 16


# %% [markdown]
# Here the folder is drawn: disks, squares and triangles of any colour and place. For images of your own, set `folder`
# to where they are and leave this cell out.


# %%
def draw(shape, random):
    """One image: a bright shape on a dark and noisy ground, of any colours."""
    ground = random.integers(0, 80, 3) + random.integers(0, 60, (40, 40, 3))
    image = Image.fromarray(ground.astype(np.uint8))
    x, y, r = *random.integers(12, 28, 2), random.integers(7, 12)
    colour = tuple(int(each) for each in random.integers(120, 256, 3))
    pen = ImageDraw.Draw(image)
    if shape == "disk":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
    else:
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    return image


folder = Path(tempfile.mkdtemp())
random = np.random.default_rng(0)
for split, count in (("train", 90), ("test", 60)):
    for shape in ("disk", "square", "triangle"):
        (folder / split / shape).mkdir(parents=True)
        for number in range(count):
            draw(shape, random).save(folder / split / shape / f"{number:03}.png")

# %% [markdown]
# Training images are cut and mirrored at random, test images are not.

# %%
as_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
varied = v2.Compose([v2.RandomResizedCrop(SIDE, scale=(0.7, 1)), v2.RandomHorizontalFlip(), *as_tensor])
steady = v2.Compose([v2.Resize(SIDE), v2.CenterCrop(SIDE), *as_tensor])
train_set, test_set = ImageFolder(folder / "train", varied), ImageFolder(folder / "test", steady)
classes = train_set.classes

figure, axes = plt.subplots(1, 6, figsize=(7.2, 1.5))
for axis, number in zip(axes, torch.linspace(0, len(test_set) - 1, 6).long(), strict=True):
    image, label = test_set[number]
    axis.imshow(image.permute(1, 2, 0))
    axis.set_title(classes[label], fontsize=9)
    axis.axis("off")


# %% [markdown]
# ## Two networks
#
# Any convolutional network will do: one of torchvision's or timm's, or a class like this one.


# %%
class SmallNet(torch.nn.Module):
    """Three stages, at scales 1, 2 and 4: images (N, 3, H, W) to class scores (N, num_classes)."""

    def __init__(self, num_classes):
        super().__init__()
        self.stage1 = self.unit(3, 8)
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


bu = SmallNet(len(classes))
td = reverse(bu, input_size=(3, SIDE, SIDE))
print(td.report)


# %% [markdown]
# ## Training
#
# Both learn in the same way, from the same images.


# %%
def train(network):
    """SGD with one cycle; the mean loss of every epoch."""
    torch.manual_seed(0)
    batches = DataLoader(train_set, batch_size=BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=EPOCHS * len(batches))
    losses = []
    network.train()
    for _ in range(EPOCHS):
        total = 0.0
        for images, labels in batches:
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
            total += loss.item() / len(batches)
        losses.append(total)
    network.eval()
    return losses


figure, axis = plt.subplots(figsize=(4.5, 2.6))
for name, network, colour in (("BU", bu, "#d55e00"), ("TD", td, "#009e73")):
    axis.plot(range(1, EPOCHS + 1), train(network), label=name, color=colour)
axis.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
axis.legend()
figure.tight_layout()

# %% [markdown]
# ## What they get right
#
# An accuracy of so few images is known to some percent only, and another seed gives another one: this run says that
# both learn, and not which is better. `tdc compare` says that, from several seeds, with intervals.

# %%
images = torch.stack([image for image, _ in test_set])
labels = torch.tensor(test_set.targets)
with torch.no_grad():
    found = {"BU": bu(images).argmax(1), "TD": td(images).argmax(1)}
for name, each in found.items():
    print(f"{name}: {int((each == labels).sum())} of {len(labels)} test images are right")
    for label, true in enumerate(classes):
        counts = [int(((labels == label) & (each == other)).sum()) for other in range(len(classes))]
        print(f"    {true:8} taken for", ", ".join(f"{n} {k}" for n, k in zip(classes, counts, strict=True)))

# %% [markdown]
# ## Keep it
#
# A folder with the weights and with source that imports torch alone: neither `SmallNet` nor the compiler is needed to
# have the network again.

# %%
td.save_pretrained(folder / "trained")
print(sorted(file.name for file in (folder / "trained").iterdir()))
again = from_pretrained(folder / "trained", trust_code=True).eval()
photo = steady(Image.open(folder / "test" / "triangle" / "000.png").convert("RGB"))[None]
print({name: round(p, 2) for name, p in zip(classes, again(photo).softmax(1)[0].tolist(), strict=True)})

# %% [markdown]
# On the command line, with `SmallNet` in a file `model.py`, one line trains the top-down network, and one compares it
# with its source:
#
# ```
# tdc train model.py:SmallNet --data folder:images
# tdc compare model.py:SmallNet --data folder:images
# ```
