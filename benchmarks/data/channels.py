"""Grey images for networks of colour images.

`channels:3:fashion-mnist`, a row of the common table of data sets, has every image's one channel three times.
"""

from __future__ import annotations

from dataclasses import replace

from td_compiler.benchmarks.data.datasets import DATASETS, DataError, Derived, Images

__all__: list[str] = []


def _repeated(base: Images, channels: str, train: bool) -> Images:
    if not channels.isdecimal() or not int(channels):
        raise DataError(f"channels:{channels}: after the colon comes a number, as in channels:3:fashion-mnist.")
    if base.images.shape[1] != 1:
        raise DataError(f"channels:{channels}: the images have {base.images.shape[1]} channels already, not 1.")
    return replace(base, images=base.images.repeat(1, int(channels), 1, 1))


DATASETS["channels"] = Derived(lambda channels, base: f"{base} in {channels} channels", _repeated)
