"""What serving needs: the size of its environment, what of it is loaded, and the time from a process to a label.

    python3 -m benchmarks.footprint --clips DATA --bundle BUNDLE --environment DIR --out benchmarks/results

DIR becomes a virtual environment with `mer-export[cpu,text,media]` and nothing else, unless it is one already. In it
`mer infer` answers the first recording of DATA with BUNDLE, a model with encoders (`mer attach`), in processes of its
own. Their seconds of processor time hold on a busy machine too. Writes `footprint.json` and `.md`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import output
from benchmarks.environments import INSTALL_S, child, pip
from mer_export.bundle import Bundle
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.dialogues import Utterance
from mer_export.data.open import stream_samples
from mer_export.errors import InputError
from mer_export.markdown import table

ROOT = Path(__file__).parents[1]
EXTRAS = "cpu,text,media"
STARTS = 10
MOST = 60
"""Seconds that a process may take."""
HEAVY = ("torch", "transformers", "scipy", "sklearn", "pandas")
"""Packages of training; none of them is loaded."""
SIZES = """
import importlib.metadata as m, json, pathlib
def size(d):
    return sum(p.stat().st_size for f in d.files or () if (p := pathlib.Path(d.locate_file(f))).is_file())
print(json.dumps({f"{d.name} {d.version}": size(d) for d in m.distributions() if d.name not in ("pip", "setuptools")}))
"""
ANSWER = """
import json, sys
from mer_export.launcher import main
try:
    main()
except SystemExit as end:
    if end.code:
        raise
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the suite."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.footprint", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, required=True, help="data set with recordings")
    parser.add_argument("--bundle", type=Path, required=True, help="model with encoders")
    parser.add_argument("--environment", type=Path, required=True, help="where the virtual environment is made")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--split", default="test")
    chosen = parser.parse_args(arguments)
    python = install(chosen.environment)
    found = {"command": output.command("footprint", arguments), "machine": output.here(), "extras": EXTRAS}
    found |= measure(python, chosen.bundle, chosen.clips, chosen.split)
    output.write(chosen.out, "footprint", found, page(found))


def install(home: Path) -> Path:
    """The interpreter of the environment, made where it is not there."""
    python = home / "bin" / "python"
    if not python.with_name("mer").exists():
        output.say(f"installing mer-export[{EXTRAS}]")
        child([sys.executable, "-m", "venv", "--clear", str(home)], INSTALL_S)
        with tempfile.TemporaryDirectory() as folder:
            # Building writes beside the sources.
            source = shutil.copytree(
                ROOT, Path(folder) / "source", ignore=shutil.ignore_patterns(".*", "build", "tests")
            )
            pip(python, f"{source}[{EXTRAS}]")
    return python


def measure(python: Path, bundle: Path, clips: Path, split: str) -> dict[str, Any]:
    """Bytes of each package, and of each start the seconds on the clock and of the processor."""
    sizes: dict[str, int] = json.loads(child([str(python), "-I", "-c", SIZES], MOST))
    with tempfile.TemporaryDirectory() as folder:
        asked = one_clip(Bundle.open(bundle), clips, split, Path(folder))
        words = ["infer", str(bundle), str(asked), "-o", str(Path(folder) / "answers.jsonl"), "--force", "--quiet"]
        loaded = json.loads(child([str(python), "-I", "-c", ANSWER, *words], MOST).splitlines()[-1])
        starts = [_timed([str(python.with_name("mer")), *words]) for _ in range(STARTS)]
    wall, processor = zip(*starts, strict=True)
    return {"sizes": sizes, "loaded": loaded, "wall_s": wall, "processor_s": processor}


def one_clip(bundle: Bundle, clips: Path, split: str, folder: Path) -> Path:
    """A table of the first recording of a data set, and a copy of that beside it."""
    seen: list[Utterance] = []

    def noted(dialogues: Any) -> Any:
        for dialogue in dialogues:
            seen.extend(u for u in dialogue.utterances if u.recording)
            yield dialogue

    for _ in stream_samples(clips, bundle_spec(bundle, clips), bundle.manifest.task.labels, split, noted):
        if seen:
            break
    if not seen:
        raise InputError(f"{clips} has no recording in {split}: give a data set with recordings")
    (utterance, *_), path = seen, folder / "clips.csv"
    assert utterance.recording is not None
    copy = shutil.copy(utterance.recording.path, folder)
    row = {
        "id": utterance.id,
        "recording": Path(copy).name,
        "start": utterance.recording.start,
        "end": utterance.recording.end,
        "sentence": utterance.sentence,
    }
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [n for n, v in row.items() if v is not None], extrasaction="ignore")
        writer.writeheader()
        writer.writerow(row)
    return path


def _timed(command: Sequence[str]) -> tuple[float, float]:
    began, before = time.perf_counter(), os.times()
    child(list(command), MOST)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, used


def page(found: dict[str, Any]) -> str:
    """What was measured, for people."""
    sizes = sorted(found["sizes"].items(), key=lambda pair: -pair[1])
    heavy = [n for n in HEAVY if n in found["loaded"]]
    wall, processor = found["wall_s"], found["processor_s"]
    return "\n".join(
        [
            *output.head("What serving needs", found),
            "",
            f"`mer-export[{found['extras']}]` takes {sum(found['sizes'].values()) / 1e6:.0f} MB in all. While a "
            f"recording is answered, of {', '.join(HEAVY)} {', '.join(heavy) or 'none'} is loaded.",
            "",
            *table(["package", "MB"], [(n, f"{size / 1e6:.1f}") for n, size in sizes if size >= 1e6]),
            "",
            f"From the start of a process to the label of a recording, {len(wall)} times: {min(wall):.2f} s at best, "
            f"{np.median(wall):.2f} s in the middle; {np.median(processor):.2f} s of processor time.",
            "",
        ]
    )


if __name__ == "__main__":
    output.end_well(main)
