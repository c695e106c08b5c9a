"""Readers of strangers' bytes: bombs end in seconds with one sentence, stand-ins are named, damage is never a crash."""

from __future__ import annotations

import io
import pickle
import struct
import time
import zipfile
import zlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from numpy.lib import format as npy
from pyarrow import parquet

from mer_export import machine
from mer_export.checkpoints import read_checkpoint, weight_files
from mer_export.data.formats.jsonl.reader import source
from mer_export.data.inspect import inspect_file
from mer_export.data.media.pictures import read_picture
from mer_export.data.media.sound import read_sound
from mer_export.data.spec import DataSpec
from mer_export.data.word_vectors import read_word_vectors
from mer_export.errors import InputError, MerError
from mer_export.overrides import apply_overrides
from mer_export.untrusted import budget
from mer_export.untrusted.arrays import load_array
from mer_export.untrusted.budget import BYTES_PER_BYTE, MIB, SPARE_BYTES
from mer_export.untrusted.hdf5 import load_hdf5
from mer_export.untrusted.json_files import read_json
from mer_export.untrusted.onnx_files import data_files
from mer_export.untrusted.pickles import load_pickle, load_records
from mer_export.untrusted.tables import read_table
from mer_export.untrusted.yaml_files import read_yaml

SECONDS = 30
"""Of processor time that an attack may take; most take milliseconds."""


def jsonl(path: Path) -> Any:
    return list(source(path, DataSpec()).dialogues())


def onnx(path: Path) -> list[str]:
    try:
        return data_files(path)
    except ValueError as error:
        raise InputError(str(error)) from None


READERS: dict[str, Callable[[Path], Any]] = {
    "x.pkl": load_pickle,
    "x.pt": load_pickle,
    "model.pt": load_records,
    "checkpoint.pt": read_checkpoint,
    "old.pt": load_pickle,
    "x.npy": load_array,
    "x.npz": lambda path: load_array(path, "a"),
    "x.safetensors": read_checkpoint,
    "x.safetensors.index.json": weight_files,
    "x.json": read_json,
    "vectors.json": read_word_vectors,
    "vectors.txt": read_word_vectors,
    "x.yaml": read_yaml,
    "x.jsonl": jsonl,
    "x.csv": read_table,
    "x.tsv": read_table,
    "x.parquet": read_table,
    "x.h5": lambda path: load_hdf5(path, "d1"),
    "x.wav": read_sound,
    "x.png": read_picture,
    "x.onnx": onnx,
}


def attacked(content: bytes, path: Path, read: Callable[[Path], Any] | None = None) -> str:
    """What a reader says of a file; within seconds, within bounds of memory, in one sentence with exit code 2."""
    path.write_bytes(content)
    # The largest size is that of now: whatever ran here before may have been larger than what an attack takes.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    begin, before = time.process_time(), machine.peak_mib()
    with pytest.raises(MerError) as caught:
        (read or READERS[path.name])(path)
    assert time.process_time() - begin < SECONDS
    assert (machine.peak_mib() - before) * MIB < 2 * (SPARE_BYTES + BYTES_PER_BYTE * len(content))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


# Files that stand in for others

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456789\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>virus scan warning</title></head><body></body></html>"
STAND_INS = {"x.onnx": "its bytes are checked as protobuf when a bundle is opened"}


@pytest.mark.parametrize("name", [n for n in READERS if n not in STAND_INS])
def test_a_pointer_or_a_web_page_in_place_of_a_file_is_named_as_such(tmp_path: Path, name: str) -> None:
    assert "is a Git LFS pointer, the file of 123456789 bytes itself is missing" in attacked(POINTER, tmp_path / name)
    assert "is a web page ('virus scan warning')" in attacked(PAGE, tmp_path / name)
    assert "git annex get" in attacked(b"/annex/objects/SHA256E-s12--ab.pkl\n", tmp_path / name)


@pytest.mark.parametrize("name", ["x.pkl", "x.json", "x.npz", "x.npy", "x.safetensors"])
def test_inspect_names_stand_ins_too(tmp_path: Path, name: str) -> None:
    assert "is a Git LFS pointer" in attacked(POINTER, tmp_path / name, inspect_file)


# Line ends that a transfer changed


PLAIN: Any = {"Ses01": ["M", "F"], "n": 3, "f": 1.5, "a": np.arange(3.0)}


@pytest.mark.parametrize("value", [["M", "F"], {"Ses01": ["M", "F"]}, "M", PLAIN])
def test_a_text_pickle_with_changed_line_ends_is_refused(tmp_path: Path, value: Any) -> None:
    whole = pickle.dumps(value, protocol=0)
    assert "every line end became CRLF" in attacked(whole.replace(b"\n", b"\r\n"), tmp_path / "x.pkl")


def test_a_text_pickle_of_python_2_is_refused_as_well(tmp_path: Path) -> None:
    assert "every line end became CRLF" in attacked(b"(lp0\r\nS'M'\r\np1\r\naS'F'\r\np2\r\na.", tmp_path / "x.pkl")


def test_a_binary_pickle_with_changed_line_ends_is_named_where_it_shows(tmp_path: Path) -> None:
    whole = pickle.dumps(np.arange(3.0), protocol=2)
    assert "every line end became CRLF" in attacked(whole.replace(b"\n", b"\r\n"), tmp_path / "x.pkl")


def test_carriage_returns_in_strings_are_no_damage(tmp_path: Path) -> None:
    value = {"said\r\n": "a\r\nb\r", "more": ["\r"]}
    for protocol in range(6):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
        assert load_pickle(tmp_path / "x.pkl") == value
    # Python 2 wrote carriage returns as they are.
    (tmp_path / "x.pkl").write_bytes(b"(lp0\nVa\r\np1\na.")
    assert load_pickle(tmp_path / "x.pkl") == ["a\r"]


# What feature pickles hold


def test_containers_and_tensors_of_feature_pickles_are_read(tmp_path: Path) -> None:
    nested: Any = defaultdict(list, {"a": [1]})
    shared = torch.arange(6.0).reshape(2, 3)
    value = {
        "default": nested,
        "ints": defaultdict(int, {"x": 2}),
        "counter": Counter("aab"),
        "ordered": OrderedDict(x=1),
        "deque": deque([1, 2], maxlen=4),
        "tensor": shared,
        "view": shared.T[1:],
        "half": shared.half(),
        "brain": shared.bfloat16(),
        "long": torch.tensor(3),
        "size": shared.shape,
    }
    read: dict[str, Callable[[Any, Path], object]] = {
        "pickle": lambda v, p: p.write_bytes(pickle.dumps(v)),
        "pickle of protocol 2": lambda v, p: p.write_bytes(pickle.dumps(v, protocol=2)),
        "torch.save": torch.save,
        "old torch.save": lambda v, p: torch.save(v, p, _use_new_zipfile_serialization=False),
    }
    for save in read.values():
        save(value, tmp_path / "x.pkl")
        found = load_pickle(tmp_path / "x.pkl")
        assert found["default"] == {"a": [1]}
        assert found["ints"] == {"x": 2}
        assert found["counter"] == {"a": 2, "b": 1}
        assert (found["ordered"], found["deque"], found["size"]) == ({"x": 1}, [1, 2], (2, 3))
        for name in ("tensor", "view", "half", "brain", "long"):
            assert np.array_equal(found[name], value[name].float().numpy())


# Bombs


def recalled(value: bytes, call: bytes, times: int) -> bytes:
    """A pickle that makes a value once and calls something with it many times."""
    return b"\x80\x04]" + value + b"\x940" + b"".join([call] * times) + b"."


BYTES_1MB = b"B" + struct.pack("<I", MIB) + bytes(MIB)
ARRAY_8KB = pickle.dumps(np.zeros(1000), protocol=2)[2:-1]


def array_call(dtype: str, size: bytes) -> bytes:
    """A pickle of an array without content, whose one dim is the integer that these bytes push."""
    code = b"X" + struct.pack("<I", len(dtype)) + dtype.encode()
    made = b"cnumpy.core.numeric\n_frombuffer\n(C\x00cnumpy\ndtype\n(" + code + b"\x89\x88tR"
    return b"\x80\x02" + made + size + b"\x85X\x01\x00\x00\x00CtR."


def laughing(levels: int) -> bytes:
    """A list of ten references to a list of ten references, and so on."""
    inside = (b"(" + b"h%c" % (n - 1) * 10 + b"lq%c" % n for n in range(1, levels))
    return b"\x80\x02]Naq\x00" + b"".join(inside) + b"."


LONG_INTEGER = b"\x8b" + struct.pack("<i", MIB) + b"\x01" * MIB
PICKLES = {
    "bytes without width": array_call("S0", b"\x8a\x06\x00\x00\x00\x00\x00\x01"),
    "text without width": array_call("U0", b"\x8a\x06\x00\x00\x00\x00\x00\x01"),
    "copies of a megabyte": recalled(BYTES_1MB, b"cbuiltins\nbytearray\nh\x64\x85Ra", 100_000),
    "one array a million times": recalled(ARRAY_8KB, b"h\x64a", 1_000_000),
    "one string a million times": recalled(b"X" + struct.pack("<I", 10_000) + b"a" * 10_000, b"h\x64a", 300_000),
    "lists of ten lists of ten lists": laughing(12),
    "a tuple of two of a tuple of two": b"\x80\x02)" + b"2\x86" * 40 + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a long integer as a key": b"\x80\x02}" + LONG_INTEGER + b"Ns.",
    "a long tuple as a key": b"\x80\x02}(" + b"N" * 100_000 + b"tNs.",
    "a shape of long integers": array_call("f4", LONG_INTEGER),
}
"""Small pickles that unfold to much, or take long."""


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_unfold_end_in_a_sentence(tmp_path: Path, name: str) -> None:
    attacked(PICKLES[name], tmp_path / "x.pkl")


def test_a_million_opcodes_end_in_seconds(tmp_path: Path) -> None:
    attacked(b"\x80\x02" + b"(" * 1_000_000 + b".", tmp_path / "x.pkl")
    attacked(b"\x80\x02" + b"N0" * 1_000_000, tmp_path / "x.pkl")
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02]" + b"Na" * 500_000 + b".")
    assert len(load_pickle(tmp_path / "x.pkl")) == 500_000


class Expanded:
    """A tensor that claims more than its storage holds."""

    def __reduce__(self) -> Any:
        storage = torch.zeros(1).untyped_storage()
        return torch._utils._rebuild_tensor_v2, (storage, 0, (1 << 40,), (0,), False, OrderedDict())


@pytest.mark.parametrize("name", ["x.pt", "model.pt", "checkpoint.pt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_claim_more_than_their_storage_are_refused(tmp_path: Path, name: str, zipped: bool) -> None:
    path = tmp_path / "made"
    torch.save({"a": Expanded()}, path, _use_new_zipfile_serialization=zipped)
    assert "unfold to far more" in attacked(path.read_bytes(), tmp_path / name)


def archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        for name, content in entries.items():
            made.writestr(name, content)
    return buffer.getvalue()


def test_archives_that_unfold_are_refused(tmp_path: Path) -> None:
    assert "compressed" in attacked(archive({"x/data.pkl": b"N" * MIB}, zipfile.ZIP_DEFLATED), tmp_path / "x.pt")
    assert "TorchScript" in attacked(archive({"x/data.pkl": b"N.", "x/constants.pkl": b"N."}), tmp_path / "x.pt")
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    assert "state_dict()" in attacked(buffer.getvalue(), tmp_path / "checkpoint.pt")


def array_of(dtype: str, shape: tuple[int, ...], content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


@pytest.mark.parametrize(
    ("dtype", "shape"), [("|S0", (1 << 40,)), ("<U0", (1 << 40,)), ("<f4", (1 << 40,)), ("<f4", (1 << 29,))]
)
def test_arrays_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path, dtype: str, shape: tuple[int]) -> None:
    attacked(array_of(dtype, shape), tmp_path / "x.npy")
    attacked(archive({"a.npy": array_of(dtype, shape)}, zipfile.ZIP_DEFLATED), tmp_path / "x.npz")


def test_an_npz_that_inflates_to_gigabytes_is_refused_before_it_does(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made,
        made.open("a.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(array_of("|i1", (512 * MIB,)))
        for _ in range(512):
            stream.write(bytes(MIB))
    assert "unfold to far more" in attacked(buffer.getvalue(), tmp_path / "x.npz")


def test_padding_that_compresses_well_is_no_bomb(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros((1000, 50, 300), np.float32))
    assert load_array(tmp_path / "x.npz", "a").shape == (1000, 50, 300)


@pytest.mark.parametrize("depth", [2_000, 20_000, 1_000_000])
def test_nested_documents_are_refused(tmp_path: Path, depth: int) -> None:
    attacked(b"[" * depth, tmp_path / "x.json")
    attacked(b"[" * depth + b"]" * depth, tmp_path / "x.jsonl")
    attacked(b"[" * min(depth, 200_000), tmp_path / "x.yaml")
    attacked(b"".join(b" " * n + b"a:\n" for n in range(min(depth, 900))), tmp_path / "x.yaml")


def test_yaml_has_no_aliases_and_nothing_but_plain_values(tmp_path: Path) -> None:
    laughs = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "an alias (*) is not read" in attacked(laughs.encode(), tmp_path / "x.yaml")
    for text in (
        "!!python/object/apply:os.system [id]",
        "a: 2024-99-99",
        "? [a]\n: b",
        "a: " + "9" * 5000,
        "\x00",
        "{",
    ):
        attacked(text.encode(), tmp_path / "x.yaml")
    attacked(b"a: " + b"b" * MIB, tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("a: {b: [1, 2.5, null, true, text]}\nc: &unused 3\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": {"b": [1, 2.5, None, True, "text"]}, "c": 3}
    with pytest.raises(MerError, match="is not a value"):
        apply_overrides({}, ["a.b=2024-99-99"])


def wav(claimed: int, channels: int = 1, content: bytes = bytes(1000)) -> bytes:
    layout = struct.pack("<HHIIHH", 1, channels, 16000, 32000, 2 * channels, 16)
    chunks = b"fmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", claimed) + content
    return b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + b"WAVE" + chunks


def test_recordings_that_claim_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    assert "claims 2147483646 bytes of sound" in attacked(wav(0x7FFFFFFE), tmp_path / "x.wav")
    attacked(wav(1000, channels=0), tmp_path / "x.wav")
    (tmp_path / "x.wav").write_bytes(wav(1000))
    assert read_sound(tmp_path / "x.wav").samples.shape == (500, 1)


def test_images_that_claim_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    small = (tmp_path / "small.png").read_bytes()
    for side in (5_000, 50_000, 2_000_000):
        header = b"IHDR" + struct.pack(">II", side, side) + small[24:29]
        claim = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
        attacked(claim, tmp_path / "x.png")
    attacked(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) run\n", tmp_path / "x.png")


def test_hdf5_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "made.h5", "w") as file:
        file.create_dataset("d1", shape=(1 << 40,), dtype="f4", chunks=(1024,))
    assert "unfold to far more" in attacked((tmp_path / "made.h5").read_bytes(), tmp_path / "x.h5")


@pytest.mark.parametrize(
    ("values", "encoding", "fits"),
    [
        (["a" * 10_000] * 1024, None, False),
        (["a" * 10_000] * 1024, "DELTA_BYTE_ARRAY", False),
        ([["a" * 1000] * 10_000], None, False),
        ([[7] * 100_000], None, False),
        (["a" * 10_000] * 1024, "PLAIN", True),
        (["a" * 10_000] * 4, None, True),
        ([f"{i:0100}" for i in range(1024)], None, True),
    ],
)
def test_parquet_that_repeats_a_value_is_held_against_what_its_rows_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[Any], encoding: str | None, fits: bool
) -> None:
    monkeypatch.setattr(budget, "SPARE_BYTES", 1 << 16)
    written = {"use_dictionary": False, "column_encoding": encoding} if encoding else {}
    parquet.write_table(pyarrow.table({"a": values}), tmp_path / "made.parquet", **written)
    if fits:
        assert read_table(tmp_path / "made.parquet")["a"] == values
    else:
        assert "unfold to far more" in attacked((tmp_path / "made.parquet").read_bytes(), tmp_path / "x.parquet")


# What the machine knows


def test_every_opcode_of_python_is_read_or_refused_by_name(tmp_path: Path) -> None:
    """An opcode that a later Python adds is refused until somebody decides on it."""
    from mer_export.untrusted.machine import OPCODES

    known = {v for n, v in vars(pickle).items() if n.isupper() and isinstance(v, bytes) and len(v) == 1}
    refused = [
        *(pickle.INST, pickle.OBJ, pickle.PERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4),
        *(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.DUP),
    ]
    assert known - set(OPCODES) == {pickle.STOP, *refused}
    for code in (*refused, pickle.NEWOBJ_EX):
        assert f"the opcode {code!r}" in attacked(b"\x80\x04" + code + b"\x00.", tmp_path / "x.pkl")
