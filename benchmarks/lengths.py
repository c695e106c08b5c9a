"""Many items of the lengths that occur: sorted and bucketed inference against PyTorch with the authors' batching.

    python3 -m benchmarks.lengths --out benchmarks/results [--network mtee_mosei] [--runtime openvino] [--items 256]

All ways to run the same items are timed in turns in one process, as many together as memory holds.
Writes `<network>-lengths.json` and `.md`, with `--plan-only` `<network>-plan.json` and `.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import limit, output
from benchmarks.suite import NETWORKS, Network, random_bundle, real_samples
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.data.collate import collate
from mer_export.data.samples import Sample
from mer_export.errors import ParityError, UnsupportedError
from mer_export.exporters import export_variant
from mer_export.markdown import table
from runtimes.backends.session import Session, SessionOptions
from runtimes.backends.table import find_backend, open_session
from runtimes.backends.way import in_memory
from runtimes.predict.plan import Plan
from runtimes.predict.predictor import Predictor
from runtimes.speed.planning import make_plan
from runtimes.speed.timing import Turns, interleave, ratio

COMPUTED = [
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
]
RUNTIMES = list(dict.fromkeys(backend for backend, _ in COMPUTED))
ALONE, PLANNED, PADDED = "one at a time", "planned batches", "all in one bucket"
MOST = 5
"""Buckets that the plan may have."""
ROUNDS = 5
BASE = "PyTorch, the authors' batching"


REAL = [name for name, network in NETWORKS.items() if network.real]
"""The networks of which it is known how long their items are."""


def suite_parser(suite: str, doc: str, items: int) -> argparse.ArgumentParser:
    """The options of a suite on items of real lengths, by default so many."""
    parser = argparse.ArgumentParser(prog=f"python3 -m benchmarks.{suite}", description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--network", choices=REAL, action="append", help="repeat for several; default: all")
    parser.add_argument("--items", type=int, default=items)
    parser.add_argument("--buckets", type=int, default=MOST, help="at most so many")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    parser = suite_parser("lengths", __doc__ or "", items=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--runtime", choices=RUNTIMES, action="append", help="repeat for several; default: all")
    parser.add_argument("--plan-only", action="store_true", help="cost per shape and buckets; export and run nothing")
    chosen = parser.parse_args(arguments)
    line = output.command("lengths", arguments)
    computed = [(backend, p) for backend, p in COMPUTED if backend in (chosen.runtime or RUNTIMES)]

    def run() -> None:
        for name in chosen.network or REAL:
            rounds = 0 if chosen.plan_only else chosen.rounds
            found = measure(name, chosen.items, chosen.buckets, computed, chosen.threads, rounds)
            found["command"] = line
            output.write(chosen.out, f"{name}-{'lengths' if rounds else 'plan'}", found, markdown(name, found))

    output.end_well(run)


def measure(
    name: str, count: int, buckets: int, computed: Sequence[tuple[str, str]], threads: int, rounds: int
) -> dict[str, Any]:
    """Exports the planned buckets of one network and times every way to run its items; with 0 `rounds` only plans."""
    network = NETWORKS[name]
    assert network.original is not None
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder) / name, network)
        samples = real_samples(bundle.manifest.contract, network, count)
        plan = make_plan(bundle, samples, buckets, "these items", threads=threads, say=output.say)
        plan.save(bundle)
        rows, missing = _ways(bundle, name, plan, samples, computed, threads, rounds) if rounds else ([], {})
    assert network.real is not None
    return {
        "machine": output.here(),
        "limit_gflops": limit.measure(threads),
        "threads": threads,
        "items": len(samples),
        "lengths": network.real.kind,
        "note": network.real.note,
        "plan": plan.model_dump(),
        "longest": network.longest.name,
        "original": [network.original.batch, network.original.padded_to],
        "not_exported": [f"{precision}: {why}" for precision, why in missing.items()],
        "rows": rows,
    }


def _ways(
    bundle: Bundle,
    name: str,
    plan: Plan,
    samples: Sequence[Sample],
    computed: Sequence[tuple[str, str]],
    threads: int,
    rounds: int,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row for each way to run the items, and what could not be exported."""
    longest = NETWORKS[name].longest
    buckets = [b.lengths for b in plan.buckets]
    missing = export(bundle, name, buckets if longest in buckets else [*buckets, longest], computed)
    bundle = Bundle.open(bundle.root)
    alike = all(b.batch == 1 for b in plan.buckets)
    batches = {ALONE: 1, PLANNED: None, PADDED: plan.buckets[-1].batch}
    ways = [
        (backend, precision, how)
        for backend, precision in computed
        if find_backend(backend).stored(precision) not in missing
        for how in (ALONE, PLANNED, PADDED)
        if how != PLANNED or not alike
    ]
    groups = in_memory(bundle, ways, sessions=len(plan.buckets), beside=1)
    rows: list[dict[str, Any]] = []
    with open_session(bundle, None, "torch", SessionOptions(threads=threads)) as eager:
        reference = {
            BASE: partial(_as_published, eager, bundle, NETWORKS[name], samples),
            "PyTorch, one at a time, unpadded": partial(_alone, eager, bundle, samples),
        }
        for group in groups:
            # Every group is timed beside the authors' batching; what else PyTorch can do needs one.
            calls: dict[str, Callable[[], object]] = {n: reference[n] for n in reference if n == BASE or not rows}
            with contextlib.ExitStack() as stack:
                for way in group:
                    predictor = stack.enter_context(_predictor(bundle, *way, batches[way[2]], longest, threads))
                    calls[" ".join(way[:2]) + f", {way[2]}"] = partial(predictor.scores, samples)
                output.say(f"{name}: {len(calls)} ways to run {len(samples)} items, {rounds} rounds")
                turns = interleave(calls, rounds)
            rows += [_row(n, turns, len(samples)) for n in calls if not rows or n != BASE]
    return rows, missing


def _predictor(
    bundle: Bundle, backend: str, precision: str, how: str, batch: int | None, longest: Bucket, threads: int
) -> Predictor:
    record = find_backend(backend)
    usable = [v for v in bundle.manifest.variants if record.takes(v) and v.precision == record.stored(precision)]
    return Predictor(
        bundle,
        backend,
        SessionOptions(threads=threads),
        batch,
        precision=precision,
        variants=[v for v in usable if v.lengths == longest] if how == PADDED else None,
    )


def _row(name: str, turns: dict[str, Turns], items: int) -> dict[str, Any]:
    latency = turns[name].latency()
    return {
        "name": name,
        "items_per_s": 1000 * items / latency.p50,
        "ratio": ratio(turns[BASE], turns[name]).model_dump(),
        "cpu_ratio": ratio(turns[BASE], turns[name], cpu=True).model_dump(),
    }


def export(
    bundle: Bundle, name: str, buckets: Sequence[Bucket], computed: Sequence[tuple[str, str]] = tuple(COMPUTED)
) -> dict[str, str]:
    """Every bucket as ONNX in the precisions that are `computed`, but for what is there already; what does not hold is
    returned with the reason."""
    missing: dict[str, str] = {}
    there = {(v.format, v.lengths, v.precision) for v in bundle.manifest.variants}
    for bucket in buckets:
        for precision in dict.fromkeys(find_backend(b).stored(p) for b, p in computed):
            if ("onnx", bucket, precision) in there:
                continue
            output.say(f"{name}: exporting {precision} for {bucket.name}")
            try:
                # Labels of random weights say nothing: a reduced precision is held against scores alone here.
                export_variant(bundle, "onnx", bucket, precision=precision)
            except (ParityError, UnsupportedError) as error:
                missing[precision] = str(error)
    return missing


def _as_published(session: Session, bundle: Bundle, network: Network, samples: Sequence[Sample]) -> None:
    """Items in file order, padded as the authors' loader pads them."""
    assert network.original is not None
    contract, size = bundle.manifest.contract, network.original.batch
    arrays = network.longest if network.original.padded_to == "arrays" else None
    for start in range(0, len(samples), size):
        session.run(collate(samples[start : start + size], contract, arrays))


def _alone(session: Session, bundle: Bundle, samples: Sequence[Sample]) -> None:
    for sample in samples:
        session.run(collate([sample], bundle.manifest.contract))


def markdown(name: str, found: dict[str, Any]) -> str:
    """The results as one table."""
    batch, padded_to = found["original"]
    assumed = f" ({found['note']})" if found["note"] else ""
    return (
        "\n".join(
            [
                *output.head(f"{name}: items of the lengths that occur", found, found["threads"]),
                f"{found['items']} items, lengths of `{found['lengths']}`{assumed}. "
                f"The authors' code runs {batch} at a time in file order, padded to "
                f"{'the whole arrays' if padded_to == 'arrays' else 'the longest of the batch'}; here that is this "
                f"project's network in eager PyTorch. Random weights. Collation is part of every time. `{PADDED}` is "
                f"{found['longest']}, which any item of the data set fits, in the batch size planned for the longest.",
                "Buckets and batch sizes as planned from the items (`mer export --plan`):",
                "",
                Plan.model_validate(found["plan"]).page(),
                "",
                *(["Planned only; nothing was run."] if not found["rows"] else []),
                *table(
                    ("way", "items/s", "x the authors' batching", "x, CPU time"),
                    [
                        (
                            row["name"],
                            f"{row['items_per_s']:.0f}",
                            *(output.spread(row[r]) for r in ("ratio", "cpu_ratio")),
                        )
                        for row in found["rows"]
                    ],
                ),
                "",
                *(f"- not exported: {text}" for text in found["not_exported"]),
            ]
        ).rstrip()
        + "\n"
    )


if __name__ == "__main__":
    main()
