"""Which package may import which, and what starting the command line costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import cli

ROOT = Path(__file__).parent.parent
PACKAGES = {"cli", "train", "runtimes", "mer_export"}


def imported(file: Path) -> set[str]:
    """Top-level names of every import in a file, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("mer_export", set()), ("train", {"mer_export"}), ("runtimes", {"mer_export"})],
)
def test_imports_point_one_way(package: str, allowed: set[str]) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    backwards = {str(f.relative_to(ROOT)): imported(f) & (PACKAGES - {package} - allowed) for f in files}
    assert not {file: names for file, names in backwards.items() if names}


def test_the_command_line_starts_without_what_its_commands_need() -> None:
    code = (
        "import sys, cli; "
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'openvino', 'pyarrow', 'matplotlib', 'h5py'}; "
        "heavy |= {'tokenizers', 'huggingface_hub'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_help_lists_the_commands_in_the_order_of_their_use() -> None:
    first = ["doctor", "list", "verify", "inspect", "synth", "train", "crossval", "import", "export", "infer", "eval"]
    assert list(typer.main.get_command(cli.app).commands) == [*first, "parity", "bench", "tune", "demo", "data"]
