"""A new utterance of a live dialogue beside the whole dialogue again, and many dialogues at a time.

    python3 -m benchmarks.live --out benchmarks/results [--network cmerc_meld] [--runtime onnxruntime] [--at 30]

At each length, by turns in one process with one thread: the dialogue again, as its JSON text (`sent`: reading it, then
the model, whose part of that time is `arrays`), as `arrays, in stages` where the network has some, which encode a text
that utterances share once, and its last utterance as JSON text, said to one that has heard the others: with new answers
for all whose context it changes (`say`), and with none (`say, revise=0`). What is not live keeps nothing from call to
call. Features are numbers in the text, but for `cmerc_sentences`: there it has words, which
the bundle's own encoder (as large as all-MiniLM-L6-v2) reads, of the dialogue again those of every utterance. Rounds
end after `--seconds` a length, one is always run; `say` is timed up to sixteen times in a round, for its p99.

Then `--dialogues` dialogues are live at a time and speak by turns: the time of an utterance alone, of one of sixteen
that wait together, and what memory they hold. Random weights. Writes `live.json` and `live.md`, where what was measured
of other networks on the same processor stays.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import output
from benchmarks.small_encoders import save_folder
from benchmarks.suite import NETWORKS, Network, random_bundle
from mer_export.bucket import Bucket
from mer_export.bundle import CONFIG, Bundle
from mer_export.data.formats.jsonl.reader import DialogueReader
from mer_export.data.labels import LabelReader
from mer_export.data.open import Through
from mer_export.data.samples import Sample
from mer_export.data.shapes.shape import find_shape
from mer_export.encoders.attached import attach
from mer_export.encoders.encoder import Encoder
from mer_export.exporters import export_variant
from mer_export.exporters.encoders.transformers_folder import Wanted, import_folder
from mer_export.markdown import table
from mer_export.untrusted.json_files import parse_json
from runtimes.backends.session import SessionOptions
from runtimes.features.completed import Completion
from runtimes.live.dialogues import Dialogues, Limits
from runtimes.predict.live import Answer, Heard, Hearing
from runtimes.predict.predictor import Predictor

WORDS = (
    "so",
    "what",
    "do",
    "you",
    "mean",
    "by",
    "that",
    "no",
    "it",
    "is",
    "fine",
    "really",
    "oh",
    "well",
    "come",
    "on",
)
NARROW = (
    *("model.bert.hidden=256", "model.bert.layers=6", "model.bert.heads=4", "model.bert.feed_forward=1024"),
    *("model.width=192", "model.feed_forward=768", "model.audio_len=128", "model.vision_len=32"),
)
"""FacialMMT a quarter as wide: thirty utterances of the published one take minutes."""
WORDS_ALONE = ("model.modalities=[text]", "model.text_vectors=1", "model.text_dim=384", "model.width=384")
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
FEWER = tuple(f"model.bert.{n}" for n in ("hidden=192", "layers=4", "heads=4", "feed_forward=768"))
"""EMT with a text encoder a fiftieth as large."""
Json = dict[str, Any]


@dataclass(frozen=True)
class Talk:
    """A network, what reads its dialogues, and the longest dialogue that it can take whole."""

    network: Network
    data: Json
    stages: bool
    most: int
    encoder: bool = False
    """Whether its bundle has one of sentences."""


MELD = NETWORKS["cmerc_meld"]
TALKS = {
    "cmerc_meld": Talk(MELD, {}, False, 110),
    "cmerc_meld_causal": Talk(replace(MELD, changed=("model.causal=true",)), {}, True, 110),
    "cmerc_sentences": Talk(replace(MELD, changed=WORDS_ALONE), {}, False, 110, encoder=True),
    "facialmmt_narrow": Talk(
        replace(
            NETWORKS["facialmmt_fusion"],
            changed=NARROW,
            buckets=(Bucket(text_len=512, audio_len=128, vision_len=32),),
        ),
        {"packing": "roberta"},
        True,
        34,
    ),
    "facialmmt_fusion": Talk(
        # Thirty utterances have more tokens than its usual bucket.
        replace(NETWORKS["facialmmt_fusion"], buckets=(Bucket(text_len=512, audio_len=512, vision_len=128),)),
        {"packing": "roberta"},
        True,
        34,
    ),
    "emt_narrow": Talk(replace(NETWORKS["emt_mosi"], changed=FEWER), {}, False, 110),
}
USUAL = ("cmerc_meld", "cmerc_meld_causal", "cmerc_sentences", "facialmmt_narrow", "emt_narrow")
CROWD = "cmerc_meld"
SENT, ARRAYS = "sent", "arrays"
SAYS, TOGETHER = 16, 16


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.live", description="live dialogues")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--network", choices=list(TALKS), action="append", help="repeat for several")
    parser.add_argument("--runtime", action="append", help="repeat for several")
    parser.add_argument("--at", type=int, action="append", help="utterances of a dialogue; repeat for several")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=25.0, help="of the rounds of a length")
    parser.add_argument("--dialogues", type=int, default=1000, help=f"live at a time, of {CROWD}")
    parser.add_argument("--turns", type=int, default=20, help="utterances of each of them")
    parser.add_argument("--window", type=int, default=16, help="of each of them")
    chosen = parser.parse_args(arguments)
    runtimes = chosen.runtime or ["onnxruntime", "openvino"]

    def run() -> None:
        line, before = output.command("live", arguments), output.earlier(chosen.out / "live.json")
        rows, crowd = before.get("rows", []), before.get("crowd")
        commands = output.commands_of(before, [r["network"] for r in rows])
        for name in chosen.network or USUAL:
            with tempfile.TemporaryDirectory() as folder:
                stage = Stage(name, Path(folder), chosen.at or [10, 30, 100])
                own = [
                    stage.measured(runtime, n, chosen.rounds, chosen.seconds)
                    for runtime in runtimes
                    for n in stage.sizes
                ]
                if name == CROWD:
                    crowd = stage.crowd(runtimes[0], chosen.dialogues, chosen.turns, chosen.window)
            rows = [r for r in rows if r["network"] != name] + own
            commands[name] = line
            found = {"command": line, "commands": commands, "machine": output.here(), "rows": rows, "crowd": crowd}
            output.write(chosen.out, "live", found, markdown(found))

    output.end_well(run)


@dataclass(frozen=True)
class Way:
    """What comes in with a last utterance, and what is timed: answers of it. `most` calls in a round.

    With `read` that comes first of the time, and the rest of it is the time of `ARRAYS` too.
    """

    name: str
    make: Callable[[Json], Any]
    run: Callable[[Any], Iterable[object]]
    most: int = 1
    read: Callable[[Any], Any] | None = None


class Stage:
    """A network's bundle, exported for dialogues of these lengths."""

    def __init__(self, name: str, root: Path, sizes: list[int]):
        self.name, self.talk = name, TALKS[name]
        self.sizes = [n for n in sizes if n <= self.talk.most] or [self.talk.most]
        self.draw = np.random.default_rng(0)
        bundle = random_bundle(root / name, self.talk.network)
        self.contract, data = bundle.manifest.contract, dict(self.talk.data)
        if self.sentences and not self.talk.encoder:
            data["tokenizer"] = str(_words(root / "words"))
        with bundle.commit() as change:
            change.write(CONFIG, json.dumps({"data": data}))
        for lengths in self._lengths():
            for stages in {False, self.talk.stages}:
                output.say(f"{name}: exporting {lengths.name}{' in stages' if stages else ''}")
                export_variant(bundle, "onnx", lengths, stages=stages)
        if self.talk.encoder:
            attach(bundle, {"text": [_encoder(root)]})
        self.bundle = Bundle.open(bundle.root)
        classes = bundle.manifest.task.labels
        self.spec, self.labels = Hearing(self.bundle, classes).spec, LabelReader("it", classes)

    @property
    def sentences(self) -> bool:
        """Whether utterances are words."""
        return self.talk.encoder or "input_ids" in {s.name for s in self.contract.features}

    def _lengths(self) -> Iterator[Bucket]:
        if "utterances" in self.contract.longest:
            yield from (Bucket(utterances=n) for n in self.sizes)
        else:
            yield self.talk.network.buckets[-1]

    def utterance(self) -> Json:
        """One as JSON has it."""
        made: Json = {"speaker": ("Ann", "Bob", "Cem")[self.draw.integers(3)]}
        if self.sentences:
            made["sentence"] = " ".join(self.draw.choice(WORDS, self.draw.integers(3, 15)))
        if self.talk.encoder:
            return made
        steps: dict[str, int] = {}
        for spec in self.contract.features:
            if spec.dtype == "float32" and spec.modality:
                dims = [d for d in spec.dims[1:] if d != "utterances"]
                for dim in dims:
                    if isinstance(dim, str):
                        longest = self.talk.network.buckets[-1][dim]
                        steps.setdefault(dim, int(self.draw.integers(longest // 4, longest + 1)))
                shape = [steps[d] if isinstance(d, str) else d for d in dims]
                made[spec.name] = self.draw.normal(size=shape).round(4).tolist()
        return made

    def predictor(self, runtime: str, stages: bool, reuse: bool) -> Predictor:
        """One for each way to answer."""
        variants = [v for v in self.bundle.manifest.variants if bool(v.stages) == stages]
        options = SessionOptions(threads=1, reuse=reuse)
        return Predictor(self.bundle, runtime, options, batch=TOGETHER, variants=variants)

    def samples(self, through: Through | None, text: bytes) -> list[Sample]:
        """Of a dialogue as JSON text."""
        dialogue = DialogueReader(self.spec, None).dialogue(parse_json(text, "it"), "it")
        if through is not None:
            (dialogue,) = through([dialogue])
        return list(find_shape(self.spec.shape)(dialogue, self.spec, self.labels))

    def ways(self, stack: ExitStack, runtime: str, said: list[Json]) -> list[Way]:
        """What is timed; of what is live all but the last utterance was heard and computed."""
        whole = stack.enter_context(self.predictor(runtime, False, False))
        kept = stack.enter_context(self.predictor(runtime, self.talk.stages, True))

        through: Through | None = None
        if self.talk.encoder:
            loaded = Completion.of(self.bundle, backend=runtime, options=SessionOptions(threads=1))
            through = stack.enter_context(loaded).strict()

        def text(last: Json) -> bytes:
            return json.dumps({"dialogue": "d", "utterances": [*said, last]}).encode()

        def arrays(last: Json) -> list[Sample]:
            return self.samples(through, text(last))

        read = partial(self.samples, through)
        found = [Way(SENT, text, whole.predict, read=read)]
        if self.talk.stages:
            staged = stack.enter_context(self.predictor(runtime, True, False))
            found.append(Way(f"{ARRAYS}, in stages", arrays, staged.predict))
        for way in found:
            # Sessions get ready on the first item: of some networks a dialogue takes minutes.
            list(way.run(arrays(self.utterance())[:1]))
        hearing, heard = Hearing(self.bundle, kept.task.labels, through=through), Heard("d")
        for utterance in said:
            turn = hearing.say(heard, utterance)
            heard = turn.after
        list(kept.predict(turn.samples))
        for name, revise in (("say", None), ("say, revise=0", 0)):
            own = replace(hearing, revise=revise)
            found.append(Way(name, lambda last: json.dumps(last).encode(), partial(_said, own, kept, heard), SAYS))
            self._timed(found[-1])
        return found

    def measured(self, runtime: str, size: int, rounds: int, limit: float) -> Json:
        """The ways at one length, by turns; every call has another last utterance, so that none finds another's."""
        seconds: dict[str, list[list[float]]] = {}
        began = time.perf_counter()
        with ExitStack() as stack:
            ways = self.ways(stack, runtime, [self.utterance() for _ in range(size - 1)])
            for number in range(rounds):
                longest = 0.0
                for way in ways:
                    spent = [self._timed(way)]
                    longest = max(longest, spent[0][way.name])
                    while len(spent) < way.most and sum(s[way.name] for s in spent) < min(longest, limit):
                        spent.append(self._timed(way))
                    for name in spent[0]:
                        seconds.setdefault(name, []).append([s[name] for s in spent])
                if number and time.perf_counter() - began > limit:
                    break
        row = {"network": self.name, "runtime": runtime, "utterances": size, "seconds": seconds}
        output.say(f"{self.name} on {runtime} at {size}: {' '.join(map(str, _ratios(row)))}")
        return row

    def _timed(self, way: Way) -> dict[str, float]:
        given = way.make(self.utterance())
        began = read = time.perf_counter()
        if way.read:
            given = way.read(given)
            read = time.perf_counter()
        for _ in way.run(given):
            pass
        ended = time.perf_counter()
        return {way.name: ended - began} | ({ARRAYS: ended - read} if way.read else {})

    def crowd(self, runtime: str, dialogues: int, turns: int, window: int) -> Json:
        """Many dialogues that speak by turns: milliseconds of an utterance, bytes that are kept."""
        table_of = Dialogues(Limits(most=dialogues, most_bytes=1 << 30))
        pool = [json.dumps(self.utterance()).encode() for _ in range(64)]
        alone: list[float] = []
        together: list[float] = []
        resident = []
        with self.predictor(runtime, self.talk.stages, True) as predictor:
            hearing = Hearing(self.bundle, predictor.task.labels, window=window)

            def say(numbers: Sequence[int], turn: int) -> float:
                began = time.perf_counter()
                said = [parse_json(pool[(turn * 7 + n) % len(pool)], "it") for n in numbers]
                asked = [hearing.say(table_of.heard(str(n)), own) for n, own in zip(numbers, said, strict=True)]
                predictor.answer_together(asked)
                for each in asked:
                    table_of.keep(each.after)
                return 1000 * (time.perf_counter() - began) / len(numbers)

            for turn in range(turns):
                alone += [say([number], turn) for number in range(dialogues)]
                resident.append(_resident())
                output.say(f"{dialogues} dialogues, turn {turn + 1} of {turns}: {resident[-1] >> 20} MiB")
            for first in range(0, dialogues, TOGETHER):
                together.append(say(range(first, min(first + TOGETHER, dialogues)), turns))
        found = dict(zip(("p50_ms", "p90_ms", "p99_ms"), np.percentile(alone, (50, 90, 99)).tolist(), strict=True))
        found |= {"together_ms": median(together), "dialogues": dialogues, "turns": turns, "window": window}
        return found | {"runtime": runtime, "kept_bytes": table_of.nbytes, "resident_bytes": resident}


def _said(hearing: Hearing, predictor: Predictor, heard: Heard, text: bytes) -> list[Answer]:
    return [predictor.answer(hearing.say(heard, parse_json(text, "it")))]


def _encoder(root: Path) -> Encoder:
    """One of sentences, exported."""
    save_folder("bert", root / "source", **MINILM)
    _words(root / "source")
    made = import_folder(root / "source", root / "encoder", Wanted())
    export_variant(made, "onnx", made.manifest.contract.buckets[0])
    return Encoder.open(root / "encoder")


def _words(folder: Path) -> Path:
    """A tokenizer of the words above."""
    folder.mkdir(exist_ok=True)
    digits = [str(n) for n in range(30)]
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *digits]) + "\n")
    return folder


def _resident() -> int:
    """Bytes of memory that the process holds."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def _ratios(row: Json) -> list[tuple[str, ...]]:
    """The lines of a length: each way's median and p99, and how many times as long the dialogue again takes."""
    seconds, lines = row["seconds"], []
    for name, rounds in seconds.items():
        spent = [1000 * s for own in rounds for s in own]
        each = [median(own) for own in rounds]
        ratios = []
        for base in (SENT, ARRAYS):
            found = [median(b) / own for b, own in zip(seconds[base], each, strict=True)]
            ratios.append("" if name == base else f"{median(found):.2f} [{min(found):.2f}, {max(found):.2f}]")
        worst = f"{float(np.percentile(spent, 99)):.1f}" if len(spent) >= 20 else ""
        lines.append((name, str(len(spent)), f"{median(spent):.1f}", worst, *ratios))
    return lines


def markdown(found: Json) -> str:
    """The tables."""
    rows = [(r["network"], r["runtime"], r["utterances"], *line) for r in found["rows"] for line in _ratios(r)]
    header = ("network", "runtime", "utterances", "way", "calls", "median, ms", "p99, ms", "sent / way", "arrays / way")
    lines = [
        *output.head("Live dialogues", found, 1),
        "",
        *table(header, rows),
        "",
        "What each way is says `benchmarks/live.py`. A p99 is of twenty calls or more.",
    ]
    if crowd := found["crowd"]:
        first, last = (n >> 20 for n in (crowd["resident_bytes"][0], crowd["resident_bytes"][-1]))
        lines += [
            "",
            f"{crowd['dialogues']} dialogues of {CROWD} by turns on {crowd['runtime']}, {crowd['turns']} utterances of "
            f"each, window {crowd['window']}: {crowd['p50_ms']:.1f} ms an utterance (p90 {crowd['p90_ms']:.1f}, p99 "
            f"{crowd['p99_ms']:.1f}), {crowd['together_ms']:.1f} ms each where {TOGETHER} wait together; "
            f"{crowd['kept_bytes'] >> 20} MiB are kept, the process holds {first} MiB after the first turn and {last} "
            "MiB after the last.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
