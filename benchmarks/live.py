"""A new utterance of a live dialogue beside the whole dialogue again, and many dialogues at a time.

    python3 -m benchmarks.live --out benchmarks/results [--network cmerc_meld] [--at 30] [--rounds 7] [--dialogues 1000]

At each length, by turns in one process with one thread: the dialogue as JSON text, read and answered whole (`sent`,
and `sent, in stages` where the network has some), and its last utterance as JSON text, said to one that has heard
the others: with new answers for all whose context it changes (`say`), and with none (`say, revise=0`). What is sent
keeps nothing from call to call. Then `--dialogues` dialogues are live at a time and speak by turns: the time of an
utterance, and what memory they hold. Random weights. Writes `live.json` and `live.md`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import output
from benchmarks.suite import NETWORKS, Network, random_bundle
from mer_export import machine
from mer_export.bucket import Bucket
from mer_export.bundle import CONFIG, Bundle
from mer_export.data.formats.jsonl.reader import DialogueReader
from mer_export.data.labels import LabelReader
from mer_export.data.shapes.shape import SHAPES
from mer_export.exporters import export_variant
from mer_export.markdown import table
from mer_export.untrusted.json_files import parse_json
from runtimes.backends.session import SessionOptions
from runtimes.live.dialogues import Dialogues, Limits
from runtimes.predict.live import Heard, Hearing
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
Json = dict[str, Any]


@dataclass(frozen=True)
class Talk:
    """A network, what reads its dialogues, and the longest dialogue that it can take whole."""

    network: Network
    data: Json
    stages: bool
    most: int


TALKS = {
    "cmerc_meld": Talk(NETWORKS["cmerc_meld"], {}, False, 110),
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
    "facialmmt_fusion": Talk(NETWORKS["facialmmt_fusion"], {"packing": "roberta"}, True, 34),
}
USUAL = ("cmerc_meld", "facialmmt_narrow")


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.live", description="live dialogues")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--network", choices=list(TALKS), action="append", help="repeat for several")
    parser.add_argument("--at", type=int, action="append", help="utterances of a dialogue; repeat for several")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--dialogues", type=int, default=1000, help="live at a time, of cmerc_meld")
    parser.add_argument("--turns", type=int, default=20, help="utterances of each of them")
    parser.add_argument("--window", type=int, default=16, help="of each of them")
    chosen = parser.parse_args(arguments)

    def run() -> None:
        rows, crowd = [], None
        for name in chosen.network or USUAL:
            with tempfile.TemporaryDirectory() as folder:
                stage = Stage(name, Path(folder), chosen.runtime, chosen.at or [10, 30, 100])
                rows += [stage.measured(size, chosen.rounds) for size in stage.sizes]
                if name == "cmerc_meld":
                    crowd = stage.crowd(chosen.dialogues, chosen.turns, chosen.window)
        found = {"command": output.command("live", arguments), "machine": machine.describe(), "rows": rows}
        output.write(chosen.out, "live", found | {"crowd": crowd}, markdown(found | {"crowd": crowd}))

    output.end_well(run)


class Stage:
    """A network's bundle, exported for dialogues of these lengths."""

    def __init__(self, name: str, root: Path, runtime: str, sizes: list[int]):
        self.name, self.talk, self.runtime = name, TALKS[name], runtime
        self.sizes = sorted({min(n, self.talk.most) for n in sizes})
        self.draw = np.random.default_rng(0)
        bundle = random_bundle(root / name, self.talk.network)
        self.contract, data = bundle.manifest.contract, dict(self.talk.data)
        if data:
            data["tokenizer"] = str(_words(root / "words"))
        with bundle.commit() as change:
            change.write(CONFIG, json.dumps({"data": data}))
        for lengths in self._lengths():
            for stages in {False, self.talk.stages}:
                output.say(f"{name}: exporting {lengths.name}{' in stages' if stages else ''}")
                export_variant(bundle, "onnx", lengths, stages=stages)
        self.bundle = Bundle.open(bundle.root)
        self.spec = Hearing(self.bundle, ()).spec

    def _lengths(self) -> Iterator[Bucket]:
        longest = self.contract.longest
        if "utterances" in longest:
            yield from (Bucket(utterances=n) for n in self.sizes)
        else:
            yield Bucket(longest)

    def utterance(self) -> Json:
        """One as JSON has it."""
        made: Json = {"speaker": ("Ann", "Bob", "Cem")[self.draw.integers(3)]}
        if "packing" in self.talk.data:
            made["sentence"] = " ".join(self.draw.choice(WORDS, self.draw.integers(3, 15)))
        steps: dict[str, int] = {}
        for spec in self.contract.features:
            if spec.dtype == "float32" and spec.modality:
                dims = [d for d in spec.dims[1:] if d != "utterances"]
                for dim in dims:
                    if isinstance(dim, str):
                        longest = self.contract.longest[dim]
                        steps.setdefault(dim, int(self.draw.integers(longest // 4, longest + 1)))
                shape = [steps[d] if isinstance(d, str) else d for d in dims]
                made[spec.name] = self.draw.normal(size=shape).round(4).tolist()
        return made

    def predictor(self, stages: bool, reuse: bool) -> Predictor:
        """One for each way to answer."""
        variants = [v for v in self.bundle.manifest.variants if bool(v.stages) == stages]
        options = SessionOptions(threads=1, reuse=reuse)
        return Predictor(self.bundle, self.runtime, options, batch=16, variants=variants)

    def measured(self, size: int, rounds: int) -> Json:
        """The ways at one length, by turns; every round brings another last utterance."""
        said = [self.utterance() for _ in range(size - 1)]
        with ExitStack() as stack:
            whole = {"sent": stack.enter_context(self.predictor(False, False))}
            if self.talk.stages:
                whole["sent, in stages"] = stack.enter_context(self.predictor(True, False))
            kept = stack.enter_context(self.predictor(self.talk.stages, True))
            hearing = Hearing(self.bundle, kept.task.labels)
            heard = Heard("d")
            for utterance in said:
                turn = hearing.say(heard, utterance)
                heard = turn.after
            # What a dialogue that was live all the while has computed before.
            list(kept.predict(turn.samples))
            ways: dict[str, Callable[[Json], object]] = {n: _sending(self, p, said) for n, p in whole.items()}
            for name, revise in (("say", None), ("say, revise=0", 0)):
                ways[name] = _saying(replace(hearing, revise=revise), kept, heard)
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(rounds + 1):
                last = self.utterance()
                for name, way in ways.items():
                    # Each says words of its own, so that none finds what another one left.
                    own = last | ({"sentence": f"{last['sentence']} {len(name)}"} if "sentence" in last else {})
                    began = time.perf_counter()
                    way(own)
                    if number:
                        seconds[name].append(time.perf_counter() - began)
        base = next(iter(whole))
        ratios = {n: [b / s for b, s in zip(seconds[base], own, strict=True)] for n, own in seconds.items()}
        output.say(f"{self.name} at {size}: " + ", ".join(f"{n} {median(r):.2f}" for n, r in ratios.items()))
        return {"network": self.name, "utterances": size, "seconds": seconds, "ratios": ratios}

    def crowd(self, dialogues: int, turns: int, window: int) -> Json:
        """Many dialogues that speak by turns: milliseconds of an utterance, bytes that are kept."""
        table_of, pool = Dialogues(Limits(most=dialogues, most_bytes=1 << 30)), [self.utterance() for _ in range(64)]
        spent: list[float] = []
        with self.predictor(self.talk.stages, True) as predictor:
            hearing = Hearing(self.bundle, predictor.task.labels, window=window)
            resident = []
            for turn in range(turns):
                for number in range(dialogues):
                    said = json.dumps(pool[(turn * 7 + number) % len(pool)]).encode()
                    began = time.perf_counter()
                    asked = hearing.say(table_of.heard(str(number)), parse_json(said, "it"))
                    predictor.answer(asked)
                    table_of.keep(asked.after)
                    spent.append(1000 * (time.perf_counter() - began))
                resident.append(_resident())
                output.say(f"{dialogues} dialogues, turn {turn + 1} of {turns}: {resident[-1] >> 20} MiB")
        found = dict(zip(("p50_ms", "p90_ms", "p99_ms"), np.percentile(spent, (50, 90, 99)).tolist(), strict=True))
        found |= {"dialogues": dialogues, "turns": turns, "window": window, "kept_bytes": table_of.nbytes}
        return found | {"resident_bytes": resident}


def _sending(stage: Stage, predictor: Predictor, said: list[Json]) -> Callable[[Json], object]:
    labels = LabelReader("it", predictor.task.labels)

    def send(last: Json) -> object:
        text = json.dumps({"dialogue": "d", "utterances": [*said, last]}).encode()
        dialogue = DialogueReader(stage.spec, None).dialogue(parse_json(text, "it"), "it")
        return list(predictor.predict(SHAPES[stage.spec.shape](dialogue, stage.spec, labels)))

    return send


def _saying(hearing: Hearing, predictor: Predictor, heard: Heard) -> Callable[[Json], object]:
    def say(last: Json) -> object:
        return predictor.answer(hearing.say(heard, parse_json(json.dumps(last).encode(), "it")))

    return say


def _words(folder: Path) -> Path:
    """A tokenizer of the words above."""
    folder.mkdir()
    digits = [str(n) for n in range(30)]
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *digits]) + "\n")
    return folder


def _resident() -> int:
    """Bytes of memory that the process holds."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def markdown(found: Json) -> str:
    """The tables."""
    rows = []
    for row in found["rows"]:
        base = next(iter(row["seconds"]))
        for name, seconds in row["seconds"].items():
            ratios = row["ratios"][name]
            spread = "" if name == base else f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            worst = 1000 * float(np.percentile(seconds, 99))
            rows.append(
                (row["network"], row["utterances"], name, f"{1000 * median(seconds):.1f}", f"{worst:.1f}", spread)
            )
    header = ("network", "utterances", "way", "median, ms", "p99, ms", "sent / way")
    lines = ["# Live dialogues", "", f"`{found['command']}`", "", output.where(found["machine"], threads=1), ""]
    lines += table(header, rows)
    if crowd := found["crowd"]:
        first, last = (n >> 20 for n in (crowd["resident_bytes"][0], crowd["resident_bytes"][-1]))
        lines += [
            "",
            f"{crowd['dialogues']} dialogues of cmerc_meld by turns, {crowd['turns']} utterances of each, window "
            f"{crowd['window']}: {crowd['p50_ms']:.1f} ms an utterance (p90 {crowd['p90_ms']:.1f}, p99 "
            f"{crowd['p99_ms']:.1f}); {crowd['kept_bytes'] >> 20} MiB are kept, the process holds {first} MiB after "
            f"the first turn and {last} MiB after the last.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
