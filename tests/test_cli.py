"""The command line: what it writes and prints, its exit codes, and one line for every error."""

from __future__ import annotations

import ast
import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import typer.main
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

import td_compiler
from td_compiler import options
from td_compiler.cli import app as cli
from td_compiler.cli import options as cli_options
from td_compiler.files import write_together
from td_compiler.report.report import Cost, Report, StageReport
from td_compiler.report.tables import byte_count, print_report, short_count
from td_compiler.sources import timm_families
from td_compiler.sources.converting import why_not

TINY = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, width=4, num_classes=3):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        return self.fc(self.pool(self.features(x)).flatten(1))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a small network in tiny.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path


def tdc(*words: str, code: int = 0) -> str:
    """Run a command and return what it printed: standard output, or, where it fails, its one line of error."""
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == code, result.output
    if code == 0:
        return result.stdout
    assert result.stderr.startswith("tdc: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def python(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=500, **options)  # type: ignore[call-overload]


def test_convert_writes_source_and_weights_that_fit_it(folder: Path) -> None:
    printed = tdc("convert", "zoo:resnet32", "--weights", "--init", "fresh", "--seed", "3")
    assert "wrote resnet32_td.py" in printed
    assert "467,946 bottom-up -> 528,042 top-down" in printed  # Table 1 of the workshop paper
    assert "3 stages, coarse to fine, of width 64 at 1/4, 32 at 1/2, 16 at 1/1" in printed
    weights = load_file("resnet32_td.safetensors")
    code = "import sys; sys.modules['td_compiler'] = None\n"
    code += "import resnet32_td as made\nfrom safetensors.torch import load_file\n"
    code += "net = made.Resnet32TD(); print(net.load_state_dict(load_file('resnet32_td.safetensors'), strict=True))"
    loaded = python("-B", "-c", code, cwd=folder)
    assert "All keys matched" in loaded.stdout, loaded.stderr

    torch.manual_seed(3)
    again = td_compiler.reverse(td_compiler.zoo.ZOO["resnet32"](), init="fresh").state_dict()
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    with safe_open("resnet32_td.safetensors", "pt") as file:
        assert file.metadata()["class"] == "Resnet32TD"
    assert "tdc convert zoo:resnet32 --init fresh --seed 3" in Path("resnet32_td.py").read_text()
    assert sorted(os.listdir()) == ["resnet32_td.py", "resnet32_td.safetensors", "tiny.py"]


def test_options_reach_the_conversion(folder: Path) -> None:
    counts = {
        ("--filters", "uniform"): 319_626,
        ("--filters", "reversed"): 563_274,  # both Table 1
    }
    for words, count in counts.items():
        assert f"{count:,} top-down" in tdc("convert", "zoo:resnet32", *words, "--force")
    tdc("convert", "tiny.py", "--arg", "width=6", "--arg", "num_classes=5", "--head-width", "8", "-o", "sub.py")
    header = ast.get_docstring(ast.parse(Path("sub.py").read_text()))
    assert header is not None
    assert "--head-width 8 --arg width=6 --arg num_classes=5" in " ".join(header.split())


def test_text_is_plain_unless_fast_forms_are_asked_for(folder: Path) -> None:
    def classes(*words: str) -> list[str]:
        tdc("convert", "zoo:nin_light", *words, "--force", "--weights")
        body = ast.parse(Path("nin_light_td.py").read_text()).body
        return [node.name for node in body if isinstance(node, ast.ClassDef)]

    plain, plain_weights = classes(), load_file("nin_light_td.safetensors")
    assert plain == classes("--no-fast")
    assert not any("Conv2d" in name or "Fast" in name for name in plain)
    fast = classes("--fast")
    forms = [i for i, name in enumerate(fast) if "Conv2d" in name or "Fast" in name]
    assert {"CombinedConv2d", "FastDropout"} <= {fast[i] for i in forms}
    assert fast[-1] == "NinLightTD" and forms == list(range(forms[0], len(fast) - 1)), "behind the blocks"
    assert forms[0] >= len(plain) - 1
    assert plain_weights.keys() == load_file("nin_light_td.safetensors").keys()


def test_class_and_file_names_follow_the_source(folder: Path) -> None:
    (folder / "nets").mkdir()
    tdc("convert", "tiny.py:Tiny", "-o", "nets")
    assert "class TinyTD(nn.Module)" in Path("nets/Tiny_td.py").read_text()
    pytest.importorskip("torchvision")
    tdc("convert", "torchvision:mobilenet_v2", "--arg", "num_classes=7")
    assert "class MobileNetV2TD(nn.Module)" in Path("mobilenet_v2_td.py").read_text()


def test_standard_output_gets_the_source_alone(folder: Path) -> None:
    talking = TINY.replace("return self.fc", "print('forward')\n        return self.fc")
    (folder / "tiny.py").write_text("print('import')\n" + talking)
    result = CliRunner().invoke(cli.app, ["convert", "tiny.py", "-o", "-"])
    assert result.exit_code == 0, result.output
    assert "TinyTD" in {node.name for node in ast.parse(result.stdout).body if isinstance(node, ast.ClassDef)}
    assert "import" in result.stderr.splitlines()
    assert "top-down" in result.stderr
    assert set(os.listdir()) - {"__pycache__"} == {"tiny.py"}


def test_existing_files_are_kept_without_force(folder: Path) -> None:
    # A source that does not exist: the output is looked at first, before any work.
    for existing, more in (("none_td.py", ()), ("none_td.safetensors", ("--weights",))):
        Path(existing).write_text("mine")
        assert f"{existing} exists: give --force" in tdc("convert", "none.py", *more, code=2)
        assert Path(existing).read_text() == "mine"
        Path(existing).unlink()
    Path("tiny_td.py").write_text("mine")
    tdc("convert", "tiny.py", "--force")
    assert "TinyTD" in Path("tiny_td.py").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("convert tiny.py --filters mirrored", 2, "--filters='mirrored' is not one of mirror, uniform, reversed."),
        ("convert tiny.py --downsample gausian", 2, "Did you mean 'gaussian'?"),
        ("convert tiny.py --head-width 0", 2, "--head-width=0 must be a positive number"),
        ("convert tiny.py --head-width many", 2, "'--head-width'"),
        ("convert tiny.py --input-size 32x32", 2, "must be three numbers C,H,W"),
        ("convert tiny.py --input-size 3,0,32", 2, "--input-size=(3, 0, 32) must be three positive numbers"),
        ("convert tiny.py --arg width", 2, "must be KEY=VALUE"),
        ("convert tiny.py --arg wdth=3", 2, "did you mean width?"),
        ("convert tiny.py --filtres uniform", 2, "No such option: --filtres"),
        ("convert", 2, "Missing argument"),
        ("convert zoo:resnet23", 2, "zoo:resnet32"),
        ("convert nowhere.py", 2, "no file nowhere.py"),
        ("convert tiny.py:Tin", 2, "did you mean Tiny?"),
        ("convert tiny.py -o no/where.py", 2, "there is no folder no"),
        ("convert tiny.py -o folder", 2, "OUT is a .py file"),
        ("convert tiny.py -o /dev/null/x.py", 2, "there is no folder /dev/null"),
        ("convert tiny.py -o - --weights", 2, "--weights needs a file"),
        ("convert broken.py", 1, "broken.py:1: SyntaxError"),
        ("convert raising.py", 1, "RuntimeError: two lines (raising.py:1)"),
        ("convert flat.py", 1, "convolution"),
        ("inspect nowhere.py", 2, "no file nowhere.py"),
        ("list timn", 2, "did you mean timm?"),
        ("convrt tiny.py", 2, "No such command 'convrt'"),
    ],
)
def test_an_error_is_one_line_and_leaves_no_file(folder: Path, words: str, code: int, said: str) -> None:
    (folder / "broken.py").write_text("def f(:")
    (folder / "raising.py").write_text("raise RuntimeError('two\\n lines')")
    (folder / "flat.py").write_text("from torch import nn\nFlat = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))\n")
    before = set(os.listdir())
    assert said in tdc(*words.split(), code=code)
    assert set(os.listdir()) - {"__pycache__"} == before


def test_errors_of_our_own_are_one_line_and_debug_shows_where(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from td_compiler.cli import requests

    def broken(*_: object, **__: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(requests, "reverse", broken)
    assert "KeyError: 'lost' at test_cli.py" in tdc("convert", "tiny.py", code=1)
    result = CliRunner().invoke(cli.app, ["convert", "tiny.py", "--debug"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "in broken" in result.stderr


def test_a_folder_that_cannot_be_written_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "read-only" in tdc("convert", "tiny.py", code=2)


def test_a_full_disk_is_one_line_and_leaves_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from td_compiler.cli import commands

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "temporary-name")

    monkeypatch.setattr(commands, "save_file", full)
    assert "tiny_td.py cannot be written: No space left on device" in tdc("convert", "tiny.py", "--weights", code=1)
    assert set(os.listdir()) - {"__pycache__"} == {"tiny.py"}


def test_files_are_written_together_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = Path("old.txt"), Path("new.txt")
    old.write_text("old")
    before = set(os.listdir())

    def full(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_together({old: lambda path: path.write_text("changed"), new: full})
    assert (old.read_text(), set(os.listdir())) == ("old", before)

    rename, calls = os.replace, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no rename")
        rename(source, target)

    for order in ((old, new), (new, old)):
        calls.clear()
        monkeypatch.setattr(os, "replace", second_fails)
        with pytest.raises(OSError, match="no rename"):
            write_together({path: lambda path: path.write_text("changed") for path in order})
        assert (old.read_text(), set(os.listdir())) == ("old", before)

    monkeypatch.undo()
    link = folder / "link.txt"
    link.symlink_to(old)
    write_together({link: lambda path: path.write_text("through the link")})
    assert link.is_symlink()
    assert (folder / "old.txt").read_text() == "through the link"


def test_inspect_shows_both_networks_without_building_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.nn.init, "kaiming_normal_", lambda tensor, *_, **__: tensor.is_meta or pytest.fail("built")
    )
    printed = tdc("inspect", "zoo:resnet32")
    assert re.search(r"total +467.9k 528.0k", printed)
    assert re.search(r"TD/BU +1.13 ", printed)
    assert set(os.listdir()) == {"tiny.py"}


def cost(scale: int, side: int, width: int, units: int, parameters: int, macs: int, memory: int) -> Cost:
    return Cost(scale, (side, side), width, units, parameters, macs, memory)


REPORT = Report(
    source="Wide",
    input_size=(3, 1024, 1024),
    scales=(1, 2),
    stages=(
        StageReport("stage1", 1, None, cost(1, 1024, 2048, 12, 528_042, 69_500_000, 1_288_490_189)),
        StageReport("stage2", 2, *[cost(2, 512, 2048, 12, 999_999_999, 999_949_999_999, 1_048_000_000)] * 2),
        StageReport("head", 1, *[cost(1, 1, 1000, 0, 1000, 1000, 512)] * 2),
    ),
    notes=("[bold]names[/bold] in brackets stay",),
)


def printed_table(width: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_report(REPORT, Console(width=width))
    return capsys.readouterr().out.splitlines()


def test_the_table_fits_80_columns_and_has_whole_numbers_where_there_is_room(
    capsys: pytest.CaptureFixture[str],
) -> None:
    narrow, wide = printed_table(80, capsys), printed_table(140, capsys)
    assert max(map(len, narrow)) <= 80
    assert not any("…" in line for line in narrow + wide)
    finest = next(line for line in narrow if line.split()[0] == "1")
    assert finest.split() == ["1", "-", "1024", "-", "2048", "-", "12", "-", "528.0k", "-", "69.5M", "-", "1.2", "GiB"]
    assert any("1024x1024" in line and "528,042" in line for line in wide)
    total = next(line for line in wide if line.startswith("total"))
    assert "1,000,000,999  1,000,529,041" in total
    assert narrow[-1] == "note: [bold]names[/bold] in brackets stay"


def test_a_printed_report_is_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print(REPORT)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [line.rstrip() for line in printed_table(80, capsys)]
    assert len(repr(REPORT)) < 100 and "\n" not in repr(REPORT)


def test_short_numbers() -> None:
    assert [short_count(n) for n in (0, 999, 1000, 528_042, 999_949, 999_960, 69_500_000)] == [
        *("0", "999", "1.0k", "528.0k", "999.9k", "1.0M", "69.5M")
    ]
    assert [byte_count(n) for n in (512, 1023, 1536, 300_000, 1_288_490_189)] == [
        *("512 B", "1.0 KiB", "1.5 KiB", "293 KiB", "1.2 GiB")
    ]


def test_list_prints_one_name_a_line() -> None:
    assert "resnet32" in tdc("list", "zoo").splitlines()
    pytest.importorskip("torchvision")
    assert {"resnet18", "mobilenet_v2"} <= set(tdc("list", "torchvision").splitlines())


def test_list_has_what_converts_and_marks_the_rest_if_asked() -> None:
    timm = pytest.importorskip("timm")
    names = tdc("list", "timm").splitlines()
    assert {"resnet50", "convnext_tiny"} <= set(names) and not {"hrnet_w18", "vit_base_patch16_224"} & set(names)
    lines = tdc("list", "timm", "--all").splitlines()
    assert [line.split()[0] for line in lines] == sorted(timm.list_models())
    reasons = dict(re.split(r" +# ", line) for line in lines if "#" in line)
    assert reasons["hrnet_w18"] == "several resolutions side by side"
    assert reasons["botnet26t_256"] == "attention: only CNNs convert"
    assert sorted([*names, *reasons]) == sorted(timm.list_models())


def test_what_is_listed_is_what_the_sweep_found() -> None:
    """The refusals that are kept are those of the table, but for two families that convert since."""
    pytest.importorskip("timm")
    text = (Path(__file__).parents[1] / "benchmarks/results/coverage.md").read_text()
    refused = {name for line in text.splitlines() if "| refused |" in line for name in re.findall(r"timm:(\w+)", line)}
    kept = {name for name in timm_families.convolutional_names() if why_not("timm", name)}
    assert refused - kept == {"nasnetalarge", "pnasnet5large"}
    assert kept <= refused


def test_convert_says_what_to_do_next_beside_what_it_prints(folder: Path) -> None:
    (folder / "nets").mkdir()
    result = CliRunner().invoke(cli.app, ["convert", "tiny.py", "-o", "nets", "--weights", "--filters", "uniform"])
    assert "next" not in result.stdout
    make, look = result.stderr.splitlines()
    assert make.startswith(
        "next: train it, in nets: from tiny_td import TinyTD; model = TinyTD(); model.load_state_dict("
    )
    assert look.endswith("tdc inspect tiny.py --filters uniform")


def test_list_without_a_library_prints_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    result = CliRunner().invoke(cli.app, ["list"])
    assert result.exit_code == 1
    assert "zoo:resnet32" in result.stdout.splitlines()
    assert "pip install 'td-compiler[models]'" in result.stderr


def test_help_names_the_values_that_the_options_take() -> None:
    assert "Examples" in tdc("--help")
    for command in ("convert", "inspect", "list"):
        assert "Examples" in tdc(command, "--help")
    defaults, given = options.Options(), get_type_hints(cli_options.read_given, include_extras=True)
    for name in ("Filters", "Merge", "Upsample", "Downsample", "Stem", "Init", "Task"):
        (_, option) = get_args(given[name.lower()])
        allowed = get_args(getattr(options, name))
        assert option.help.startswith(f"{', '.join(allowed)}: ")
        assert option.autocompletion(allowed[-1][:3]) == [allowed[-1]]
        assert allowed[0] == getattr(defaults, name.lower())  # what the help says of all of them


def test_help_fits_80_columns_and_no_word_of_it_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in typer.main.get_group(cli.app).list_commands(None):
        printed = tdc(command, "--help")
        assert max(map(len, printed.splitlines())) <= 80
        words = set(re.findall(r"\w+", printed))
        if "--filters" in printed and command not in {"compare", "train"}:
            assert {"mirror", "uniform", "reversed", "transposed", "laplacian", "segmentation"} <= words


def test_completion_knows_commands_and_values() -> None:
    def complete(words: str) -> list[str]:
        done = python(
            *("-m", "td_compiler"),
            env={
                **os.environ,
                "_TDC_COMPLETE": "complete_bash",
                "COMP_WORDS": words,
                "COMP_CWORD": str(words.count(" ")),
            },
        )
        return done.stdout.split()

    assert complete("tdc in") == ["inspect"]
    assert complete("tdc convert zoo:nin --filters re") == ["reversed"]


def test_help_and_version_do_not_import_torch() -> None:
    for words in (["--version"], ["--help"], ["convert", "--help"]):
        code = f"import sys\nfrom td_compiler.cli import app as cli\nsys.argv[1:] = {words}\n"
        code += "try: cli.main()\nfinally: print('torch imported:', 'torch' in sys.modules)"
        done = python("-c", code)
        assert done.returncode == 0, done.stderr
        assert "torch imported: False" in done.stdout
    assert python("-m", "td_compiler", "--version").stdout.split() == ["tdc", td_compiler.__version__]


def test_a_reader_that_has_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "td_compiler", "list", "zoo"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_an_interrupt_is_one_line(folder: Path) -> None:
    lines = [
        "import os, signal, time",
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored",
        "os.kill(os.getpid(), signal.SIGINT)",
        "time.sleep(60)",
    ]
    (folder / "slow.py").write_text("\n".join(lines))
    done = python("-m", "td_compiler", "convert", "slow.py")
    assert (done.returncode, done.stderr.strip()) == (130, "tdc: error: interrupted")
