"""reverse of a top-down network.

Today: refused: "the network has one resolution", true, and no help.
Right: refused: it is a top-down network already; reverse its source.
Why: a message says what is the matter and the way out.
"""

from common import Plain, Resnet

from td_compiler import reverse

CASES = [("plain", Plain, (3, 32, 32), {}), ("residual", Resnet, (3, 32, 32), {"filters": "uniform"})]
EXPECT, WORDS, UNWANTED = "refused", ("already", "top-down"), ("one resolution",)


def convert(label, model, size, options):
    return reverse(reverse(model, input_size=size, **options), input_size=size, **options)
