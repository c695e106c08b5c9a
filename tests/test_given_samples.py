"""What a caller may give to a predictor, and what is refused in one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_emt
from small_bundle import make_bundle, make_samples

from mer_export.bundle import Bundle
from mer_export.data.given import checked
from mer_export.data.samples import Sample
from mer_export.errors import InputError
from runtimes.predict.predictor import Predictor


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("given") / "bundle")


def one() -> Sample:
    """A dialogue of three utterances."""
    return make_samples(3)[2]


def as_lists(sample: Sample) -> dict[str, Any]:
    return {n: np.asarray(a).tolist() for n, a in sample.inputs.items()}


def fit_one(given: Any, bundle: Bundle) -> Sample:
    return next(checked([given], bundle.manifest.contract))


def test_a_dict_of_lists_is_answered_as_the_sample_is(bundle: Bundle) -> None:
    sample = one()
    with Predictor(bundle, "torch") as running:
        expected = list(running.predict([sample]))
        named = list(running.predict([{"id": sample.id, "units": sample.units, **as_lists(sample)}]))
        unnamed = list(running.predict([as_lists(sample) | {"units": None}, dict(sample.inputs)]))
        lists = list(running.predict([replace(sample, inputs=as_lists(sample))]))
    assert named == lists == expected
    assert [p.unit for p in unnamed] == ["0/0", "0/1", "0/2", "1/0", "1/1", "1/2"]
    assert [p.probabilities for p in unnamed] == [p.probabilities for p in expected] * 2


def test_one_utterance_may_come_as_vectors(bundle: Bundle) -> None:
    sample = make_samples(1)[0]
    vectors = {"text": sample.inputs["text"][:, 0], "audio": sample.inputs["audio"][0], "speaker": 2}
    found = fit_one(vectors, bundle)
    assert {n: a.shape for n, a in found.inputs.items()} == {"text": (2, 1, 16), "audio": (1, 8), "speaker": (1,)}
    assert found.units == ("0/0",)


def test_one_step_may_come_as_a_vector(tmp_path: Path) -> None:
    contract = small_emt.make_emt(tmp_path / "emt", "emt").manifest.contract
    width = {s.name: s.dims[-1] for s in contract.features}["audio"]
    (found,) = checked([{"audio": [0.5] * int(width)}], contract)
    assert found.inputs["audio"].shape == (1, width)
    assert found.units == ("0",)


def test_a_missing_modality_may_be_none(bundle: Bundle) -> None:
    found = fit_one(as_lists(one()) | {"vision": None}, bundle)
    assert found.modalities(bundle.manifest.contract) == ("text", "audio")


def test_a_null_id_is_none(bundle: Bundle) -> None:
    assert fit_one(as_lists(one()) | {"id": None}, bundle).id == "0"


def test_inputs_that_other_models_take_may_come_with_a_sample(bundle: Bundle) -> None:
    sample = one()
    fit_one(replace(sample, inputs={**sample.inputs, "input_ids": np.zeros(3, np.int64)}), bundle)


@pytest.mark.parametrize("form", ["sample", "dict"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audoi": [[1.0] * 8]}, "no input 'audoi', its inputs are .*'audio'"),
        ({"lengths": [3]}, "no input 'lengths'"),
        ({"speaker": None}, "speaker is missing"),
        ({"speaker": [0.0, 1.0, 2.0]}, "speaker holds float64, the model takes int64"),
        ({"speaker": ["Ann", "Bob", "Ann"]}, "speaker holds <U3, the model takes int64"),
        ({"audio": [[1.0], [1.0, 2.0], [0.0]]}, "audio is not an array: its lists differ in length"),
        ({"audio": [["a"] * 8] * 3}, "audio holds <U1, the model takes float32"),
        ({"audio": [[1.0] * 7] * 3}, "audio is 7 wide, the model was made for 8"),
        ({"audio": [1.0] * 7}, "audio has shape .7,., expected dims"),
        ({"text": [[1.0] * 16] * 3}, "text has shape .3, 16., expected dims"),
        ({"audio": {"x": 1}}, "audio holds object"),
        ({"audio": [[1.0] * 8] * 2}, "utterances, other inputs have"),
        ({"speaker": [0, 1, 9]}, "speaker goes from 0 to 9"),
    ],
)
def test_what_does_not_fit_the_contract_is_named(bundle: Bundle, form: str, change: Any, message: str) -> None:
    sample = one()
    inputs = {n: v for n, v in (as_lists(sample) | change).items() if v is not None}
    given = inputs if form == "dict" else replace(sample, inputs=inputs)
    with Predictor(bundle, "torch") as running, pytest.raises(InputError, match=message) as caught:
        list(running.predict([given]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (one(), "samples are a Sample, expected a list"),
        ({"audio": [1.0] * 8}, "samples are a dict, expected a list"),
        (["d1"], "sample 0 is a str"),
        ([[1.0, 2.0]], "sample 0 is a list"),
        ([replace(one(), units=("a",))], "has 1 units, its inputs are 3"),
        ([{**as_lists(one()), "units": 3}], "0: units are a int, expected a list of ids"),
        ([{**as_lists(one()), "units": "abc"}], "0: units are a str, expected a list of ids"),
    ],
)
def test_what_is_not_a_list_of_samples_is_named(bundle: Bundle, given: Any, message: str) -> None:
    with Predictor(bundle, "torch") as running, pytest.raises(InputError, match=message):
        list(running.predict(given))


def test_the_snippet_of_the_documentation_runs(
    exported: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    snippet = page.split("## From Python")[1].split("```python")[1].split("```")[0]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(exported.root)
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    said = capsys.readouterr().out
    assert "('speaker', 'int64', ('batch', 'utterances'))" in said
    assert [line.split()[0] for line in said.splitlines()[1:]] == ["c17/0", "c17/1", "c17/2"]


def test_arrays_that_fit_are_passed_on_without_a_copy(bundle: Bundle) -> None:
    sample = one()
    assert fit_one(sample, bundle) is sample
