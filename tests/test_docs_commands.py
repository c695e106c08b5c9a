"""Every command that a document shows is one that there is: its options, its preset, what a benchmark needs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import cli
from train.config import PRESETS
from train.experiments.experiment import NAMES

ROOT = Path(__file__).parent.parent
PAGES = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
"""Not what changed, which names what there was."""
GROUP: Any = typer.main.get_command(cli.app)
ENDS = ("#", "&&", "|", ">", "2>&1", ">&-")
"""What a command line ends before."""
COMPLETION = ("--install-completion", "--show-completion")
"""What typer adds."""
SUITE = re.compile(r"\bpython3? -m benchmarks\.(\w+)([^`\n#)]*)")
OPTION = re.compile(r"(?<!\S)--?[A-Za-z][\w-]*")


def joined(page: Path) -> str:
    """The text, with lines that go on in one."""
    return re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))


def blocks(text: str) -> Iterator[str]:
    """Lines of code blocks, indented or between fences."""
    for fenced in re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield from fenced.splitlines()
    yield from (line for line in text.splitlines() if line.startswith("    "))


def whole(page: Path) -> list[list[str]]:
    """The words of each `mer` command in a block."""
    parts = [part for line in blocks(joined(page)) for part in re.split(r"# or: |&&| > ", line)]
    return [shlex.split(p, comments=True)[1:] for p in parts if p.strip().startswith("mer ")]


def mentioned(page: Path) -> list[list[str]]:
    """The words of each `mer` command, or a part of one, inside a sentence."""
    spans = re.findall(r"(?<!`)`mer ([^`]+)`", joined(page))
    lines = [re.split(rf"\s(?:{'|'.join(map(re.escape, ENDS))})", " ".join(s.split()))[0].split() for s in spans]
    return [words for words in lines if words]


def found(words: list[str]) -> tuple[Any, list[str]]:
    """A command, and what is said to it."""
    command, rest = GROUP, words
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        if rest[0].isupper():
            # It stands for any.
            return GROUP, rest[1:]
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def test_every_command_in_a_block_is_taken_as_it_stands() -> None:
    seen = 0
    for page in PAGES:
        for words in whole(page):
            command, rest = found(words)
            try:
                said = command.make_context(words[0], [*rest]).params
            except Exception as error:
                pytest.fail(f"{page.name}: mer {shlex.join(words)}: {error}")
            if preset := said.get("preset"):
                named = preset if "/" in preset else f"{said['system']}/{preset}"
                assert preset.isupper() or named in PRESETS, (page.name, words)
            if words[0] == "experiment":
                assert said["name"] in NAMES or said["name"].endswith(".yaml"), (page.name, words)
            seen += 1
    assert seen > 100


def test_every_option_in_a_sentence_is_one_of_its_command() -> None:
    seen = 0
    for page in PAGES:
        for words in mentioned(page):
            command, rest = found(words)
            known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"-h", "--help"}
            asked = OPTION.findall(" ".join(rest))
            assert {*asked} <= known, (page.name, words)
            seen += len(asked)
    assert seen > 50


def commands(command: Any = GROUP) -> Iterator[Any]:
    """A command and those in it."""
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from commands(inner)


def test_every_option_is_told_somewhere() -> None:
    told = {o for page in PAGES for o in re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text(encoding="utf-8"))}
    options = [[o for o in (*p.opts, *p.secondary_opts) if o.startswith("--")] for c in commands() for p in c.params]
    hidden = [own for own in options if own and not told.intersection(own)]
    assert [own for own in hidden if own[0] not in ("--verbose", "--version", *COMPLETION)] == []


def suites(page: Path) -> list[tuple[str, set[str]]]:
    """The benchmarks that are shown with options, and these."""
    shown = [(name, {*OPTION.findall(rest)}) for name, rest in SUITE.findall(joined(page))]
    return [(name, options) for name, options in shown if options - {"--help"}]


def test_every_benchmark_is_shown_with_what_it_needs() -> None:
    seen = 0
    for page in PAGES:
        for name, options in suites(page):
            place = ROOT / "benchmarks" / name
            files = [*place.glob("*.py")] or [place.with_suffix(".py")]
            code = "".join(f.read_text(encoding="utf-8") for f in files)
            if "suite_parser" in code:
                code += (ROOT / "benchmarks" / "lengths.py").read_text(encoding="utf-8")
            known = {*re.findall(r'add_argument\(\s*"(--[\w-]+)"', code)}
            # Of a suite of several verbs each needs its own.
            needed = set() if place.is_dir() else {*re.findall(r'"(--[\w-]+)", [^\n]*required=True', code)}
            assert options <= known, (page.name, name)
            assert needed <= options, (page.name, name)
            seen += 1
    assert seen > 20
