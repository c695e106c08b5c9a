"""The contract names every tensor once, and collate obeys it."""

import mtee_bundles
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_export import registry
from mer_export.bucket import Bucket, bucket_for
from mer_export.contract import Contract
from mer_export.data.collate import collate
from mer_export.data.samples import Sample
from mer_export.errors import InputError, UsageError

CONFIG = {"text_dim": 6, "audio_dim": 5, "vision_dim": 4, "width": 8, "hidden": 8, "buckets": [4, 8]}


@pytest.fixture(scope="module")
def contract() -> Contract:
    system = registry.get("cmerc")
    return system.contract(system.parse(CONFIG))


def dialogue(n: int, name: str = "d", **replace: np.ndarray) -> Sample:
    rng = np.random.default_rng(n)
    inputs = {
        "text": rng.normal(size=(4, n, 6)).astype("f4"),
        "audio": rng.normal(size=(n, 5)).astype("f4"),
        "vision": rng.normal(size=(n, 4)).astype("f4"),
        "speaker": rng.integers(0, 2, n),
    }
    return Sample(name, inputs | replace, tuple(f"{name}/{i}" for i in range(n)))


@given(st.lists(st.integers(1, 8), min_size=1, max_size=5))
def test_collate_keeps_every_value_and_pads_with_zeros(contract: Contract, sizes: list[int]) -> None:
    samples = [dialogue(n) for n in sizes]
    arrays = collate(samples, contract, {"utterances": 8})
    contract.check(arrays)
    assert arrays["lengths"].tolist() == sizes
    for row, (sample, n) in enumerate(zip(samples, sizes, strict=True)):
        assert np.array_equal(arrays["text"][row, :, :n], sample.inputs["text"])
        assert not arrays["text"][row, :, n:].any()
        assert not arrays["speaker"][row, n:].any()


def test_a_missing_modality_is_zeros_and_is_named(contract: Contract) -> None:
    whole = dialogue(3)
    sample = Sample("d", {k: v for k, v in whole.inputs.items() if k != "audio"}, whole.units)
    assert sample.modalities(contract) == ("text", "vision")
    assert not collate([sample], contract)["audio"].any()


def test_a_fixed_batch_is_filled_with_empty_items(contract: Contract) -> None:
    arrays = collate([dialogue(2)], contract, {"utterances": 4}, batch=3)
    assert arrays["lengths"].tolist() == [2, 0, 0]
    assert arrays["audio"].shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        (dialogue(9), "9 utterances are more than the fixed 8"),
        (dialogue(0), "has no utterances: remove the empty item"),
        (dialogue(2, audio=np.zeros((2, 7), "f4")), "audio is 7 wide, the model was made for 5"),
        (dialogue(2, audio=np.full((2, 5), np.nan, "f4")), r"audio holds nan at \(0, 0\)"),
        (dialogue(2, vision=np.full((2, 4), np.inf, "f4")), "vision holds inf"),
        (dialogue(2, audio=np.full((2, 5), 1e39)), r"audio holds 1e\+39 at \(0, 0\)"),
        (dialogue(2, speaker=np.array([0, 0.5])), "speaker holds 0.5, the model reads integers there"),
        (dialogue(2, speaker=np.array([0, 2**63 + 1], np.uint64)), "speaker goes from 0 to 9223372036854775809"),
        (dialogue(2, speaker=np.array([0, 2])), "speaker goes from 0 to 2, the model knows 0..1"),
        (dialogue(2, audio=np.zeros((3, 5), "f4")), "audio has 3 utterances, other inputs have 2"),
        (dialogue(2, audio=np.zeros(5, "f4")), "audio has shape"),
        (Sample("d", {}, ()), "at least one modality is needed"),
    ],
)
def test_a_bad_sample_gives_one_sentence_that_names_it(contract: Contract, sample: Sample, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        collate([sample], contract, {"utterances": 8})
    assert str(caught.value).startswith("d:")
    assert "\n" not in str(caught.value)


def test_check_refuses_wrong_names_dtypes_and_shapes(contract: Contract) -> None:
    arrays = collate([dialogue(2)], contract)
    with pytest.raises(InputError, match="the contract asks for"):
        contract.check({k: v for k, v in arrays.items() if k != "text"})
    with pytest.raises(InputError, match="audio is float64"):
        contract.check(arrays | {"audio": arrays["audio"].astype("f8")})
    with pytest.raises(InputError, match="utterances must be 2, not 3"):
        contract.check(arrays | {"audio": np.zeros((1, 3, 5), "f4")})


def test_the_smallest_fitting_bucket_is_chosen(contract: Contract) -> None:
    assert bucket_for({"utterances": 4}, contract.buckets) == Bucket(utterances=4)
    assert bucket_for({"utterances": 5}, contract.buckets) == Bucket(utterances=8)
    assert bucket_for({"utterances": 9}, contract.buckets) is None


def test_seq_len_is_read_and_checked(contract: Contract) -> None:
    assert contract.parse_bucket("utterances=12") == Bucket(utterances=12)
    for wrong in ("words=3", "utterances=0", "utterances=x", "utterances=5000"):
        with pytest.raises(UsageError, match="--seq-len"):
            contract.parse_bucket(wrong)


@pytest.mark.parametrize(
    ("network", "text", "said"),
    [
        ("mult", "text=6,audio=4,vision=7", "audio_len must be 5..[0-9]+, not 4"),
        ("eea", "steps=6,emotions=2", "emotions must be 3..1024, not 2"),
    ],
)
def test_a_bucket_holds_what_the_network_needs(network: str, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        mtee_bundles.contract_of(mtee_bundles.config_of(network)).parse_bucket(text)


def test_a_wrong_config_names_the_field_and_the_value() -> None:
    system = registry.get("cmerc")
    with pytest.raises(UsageError, match=r"dropout: .*got 1.5"):
        system.parse({"dropout": 1.5})
    with pytest.raises(UsageError, match="widht"):
        system.parse({"widht": 3})
    with pytest.raises(UsageError, match="no system 'bert'"):
        registry.get("bert")
