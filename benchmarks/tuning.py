"""How long `mer tune` takes on every system at its published size, in the buckets of its preset.

    python3 -m benchmarks.tuning --out benchmarks/results [--network mtee_mosei] [--minutes 2] [--bundles DIR]

Exports ONNX in fp32, and in int8 where that takes no more than a few gigabytes of memory, and tunes once, on random
values; OpenVINO makes bf16 and int8 of fp32. Exports of large networks take much longer than tuning: with `--bundles`
they stay in a directory, and a run that ended early finds what it had. Writes `tuning.json` and
`tuning.md`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import output
from benchmarks.lengths import COMPUTED, export
from benchmarks.suite import NETWORKS, random_bundle
from mer_export import registry
from mer_export.bundle import Bundle
from mer_export.markdown import table
from mer_export.progress import Lines
from runtimes.predict.machine_profile import Goal, choose, scores
from runtimes.speed.encoder_bench import LATE
from runtimes.speed.tune import MINUTES, run_tune

SYSTEMS = (
    "cmerc_meld",
    "mtee_mosei",
    "emt_mosi",
    "mult_mosi",
    "tfr_net_mosi",
    "tab_iemocap",
    "facialmmt_fusion",
)
"""One network of each system."""
LARGE = ("tab_iemocap", "facialmmt_fusion")
"""Those whose int8 file takes twelve gigabytes of memory to export."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.tuning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--network", choices=SYSTEMS, action="append", help="repeat for several; default: all")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="that tuning may take")
    parser.add_argument("--bundles", type=Path, help="directory where exported bundles stay; default: none do")
    chosen = parser.parse_args(arguments)
    line = output.command("tuning", arguments)

    def run() -> None:
        networks = output.Entries(chosen.out, "tuning", "networks", line, markdown)
        for name in chosen.network or SYSTEMS:
            networks.add(name, measure(name, chosen.minutes, chosen.bundles))

    output.end_well(run)


def computed_for(name: str) -> list[tuple[str, str]]:
    """The runtimes and precisions that a network is tuned on."""
    return [c for c in COMPUTED if name not in LARGE or c[1] == "fp32"]


def measure(name: str, minutes: float, bundles: Path | None) -> dict[str, Any]:
    """Exports a network in the buckets of its preset, or what of it is not in `bundles` yet, and tunes it."""
    network = NETWORKS[name]
    buckets = tuple(registry.get(network.system).contract(network.config).buckets)
    with nullcontext(bundles) if bundles else tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / name
        bundle = Bundle.open(root) if root.exists() else random_bundle(root, replace(network, buckets=buckets))
        missing = export(bundle, name, buckets, computed_for(name))
        began = time.perf_counter()
        found = run_tune(
            Bundle.open(bundle.root),
            minutes=minutes,
            progress=Lines(lambda text: output.say(f"{name}: {text}")),
        )
        seconds = time.perf_counter() - began
    return {
        "minutes": minutes,
        "buckets": [b.name for b in buckets],
        "tune_s": seconds,
        "settings": len(scores(found)),
        "late": sum(why == LATE for _, why in found.not_run),
        "not_exported": missing,
        "chosen": choose(found, Goal("latency")).way.description,
    }


def markdown(found: dict[str, Any]) -> str:
    """A row per network."""
    rows = [
        (
            name,
            str(len(row["buckets"])),
            f"{60 * row['minutes']:.0f}",
            f"**{row['tune_s']:.0f}**",
            str(row["settings"]),
            str(row["late"]),
            row["chosen"],
        )
        for name, row in found["networks"].items()
    ]
    head = ("network", "buckets", "allowed, s", "took, s", "settings timed", "left out, late", "chosen for latency")
    return "\n".join(
        [
            *output.head("How long `mer tune` takes", found),
            f"Random weights, ONNX in fp32 and int8 ({', '.join(LARGE)}: in fp32) in the buckets of the preset, random "
            "values. Settings are those that were timed in every bucket.",
            "",
            *table(head, rows),
            "",
        ]
    )


if __name__ == "__main__":
    main()
