"""What the suite of faults works on: small data, a bundle, and commands as processes that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from mer_export.bundle import WEIGHTS, Bundle
from mer_export.errors import BundleError
from mer_export.exporters.format import export_formats

PRELOADED = ["cli", "torch", "onnx", "onnxscript", "onnxruntime", "pyarrow.parquet", "train.fit", "runtimes.speed.tune"]
RATE = 16000
FORMATS = tuple(export_formats())
LENGTHS = "utterances=8"
SIZES = ("--set", "text_dim=32", "--set", "audio_dim=24", "--set", "vision_dim=16")
"""Of the data that preset sample/demo is for."""


@dataclass
class Row:
    """One fault: how often it was tried and survived, and what happened in words."""

    fault: str
    tried: int = 0
    survived: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    def add(self, survived: bool, note: str) -> None:
        """Counts one attempt that ended so."""
        self.tried += 1
        self.survived += survived
        self.notes[note] = self.notes.get(note, 0) + 1


@dataclass(frozen=True)
class World:
    """Data of the authors' form, a bundle with an ONNX variant, an authors' checkpoint, a text, MMSA features.

    What stands in `SOURCES` is made when a command line names it first.
    """

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
            code, said = Running(words).wait()
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
        """A command line; `{new}` and `{bundle}` are in `place`, and `{sound}` and its like are `SOURCES`."""
        pickle = next(self.mmsa.rglob("*.pkl"), self.mmsa)
        places = {"new": place, "bundle": place / "bundle", "data": self.data, "root": self.root, "pickle": pickle}
        for name, make in SOURCES.items():
            places[name] = self.root / name
            if f"{{{name}}}" in template and not places[name].exists():
                make(places[name])
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


def _sound(path: Path) -> None:
    """An encoder of sound without a network, as wide as the bundle's audio."""
    from mer_export.encoders.signal.folder import write_signal_encoder

    write_signal_encoder("log_mel", path, pooling="mean", mels=24)


def _network(path: Path) -> None:
    """A network of sentences as the transformers package saves it, as wide as the bundle's text."""
    from benchmarks.small_encoders import save_folder

    save_folder("bert", path)


def _detector(path: Path) -> None:
    """Random weights of MTCNN under their published names."""
    import torch

    from mer_export.encoders.mtcnn.network import SHAPES, WEIGHT_MAP, Stage

    path.mkdir()
    for name, shape in SHAPES.items():
        own = Stage(shape).state_dict()
        torch.save({theirs: own[ours] for theirs, ours in WEIGHT_MAP.renames(shape).items()}, path / f"{name}.pt")


def _sentences(path: Path) -> None:
    """An encoder of sentences, exported."""
    source = path.with_name("sentences-network")
    _network(source)
    require(*Running(["encoder", source, "--out", path, "--length", 16, "--quiet"]).wait())


def _clips(path: Path) -> None:
    """A table of three blocks of `mer features`, whose recordings several utterances share."""
    path.mkdir()
    for number in range(8):
        _recording(path / f"{number}.wav", number)
    rows = [f"c{i},{i % 8}.wav,{('joy', 'anger')[i % 2]},train" for i in range(400)]
    (path / "clips.csv").write_text("\n".join(["clip,path,emotion,split", *rows, ""]))


def _recording(path: Path, seed: int) -> None:
    samples = np.random.default_rng(seed).normal(0, 2000, RATE // 2).astype("<i2")
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(RATE)
        stream.writeframes(samples.tobytes())


def _tab(path: Path) -> None:
    words = ["width=6", "sizes=[1]", "text_len=6", "audio_len=8", "text_vocabulary=60", "audio_vocabulary=70"]
    sets = [word for value in words for word in ("--set", value)]
    require(*Running(["data", "synth", "tab", "--out", path, "--dialogues", "30", *sets]).wait())


def _release(path: Path) -> None:
    """Two utterances in each session of what looks like IEMOCAP."""
    for session in range(1, 6):
        name, folder = f"Ses0{session}F_impro01", path / f"Session{session}" / "dialog"
        for part in ("EmoEvaluation", "transcriptions", "wav"):
            (folder / part).mkdir(parents=True)
        turns = [f"{name}_{turn}" for turn in ("F000", "M000")]
        blocks = [f"[{0.1 * i:.4f} - {0.1 * i + 0.09:.4f}]\t{t}\tneu\t[2.5, 2.5, 2.5]" for i, t in enumerate(turns)]
        (folder / "EmoEvaluation" / f"{name}.txt").write_text("% [START]\n\n" + "\n\n".join(blocks) + "\n\n")
        lines = [f"{turn} [000.1-000.2]: So it is." for turn in turns]
        (folder / "transcriptions" / f"{name}.txt").write_text("\n".join(lines) + "\n")
        _recording(folder / "wav" / f"{name}.wav", session)


SOURCES: dict[str, Callable[[Path], None]] = {
    "sound": _sound,
    "network": _network,
    "sentences": _sentences,
    "detector": _detector,
    "clips": _clips,
    "tab": _tab,
    "release": _release,
}
"""What some commands read, by the name of its path in a world."""


class Running:
    """A command line in a process of its own; `before` runs in it first."""

    def __init__(self, words: Sequence[object], before: Callable[[], None] | None = None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.said, said = context.Pipe(duplex=False)
        self.process = context.Process(target=_mer, args=([str(w) for w in words], said, before))
        self.process.start()
        said.close()

    def kill_after(self, seconds: float) -> bool:
        """SIGKILL after so long; False where it had ended before."""
        self.process.join(seconds)
        alive = self.process.is_alive()
        self.process.kill()
        self.process.join()
        self.said.close()
        return alive

    def wait(self) -> tuple[int, str]:
        """Its exit code, and the last line it said."""
        with os.fdopen(os.dup(self.said.fileno()), errors="replace") as stream:
            said = stream.read().strip().splitlines()
        self.said.close()
        self.process.join()
        return int(self.process.exitcode or 0), said[-1] if said else ""


def _mer(words: list[str], said: Connection, before: Callable[[], None] | None) -> None:
    for number in (1, 2):
        os.dup2(said.fileno(), number)
    said.close()
    sys.argv = ["mer", *words]
    import cli

    if before:
        before()
    cli.main()


def require(code: int, said: str) -> None:
    if code:
        raise BundleError(f"a command that nothing disturbed failed with exit code {code}: {said}")


@contextmanager
def place_in(world: World) -> Iterator[Path]:
    """A folder with a bundle of its own."""
    with tempfile.TemporaryDirectory(dir=world.root) as folder:
        shutil.copytree(world.bundle, Path(folder) / "bundle")
        yield Path(folder)
