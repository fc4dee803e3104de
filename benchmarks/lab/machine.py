"""Where and how jobs run."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Machine", "fastest_precision"]


@dataclass(frozen=True)
class Machine:
    """Where and how jobs run. Of all this figures depend on the processor and the precision alone.

    Attributes:
        out: the folder of `results.jsonl`, `checkpoints/` and `figures/`.
        data_root: the folder of the data sets.
        device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`.
        precision: of training, by Lightning's names: `32-true`, `bf16-mixed`, `16-mixed`; see `fastest_precision`.
        threads: of torch on a CPU, in each process; None for its own choice.
        workers: loader processes, for data that does not fit in memory.
        download: fetch data sets that are missing.
        devices: processes a node that train one network together (DDP).
        nodes: machines that train one network together, started by `torchrun`.
        progress: show a bar for each epoch, where standard error is a terminal.
    """

    out: Path
    data_root: Path
    device: str = "auto"
    precision: str = "32-true"
    threads: int | None = None
    workers: int = 0
    download: bool = False
    devices: int = 1
    nodes: int = 1
    progress: bool = True

    @property
    def torch_device(self) -> torch.device:
        """The device that networks are trained and measured on."""
        import torch

        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    @property
    def shows_progress(self) -> bool:
        """Whether there are bars."""
        return self.progress and sys.stderr.isatty()

    @property
    def results(self) -> Path:
        """The file of finished jobs."""
        return self.out / "results.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of trained networks, one folder each."""
        return self.out / "checkpoints"

    @property
    def figures(self) -> Path:
        """The folder of plots."""
        return self.out / "figures"

    @property
    def world_size(self) -> int:
        """How many processes train one network together."""
        return self.devices * self.nodes

    @property
    def rank(self) -> int:
        """This process's number among those that `torchrun` started; 0 without it."""
        return int(os.environ.get("RANK", 0))

    @property
    def local_rank(self) -> int:
        """The same among those on this computer."""
        return int(os.environ.get("LOCAL_RANK", 0))

    @property
    def processor(self) -> str:
        """What computes, e.g. `NVIDIA H200` or `CPU (x86_64)`."""
        import torch

        if self.torch_device.type == "cuda":
            return torch.cuda.get_device_name(self.torch_device)
        return f"CPU ({platform.machine()})"

    def describe(self) -> str:
        """The same with the threads of a CPU: `CPU (x86_64), 2 threads`."""
        import torch

        threads = f", {torch.get_num_threads()} threads" if self.torch_device.type == "cpu" else ""
        return self.processor + threads


def fastest_precision(device: torch.device) -> str:
    """`bf16-mixed` where the processor computes with bfloat16 itself, else `32-true`: emulated, it is slower."""
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # torch has no public question for this
        has_it = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bf16-mixed" if has_it else "32-true"
