"""torchvision's networks, with a small classifier where theirs has more than a hundred million weights."""

from __future__ import annotations

import torchvision
from torch import nn

__all__ = ["torchvision_network"]

_HIDDEN = 64  # of 4,096: what is converted is the same, and a training step takes a tenth


def torchvision_network(name: str, num_classes: int) -> nn.Module:
    """A network of torchvision's by name; a VGG with 64 hidden features in its classifier."""
    model: nn.Module = getattr(torchvision.models, name)(num_classes=num_classes)
    if isinstance(model, torchvision.models.VGG):
        first, hidden, last = (model.classifier[i] for i in (0, 3, 6))
        model.classifier[0] = nn.Linear(first.in_features, _HIDDEN)
        model.classifier[3] = nn.Linear(_HIDDEN, _HIDDEN)
        model.classifier[6] = nn.Linear(_HIDDEN, last.out_features)
        model.classifier[2].p = model.classifier[5].p = 0.1  # of 0.5: half of 64 is too few to learn by
        assert hidden.in_features == 4096, "torchvision's VGG has changed"
    return model
