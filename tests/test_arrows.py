"""Which package may import which, and what starting the command line costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import typer

import cli

ROOT = Path(__file__).parent.parent
PACKAGES = ("cli", "train", "runtimes", "mer_export")

ALLOWED = {
    "mer_export": set(),
    "train": {"mer_export"},
    "runtimes": {"mer_export"},
    "cli": {"train", "runtimes", "mer_export"},
}
"""Package to the packages that it may import."""

FLOORS = (
    "mer_export.errors",
    "mer_export.install",
    "mer_export.untrusted",
    "mer_export.metrics",
    "mer_export",
    "mer_export.metrics.measure",
    "mer_export.experiment",
    "mer_export.layers",
    "mer_export.models",
    "mer_export.data.media",
    "mer_export.data.samples",
    "mer_export.agreement",
    "mer_export.console",
    "mer_export.data.tokens",
    "mer_export.encoders",
    "mer_export.data.shapes",
    "mer_export.data.formats",
    "mer_export.data",
    "mer_export.importer",
    "mer_export.exporters.graph",
    "mer_export.exporters",
    "mer_export.exporters.encoders",
    "runtimes.backends",
    "runtimes.predict",
    "runtimes.parity",
    "runtimes.debug",
    "runtimes.speed",
    "runtimes.pages",
    "runtimes.encode",
    "runtimes.features",
    "runtimes.pipeline",
    "runtimes.live",
    "runtimes.scale",
    "runtimes.serve",
    "runtimes.triton",
    "runtimes.deploy",
    "runtimes",
)
"""Rooms from the ground up: a module imports from its own room and from those below. A module of a package that is
listed stands in that package's room unless it is listed itself."""

SAMPLES = ("samples", "dialogues", "spec", "labels", "collate", "overflow", "missing", "example_inputs")
"""Modules of `mer_export.data` that know no files: they stand on the floor of `samples`."""


def sources() -> dict[str, Path]:
    """Every module of the packages by dotted name."""
    files = [ROOT / "cli.py", *(f for p in PACKAGES[1:] for f in (ROOT / p).rglob("*.py"))]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in sorted(files)}


FILES = sources()


def imported(module: str) -> set[str]:
    """The modules of ours that a module imports, inside functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{name.name}" for name in node.names}
            found |= (whole & FILES.keys()) or {node.module}
    return (found & FILES.keys()) - {module}


GRAPH = {module: imported(module) for module in FILES}


def room(module: str) -> str:
    """The room of a module, by the longest listed name that it stands under."""
    if module.removeprefix("mer_export.data.") in SAMPLES:
        return "mer_export.data.samples"
    return max((r for r in FLOORS if module == r or module.startswith(r + ".")), key=len)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    backwards = {
        (module, target)
        for module, targets in GRAPH.items()
        for target in targets
        if module.split(".")[0] == package and target.split(".")[0] not in ALLOWED[package] | {package}
    }
    assert not backwards


def test_rooms_import_from_the_floors_below_them() -> None:
    upwards = {
        f"{module} -> {target}"
        for module, targets in GRAPH.items()
        for target in targets
        if module.startswith(("mer_export.", "runtimes."))
        and target.split(".")[0] == module.split(".")[0]
        and FLOORS.index(room(target)) > FLOORS.index(room(module))
    }
    assert not upwards, sorted(upwards)


def test_no_module_imports_itself_through_others() -> None:
    order = TopologicalSorter({m: {t for t in targets if t != m} for m, targets in GRAPH.items()})
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_command_line_starts_without_what_its_commands_need() -> None:
    code = (
        "import sys, cli; "
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'openvino', 'pyarrow', 'matplotlib', 'h5py'}; "
        "heavy |= {'starlette', 'uvicorn', 'prometheus_client', 'ray', 'fsspec', 'tritonclient', 'grpc'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_help_lists_the_commands_in_the_order_of_their_use() -> None:
    first = ["doctor", "list", "verify", "inspect", "synth", "init", "train", "crossval", "experiment"]
    then = [
        "difficulty",
        "import",
        "encoder",
        "features",
        "attach",
        "export",
        "infer",
        "eval",
        "parity",
        "bench",
        "tune",
        "serve",
        "triton",
        "package",
        "card",
        "push",
        "pull",
        "demo",
        "data",
        "debug",
    ]
    assert list(typer.main.get_command(cli.app).commands) == [*first, *then]
