"""The options that all experiments share, and the one place where their errors become a line and an exit status."""

from __future__ import annotations

import functools
import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from td_compiler.benchmarks.lab.machine import Machine, fastest_precision
from td_compiler.benchmarks.training.recipes import PROFILES, Profile, RecipeError
from td_compiler.cli.shared_options import with_shared_options

if TYPE_CHECKING:
    from td_compiler.benchmarks.training.networks import NetworkSpec
    from td_compiler.benchmarks.training.training import Training

__all__ = [
    *("Arrangements", "Count", "DataSets", "Networks", "Setup", "one_network"),
    *("check_device", "check_profile", "run_command", "run_plain_command"),
]

# Options that change no figure, and whose values are paths of one computer: results do not keep them.
_PRIVATE = ("--data-root", "--out")


@dataclass(frozen=True)
class Setup:
    """What the shared options say.

    Attributes:
        machine: where and how jobs run.
        profile: the experiment's size, with what the user gave in place of the profile's own.
        seed: of the first run; the others follow.
        recipe: `NAME=VALUE` in place of the recipe's own; `fast` for its fast form.
        augment: in place of the recipe's own.
        options: of `reverse`, for top-down networks.
        processes, ray: as in `td_compiler.benchmarks.lab.jobs.run_jobs`.
        command: the command line, to be kept with results.
    """

    machine: Machine
    profile: Profile
    seed: int = 0
    recipe: Sequence[str] = ()
    augment: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    processes: int = 1
    ray: str | None = None
    command: str = ""

    @property
    def runs(self) -> range:
        """The seeds of the runs."""
        return range(self.seed, self.seed + self.profile.runs)

    def plan(self, network: NetworkSpec, data: str, run: int, task: str = "classification", **more: str) -> Training:
        """How a network is trained; see `td_compiler.benchmarks.training.training.planned`."""
        return self.planned(network, data, run, [], task=task, **more)

    def planned(self, network: NetworkSpec, data: str, run: int, before: Sequence[str], **more: str) -> Training:
        """The same with settings of the recipe before those that the user gave."""
        from td_compiler.benchmarks.training.training import planned

        if network.arrangement != "bu":
            network = network.with_options(self.options)
        return planned(self.profile, network, data, run, settings=[*before, *self.recipe], augment=self.augment, **more)


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


# What several commands take.
Networks = Annotated[list[str], typer.Argument(help="zoo:NAME, torchvision:NAME, timm:NAME or FILE.py.")]
DataSets = Annotated[list[str], typer.Option(help="Data sets; repeat for several.")]
Arrangements = Annotated[list[str], typer.Option(help="Of bu, mirror, uniform, reversed; repeat for several.")]
Count = Annotated[int | None, typer.Option(metavar="N", min=1, help="Measurements of each time.")]

_SIZE, _TRAINING, _PLACES, _COMPUTE = "Size", "Training", "Data and results", "Computing"
_COUNT: dict[str, Any] = {"metavar": "N", "min": 1}
_NONE = list[str]()


def _shared(
    profile: Annotated[str, _option(_SIZE, "Size of the experiment.", metavar="|".join(PROFILES))] = "quick",
    runs: Annotated[int | None, _option(_SIZE, "Repetitions of each training.", **_COUNT)] = None,
    epochs: Annotated[int | None, _option(_SIZE, "In place of the recipe's.", **_COUNT)] = None,
    train_images: Annotated[int | None, _option(_SIZE, "Train on so many.", **_COUNT)] = None,
    test_images: Annotated[int | None, _option(_SIZE, "Test on so many.", **_COUNT)] = None,
    seed: Annotated[int, _option(_SIZE, "Of the first run.", metavar="N", min=0)] = 0,
    recipe: Annotated[
        list[str], _option(_TRAINING, "`fast`, or a setting in place of the recipe's.", metavar="fast|NAME=VALUE")
    ] = _NONE,
    augment: Annotated[
        str | None, _option(_TRAINING, "none, shift-flip or crop-flip-colour; else the recipe's.")
    ] = None,
    td: Annotated[list[str], _option(_TRAINING, "Of `reverse`: stem=leading, ...", metavar="NAME=VALUE")] = _NONE,
    data_root: Annotated[Path, _option(_PLACES, "Where the data sets are.", metavar="DIR")] = Path("data"),
    download: Annotated[bool, _option(_PLACES, "Fetch those that are missing.", "--download")] = False,
    out: Annotated[Path, _option(_PLACES, "Where results go.", metavar="DIR")] = Path("build/benchmarks"),
    device: Annotated[str, _option(_COMPUTE, "auto, cpu, cuda or cuda:1.", metavar="NAME")] = "auto",
    precision: Annotated[
        str, _option(_COMPUTE, "Or bf16-mixed, 16-mixed; auto: bf16 where the processor has it.", metavar="NAME")
    ] = "32-true",
    threads: Annotated[int | None, _option(_COMPUTE, "Of a CPU; 1 where cores are shared.", **_COUNT)] = None,
    workers: Annotated[int, _option(_COMPUTE, "Loaders of large data sets.", metavar="N", min=0)] = 0,
    devices: Annotated[int, _option(_COMPUTE, "Processes to train a network (DDP).", **_COUNT)] = 1,
    nodes: Annotated[int, _option(_COMPUTE, "Computers to do so (torchrun).", **_COUNT)] = 1,
    processes: Annotated[int, _option(_COMPUTE, "Jobs at once on this computer.", **_COUNT)] = 1,
    ray: Annotated[str | None, _option(_COMPUTE, "Ray cluster, or `local`.", metavar="ADDRESS")] = None,
    progress: Annotated[bool, _option(_COMPUTE, "Bars, on a terminal.")] = True,
) -> Setup:
    """The shared options as a Setup; the first parameter of every experiment's command."""
    check_profile(profile)
    given: dict[str, Any] = {"runs": runs, "epochs": epochs, "train_images": train_images, "test_images": test_images}
    size = replace(PROFILES[profile], **{name: value for name, value in given.items() if value is not None})
    machine = Machine(
        out=out.resolve(),
        data_root=data_root,
        device=device,
        precision=precision,
        threads=threads,
        workers=workers,
        download=download,
        devices=devices,
        nodes=nodes,
        progress=progress,
    )
    check_device(machine)
    if precision == "auto":
        machine = replace(machine, precision=fastest_precision(machine.torch_device))
    return Setup(machine, size, seed, recipe, augment, _top_down_options(td), processes, ray)


def one_network(**given: Any) -> Setup:
    """The shared options of a command that trains one network: on all images, unless the user gives a number."""
    return _shared(profile="paper", runs=1, processes=1, ray=None, **given)


_MANY = {"profile", "runs", "processes", "ray"}
one_network.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, each in inspect.signature(_shared).parameters.items()
        if name not in _MANY
    ]
)
one_network.__annotations__ = {name: hint for name, hint in _shared.__annotations__.items() if name not in _MANY}


def check_profile(profile: str) -> None:
    """Raises typer.BadParameter if there is no such profile."""
    if profile not in PROFILES:
        raise typer.BadParameter(f"{profile!r} is not one of {', '.join(PROFILES)}", param_hint="--profile")


def _top_down_options(given: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """`stem=leading` as ("stem", "leading"); wrong ones are refused before anything starts."""
    from td_compiler.options import Options

    options: dict[str, Any] = {}
    for setting in given:
        name, equals, text = setting.partition("=")
        if not equals or name not in _REVERSE:
            names = ", ".join(_REVERSE)
            raise typer.BadParameter(f"{setting!r} is no NAME=VALUE with a name of {names}", param_hint="--td")
        options[name] = int(text) if text.isdecimal() else text
    Options(**options)
    return tuple(options.items())


_REVERSE = ("merge", "upsample", "downsample", "stem", "head_width")


def check_device(machine: Machine) -> None:
    """Try the device.

    Raises:
        typer.BadParameter: if it cannot be used.
    """
    try:
        import torch

        device = torch.device(machine.device if machine.device != "auto" else "cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise typer.BadParameter(f"{machine.device!r} cannot be used: {reason}", param_hint="--device") from error


def run_command(
    command: Callable[..., None],
    arguments: Sequence[str],
    prog: str,
    shared: Callable[..., Setup] | None = None,
) -> int:
    """Run an experiment's command, `command(setup, own options...)`, with the words of the command line.

    The command's own parameters and the shared options become one command line. An error that a user can cause is one
    line on standard error.

    Args:
        command: the experiment.
        arguments: the words.
        prog: what stands before them.
        shared: the options that it shares with others; those of trainings by default.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong usage or missing data, 130 interrupted.
    """
    line = shlex.join([*prog.split(), *_public(arguments)])

    @functools.wraps(command)
    def with_line(setup: Setup, **own: Any) -> None:
        command(replace(setup, command=line), **own)

    return run_plain_command(with_shared_options(with_line, shared or _shared), arguments, prog)


def run_plain_command(command: Callable[..., None], arguments: Sequence[str], prog: str) -> int:
    """The same for a command without the shared options."""
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command()(command)
    try:
        returned = app(list(arguments), prog_name=prog, standalone_mode=False)
        status = returned if isinstance(returned, int) else 0
    except (KeyboardInterrupt, typer.Abort):  # of which typer makes a status or an exception, by its release
        status = 130
    except Exception as error:
        if os.environ.get("TD_DEBUG"):
            traceback.print_exc()
        return _complain(prog, *_explain(error))
    return _complain(prog, "interrupted; the same command goes on from here", 130) if status == 130 else status


def _explain(error: Exception) -> tuple[str, int]:
    """A sentence for an error, and the exit status."""
    from td_compiler import ConversionError
    from td_compiler.benchmarks.data.images import DataError
    from td_compiler.benchmarks.lab.jobs import JobsFailed

    if hasattr(error, "format_message"):  # Click's, whose class typer keeps in different places
        return error.format_message().removeprefix("Invalid value: "), 2
    if isinstance(error, DataError | ConversionError | RecipeError):
        return str(error), 2
    if isinstance(error, ImportError):
        return f"{error}: pip install 'td-compiler[bench]'", 1
    if isinstance(error, JobsFailed):
        return str(error), 1
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; finished jobs are kept, and the same command goes on from here", 1
    return f"unexpected {type(error).__name__}: {error} (TD_DEBUG=1 shows where)", 1


def _complain(prog: str, message: str, status: int) -> int:
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
    return status


def _public(arguments: Sequence[str]) -> list[str]:
    """The arguments, with a word in capitals in place of paths that say nothing to others."""
    public: list[str] = []
    for word in arguments:
        option, equals, _ = word.partition("=")
        if public and public[-1] in _PRIVATE:
            public.append(public[-1].removeprefix("--").upper())
        else:
            public.append(f"{option}={option.removeprefix('--').upper()}" if equals and option in _PRIVATE else word)
    return public
