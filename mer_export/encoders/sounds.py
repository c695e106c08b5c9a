"""Parts of recordings: what is decoded from its beginning for every part is decoded once and kept for the next ones."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from mer_export.data.dialogues import Recording
from mer_export.data.media.sound import Sound, decode_sound, read_sound
from mer_export.errors import InputError
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.file_state import State, state_of
from mer_export.untrusted.media_files import media_kind

SOUGHT = frozenset({"wav", "aiff", "flac"})
"""Kinds of files in which a part is found without decoding what comes before it."""
MOST_BYTES = 1 << 28
"""Samples that are kept in memory, of one channel; those of a longer recording lie in a file without a name."""
MOST_ON_DISK = 1 << 32
"""Samples in such files: six hours at 48 kHz. A still longer recording, and one that unfolds to far more than a file of
its size holds (an hour at 32 kbit/s), is decoded for each of its parts."""
MOST_FILES = 256
"""Recordings that are remembered."""


@dataclass
class _Asked:
    """A recording of which parts are wanted: how often, and all of it where it is kept."""

    times: int = 0
    whole: Sound | None = None

    def nbytes(self, on_disk: bool) -> int:
        """What is kept of it there."""
        there = self.whole and isinstance(self.whole.samples, np.memmap) == on_disk
        return self.whole.samples.nbytes if self.whole and there else 0


class Sounds:
    """Reads sound for any number of threads; recordings of which several parts are wanted are kept as they pass.

    A file that was written again is another recording.
    """

    def __init__(self, most: int = MOST_BYTES, most_on_disk: int = MOST_ON_DISK):
        self.most, self.most_on_disk = most, most_on_disk
        self._asked: OrderedDict[tuple[Path, State], _Asked] = OrderedDict()
        self._lock = Lock()

    def read(self, said: Recording) -> Sound:
        """The sound of a recording, or of the part that is said; raises as `read_sound`."""
        path, first = said.path, said.start or 0.0
        part = said.start is not None or said.end is not None
        if not part or media_kind(path).name in SOUGHT:
            return read_sound(path, said.start, said.end)
        whole = self._whole(path)
        last = said.end if said.end is not None else whole.seconds if whole else 0.0
        if whole is None or not 0 <= first < min(last, whole.seconds):
            # Whoever reads it says best what is wrong with a part.
            return read_sound(path, said.start, said.end)
        samples = np.array(whole.samples[round(first * whole.rate) : round(last * whole.rate)])
        return Sound(samples, whole.rate, whole.step) if len(samples) else read_sound(path, said.start, said.end)

    def _whole(self, path: Path) -> Sound | None:
        """All of a file of which a part was wanted before; None the first time, and where it cannot be kept."""
        state = state_of(path.stat())
        with self._lock:
            asked = self._asked.setdefault((path, state), _Asked())
            asked.times += 1
            if asked.times == 2:
                asked.whole = self._decoded(path)
            while self._too_much():
                self._asked.popitem(last=False)
            return asked.whole

    def _too_much(self) -> bool:
        kept = self._asked.values()
        return (
            len(kept) > MOST_FILES
            or sum(a.nbytes(on_disk=False) for a in kept) > self.most
            or sum(a.nbytes(on_disk=True) for a in kept) > self.most_on_disk
        )

    def _decoded(self, path: Path) -> Sound | None:
        """The mean of the channels of a file, as encoders hear it; None where it cannot be read, or not be kept."""
        room = Budget.of(path)
        with tempfile.SpooledTemporaryFile(self.most) as file:

            def keep(block: np.ndarray) -> None:
                mono = block.mean(axis=1)
                room.take(mono.nbytes)
                file.write(mono)
                if file.tell() > max(self.most, self.most_on_disk):
                    raise InputError(f"{path} is too long to be kept")

            try:
                rate, step = decode_sound(path, keep)
            except InputError:
                return None
            if file.tell() > self.most:
                # The mapping outlives the file, which has no name.
                samples: np.ndarray = np.memmap(file, np.float32, "r")
            else:
                file.seek(0)
                samples = np.frombuffer(file.read(), np.float32)
            return Sound(samples.reshape(-1, 1), rate, step)
