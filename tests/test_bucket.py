"""A bucket is a value: frozen, ordered, usable as a key, and a plain object in JSON."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from mer_export.bucket import Bucket, bucket_for

lengths = st.integers(1, 9)
buckets = st.builds(lambda text, audio: Bucket(text_len=text, audio_len=audio), lengths, lengths)


class Held(BaseModel):
    lengths: Bucket
    chosen: Bucket | None = None


def test_its_name_goes_into_file_names() -> None:
    assert Bucket(utterances=32).name == "utterances32"
    assert Bucket({"text_len": 50, "audio_len": 9}).name == "text50-audio9"
    assert Bucket().name == "fixed"


def test_it_reads_like_a_mapping_and_cannot_be_written() -> None:
    bucket = Bucket(text_len=5, audio_len=7)
    assert (bucket["audio_len"], list(bucket), dict(bucket)) == (7, ["text_len", "audio_len"], dict(bucket.items()))
    assert bucket == {"audio_len": 7, "text_len": 5}
    assert bucket != Bucket(text_len=5)
    with pytest.raises(TypeError):
        bucket["text_len"] = 6  # type: ignore[index]
    given = {"text_len": 5}
    made = Bucket(given)
    given["text_len"] = 6
    assert made["text_len"] == 5


@given(buckets, buckets)
def test_equal_buckets_are_one_key(a: Bucket, b: Bucket) -> None:
    assert (a == b) == (dict(a) == dict(b)) == (len({a: 0, b: 0}) == 1)
    assert hash(a) == hash(Bucket(dict(reversed([*a.items()]))))


@given(st.lists(buckets, min_size=1))
def test_a_bucket_that_holds_another_never_comes_before_it(drawn: list[Bucket]) -> None:
    ordered = sorted(drawn)
    for place, later in enumerate(ordered):
        assert not any(before.holds(later) and before != later for before in ordered[:place])
    assert all((a < b) + (a == b) + (a > b) == 1 for a in drawn for b in drawn)


@given(buckets, st.lists(buckets))
def test_an_item_goes_to_the_bucket_of_least_volume_that_holds_it(item: Bucket, drawn: list[Bucket]) -> None:
    found = bucket_for(item, drawn)
    fitting = [b for b in drawn if all(n <= b[d] for d, n in item.items())]
    assert (found is None) == (not fitting)
    if found is not None:
        assert found.holds(item)
        assert found["text_len"] * found["audio_len"] == min(b["text_len"] * b["audio_len"] for b in fitting)


def test_what_holds_an_item_must_know_all_of_its_dims() -> None:
    assert Bucket().holds({})
    assert Bucket(text_len=3).holds({"text_len": 0})
    with pytest.raises(KeyError):
        Bucket(text_len=3).holds({"steps": 1})


@given(buckets)
def test_json_holds_a_plain_object_and_gives_the_bucket_back(bucket: Bucket) -> None:
    held = Held(lengths=bucket)
    assert held.model_dump() == {"lengths": dict(bucket), "chosen": None}
    assert type(held.model_dump()["lengths"]) is dict
    assert Held.model_validate_json(held.model_dump_json()) == held
    assert Held.model_validate({"lengths": dict(bucket)}).lengths == bucket


@pytest.mark.parametrize("wrong", [{"utterances": 0}, {"utterances": "x"}, {"utterances": 1.5}, 8, ["utterances"]])
def test_json_that_is_not_a_bucket_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError):
        Held.model_validate({"lengths": wrong})


def test_it_is_a_key_in_another_process_too() -> None:
    """Strings hash differently there."""
    bucket = Bucket(text_len=5, audio_len=7)
    assert copy.deepcopy(bucket) == bucket
    code = (
        "import pickle, sys; from mer_export.bucket import Bucket; "
        "assert pickle.loads(bytes.fromhex(sys.argv[1])) in {Bucket(text_len=5, audio_len=7)}"
    )
    subprocess.run([sys.executable, "-c", code, pickle.dumps(bucket).hex()], check=True)
