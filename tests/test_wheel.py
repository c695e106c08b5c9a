"""The wheel holds all that the command needs, and the command starts its own modules among somebody else's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

from mer_export import __version__
from mer_export.launcher import OWN, module_command

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
BUNDLE, DIALOGUES = DATA / "bundles" / "cmerc", DATA / "small" / "dialogues.jsonl"
PACKAGES = ("mer_export", "runtimes", "train")

INSTALLED = {d.metadata["Name"] for d in distributions()}
"""By their records: looking for pip's module makes setuptools refuse to be imported in the same process."""

buildable = pytest.mark.skipif(
    not {"setuptools", "pip"} <= INSTALLED, reason="setuptools and pip, which build a wheel, are not here"
)


def environment(path: str | None) -> dict[str, str]:
    """This process's environment with another PYTHONPATH, or none."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return kept if path is None else kept | {"PYTHONPATH": path}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the source tree and nothing old is taken from there."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("cli.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source)]
    subprocess.run(command, check=True, env=environment(None), cwd=source)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `mer` of an environment with nothing in it but the wheel; third-party packages are those of this one."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(home)}))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(home / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    (packages / "third_party.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin" / "mer"


@buildable
def test_the_wheel_is_called_after_the_distribution_and_holds_every_file(wheel: Path) -> None:
    assert wheel.name.startswith(f"mer_export-{__version__}-")
    with zipfile.ZipFile(wheel) as content:
        names = {n for n in content.namelist() if ".dist-info/" not in n}
    files = [f for p in PACKAGES for f in (ROOT / p).rglob("*") if f.suffix in {".py", ".yaml", ".html", ".css"}]
    assert names == {"cli.py", *(f.relative_to(ROOT).as_posix() for f in files)}


@buildable
@pytest.mark.parametrize("path", [None, "."])
def test_an_installed_command_starts_its_own_modules(installed: Path, strange: Path, path: str | None) -> None:
    def run(*words: str | Path) -> str:
        done = subprocess.run([installed, *words], cwd=strange, env=environment(path), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("--version") == f"mer {__version__}\n"
    assert "synthetic/cmerc_meld" in json.loads(run("list", "--json"))["presets"]
    run("infer", BUNDLE, DIALOGUES, "--out", "labels.jsonl", "--runtime", "onnxruntime")
    answers = [json.loads(line) for line in (strange / "labels.jsonl").read_text().splitlines()]
    assert answers
    assert all(a["label"] for a in answers)


@pytest.mark.parametrize("path", [None, "."])
@pytest.mark.parametrize("words", [[sys.executable, str(ROOT / "cli.py")], module_command("cli")])
def test_a_clone_starts_its_own_modules(strange: Path, words: list[str], path: str | None) -> None:
    done = subprocess.run(
        [*words, "--version"], cwd=strange, env=environment(path), check=True, capture_output=True, text=True
    )
    assert done.stdout == f"mer {__version__}\n"


def test_the_launcher_leaves_the_search_path_and_other_modules_alone() -> None:
    code = (
        "import sys; before = list(sys.path); from mer_export import launcher; "
        "finder = launcher.OwnModules(); assert finder.find_spec('numpy', None) is None; "
        "assert all(finder.find_spec(name, None) for name in launcher.OWN); assert sys.path == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert {"cli", *PACKAGES} == OWN
