"""What the machine does to a run: killed at any moment, disk full, no permission, a million utterances, opened for ever.

    python3 -m benchmarks.faults --out benchmarks/results [--part kill] [--count 20]

Every part says what was tried and what survived; `docs/reliability.md` keeps the counts. Writes `faults-<part>.json` and
`.md`. Commands are processes of their own, forked from one that has imported everything and run nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import output
from mer_export.bundle import JOURNAL, MANIFEST, STAGING, WEIGHTS, Bundle
from mer_export.errors import BundleError
from mer_export.launcher import module_command
from mer_export.markdown import table
from runtimes.speed.start_up import peak_mib

PRELOADED = ["cli", "torch", "onnx", "onnxscript", "onnxruntime", "pyarrow.parquet", "train.fit", "runtimes.speed.tune"]
FORMATS = ("onnx", "torchscript", "exported_program")
LENGTHS = "utterances=8"
SIZES = ("--set", "text_dim=32", "--set", "audio_dim=24", "--set", "vision_dim=16")
"""Of the data that preset sample/demo is for."""
UTTERANCES = 8
"""In a dialogue of the long file."""


@dataclass
class Row:
    """One fault: how often it was tried and survived, and what happened in words."""

    fault: str
    tried: int = 0
    survived: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    def add(self, survived: bool, note: str) -> None:
        """Counts one attempt."""
        self.tried += 1
        self.survived += survived
        self.notes[note] = self.notes.get(note, 0) + 1


# Small data, and a bundle that was trained and exported


@dataclass(frozen=True)
class World:
    """Data of the authors' form, a bundle with an ONNX variant, an authors' checkpoint, a text, MMSA features."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> World:
        world = cls(root)
        for words in (
            ["data", "synth", "cmerc", "--out", world.data, "--dialogues", "12", *SIZES],
            ["data", "synth", "emt", "--dataset", "sims", "--out", world.mmsa, "--dialogues", "8"],
            [
                "train",
                "cmerc",
                "--preset",
                "sample/demo",
                "--set",
                "epochs=1",
                "--data",
                world.data,
                "--out",
                world.bundle,
                "--quiet",
            ],
            ["export", world.bundle, "--seq-len", LENGTHS, "--seq-len", "utterances=33", "--quiet"],
        ):
            code, said = Running(words, root).wait()
            if code:
                raise BundleError(f"the data of this suite cannot be made: mer {words[0]} says {said}")
        _authors_checkpoint(world)
        (root / "words.txt").write_text("so it is\nit is not so\n" * 40)
        return world

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def mmsa(self) -> Path:
        return self.root / "mmsa"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    def words(self, template: str, place: Path) -> list[str]:
        """A command line; `{new}` and `{bundle}` are in `place`."""
        pickle = next(self.mmsa.rglob("*.pkl"), self.mmsa)
        places = {"new": place, "bundle": place / "bundle", "data": self.data, "root": self.root, "pickle": pickle}
        return [word.format(**places) for word in template.split()]


def _authors_checkpoint(world: World) -> None:
    """The bundle's weights under the authors' names."""
    from safetensors.numpy import load_file, save_file

    from mer_export import registry

    bundle = Bundle.open(world.bundle)
    system = registry.get(bundle.manifest.system)
    own = load_file(bundle.path(WEIGHTS))
    names = registry.resolve(system.weights).renames(system.parse(bundle.manifest.config))
    save_file({theirs: own[ours] for theirs, ours in names.items() if ours in own}, world.root / "weights.safetensors")


# Processes


class Running:
    """A command line in a process of its own; `before` runs in it first."""

    def __init__(self, words: Sequence[object], folder: Path, before: Callable[[], None] | None = None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.log = folder / f"log-{random.getrandbits(40):x}"
        self.process = context.Process(target=_mer, args=([str(w) for w in words], str(self.log), before))
        self.process.start()

    def kill_after(self, seconds: float) -> bool:
        """SIGKILL after so long; False where it had ended before."""
        self.process.join(seconds)
        alive = self.process.is_alive()
        self.process.kill()
        self.process.join()
        self.log.unlink(missing_ok=True)
        return alive

    def wait(self) -> tuple[int, str]:
        """Its exit code, and the last line it said."""
        self.process.join()
        said = self.log.read_text().strip().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return int(self.process.exitcode or 0), said[-1] if said else ""


def _mer(words: list[str], log: str, before: Callable[[], None] | None) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.argv = ["mer", *words]
    import cli

    if before:
        before()
    cli.main()


# Killed


@dataclass(frozen=True)
class Work:
    """A command that is killed, what it writes, and whether that is whole."""

    words: str
    result: str
    whole: Callable[[Path, Path], bool]


def _sound(path: Path, _finished: Path) -> bool:
    """A bundle that is there and intact, or not there yet."""
    try:
        Bundle.open(path).verify()
    except BundleError:
        return not (path / MANIFEST).exists() and not (path / JOURNAL).exists()
    return True


def _same(path: Path, finished: Path) -> bool:
    """Not there yet, or all there."""
    return not path.exists() or path.read_bytes() == finished.read_bytes()


KILLED: dict[str, Work] = {
    "train": Work(
        "train cmerc --preset sample/demo --set epochs=20 --data {data} --out {new}/run --quiet", "run", _sound
    ),
    **{
        f"export {name}": Work(f"export {{bundle}} --format {name} --seq-len {LENGTHS} --force", "bundle", _sound)
        for name in FORMATS
    },
    "infer": Work("infer {bundle} {data} --out {new}/p.jsonl --force --quiet", "p.jsonl", _same),
    "tune": Work("tune {bundle} --batch 1 --quiet", "bundle", _sound),
    "convert": Work("data convert {data} --out {new}/d.parquet --force", "d.parquet", _same),
}


def killed(world: World, count: int, names: Sequence[str] = tuple(KILLED), seed: int = 0) -> list[Row]:
    """SIGKILL at a random moment of each command, again and again over what the last one left; then it runs through."""
    return [_kill(world, name, KILLED[name], count, random.Random(f"{seed} {name}")) for name in names]


def _kill(world: World, name: str, work: Work, count: int, draw: random.Random) -> Row:
    row = Row(f"SIGKILL during {name}")
    with _place(world) as place, _place(world) as finished:
        begun = time.monotonic()
        _require(*Running(world.words(work.words, finished), world.root).wait())
        seconds = time.monotonic() - begun
        for _ in range(5 * count):
            landed = Running(world.words(work.words, place), world.root).kill_after(draw.uniform(0, seconds))
            if landed:
                whole = work.whole(place / work.result, finished / work.result)
                row.add(whole, "whole or not there" if whole else "damaged")
            elif name == "train":
                # It goes on where it was killed, and so ends at some time.
                shutil.rmtree(place / work.result)
            if row.tried == count:
                break
        code, said = Running(world.words(work.words, place), world.root).wait()
        left = [str(p.relative_to(place)) for p in place.rglob("*") if p.name in LEFT or p.suffix == ".tmp"]
        sound = code == 0 and work.whole(place / work.result, finished / work.result) and not left
        row.add(sound, "the next run ends well and leaves nothing" if sound else f"the next run: {code} {said} {left}")
    output.say(f"{row.fault}: {row.survived} of {row.tried}")
    return row


LEFT = (STAGING, JOURNAL)


def _require(code: int, said: str) -> None:
    if code:
        raise BundleError(f"a command that nothing disturbed failed with exit code {code}: {said}")


@contextmanager
def _place(world: World) -> Iterator[Path]:
    """A folder with a bundle of its own."""
    with tempfile.TemporaryDirectory(dir=world.root) as folder:
        shutil.copytree(world.bundle, Path(folder) / "bundle")
        yield Path(folder)


# Nothing can be written

WRITERS: dict[str, str] = {
    "synth": "data synth cmerc --dialogues 8 --out {new}/synthetic",
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
}
"""Every command that writes, `data iemocap` and the two that make encoder folders apart."""


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
            code, said = Running(world.words(WRITERS[name], place), world.root, before).wait()
            undo()
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


# A long file, a long life


def long_file(world: World, count: int) -> list[Row]:
    """Labels `count` utterances of a JSON lines file, and a hundredth of them; what memory both took."""
    small, large = max(count // 100, UTTERANCES), count
    row, peaks = Row(f"{large} utterances through infer"), []
    for wanted in (small, large):
        source, out = world.root / "long.jsonl", world.root / "labels.jsonl"
        write_dialogues(source, Bundle.open(world.bundle), wanted)
        words = ["infer", str(world.bundle), str(source), "--out", str(out), "--threads", "1", "--force", "--quiet"]
        with subprocess.Popen(module_command("cli", *words), stdout=subprocess.DEVNULL) as running:
            peaks.append(_peak(running))
        with out.open("rb") as lines:
            labelled = sum(1 for _ in lines)
        whole = running.returncode == 0 and labelled == wanted
        row.add(whole, f"{wanted} utterances: {labelled} labelled, {peaks[-1]:.0f} MiB at most")
        source.unlink()
        out.unlink(missing_ok=True)
    row.notes["MiB more than a hundredth of them took"] = round(peaks[1] - peaks[0])
    output.say(f"{row.fault}: {row.notes}")
    return [row]


def write_dialogues(path: Path, bundle: Bundle, utterances: int) -> None:
    """Dialogues of random vectors for a cmerc bundle, one per line."""
    widths = {s.name: s.dims[-1] for s in bundle.manifest.contract.features if s.dtype == "float32"}
    draw = random.Random(0)
    with path.open("w") as stream:
        for number in range(0, utterances, UTTERANCES):
            said = [
                {"id": f"u{i}", "speaker": i % 2} | {n: [round(draw.gauss(0, 1), 2) for _ in range(w)] for n, w in widths.items() if isinstance(w, int)}
                for i in range(number, min(number + UTTERANCES, utterances))
            ]  # fmt: skip
            stream.write(json.dumps({"dialogue": f"d{number}", "utterances": said}) + "\n")


def _peak(running: subprocess.Popen[bytes]) -> float:
    """The largest resident size of a process in MiB, asked until it ends."""
    peak = 0.0
    while running.poll() is None:
        try:
            lines = Path(f"/proc/{running.pid}/status").read_text().splitlines()
            peak = max([peak, *(int(li.split()[1]) / 2**10 for li in lines if li.startswith("VmHWM"))])
        except OSError:
            break
        time.sleep(0.05)
    running.wait()
    return peak


def opened(world: World, count: int, predictions: int | None = None) -> list[Row]:
    """A predictor opened `count` times, then 40 predictions for each opening from one: descriptors and memory."""
    predictions = 40 * count if predictions is None else predictions
    request = json.dumps([str(world.bundle), count, predictions])
    words = [sys.executable, "-m", "benchmarks.faults", "--live", request]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise BundleError(f"a long life ended: {done.stderr.strip().splitlines()[-1:]}")
    rows = [Row(**row) for row in json.loads(done.stdout)]
    for row in rows:
        output.say(f"{row.fault}: {row.notes}")
    return rows


def live(bundle: Path, count: int, predictions: int) -> list[Row]:
    """What `opened` measures, in this process."""
    import numpy as np

    from runtimes.predict.predictor import Predictor

    draw = np.random.default_rng(0)
    specs = [s for s in Bundle.open(bundle).manifest.contract.features if s.dtype == "float32"]

    def sample(length: int) -> dict[str, object]:
        shape = {d: length for s in specs for d in s.dims if isinstance(d, str)}
        found = {
            s.name: draw.standard_normal([shape[d] if isinstance(d, str) else d for d in s.dims[1:]]) for s in specs
        }
        return found | {"speaker": np.zeros(length, np.int64)}

    def once() -> None:
        with Predictor(Bundle.open(bundle)) as predictor:
            assert list(predictor.predict([sample(3)]))

    rows = [_flat(f"a predictor opened {count} times", once, count)]
    with Predictor(Bundle.open(bundle)) as predictor:
        rows.append(_flat(f"{predictions} predictions", lambda: list(predictor.predict([sample(1)])), predictions))
    return rows


def _flat(fault: str, call: Callable[[], object], count: int) -> Row:
    """Calls again and again; the first tenth is for caches to fill."""
    row = Row(fault)
    for _ in range(max(1, count // 10)):
        call()
    before = _descriptors(), _resident()
    for _ in range(count):
        call()
        row.tried += 1
    more = _descriptors() - before[0], _resident() - before[1]
    row.survived = row.tried if more[0] <= 0 and more[1] < GROWN_MIB else 0
    row.notes = {"descriptors more": more[0], "MiB more": round(more[1]), "MiB at most": round(peak_mib())}
    return row


GROWN_MIB = 16
"""More than that is not what allocators keep."""


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


# The suite

PARTS: dict[str, tuple[int, Callable[[World, int], list[Row]]]] = {
    "kill": (20, killed),
    "full": (4, full),
    "forbidden": (1, lambda world, _: forbidden(world)),
    "opened": (500, opened),
    "long": (1_000_000, long_file),
}
"""How often, unless `--count` says it: kills of each command, sizes of disk, openings, utterances."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="directory of the results")
    parser.add_argument("--part", choices=list(PARTS), action="append", help="repeat for several; default: all")
    parser.add_argument("--count", type=int, help="how often; default: as docs/reliability.md says")
    parser.add_argument("--live", help=argparse.SUPPRESS)
    chosen = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if chosen.live:
        bundle, count, predictions = json.loads(chosen.live)
        print(json.dumps([asdict(row) for row in live(Path(bundle), count, predictions)]))
        return
    if chosen.out is None:
        parser.error("--out is needed")
    line = output.command("faults", arguments)
    output.end_well(lambda: run(line, chosen.out, chosen.part or list(PARTS), chosen.count))


def run(command: str, out: Path, parts: Sequence[str], count: int | None) -> None:
    """Runs parts one after the other and writes each."""
    with tempfile.TemporaryDirectory() as folder:
        world = World.make(Path(folder))
        for part in parts:
            usual, work = PARTS[part]
            rows = work(world, count or usual)
            found = {"command": command, "rows": [asdict(row) for row in rows]}
            output.write(out, f"faults-{part}", found, markdown(command, part, rows))


def markdown(command: str, part: str, found: Sequence[Row]) -> str:
    """The page of one part."""
    cells = [(r.fault, r.tried, r.survived, ", ".join(f"{n}: {c}" for n, c in r.notes.items())) for r in found]
    rows = table(("fault", "tried", "survived", "what happened"), cells)
    return "\n".join([f"# Faults: {part}", "", f"`{command}`", "", *rows, ""])


if __name__ == "__main__":
    main()
