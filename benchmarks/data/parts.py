"""The parts of the frequency experiment, and what the report says of each."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PARTS", "Part"]


class Part(NamedTuple):
    """One part of the experiment: its title, and what is done, for a reader who does not know the thesis."""

    title: str
    note: str


PARTS = {
    "blur": Part(
        "Blurs",
        "Trained and tested on all pairs of Gaussian blurs, sigma in pixels (thesis 3.2.1).",
    ),
    "cosines": Part(
        "Single frequencies",
        "Images of one 2D cosine each, told apart by its frequency: 0, 1, 2, 4 or 8 cycles a side; trained and tested"
        " on all pairs of Gaussian blurs, sigma in pixels (thesis 3.2.2).",
    ),
    "fourier": Part(
        "Fourier masks",
        "Trained on the frequencies up to a radius (cycles a side) or on those beyond it, tested on the images as they"
        " are (thesis 3.2.3).",
    ),
    "laplacian": Part(
        "Laplacian pyramid",
        "Every scale of the pyramid gets only what the coarser ones lack, instead of the whole image (thesis 3.2.3).",
    ),
    "growing": Part(
        "Progressive growing",
        "Stages are added coarse to fine, each staged in over half of its epochs, then fine-tuned; the epochs of"
        " training at once are shared among the stages (thesis 3.2.4).",
    ),
}
