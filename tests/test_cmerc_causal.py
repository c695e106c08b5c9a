"""Claims about cmerc with `causal: true`: no utterance hears what comes after it, in PyTorch and in exports."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_bundle
import torch
from onnx import helper, numpy_helper
from pydantic import ValidationError
from small_bundle import CONFIG, make_samples, randomise
from small_live import cmerc, every

from mer_export import registry
from mer_export.bundle import Bundle
from mer_export.data.collate import collate
from mer_export.data.samples import Sample
from mer_export.errors import UnsupportedError
from mer_export.exporters import export_variant
from mer_export.models.cmerc.weights import WEIGHT_MAP
from mer_export.weights import bundle_model
from runtimes.backends.session import SessionOptions
from runtimes.backends.way import find_ways
from runtimes.parity.run import run_parity
from runtimes.predict.live import Heard, Hearing, Turn
from runtimes.predict.predictor import Predictor

ONE = SessionOptions(threads=1)
SYSTEM = registry.get("cmerc")


@pytest.fixture(scope="module", params=["gru", "lstm"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A causal network exported in stages, with LSTMs one with whatever it may have."""
    lstm = {"encode_audio_vision": True, "residue": True, "modal_embedding": True, "hypergraph_layers": 1}
    changes = {"causal": True, "base_model": request.param} | (lstm if request.param == "lstm" else {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_bundle, "CONFIG", CONFIG | changes)
        made = small_bundle.make_bundle(tmp_path_factory.mktemp("causal") / "bundle")
    randomise(made)
    export_variant(made, "onnx", made.manifest.contract.buckets[-1], example=make_samples(8), stages=True)
    return made


def first(sample: Sample, count: int) -> Sample:
    """The first utterances of a dialogue."""
    inputs = {n: a[:, :count] if n == "text" else a[:count] for n, a in sample.inputs.items()}
    return Sample(sample.id, inputs, sample.units[:count])


def test_what_comes_after_an_utterance_changes_nothing(bundle: Bundle) -> None:
    whole = make_samples(8)[-1]
    assert len(whole.units) == 8
    with Predictor(bundle, "torch", ONE, batch=4) as predictor:
        (wanted,) = predictor.scores([whole])
        for count, found in enumerate(predictor.scores([first(whole, n) for n in range(1, 9)]), start=1):
            np.testing.assert_allclose(found, wanted[:count], rtol=0, atol=1e-5)


@pytest.mark.parametrize("context", ["full", "intra", "inter"])
def test_no_gradient_leads_to_what_comes_after(bundle: Bundle, context: str) -> None:
    model = bundle_model(bundle)
    arrays = {n: torch.as_tensor(a) for n, a in collate(make_samples(8)[-1:], bundle.manifest.contract).items()}
    arrays["text"].requires_grad_()
    model.features(**arrays, context=context)[0, 3].sum().backward()
    reached = arrays["text"].grad.abs().sum((0, 1, 3)) > 0
    assert reached.tolist() == [True] * 4 + [False] * 4


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_exports_give_pytorchs_answers(bundle: Bundle, backend: str) -> None:
    samples = make_samples(8)
    with Predictor(bundle, "torch", ONE) as whole, Predictor(bundle, backend, ONE, batch=3) as predictor:
        wanted = np.concatenate(whole.scores(samples))
        np.testing.assert_allclose(np.concatenate(predictor.scores(samples)), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_step_after_what_is_kept_gives_the_answers_of_the_whole_dialogue(
    bundle: Bundle, tmp_path: Path, backend: str
) -> None:
    draw = np.random.default_rng(0)
    case = cmerc(tmp_path / "other")
    said = {name: [case.draw(draw) | {"speaker": i % 3} for i in range(7)] for name in "ab"}
    with Predictor(bundle, "torch", ONE) as whole, Predictor(bundle, backend, ONE, batch=4) as predictor:
        hearing = Hearing(bundle, predictor.task.labels)
        heard = {name: Heard(name) for name in said}

        def check(turns: list[Turn]) -> None:
            for turn, found in zip(turns, predictor.answer_together(turns), strict=True):
                wanted = whole.answer(turn)
                for one, other in zip(every(found), every(wanted), strict=True):
                    assert one.unit == other.unit
                    np.testing.assert_allclose(one.numbers, other.numbers, rtol=0, atol=1e-5, err_msg=one.unit)
                heard[turn.after.id] = turn.after

        def rows() -> dict[str, int]:
            session = predictor.session(bundle.manifest.contract.buckets[-1])
            return {name: spent["rows"] for name, spent in session.info["stages"].items()}

        for both in zip(*said.values(), strict=True):
            check([hearing.say(heard[name], line) for name, line in zip(said, both, strict=True)])
        assert rows() == {"whole": 0, "step": 14}
        # From what was said otherwise on nothing is known; what is known already is not computed.
        check([hearing.correct(heard["a"], "a/3", said["b"][0])])
        check([hearing.correct(heard["a"], "a/3", said["a"][3])])
        assert rows() == {"whole": 1, "step": 14}
        check([hearing.correct(heard["b"], "b/6", said["a"][0]), hearing.say(heard["a"], said["b"][1])])
        assert rows() == {"whole": 1, "step": 16}


def deaf(bundle: Bundle, root: Path) -> Bundle:
    """A copy whose stage that goes on hears nothing of one of the outputs ahead."""
    copy = Bundle.open(shutil.copytree(bundle.root, root))
    (name,) = (m for v in copy.manifest.variants for m in v.models if "/step/" in m)
    model = onnx.load(copy.path(name))
    graph, past = model.graph, next(i.name for i in model.graph.input if i.name.startswith("past_"))
    for node in graph.node:
        node.input[:] = ["nothing" if i == past else i for i in node.input]
    graph.node.insert(0, helper.make_node("Mul", [past, "zero"], ["nothing"]))
    graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    with copy.commit() as change:
        change.write(name, model.SerializeToString())
    return copy


def test_parity_judges_the_stage_that_goes_on(bundle: Bundle, tmp_path: Path) -> None:
    """Whole dialogues never come to it."""
    samples = make_samples(8)[4:7]
    for one, moved in ((bundle, []), (deaf(bundle, tmp_path / "deaf"), ["one step after another"])):
        (way,) = (w for w in find_ways(one, 1, "onnxruntime") if w.options.reuse and not w.why_not)
        (candidate,) = run_parity(one, samples, candidates=[way]).candidates
        assert [i.name for i in candidate.invariances if i.used > 1] == moved
        assert candidate.verdict == ("fail" if moved else "pass"), candidate.reasons


def test_what_is_not_causal_has_no_stages() -> None:
    with pytest.raises(UnsupportedError, match="has no stages"):
        SYSTEM.stages_of(SYSTEM.config.model_validate(CONFIG))


def test_a_live_dialogue_revises_nothing_but_what_comes_after_a_correction(bundle: Bundle, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    case = cmerc(tmp_path / "other")
    said = [case.draw(draw) | {"speaker": i % 3} for i in range(4)]
    with Predictor(bundle, "torch", ONE) as predictor:
        live = predictor.dialogue("d")
        answers = [live.say(utterance) for utterance in said]
        assert [a.revised for a in answers] == [()] * 4
        corrected = live.correct("d/2", said[0])
        assert [p.unit for p in corrected.revised] == ["d/3"]
        again = live.correct("d/2", said[2])
        for found, before in zip((again.prediction, again.revised[0]), answers[2:], strict=True):
            np.testing.assert_allclose(found.numbers, before.prediction.numbers, rtol=0, atol=1e-5)


def test_what_reads_both_ways_is_refused() -> None:
    for values in ({"base_model": "transformer"}, {"norm": "LN2"}):
        with pytest.raises(ValidationError, match="causal"):
            SYSTEM.config.model_validate(CONFIG | values | {"causal": True})
    config = SYSTEM.config.model_validate(CONFIG | {"causal": True})
    with pytest.raises(UnsupportedError, match="both ways"):
        WEIGHT_MAP.renames(config)
