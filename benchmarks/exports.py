"""Every network at its published size in every format: what an export takes, and whether it gives PyTorch's answers.

    python3 -m benchmarks.exports --out benchmarks/results [--network emt_sims] [--format tensorrt] [--precision int8]

Each export runs in a process of its own, so that its peak memory is known. Random weights. Writes
`<network>-exports.json` and `.md`. An engine that no device here can run is built and not run, and the file says so.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import output
from benchmarks.environments import only
from benchmarks.suite import NETWORKS, random_bundle, random_samples
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.errors import NotAvailableError
from mer_export.exporters import export_formats, export_variant
from mer_export.machine import peak_mib
from mer_export.markdown import table
from mer_export.progress import Lines
from runtimes.backends.way import find_ways
from runtimes.parity.report import ParityReport
from runtimes.parity.run import run_parity

LARGE_MIB = 1024
"""Weights from which on one bucket has to do."""
MIB = 2**20
PRECISIONS = sorted({p for f in export_formats().values() for p in f.precisions} - {"fp32"})


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite, or as a child one export of it."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.exports", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="directory of the results")
    parser.add_argument("--network", choices=list(NETWORKS), action="append", help="repeat for several; default: all")
    parser.add_argument(
        "--format", choices=list(export_formats()), action="append", help="repeat for several; default: all"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, action="append", help="beside fp32, in formats that have it; repeatable"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the runtimes that are compared")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    line = output.command("exports", arguments)

    def run() -> None:
        if chosen.only:
            print(json.dumps(export_here(**json.loads(chosen.only))))
            return
        for name in chosen.network or NETWORKS:
            found = {"command": line} | measure(
                name, chosen.format or list(export_formats()), chosen.precision or [], chosen.threads
            )
            output.write(chosen.out, f"{name}-exports", found, markdown(name, found))

    if chosen.out is None and not chosen.only:
        parser.error("--out is needed")
    output.end_well(run)


def measure(network: str, formats: Sequence[str], precisions: Sequence[str], threads: int) -> dict[str, Any]:
    """Exports one network bucket by bucket, then compares everything that runs here with PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / network
        bundle = random_bundle(root, NETWORKS[network])
        weights = (root / "model.safetensors").stat().st_size / MIB
        rows = [
            _export(root, network, format, precision, bucket)
            for bucket in NETWORKS[network].buckets[: 1 if weights > LARGE_MIB else None]
            for format in formats
            for precision in ("fp32", *precisions)
            if precision in export_formats()[format].precisions
        ]
        bundle = Bundle.open(root)
        samples = random_samples(bundle.manifest.contract, NETWORKS[network].lengths, NETWORKS[network].samples)
        parity = run_parity(
            bundle,
            samples,
            candidates=[w for w in find_ways(bundle, threads) if not w.is_eager],
            threads=threads,
            source="random items",
            progress=Lines(lambda text: output.say(f"{network}: {text}")),
        )
    return {
        "machine": output.here(),
        "threads": threads,
        "weights_mib": round(weights, 1),
        "exports": rows,
        "parity": parity.model_dump(),
    }


def export_here(bundle: str, network: str, format: str, precision: str, lengths: dict[str, int]) -> dict[str, Any]:
    """One export in this process: seconds, peak memory, how much the bundle grows."""
    opened = Bundle.open(bundle)
    samples = random_samples(opened.manifest.contract, NETWORKS[network].lengths, NETWORKS[network].samples)
    start, before = time.perf_counter(), _size(opened)
    export_variant(opened, format, lengths, precision=precision, example=samples)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_mib": round(peak_mib()),
        "added_mib": round(_size(opened) - before, 1),
    }


def _size(bundle: Bundle) -> float:
    """Of all variants: buckets of one precision share their weights."""
    return sum(f.stat().st_size for f in (bundle.root / "variants").rglob("*") if f.is_file()) / MIB


def _export(root: Path, network: str, format: str, precision: str, bucket: Bucket) -> dict[str, Any]:
    """One export in a fresh process; where it fails, the reason as it was said."""
    about = {"format": format, "precision": precision, "lengths": bucket.name}
    output.say(f"{network}: exporting {' '.join(about.values())}")
    asked = {"bundle": str(root), "network": network, "format": format, "precision": precision}
    try:
        found = only("exports", asked | {"lengths": dict(bucket)})
    except NotAvailableError as error:
        return about | {"refused": str(error)}
    output.say(f"{network}: {found}")
    return about | found


def markdown(network: str, found: dict[str, Any]) -> str:
    """The exports as a table, and the parity report."""
    parity = ParityReport.model_validate(found["parity"])
    header = ("format", "precision", "bucket", "seconds", "peak MiB", "MiB added")
    made = [e for e in found["exports"] if "refused" not in e]
    lines = [
        *output.head(f"Exports of {network}", found, found["threads"]),
        f"Random weights of {found['weights_mib']} MiB in float32. Seconds and peak memory are of a process that does "
        "this one export, reading the weights included.",
        "",
        *table(
            header,
            [(e["format"], e["precision"], e["lengths"], e["seconds"], e["peak_mib"], e["added_mib"]) for e in made],
        ),
    ]
    lines += [
        f"- {e['format']} {e['precision']} {e['lengths']} was not written: {e['refused']}"
        for e in found["exports"]
        if "refused" in e
    ]
    return "\n".join([*lines, "", parity.page().replace("# Parity", "## Parity", 1)]) + "\n"


if __name__ == "__main__":
    main()
