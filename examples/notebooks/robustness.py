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
# # Robustness
#
# How much must an image change until a network errs? Projected gradient descent by foolbox, on a network and on its
# top-down network, then noise at single scales of the pyramid. One short training of each gives no verdict on which
# is more robust: that takes several, and `tdc compare`.

# %%
import foolbox
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
def train(network, images, targets, epochs=8):
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


images, labels, _ = shapes(300)
test_images, test_labels, _ = shapes(60)
networks = {"BU": SmallNet(num_classes=3)}
networks["TD"] = reverse(networks["BU"], input_size=(1, 32, 32))
for network in networks.values():
    train(network, images, labels)

# %% [markdown]
# ## An attack
#
# The images lie in [0, 1], and both networks read them as they are. Where a network wants normalised images, put
# the normalisation inside of what is attacked (`foolbox.PyTorchModel(..., preprocessing=...)`), so that the bounds are
# those of the image. An attack under which both fall to nothing, or neither falls, says nothing: use several strengths.

# %%
strengths = [0, 1, 2, 4, 8, 16, 32]
attack = foolbox.attacks.LinfPGD(steps=10)
changed = {}
figure, axis = plt.subplots(figsize=(4.5, 2.6))
for (name, network), colour in zip(networks.items(), ("#d55e00", "#009e73"), strict=True):
    torch.manual_seed(0)
    attacked = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    _, changed[name], fooled = attack(attacked, test_images, test_labels, epsilons=[s / 255 for s in strengths])
    right = 100 * (1 - fooled.float().mean(1))
    axis.plot(strengths, right, marker="o", markersize=3, label=name, color=colour)
    print(name, ", ".join(f"{s}/255: {r:.0f} %" for s, r in zip(strengths, right, strict=True)))
axis.set(xlabel="largest change of a pixel, of 255", ylabel="right, %", ylim=(0, 103))
axis.legend()
figure.tight_layout()

# %% [markdown]
# What was changed, eight times as strong as it is, at 16/255:

# %%
figure, axes = plt.subplots(2, 5, figsize=(7.5, 3.2))
for row, (name, each) in zip(axes, changed.items(), strict=True):
    image, other = test_images[1, 0], each[strengths.index(16)][1, 0]
    scores = [networks[name](x[None, None]).softmax(1)[0].detach() for x in (image, other)]
    row[0].imshow(image, cmap="gray", vmin=0, vmax=1)
    row[0].set_title(f"image: {name} {100 * scores[0][1]:.0f} % cross", fontsize=8)
    row[1].imshow(8 * (other - image), cmap="RdBu", vmin=-1, vmax=1)
    row[1].set_title("change, x8", fontsize=8)
    row[2].imshow(other, cmap="gray", vmin=0, vmax=1)
    row[2].set_title(f"changed: {100 * scores[1][1]:.0f} % cross", fontsize=8)
    levels = networks["TD"].pyramid((other - image)[None, None])
    for axis, scale, level in zip(row[3:], networks["TD"].scales[1:], levels[1:], strict=True):
        axis.imshow(8 * level[0, 0], cmap="RdBu", vmin=-1, vmax=1)
        axis.set_title(f"change at 1/{scale}, x8", fontsize=8)
for axis in axes.flat:
    axis.axis("off")
figure.tight_layout()

# %% [markdown]
# ## One scale alone
#
# A top-down network can be run from given images, one a scale. So each scale can be disturbed by itself, which shows
# what the network takes from it.

# %%
td = networks["TD"]
levels = td.pyramid(test_images)
for number, scale in enumerate(td.scales):
    rates = []
    for deviation in (0.1, 0.3, 0.6):
        noisy = list(levels)
        noisy[number] = (levels[number] + deviation * torch.randn_like(levels[number])).clamp(0, 1)
        with torch.no_grad():
            rates.append((td.forward_pyramid(noisy).argmax(1) == test_labels).float().mean().item())
    print(f"scale 1/{scale}: noise of 0.1, 0.3, 0.6:", ", ".join(f"{100 * rate:.0f} % right" for rate in rates))

# %% [markdown]
# `python -m benchmarks robustness` runs ten attacks and fifteen corruptions on both networks, with the smallest change
# that each image needs, and attacks single scales, too.
