"""What a limit on trained bundles costs: `mer export --within` chosen on one split and judged on another.

    python3 -m benchmarks.within --case "EMT on MOSI" RUN DATA [--case NAME RUN DATA ...] --out benchmarks/results

For each bundle and precision: the fp32 ONNX file of its longest bucket, the same with everything rounded that the
precision rounds, and the one that the search chose on `--chosen-on`. Answers are judged on `--judged-on` by the rule of
the search, which never saw it. The three files are timed by turns, a call is one sample in a full bucket on one thread.
Writes `within.json` and `within.md`; cases that are measured again replace those of an earlier run on this processor.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import output
from benchmarks.peers import default_session
from mer_export.bundle import WEIGHTS, Bundle, Variant
from mer_export.data.samples import Sample
from mer_export.errors import ParityError
from mer_export.exporters import export_variant, precision
from mer_export.exporters.export import job_of
from mer_export.exporters.export_job import ExportJob
from mer_export.exporters.precision_gate import measure, open_file
from mer_export.markdown import table
from mer_export.progress import Lines
from runtimes.debug.keep import file_bytes
from runtimes.debug.mixed import Search, beyond, search
from runtimes.features.completed import split_samples
from runtimes.speed.timing import interleave

REDUCED = precision.precisions_of("onnx")[1:]
FP32, ALL, CHOSEN = "fp32", "all reduced", "chosen"
"""The files that are compared."""
MIB = 2**20
Json = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.within", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", nargs=3, action="append", required=True, metavar=("NAME", "RUN", "DATA"))
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--outside", type=Path, action="append", help="folder that data may read too; repeatable")
    parser.add_argument("--precision", action="append", choices=REDUCED, help="repeatable; default: all")
    parser.add_argument("--limit", type=float, action="append", help="points; repeatable, default 0.2")
    parser.add_argument("--chosen-on", default="dev")
    parser.add_argument("--judged-on", default="test")
    parser.add_argument("--rounds", type=int, default=41)
    chosen = parser.parse_args(arguments)

    def run() -> None:
        splits = [chosen.chosen_on, chosen.judged_on]
        line = output.command("within", arguments)
        cases = output.Entries(chosen.out, "within", "cases", line, markdown, splits=splits)
        for name, path, data in chosen.case:
            samples = [split_samples(Bundle.open(path), Path(data), "auto", s, chosen.outside) for s in splits]
            asked = chosen.precision or REDUCED, chosen.limit or [0.2], chosen.rounds
            cases.add(name, case(Path(path), *samples, *asked))

    output.end_well(run)


def case(
    path: Path,
    chosen_on: Sequence[Sample],
    judged_on: Sequence[Sample],
    precisions: Sequence[str],
    limits: Sequence[float],
    rounds: int,
) -> Json:
    """Every precision and limit of one trained bundle, of which a copy is exported."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Bundle.open(shutil.copytree(path, Path(folder) / "bundle"))
        bucket = bundle.manifest.contract.buckets[-1]
        fp32 = export_variant(bundle, "onnx", bucket, example=chosen_on)
        return {
            "system": bundle.manifest.system,
            "bucket": bucket.name,
            "weights_mib": round(bundle.path(WEIGHTS).stat().st_size / MIB, 1),
            "metric": bundle.manifest.task.headline,
            "found": [
                _limited(bundle, fp32, name, chosen_on, judged_on, limit, rounds)
                for name in precisions
                for limit in limits
            ],
        }


def _limited(
    bundle: Bundle,
    fp32: Variant,
    reduced: str,
    chosen_on: Sequence[Sample],
    judged_on: Sequence[Sample],
    limit: float,
    rounds: int,
) -> Json:
    output.say(f"{bundle.manifest.system}: {reduced} within {limit:g}")
    wanted = fp32.model_copy(update={"precision": reduced, "model": ""})
    about, start = {"precision": reduced, "limit": limit}, time.perf_counter()
    try:
        found = search(bundle, wanted, chosen_on, limit, Lines(output.say))
    except ParityError as error:
        return about | {"none": str(error), "seconds": round(time.perf_counter() - start, 1)}
    about |= {"keep_fp32": found.keep_fp32, "trials": len(found.trials), "seconds": time.perf_counter() - start}
    with tempfile.TemporaryDirectory() as folder:
        return about | _files(bundle, wanted, found, judged_on, rounds, Path(folder))


def _files(
    bundle: Bundle, wanted: Variant, found: Search, judged_on: Sequence[Sample], rounds: int, folder: Path
) -> Json:
    """What each file answers on both splits, its size and its time."""
    job, task = job_of(bundle, wanted, judged_on), bundle.manifest.task
    assert job.graph is not None
    files = {FP32: job.graph.path}
    for name, keep in ((ALL, []), (CHOSEN, found.keep_fp32)):
        files[name] = folder / name / "model.onnx"
        files[name].parent.mkdir()
        precision.write(replace(job, keep_fp32=keep), job.graph.path, files[name], gated=False)
    sessions = {name: open_file(path) for name, path in files.items()}
    ms = _by_turns(job, files, rounds)
    tried = {ALL: found.trials[0], CHOSEN: next(t for t in found.trials if t.keep_fp32 == found.keep_fp32)}
    rows: Json = {FP32: {}}
    for name, trial in tried.items():
        judged = measure(job, task, sessions[FP32], sessions[name])
        problem, lost = beyond(judged, job.precision, task, found.limit)
        chosen = _answers(found.units, trial.flips, trial.flips_beyond_noise, trial.lost, trial.problem)
        rows[name] = {
            "chosen_on": chosen,
            "judged_on": _answers(judged.units, judged.flips, judged.flips_beyond_noise, lost, problem),
        }
    return {"files": {name: row | {"bytes": file_bytes(files[name]), "ms": ms[name]} for name, row in rows.items()}}


def _answers(units: int, flips: int, beyond_noise: int, lost: float, problem: str) -> Json:
    return {"units": units, "flips": flips, "beyond_noise": beyond_noise, "lost": round(lost, 3), "problem": problem}


def _by_turns(job: ExportJob, files: dict[str, Path], rounds: int) -> dict[str, float]:
    """Milliseconds of a call: the median of interleaved rounds, on one thread, so that none disturbs another."""
    calls = {name: default_session(path, job.feed(job.batch or 1), 0, threads=1) for name, path in files.items()}
    return {name: turns.latency().p50 for name, turns in interleave(calls, rounds).items()}


def markdown(found: Json) -> str:
    """The results as one table."""
    chosen_on, judged_on = found["splits"]
    rows, kept, judged = [], 0, 0
    for name, about in found["cases"].items():
        for one in about["found"]:
            if "none" in one:
                rows.append((name, one["precision"], f"{one['limit']:g}", "no list keeps it", *["–"] * 8))
                continue
            files = one["files"]
            judged, kept = judged + 1, kept + (not files[CHOSEN]["judged_on"]["problem"])
            rows.append(
                (
                    name,
                    one["precision"],
                    f"{one['limit']:g}",
                    ", ".join(one["keep_fp32"]) or "nothing",
                    *(_said(files[file][split]) for file in (ALL, CHOSEN) for split in ("chosen_on", "judged_on")),
                    *(_cost(files, file, "bytes") for file in (ALL, CHOSEN)),
                    *(_cost(files, file, "ms") for file in (ALL, CHOSEN)),
                )
            )
    header = ("bundle", "precision", "limit", "kept in fp32")
    header += tuple(f"{file}, {split}" for file in (ALL, CHOSEN) for split in (chosen_on, judged_on))
    header += tuple(f"{what}, {file}" for what in ("size", "time") for file in (ALL, CHOSEN))
    networks = "; ".join(
        f"{name}: {about['system']}, {about['weights_mib']} MiB of weights, {about['bucket']}, {about['metric']}"
        for name, about in found["cases"].items()
    )
    times = [(one["trials"], one["seconds"]) for a in found["cases"].values() for one in a["found"] if "trials" in one]
    return "\n".join(
        [
            *output.head("Mixed precision within a limit, on trained bundles", found),
            f"Chosen on {chosen_on}, judged on {judged_on}: **{kept} of {judged}** keep the limit there. An entry is "
            "labels that change beyond noise of all, and points lost; **bold** is past the limit, or scores are "
            "further off than the precision allows. Size and time are those of the fp32 file as 1, one sample a call.",
            f"A search tried {max(n for n, _ in times)} files at most and took {max(s for _, s in times):.0f} s."
            if times
            else "",
            f"{networks}.",
            "",
            *table(header, rows),
            "",
        ]
    )


def _said(answers: Json) -> str:
    text = f"{answers['beyond_noise']} of {answers['units']}, {answers['lost']:+.2f}"
    return f"**{text}**" if answers["problem"] else text


def _cost(files: Json, name: str, what: str) -> str:
    return f"{files[name][what] / files[FP32][what]:.2f}"


if __name__ == "__main__":
    main()
