"""What does serving cost? `mer serve` and Triton over loopback beside the predictor in a process, in one run.

    python3 -m benchmarks.serve --out benchmarks/results [--triton PYTHON] [--network mtee_mosei] [--seconds 3]

One, eight and 64 clients ask for one unpadded item a request, by the Open Inference Protocol as JSON and as bytes, and
ask again as soon as they are answered. Servers and clients share the cores of the machine. Triton serves the repository
that `mer triton` writes, where `--triton` names the interpreter that `python3 -m benchmarks.triton_server DIR` prints.
Writes `serve.json` and `serve.md`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import output
from benchmarks.http_load import Form, Listening, inference, load, served
from benchmarks.lengths import export
from benchmarks.suite import NETWORKS, random_bundle, real_samples
from benchmarks.triton_server import running as running_triton
from benchmarks.triton_server import stand_ins
from mer_export import machine
from mer_export.bundle import Bundle
from mer_export.data.samples import Sample
from mer_export.errors import MerError
from mer_export.markdown import table
from runtimes.backends.session import SessionOptions
from runtimes.predict.predictor import Predictor
from runtimes.triton.plan import plan
from runtimes.triton.repository import write

USUAL = ("mtee_mosei", "cmerc_meld", "emt_mosi")
CLIENTS = (1, 8, 64)
FORMS: tuple[Form, ...] = ("json", "binary")
ITEMS = 64
MER, TRITON = "mer serve", "Triton"
Case = tuple[str, int, Form]
TOLERANCE = 1e-6
ONE_THREAD = SessionOptions(threads=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the networks that are asked for."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.serve", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--network", choices=list(NETWORKS), action="append", help=f"default: {', '.join(USUAL)}")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each case and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--triton", type=Path, help="interpreter of the environment of benchmarks.triton_server")
    chosen = parser.parse_args(arguments)
    line = output.command("serve", arguments)

    def run() -> None:
        rows = [
            row for n in chosen.network or USUAL for row in measure(n, chosen.seconds, chosen.rounds, chosen.triton)
        ]
        found = {"command": line, "machine": output.here(), "rows": rows}
        output.write(chosen.out, "serve", found, markdown(found))

    output.end_well(run)


@dataclass(frozen=True)
class Server:
    """One of those that are asked: where it listens, how many items it has computed in how many calls, and how far its
    answers may be from the predictor's."""

    listening: Listening
    batches: Callable[[], tuple[float, float]]
    tolerance: float = TOLERANCE


def measure(name: str, seconds: float, rounds: int, triton: Path | None = None) -> list[dict[str, Any]]:
    """A row for each server, number of clients and form, each beside what the predictor does in the same rounds."""
    workers = machine.cores()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        bundle = random_bundle(Path(folder) / name, NETWORKS[name])
        samples = real_samples(bundle.manifest.contract, NETWORKS[name], ITEMS)
        export(bundle, name, NETWORKS[name].buckets, [("onnxruntime", "fp32")])
        bundle = Bundle.open(bundle.root)
        requests = {form: [inference(name, s, form) for s in samples] for form in FORMS}
        servers = {MER: running.enter_context(_mer(bundle, workers))}
        if triton is not None:
            servers[TRITON] = running.enter_context(_triton(bundle, name, workers, triton, Path(folder)))
        alone = running.enter_context(Predictor(bundle, "onnxruntime", ONE_THREAD))
        expected = alone.scores(samples)
        rows: dict[Case, list[dict[str, float]]] = {(s, c, f): [] for c in CLIENTS for f in FORMS for s in servers}
        for server in servers.values():
            # The first requests pay for memory that all later ones find.
            load(server.listening, requests["binary"], max(CLIENTS), count=4 * max(CLIENTS))
        for turn in range(rounds):
            for (server, clients, form), row in rows.items():
                output.say(f"{name}: round {turn + 1}, {server}, {clients} clients, {form}")
                found = _asked(servers[server], requests[form], clients, seconds, expected)
                row.append(found | _beside(bundle, alone, samples, round(found["batch"]), workers, seconds))
    return [
        {"network": name, "server": server, "clients": clients, "form": form, "workers": workers}
        | {key: float(np.median([r[key] for r in found])) for key in found[0]}
        | {"worst": max(r["worst"] for r in found)}
        for (server, clients, form), found in rows.items()
    ]


@contextmanager
def _mer(bundle: Bundle, workers: int) -> Iterator[Server]:
    with served(bundle.root, "--threads", "1", "--workers", str(workers)) as server:

        def batches() -> tuple[float, float]:
            counts = server.counts()
            items, calls = (
                sum(v for k, v in counts.items() if k.startswith(f"mer_batch_size_{part}")) for part in ("sum", "count")
            )
            return items, calls

        yield Server(server, batches)


@contextmanager
def _triton(bundle: Bundle, name: str, workers: int, python: Path, folder: Path) -> Iterator[Server]:
    """The repository of a bundle, whose models run in the Python backend, as the server here has no other."""
    made = plan(bundle, name, options=ONE_THREAD, workers=workers)
    write(made, folder / "repository")
    stand_ins(folder / "repository")
    scratch = folder / "triton"
    scratch.mkdir()
    with running_triton(python, [folder / "repository"], scratch) as server:
        # It has an ONNX Runtime of its own.
        yield Server(server, lambda: server.batches(name, made.about["models"]), tolerance=1e-5)


def _asked(
    server: Server, requests: Sequence[bytes], clients: int, seconds: float, expected: Sequence[np.ndarray]
) -> dict[str, float]:
    """One case: latency, requests per second, items in a batch, and the largest difference from the predictor."""
    before, used = server.batches(), server.listening.cpu_seconds()
    begun, own = time.perf_counter(), time.process_time()
    answers = load(server.listening, requests, clients, seconds)
    took, own = time.perf_counter() - begun, time.process_time() - own
    used, after = server.listening.cpu_seconds() - used, server.batches()
    refused = [a for a in answers if a.status != 200]
    if refused:
        raise MerError(f"{len(refused)} of {len(answers)} requests were not answered: {refused[0].body[:200]!r}")
    worst = max(float(np.abs(a.output()[0] - expected[a.asked]).max()) for a in answers)
    if worst > server.tolerance:
        raise MerError(f"answers differ from the predictor's by {worst:.1e}")
    p50, p99 = np.quantile([a.seconds for a in answers], (0.5, 0.99)) * 1000
    return {
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "requests_per_s": len(answers) / took,
        "batch": (after[0] - before[0]) / max(1.0, after[1] - before[1]),
        "requests": float(len(answers)),
        "server_cpu_ms": 1000 * used / len(answers),
        "clients_cpu_ms": 1000 * own / len(answers),
        "worst": worst,
    }


def _beside(
    bundle: Bundle, alone: Predictor, samples: Sequence[Sample], batch: int, workers: int, seconds: float
) -> dict[str, float]:
    """The predictor in this process: one item at a time, and as many workers in batches of that size."""
    times: list[float] = []
    until = time.perf_counter() + seconds / 3
    while time.perf_counter() < until:
        sample = samples[len(times) % len(samples)]
        begun = time.perf_counter()
        alone.scores([sample])
        times.append(time.perf_counter() - begun)
    with Predictor(bundle, "onnxruntime", ONE_THREAD, batch=max(1, batch), workers=workers) as many:
        many.scores(samples)
        done, begun, used = 0, time.perf_counter(), time.process_time()
        while (took := time.perf_counter() - begun) < seconds / 3:
            many.scores(samples)
            done += len(samples)
        used = time.process_time() - used
    return {
        "alone_p50_ms": 1000 * float(np.median(times)),
        "infer_items_per_s": done / took,
        "infer_cpu_ms": 1000 * used / done,
    }


def markdown(found: dict[str, Any]) -> str:
    """The results as one table."""
    header = (
        "network",
        "server",
        "clients",
        "form",
        "p50, ms",
        "p99, ms",
        "predictor alone, p50",
        "requests/s",
        "items a batch",
        "predictor in such batches, items/s",
        "part of it",
        "CPU of the server, ms a request",
        "of the clients",
        "of the predictor, ms an item",
        "clients' part of the CPU",
        "predictor's CPU of the server's",
    )
    rows = [
        (
            r["network"],
            r["server"],
            r["clients"],
            r["form"],
            f"{r['p50_ms']:.2f}",
            f"{r['p99_ms']:.2f}",
            f"{r['alone_p50_ms']:.2f}",
            f"{r['requests_per_s']:.0f}",
            f"{r['batch']:.1f}",
            f"{r['infer_items_per_s']:.0f}",
            f"{r['requests_per_s'] / r['infer_items_per_s']:.0%}",
            f"{r['server_cpu_ms']:.2f}",
            f"{r['clients_cpu_ms']:.2f}",
            f"{r['infer_cpu_ms']:.2f}",
            f"{r['clients_cpu_ms'] / (r['clients_cpu_ms'] + r['server_cpu_ms']):.0%}",
            f"{r['infer_cpu_ms'] / r['server_cpu_ms']:.0%}",
        )
        for r in found["rows"]
    ]
    asked, worst = sum(r["requests"] for r in found["rows"]), max(r["worst"] for r in found["rows"])
    asked_triton = any(r["server"] == TRITON for r in found["rows"])
    told = (
        "Triton is the server of pytriton with what mer triton writes; it runs ONNX Runtime in its Python backend. "
        if asked_triton
        else "Triton was not measured: no environment of it was named. "
    )
    lines = [
        *output.head("Serving", found),
        "",
        "One unpadded item a request over loopback, random weights, items of the lengths that occur, ONNX Runtime "
        "fp32, one session of one thread for each core. Clients and servers share the cores; the predictor has them "
        "alone, so that its part of the server's CPU is what is left of its items per second where the cores are busy, "
        f"before the clients' part. {told}Medians over rounds; "
        f"no answer of about {asked:.0f} in a round differs from the predictor's by "
        f"more than {worst:.1e}.",
        "",
        *table(header, rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
