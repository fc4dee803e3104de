"""`python -m benchmarks conversion`: how long a conversion takes, and how much memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from td_compiler.benchmarks.lab.experiment import Experiment
from td_compiler.benchmarks.lab.journal import Result
from td_compiler.benchmarks.lab.machine import Machine
from td_compiler.benchmarks.lab.measuring import measure, progress, run_measuring_command
from td_compiler.benchmarks.lab.options import Count, Networks, Setup
from td_compiler.benchmarks.lab.powers import fit_power
from td_compiler.benchmarks.lab.resident import growth_at_peak, in_own_process
from td_compiler.benchmarks.show.plots import legend
from td_compiler.benchmarks.show.style import COLOURS, INK, figure
from td_compiler.benchmarks.show.tables import Cell, Figure, Section, Table
from td_compiler.benchmarks.training.networks import source_content
from td_compiler.report.tables import byte_count, short_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot
    from torch import nn

__all__ = ["EXPERIMENT", "ConversionJob", "main"]

_LIBRARIES = "resnet18 resnet50 resnet152 vgg16_bn densenet201 googlenet mobilenet_v3_large efficientnet_v2_l"
NETWORKS = ["zoo:nin", *(f"torchvision:{name}" for name in f"{_LIBRARIES} regnet_y_8gf convnext_base".split())]
DEPTHS = [20, 56, 110, 200, 398, 800, 1202]
_REPEATS = {"smoke": 2, "quick": 5, "paper": 15}


@dataclass(frozen=True)
class ConversionJob:
    """Convert one network several times on the meta device, once with weights on the CPU.

    Attributes:
        network: a source as the command line names it, or `resnet` for the zoo's pre-activation ResNet of a depth.
        depth: of that ResNet; None for others.
        repeats: how often the time is measured.
        device: what it is measured on, in words.
    """

    experiment: ClassVar[str] = "conversion"
    revision: ClassVar[int] = 2
    data: ClassVar[str] = ""

    network: str
    depth: int | None
    repeats: int
    device: str

    @property
    def name(self) -> str:
        """One line for progress and logs."""
        return f"conversion of {self.network}{f' with {self.depth} layers' if self.depth else ''}"

    def content(self) -> str:
        """What the job's key holds of the source."""
        return source_content(self.network) if self.depth is None else ""

    def run(self, machine: Machine) -> dict[str, Any]:
        """Seconds of every conversion, and of Torch-Pruning's dependency graph in turn; operations; bytes."""
        from td_compiler import reverse

        model = self.build("meta")
        reverse(model)  # the first one imports and fills caches
        seconds: list[float] = []
        graphs: list[float] = []
        for _ in progress(self.repeats, machine, self.name):
            gc.collect()
            start = time.process_time()
            top_down = reverse(model)
            seconds.append(time.process_time() - start)
            if self.depth is None:
                gc.collect()
                graphs += _dependency_graph(model, top_down.report.input_size)
        return {
            "seconds": seconds,
            "graph_seconds": graphs,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "operations": sum(len(segment.graph.nodes) for segment in top_down.segments),
            "weights": _weights(model),
            "new_weights": _weights(top_down),
            "growth": in_own_process(_growth, self),
        }

    def build(self, device: str) -> nn.Module:
        """The source network."""
        import torch

        from td_compiler.sources.names import load_source
        from td_compiler.zoo import resnet

        if self.depth is None:
            return load_source(self.network, {}, device=device).model.to(device)
        with torch.device(device):
            return resnet(self.depth)


def _dependency_graph(model: nn.Module, size: tuple[int, int, int]) -> list[float]:
    """Seconds that Torch-Pruning takes for the graph of a network; none where it cannot make one."""
    import torch
    import torch_pruning

    images = torch.empty(1, *size, device="meta")
    start = time.process_time()
    try:
        torch_pruning.DependencyGraph().build_dependency(model.eval(), example_inputs=images)
    except Exception:  # whatever it does not understand
        return []
    return [time.process_time() - start]


def _weights(network: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def _growth(job: ConversionJob) -> int | None:
    """Bytes by which a process grows when it converts a network with weights."""
    from td_compiler import reverse

    reverse(job.build("meta"))
    model = job.build("cpu")
    gc.collect()
    return growth_at_peak(lambda: reverse(model))


def _section(results: Sequence[Result]) -> Section:
    deep = sorted((result for result in results if result.job["depth"]), key=lambda result: int(result.job["depth"]))
    others = [result for result in results if not result.job["depth"]]
    law = fit_power([r.figures["operations"] for r in deep], [min(r.figures["seconds"]) for r in deep])
    grows = f" Seconds grow with the operations to the power of {law}." if law else ""
    return Section(
        title="Conversion",
        intro="How much time of one processor `reverse` takes on the meta device, beside the dependency graph of"
        " Torch-Pruning, which is one run of the network, measured in turn; and by how much a process with its"
        " weights grows at most while it converts them: by the new weights, and what is needed meanwhile.",
        tables=[
            *([_table("Networks", "network", others)] if others else []),
            *([_table("Pre-activation ResNets for 32x32 images", "layers", deep, grows)] if deep else []),
        ],
        figures=[Figure("Time of a conversion", "conversion", lambda: _plot(deep, others), grows.strip())],
    )


_COLUMNS = (
    *("parameters", "operations", "best (ms)", "median (ms)", "of Torch-Pruning", "µs / operation"),
    *("weights", "new weights", "growth at peak"),
)


def _table(title: str, kind: str, results: Sequence[Result], more: str = "") -> Table:
    repeats = ", ".join(sorted({str(len(result.figures["seconds"])) for result in results}))
    return Table(
        title=title,
        columns=(kind, *_COLUMNS),
        rows=tuple(_row(result) for result in results),
        note=f"Of {repeats} conversions each. Operations are those of the top-down network.{more}",
    )


def _row(result: Result) -> tuple[Cell, ...]:
    figures = result.figures
    best, growth = min(figures["seconds"]), figures["growth"]
    return (
        str(result.job["depth"] or result.job["network"]),
        short_count(figures["parameters"]),
        figures["operations"],
        f"{1e3 * best:.0f}",
        f"{1e3 * statistics.median(figures['seconds']):.0f}",
        _ratio(figures["seconds"], figures["graph_seconds"]),
        f"{1e6 * best / figures['operations']:.0f}",
        byte_count(figures["weights"]),
        byte_count(figures["new_weights"]),
        byte_count(growth) if growth is not None else None,
    )


def _ratio(seconds: Sequence[float], others: Sequence[float]) -> Cell:
    """The median of paired ratios; None where there is nothing to pair."""
    ratios = [one / other for one, other in zip(seconds, others, strict=False)]
    return f"{statistics.median(ratios):.1f}" if ratios else None


def _plot(deep: Sequence[Result], others: Sequence[Result]) -> Plot:
    """Seconds against operations, both axes logarithmic; a thin line where time is proportional to operations."""
    plot = figure(4.5, 3.0)
    axes = plot.subplots()
    kinds = ((deep, "ResNets by depth", "mirror", "s-"), (others, "other networks", "bu", "o"))
    for results, label, colour, look in kinds:
        if results:
            sizes = [result.figures["operations"] for result in results]
            axes.plot(sizes, [min(r.figures["seconds"]) for r in results], look, color=COLOURS[colour], label=label)
    if deep:
        first, last = deep[0].figures, deep[-1].figures
        rate = min(last["seconds"]) / last["operations"]
        ends = [first["operations"], last["operations"]]
        axes.plot(ends, [rate * end for end in ends], ":", color=INK, linewidth=0.8, label="proportional")
    axes.set(xscale="log", yscale="log", xlabel="Operations", ylabel="Seconds")
    axes.grid(visible=True)
    legend(plot)
    return plot


EXPERIMENT = Experiment("conversion", _section)


def _conversion(
    setup: Setup,
    networks: Networks = NETWORKS,
    depth: Annotated[list[int], typer.Option(metavar="N", help="ResNets of so many layers, 6n + 2.")] = DEPTHS,
    repeats: Count = None,
) -> None:
    """Measure time and memory of conversions."""
    count, device = repeats or _REPEATS[setup.profile.name], setup.machine.describe()
    jobs = [ConversionJob(network, None, count, device) for network in networks]
    jobs += [ConversionJob("resnet", layers, count, device) for layers in depth]
    measure(EXPERIMENT, jobs, setup)


main = partial(run_measuring_command, _conversion)
