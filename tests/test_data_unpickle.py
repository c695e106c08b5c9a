"""Pickles are read as data: what the authors' files hold comes through, anything else is refused in one sentence."""

import collections
import os
import pickle
import re
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mer_export.errors import InputError
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.builders import Name, Refused, done
from mer_export.untrusted.contents import Later, Stored
from mer_export.untrusted.memo import Memo
from mer_export.untrusted.pickles import DAMAGE, load_pickle
from mer_export.untrusted.torch_files import builders
from mer_export.untrusted.unpickle import DataUnpickler


def _load(tmp_path, content: bytes):
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    return load_pickle(path)


def _refused(tmp_path, content: bytes) -> str:
    with pytest.raises(InputError) as caught:
        _load(tmp_path, content)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    assert "x.pkl" in message
    return message


class _Calls:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
def test_arrays_and_containers_come_through_every_protocol_and_numpy_generation(tmp_path, protocol, core):
    value = {
        "a": [np.arange(6, dtype=np.float32).reshape(2, 3), np.asfortranarray(np.eye(3))],
        7: (np.float64(1.5), np.int64(3), "text", b"bytes", None, True, {1, 2}, frozenset("a")),
        ("k", 1): np.array(["joy", "sad"]),
        "big endian": np.arange(3, dtype=">f4"),
        "empty": np.zeros((0, 4), np.float32),
        "ragged": np.array([[1], [1, 2]], dtype=object),
        "ordered": collections.OrderedDict(x=1),
    }
    content = pickle.dumps(value, protocol=protocol)
    if protocol < 4:
        content = content.replace(b"cnumpy._core", b"c" + core)
    read = _load(tmp_path, content)
    assert list(read) == list(value)
    for ours, theirs in zip(read["a"], value["a"], strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert read[7] == value[7]
    assert list(read["k", 1]) == ["joy", "sad"]
    np.testing.assert_array_equal(read["big endian"], [0, 1, 2])
    assert read["empty"].shape == (0, 4)
    assert read["ragged"] == [[1], [1, 2]]
    assert read["ordered"] == {"x": 1}


def test_files_of_python_2_are_read_as_latin1(tmp_path):
    # Python 2 wrote array buffers as str: the construction, then the state (1, (2,), dtype, False, buffer).
    raw = np.array([1.5, -2.0], dtype="<f4").tobytes()
    content = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U" + bytes([len(raw)]) + raw + b"tb."
    )
    np.testing.assert_array_equal(_load(tmp_path, content), np.array([1.5, -2.0], np.float32))


@settings(max_examples=40, deadline=None)
@given(value=hnp.arrays(st.sampled_from([np.float32, np.float64, np.int64, np.uint8]), hnp.array_shapes(max_dims=3)))
def test_any_array_survives_unchanged(tmp_path_factory, value):
    read = _load(tmp_path_factory.mktemp("p"), pickle.dumps(value))
    assert read.dtype == value.dtype
    np.testing.assert_array_equal(read, value)


def test_one_array_used_twice_is_read_twice(tmp_path):
    array = np.arange(3.0)
    first, second = _load(tmp_path, pickle.dumps([array, array]))
    np.testing.assert_array_equal(first, array)
    np.testing.assert_array_equal(second, array)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_may_stay_in_their_file_until_they_are_read(tmp_path, protocol):
    value = {"a": [np.arange(400, dtype=np.float32), np.asfortranarray(np.eye(30))], "n": 3, "same": np.arange(3.0)}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value | {"again": value["same"]}, protocol=protocol))
    read = load_pickle(tmp_path / "x.pkl", lazy=True)
    assert any(isinstance(a, Stored) for a in read["a"]) == (protocol in (2, 3, 4))
    assert read["n"] == 3
    for ours, theirs in zip(
        [*read["a"], read["same"], read["again"]], [*value["a"], *[value["same"]] * 2], strict=True
    ):
        assert (len(ours), ours.shape, ours.ndim, ours.dtype) == (len(theirs), theirs.shape, theirs.ndim, theirs.dtype)
        np.testing.assert_array_equal(np.asarray(ours), theirs)


def test_damage_in_an_array_that_stays_in_its_file_is_named_when_it_is_read(tmp_path):
    content = pickle.dumps(np.full(50, -1, np.int8), protocol=2)
    (tmp_path / "x.pkl").write_bytes(content.replace(b"\xc3\xbf", b"\xc3\xc3", 1))
    read = load_pickle(tmp_path / "x.pkl", lazy=True)
    with pytest.raises(InputError, match="is not a readable pickle"):
        np.asarray(read)
    _refused(tmp_path, content.replace(b"\xc3\xbf", b"\xc3\xc3", 1))
    _refused(tmp_path, content.replace(b"K\x32\x85", b"K\x33\x85", 1))


def test_what_stands_around_an_array_can_be_asked_for_again(tmp_path):
    raw = np.arange(40, dtype="<i4").tobytes()
    # Array 1 keeps its content at 5, the state around it at 6; both are asked for behind it.
    content = (
        b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
        b"(K\x01K\x28\x85cnumpy\ndtype\nX\x02\x00\x00\x00i4K\x00K\x01\x87R(K\x03X\x01\x00\x00\x00<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89C" + bytes([len(raw)]) + raw + b"q\x05tq\x06bh\x05h\x06\x87."
    )
    array, kept, state = _load(tmp_path, content)
    np.testing.assert_array_equal(array, np.arange(40))
    assert kept == raw
    assert (state[0], state[1], state[3], state[4]) == (1, (40,), False, raw)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (_Calls(os.system, "touch owned"), "posix.system"),
        (_Calls(eval, "1+1"), "builtins.eval"),
        (_Calls(getattr, "x", "upper"), "builtins.getattr"),
        (_Calls(np.load, "x.npy"), "numpy.load"),
        (_Calls(np.fromfile, "x"), "numpy.fromfile"),
        (_Calls(np.memmap, "x"), "numpy.memmap"),
    ],
)
def test_a_pickle_that_calls_something_is_refused_by_name_and_nothing_runs(tmp_path, monkeypatch, call, name):
    monkeypatch.chdir(tmp_path)
    for protocol in range(6):
        message = _refused(tmp_path, pickle.dumps({"features": call}, protocol=protocol))
        assert name in message or name.replace("builtins", "__builtin__") in message
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncos\nsystem\nK\x00\x85U\x01b\x87R.",
        b"\x80\x02(S'touch owned'\nios\nsystem\n.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
        b"\x80\x02cnumpy\nndarray\n)R.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",
        b"\x80\x02]}X\x01\x00\x00\x00ak\x00sb.",
        b"\x80\x02Pid\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",
        b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    ],
    ids=["subclass", "inst", "codec", "type-call", "newobj", "build", "persistent", "stack-global", "bytes-bomb"],
)
def test_gadgets_that_look_like_numpy_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    _refused(tmp_path, content)
    assert not (tmp_path / "owned").exists()


def test_claimed_sizes_take_no_memory(tmp_path):
    huge = struct.pack("<Q", 1 << 60)
    for content in (
        b"\x80\x04\x8e" + huge + b"x.",
        b"\x80\x05\x96" + huge + b"x.",
        b"\x80\x04\x8d" + huge + b"x.",
        b"\x80\x02Nr\xff\xff\xff\xff0h\x01.",
    ):
        _refused(tmp_path, content)
    shape = pickle.dumps(np.zeros(2, np.uint8), 2).replace(b"K\x02\x85", b"J\xff\xff\xff\x7f\x85")
    assert "2147483647" in _refused(tmp_path, shape)


def test_deep_nesting_neither_crashes_nor_passes_as_a_key(tmp_path):
    depth = 200_000
    assert "tuple as a key" in _refused(tmp_path, b"\x80\x02})" + b"\x85" * depth + b"Ns.")
    nested = _load(tmp_path, b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".")
    while nested:  # taken apart by hand, as freeing it at once would recurse
        nested = nested.pop()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_named(tmp_path, share):
    content = pickle.dumps({"a": [np.arange(50.0) for _ in range(5)]}, protocol=2)
    assert "truncated or damaged" in _refused(tmp_path, content[: int(len(content) * share)])


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_pickle(tmp_path / "absent.pkl")


ADDRESS = re.compile(" at 0x.*")


class _OneByOne(DataUnpickler):
    """Takes the opcodes of arrays one by one, also where arrays are written alike."""

    def _array(self, function, at):
        return 0


ARRAYS = [*(np.arange(n, n + 4, dtype=np.float32) for n in range(40)), np.eye(3), *map(np.arange, (300, 6))]
PICKLES = [pickle.dumps({"a": ARRAYS, "b": {"x": 1.0, "same": ARRAYS[0]}}, protocol) for protocol in (2, 3, 4)]
# As Python 2 wrote them: the letter at the first array, and contents as strings.
PICKLES.append(
    b"\x80\x02](cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R"
    b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87Rq\x03(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    b"\x89U\x08"
    + bytes(8)
    + b"tb".join(
        b"h\x01h\x02K\x00\x85q%cU\x01b\x87Rq%c(K\x01K\x02\x85h\x03\x89U\x08%btbq%c" % (n, n + 1, bytes([n] * 8), n + 2)
        for n in range(10, 40, 3)
    )
    + b"h\x0ah\x0eh\x0fe."
)


def _outcome(kind, content, lazy):
    """What came of a pickle: the value or the refusal, everything in the memo, and what is left of the budget."""
    budget = Budget("x.pkl", len(content))
    machine = kind(content, budget, builders(budget), lazy=lazy)
    try:
        found = [machine.read_value(), len(machine.memo), *(machine.memo.get(i) for i in range(256))]
        return [_plain(done(v)) for v in found], budget.bytes, budget.objects, machine.shared
    except Exception as error:
        return type(error), ADDRESS.sub("", str(error)), budget.bytes


def _plain(value):
    if isinstance(value, (np.ndarray, Stored)):
        try:
            array = np.asarray(value)
        except InputError as error:
            return str(error)
        return array.dtype.str, array.shape, array.tobytes()
    if isinstance(value, dict):
        return [(k, _plain(v)) for k, v in value.items()]
    if isinstance(value, tuple) and value and isinstance(value[0], Later):
        return _plain(value[0].value(value[1]))
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [_plain(v) for v in value]
    return value.name if isinstance(value, Name) else ADDRESS.sub("", repr(value))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_flipped_bytes_give_a_value_or_a_sentence_and_arrays_in_one_step_the_same(data):
    content = bytearray(data.draw(st.sampled_from(PICKLES)))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    lazy = data.draw(st.booleans())
    found, expected = (_outcome(kind, bytes(content), lazy) for kind in (DataUnpickler, _OneByOne))
    assert found == expected
    assert isinstance(found[0], list) or issubclass(found[0], (InputError, Refused, *DAMAGE))


def test_a_memo_looks_at_a_row_once_however_often_a_place_is_put_again():
    """A quadratic memo would take minutes."""
    memo, count = Memo(lambda kind, begin, kept: (kept,)), 60_000
    for place in range(count):
        memo.put_row(place, 1, "row", place, -place)
    for place in range(0, count, 2):
        memo[place] = place
    assert len(memo) == count
    assert [memo[place] for place in range(count)] == [-p if p % 2 else p for p in range(count)]
