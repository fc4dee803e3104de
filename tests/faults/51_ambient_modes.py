"""reverse called where gradients are off or torch's defaults are not its own.

Today: under inference_mode parameters that can never train; with the meta device as default a bare RuntimeError. The
others are right.
Right: the network that it makes elsewhere: the source's dtype and device, parameters that train.
Why: README, device, dtype and requires_grad are kept.
"""

import contextlib

import torch
from common import Plain, image, trains

from td_compiler import reverse


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AMBIENT = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default float64": lambda: default_dtype(torch.float64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
CASES = [
    (f"{label}, {filters}", Plain, (3, 32, 32), {"filters": filters})
    for label in AMBIENT
    for filters in ("mirror", "uniform")
]


def convert(label, model, size, options):
    with AMBIENT[label.split(", ")[0]]():
        return reverse(model, input_size=size, **options)


def check(label, model, td):
    odd = [
        name
        for name, p in td.named_parameters()
        if p.dtype != torch.float32 or p.device.type != "cpu" or p.is_inference() or not p.requires_grad
    ]
    assert not odd, f"{odd[0]} has another dtype or device, or cannot train"
    odd = [
        name
        for name, b in td.named_buffers()
        if b.is_floating_point() and (b.dtype != torch.float32 or b.device.type != "cpu" or b.is_inference())
    ]
    assert not odd, f"the buffer {odd[0]} has another dtype or device"
    y = td(image())
    assert y.dtype == torch.float32 and y.isfinite().all(), f"output {y.dtype}"
    trains(td, image())
