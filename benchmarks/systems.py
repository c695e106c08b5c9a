"""Every system at its published sizes: every runtime against eager PyTorch.

    python3 -m benchmarks.systems --out benchmarks/results [--threads 2] [--network emt_mosi] [--precision int8]

Writes `<system>-<threads>thread.json` and `.md`, one pair per system.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import limit, output
from benchmarks.flops import gflop
from benchmarks.suite import NETWORKS, random_bundle, random_samples
from mer_export.bundle import Bundle
from mer_export.data.example_inputs import random_inputs
from mer_export.data.samples import Sample
from mer_export.errors import ParityError, UnsupportedError
from mer_export.exporters import export_formats, export_variant
from mer_export.markdown import table
from mer_export.progress import Lines
from runtimes.backends.way import eager, find_ways, grouped_reasons
from runtimes.parity.report import ParityReport, verdict_line
from runtimes.parity.run import run_parity
from runtimes.speed.bench import run_bench
from runtimes.speed.bench_report import STAGE_HEADER, BenchReport, Case, stage_rows

TIMED = ("torchscript", "onnx")
"""Formats that are exported."""
PRECISIONS = sorted({p for f in TIMED for p in export_formats()[f].precisions} - {"fp32"})
LONG_CALL = 1.0
"""Seconds of an eager call from which on there are fewer rounds."""
FEWER, FEWEST = 5, 3
"""Long calls get the rounds divided by the first, but no less than the second."""


@dataclass
class Measured:
    """What was found about one network: parity, a report per batch size, and what could not be exported and why.

    `gflop` is the padded work of each case by name.
    """

    parity: ParityReport
    benches: list[BenchReport]
    not_exported: list[tuple[str, str]]
    gflop: dict[str, float]

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "parity": self.parity.model_dump(mode="json"),
            "bench": [b.model_dump(mode="json") for b in self.benches],
            "not_exported": self.not_exported,
            "gflop": self.gflop,
        }

    @property
    def cases(self) -> list[tuple[Case, int]]:
        """Each case with its rounds, by bucket and then batch size."""
        found = [(case, bench.rounds) for bench in self.benches for case in bench.cases]
        return sorted(found, key=lambda pair: (pair[0].lengths, pair[0].batch))


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.systems",
        description="every system at published sizes, every runtime against eager PyTorch",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--rounds",
        type=int,
        default=21,
        help=f"default 21; a {FEWER}th of it, at least {FEWEST}, where one eager call takes over {LONG_CALL:g} s",
    )
    parser.add_argument("--batch", type=int, action="append", help="repeat for several; default: the network's own")
    parser.add_argument("--skip-parity", action="store_true", help="where benchmarks.exports has shown it")
    parser.add_argument("--network", choices=list(NETWORKS), action="append", help="repeat for several; default: all")
    parser.add_argument(
        "--precision", choices=PRECISIONS, action="append", help="beside fp32, in formats that have it; repeatable"
    )
    chosen = parser.parse_args(arguments)
    output.end_well(
        lambda: run(
            output.command("systems", arguments),
            chosen.out,
            chosen.threads,
            chosen.rounds,
            chosen.batch,
            chosen.network or list(NETWORKS),
            chosen.precision or [],
            chosen.skip_parity,
        )
    )


def run(
    command: str,
    out: Path,
    threads: int,
    rounds: int,
    batches: Sequence[int] | None,
    networks: Sequence[str],
    precisions: Sequence[str] = (),
    skip_parity: bool = False,
) -> list[Path]:
    """Measures `networks` and writes JSON and Markdown of each system into `out`; returns the Markdown files."""
    output.say(f"limit of this machine with {threads} thread{'s' if threads > 1 else ''}")
    bound, here = limit.measure(threads), output.here()
    written = []
    for system in dict.fromkeys(NETWORKS[n].system for n in networks):
        results = {
            n: measure(n, threads, rounds, batches or NETWORKS[n].batches, precisions, skip_parity)
            for n in dict.fromkeys(networks)
            if NETWORKS[n].system == system
        }
        content = {
            "command": command,
            "machine": here,
            "limit_gflops": bound,
            "networks": {name: found.dump() for name, found in results.items()},
        }
        text = markdown(system, command, here, bound, results)
        written.append(output.write(out, f"{system}-{threads}thread", content, text))
    return written


def measure(
    network: str,
    threads: int,
    rounds: int,
    batches: Sequence[int],
    precisions: Sequence[str] = (),
    skip_parity: bool = False,
) -> Measured:
    """Exports one network in a temporary bundle, checks that all runtimes agree, and times them."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder) / network, NETWORKS[network])
        samples = random_samples(bundle.manifest.contract, NETWORKS[network].lengths, NETWORKS[network].samples)
        missing = _export(bundle, network, samples, precisions)
        parity = run_parity(
            bundle,
            samples,
            candidates=[w for w in find_ways(bundle, threads) if not w.is_eager and not skip_parity],
            threads=threads,
            source="random items",
            progress=Lines(lambda text: output.say(f"{network}: {text}")),
        )
        output.say(f"{network}: {verdict_line(parity)}")
        benches = [
            run_bench(
                bundle,
                samples,
                [batch],
                _rounds(bundle, network, batch, threads, rounds),
                threads,
                cold=batch == batches[0],
                progress=Lines(lambda text: output.say(f"{network}: {text}")),
            )
            for batch in batches
        ]
        work = _work(bundle, benches)
    return Measured(parity, benches, missing, work)


def _work(bundle: Bundle, benches: Sequence[BenchReport]) -> dict[str, float]:
    """GFLOP of every case, from its fp32 ONNX file."""
    files = {
        v.lengths: v.model
        for v in bundle.manifest.variants
        if (v.format, v.precision, v.stages) == ("onnx", "fp32", ())
    }
    return {
        case.name: gflop(
            bundle.root / files[case.lengths],
            random_inputs(bundle.manifest.contract, case.lengths, case.batch),
        )
        for bench in benches
        for case in bench.cases
    }


def _export(
    bundle: Bundle, network: str, samples: Sequence[Sample], precisions: Sequence[str]
) -> list[tuple[str, str]]:
    """Every bucket in every format and precision; returns reduced precisions that do not hold, with the reason."""
    missing = []
    for bucket in NETWORKS[network].buckets:
        for format in TIMED:
            output.say(f"{network}: exporting {format} for {bucket.name}")
            for stages in (False, True) if NETWORKS[network].stages else (False,):
                export_variant(bundle, format, bucket, example=samples, stages=stages)
            for precision in precisions:
                if precision not in export_formats()[format].precisions:
                    continue
                name = f"{format} {precision} {bucket.name}"
                output.say(f"{network}: exporting {name}")
                try:
                    export_variant(bundle, format, bucket, precision=precision, example=samples)
                except (ParityError, UnsupportedError) as error:
                    output.say(f"{network}: {error}")
                    missing.append((name, str(error)))
    return missing


def _rounds(bundle: Bundle, network: str, batch: int, threads: int, rounds: int) -> int:
    """Fewer rounds where one eager call of the longest bucket takes long."""
    arrays = random_inputs(bundle.manifest.contract, NETWORKS[network].buckets[-1], batch)
    with eager(threads).open(bundle) as session:
        session.run(arrays)
        start = time.perf_counter()
        session.run(arrays)
        long = time.perf_counter() - start > LONG_CALL
    return min(rounds, max(rounds // FEWER, FEWEST)) if long else rounds


def markdown(
    system: str, command: str, here: dict[str, Any], bound: dict[str, float], results: dict[str, Measured]
) -> str:
    """One table per network and case, with the part of the machine's limit that each runtime reaches."""
    reports = [b for r in results.values() for b in r.benches]
    best = max(bound.values())
    lines = [
        f"# {system} at published sizes",
        "",
        f"`{command}`",
        "",
        f"Machine: {here['cpu']}, {here['cores']} cores, {here['memory_gib']} GiB; {output.limits_text(here)}"
        f"load average {max(r.machine['load_average'] for r in reports)} at most at a start, "
        f"{max(r.load_average_end for r in reports)} at an end"
        + (": **busy, trust ratios only**." if any(r.busy for r in reports) else "."),
        f"Versions: {', '.join(f'{k} {v}' for k, v in here['versions'].items())}, Python {here['python']}.",
        f"Limit, float32 product 1024³: {', '.join(f'{k} {v:.0f} GFLOP/s' for k, v in bound.items())}.",
        "",
        "Random weights; every runtime gets the same padded input; interleaved rounds. `x eager` is eager time / own "
        "time per round, median [q25, q75]. "
        "`of limit` is the padded float32 work over the fastest product above; bf16 and int8 can pass 100 %. Nothing "
        "is said of who leaves work out: `unpadded`, and `stages`, of which texts are encoded before a call is timed "
        "(`afresh` keeps nothing). "
        "Times are milliseconds and belong to this machine.",
    ]
    for name, found in results.items():
        shown = verdict_line(found.parity) if found.parity.ran else f"see {name}-exports.md."
        lines += ["", f"## {name}", "", f"Parity of what was timed: {shown}"]
        for case, rounds in found.cases:
            work, stages = found.gflop[case.name], stage_rows(case)
            lines += ["", f"### {case.name} ({work:.2f} GFLOP, {rounds} rounds)", "", *_rows(case, work, best)]
            lines += ["", *table(STAGE_HEADER, stages)] if stages else []
        cold = [c for b in found.benches for c in b.cold]
        starts = [(c.name, c.start_s, c.load_s, f"{c.first_call_ms:.0f}", f"{c.peak_mib:.0f}") for c in cold]
        header = ("start-up in a fresh process", "Python start s", "load s", "first answer ms", "peak MiB")
        lines += ["", *table(header, starts)]
        if found.not_exported:
            lines += ["", "Not exported:", ""]
            lines += [f"- {', '.join(names)}: {reason}" for reason, names in grouped_reasons(found.not_exported)]
        if found.parity.verdict == "fail":
            lines += ["", found.parity.page()]
    return "\n".join(lines) + "\n"


def _rows(case: Case, work: float, best: float) -> list[str]:
    """The table of a case; `work` in GFLOP gives the part of `best` GFLOP/s that is used."""
    header = ("runtime", "precision", "p50", "p90", "CPU p50", "items/s", "x eager", "x eager, CPU", "of limit")
    rows: list[tuple[str, ...]] = []
    for row in case.rows:
        used = 1000 * work / row.latency.p50 / best
        cells = (
            row.runtime,
            row.precision,
            f"{row.latency.p50:.2f}",
            f"{row.latency.p90:.2f}",
            f"{row.latency.cpu_p50:.2f}",
            f"{row.items_per_s:.0f}",
            output.spread(row.ratio.model_dump(), strong=True),
            output.spread(row.cpu_ratio.model_dump()),
            # Neither computes all of that work: the padding, or texts that it has encoded before.
            "–" if row.runtime == "torch unpadded" or row.runtime.endswith("stages") else f"{used:.0%}",
        )
        rows.append(cells)
    return table(header, rows)


if __name__ == "__main__":
    main()
