"""What the machine does wrong ends in one sentence and exit code 2, 5 or 130; 1 is for bugs of ours alone."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Mer

import cli
from mer_export import faults
from mer_export.errors import MerError, NotAvailableError, UsageError
from mer_export.launcher import module_command

DATA = Path(__file__).parent / "data"
BUNDLE, DIALOGUES = DATA / "bundles" / "cmerc", DATA / "small" / "dialogues.jsonl"


@pytest.mark.parametrize("number", faults.ADVICE)
def test_an_error_of_the_operating_system_is_a_sentence_that_names_the_file(number: int) -> None:
    found = faults.explain(OSError(number, os.strerror(number), "some/file"))
    assert isinstance(found, UsageError)
    assert str(found) == f"some/file: {faults.ADVICE[number]}"


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2, "the disk is full: free some space or write elsewhere"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), 2, "a -> b: invalid cross-device link"),
        (OSError("libcudart.so.13: cannot open shared object file"), 5, "a package does not load: libcudart.so.13: "),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "the disk is full"),
        (MemoryError(), 2, "not enough memory"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 5, "torch is not installed: pip install 'mer-e"),
        (ImportError("libx.so.1: no such file", name="onnxruntime.capi"), 5, "onnxruntime is installed and does not"),
        (NotAvailableError("no GPU"), 5, "no GPU"),
    ],
)
def test_what_is_not_a_bug_has_a_code_of_its_own(error: Exception, code: int, sentence: str) -> None:
    found = faults.explain(error)
    assert isinstance(found, MerError)
    assert found.exit_code == code
    assert sentence in str(found)


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), OSError("x"), ModuleNotFoundError("No module named 'x'", name="x")]
)
def test_anything_else_is_a_bug_of_ours(error: Exception) -> None:
    assert faults.explain(error) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_write_that_fails_names_what_was_written(error: Exception) -> None:
    with pytest.raises(OSError, match="No space") as caught, faults.at("runs/a"):
        raise error
    assert str(faults.explain(caught.value)) == f"runs/a: {faults.ADVICE[errno.ENOSPC]}"


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "No such file", "b"), ValueError("x"), OSError("x")])
def test_an_error_that_names_its_file_or_is_of_another_kind_stays_what_it_is(error: Exception) -> None:
    before = str(error)
    with pytest.raises(type(error)) as caught, faults.at("a"):
        raise error
    assert caught.value is error
    assert str(error) == before


def sentence_of(err: str) -> str:
    last = err.strip().splitlines()[-1]
    assert last.startswith("mer: "), err
    assert "Traceback" not in err
    assert "internal error" not in err
    return last


LONG = "x" * 300


WITHOUT = """
import sys

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name == {!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Gone())
import cli
cli.main()
"""
"""Runs the command line as where a package is not installed."""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["infer", "{bundle}", "{data}", "--force", "--out", "{folder}"], "it is a directory, expected a file"),
        (["infer", "{bundle}", "{data}", "--out", "{file}/out.jsonl"], "there is not a directory"),
        (["infer", "{bundle}", "{data}", "--out", "{folder}/" + LONG + ".jsonl"], "the name is too long"),
        (["infer", "{bundle}", "{folder}/" + LONG, "--out", "{new}.jsonl"], "the name is too long"),
        (["verify", "{new}/" + LONG], ""),
        (["verify", "{file}"], ""),
        (["synth", "cmerc", "--out", "{file}/data"], ""),
        (["synth", "cmerc", "--out", "{new}/" + LONG], "the name is too long"),
        (["train", "cmerc", "--preset", "sample/demo", "--data", "{data}", "--out", "{file}/run"], ""),
        (["train", "cmerc", "--preset", "sample/demo", "--data", "{data}", "--out", "{new}/" + LONG], ""),
        (["train", "cmerc", "--config", "{folder}", "--data", "{data}", "--out", "{new}"], ""),
        (["import", "cmerc", "{folder}", "--out", "{new}"], ""),
        (["data", "convert", "{data}", "--out", "{file}/x"], ""),
        (["data", "convert", "{data}", "--out", "{folder}"], ""),
        (["inspect", "{new}/" + LONG], ""),
        (["bench", "{bundle}", "--baseline", "{folder}"], ""),
        (["eval", "{bundle}", "--data", "{new}/" + LONG], ""),
        (["demo", "--out", "{file}/demo"], ""),
    ],
)
def test_a_path_that_cannot_be_is_named(mer: Mer, tmp_path: Path, words: list[str], sentence: str) -> None:
    places = {"new": tmp_path / "new", "folder": tmp_path / "folder.jsonl", "file": tmp_path / "file"}
    places["folder"].mkdir()
    places["file"].write_text("a file")
    code, _, err = mer(*[w.format(**places, bundle=BUNDLE, data=DIALOGUES) for w in words])
    assert code in (2, 6), err
    assert sentence in sentence_of(err)


@pytest.mark.parametrize(
    ("words", "package"),
    [
        (["train", "cmerc", "--preset", "sample/demo", "--data", "{data}", "--out", "{new}"], "torch"),
        (["import", "cmerc", "{file}", "--preset", "meld", "--out", "{new}"], "torch"),
        (["export", "{bundle}", "--force"], "torch"),
        (["eval", "{bundle}", "--data", "{data}", "--runtime", "torch"], "torch"),
        (["demo", "--out", "{new}"], "torch"),
        (["infer", "{bundle}", "{data}", "--out", "{new}.jsonl", "--runtime", "onnxruntime"], "onnxruntime"),
        (["serve", "{bundle}"], "httptools"),
        (["package", "{bundle}", "--out", "{new}"], "packaging"),
    ],
)
def test_a_missing_package_comes_with_what_to_install(tmp_path: Path, words: list[str], package: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    places = {"new": tmp_path / "new", "file": tmp_path / "file", "data": DIALOGUES}
    places["bundle"] = shutil.copytree(BUNDLE, tmp_path / "bundle")
    # A fresh process, as modules that stand on the package may be loaded here already.
    command = [sys.executable, "-c", WITHOUT.format(package), *(w.format(**places) for w in words)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 5, ran.stderr
    assert f"{package} is not installed: pip install 'mer-export[" in sentence_of(ran.stderr)


def mer_process(*words: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(module_command("cli", *words), stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def full() -> Iterator[int]:
    """A disk without room."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    opened = os.open("/dev/full", os.O_WRONLY)
    yield opened
    os.close(opened)


@pytest.mark.parametrize("words", [("list",), ("list", "--json"), ("--help",), ("--version",)])
def test_a_full_standard_output_is_said(words: tuple[str, ...], full: int) -> None:
    with mer_process(*words, stdout=full) as running:
        assert sentence_of(running.communicate()[1]) == (
            "mer: standard output: the disk is full: free some space or write elsewhere"
        )
    assert running.returncode == 2


@pytest.fixture
def gone() -> Iterator[int]:
    """A pipe that nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def test_a_reader_that_has_seen_enough_is_no_error(gone: int) -> None:
    with mer_process("list", stdout=gone) as running:
        assert running.communicate()[1] == ""
    assert running.returncode == 0


def test_a_reader_that_has_gone_changes_no_exit_code(gone: int) -> None:
    # It prints its report, and then says with its exit code what of it is missing.
    code = "import sys; sys.modules['torch'] = None; import cli; cli.main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "doctor", "--require", "torch"], stdout=gone, stderr=subprocess.PIPE, text=True
    ) as running:
        assert "torch" in sentence_of(running.communicate()[1])
    assert running.returncode == 5


@pytest.mark.parametrize("taker", ["gone", "full"])
def test_progress_that_nobody_takes_does_not_stop_the_work(
    tmp_path: Path, request: pytest.FixtureRequest, taker: str
) -> None:
    command = module_command("cli", "synth", "cmerc", "--out", str(tmp_path / "data"))
    assert subprocess.run(command, stderr=request.getfixturevalue(taker)).returncode == 0
    assert list((tmp_path / "data").iterdir())


def test_a_closed_standard_output_is_the_null_device() -> None:
    with mer_process("list", preexec_fn=lambda: os.close(1)) as running:
        assert running.communicate()[1] == ""
    assert running.returncode == 0


@pytest.mark.parametrize("seconds", [0.15, 0.3, 0.6])
def test_an_interrupt_is_one_line_and_130_also_during_start(seconds: float, tmp_path: Path) -> None:
    # A shell's background jobs are born deaf to interrupts.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = 'mer'; "
        "from mer_export.launcher import main; print(flush=True); main()"
    )
    words = ("synth", "cmerc", "--out", str(tmp_path / "data"), "--dialogues", "1000000")
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout
        running.stdout.readline()
        time.sleep(seconds)
        running.send_signal(signal.SIGINT)
        try:
            err = running.communicate(timeout=120)[1]
        finally:
            running.kill()
    assert running.returncode == 130, err
    assert err.strip().splitlines()[-1] == "mer: interrupted"
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2),
        (PermissionError(errno.EACCES, "Permission denied", "bundle/bundle.json"), 2),
        (OSError(errno.EROFS, "Read-only file system", "bundle/.lock"), 2),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "data/dev.npz"), 2),
        (MemoryError(), 2),
        (RuntimeError("ours"), 1),
    ],
)
def test_the_command_line_ends_with_the_code_of_the_table(
    mer: Mer, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli.Bundle, "open", fail)
    found, _, err = mer("verify", BUNDLE)
    assert found == code
    assert ("internal error" in err) == (code == 1)
    assert err.count("\n") == 1
