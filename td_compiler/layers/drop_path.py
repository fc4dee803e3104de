"""Stochastic depth. It uses torch alone: emitted source carries the definition verbatim."""

from torch import Tensor, nn

__all__ = ["DropPath"]


class DropPath(nn.Module):
    """Stochastic depth: in training, leaves out whole samples with probability p."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.p)
        return x * kept.div_(1 - self.p)
