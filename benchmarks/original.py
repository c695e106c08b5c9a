"""This project beside the authors' own code, through a calibrator: a 1024³ float32 product of PyTorch in the same run.

    python3 -m benchmarks.original --out benchmarks/results [--case cmerc_iemocap_b16]

The authors' code was timed on another machine (AMD EPYC, Zen 5, one thread, eager PyTorch 2.13, random weights, padded
as their loaders pad) as multiples of the calibrator there; `CASES` holds those multiples. Here every runtime is timed
as a multiple of the calibrator here, in interleaved rounds. The quotient compares the two on machines of one vendor
only, and only as well as a matrix product stands for a network. Writes `original-1thread.json` and `.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import limit, output
from benchmarks.operators import by_operator
from benchmarks.suite import NETWORKS, random_bundle, samples_of
from mer_export import registry
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.data.collate import collate
from mer_export.data.samples import Sample
from mer_export.errors import NotAvailableError, ParityError, UnsupportedError
from mer_export.exporters import export_variant
from mer_export.markdown import table
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import find_backend
from runtimes.predict.predictor import Predictor
from runtimes.speed.timing import Quartiles, Turns, interleave, warm_up

WAYS = (
    ("PyTorch eager", "torch", "fp32"),
    ("ONNX Runtime fp32", "onnxruntime", "fp32"),
    ("ONNX Runtime int8", "onnxruntime", "int8"),
    ("OpenVINO fp32", "openvino", "fp32"),
    ("OpenVINO bf16", "openvino", "bf16"),
    ("OpenVINO int8", "openvino", "int8"),
)
"""Name, runtime, precision."""
MOST, LEAST = 5, 0.02
"""Operators that the table names for a call, and the least part of the time."""


@dataclass(frozen=True)
class Original:
    """A call of the authors' code: what it did, its time in calibrators on one thread, and what answers it here.

    `items` are the real lengths, which go to the shortest of `buckets` that holds them; without buckets there is one of
    each item's own lengths. `changed` is what of the preset is as in that call. With `stages` the network is exported
    in stages, and all items bring the same input to a stage that repeats: utterances of one dialogue.
    """

    network: str
    what: str
    calibrators: float
    items: tuple[Mapping[str, int], ...]
    buckets: tuple[Bucket, ...] = ()
    changed: tuple[str, ...] = ()
    stages: bool = False

    @property
    def exported(self) -> list[Bucket]:
        """The buckets, those that items bring no length for as long as the network's own."""
        own = NETWORKS[self.network].buckets[-1]
        return list(dict.fromkeys(Bucket({**own, **lengths}) for lengths in self.buckets or self.items))


def _uniform(shortest: Mapping[str, int], longest: Bucket, count: int) -> tuple[Mapping[str, int], ...]:
    """Lengths drawn evenly and apart for each dim, the first item the longest."""
    draw = np.random.default_rng(0)
    rest = [{d: int(draw.integers(shortest[d], n + 1)) for d, n in longest.items()} for _ in range(count - 1)]
    return (longest, *rest)


EMT = Bucket(text_len=50, audio_len=375, vision_len=500)
FACIALMMT = Bucket(text_len=144, audio_len=300, vision_len=100)
FACIALMMT_CHANGED = (
    "model.audio_len=300",
    "model.vision_len=100",
    "model.buckets=[{text_len: 144, audio_len: 300, vision_len: 100}]",
)
IEMOCAP_16 = (94, 36, 21, 40, 51, 92, 55, 19, 43, 70, 92, 83, 110, 28, 98, 15)
"""Utterances of the 16 dialogues that the authors' code was timed on."""
MELD_16 = (21, 16, 13, 7, 8, 1, 2, 1, 5, 20, 16, 22, 13, 15, 24, 18)

CASES = {
    "mtee_20": Original("mtee_mosei", "20 steps", 0.31, ({"steps": 20},)),
    "mtee_20_b64": Original("mtee_mosei", "64 items of 20 steps", 3.50, 64 * ({"steps": 20},)),
    "mtee_50": Original("mtee_iemocap", "50 steps", 0.52, ({"steps": 50},)),
    "mtee_13_of_50": Original(
        "mtee_iemocap", "13 real steps (data.trim_zeros), padded to 50 in the original", 0.52, ({"steps": 13},)
    ),
    "cmerc_iemocap_52": Original("cmerc_iemocap", "a dialogue of 52 utterances", 10.4, ({"utterances": 52},)),
    "cmerc_iemocap_b16": Original(
        "cmerc_iemocap",
        "16 dialogues of 15 to 110 utterances, here in 5 buckets",
        272.0,
        tuple({"utterances": n} for n in IEMOCAP_16),
        tuple(Bucket(utterances=n) for n in (21, 43, 70, 98, 110)),
    ),
    "cmerc_meld_9": Original("cmerc_meld", "a dialogue of 9 utterances", 0.49, ({"utterances": 9},)),
    "cmerc_meld_b16": Original(
        "cmerc_meld",
        "16 dialogues of 1 to 24 utterances, here in 3 buckets",
        7.74,
        tuple({"utterances": n} for n in MELD_16),
        tuple(Bucket(utterances=n) for n in (8, 16, 24)),
    ),
    "emt_full": Original("emt_mosi", "full lengths", 15.8, (EMT,)),
    "emt_half": Original(
        "emt_mosi",
        "half the lengths, padded in the original",
        13.4,
        ({"text_len": 25, "audio_len": 188, "vision_len": 250},),
    ),
    "emt_b32": Original(
        "emt_mosi",
        "32 items of a tenth of the lengths to all, padded in the original, here in 2 buckets of text",
        493.0,
        _uniform({"text_len": 5, "audio_len": 37, "vision_len": 50}, EMT, 32),
        (Bucket({**EMT, "text_len": 28}), EMT),
    ),
    "tab": Original(
        "tab_iemocap",
        "30 text tokens (padded to 64 in the original), 512 speech tokens",
        72.6,
        ({"text_len": 30, "audio_len": 512},),
        (Bucket(text_len=32, audio_len=512),),
    ),
    "facialmmt": Original(
        "facialmmt_fusion",
        "an utterance of a dialogue of 140 tokens (padded to 512 in the original), 300 audio and 100 vision frames",
        201.0,
        ({"text_len": 140, "audio_len": 300, "vision_len": 100},),
        (FACIALMMT,),
        FACIALMMT_CHANGED,
    ),
    "facialmmt_dialogue": Original(
        "facialmmt_fusion",
        "all 10 utterances of that dialogue (10 calls of the original), its text encoded once",
        2010.0,
        10 * ({"text_len": 140, "audio_len": 300, "vision_len": 100},),
        (FACIALMMT,),
        FACIALMMT_CHANGED,
        stages=True,
    ),
    "facialmmt_face": Original("facialmmt_face", "one face", 11.1, ({},)),
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.original", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--case", choices=list(CASES), action="append", help="repeat for several; default: all")
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args(arguments)
    line = output.command("original", arguments)

    def run() -> None:
        cases = output.Entries(chosen.out, "original-1thread", "cases", line, markdown)
        for name in chosen.case or CASES:
            cases.add(name, measure(CASES[name], chosen.rounds))

    output.end_well(run)


def measure(case: Original, rounds: int) -> dict[str, Any]:
    """Times every runtime and the calibrator on the case's items, from arrays to scores, each in its bucket."""
    import torch

    torch.set_num_threads(1)
    network = replace(NETWORKS[case.network], changed=(*NETWORKS[case.network].changed, *case.changed))
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        bundle = random_bundle(Path(folder) / "bundle", network)
        samples = _items(bundle, case)
        square = torch.randn(limit.SIZE, limit.SIZE)
        calls: dict[str, Callable[[], object]] = {"calibrator": lambda: torch.mm(square, square)}
        for name, runtime, precision in WAYS:
            output.say(f"{case.network}, {case.what}: {name}")
            # Every round starts anew: what is kept between calls stays out.
            options = SessionOptions("cpu", 1, reuse=not case.stages)
            try:
                if runtime != "torch":
                    for bucket in case.exported:
                        export_variant(
                            bundle,
                            "onnx",
                            bucket,
                            precision=find_backend(runtime).stored(precision),
                            stages=case.stages,
                        )
                predictor = Predictor(Bundle.open(bundle.root), runtime, options, len(samples), precision=precision)
                stack.enter_context(predictor)
                predictor.scores(samples)
            except (ParityError, UnsupportedError, NotAvailableError) as error:
                skipped[name] = str(error)
                continue
            calls[name] = partial(predictor.scores, samples)
        for call in calls.values():
            warm_up(call)
        turns = interleave(calls, rounds)
        spent = _spent(bundle, case, samples)
    return {
        "what": case.what,
        "network": case.network,
        "items": len(samples),
        "buckets": [dict(b) for b in case.exported],
        "original_calibrators": case.calibrators,
        "calibrator_ms": turns["calibrator"].latency().p50,
        "rows": [_row(n, turns, case.calibrators) for n in calls if n != "calibrator"],
        "skipped": skipped,
        "spent": spent,
    }


def _items(bundle: Bundle, case: Original) -> list[Sample]:
    """Random items; in stages, all with the first one's input to a stage that repeats."""
    manifest = bundle.manifest
    samples = samples_of(manifest.contract, case.items)
    if case.stages:
        system = registry.get(manifest.system)
        shared = [
            s.name for stage in system.stages_of(system.parse(manifest.config)) if stage.repeats for s in stage.inputs
        ]
        same = {n: a for n, a in samples[0].inputs.items() if n in shared}
        samples = [replace(s, inputs={**s.inputs, **same}) for s in samples]
    return samples


def _spent(bundle: Bundle, case: Original, samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Part of ONNX Runtime's time by operator, for each precision, on the items that the longest bucket can hold."""
    arrays = collate(samples, bundle.manifest.contract, case.exported[-1])
    return {
        variant.precision: by_operator(bundle.root / variant.model, arrays)
        for variant in Bundle.open(bundle.root).manifest.variants
        if not variant.stages and variant.lengths == case.exported[-1]
    }


def _row(name: str, turns: dict[str, Turns], original: float) -> dict[str, Any]:
    """Calibrators per call, per round, and how many times fewer than the authors' code takes."""
    pairs = zip(turns[name].cpu, turns["calibrator"].cpu, strict=True)
    multiples = [sorted(own)[len(own) // 2] / sorted(unit)[len(unit) // 2] for own, unit in pairs]
    return {
        "name": name,
        "p50_ms": turns[name].latency().p50,
        "calibrators": Quartiles.of(multiples).model_dump(),
        "times": Quartiles.of([original / m for m in multiples]).model_dump(),
    }


def markdown(found: dict[str, Any]) -> str:
    """A row per case with the quotient of every runtime, and what the time that remains is spent on."""
    names = [name for name, *_ in WAYS]
    cases = found["cases"].values()
    rows, spent = [], []
    for case in cases:
        by_name = {row["name"]: row["times"] for row in case["rows"]}
        best = max(by_name.values(), key=lambda times: times["median"])
        cells = (output.spread(by_name[n], 1, strong=by_name[n] is best) if n in by_name else "–" for n in names)
        rows.append((case["network"], case["what"], f"{case['original_calibrators']:g}", *cells))
        for precision, parts in case["spent"].items():
            most = ", ".join(f"{op} {100 * part:.0f} %" for op, part in list(parts.items())[:MOST] if part >= LEAST)
            spent.append((case["network"], case["what"], precision, most))
    skipped = [
        f"- {case['what']}: {name} was not written: {reason}"
        for case in cases
        for name, reason in case["skipped"].items()
    ]
    return (
        "\n".join(
            [
                *output.head("Beside the authors' code", found, 1),
                "Times faster than the authors' code, each measured as a multiple of a 1024³ float32 product of "
                "PyTorch on its own machine (theirs: AMD EPYC, Zen 5; one thread; eager PyTorch 2.13; padded as their "
                "loaders pad). From arrays to scores, collation included. CPU time. Random weights.",
                "",
                *table(("network", "call", "authors' code, calibrators", *names), rows),
                "",
                *skipped,
                "",
                "What the time that remains is spent on, by ONNX Runtime's own clock, all items padded to the longest "
                "bucket:",
                "",
                *table(("network", "call", "precision", "operators"), spent),
            ]
        ).rstrip()
        + "\n"
    )


if __name__ == "__main__":
    main()
