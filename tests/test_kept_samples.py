"""What was read of the authors' files is kept: the same samples again, and nothing that is not this user's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mer_export.data import kept_samples
from mer_export.data.formats.cmerc import reader
from mer_export.data.formats.cmerc.synthetic import SYNTHESISER, SynthConfig
from mer_export.data.open import stream_samples
from mer_export.data.samples import Sample
from mer_export.errors import UsageError

SMALL = SynthConfig(text_dim=12, audio_dim=10, vision_dim=8)
GROUPS = [("u1", "d1"), ("u2", None)]


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key and a cache of its own for each test, and files old and large enough to be kept."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("MER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_samples, "LEAST", 1)
    monkeypatch.setattr(kept_samples, "SETTLED", -1.0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    SYNTHESISER.write("meld", tmp_path / "meld", 8, 0, SMALL)
    return tmp_path / "meld"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The splits that were read from the files so far."""
    found: list[str | None] = []
    read: Callable[..., object] = reader.read

    def counted(path: Path, spec: object, labels: object = None, split: str | None = None) -> object:
        found.append(split)
        return read(path, spec, labels, split)

    monkeypatch.setattr(reader, "read", counted)
    return found


def same(ours: list[Sample], theirs: list[Sample]) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    arrays = [(a.inputs[n], b.inputs[n]) for a, b in pairs for n in a.inputs]
    arrays += [(a.labels, b.labels) for a, b in pairs]
    facts = [[(s.id, s.units, s.split, s.group, list(s.inputs)) for s in found] for found in (ours, theirs)]
    return facts[0] == facts[1] and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in arrays)


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "samples").glob("*"))


def test_the_second_run_reads_what_the_first_kept(data: Path, tmp_path: Path, reads: list[str | None]) -> None:
    for split in (None, "test"):
        first = list(stream_samples(data, split=split))
        again = list(stream_samples(data, split=split))
        assert first
        assert same(first, again)
    assert reads == [None, "test"]
    assert len(kept(tmp_path)) == 2


def test_the_dialogue_of_an_utterance_is_kept() -> None:
    samples = [
        Sample(n, {"audio": np.ones((2, 3), np.float32)}, (n,), np.zeros(1), "train", group) for n, group in GROUPS
    ]
    assert same(list(kept_samples.unpacked(b"".join(kept_samples.packed(samples)))), samples)


def test_one_split_is_as_when_all_are_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MER_CACHE", "off")
    whole = list(stream_samples(data))
    for split in ("train", "test"):
        assert same(list(stream_samples(data, split=split)), [s for s in whole if s.split == split])
    with pytest.raises(UsageError, match=r"no split 'dev' in this data, there are \['train', 'test'\]"):
        list(stream_samples(data, split="dev"))


def test_a_file_that_changed_is_read_again(data: Path, reads: list[str | None]) -> None:
    list(stream_samples(data))
    file = next((data / "data").glob("*roberta.pkl"))
    content = file.read_bytes()
    file.write_bytes(content)
    assert list(stream_samples(data))
    # The same size and the same time of change: only the inode's own time tells.
    found = file.stat()
    file.write_bytes(content[:-1] + b".")
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert list(stream_samples(data))
    assert list(stream_samples(data, labels=("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")))
    assert len(reads) == 4


def test_what_somebody_else_laid_there_or_damaged_is_not_used(
    data: Path, tmp_path: Path, reads: list[str | None]
) -> None:
    first = list(stream_samples(data))
    (entry,) = kept(tmp_path)
    whole = entry.read_bytes()
    for wrong in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:100], bytes(32) + whole[32:], b""):
        entry.write_bytes(wrong)
        assert same(list(stream_samples(data)), first)
    assert len(reads) == 5
    entry.write_bytes(whole)
    entry.parent.chmod(0o777)
    assert same(list(stream_samples(data)), first)
    assert len(reads) == 6


def test_nothing_is_kept_of_a_file_that_may_still_change_or_is_small(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_samples, "SETTLED", time.time())
    list(stream_samples(data))
    monkeypatch.setattr(kept_samples, "SETTLED", -1.0)
    monkeypatch.setattr(kept_samples, "LEAST", 1 << 30)
    list(stream_samples(data))
    monkeypatch.setattr(kept_samples, "LEAST", 1)
    monkeypatch.setenv("MER_CACHE", "off")
    list(stream_samples(data))
    assert not kept(tmp_path)


def test_what_was_used_longest_ago_goes_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str | None]
) -> None:
    list(stream_samples(data, split="train"))
    (first,) = kept(tmp_path)
    monkeypatch.setattr(kept_samples, "ALL", first.stat().st_size + 1)
    list(stream_samples(data, split="test"))
    (left,) = kept(tmp_path)
    assert left != first
    list(stream_samples(data, split="test"))
    assert reads == ["train", "test"]
