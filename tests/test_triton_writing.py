"""A Triton repository on the disk: whole or as it was, and nothing of others is replaced."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from triton_repositories import CMERC, answered, contents, repository_of, router_of, same, samples_of, tensors

from mer_export.bundle import Bundle, files
from mer_export.data.samples import Sample
from mer_export.errors import BundleError, UsageError
from mer_export.exporters.graph import external_data
from runtimes.predict.predictor import Predictor
from runtimes.triton.plan import plan
from runtimes.triton.repository import MARK, write

pytest.importorskip("tritonclient.grpc")


@pytest.fixture(scope="module")
def cmerc() -> Bundle:
    return Bundle.open(CMERC)


@pytest.fixture
def copy(tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(CMERC, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def written(cmerc: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository_of(cmerc, tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def dialogues(cmerc: Bundle) -> list[Sample]:
    return samples_of(cmerc)


def test_weights_that_buckets_share_lie_on_the_disk_once(
    copy: Bundle, dialogues: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_data, "SMALLEST", 64)
    monkeypatch.setattr(external_data, "WORTH", 1024)
    present = {"weights": copy.manifest.weights.sha256}
    for variant in [v for v in copy.manifest.variants if v.format == "onnx" and v.precision == "fp32"]:
        with copy.commit() as change:
            made = change.file("variants/made/model.onnx")
            shutil.copyfile(copy.root / variant.model, made)
            model = external_data.share_weights(copy, change, variant, made)
            change.add_variant(variant.model_copy(update={"model": model, "options": variant.options | present}))
    write(plan(copy, name="shared"), tmp_path / "repository")
    one, other = (tmp_path / "repository").glob("*/1/*.weights")
    assert one.samefile(other)
    write(plan(copy, name="shared"), tmp_path / "repository", force=True)
    router = router_of(tmp_path / "repository", "shared")
    with Predictor(copy) as predictor:
        for sample in dialogues[:3]:
            same(answered(router, tmp_path / "repository", tensors(sample)), 0, list(predictor.predict([sample])))


def test_what_is_there_is_replaced_only_as_it_was_written(cmerc: Bundle, tmp_path: Path) -> None:
    out, made = tmp_path / "repository", plan(cmerc)
    out.mkdir()
    write(made, out)
    before = contents(out)
    with pytest.raises(UsageError, match="exists: pass --force to replace it"):
        write(made, out)
    write(plan(cmerc, name="meld"), out, force=True)
    assert {n.split("-")[0].split("/")[0] for n in contents(out) if n != MARK} == {"meld"}
    write(made, out, force=True)
    assert contents(out) == before
    (out / "cmerc" / "config.pbtxt").write_text("name: 'cmerc'\n")
    with pytest.raises(UsageError, match=r"cmerc/config.pbtxt was changed or added since"):
        write(made, out, force=True)
    assert (out / "cmerc" / "config.pbtxt").read_text() == "name: 'cmerc'\n"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="was not written by mer triton"):
        write(made, tmp_path / "other", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "repository"]


def test_a_repository_is_not_written_into_the_bundle(copy: Bundle) -> None:
    with pytest.raises(UsageError, match="is in the bundle"):
        write(plan(copy), copy.root / "triton")
    copy.verify()


@pytest.mark.parametrize("exchanges", [True, False])
def test_what_goes_wrong_leaves_the_old_repository(
    cmerc: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    out = tmp_path / "repository"
    write(plan(cmerc), out)
    before = contents(out)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    if not exchanges:
        monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    other = plan(cmerc, name="meld")
    with monkeypatch.context() as patch:
        patch.setattr(files, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write(other, out, force=True)
    assert contents(out) == before
    write(other, out, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["repository"]
    assert (out / "meld").is_dir()
    assert os.stat(out).st_mode & 0o777 == os.stat(tmp_path / "repository" / "meld").st_mode & 0o777


def test_what_a_killed_writer_left_goes_with_the_next_and_another_ones_work_stays(
    cmerc: Bundle, tmp_path: Path
) -> None:
    killed, living = tmp_path / ".repository.1.ab.tmp", tmp_path / ".repository.2.cd.tmp"
    for folder in (killed, living):
        (folder / "cmerc").mkdir(parents=True)
    with files.holding(living):
        write(plan(cmerc), tmp_path / "repository")
    assert sorted(p.name for p in tmp_path.iterdir()) == [living.name, "repository"]


KILLED_AT_EVERY_LINE = """
import os, sys
from pathlib import Path
from mer_export.bundle import files

out, killed, states = Path(sys.argv[1]), 0, set()

def write(step):
    lines = 0
    def trace(frame, event, arg):
        nonlocal lines
        if frame.f_code.co_filename == files.__file__:
            lines += event == "line"
            if lines == step:
                os.kill(os.getpid(), 9)
            return trace
    sys.settrace(trace)
    with files.replacing_folder(out) as fresh:
        for name in "ab":
            (fresh / name).write_text(str(step))
    os._exit(0)

for step in range(1, 1000):
    before = {p.read_text() for p in out.iterdir()}
    child = os.fork()
    if not child:
        write(step)
    status = os.waitpid(child, 0)[1]
    after = [p.read_text() for p in out.iterdir()]
    assert len(after) == 2 and len(set(after)) == 1 and set(after) <= before | {str(step)}, (step, after)
    states.add(set(after) == before)
    if status == 0:
        break
    killed += 1
print(killed, states == {True, False}, sorted(p.name for p in out.parent.iterdir()))
"""


def test_a_folder_is_the_old_or_the_new_one_wherever_its_writer_is_killed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in "ab":
        (tmp_path / "out" / name).write_text("0")
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_LINE, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    killed, both, left = done.stdout.split(" ", 2)
    assert int(killed) > 30
    assert (both, left) == ("True", "['out']\n")


def test_a_link_in_a_repository_is_not_replaced(cmerc: Bundle, tmp_path: Path) -> None:
    write(plan(cmerc), tmp_path / "repository")
    (tmp_path / "repository" / "cmerc" / "2").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="cmerc/2 was changed or added since"):
        write(plan(cmerc), tmp_path / "repository", force=True)


def test_a_damaged_file_is_not_served(copy: Bundle, tmp_path: Path) -> None:
    made = plan(copy)
    variant = copy.find("onnx-fp32-utterances8-bdynamic")
    file = copy.root / variant.model
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="does not match its checksum"):
        write(made, tmp_path / "repository")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle"]
