"""Every network on one GPU, in pieces of a few minutes.

    python3 -m benchmarks.gpu prepare EXPORTS [--network cmerc_meld] [--jobs 4]
    python3 -m benchmarks.gpu measure EXPORTS --out run1.json [--part inference] [--minutes 9]
    python3 -m benchmarks.gpu merge run1.json run2.json --out benchmarks/results

`measure` goes on where its file ends. What is missing on the machine, or breaks, becomes a row with the reason and the
rest still runs. `--device cpu` rehearses everything that needs no CUDA; its numbers mean nothing for a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import output
from benchmarks.gpu import command_line, device, feeding, inference, packages, training
from benchmarks.gpu.page import COLUMNS, markdown
from benchmarks.gpu.prepare import carried, default_jobs, prepare, prepare_here
from benchmarks.gpu.rows import ALL, Results, merge
from benchmarks.suite import NETWORKS
from mer_export.errors import NotAvailableError, UsageError
from mer_export.exporters import export_formats
from runtimes.backends.session import SessionOptions
from runtimes.backends.table import backend_problem

PARTS = tuple(COLUMNS)
BATCHES = (1, 8, 32)


def main(arguments: list[str] | None = None) -> None:
    """Runs one of the three verbs."""
    chosen = _parser().parse_args(arguments)
    output.end_well(lambda: chosen.verb(chosen, output.command("gpu", arguments)))


def _parser() -> argparse.ArgumentParser:
    summary = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu", description=__doc__, formatter_class=summary)
    verbs = parser.add_subparsers(required=True)
    made = verbs.add_parser("prepare", help="make bundles and exports; needs no GPU")
    made.add_argument("exports", type=Path)
    made.add_argument("--network", choices=list(NETWORKS), action="append", help="repeat for several; default: all")
    made.add_argument("--jobs", type=int, default=default_jobs(), help="networks at a time")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what the exports are for")
    made.add_argument("--without", choices=list(export_formats()), action="append", help="leave a format out")
    made.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    made.set_defaults(verb=_prepare)
    measured = verbs.add_parser("measure", help="measure what was prepared")
    measured.add_argument("exports", type=Path)
    measured.add_argument("--out", type=Path, required=True, help="results as JSON; what is there is not done again")
    measured.add_argument("--part", choices=PARTS, action="append", help="repeat for several; default: all")
    measured.add_argument("--network", choices=list(NETWORKS), action="append", help="default: all that are prepared")
    measured.add_argument("--system", choices=list(training.RUNS), action="append", help="that train; default: all")
    measured.add_argument(
        "--batch", type=int, action="append", help=f"default: {BATCHES}, of a training step the network's largest"
    )
    measured.add_argument("--rounds", type=int, default=9, help="interleaved rounds")
    measured.add_argument("--minutes", type=float, help="begin no new piece of work after so long")
    measured.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    measured.set_defaults(verb=_measure)
    merged = verbs.add_parser("merge", help="put runs together, write gpu.json and gpu.md")
    merged.add_argument("runs", type=Path, nargs="+")
    merged.add_argument("--out", type=Path, required=True, help="directory of the results")
    merged.set_defaults(verb=_merge)
    return parser


def _prepare(chosen: argparse.Namespace, command: str) -> None:
    networks = chosen.network or list(NETWORKS)
    if chosen.here:
        prepare_here(chosen.exports, networks[0], chosen.device, chosen.without or ())
    else:
        prepare(chosen.exports, networks, chosen.device, chosen.jobs, chosen.without or ())


def _measure(chosen: argparse.Namespace, command: str) -> None:
    if problem := backend_problem("torch", SessionOptions(device=chosen.device)):
        raise NotAvailableError(f"nothing was measured: {problem}")
    prepared = [n for n in NETWORKS if (chosen.exports / n / "bundle.json").is_file()]
    networks = chosen.network or prepared
    for name in networks:
        if name not in prepared:
            raise UsageError(f"{chosen.exports} has no {name}: run prepare first")
    results = Results(chosen.out, command, chosen.device, chosen.minutes)
    folder, batches, rounds = chosen.exports, chosen.batch or BATCHES, chosen.rounds
    kept, systems = folder / "training", chosen.system or list(training.RUNS)
    for line in carried(folder, networks):
        output.say(line)
    each: dict[str, Callable[[str], None]] = {
        "training step": lambda n: training.steps(results, folder, n, chosen.batch or NETWORKS[n].batches[-1:], rounds),
        "inference": lambda n: inference.speed(results, folder, n, batches, rounds),
        "parity": lambda n: inference.parity(results, folder, n),
        "cold start": lambda n: inference.start(results, folder, n),
        "packages": lambda n: packages.causes(results, folder, n, everywhere=bool(chosen.network and chosen.part)),
    }
    once: dict[str, Callable[[], None]] = {
        "device": partial(device.probe, results),
        "training run": partial(training.runs, results, kept, systems),
        "training feed": partial(feeding.shares, results, kept, systems),
        "mer infer": partial(command_line.infer, results, kept, systems),
    }
    parts = chosen.part or PARTS
    if not networks and each.keys() & {*parts}:
        raise UsageError(f"{folder} has no network: run prepare first, or name parts without, {' and '.join(once)}")
    for part in parts:
        for name in networks if part in each else (None,):
            if results.in_time:
                with results.piece(part=part, **({"network": name} if name else {}), way=ALL):
                    if name:
                        each[part](name)
                    else:
                        once[part]()
                device.free()
    results.write()


def _merge(chosen: argparse.Namespace, command: str) -> None:
    found = merge(chosen.runs)
    output.write(chosen.out, "gpu", found, markdown(found))


if __name__ == "__main__":
    main()
