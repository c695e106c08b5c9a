"""cmerc at its published IEMOCAP and MELD dimensions: every runtime against eager PyTorch.

    python3 -m benchmarks.cmerc --out benchmarks/results [--threads 2]

Writes `cmerc-<threads>threads.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import limit
from benchmarks.suite import BUCKETS, LENGTHS, NETWORKS, gflop, random_bundle, random_samples
from mer_export import registry
from mer_export.bundle import write_atomic
from mer_export.errors import MerError
from mer_export.exporters import export_variant
from runtimes.bench import BenchReport, run_bench
from runtimes.parity import ParityReport, run_parity
from runtimes.tables import parity_markdown, table, verdict_line

FORMATS = ("torchscript", "onnx")
SAMPLES = 24


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    parser = argparse.ArgumentParser(description="cmerc at published dimensions, every runtime against eager PyTorch")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--batch", type=int, action="append", help="repeat for several; default 1 and 16")
    parser.add_argument("--network", choices=list(NETWORKS), action="append", help="default: all")
    chosen = parser.parse_args(arguments)
    try:
        given = sys.argv[1:] if arguments is None else arguments
        command = " ".join(["python3 -m benchmarks.cmerc", *given])
        run(
            command,
            chosen.out,
            chosen.threads,
            chosen.rounds,
            chosen.batch or [1, 16],
            chosen.network or list(NETWORKS),
        )
    except MerError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def run(command: str, out: Path, threads: int, rounds: int, batches: list[int], networks: list[str]) -> Path:
    """Measures `networks` and writes JSON and Markdown into `out`; returns the Markdown file."""
    _say(f"limit of this machine with {threads} threads")
    bound = limit.measure(threads)
    results = {}
    for name in networks:
        parity, bench = measure(name, threads, rounds, batches)
        results[name] = {"parity": parity, "bench": bench}
    stem = f"cmerc-{threads}thread{'s' if threads > 1 else ''}"
    content = {
        "command": command,
        "limit_gflops": bound,
        "networks": {n: {k: r.model_dump(mode="json") for k, r in both.items()} for n, both in results.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / f"{stem}.json", json.dumps(content, indent=1).encode())
    write_atomic(out / f"{stem}.md", markdown(command, bound, results).encode())
    _say(f"wrote {out / stem}.json and .md")
    return out / f"{stem}.md"


def measure(network: str, threads: int, rounds: int, batches: list[int]) -> tuple[ParityReport, BenchReport]:
    """Exports one network in a temporary bundle, checks that all runtimes agree, and times them."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder) / network, NETWORKS[network])
        samples = random_samples(bundle.manifest.contract, LENGTHS[network], SAMPLES)
        for lengths in BUCKETS[network]:
            for format in FORMATS:
                _say(f"{network}: exporting {format} for {lengths}")
                export_variant(bundle, format, lengths, example=samples)
        parity = run_parity(bundle, samples, threads=threads, source="random dialogues")
        _say(f"{network}: {verdict_line(parity)}")
        bench = run_bench(bundle, samples, batches, rounds, threads, say=lambda text: _say(f"{network}: {text}"))
    return parity, bench


def markdown(command: str, bound: dict[str, float], results: dict[str, dict[str, Any]]) -> str:
    """One table per network and case, with the part of the machine's limit that each runtime reaches."""
    reports = [r["bench"] for r in results.values()]
    machine = reports[0].machine
    best = max(bound.values())
    lines = [
        "# cmerc at published dimensions",
        "",
        f"`{command}`",
        "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB. Load average "
        f"{max(r.machine['load_average'] for r in reports)} at most at a start, "
        f"{max(r.load_average_end for r in reports)} at an end"
        + (": **busy, trust ratios only**." if any(r.busy for r in reports) else "."),
        f"Versions: {', '.join(f'{k} {v}' for k, v in machine['versions'].items())}, Python {machine['python']}.",
        f"Limit, float32 product 1024³: {', '.join(f'{k} {v:.0f} GFLOP/s' for k, v in bound.items())}.",
        "",
        f"Random weights; every runtime gets the same padded input; {reports[0].rounds} interleaved rounds. `x eager` "
        "is eager time / own time per round, median [q25, q75]. `of limit` is the padded float32 work over the "
        "fastest product above; bf16 can pass 100 %. Times are milliseconds and belong to this machine.",
    ]
    for name, both in results.items():
        lines += ["", f"## {name}", "", f"Parity of what was timed: {verdict_line(both['parity'])}"]
        config = registry.get("cmerc").parse(NETWORKS[name])
        for case in both["bench"].cases:
            work = gflop(config, case.batch, case.lengths["utterances"])
            lines += ["", f"### {case.name} ({work:.2f} GFLOP)", "", *_rows(case, work, best)]
        starts = [
            (c.name, c.start_s, c.load_s, f"{c.first_call_ms:.0f}", f"{c.peak_mib:.0f}") for c in both["bench"].cold
        ]
        header = ("start-up in a fresh process", "Python start s", "load s", "first answer ms", "peak MiB")
        lines += ["", *table(header, starts)]
        if both["parity"].verdict == "fail":
            lines += ["", parity_markdown(both["parity"])]
    return "\n".join(lines) + "\n"


def _rows(case: Any, work: float, best: float) -> list[str]:
    header = ("runtime", "precision", "p50", "p90", "CPU p50", "dialogues/s", "x eager", "x eager, CPU", "of limit")
    rows = []
    for row in case.rows:
        used = 1000 * work / row.latency.p50 / best
        rows.append(
            (
                row.runtime,
                row.precision,
                f"{row.latency.p50:.2f}",
                f"{row.latency.p90:.2f}",
                f"{row.latency.cpu_p50:.2f}",
                f"{row.items_per_s:.0f}",
                f"**{row.ratio.median:.2f}** [{row.ratio.q25:.2f}, {row.ratio.q75:.2f}]",
                f"{row.cpu_ratio.median:.2f} [{row.cpu_ratio.q25:.2f}, {row.cpu_ratio.q75:.2f}]",
                "–" if row.runtime == "torch unpadded" else f"{used:.0%}",
            )
        )
    return table(header, rows)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
