"""A change of a bundle is there whole or not at all: cut short, beside readers, on a full disk."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from damage import commit, cut_short, few_files, tree, written

from mer_export.bundle import JOURNAL, LOCK, MANIFEST, STAGING, Bundle, holds, replacing
from mer_export.errors import BundleError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return written(tmp_path / "bundle")


def test_a_change_leaves_alone_what_somebody_else_writes_there(root: Path) -> None:
    with replacing(root / "answers.jsonl") as temporary:
        temporary.write_text("{}")
        commit(root)
    assert (root / "answers.jsonl").read_text() == "{}"


def test_what_cannot_be_replaced_is_said_before_the_change_is(root: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(root).manifest.model_copy(update={"variants": [], "files": {}})
    os.link(root / "reports" / "note.json", tmp_path / "backup")
    fresh = Bundle.create(root, manifest, force=True)
    with pytest.raises(BundleError, match=r"note\.json is a hard link"), fresh.commit() as change:
        change.write("reports/note.json", "new")
    (tmp_path / "backup").unlink()
    opened = Bundle.open(root)
    assert not opened.pending
    assert opened.path("reports/note.json").read_text() == "{}"
    commit(root)


def left_half(root: Path, moved: int) -> None:
    """A writer ends in the middle of a change of two files."""
    with cut_short(Bundle.open(root), moved) as change:
        change.write("reports/note.json", "new")
        change.write("reports/other.json", "new")


@pytest.mark.parametrize("moved", range(3))
def test_a_reader_of_a_change_that_was_cut_short_sees_it_whole_and_writes_nothing(root: Path, moved: int) -> None:
    left_half(root, moved)
    before = tree(root)
    bundle = Bundle.open(root)
    assert bundle.pending
    bundle.verify()
    assert [bundle.path(f"reports/{n}.json").read_text() for n in ("note", "other")] == ["new", "new"]
    assert tree(root) == before, "a reader finishes nothing"
    with bundle.commit() as change:
        change.write("reports/third.json", "newer")
    bundle = Bundle.open(root)
    assert not bundle.pending
    assert bundle.path("reports/other.json").read_text() == "new"
    assert not (root / STAGING).exists()


@pytest.mark.parametrize("moved", range(3))
def test_a_writer_finishes_what_was_cut_short_before_it_reads(
    root: Path, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would wait for itself: readers let a living writer go first."""
    monkeypatch.setattr(holds, "PATIENCE", 0.0)
    left_half(root, moved)
    with Bundle.open(root).lock():
        opened = Bundle.open(root)
        assert not opened.pending
        opened.verify()


@pytest.mark.parametrize("moved", range(3))
def test_a_folder_of_a_change_that_was_cut_short_is_the_new_one_or_refused(root: Path, moved: int) -> None:
    for begin, said in ((Bundle.commit, "old"), (lambda bundle: cut_short(bundle, moved), "new")):
        with begin(Bundle.open(root)) as change:
            for name in "ab":
                change.write(f"tokenizer/{name}", said)
    bundle, halves = Bundle.open(root), "a change of tokenizer was cut short: any command that writes ends it"
    if moved == 1:
        with pytest.raises(BundleError, match=halves):
            bundle.folder("tokenizer")
        return
    folder = bundle.verified_folder("tokenizer")
    assert [(folder / n).read_text() for n in "ab"] == ["new", "new"]
    (folder / "c").write_text("what the change was to remove")
    with pytest.raises(BundleError, match=halves):
        bundle.folder("tokenizer")


READER = """
import sys
from mer_export.bundle import Bundle
for _ in range(int(sys.argv[2])):
    bundle = Bundle.open(sys.argv[1])
    bundle.verify()
    texts = {bundle.manifest.files[f"reports/{n}.json"].sha256 for n in "abc"}
    assert len(texts) == 1, "a mixture of two changes"
"""
WRITER = """
import sys
from mer_export.bundle import Bundle
for number in range(int(sys.argv[2])):
    with Bundle.open(sys.argv[1]).commit() as change:
        for name in "abc":
            change.write(f"reports/{name}.json", f"{number} " * (number % 50))
        if number % 3 == 0:
            change.write("reports/d.json", "there")
        elif "reports/d.json" in change.manifest.files:
            change.remove("reports/d.json")
"""


def beside(root: Path, opens: int, commits: int, readers: int = 2) -> None:
    """Readers and a writer at the same time; raises for the first that fails."""
    subprocess.run([sys.executable, "-c", WRITER, str(root), "1"], check=True)
    jobs = [(WRITER, commits), *[(READER, opens // readers)] * readers]
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(root), str(n)], stderr=subprocess.PIPE, text=True)
        for code, n in jobs
    ]
    for process in running:
        _, said = process.communicate(timeout=3000)
        assert process.returncode == 0, said


def test_readers_beside_a_writer_see_the_old_or_the_new_bundle(tmp_path: Path) -> None:
    root = few_files(tmp_path / "bundle")
    beside(root, opens=500, commits=150)
    assert Bundle.open(root).verify() >= 4


def test_what_was_replaced_since_a_bundle_was_opened_is_said_to_be_and_the_rest_still_opens(root: Path) -> None:
    early = Bundle.open(root)
    with Bundle.open(root).commit() as change:
        change.write("reports/note.json", "[]")
    with pytest.raises(BundleError, match="was replaced since this bundle was opened"):
        early.path("reports/note.json")
    assert early.path("config.yaml").is_file()
    assert early.verify(), "verify looks at the bundle as it stands"
    assert early.path("reports/note.json").read_text() == "[]"


def test_two_that_write_in_turn_lose_nothing_of_each_other(root: Path) -> None:
    one, two = Bundle.open(root), Bundle.open(root)
    for number, bundle in enumerate((one, two, one)):
        with bundle.commit() as change:
            change.write(f"reports/{number}.json", "{}")
    assert {f"reports/{n}.json" for n in range(3)} <= set(Bundle.open(root).manifest.files)


FULL = """
import resource, signal, sys
from mer_export.bundle import Bundle
bundle = Bundle.open(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
with bundle.commit() as change:
    change.write("reports/note.json", "x" * 1000)
    change.write("reports/large.json", "y" * 3000)
    change.remove("config.yaml")
"""


@pytest.mark.parametrize("room", [0, 1, 500, 999, 1000, 2999, 3000, 8000])
def test_a_disk_that_is_full_leaves_the_old_bundle_and_nothing_staged(root: Path, room: int) -> None:
    before = {k: v for k, v in tree(root).items() if not k.endswith(LOCK)}
    done = subprocess.run([sys.executable, "-c", FULL, str(root), str(room)], capture_output=True, text=True)
    assert "OSError" in done.stderr, (room, done.stderr)
    assert {k: v for k, v in tree(root).items() if not k.endswith(LOCK)} == before
    assert not (root / STAGING).exists()
    assert Bundle.open(root).verify()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounts a small disk, which needs root")
@pytest.mark.parametrize("kib", range(8, 72, 8))
def test_a_small_disk_leaves_the_old_bundle_and_nothing_staged(tmp_path: Path, kib: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not let tests mount anything")
    try:
        root = few_files(disk / "bundle")
        free = shutil.disk_usage(disk).free
        (disk / "ballast").write_bytes(bytes(free - kib * 1024))
        before = tree(root)
        try:
            with Bundle.open(root).commit() as change:
                for number in range(40):
                    change.write(f"reports/{number}.json", "x" * 1000)
            left = False
        except OSError:
            left = True
        assert not (root / STAGING).exists()
        assert not (root / JOURNAL).exists()
        assert left == (tree(root) == before)
        Bundle.open(root).verify()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_are_readable_as_the_umask_says(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        root = few_files(tmp_path / "bundle")
        with Bundle.open(root).commit() as change:
            path = change.file("model.safetensors")
            path.write_bytes(b"weights")
            path.chmod(0o600)
    finally:
        os.umask(before)
    for path in (root / "model.safetensors", root / "config.yaml", root / MANIFEST):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path


def test_a_bundle_that_may_not_be_written_can_be_read(root: Path) -> None:
    (root / LOCK).unlink()
    for path in (*root.rglob("*"), root):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert Bundle.open(root).verify()
    finally:
        root.chmod(0o755)


if __name__ == "__main__":
    # By hand: python tests/test_bundle_changes.py DIRECTORY 10000 3000
    where, opens, commits = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    beside(few_files(where), opens, commits)
    print(f"{opens} opens beside {commits} commits: none failed")
