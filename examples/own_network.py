"""Converts a network of your own, looks at its pyramid and stage maps, and takes a training step.

python examples/own_network.py
"""

import torch
import torch.nn.functional as F
from torch import nn

from td_compiler import reverse


class SmallNet(nn.Module):
    """Three stages of 16, 32 and 64 filters at scales 1, 2 and 4; class scores (N, 10) for images (N, 3, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = self.unit(3, 16)
        self.stage2 = self.unit(16, 32)
        self.stage3 = self.unit(32, 64)
        self.classifier = nn.Linear(64, 10)

    @staticmethod
    def unit(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.stage1(images), 2)
        x = F.max_pool2d(self.stage2(x), 2)
        scores: torch.Tensor = self.classifier(self.stage3(x).mean(dim=(2, 3)))
        return scores


def main() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 45, 37), torch.randint(10, (8,))

    td = reverse(SmallNet(), input_size=(3, 32, 32))

    for scale, level in zip(td.scales, td.pyramid(images), strict=True):
        print(f"pyramid, scale {scale}: {tuple(level.shape)}")
    for scale, stage_map in zip(reversed(td.scales), td.stage_maps(td.pyramid(images)), strict=True):
        print(f"stage at scale {scale}: {tuple(stage_map.shape)}")

    optimizer = torch.optim.SGD(td.parameters(), lr=0.05, momentum=0.9)
    for step in range(5):
        loss = F.cross_entropy(td(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
