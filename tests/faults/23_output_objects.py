"""One tensor of scores inside a dictionary, dataclass, named tuple or output object with empty fields.

Today: refused, "the output (immutable_dict) is no class score", or a bare exception for a dataclass.
Right: converts; scores as the plain network's, returned as they were or as a tensor.
Why: SPEC 1.1; several tensors: 24.
"""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import torch
from common import Plain, image, same

from td_compiler import reverse

Scores = namedtuple("Scores", "logits")


@dataclass
class Output:
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple | None = None


class ModelOutput(OrderedDict):
    """A dictionary whose entries are attributes too."""

    def __init__(self, logits):
        super().__init__(logits=logits)
        self.logits = logits


WRAP = {
    "dict": lambda y: {"logits": y},
    "OrderedDict": lambda y: OrderedDict(logits=y),
    "tuple of one": lambda y: (y,),
    "namedtuple": Scores,
    "dataclass": lambda y: Output(logits=y),
    "dict with None": lambda y: {"loss": None, "logits": y},
    "output object": ModelOutput,
}


class Wrapped(Plain):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x, labels=None):
        return self.wrap(super().forward(x))


CASES = [(label, lambda wrap=wrap: Wrapped(wrap), (3, 32, 32), {}) for label, wrap in WRAP.items()]


def scores(output):
    if isinstance(output, dict):
        return output["logits"]
    return output[0] if isinstance(output, tuple) else getattr(output, "logits", output)


def check(label, model, td):
    same(td, reverse(Plain(), input_size=(3, 32, 32)), image(), read=scores)
