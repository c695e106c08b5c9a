"""What the utterances of a long recording cost to read, beside reading each from the beginning.

    python3 -m benchmarks.long_recordings --out benchmarks/results [--minutes 30] [--utterances 40]

Makes a video with sound, and reads utterances that lie evenly in it one after the other, as `mer features` and `mer
infer` do: their sound from what is kept of the recording, in memory and in a file, or decoded from the beginning; their
pictures by the file's index, or past all packets before them. Says whether they are the same to the bit. Writes
`long_recordings.json` and `.md`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks import output
from mer_export.data.dialogues import Recording
from mer_export.data.media import frames
from mer_export.data.media.frames import read_frames
from mer_export.encoders.sounds import MOST_ON_DISK, Sounds
from mer_export.markdown import table
from mer_export.untrusted.places import Reach

RATE, FPS, WIDTH, HEIGHT = 48000, 25, 320, 240
SECONDS, PICTURES = 3.0, 4
"""Of an utterance, and how many of its pictures."""
IN_MEMORY = 1 << 34
KEPT = {"from the beginning": (0, 0), "kept in memory": (IN_MEMORY, 0), "kept in a file": (1 << 20, MOST_ON_DISK)}
"""How much sound is kept."""
PASSED = {"past all packets": math.inf, "by the index": frames.FAR}
Read = Callable[[tuple[float, float]], np.ndarray]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the suite and writes its results."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.long_recordings", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--utterances", type=int, default=40)
    chosen = parser.parse_args(arguments)
    found = {"command": output.command("long_recordings", arguments), "machine": output.here()}
    with tempfile.TemporaryDirectory() as folder:
        path = write_recording(Path(folder), 60 * chosen.minutes)
        found |= {"minutes": chosen.minutes, "utterances": chosen.utterances, "megabytes": path.stat().st_size / 1e6}
        found["rows"] = measure(path, 60 * chosen.minutes, chosen.utterances)
    output.write(chosen.out, "long_recordings", found, page(found))


def write_recording(folder: Path, seconds: float) -> Path:
    """An mp4 of noise to see and to hear, a key frame every ten seconds."""
    import av

    draw, path = np.random.default_rng(0), folder / "long.mp4"
    pictures = draw.integers(0, 255, (50, HEIGHT // 8, WIDTH // 8, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    noise = draw.normal(0, 0.1, (2, RATE)).astype(np.float32)
    with av.open(str(path), "w", format="mp4") as out:
        video = out.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "g": str(10 * FPS)})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = out.add_stream("aac", rate=RATE, layout="stereo")
        for second in range(round(seconds)):
            for number in range(second * FPS, (second + 1) * FPS):
                frame = av.VideoFrame.from_ndarray(pictures[number // FPS % len(pictures)], format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, FPS)
                out.mux(video.encode(frame))
            sound = av.AudioFrame.from_ndarray(np.roll(noise, 37 * second, axis=1), format="fltp", layout="stereo")
            sound.rate, sound.pts, sound.time_base = RATE, second * RATE, Fraction(1, RATE)
            out.mux(audio.encode(sound))
        for stream in (video, audio):
            out.mux(stream.encode())
    return path


def measure(path: Path, seconds: float, utterances: int) -> list[dict[str, Any]]:
    """Seconds of all utterances in each way, how many times faster than in the first, and whether all is equal."""
    step = (seconds - SECONDS) / max(1, utterances - 1)
    parts = [(k * step, k * step + SECONDS) for k in range(utterances)]
    rows = []
    for what, ways in (("sound", KEPT), ("pictures", PASSED)):
        first: tuple[float, list[np.ndarray]] | None = None
        for way, setting in ways.items():
            output.say(f"{what}, {way}")
            frames._timeline.cache_clear()
            with patch.object(frames, "FAR", setting if what == "pictures" else frames.FAR):
                read = _pictures(path) if what == "pictures" else _sound(path, Sounds(*setting))
                began = time.monotonic()
                got = [read(part) for part in parts]
                taken = time.monotonic() - began
            first = first or (taken, got)
            same = all(np.array_equal(a, b) for a, b in zip(got, first[1], strict=True))
            rows.append({"what": what, "way": way, "seconds": taken, "times": first[0] / taken, "equal": same})
    return rows


def _sound(path: Path, sounds: Sounds) -> Read:
    return lambda part: sounds.read(Recording(path.name, "u", Reach(path.parent), *part)).mono(RATE)


def _pictures(path: Path) -> Read:
    return lambda part: np.stack([f.picture for f in read_frames(path, *part, count=PICTURES)])


def page(found: dict[str, Any]) -> str:
    """A row per way."""
    rows = [
        (r["what"], r["way"], f"{r['seconds']:.1f}", f"**{r['times']:.1f}**", "yes" if r["equal"] else "**no**")
        for r in found["rows"]
    ]
    return "\n".join(
        [
            *output.head("Utterances of a long recording", found, 1),
            f"{found['utterances']} utterances of {SECONDS:g} s, evenly in an mp4 of {found['minutes']:g} minutes "
            f"({found['megabytes']:.0f} MB, H.264 and AAC), read one after the other: their sound, and {PICTURES} "
            "pictures of each. One run each, with what is read once for all of them. Reading from the beginning grows "
            "with the square of the length, the other ways with the length.",
            "",
            *table(("what", "way", "seconds", "times faster", "equal"), rows),
            "",
        ]
    )


if __name__ == "__main__":
    output.end_well(main)
