"""From a file to labels: `mer infer` as it is typed beside a loop over the authors' batches, each a process of its own.

    python3 -m benchmarks.end_to_end --out benchmarks/results [--case cmerc] [--scale small] [--before COMMIT]

Files are written in the authors' formats at the real widths, weights are random. In every round, in an order drawn for
it, the authors' way (`benchmarks.authors`: eager PyTorch, no checks) and each way of `mer infer` twice: the first time
with nothing kept (no cache of what was read, no compiled models), then again. Seconds are of whole processes, which
also say to which part they went (`benchmarks.phases`). With `--before` the ways run in the tree of another commit too,
on the same bundle. Writes `end_to_end.json` and `.md`; cases of earlier runs on the same processor stay.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import output
from benchmarks.suite import NETWORKS, random_bundle
from mer_export.bucket import Bucket
from mer_export.bundle import CONFIG, Bundle
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.open import stream_samples
from mer_export.data.synthetic import synthesise
from mer_export.errors import MerError, NotAvailableError, UsageError
from mer_export.exporters import export_variant
from mer_export.kept import Kept
from mer_export.markdown import table
from runtimes.backends.table import backend_problem, find_backend
from runtimes.speed.planning import make_plan
from runtimes.speed.timing import Quartiles
from train.config import dump_config, load_preset

ROOT = Path(__file__).parents[1]
PARTS = ("start", "read", "compute", "write")
AUTHORS = "the authors' way, eager PyTorch"
TYPED = ""
"""The way without `--runtime` and `--precision`."""
FIRST, AGAIN = "first", "again"
MOST = 4
"""Buckets of a plan, as `mer export --max-variants` has it."""
BEFORE = "before: "
"""How the names of ways begin that run in the tree of another commit."""


@dataclass(frozen=True)
class Case:
    """A network, the files that are made for it, how large, and ways of `mer infer` beside that without options.

    `items` are of the whole data set, as its authors' file has them; what is answered is its test split. Without
    `buckets` they are planned from the data, as by `mer export --plan`.
    """

    network: str
    dataset: str
    items: int
    small: int
    buckets: tuple[Bucket, ...]
    ways: tuple[str, ...] = ("openvino fp32", "openvino int8")
    rounds: int = 3
    settings: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "cmerc": Case(
        "cmerc_meld",
        "meld",
        1432,
        12,
        tuple(Bucket(utterances=n) for n in (8, 16, 33)),
        ("onnxruntime int8", "openvino int8"),
    ),
    "mtee": Case(
        "mtee_mosei", "mosei_emo", 6000, 40, (Bucket(steps=20, emotions=16),), ("onnxruntime int8", "openvino int8")
    ),
    "emt": Case(
        "emt_mosi",
        "mosi",
        300,
        8,
        (
            Bucket(text_len=32, audio_len=192, vision_len=256),
            Bucket(text_len=50, audio_len=375, vision_len=500),
        ),
        ("onnxruntime int8", "openvino bf16", "openvino int8"),
        rounds=2,
    ),
    "tab": Case(
        "tab_iemocap",
        "iemocap",
        320,
        20,
        (),
        ("onnxruntime int8", "openvino int8"),
        rounds=1,
        settings={"audio_len": 120, "text_len": 14},
    ),
    "facialmmt": Case(
        "facialmmt_fusion",
        "meld",
        12,
        6,
        (Bucket(text_len=144, audio_len=300, vision_len=100),),
        ("openvino int8",),
        rounds=1,
        settings={"audio_len": 300, "vision_len": 100, "sentence_len": 24, "images": False, "caches": True},
    ),
}


Run = dict[str, dict[str, float]]
"""The first time and again: seconds of a process and of its parts."""


@dataclass
class World:
    """What one case runs on: files, bundle, and a place for what is kept between two runs."""

    case: Case
    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    def authors(self) -> Run:
        """Their way, once."""
        named = {"bundle": self.bundle, "network": self.case.network, "data": self.data, "out": self.root / "theirs"}
        request = {k: str(v) for k, v in named.items()}
        return {
            AGAIN: self._run(ROOT, lambda now: ["-m", "benchmarks.authors", json.dumps(request | {"spawned": now})])
        }

    def twice(self, tree: Path, way: str) -> Run:
        """`mer infer` of a tree, with nothing kept of earlier runs and then again."""
        shutil.rmtree(self.root / "cache", ignore_errors=True)
        shutil.rmtree(Kept.beside(self.bundle).folder, ignore_errors=True)
        runtime, _, precision = way.partition(" ")
        words = ["infer", str(self.bundle), str(self.data), "--out", str(self.root / "out.jsonl"), "--split", "test"]
        words += ["--force", "--quiet", *(["--runtime", runtime, "--precision", precision] if way else [])]
        timed = str(ROOT / "benchmarks" / "phases.py")
        taken = {when: self._run(tree, lambda now: ["-P", timed, str(now), *words]) for when in (FIRST, AGAIN)}
        with (self.root / "out.jsonl").open("rb") as lines:
            taken[AGAIN]["units"] = sum(1 for _ in lines)
        return taken

    def _read_along(self) -> None:
        """Brings data, bundle and what is kept into the page cache, from which other processes may have driven them."""
        for path in (p for p in self.root.rglob("*") if p.is_file()):
            with path.open("rb", buffering=0) as stream:
                while stream.read(1 << 24):
                    pass

    def _run(self, tree: Path, words: Callable[[float], list[str]]) -> dict[str, float]:
        """Seconds of a process and of its parts; raises NotAvailableError with its last line where it fails."""
        self._read_along()
        kept = {"MER_CACHE": str(self.root / "cache"), "XDG_CONFIG_HOME": str(self.root / "config")}
        command = [sys.executable, *words(time.time())]
        began = time.perf_counter()
        environment = os.environ | kept | {"PYTHONPATH": str(tree)}
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, env=environment)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise NotAvailableError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
        return {"seconds": seconds} | json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.end_to_end", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--case", choices=list(CASES), action="append", help="repeat for several; default: all")
    parser.add_argument("--scale", choices=("full", "small"), default="full", help="small: does it run?")
    parser.add_argument("--rounds", type=int, help="default: of each case")
    parser.add_argument("--before", metavar="COMMIT", help="also in the tree of this commit")
    chosen = parser.parse_args(arguments)
    line = output.command("end_to_end", arguments)

    def run() -> None:
        cases = output.Entries(chosen.out, "end_to_end", "cases", line, markdown)
        with earlier_tree(chosen.before) as before:
            for name in chosen.case or CASES:
                cases.add(name, measure(CASES[name], chosen.scale == "small", chosen.rounds, before))

    output.end_well(run)


@contextmanager
def earlier_tree(commit: str | None) -> Iterator[Path | None]:
    """The files of another commit; raises UsageError where there is none of that name."""
    if commit is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
        if packed.returncode:
            raise UsageError(f"--before {commit}: {packed.stderr.decode().strip()}")
        subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
        yield Path(folder)


def measure(case: Case, small: bool, rounds: int | None, before: Path | None) -> dict[str, Any]:
    """Seconds of every process of every round, and of its parts."""
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: an export leaves gigabytes behind, which what is timed would lack.
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            world = apart.submit(make, case, Path(folder), case.small if small else case.items).result()
        problems = {way: backend_problem(way.partition(" ")[0]) for way in case.ways}
        ways = [TYPED, *(way for way, problem in problems.items() if not problem)]
        runs: dict[str, Callable[[], Run]] = {AUTHORS: partial(world.authors)}
        for mark, tree in (("", ROOT), *([(BEFORE, before)] if before else [])):
            runs |= {mark + way: partial(world.twice, tree, way) for way in ways}
        taken: dict[str, list[Run]] = {name: [] for name in runs}
        draw = random.Random(0)
        for number in range(rounds or (1 if small else case.rounds)):
            for name in draw.sample(list(runs), len(runs)):
                taken[name].append(runs[name]())
                check_answers(title(name), taken[name][-1][AGAIN], taken)
                said = ", ".join(f"{when} {run['seconds']:.2f} s" for when, run in taken[name][-1].items())
                output.say(f"{case.network}, round {number + 1}: {title(name)}: {said}")
        return {
            "network": case.network,
            "megabytes": sum(p.stat().st_size for p in world.data.rglob("*") if p.is_file()) / 1e6,
            "answers": int(taken[AUTHORS][0][AGAIN]["units"]),
            "rounds": taken,
            "not_run": {way: problem for way, problem in problems.items() if problem},
        }


def check_answers(name: str, run: Mapping[str, float], taken: Mapping[str, Sequence[Run]]) -> None:
    """Raises MerError where a way answers more or less than those that ran before it: seconds would compare nothing."""
    others = {r[AGAIN]["units"] for runs in taken.values() for r in runs} - {run["units"]}
    if others:
        raise MerError(f"{name} gives {run['units']:.0f} answers, another way {others.pop():.0f}")


def title(way: str) -> str:
    """A way as tables name it."""
    if way == AUTHORS:
        return way
    own = way.removeprefix(BEFORE)
    return f"mer infer, {own or 'as typed'}{' (before)' * (own != way)}"


def make(case: Case, root: Path, items: int) -> World:
    """Data in the authors' files and a bundle that reads them, exported for what `case` runs."""
    world, network = World(case, root), NETWORKS[case.network]
    output.say(f"{case.network}: {items} items in the authors' files")
    synthesise(network.system, case.dataset, world.data, items, **case.settings)
    bundle = random_bundle(world.bundle, network)
    with bundle.commit() as change:
        change.write(CONFIG, dump_config(load_preset(network.preset)))
    # The exporter judges reduced precisions; labels of random weights say nothing.
    stored = {find_backend(r).stored(p) for r, _, p in (w.partition(" ") for w in case.ways)} | {"fp32"}
    for bucket in case.buckets or planned(bundle, world.data, case.network):
        for precision in sorted(stored):
            output.say(f"{case.network}: exporting {precision} for {bucket.name}")
            export_variant(Bundle.open(world.bundle), "onnx", bucket, precision=precision, stages=network.stages)
    return world


def planned(bundle: Bundle, data: Path, network: str) -> list[Bucket]:
    """The buckets that `mer export --plan` makes for the data; its batch sizes are kept in the bundle."""
    output.say(f"{network}: planning buckets")
    samples = stream_samples(data, bundle_spec(bundle, data), bundle.manifest.task.labels)
    plan = make_plan(bundle, samples, MOST, data.name)
    plan.save(bundle)
    return [b.lengths for b in plan.buckets]


def markdown(found: dict[str, Any]) -> str:
    """A table per case."""
    lines = [
        *output.head("From a file to labels", found),
        "Seconds of whole processes, medians over rounds in one interleaved run, all cores; files in the authors' "
        "formats at the real widths, in the page cache. `first`: nothing is kept of an earlier run; `again`: what was "
        "read and compiled is. Times faster are per round, beside the authors' way: unpickling without checks, their "
        "batches and padding, eager PyTorch with this project's networks (CMERC's messages over edge lists as M3NET "
        "passes them, EMT's two views). Opening sessions counts as start. Random weights.",
    ]
    for name, case in found["cases"].items():
        size, rounds = f"{case['answers']} answers from a data set of {case['megabytes']:.0f} MB", case["rounds"]
        lines += ["", f"## {name}: {size}, {len(rounds[AUTHORS])} rounds", ""]
        lines += table(HEADER, _rows(case))
        lines += [f"- {title(way)}: not run: {why}" for way, why in case.get("not_run", {}).items()]
    return "\n".join(lines) + "\n"


HEADER = ("way", "when", "seconds", *PARTS, "times faster", "times as fast as before")


def _rows(case: dict[str, Any]) -> list[tuple[str, ...]]:
    rounds, rows = case["rounds"], []
    theirs = [r[AGAIN] for r in rounds[AUTHORS]]
    for way, taken in rounds.items():
        old = rounds.get(BEFORE + way)
        for when in taken[0]:
            own = [r[when] for r in taken]
            rows.append(
                (
                    title(way),
                    "–" if way == AUTHORS else when,
                    *(f"{Quartiles.of([r[part] for r in own]).median:.2f}" for part in ("seconds", *PARTS)),
                    _ratio(theirs, own),
                    _ratio([r[when] for r in old], own) if old else "–",
                )
            )
    return rows


def _ratio(theirs: Sequence[dict[str, float]], own: Sequence[dict[str, float]]) -> str:
    found = Quartiles.of([a["seconds"] / b["seconds"] for a, b in zip(theirs, own, strict=True)])
    return output.spread(found.model_dump(), strong=True)


if __name__ == "__main__":
    main()
