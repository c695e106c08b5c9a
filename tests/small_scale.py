"""The same dialogues in both formats, what `mer infer` answers to them, and runs that answer them in blocks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet
from small_bundle import make_samples

import cli
from mer_export.bundle import Bundle
from mer_export.data.formats.parquet.writer import write_parquet
from mer_export.data.samples import Corpus
from runtimes.pipeline import How, Reading
from runtimes.scale.command import Blocks, Spread

DIALOGUES = 40
BLOCK_BYTES = 20_000
BLOCK = str(BLOCK_BYTES / 2**20)
ANYBODY = "onnxruntime"


@dataclass(frozen=True)
class Place:
    """A bundle, the same dialogues in both formats, and what `mer infer` answers."""

    bundle: Path
    lines: Path
    rows: Path
    answers: pyarrow.Table


def make_place(exported: Bundle, root: Path) -> Place:
    """Writes the dialogues and answers them."""
    samples = make_samples(DIALOGUES)
    lines, rows = root / "dialogues.jsonl", root / "dialogues.parquet"
    with lines.open("w") as stream:
        stream.write(json.dumps({"labels": ["neutral", "joy", "anger"], "speakers": 3}) + "\n")
        for s in samples:
            said = [_utterance(s, k) for k in range(len(s.units))]
            stream.write(json.dumps({"dialogue": s.id, "utterances": said}) + "\n")
    write_parquet(Corpus({"all": samples}, "small", {"labels": ["neutral", "joy", "anger"], "speakers": 3}), rows)
    small = parquet.read_table(rows)
    with parquet.ParquetWriter(rows, small.schema) as writer:
        # Groups of three rows: most dialogues lie in several.
        writer.write_table(small, row_group_size=3)
    out = root / "answers.parquet"
    cli.app(command("infer", exported.root, lines, "-o", out), standalone_mode=False)
    return Place(exported.root, lines, rows, parquet.read_table(out))


def command(*words: object) -> list[str]:
    """A command line with the runtime of all answers here."""
    return [*map(str, words), "--runtime", ANYBODY, "--quiet"]


def _utterance(sample: Any, k: int) -> dict[str, Any]:
    vectors = {"text": sample.inputs["text"][:, k], "audio": sample.inputs["audio"][k]}
    vectors["vision"] = sample.inputs["vision"][k]
    own = {n: v.tolist() for n, v in vectors.items()}
    return {"id": sample.units[k], "speaker": int(sample.inputs["speaker"][k]), **own}


def same(found: pyarrow.Table, expected: pyarrow.Table) -> bool:
    """Whether answers are equal: numbers within what another batch may round, all else exactly."""
    assert found.schema == expected.schema
    numbers = [f.name for f in expected.schema if pyarrow.types.is_floating(f.type)]
    exact = found.drop_columns(numbers).equals(expected.drop_columns(numbers))
    return exact and all(np.allclose(found[n], expected[n], rtol=0, atol=1e-6) for n in numbers)


def written(out: Path) -> pyarrow.Table:
    """The answers of a directory, in the order of its blocks."""
    return pyarrow.concat_tables([parquet.read_table(f) for f in sorted((out / "answers").iterdir())])


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def run(
    place: Place, out: Path, *inputs: Path, force: bool = False, split: str | None = None, **how: Any
) -> dict[str, Any]:
    spread = Spread(shards=1, block=BLOCK_BYTES / 2**20)
    reading = Reading([str(i) for i in inputs or (place.lines,)], split=split)
    said = How(ANYBODY, **{"threads": 1} | how)
    return Blocks(place.bundle, said, reading, out, spread, force).answer()
