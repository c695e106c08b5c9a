"""Parts of recordings: what is decoded from its beginning for every part is decoded once and kept for the next ones."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from mer_export.data.dialogues import Recording
from mer_export.data.media.sound import Sound, read_sound
from mer_export.errors import InputError
from mer_export.untrusted.file_state import State, state_of
from mer_export.untrusted.media_files import media_kind

SOUGHT = frozenset({"wav", "aiff", "flac"})
"""Kinds of files in which a part is found without decoding what comes before it."""
MOST_BYTES = 1 << 28
"""Samples that are kept, of one channel; a longer recording is decoded for each of its parts."""
MOST_FILES = 256
"""Recordings that are remembered."""


@dataclass
class _Asked:
    """A recording of which parts are wanted: how often, and all of it where it is kept."""

    times: int = 0
    whole: Sound | None = None

    @property
    def nbytes(self) -> int:
        return self.whole.samples.nbytes if self.whole else 0


class Sounds:
    """Reads sound for any number of threads; recordings of which several parts are wanted are kept as they pass.

    A file that was written again is another recording.
    """

    def __init__(self, most: int = MOST_BYTES):
        self.most = most
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
        samples = whole.samples[round(first * whole.rate) : round(last * whole.rate)]
        return Sound(samples, whole.rate, whole.step) if len(samples) else read_sound(path, said.start, said.end)

    def _whole(self, path: Path) -> Sound | None:
        """All of a file of which a part was wanted before; None the first time, and where it cannot be kept."""
        state = state_of(path.stat())
        with self._lock:
            asked = self._asked.setdefault((path, state), _Asked())
            asked.times += 1
            if asked.times == 2:
                asked.whole = self._decoded(path)
            while len(self._asked) > MOST_FILES or sum(a.nbytes for a in self._asked.values()) > self.most:
                self._asked.popitem(last=False)
            return asked.whole

    def _decoded(self, path: Path) -> Sound | None:
        try:
            sound = read_sound(path)
        except InputError:
            return None
        # Encoders hear one channel.
        mono = sound.samples.mean(axis=1, keepdims=True)
        return Sound(mono, sound.rate, sound.step) if mono.nbytes <= self.most else None
