"""This project beside the authors' own code, through a calibrator: a 1024³ float32 product of PyTorch in the same run.

    python3 -m benchmarks.original --out benchmarks/results [--case cmerc_iemocap_52]

The authors' code was timed on another machine (AMD EPYC, Zen 5, one thread, eager PyTorch 2.13, random weights, padded
as their loaders pad) as multiples of the calibrator there; `CASES` holds those multiples. Here every runtime is timed
as a multiple of the calibrator here, in interleaved rounds. The quotient compares the two on machines of one vendor
only, and only as well as a matrix product stands for a network. Writes `original-1thread.json` and `.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import limit, output
from benchmarks.suite import NETWORKS, random_bundle
from mer_export.contract import Lengths
from mer_export.errors import ParityError, UnsupportedError
from mer_export.exporters import export_variant
from mer_export.exporters.job import random_inputs
from runtimes import machine, open_session
from runtimes.session import SessionOptions
from runtimes.tables import table
from runtimes.timing import Quartiles, Turns, interleave, warm_up

WAYS = (
    ("PyTorch eager", "torch", "fp32", "fp32"),
    ("ONNX Runtime fp32", "onnxruntime", "fp32", "fp32"),
    ("ONNX Runtime int8", "onnxruntime", "int8", "fp32"),
    ("OpenVINO fp32", "openvino", "fp32", "fp32"),
    ("OpenVINO bf16", "openvino", "fp32", "bf16"),
)
"""Name, runtime, precision of the variant, hint."""


@dataclass(frozen=True)
class Original:
    """A call of the authors' code: what it did, its time in calibrators on one thread, and what answers it here.

    `lengths` is the bucket of the real lengths, `changed` what of the preset is as in that call.
    """

    network: str
    what: str
    calibrators: float
    lengths: Lengths
    batch: int = 1
    changed: tuple[str, ...] = ()


CASES = {
    "mtee_20": Original("mtee_mosei", "20 steps", 0.31, {"steps": 20, "emotions": 16}),
    "mtee_20_b64": Original("mtee_mosei", "20 steps, batch 64", 3.50, {"steps": 20, "emotions": 16}, 64),
    "mtee_50": Original("mtee_iemocap", "50 steps", 0.52, {"steps": 50, "emotions": 16}),
    "mtee_13_of_50": Original(
        "mtee_iemocap", "13 real steps, padded to 50 in the original", 0.52, {"steps": 13, "emotions": 16}
    ),
    "cmerc_iemocap_52": Original("cmerc_iemocap", "a dialogue of 52 utterances", 10.4, {"utterances": 52}),
    "cmerc_meld_9": Original("cmerc_meld", "a dialogue of 9 utterances", 0.49, {"utterances": 9}),
    "cmerc_meld_b16": Original("cmerc_meld", "16 dialogues, longest 24", 7.74, {"utterances": 24}, 16),
    "emt_full": Original("emt_mosi", "full lengths", 15.8, {"text_len": 50, "audio_len": 375, "vision_len": 500}),
    "emt_half": Original(
        "emt_mosi",
        "half the lengths, padded in the original",
        13.4,
        {"text_len": 25, "audio_len": 188, "vision_len": 250},
    ),
    "tab": Original(
        "tab_iemocap",
        "30 text tokens (padded to 64 in the original), 512 speech tokens",
        72.6,
        {"text_len": 32, "audio_len": 512},
    ),
    "facialmmt": Original(
        "facialmmt_fusion",
        "a dialogue of 140 tokens (padded to 512 in the original), 300 audio and 100 vision frames",
        201.0,
        {"text_len": 144, "audio_len": 300, "vision_len": 100},
        changed=(
            "model.audio_len=300",
            "model.vision_len=100",
            "model.buckets=[{text_len: 144, audio_len: 300, vision_len: 100}]",
        ),
    ),
    "facialmmt_face": Original("facialmmt_face", "one face", 11.1, {}),
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
        before = chosen.out / "original-1thread.json"
        # Cases of earlier runs stay beside the new ones.
        cases = json.loads(before.read_text())["cases"] if before.is_file() else {}
        for name in chosen.case or CASES:
            cases[name] = measure(CASES[name], chosen.rounds)
            found = {"command": line, "machine": machine.describe(), "cases": cases}
            # After every case, so that a run that is stopped leaves what it has.
            output.write(chosen.out, "original-1thread", found, markdown(found))

    output.end_well(run)


def measure(case: Original, rounds: int) -> dict[str, Any]:
    """Times every runtime and the calibrator on one batch of the case's lengths."""
    import torch

    torch.set_num_threads(1)
    network = replace(NETWORKS[case.network], changed=(*NETWORKS[case.network].changed, *case.changed))
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        bundle = random_bundle(Path(folder) / "bundle", network)
        arrays = random_inputs(bundle.manifest.contract, case.lengths, case.batch)
        square = torch.randn(limit.SIZE, limit.SIZE)
        calls: dict[str, Callable[[], object]] = {"calibrator": lambda: torch.mm(square, square)}
        for name, runtime, precision, hint in WAYS:
            output.say(f"{case.network}, {case.what}: {name}")
            options = SessionOptions("cpu", 1, "bf16" if hint == "bf16" else "fp32")
            try:
                eager = runtime == "torch"
                variant = None if eager else export_variant(bundle, "onnx", case.lengths, precision=precision)
                session = stack.enter_context(open_session(bundle, variant, runtime, options))
            except (ParityError, UnsupportedError) as error:
                skipped[name] = str(error)
                continue
            calls[name] = lambda session=session: session.run(arrays)  # type: ignore[misc]
        for call in calls.values():
            warm_up(call)
        turns = interleave(calls, rounds)
    return {
        "what": case.what,
        "network": case.network,
        "batch": case.batch,
        "original_calibrators": case.calibrators,
        "calibrator_ms": turns["calibrator"].latency().p50,
        "rows": [_row(n, turns, case.calibrators) for n in calls if n != "calibrator"],
        "skipped": skipped,
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
    """One table: a row per case, the quotient of every runtime."""
    names = [name for name, *_ in WAYS]
    rows = []
    for case in found["cases"].values():
        by_name = {row["name"]: row["times"] for row in case["rows"]}
        cells = (
            f"{by_name[n]['median']:.1f} [{by_name[n]['q25']:.1f}, {by_name[n]['q75']:.1f}]" if n in by_name else "–"
            for n in names
        )
        rows.append((case["network"], case["what"], f"{case['original_calibrators']:g}", *cells))
    skipped = [
        f"- {case['what']}: {name} was not written: {reason}"
        for case in found["cases"].values()
        for name, reason in case["skipped"].items()
    ]
    return (
        "\n".join(
            [
                "# Beside the authors' code",
                "",
                f"`{found['command']}`",
                "",
                output.where(found["machine"], 1),
                "Times faster than the authors' code, each measured as a multiple of a 1024³ float32 product of "
                "PyTorch on its own machine (theirs: AMD EPYC, Zen 5; one thread; eager PyTorch 2.13; padded as their "
                "loaders pad). CPU time. Random weights.",
                "",
                *table(("network", "call", "authors' code, calibrators", *names), rows),
                "",
                *skipped,
            ]
        ).rstrip()
        + "\n"
    )


if __name__ == "__main__":
    main()
