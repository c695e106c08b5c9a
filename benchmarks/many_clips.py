"""Does the memory of `mer features` depend on how many clips there are?

    python3 -m benchmarks.many_clips --out benchmarks/results [--clips 100000]

Generated sound, 20 clips of each file by their times, through log-mel bands without a network: so many clips, a
tenth and a hundredth of them, as a process each whose largest resident size is noted. Writes `many_clips.json` and
`.md`.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import output
from benchmarks.endurance import peak
from mer_export.encoders.signal.folder import write_signal_encoder
from mer_export.errors import BundleError
from mer_export.launcher import module_command
from mer_export.markdown import table

RATE, SECONDS, OF_A_FILE = 16000, 0.25, 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the suite."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.many_clips", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--clips", type=int, default=100_000)
    chosen = parser.parse_args(arguments)
    found = {"command": output.command("many_clips", arguments), "machine": output.here()}
    found["runs"] = [measure(count) for count in (chosen.clips // 100, chosen.clips // 10, chosen.clips)]
    output.write(chosen.out, "many_clips", found, page(found))


def measure(clips: int) -> dict[str, Any]:
    """Clips, MiB that the process took at most, megabytes of the data set, and seconds.

    Raises:
        BundleError: the command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_clips(root, clips)
        write_signal_encoder("log_mel", root / "encoder", every=5)
        words = ["features", str(root / "clips.csv"), "--encoder", f"audio={root}/encoder", "--out", str(root / "made")]
        began = time.monotonic()
        with subprocess.Popen(module_command("cli", *words, "-q"), stdout=subprocess.PIPE, text=True) as running:
            most = peak(running)
            said = running.stdout.read() if running.stdout else ""
        if running.returncode or f"utterances {clips}," not in said:
            raise BundleError(f"mer features ended with {running.returncode}: {said}")
        size = (root / "made.parquet").stat().st_size
        found = {"clips": clips, "mib": most, "megabytes": size / 1e6, "seconds": time.monotonic() - began}
    output.say(f"{found}")
    return found


def write_clips(root: Path, clips: int) -> None:
    """Files of noise, and a table that names each for `OF_A_FILE` clips, with a sentence of its own each."""
    import soundfile

    draw = np.random.default_rng(0)
    with (root / "clips.csv").open("w") as stream:
        stream.write("clip,path,start,end,transcript,emotion,speaker,split\n")
        for clip in range(clips):
            number, place = divmod(clip, OF_A_FILE)
            if not place:
                sound = draw.normal(0, 0.1, int(RATE * SECONDS * OF_A_FILE)).astype(np.float32)
                soundfile.write(root / f"{number}.wav", sound, RATE)
            span = f"{place * SECONDS},{(place + 1) * SECONDS}"
            label, split = ("joy", "anger")[clip % 2], ("train", "train", "test")[number % 3]
            stream.write(f"c{clip},{number}.wav,{span},This is sentence {clip},{label},s{number},{split}\n")


def page(found: dict[str, Any]) -> str:
    """What was measured, for people."""
    rows = [[r["clips"], f"{r['mib']:.0f}", f"{r['megabytes']:.1f}"] for r in found["runs"]]
    lines = output.head("Memory of `mer features` by the number of clips", found)
    return "\n".join([*lines, "", *table(["clips", "MiB at most", "data set, MB"], rows), ""])


if __name__ == "__main__":
    output.end_well(main)
