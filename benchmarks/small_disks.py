"""Every command that writes, on a disk that is full and in folders that may only be read."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import output
from benchmarks.fault_world import FORMATS, LENGTHS, Row, Running, World
from mer_export.bundle import STAGING, WEIGHTS, Bundle
from mer_export.errors import NotAvailableError

WRITERS: dict[str, str] = {
    "synth": "data synth cmerc --dialogues 8 --out {new}/synthetic",
    **{
        f"synth {n}": f"data synth {n} --dialogues 30 --out {{new}}/synthetic"
        for n in ("emt", "mtee", "tab", "facialmmt")
    },
    "convert": "data convert {data} --out {new}/d.parquet --force",
    "normalise": "data normalise {pickle} --out {new}/n.pkl --force",
    "byte-pairs": "data byte-pairs {root}/words.txt --size 300 --out {new}/pairs --force",
    "train": "train cmerc --preset sample/demo --set epochs=1 --data {data} --out {new}/run --quiet",
    "import": "import cmerc {root}/weights.safetensors --preset sample/demo --out {new}/imported",
    **{f"export {n}": f"export {{bundle}} --format {n} --seq-len {LENGTHS} --force" for n in FORMATS},
    **{f"infer {e}": f"infer {{bundle}} {{data}} --out {{new}}/p.{e} --force" for e in ("jsonl", "csv", "parquet")},
    "eval": "eval {bundle} --data {data} --missing-rate 0.5",
    "parity": "parity {bundle} --data {data} --limit 2",
    "bench": "bench {bundle} --batch 1 --rounds 3",
    "tune": "tune {bundle} --batch 1",
    "demo": "demo --out {new}/demo",
    "encoder of a signal": "encoder log_mel --set mels=24 --out {new}/encoder",
    "encoder of a network": "encoder {network} --length 16 --out {new}/encoder",
    "encoder of faces": "encoder {detector} --out {new}/faces",
    "attach": "attach {bundle} text={sentences}",
    "features": "features {clips}/clips.csv --encoder audio={sound} --out {new}/f.parquet --force --quiet",
    "crossval": "crossval tab --preset synthetic/tab_iemocap --data {tab} --out {new}/folds --fold 0 --fold 1 --quiet "
    "--set epochs=1 --set model.sentence_dim=6 --set model.context=1 --set data.context.size=1",
    "iemocap": "data iemocap {release} --out {new}/iemocap --force",
}
"""Every command that writes."""


def full(world: World, count: int, names: Sequence[str] = tuple(WRITERS)) -> list[Row]:
    """A disk with 0, 4, 16, 64, … KiB left, `count` sizes of it; a limit on file size where none can be mounted."""
    return [_refused(world, f"disk full: {n}", n, _disks(world, count)) for n in names]


def forbidden(world: World, names: Sequence[str] = tuple(WRITERS)) -> list[Row]:
    """Folders that may be read and not written."""
    return [_refused(world, f"no permission: {n}", n, [_read_only(world)]) for n in names]


Disk = tuple[Path, Callable[[], None] | None, Callable[[], object]]
"""A folder with a bundle, what a process does before it writes there, and how the folder goes."""


def _refused(world: World, fault: str, name: str, disks: Iterable[Disk]) -> Row:
    row = Row(fault)
    for place, before, undo in disks:
        try:
            old = Bundle.open(place / "bundle").manifest.files[WEIGHTS]
            code, said = Running(world.words(WRITERS[name], place), before).wait()
            undo()
            if code == NotAvailableError.exit_code:
                return Row(fault, notes={said: 0})
            fault_said = code == 2 and str(place) in said and "internal error" not in said
            opened = Bundle.open(place / "bundle")
            opened.verify()
            sound = opened.manifest.files[WEIGHTS] == old and not list(place.rglob(STAGING))
            sound &= not list(place.rglob("*.tmp"))
            row.add(sound and (fault_said or code == 0), _note(code, said, place, sound))
        finally:
            undo()
            shutil.rmtree(place, ignore_errors=True)
    output.say(f"{row.fault}: {row.survived} of {row.tried} {row.notes}")
    return row


def _note(code: int, said: str, place: Path, sound: bool) -> str:
    if not sound:
        return f"something was left or lost, exit code {code}: {said}"
    if code == 0:
        return "written"
    return "exit code 2, the file named" if code == 2 and str(place) in said else f"exit code {code}: {said}"


def _disks(world: World, count: int) -> Iterator[Disk]:
    for kib in [0, *(4 << (2 * n) for n in range(count))][:count]:
        place = Path(tempfile.mkdtemp(dir=world.root))
        if _mount(place, world):
            shutil.copytree(world.bundle, place / "bundle")
            with (place / "filler").open("wb", buffering=0) as filler:
                _fill(filler.fileno(), kib << 10)
            yield place, None, _unmounting(place)
        else:
            shutil.copytree(world.bundle, place / "bundle")
            yield place, _Limit(kib << 10), lambda: None


def _mount(place: Path, world: World) -> bool:
    size = sum(p.stat().st_size for p in world.bundle.rglob("*") if p.is_file())
    options = f"size={(size >> 10) + 2048}k"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    return shutil.which("mount") is not None and not subprocess.run(command, capture_output=True).returncode


def _fill(descriptor: int, left: int) -> None:
    """Writes until the disk is full, then gives `left` bytes back."""
    written = 0
    try:
        while True:
            written += os.write(descriptor, bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    os.ftruncate(descriptor, max(0, written - left))


def _unmounting(place: Path) -> Callable[[], object]:
    """Gives room again at the first call, and the mount back when it is no longer looked at."""
    calls: list[int] = []

    def undo() -> None:
        calls.append(1)
        (place / "filler").unlink(missing_ok=True)
        if len(calls) > 1:
            subprocess.run(["umount", str(place)], check=True)

    return undo


@dataclass(frozen=True)
class _Limit:
    """No file of this process grows past so many bytes; what is said goes on to be said."""

    size: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(self.size, 1024), resource.RLIM_INFINITY))


def _read_only(world: World) -> Disk:
    place = Path(tempfile.mkdtemp(dir=world.root))
    shutil.copytree(world.bundle, place / "bundle")
    folders = [place, *(p for p in place.rglob("*") if p.is_dir())]
    for path in place.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
    for folder in folders:
        folder.chmod(0o555)

    def undo() -> None:
        for folder in folders:
            folder.chmod(0o755)

    return place, drop_rights, undo


def drop_rights() -> None:
    """Takes from this process what lets root write where nobody may; others have nothing to lose."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        nothing = (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
            raise OSError(ctypes.get_errno(), "capset")
