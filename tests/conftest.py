"""Options of the whole test suite."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cli
from mer_export.bundle import Bundle

Mer = Callable[..., tuple[int, str, str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=Path(__file__).parent / "golden" / "data",
        help="directory of <system>/<case>/case.json that tests/golden runs",
    )


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small bundle with random weights, exported to every format in both of its buckets; read only."""
    from small_bundle import make_bundle, make_samples, randomise

    from mer_export.exporters import export_variant

    bundle = make_bundle(tmp_path_factory.mktemp("exported") / "bundle")
    randomise(bundle)
    for lengths in bundle.manifest.contract.buckets:
        for name in ("torchscript", "exported_program", "onnx"):
            export_variant(bundle, name, lengths, example=make_samples())
    return bundle


@pytest.fixture
def mer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Mer:
    """Runs a command line in this process: exit code, standard output, standard error."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mer", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A working directory where somebody else's modules have the names of ours."""
    folder = tmp_path / "strange"
    (folder / "train").mkdir(parents=True)
    for file in ("cli.py", "runtimes.py", "train/__init__.py"):
        (folder / file).write_text(f"raise SystemExit('{file} of somebody else was started')\n")
    return folder
