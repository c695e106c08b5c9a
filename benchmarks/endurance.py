"""A million utterances through `mer infer`, and a predictor that is opened and asked for ever: what grows?"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import output
from benchmarks.fault_world import Row, World
from mer_export.bundle import Bundle
from mer_export.errors import BundleError
from mer_export.launcher import module_command
from mer_export.machine import peak_mib

UTTERANCES = 8
"""In a dialogue of the long file."""
GROWN_MIB = 16
"""More than that is not what allocators keep."""


def long_file(world: World, count: int) -> list[Row]:
    """Labels `count` utterances of a JSON lines file, and a hundredth of them; what memory both took."""
    small, large = max(count // 100, UTTERANCES), count
    row, peaks = Row(f"{large} utterances through infer"), []
    for wanted in (small, large):
        source, out = world.root / "long.jsonl", world.root / "labels.jsonl"
        write_dialogues(source, Bundle.open(world.bundle), wanted)
        words = ["infer", str(world.bundle), str(source), "--out", str(out), "--threads", "1", "--force", "--quiet"]
        with subprocess.Popen(module_command("cli", *words), stdout=subprocess.DEVNULL) as running:
            peaks.append(peak(running))
        with out.open("rb") as lines:
            labelled = sum(1 for _ in lines)
        whole = running.returncode == 0 and labelled == wanted
        row.add(whole, f"{wanted} utterances: {labelled} labelled, {peaks[-1]:.0f} MiB at most")
        source.unlink()
        out.unlink(missing_ok=True)
    row.notes["MiB more than a hundredth of them took"] = round(peaks[1] - peaks[0])
    output.say(f"{row.fault}: {row.notes}")
    return [row]


def write_dialogues(path: Path, bundle: Bundle, utterances: int) -> None:
    """Dialogues of random vectors for a cmerc bundle, one per line."""
    draw = random.Random(0)
    inputs = [s for s in bundle.manifest.contract.features if s.dtype == "float32"]

    def vectors(dims: Sequence[int | str]) -> list[Any]:
        own = [d for d in dims if isinstance(d, int)]
        return [vectors(own[1:]) if len(own) > 1 else round(draw.gauss(0, 1), 2) for _ in range(own[0])]

    with path.open("w") as stream:
        for first in range(0, utterances, UTTERANCES):
            names = range(first, min(first + UTTERANCES, utterances))
            said = [{"id": f"u{i}", "speaker": i % 2} | {s.name: vectors(s.dims) for s in inputs} for i in names]
            stream.write(json.dumps({"dialogue": f"d{first}", "utterances": said}) + "\n")


def peak(running: subprocess.Popen[bytes]) -> float:
    """The largest resident size of a process in MiB, asked until it ends."""
    most = 0.0
    while running.poll() is None:
        try:
            lines = Path(f"/proc/{running.pid}/status").read_text().splitlines()
            most = max([most, *(int(li.split()[1]) / 2**10 for li in lines if li.startswith("VmHWM"))])
        except OSError:
            break
        time.sleep(0.05)
    running.wait()
    return most


def opened(world: World, count: int, predictions: int | None = None) -> list[Row]:
    """A predictor opened `count` times, then 40 predictions for each opening from one: descriptors and memory."""
    predictions = 40 * count if predictions is None else predictions
    request = json.dumps([str(world.bundle), count, predictions])
    words = [sys.executable, "-m", "benchmarks.endurance", request]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise BundleError(f"a long life ended: {done.stderr.strip().splitlines()[-1:]}")
    rows = [Row(**row) for row in json.loads(done.stdout)]
    for row in rows:
        output.say(f"{row.fault}: {row.notes}")
    return rows


def live(bundle: Path, count: int, predictions: int) -> list[Row]:
    """What `opened` measures, in this process."""
    import numpy as np

    from runtimes.predict.predictor import Predictor

    draw = np.random.default_rng(0)
    specs = [s for s in Bundle.open(bundle).manifest.contract.features if s.dtype == "float32"]

    def sample(length: int) -> dict[str, Any]:
        shape = {d: length for s in specs for d in s.dims if isinstance(d, str)}
        found = {
            s.name: draw.standard_normal([shape[d] if isinstance(d, str) else d for d in s.dims[1:]]) for s in specs
        }
        return found | {"speaker": np.zeros(length, np.int64)}

    def once() -> None:
        with Predictor(Bundle.open(bundle)) as predictor:
            assert list(predictor.predict([sample(3)]))

    rows = [_flat(f"a predictor opened {count} times", once, count)]
    with Predictor(Bundle.open(bundle)) as predictor:
        rows.append(_flat(f"{predictions} predictions", lambda: list(predictor.predict([sample(1)])), predictions))
    return rows


def _flat(fault: str, call: Callable[[], object], count: int) -> Row:
    """Calls again and again; the first tenth is for caches to fill."""
    row = Row(fault)
    for _ in range(max(1, count // 10)):
        call()
    before = _descriptors(), _resident()
    for _ in range(count):
        call()
        row.tried += 1
    more = _descriptors() - before[0], _resident() - before[1]
    row.survived = row.tried if more[0] <= 0 and more[1] < GROWN_MIB else 0
    row.notes = {"descriptors more": more[0], "MiB more": round(more[1]), "MiB at most": round(peak_mib())}
    return row


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    _bundle, _count, _predictions = json.loads(sys.argv[1])
    print(json.dumps([asdict(row) for row in live(Path(_bundle), _count, _predictions)]))
