"""Every install hint names this distribution and an extra that it has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from mer_export.install import DISTRIBUTION, Extra, install_hint, not_installed

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HINT = re.compile(r"(?<![\w.-])(mer|mer-export)\[([\w,-]+)\]")


def read_by_people() -> list[Path]:
    """Code, documents and recorded results; not the bundles that earlier releases wrote."""
    folders = ("mer_export", "train", "runtimes", "benchmarks", "docs", "tests")
    files = [
        f for folder in folders for f in (ROOT / folder).rglob("*") if f.suffix in {".py", ".md", ".json", ".html"}
    ]
    kept = [f for f in files if "data" not in f.relative_to(ROOT).parts[1:2] or f.suffix == ".py"]
    return [*kept, *ROOT.glob("*.md"), ROOT / "cli.py", ROOT / "Makefile", ROOT / "pyproject.toml"]


def test_a_hint_installs_this_distribution() -> None:
    assert PROJECT["name"] == DISTRIBUTION == "mer-export"
    assert install_hint("cpu") == "pip install 'mer-export[cpu]'"
    assert install_hint("tensorrt", "tensorrt-rtx") == (
        "pip install 'mer-export[tensorrt]' or 'mer-export[tensorrt-rtx]'"
    )
    assert not_installed("pyarrow", "columnar") == "pyarrow is not installed: pip install 'mer-export[columnar]'"


def test_every_extra_that_a_hint_may_name_exists() -> None:
    assert set(get_args(Extra)) <= set(PROJECT["optional-dependencies"])


def test_no_text_sends_people_to_the_package_of_somebody_else() -> None:
    named = {(f, *hint) for f in read_by_people() for hint in HINT.findall(f.read_text(encoding="utf-8"))}
    assert {file.name for file, *_ in named} >= {"data.md", "pyproject.toml"}
    assert not {(f, name) for f, name, _ in named if name != DISTRIBUTION}
    extras = {extra for *_, listed in named for extra in listed.split(",")}
    assert extras <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("folder", ["mer_export", "train", "runtimes", "benchmarks"])
def test_hints_are_made_in_one_place(folder: str) -> None:
    files = {f for f in (ROOT / folder).rglob("*.py") if "pip install" in f.read_text(encoding="utf-8")}
    assert files <= {ROOT / "mer_export" / "install.py"}
