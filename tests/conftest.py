"""Options of the whole test suite."""

import fcntl
import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cli
from mer_export.bundle import Bundle

Mer = Callable[..., tuple[int, str, str]]
Once = Callable[[str, Callable[[Path], Bundle]], Bundle]
BESIDE = Path(__file__).parents[2] / "shared"
SAMPLE_DATA = Path(os.environ.get("MER_SAMPLE_DATA", BESIDE / "data"))
CONTAINERS = SAMPLE_DATA / "media" / "containers"
CASES = Path(os.environ.get("MER_CASES", BESIDE / "cases"))
"""What a clone does not hold: small real data, media files of every kind, cases that projects share."""


@pytest.fixture(scope="session", autouse=True)
def _no_key() -> Iterator[None]:
    """No export is recognised as the user's own: all that any test exports and runs passes the tables of programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", os.devnull)
        yield


LONGEST = (
    *("test_readme", "test_emt_runtimes", "test_mtee_export", "test_tune", "test_onnx_forms", "test_fault_suite"),
    *("test_train_processes", "test_own_data", "test_cli", "test_devices", "test_attached_encoders", "test_precision"),
    *("test_aot_inductor", "test_cmerc_causal", "test_encoders", "test_earlier_bundles", "test_export_variants"),
)
"""Files that take half a minute, the longest first."""


def pytest_configure() -> None:
    """A network that is captured is a million objects which stay: looking through them for garbage, as often as Python
    does by itself, takes a tenth of the time."""
    gc.set_threshold(50_000, 20, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two processes that get a file each end together where the long ones come first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=Path(__file__).parent / "golden" / "data",
        help="directory of <system>/<case>/case.json that tests/golden runs",
    )


@pytest.fixture(scope="session", autouse=True)
def _quick() -> Iterator[None]:
    """What is timed is timed once, without the pauses that keep engines out of each other's way: no test asserts how
    fast something is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtimes.speed.timing.PAUSE", 0.0)
        patch.setattr("runtimes.speed.timing.TURN", 0.0)
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a bundle that several files of tests read, and none writes to, by its name.

    The processes of one run share it: the first that needs it makes it, the others wait for that.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def made(name: str, make: Callable[[Path], Bundle]) -> Bundle:
        place = shared / f"made {name}"
        with Path(f"{place}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not place.exists():
                with tempfile.TemporaryDirectory(dir=shared) as folder:
                    make(Path(folder) / "bundle").root.rename(place)
        return Bundle.open(place)

    return made


@pytest.fixture(scope="session")
def exported(once: Once) -> Bundle:
    """A small bundle with random weights, exported to every format in both of its buckets; read only."""
    from small_bundle import export_all

    return once("cmerc", export_all)


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
def threads() -> Iterator[int]:
    """How many threads PyTorch has, which are put back."""
    import torch

    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark starts no processes of its own, which takes longer than what a small one times."""
    monkeypatch.setattr("runtimes.speed.bench.cold_start", lambda *_, **__: "nothing is started here")


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A working directory where somebody else's modules have the names of ours."""
    folder = tmp_path / "strange"
    (folder / "train").mkdir(parents=True)
    for file in ("cli.py", "runtimes.py", "train/__init__.py"):
        (folder / file).write_text(f"raise SystemExit('{file} of somebody else was started')\n")
    return folder
