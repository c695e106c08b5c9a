"""Do time and memory of `mer infer` grow with the data? The same utterances in every kind of file.

    python3 -m benchmarks.growth --out benchmarks/results [--format parquet] [--most 1000000]

Networks so small that reading and writing is what takes time, one thread; a thousand utterances, then ten times as many
at each step. A process each: its seconds, its largest resident size, and what one more utterance took of both since the
step before. Writes `growth.json` and `growth.md`; kinds of earlier runs on the same processor stay.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice, pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import output, scale
from benchmarks.endurance import peak
from benchmarks.suite import Network, random_bundle
from mer_export.bucket import Bucket
from mer_export.bundle import CONFIG, Bundle
from mer_export.data.formats.cmerc.reader import DATASETS
from mer_export.data.formats.pickle_writer import dump_plain
from mer_export.errors import BundleError
from mer_export.exporters import export_variant
from mer_export.launcher import module_command
from mer_export.markdown import table

FEWEST, STEP, MOST = 1000, 10, 1_000_000
BATCH = 64
WIDTH, VECTORS = 8, 4
"""Of a vector, and vectors of a text, as the authors' files of CMERC have them."""
FEATURES = (*(f"text{k}_" for k in range(VECTORS)), "audio", "vision")
MODALITIES = ("text", "audio", "vision")
OF_A_DIALOGUE = 8
PART = 1024 * OF_A_DIALOGUE
DIALOGUES = Network(
    "cmerc/meld",
    (Bucket(utterances=8), Bucket(utterances=33)),
    {"utterances": (8, 8)},
    (BATCH,),
    (*(f"model.{m}_dim={WIDTH}" for m in MODALITIES), "model.width=8", "model.hidden=8"),
)
WORDS = 100
SENTENCES = Network(
    "emt/mosi",
    (Bucket(text_len=16, audio_len=1, vision_len=1),),
    {"text_len": (3, 16), "audio_len": (1, 1), "vision_len": (1, 1)},
    (BATCH,),
    (
        "model.bert={vocabulary: 110, hidden: 8, layers: 1, heads: 1, feed_forward: 8, positions: 64}",
        *("model.width=8", "model.heads=1", "model.depth=1", "model.head_width=8"),
        *("model.audio_hidden=4", "model.audio_out=4", "model.vision_hidden=4", "model.vision_out=4"),
    ),
)


def _authors(folder: Path, bundle: Bundle, count: int) -> Path:
    """The two pickles of MELD."""
    form = DATASETS["meld"]
    ids = range(-(-count // OF_A_DIALOGUE))
    rows = {d: range(d * OF_A_DIALOGUE, min(count, (d + 1) * OF_A_DIALOGUE)) for d in ids}
    people = np.eye(form.speakers, dtype=int).tolist()
    names, labels = {d: [f"u{i}" for i in own] for d, own in rows.items()}, {d: [0] * len(r) for d, r in rows.items()}
    speakers = {d: [people[i % 2] for i in own] for d, own in rows.items()}
    test = len(ids) // 5

    def vectors(place: int) -> dict[int, list[np.ndarray]]:
        drawn = _part()[:, place].astype(np.float32)
        return {d: [drawn[i % PART] for i in own] for d, own in rows.items()}

    head, tail = [speakers, labels], [names, [*ids[test:]], [*ids[:test]]]
    texts, (audio, vision) = range(VECTORS), range(VECTORS, len(FEATURES))
    first = (names, *head, *map(vectors, (0, audio, vision)), *tail, labels)
    (folder / form.features).write_bytes(dump_plain(first))
    (folder / form.roberta).write_bytes(dump_plain([*head, labels, *map(vectors, texts), *tail, []]))
    return folder


def _parquet(folder: Path, bundle: Bundle, count: int) -> Path:
    scale.write_dialogues(folder / "dialogues.parquet", bundle, count)
    return folder / "dialogues.parquet"


def _lines(folder: Path, bundle: Bundle, count: int) -> Path:
    said = [json.dumps({"text": r[:VECTORS], "audio": r[-2], "vision": r[-1]})[1:] for r in _part().tolist()]
    with (folder / "dialogues.jsonl").open("w") as stream:
        for first in range(0, count, OF_A_DIALOGUE):
            own = range(first, min(count, first + OF_A_DIALOGUE))
            utterances = ", ".join(f'{{"id": "u{i}", "speaker": {i % 2}, {said[i % PART]}' for i in own)
            stream.write(f'{{"dialogue": "d{first}", "utterances": [{utterances}]}}\n')
    return folder / "dialogues.jsonl"


def _columns(folder: Path, bundle: Bundle, count: int) -> Path:
    """A table with features in columns."""
    names = [f"{m}{i}" for m in FEATURES for i in range(WIDTH)]
    rows = [",".join(map(str, row)) for row in _part().reshape(PART, -1).tolist()]
    _table(folder, islice(cycle(rows), count), names, {m: f"{{columns: [{m}0:{m}{WIDTH - 1}]}}" for m in FEATURES})
    return folder


def _arrays(folder: Path, bundle: Bundle, count: int) -> Path:
    """A table with features in arrays beside it."""
    values = np.resize(_part().astype(np.float32), (count, len(FEATURES), WIDTH))
    for place, name in enumerate(FEATURES):
        np.save(folder / f"{name}.npy", values[:, place])
    _table(folder, repeat("", count), [], {m: f"{{file: {m}.npy}}" for m in FEATURES})
    return folder


@cache
def _part() -> np.ndarray:
    """Random features (utterances, features, width) of whole dialogues, which files repeat: no reader minds."""
    return np.random.default_rng(0).standard_normal((PART, len(FEATURES), WIDTH)).round(3)


def _table(folder: Path, cells: Iterator[str], names: Sequence[str], sources: Mapping[str, str]) -> None:
    """`utterances.csv`, a row for each of `cells` (under `names`), and the `table.yaml` that describes it."""
    with (folder / "utterances.csv").open("w") as stream:
        stream.write(",".join(["call", "turn", "who", *names]) + "\n")
        for number, row in enumerate(cells):
            dialogue, turn = divmod(number, OF_A_DIALOGUE)
            stream.write(f"c{dialogue},{turn},s{turn % 2}{',' + row if row else ''}\n")
    head = ["table: utterances.csv", "dialogue: call", "order: turn", "speaker: who", "speakers: 9"]
    text, (audio, vision) = ", ".join(sources[m] for m in FEATURES[:VECTORS]), FEATURES[VECTORS:]
    said = [f"text: [{text}]", f"audio: {sources[audio]}", f"vision: {sources[vision]}"]
    (folder / "table.yaml").write_text("\n".join([*head, *said]) + "\n")


def _transcripts(folder: Path, bundle: Bundle, count: int) -> Path:
    """Sentences alone, which become tokens."""
    draw = np.random.default_rng(0)
    said = [" ".join(f"w{w}" for w in draw.integers(WORDS, size=draw.integers(3, 13))) for _ in range(PART)]
    with (folder / "utterances.csv").open("w") as stream:
        stream.write("name,said\n")
        stream.writelines(f"u{number},{words}\n" for number, words in enumerate(islice(cycle(said), count)))
    head = ["table: utterances.csv", "unit: utterance", "utterance: name", "sentence: said"]
    (folder / "table.yaml").write_text("\n".join(head) + "\n")
    return folder


@dataclass(frozen=True)
class Form:
    """A kind of file: how it is written, and for which network."""

    write: Callable[[Path, Bundle, int], Path]
    network: Network = DIALOGUES


FORMS = {
    "authors' pickles (CMERC)": Form(_authors),
    "Parquet": Form(_parquet),
    "JSON lines": Form(_lines),
    "table, features in columns": Form(_columns),
    "table, features in arrays": Form(_arrays),
    "table of transcripts": Form(_transcripts, SENTENCES),
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.growth", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--format", choices=list(FORMS), action="append", help="repeat for several; default: all")
    parser.add_argument("--most", type=int, default=MOST, help="utterances")
    chosen = parser.parse_args(arguments)
    line = output.command("growth", arguments)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            bundles = {n.preset: made(Path(folder), n) for n in (DIALOGUES, SENTENCES)}
            forms = output.Entries(chosen.out, "growth", "forms", line, markdown)
            for name in chosen.format or FORMS:
                form = FORMS[name]
                sizes = [FEWEST * STEP**i for i in range(9) if FEWEST * STEP**i <= chosen.most]
                forms.add(name, [measure(form, bundles[form.network.preset], size) for size in sizes])

    output.end_well(run)


def made(folder: Path, network: Network) -> Bundle:
    """An exported bundle with random weights, and a tokenizer where it takes tokens."""
    bundle = random_bundle(folder / network.system, network)
    if network is SENTENCES:
        with bundle.commit() as change:
            special = ["[PAD]", *(f"[unused{i}]" for i in range(6)), "[UNK]", "[CLS]", "[SEP]"]
            change.write("tokenizer/vocab.txt", "\n".join([*special, *(f"w{w}" for w in range(WORDS))]))
            change.write(CONFIG, "data: {unit: utterance, tokenizer: tokenizer}\n")
    for bucket in network.buckets:
        export_variant(Bundle.open(bundle.root), "onnx", bucket)
    return Bundle.open(bundle.root)


def measure(form: Form, bundle: Bundle, count: int) -> dict[str, float]:
    """Utterances, megabytes, seconds and MiB of `mer infer` on so many, the first time.

    Raises:
        BundleError: the command failed, or left some out.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, out = form.write(Path(folder), bundle, count), Path(folder) / "out.jsonl"
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()) / 1e6
        words = ["infer", str(bundle.root), str(source), "--out", str(out), "--quiet"]
        words += ["--runtime", "onnxruntime", "--threads", "1", "--batch", str(BATCH)]
        environment = os.environ | {"MER_CACHE": "off"}
        began = time.monotonic()
        with subprocess.Popen(module_command("cli", *words), stdout=subprocess.DEVNULL, env=environment) as running:
            most = peak(running)
        seconds = time.monotonic() - began
        if running.returncode:
            raise BundleError(f"mer infer {source.name} ended with {running.returncode}")
        with out.open("rb") as lines:
            answered = sum(1 for _ in lines)
        if answered != count:
            raise BundleError(f"mer infer {source.name} answered {answered} of {count} utterances")
    found = {"utterances": answered, "megabytes": size, "seconds": seconds, "mib": most}
    output.say(f"{found}")
    return found


def markdown(found: dict[str, Any]) -> str:
    """A row for each step of each kind of file."""
    lines = [
        *output.head("Growth of `mer infer` with the data", found, 1),
        "Small networks with random weights in ONNX Runtime, nothing kept between runs. Seconds of a whole process; µs "
        "and bytes are of one more utterance since the row before: as much in each row is linear, 0 bytes is flat. "
        "The authors' pickles are not flat: what a pickle says of an utterance may stand anywhere in its file, so "
        "where everything lies is in memory, and the pages of the file that were read count too. Their own largest "
        "has 2 * 10⁴ utterances. Tables keep some numbers of each dialogue, all files nine bytes of each name.",
        "",
        *table(HEADER, [row for name, steps in found["forms"].items() for row in _rows(name, steps)]),
    ]
    return "\n".join(lines) + "\n"


HEADER = ("files", "utterances", "MB", "seconds", "MiB at most", "µs an utterance", "bytes an utterance")


def _rows(name: str, steps: Sequence[dict[str, float]]) -> Iterator[tuple[str, ...]]:
    more = [("–", "–"), *(_more(a, b) for a, b in pairwise(steps))]
    for step, (micro, byte) in zip(steps, more, strict=True):
        numbers = (f"{step['utterances']:.0f}", f"{step['megabytes']:.1f}", f"{step['seconds']:.2f}")
        yield (name, *numbers, f"{step['mib']:.0f}", micro, byte)


def _more(less: dict[str, float], step: dict[str, float]) -> tuple[str, str]:
    units = step["utterances"] - less["utterances"]
    return (
        f"{1e6 * (step['seconds'] - less['seconds']) / units:.1f}",
        f"{2**20 * (step['mib'] - less['mib']) / units:.0f}",
    )


if __name__ == "__main__":
    main()
