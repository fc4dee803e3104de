"""The command line: `tdc convert`, `tdc inspect`, `tdc verify`, `tdc list`.

Exit codes: 0 done, 1 the conversion is refused, fails or does not verify, 2 the command is wrong (an option's value, an
unknown name, a missing file, an output that exists), 130 interrupted. An error is one line on standard error. torch is
imported only by commands that need it, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from td_compiler import __version__
from td_compiler.cli.experiments import register_experiments
from td_compiler.cli.options import Debug, Given, Seed, read_given
from td_compiler.cli.shared_options import with_shared_options
from td_compiler.errors import ConversionError, no_other_error, one_line

__all__ = ["app", "main"]

# Click's exceptions; typer carries its own copy of Click in newer releases and uses the installed one in older ones.
_ClickUsageError: Any = typer.BadParameter.__base__
_ClickException: Any = _ClickUsageError.__base__


class _Commands(TyperGroup):
    """The commands, with every failure turned into one line and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        call = super().main
        sys.exit(_exit_code(lambda: call(*args, **{**extra, "prog_name": "tdc", "standalone_mode": False})))


def _exit_code(run: Callable[[], Any]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may hold what the terminal cannot show
    try:
        returned = run()
        code = returned if isinstance(returned, int) else 0
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone (`tdc list | head`); without this the flush at exit would fail again, and say so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except ConversionError as error:
        return _complain(str(error), 2 if getattr(error, "usage", False) else 1)
    except _ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except Exception as error:
        return _complain(f"unexpected {one_line(error)} (--debug shows where)", 1)
    return _complain("interrupted", 130) if code == 130 else code


def _complain(message: str, code: int) -> int:
    print("tdc: error:", " ".join(message.split()), file=sys.stderr)
    return code


@contextlib.contextmanager
def _debugging(debug: bool, command: str) -> Iterator[None]:
    """Errors of what a command does: one of those that `_exit_code` knows, with its traceback if that is wanted."""
    try:
        with (
            warnings.catch_warnings(),
            no_other_error(f"tdc {command} ran", but=(OSError, typer.Abort, typer.Exit, _ClickException)),
        ):
            # What torch says of even kernels that keep the size of their map is no news to whoever converts a network.
            warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
            yield
    except Exception:
        if debug:
            traceback.print_exc()
        raise


def _examples(*lines: str) -> str:
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  [cyan]{line}[/cyan]" for line in lines)])


app = typer.Typer(
    cls=_Commands,
    help="Turns a convolutional network in PyTorch into its top-down network: coarse to fine, from an image pyramid.",
    epilog=_examples("tdc convert zoo:resnet32", "tdc inspect torchvision:resnet18", "tdc list timm | grep mobilenet"),
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _tdc(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"tdc {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def _command(*examples: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a command of a function whose first parameter is what the shared options say."""

    def register(command: Callable[..., Any]) -> Callable[..., Any]:
        return app.command(epilog=_examples(*examples))(with_shared_options(command, read_given))

    return register


@_command(
    "tdc convert zoo:resnet32",
    "tdc convert model.py:Net --arg num_classes=100 --filters uniform -o nets/ --weights",
    "tdc convert torchvision:resnet18 --stem leading -o - | less",
)
def convert(
    given: Given,
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", metavar="OUT", help="A .py file, a folder, or - for standard output."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    weights: Annotated[bool, typer.Option("--weights", help="Also write the weights, as .safetensors.")] = False,
    seed: Seed = None,
) -> None:
    """Write a network's top-down network as standalone PyTorch source: NAME_td.py in the current folder, or OUT.

    It is written out plainly, without the forms of layers that are faster, unless --fast asks for them.
    """
    with _debugging(given.debug, "convert"):
        from td_compiler.cli import commands

        commands.convert(commands.Request.read(given, seed), out, weights=weights, force=force)


@_command(
    "tdc inspect zoo:resnet32",
    "tdc inspect timm:efficientnet_b0 --filters uniform --input-size 3,320,320",
    "tdc inspect torchvision:resnet18 --plot resnet18.svg --image dog.jpg",
)
def inspect(
    given: Given,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    plot: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw both networks into a .svg or .png file."),
    ] = None,
    image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="A photograph whose pyramid stands in that picture.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace that file if it exists.")] = False,
) -> None:
    """Show the bottom-up network (BU) beside its top-down network (TD), scale by scale."""
    with _debugging(given.debug, "inspect"):
        from td_compiler.cli import commands

        commands.inspect(commands.Request.read(given), as_json=as_json, plot=plot, image=image, force=force)


@_command(
    "tdc export zoo:resnet32 -o resnet32.onnx --weights resnet32_td.safetensors",
    "tdc export resnet32_td.py -o resnet32.pt2 --input-size 3,32,32 --weights resnet32_td.safetensors",
)
def export(
    given: Given,
    out: Annotated[str, typer.Option("-o", "--out", metavar="OUT", help="A .onnx or .pt2 file.")],
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The top-down network's weights: .safetensors, or a checkpoint of torch's."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace that file if it exists.")] = False,
    seed: Seed = None,
) -> None:
    """Write a top-down network as ONNX or as a program of torch.export, and compare it with the network.

    SOURCE is a bottom-up network, or a file that convert wrote.

    Images may be of any number and, where the format can say so, of any size.
    """
    with _debugging(given.debug, "export"):
        from td_compiler.cli.export import export
        from td_compiler.cli.requests import Request

        export(Request.read(given, seed), out, weights=weights, force=force)


@_command(
    "tdc explain zoo:resnet18_light dog.jpg cat.jpg --weights td.safetensors --bottom-up bu.safetensors",
    "tdc explain torchvision:resnet18 dog.jpg --weights td.pth --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
)
def explain(
    given: Given,
    image: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files.")],
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", metavar="OUT", help="A .png, .svg or .pdf file. [default: NAME_explained.png]"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The top-down network's weights: .safetensors, or a checkpoint of torch's."),
    ] = None,
    bottom_up: Annotated[
        str | None, typer.Option(metavar="FILE", help="The bottom-up network's weights; it is drawn above.")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Draw networks without weights, which look nowhere in particular.")
    ] = False,
    label: Annotated[
        int | None, typer.Option("--class", metavar="N", min=0, help="Explain class N, not the one that is found.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Taken off images in [0, 1]; by default as the file says.")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="NUMBERS", help="What images are then divided by.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace that file if it exists.")] = False,
) -> None:
    """Draw where in photographs a network finds a class: Grad-CAM by stage, the bottom-up network (BU) beside it."""
    with _debugging(given.debug, "explain"):
        from td_compiler.cli.explain import Look, explain
        from td_compiler.cli.requests import Request

        look = Look(weights, bottom_up, random_weights, label, mean, std)
        explain(Request.read(given), image, out, look, force=force)


@_command("tdc verify zoo:resnet32", "tdc verify timm:efficientnet_b0 --filters uniform --meta")
def verify(
    given: Given,
    meta: Annotated[
        bool, typer.Option("--meta", help="Build the network without weights: fast at any size, values unchecked.")
    ] = False,
    seed: Seed = None,
) -> int:
    """Convert a network and check the result, property by property; exits with 1 if one does not hold."""
    with _debugging(given.debug, "verify"):
        from td_compiler.cli import commands

        return 0 if commands.verify(commands.Request.read(given, seed), meta=meta) else 1


@app.command("list", epilog=_examples("tdc list", "tdc list timm | grep mobilenet", "tdc list timm --all | grep '#'"))
def list_models(
    library: Annotated[
        str | None,
        typer.Argument(metavar="zoo|torchvision|timm|pytorchcv", help="By default all, with their prefixes."),
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="Also those that do not convert, or were not tried, with the reason.")
    ] = False,
    debug: Debug = False,
) -> None:
    """List the models that convert: in columns on a terminal, else one a line."""
    with _debugging(debug, "list"):
        from td_compiler.cli import commands

        commands.list_models(library, show_all=show_all)


register_experiments(app)


def main() -> None:
    """Run `tdc` with the words of the command line; exits with its code."""
    app()
