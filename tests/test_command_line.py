"""The command line as release 0.1 had it still works, word for word; what came since is listed here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import Mer
from typer.testing import CliRunner

import cli
from mer_export import __version__

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
BEFORE: dict[str, Any] = json.loads((DATA / "command_line.json").read_text())
SECOND_WAYS = {"inspect", "synth"}
NEW_COMMANDS = SECOND_WAYS | {
    "init",
    "encoder",
    "attach",
    "features",
    "serve",
    "triton",
    "package",
    "experiment",
    "difficulty",
    "debug",
    "debug parity",
    "card",
    "push",
    "pull",
}
OPTIONAL_NOW = {
    *(("data synth", o) for o in ("--out/-o", "--dataset")),
    ("infer", "--out/-o"),
    *(("export", o) for o in ("--max-variants", "--threads", "--split", "--data-format")),
    *(("bench", o) for o in ("--tolerance", "--split", "--data-format")),
    *(("tune", o) for o in ("--split", "--data-format")),
    ("data byte-pairs", "--split"),
}
"""These were required, had a default that fits one system only, or are refused where nothing reads them."""
BUNDLE, DIALOGUES = DATA / "bundles" / "cmerc", DATA / "small" / "dialogues.jsonl"


def commands() -> dict[str, Any]:
    """Every command by its words; the empty name is `mer` itself."""
    found: dict[str, Any] = {}

    def visit(command: Any, name: str) -> None:
        found[name] = command
        for word, inner in getattr(command, "commands", {}).items():
            visit(inner, f"{name} {word}".strip())

    visit(typer.main.get_command(cli.app), "")
    return found


COMMANDS = commands()


def options(name: str) -> dict[str, dict[str, Any]]:
    """What an option is called, its default, whether it may be repeated and whether it must be given."""
    return {
        "/".join(p.opts): {"default": plain(p.default), "many": p.multiple, "required": p.required}
        for p in COMMANDS[name].params
        if p.param_type_name == "option"
    }


def plain(default: Any) -> Any:
    return str(default) if isinstance(default, Path) else default


def test_no_command_was_lost_and_every_new_one_is_listed() -> None:
    assert set(COMMANDS) == set(BEFORE) | NEW_COMMANDS


@pytest.mark.parametrize("name", [n for n in BEFORE if "arguments" in BEFORE[n]])
def test_every_argument_and_option_of_before_means_the_same(name: str) -> None:
    arguments = [p.name for p in COMMANDS[name].params if p.param_type_name == "argument"]
    assert arguments == BEFORE[name]["arguments"]
    now = options(name)
    for option, before in BEFORE[name]["options"].items():
        if (name, option) in OPTIONAL_NOW:
            assert now[option] == {"default": None, "many": False, "required": False}
        else:
            assert now[option] == before, option


@pytest.mark.parametrize("name", ["", "data"])
def test_every_global_option_of_before_is_there(name: str) -> None:
    assert set(BEFORE[name]["options"]) <= {word for p in COMMANDS[name].params for word in p.opts}


def test_a_second_way_to_a_command_is_the_same_command() -> None:
    for word in SECOND_WAYS:
        assert COMMANDS[word].callback.__wrapped__ is COMMANDS[f"data {word}"].callback.__wrapped__


@pytest.mark.parametrize("name", [n for n in COMMANDS if n])
def test_help_is_a_letter_away(mer: Mer, name: str) -> None:
    short, long = mer(*name.split(), "-h"), mer(*name.split(), "--help")
    assert short == long
    assert short[0] == 0
    assert "Usage" in short[1]


def test_the_version_is_the_installed_one(mer: Mer) -> None:
    assert mer("--version") == (0, f"mer {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "unread"),
    [
        (["export", "{bundle}", "--max-variants", "4"], "--max-variants"),
        (["export", "{bundle}", "--threads", "1"], "--threads"),
        (["export", "{bundle}", "--split", "test"], "--split"),
        (["export", "{bundle}", "--outside", "{new}"], "--outside"),
        (["bench", "{bundle}", "--data-format", "auto"], "--data-format"),
        (["bench", "{bundle}", "--tolerance", "5%"], "--tolerance"),
        (["tune", "{bundle}", "--split", "dev"], "--split"),
        (["eval", "{bundle}", "--data", "{data}", "--seed", "1"], "--seed"),
        (["eval", "{bundle}", "--data", "{data}", "--missing-rate", "0.1", "--out", "{new}.md"], "--out {new}.md"),
        (["eval", "{bundle}", "--data", "{data}", "--missing-rate", "0.1", "--semantics", "batch"], "--semantics"),
        (
            ["eval", "{bundle}", "--data", "{data}", "--semantics", "batch", "--overflow", "window"],
            "--overflow window",
        ),
        (["inspect", "{data}", "--draft", "--data-format", "jsonl"], "--data-format"),
        (["data", "byte-pairs", "{text}", "--out", "{new}", "--split", "train"], "--preset, --split"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(mer: Mer, tmp_path: Path, words: list[str], unread: str) -> None:
    (tmp_path / "text.txt").write_text("well\n")
    places = {"bundle": BUNDLE, "data": DIALOGUES, "new": tmp_path / "new", "text": tmp_path / "text.txt"}
    code, out, err = mer(*(w.format(**places) for w in words))
    assert (code, out) == (2, "")
    assert f"leave {unread.format(**places)}" in " ".join(err.split())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_missing_rates_that_are_none_are_refused_before_data_are_read(
    mer: Mer, tmp_path: Path, more: list[str]
) -> None:
    code, _, err = mer("eval", BUNDLE, "--data", tmp_path / "nothing", "--missing-rate", "2", *more)
    assert (code, "--missing-rate 2: write 0.3" in err) == (2, True)


def test_a_text_in_another_encoding_is_named_with_the_byte(mer: Mer, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes("well\ncafé\n".encode("cp1252"))
    code, _, err = mer("data", "byte-pairs", text, "--out", tmp_path / "new")
    assert code == 2
    assert f"{text}, byte 9 is 0xe9, which is not UTF-8 text" in err.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-h"], 0),
        (["list"], 0),
        (["verify", "{bundle}"], 0),
        (["brew"], 2),
        (["verify"], 2),
        (["verify", "{bundle}", "--loud"], 2),
        (["synth", "bert", "--out", "{new}"], 2),
        (["inspect", "{bundle}", "--data-format", "jsonl"], 2),
        (["inspect", "{new}"], 2),
        (["doctor", "--require", "warp drive"], 5),
        (["infer", "{bundle}", "{data}", "--out", "{new}.jsonl", "--device", "cuda", "--runtime", "openvino"], 5),
        (["eval", "{bundle}", "--data", "{data}", "--semantics", "batch", "--device", "cuda:99"], 5),
        (["verify", "{new}"], 6),
        (["infer", "{new}", "{data}", "--out", "{new}.jsonl"], 6),
        (["export", "{bundle}", "--precision", "fp12", "--dry-run"], 7),
    ],
)
def test_the_exit_code_says_whose_move_it_is(mer: Mer, tmp_path: Path, words: list[str], code: int) -> None:
    places = {"bundle": BUNDLE, "data": DIALOGUES, "new": tmp_path / "new"}
    found, _, err = mer(*(w.format(**places) for w in words))
    assert found == code, err
    assert "Traceback" not in err


def test_inspect_describes_bundles_and_data_alike(mer: Mer) -> None:
    for path, kind in ((BUNDLE, "bundle"), (DIALOGUES, "data set")):
        code, out, err = mer("inspect", path, "--json")
        assert code == 0, err
        assert json.loads(out)["kind"] == kind
        assert mer("data", "inspect", path, "--json") == (0, out, err)


def test_quiet_before_the_command_is_quiet_after_it(mer: Mer, tmp_path: Path) -> None:
    words = ["emt", "--dialogues", "20", "--force", "--out", tmp_path / "data"]
    for name in (["synth"], ["data", "synth"]):
        code, _, err = mer(*name, *words)
        assert (code, err.count("\n")) == (0, 1)
        assert mer("-q", *name, *words)[::2] == mer(*name, *words, "-q")[::2] == (0, "")


@pytest.mark.parametrize("words", [["-v", "list"], ["-vv", "list"], ["synth", "emt", "--dialogues", "20", "-v"]])
def test_verbose_logs_to_standard_error(words: list[str], tmp_path: Path) -> None:
    """In a process of its own, whose log it changes."""
    done = subprocess.run(
        [sys.executable, ROOT / "cli.py", *words], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert f"INFO  mer {__version__}" in done.stderr
    assert "INFO" not in done.stdout


def test_a_named_command_is_made_alone_and_says_of_itself_what_it_says_among_all() -> None:
    alone, runner = cli.application(["-q", "infer", "--help"]), CliRunner()
    assert [c.name for c in alone.registered_commands] == ["infer"]
    for words in (["infer", "--help"], ["infer", "--bogus"], ["--version"]):
        said = [runner.invoke(app, words, prog_name="mer") for app in (alone, cli.app)]
        assert (said[0].exit_code, said[0].output) == (said[1].exit_code, said[1].output)
    for words in ([], ["--help"], ["nothing"], ["data", "--help"]):
        assert cli.application(words) is cli.app
