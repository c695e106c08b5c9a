"""Claims about live dialogues: each answer is that of the whole dialogue, and no dialogue hears another one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_live import MAKERS, Case, every

from mer_export.bundle import FeatureStatistics
from mer_export.data.bundle_data import line_spec
from mer_export.data.feature_check import FeatureCheck
from mer_export.data.formats.jsonl.reader import DialogueReader
from mer_export.data.labels import LabelReader
from mer_export.data.shapes.shape import find_shape
from mer_export.errors import InputError, UsageError
from runtimes.backends.session import SessionOptions
from runtimes.predict.predictor import Predictor

WITHIN = 1e-5
Answers = dict[str, tuple[float, ...]]


class Spoken(Case):
    """A case with a predictor."""

    predictor: Predictor

    def whole(self, name: str, lines: list[dict[str, Any]]) -> Answers:
        """The answers to a dialogue that is sent whole."""
        spec = line_spec(self.bundle)
        dialogue = DialogueReader(spec, None).dialogue({"dialogue": name, "utterances": lines}, "test")
        labels = LabelReader("test", self.predictor.task.labels)
        return numbers_of(self.predictor.predict(find_shape(spec.shape)(dialogue, spec, labels)))


def numbers_of(predictions: Any) -> Answers:
    return {p.unit: p.numbers for p in predictions}


def assert_same(found: Answers, wanted: Answers) -> None:
    assert found.keys() == wanted.keys()
    for unit, numbers in wanted.items():
        assert numbers
        np.testing.assert_allclose(found[unit], numbers, rtol=0, atol=WITHIN, err_msg=unit)


@pytest.fixture(scope="module", params=MAKERS)
def spoken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoken]:
    case = Spoken(*MAKERS[request.param](tmp_path_factory.mktemp(request.param) / "bundle"))
    with Predictor(case.bundle, "torch", SessionOptions(threads=1), batch=8) as predictor:
        case.predictor = predictor
        yield case


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoken]:
    """cmerc, which reads whole dialogues."""
    case = Spoken(*MAKERS["cmerc"](tmp_path_factory.mktemp("graph") / "bundle"))
    with Predictor(case.bundle, "torch", SessionOptions(threads=1)) as predictor:
        case.predictor = predictor
        yield case


MOVES = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["say", "say", "say", "late", "correct"]), st.integers(0, 99)),
    min_size=2,
    max_size=7,
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(moves=MOVES, seed=st.integers(0, 999))
def test_interleaved_dialogues_are_answered_as_if_each_were_sent_whole(
    spoken: Spoken, moves: list[tuple[str, str, int]], seed: int
) -> None:
    draw = np.random.default_rng(seed)
    live = {name: spoken.predictor.dialogue(name) for name in "ab"}
    lines: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
    known: dict[str, Answers] = {"a": {}, "b": {}}
    for number, (name, move, place) in enumerate(moves):
        own, said = lines[name], spoken.draw(draw) | {"id": f"u{number}"}
        place = place % len(own) if own else 0
        if move == "correct" and own:
            own[place] = said | {"id": own[place]["id"]}
            answer = live[name].correct(own[place]["id"], said)
        elif move == "late" and own:
            answer = live[name].say(said, before=own[place]["id"])
            own.insert(place, said)
        else:
            own.append(said)
            answer = live[name].say(said)
        known[name] |= numbers_of(every(answer))
        assert_same(known[name], spoken.whole(name, own))
    assert [u["id"] for u in lines["a"]] == list(live["a"].units)


def test_a_window_answers_as_if_the_dialogue_began_with_it(spoken: Spoken) -> None:
    draw = np.random.default_rng(5)
    lines = [spoken.draw(draw) | {"id": f"u{i}", "speaker": i % 2} for i in range(7)]
    live = spoken.predictor.dialogue("long", window=3)
    for number, line in enumerate(lines):
        answer = live.say(line)
        wanted = spoken.whole("long", lines[max(0, number - 2) : number + 1])
        found = numbers_of(every(answer))
        assert_same(found, {unit: wanted[unit] for unit in found})
    assert live.units == ("u4", "u5", "u6")
    with pytest.raises(InputError, match="has left the window"):
        live.correct("u3", lines[3])


def test_who_spoke_first_stays_the_first_speaker_when_the_window_moves_on(graph: Spoken) -> None:
    draw = np.random.default_rng(1)
    lines = [graph.draw(draw) | {"id": f"u{i}", "speaker": who} for i, who in enumerate(["Ann", "Bob", "Bob", "Ann"])]
    live = graph.predictor.dialogue("long", window=2)
    answers = [live.say(line) for line in lines]
    numbered = [line | {"speaker": int(line["speaker"] == "Bob")} for line in lines[2:]]
    assert_same(numbers_of(every(answers[-1])), graph.whole("long", numbered))


def test_as_many_earlier_answers_are_revised_as_are_asked_for(graph: Spoken) -> None:
    draw = np.random.default_rng(2)
    lines = [graph.draw(draw) for _ in range(4)]
    for revise, units in ((None, ["d/0", "d/1", "d/2"]), (2, ["d/1", "d/2"]), (0, [])):
        live = graph.predictor.dialogue("d", revise=revise)
        answers = [live.say(line) for line in lines]
        assert answers[-1].prediction.unit == "d/3"
        assert [p.unit for p in answers[-1].revised] == units


def test_what_cannot_be_answered_changes_nothing(graph: Spoken) -> None:
    draw = np.random.default_rng(3)
    first, second = graph.draw(draw), graph.draw(draw)
    with graph.predictor.dialogue("d") as live:
        live.say(first)
        for broken in ({"text": [0.1]}, second | {"audio": [float("nan")] * 8}, second | {"recording": "x.wav"}):
            with pytest.raises(InputError):
                live.say(broken)
        with pytest.raises(InputError, match="correct it, or give another id"):
            live.say(second | {"id": "d/0"})
        assert live.units == ("d/0",)
        assert_same(numbers_of(every(live.say(second))), graph.whole("d", [first, second]))
    assert live.units == ()


def test_features_are_judged_by_each_utterance_once(graph: Spoken) -> None:
    known = FeatureStatistics(width=8, mean=0.0, std=1.0, minimum=-9.0, maximum=9.0)
    draw = np.random.default_rng(6)
    with Predictor(graph.bundle, "torch", SessionOptions(threads=1)) as predictor:
        predictor.features = FeatureCheck({"audio": known})
        live = predictor.dialogue("d")
        for _ in range(5):
            live.say(graph.draw(draw))
        assert predictor.features.seen()["audio"]["units"] == 5


def test_a_label_beside_an_utterance_is_not_read(graph: Spoken) -> None:
    line = graph.draw(np.random.default_rng(4))
    plain, labelled = (graph.predictor.dialogue("d").say(x) for x in (line, line | {"label": "no class of ours"}))
    assert plain == labelled


@pytest.mark.parametrize("wrong", [{"window": 0}, {"revise": -1}])
def test_a_window_and_revisions_are_counts(graph: Spoken, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="must be"):
        graph.predictor.dialogue("d", **wrong)
