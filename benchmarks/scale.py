"""What do more workers bring, and is a run whole when a node dies? `mer infer` in blocks, over processes and actors.

    python3 -m benchmarks.scale --out benchmarks/results [--part shards --part cluster] [--network cmerc_meld]
    python3 -m benchmarks.scale --out DIR --part killed --utterances 1000000

`shards` and `cluster` time workers of one thread each, crews that are open already, on the same blocks in turns with a
single process: dialogues of a network at its published size. `killed` starts a cluster of two nodes on this machine,
ends one of them when half of the blocks are done, and holds every answer against those of `mer infer` in one process: a
small network. Writes `scale.json` and `scale.md`; the part `killed` alone `scale_killed.json` and `.md`.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import output
from benchmarks.lengths import export
from benchmarks.suite import NETWORKS, Network, random_bundle
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.formats.parquet.rows import Head
from mer_export.errors import MerError
from mer_export.launcher import module_command
from mer_export.markdown import table
from mer_export.progress import Lines
from mer_export.untrusted.parquet import pyarrow_modules
from mer_export.untrusted.stored import stored_files
from runtimes.pipeline import How, Reading
from runtimes.scale.blocks import Answered, Asked
from runtimes.scale.cluster import LOCAL, ClusterCrew, ray_module
from runtimes.scale.command import MIB, Blocks, Spread, planned
from runtimes.scale.ledger import Ledger, Request
from runtimes.scale.processes import ProcessCrew
from runtimes.scale.run import Crew, Run
from runtimes.speed.timing import interleave, ratio

PARTS = ("shards", "cluster", "killed")
ALONE = "1 process"
SMALL = Network(
    "cmerc/meld",
    (Bucket({"utterances": 8}),),
    {"utterances": (8, 8)},
    (16,),
    ("model.text_dim=16", "model.audio_dim=8", "model.vision_dim=8", "model.width=16", "model.hidden=16"),
)
MANY = 10**9
"""Utterances of the plan in docs/scale.md."""
CORES = (64, 1024)
COSTS = {"cost_per_million": "price of a million", "cost_of_many": "price of 10⁹"}
UTTERANCES = 8
"""In a dialogue."""
HOW = How("onnxruntime", threads=1, batch=64)
BLOCK = 4.0
"""MiB."""
ROWS = 4096
"""Of a row group: whole dialogues."""
TOLERANCE = 1e-5
"""Batches are cut elsewhere, so sums are rounded otherwise."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: shards and cluster")
    parser.add_argument("--network", choices=list(NETWORKS), default="cmerc_meld", help="one that takes dialogues")
    parser.add_argument("--utterances", type=int, help="default 16384, killed 100000")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--price", type=float, help="of a core for an hour, in whatever money: adds what answers cost")
    chosen = parser.parse_args(arguments)
    line = output.command("scale", arguments)
    parts = chosen.part or ["shards", "cluster"]

    def run() -> None:
        found: dict[str, Any] = {"command": line, "machine": output.here()}
        with tempfile.TemporaryDirectory(dir=chosen.out if chosen.out.is_dir() else None) as folder:
            timed = [p for p in parts if p != "killed"]
            if timed:
                count = chosen.utterances or 1 << 14
                found["speed"] = measure(Path(folder), chosen.network, timed, count, chosen.workers, chosen.rounds)
                found["speed"]["plan"] = plan_rows(found["speed"]["rows"], chosen.price)
            if "killed" in parts:
                found["killed"] = killed(Path(folder), chosen.utterances or 100_000)
        output.write(chosen.out, "scale" if timed else "scale_killed", found, markdown(found))

    output.end_well(run)


def measure(folder: Path, name: str, parts: Sequence[str], count: int, workers: int, rounds: int) -> dict[str, Any]:
    """Utterances a second of each crew, and how many times as fast as one process it is."""
    bundle, data = _world(folder, NETWORKS[name], count)
    (file,) = stored_files(str(data))
    asked = Asked(bundle.root, HOW, {"parquet": bundle_spec(bundle, data)})
    request, plan = Request([file], "", {}), partial(planned, [file], int(BLOCK * MIB))
    crews: dict[str, Callable[[], Any]] = {ALONE: lambda: ProcessCrew.hired(asked, 1)}
    if "shards" in parts:
        crews[f"{workers} processes"] = lambda: ProcessCrew.hired(asked, workers)
    if "cluster" in parts:
        crews[f"{workers} actors of Ray"] = lambda: ClusterCrew.hired(asked, LOCAL, workers, 1, 0)
    with ExitStack() as stack:
        opened, starts = {}, {}
        for title, hire in crews.items():
            begun = time.perf_counter()
            opened[title] = stack.enter_context(hire())
            _await(opened[title], 1 if title == ALONE else workers)
            starts[title] = time.perf_counter() - begun
            output.say(f"{title}: ready after {starts[title]:.1f} s")

        def answer(title: str) -> None:
            with Ledger.open(folder / "out", request, plan, force=True) as ledger:
                run = Run(ledger, opened[title])
                run.all()
            if run.failed:
                raise MerError(f"{title}: blocks failed: {run.failed}")

        turns = interleave({t: partial(answer, t) for t in crews}, rounds)
    rows = [
        {
            "crew": title,
            "utterances_per_s": count / float(np.median([s for r in turns[title].wall for s in r])),
            "times": ratio(turns[ALONE], turns[title]).model_dump(),
            "start_s": starts[title],
            "workers": 1 if title == ALONE else workers,
        }
        for title in crews
    ]
    return {"network": name, "utterances": count, "block_mib": BLOCK, "rounds": rounds, "rows": rows}


def plan_rows(rows: Sequence[dict[str, Any]], price: float | None) -> list[dict[str, Any]]:
    """What `MANY` utterances take by each crew's own measure: core hours, and hours on so many cores at that rate.

    A core hour answers 3600 times the utterances a second of one worker, which has one core. `price` is that of a core
    hour.
    """
    found = []
    for row in rows:
        hours = row["workers"] / row["utterances_per_s"] / 3600
        cost = {} if price is None else {"cost_per_million": 1e6 * hours * price, "cost_of_many": MANY * hours * price}
        wall = {str(cores): MANY * hours / cores for cores in CORES}
        found.append({"crew": row["crew"], "core_h_per_million": 1e6 * hours, "core_h": MANY * hours, "h": wall} | cost)
    return found


def _await(crew: Crew, workers: int) -> None:
    while crew.free < workers:
        event = crew.event()
        if getattr(event, "reason", None):
            raise MerError(f"a worker did not begin: {event}")


def killed(folder: Path, count: int) -> dict[str, Any]:
    """A run on two nodes, one of which is ended in the middle, and how its answers differ from those of one process."""
    ray_module()
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    arrow, parquet = pyarrow_modules()
    bundle, data = _world(folder, SMALL, count)
    # Ray takes another address of the machine for loopback where it thinks it is a cluster's.
    ray_constants.ENABLE_RAY_CLUSTER = False
    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 128 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    lost, ended, kept = cluster.add_node(**node), [], Ledger.keep

    def keep(ledger: Ledger, answered: Answered) -> None:
        kept(ledger, answered)
        if len(ledger.done) >= len(ledger.blocks) // 2 and not ended:
            ended.append(len(ledger.done))
            cluster.remove_node(lost, allow_graceful=False)
            output.say(f"a node of two was ended after {len(ledger.done)} of {len(ledger.blocks)} blocks")

    Ledger.keep = keep  # type: ignore[method-assign]
    try:
        spread = Spread(cluster=cluster.address, block=BLOCK)
        reading, shown = Reading([str(data)]), Lines(_seldom())
        found = Blocks(bundle.root, HOW, reading, folder / "out", spread, progress=shown).answer()
    finally:
        Ledger.keep = kept  # type: ignore[method-assign]
        cluster.shutdown()
    output.say("the same by mer infer in one process")
    alone = folder / "alone.parquet"
    words = ["infer", str(bundle.root), str(data), "-o", str(alone), "--threads", "1", "--batch", str(HOW.batch)]
    subprocess.run(module_command("cli", *words, "--quiet"), check=True, stdout=subprocess.DEVNULL)
    files = sorted((folder / "out" / "answers").iterdir())
    own, expected = arrow.concat_tables([parquet.read_table(f) for f in files]), parquet.read_table(alone)
    numbers = [f.name for f in expected.schema if arrow.types.is_floating(f.type)]
    named = own.select(["sample", "unit", "modalities"]).equals(expected.select(["sample", "unit", "modalities"]))
    worst = max(float(np.abs(own[n].to_numpy() - expected[n].to_numpy()).max()) for n in numbers) if named else np.inf
    labels = sum(a != b for a, b in zip(own["label"].to_pylist(), expected["label"].to_pylist(), strict=named))
    if worst > TOLERANCE:
        raise MerError(f"answers differ from those of one process by {worst:.1e}")
    return {
        "utterances": count,
        "units": found["units"],
        "blocks": found["blocks"],
        "ended_after": ended[0],
        "largest_difference": worst,
        "other_labels": labels,
    }


def _seldom() -> Callable[[str], None]:
    lines = iter(range(1 << 62))
    return lambda line: output.say(line) if next(lines) % 10 == 0 else None


def _world(folder: Path, network: Network, count: int) -> tuple[Bundle, Path]:
    """A bundle with random weights, exported, and random dialogues for it."""
    bundle = random_bundle(folder / "bundle", network)
    bucket = next((b for b in network.buckets if b["utterances"] >= UTTERANCES), network.buckets[-1])
    missing = export(bundle, network.preset, [bucket], [("onnxruntime", "fp32")])
    if missing:
        raise MerError(f"{network.preset} cannot be exported: {missing}")
    data = folder / "dialogues.parquet"
    bundle = Bundle.open(bundle.root)
    write_dialogues(data, bundle, count)
    return bundle, data


def write_dialogues(path: Path, bundle: Bundle, utterances: int) -> None:
    """Random dialogues of a cmerc bundle, as `mer data convert` lays them out."""
    arrow, parquet = pyarrow_modules()
    specs = {s.name: s for s in bundle.manifest.contract.features if s.modality}
    vectors = {n: int(np.prod([d for d in s.dims if isinstance(d, int)])) for n, s in specs.items()}
    head = Head(
        unit="dialogue",
        labels=bundle.manifest.task.labels,
        speakers=2,
        splits=["all"],
        dims={n: int(s.dims[-1]) for n, s in specs.items()},
        source_format="random",
        lists=tuple(specs),
    )
    draw, schema = np.random.default_rng(0), head.schema(arrow)
    with parquet.ParquetWriter(path, schema) as writer:
        for first in range(0, utterances, ROWS):
            numbers = np.arange(first, min(first + ROWS, utterances))
            columns: dict[str, Any] = {
                "dialogue": [f"d{n // UTTERANCES}" for n in numbers],
                "index": (numbers % UTTERANCES).astype(np.int32),
                "utterance": [f"u{n}" for n in numbers],
                "split": ["all"] * len(numbers),
                "speaker": numbers % 2,
            }
            for name, width in vectors.items():
                values = draw.standard_normal(len(numbers) * width, dtype=np.float32)
                offsets = np.arange(0, len(values) + 1, width, dtype=np.int32)
                columns[name] = arrow.ListArray.from_arrays(offsets, values)
            absent = {f.name: arrow.nulls(len(numbers), f.type) for f in schema if f.name not in columns}
            writer.write_table(arrow.table(columns | absent, schema=schema))


def markdown(found: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [*output.head("Inference in blocks", found, 1), ""]
    if speed := found.get("speed"):
        lines += [f"{speed['network']}, {speed['utterances']} utterances in dialogues of {UTTERANCES}, batches of ", ""]
        lines[-2] += f"{HOW.batch}, blocks of {speed['block_mib']:g} MiB, {speed['rounds']} rounds in turns."
        header = (
            "workers",
            "utterances/s",
            "times one process",
            "first and third quartile",
            "s to start",
        )
        lines += table(header, [_row(r) for r in speed["rows"]])
        lines += ["", *_plan(speed["plan"])]
    if end := found.get("killed"):
        lines += [
            "",
            f"{end['utterances']} utterances on two nodes, one of them ended after {end['ended_after']} of "
            f"{end['blocks']} blocks: {end['units']} answered, {end['other_labels']} labels other than those of one "
            f"process, the largest difference {end['largest_difference']:.1e}.",
        ]
    return "\n".join([*lines, ""])


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    times, rate = row["times"], row["utterances_per_s"]
    spread = f"{times['q25']:.2f}, {times['q75']:.2f}"
    return row["crew"], f"{rate:.0f}", f"{times['median']:.2f}", spread, f"{row['start_s']:.1f}"


def _plan(rows: Sequence[dict[str, Any]]) -> list[str]:
    header = ["workers", "core hours a million", "core hours of 10⁹", *(f"hours of that on {c} cores" for c in CORES)]
    cells = [[r["crew"], f"{r['core_h_per_million']:.3g}", f"{r['core_h']:.3g}"] for r in rows]
    for own, row in zip(cells, rows, strict=True):
        own += [f"{row['h'][str(c)]:.2g}" for c in CORES]
        own += [f"{row[n]:.3g}" for n in COSTS if n in row]
    header += [title for n, title in COSTS.items() if n in rows[0]]
    return ["A core hour answers 3600 times what one worker answers in a second:", "", *table(header, cells)]


if __name__ == "__main__":
    main()
