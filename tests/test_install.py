"""Every install hint names this distribution and an extra that it has."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import get_args

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mer_export.faults import PACKAGES
from mer_export.install import DISTRIBUTION, Extra, install_hint, not_installed

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CALLED = {"Pillow": "PIL", "PyTorch": "torch", "TensorRT": "tensorrt", "scikit": "sklearn"}
"""What sentences call a package, where that is not the module's name."""
WITH_OTHERS = {"h11", "grpc"}
"""Modules that come with a package of the extra."""
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


def test_what_a_hint_installs_brings_the_package() -> None:
    """Of those that stand on the package themselves; the others come with one of these."""
    hinted = [(module, extra) for module, extras in PACKAGES.items() for extra in extras]
    for file in (f for folder in ("mer_export", "train", "runtimes") for f in (ROOT / folder).rglob("*.py")):
        said = re.findall(r'not_installed\("(\w+)[^"]*"((?:, "[\w-]+")+)\)', file.read_text(encoding="utf-8"))
        hinted += [(CALLED.get(name, name), extra) for name, extras in said for extra in re.findall(r"[\w-]+", extras)]
    assert ("transformers", "encoders") in hinted
    brought = packages_distributions()
    for module, extra in {*hinted}:
        rows = [canonicalize_name(Requirement(r).name) for r in PROJECT["optional-dependencies"][extra]]
        # One package has several distributions: onnxruntime and onnxruntime-gpu.
        names = tuple(canonicalize_name(n) for n in brought.get(module, [module]))
        assert module in WITH_OTHERS or any(row.startswith(names) for row in rows), (module, extra)


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
