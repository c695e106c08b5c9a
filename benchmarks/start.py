"""What it takes to open an OpenVINO session: compiled from the ONNX file, and from the model that was kept.

    python3 -m benchmarks.start --out benchmarks/results [--network cmerc_meld] [--rounds 7]

Opens both in turn in one process, with one thread; seconds are the fastest of all rounds, the ratio is the median of
the rounds'. Writes `start.json` and `start.md`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks import output
from benchmarks.suite import NETWORKS, random_bundle, random_samples
from mer_export.bundle import Bundle, Variant
from mer_export.exporters import export_variant
from mer_export.kept import Kept
from mer_export.markdown import table
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import open_session

USUAL = ("cmerc_meld", "cmerc_iemocap", "mtee_mosei", "emt_mosi")
ASKED = (SessionOptions(threads=1), SessionOptions(threads=1, reduced="int8"))


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.start", description="opening an OpenVINO session")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--network", choices=list(NETWORKS), action="append", help="repeat for several")
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args(arguments)

    def run() -> None:
        rows = [row for n in chosen.network or USUAL for row in measure(n, chosen.rounds)]
        found = {
            "command": output.command("start", arguments),
            "machine": output.here(),
            "rows": [row for row in rows if "ratio" in row],
            "not_kept": [f"{row['network']} {row['precision']}" for row in rows if "ratio" not in row],
        }
        output.write(chosen.out, "start", found, markdown(found))

    output.end_well(run)


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """One row for each precision of a network's longest bucket."""
    network = NETWORKS[name]
    # A key of its own: what is kept is kept with this folder.
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CONFIG_HOME=folder):
        bundle = random_bundle(Path(folder) / name, network)
        example = random_samples(bundle.manifest.contract, network.lengths, 2)
        variant = export_variant(bundle, "onnx", network.buckets[-1], example=example)
        bundle = Bundle.open(bundle.root)
        return [_row(name, bundle, variant, options, rounds) for options in ASKED]


def _row(name: str, bundle: Bundle, variant: Variant, options: SessionOptions, rounds: int) -> dict[str, Any]:
    """Both ways in turn; without times where the model is too large to be kept."""
    about = {"network": name, "precision": options.reduced or "fp32"}
    kept = Kept.beside(bundle.root).folder
    aside, before = kept.with_name("aside"), {*kept.rglob("*")}
    # The first start writes what later ones read.
    first = _seconds(bundle, variant, options)
    if not {*kept.rglob("*")} - before:
        output.say(f"{' '.join(about.values())}: too large to be kept")
        return about
    compiled, read = [], []
    for _ in range(rounds):
        kept.rename(aside)
        # A file where the folder would be: nothing can be kept, so that compiling is timed alone.
        kept.touch()
        compiled.append(_seconds(bundle, variant, options))
        kept.unlink()
        aside.rename(kept)
        read.append(_seconds(bundle, variant, options))
    ratios = [c / r for c, r in zip(compiled, read, strict=True)]
    output.say(f"{' '.join(about.values())}: {median(ratios):.2f}")
    return about | {
        "first_s": first,
        "compiled_s": min(compiled),
        "kept_s": min(read),
        "ratio": median(ratios),
        "ratios": ratios,
    }


def _seconds(bundle: Bundle, variant: Variant, options: SessionOptions) -> float:
    began = time.perf_counter()
    with open_session(bundle, variant, "openvino", options) as session:
        session.warm_up()
    return time.perf_counter() - began


def markdown(found: dict[str, Any]) -> str:
    """The table."""
    rows = [
        (
            r["network"],
            r["precision"],
            *(f"{r[k]:.2f}" for k in ("first_s", "compiled_s", "kept_s")),
            f"{r['ratio']:.2f} [{min(r['ratios']):.2f}, {max(r['ratios']):.2f}]",
        )
        for r in found["rows"]
    ]
    header = ("network", "precision", "first start, s", "compiled, s", "kept, s", "compiled / kept")
    lines = [*output.head("Opening an OpenVINO session, to the first answer", found, 1), "", *table(header, rows)]
    if found.get("not_kept"):
        lines += ["", f"Not run: {', '.join(found['not_kept'])}: too large to be kept."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
