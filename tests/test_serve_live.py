"""Live dialogues over HTTP: the answers of a whole dialogue, a bounded number of them, and a restart between."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
from serving import JSON, Answer, Inside, error, in_a_loop, inside

from runtimes.live.dialogues import Limits
from runtimes.serve.talk import Options

DATA = Path(__file__).parent / "data"
BUNDLE = DATA / "bundles" / "cmerc"
LINES = [json.loads(line) for line in (DATA / "small" / "dialogues.jsonl").read_text().splitlines()[1:]]
SAID: list[dict[str, Any]] = [
    {"speaker": f"{u['speaker']}", **{m: u[m] for m in ("text", "audio", "vision")}} for u in LINES[1]["utterances"][:4]
]


async def say(server: Inside, dialogue: str, utterance: dict[str, Any], place: str = "/v1") -> Answer:
    path = f"{place}/dialogues/{dialogue}/utterances"
    return await server.ask("POST", path, json.dumps(utterance).encode(), JSON)


async def whole(server: Inside, dialogue: str, said: list[dict[str, Any]]) -> Any:
    body = {"dialogue": dialogue, "utterances": said}
    return (await server.ask("POST", "/v1/predict", json.dumps(body).encode(), JSON)).said["predictions"]


def assert_same(found: list[Any], wanted: list[Any]) -> None:
    by_unit = {row["unit"]: row["probabilities"] for row in found}
    assert by_unit.keys() == {row["unit"] for row in wanted}
    for row in wanted:
        assert by_unit[row["unit"]] == pytest.approx(row["probabilities"], abs=1e-5)


@in_a_loop
async def test_each_utterance_gets_the_answers_of_the_whole_dialogue() -> None:
    async with inside(BUNDLE) as server:
        # Two dialogues, side by side, one of them under the model's name.
        for number, utterance in enumerate(SAID):
            answers = await asyncio.gather(
                say(server, "a", utterance), say(server, "b", SAID[-1 - number], "/v1/models/cmerc")
            )
            for name, answer, said in zip("ab", answers, (SAID, SAID[::-1]), strict=True):
                assert answer.status == 200
                assert (answer.said["model"], answer.said["dialogue"]) == ("cmerc", name)
                found = [answer.said["prediction"], *answer.said["revised"]]
                assert_same(found, await whole(server, name, said[: number + 1]))
                assert found[0]["unit"] == f"{name}/{number}"


@in_a_loop
async def test_utterances_of_one_dialogue_that_come_together_are_all_heard() -> None:
    async with inside(BUNDLE) as server:
        answers = await asyncio.gather(*(say(server, "a", {**u, "id": f"u{i}"}) for i, u in enumerate(SAID)))
        last = max(answers, key=lambda a: len(a.said["revised"]))
        said = {row["unit"] for row in (last.said["prediction"], *last.said["revised"])}
        assert said == {"u0", "u1", "u2", "u3"}


@in_a_loop
async def test_an_utterance_is_corrected_comes_late_or_asks_for_no_other_answers() -> None:
    async with inside(BUNDLE) as server:
        one, two, three, four = SAID
        await say(server, "a", two)
        await say(server, "a", one | {"before": "a/0"})
        answer = await say(server, "a", three | {"corrects": "a/0"})
        wanted = await whole(server, "a", [one | {"id": "a/1"}, three | {"id": "a/0"}])
        assert_same([answer.said["prediction"], *answer.said["revised"]], wanted)
        assert (await say(server, "a", four | {"revise": 0})).said["revised"] == []


@in_a_loop
async def test_a_dialogue_that_is_over_begins_anew() -> None:
    async with inside(BUNDLE) as server:
        first = await say(server, "a", SAID[0])
        assert (await server.ask("DELETE", "/v1/dialogues/a")).said == {"dialogue": "a", "end": True}
        assert (await server.ask("DELETE", "/v1/dialogues/a")).status == 404
        assert (await say(server, "a", SAID[0])).said == first.said


@in_a_loop
async def test_what_cannot_be_answered_says_why_and_changes_nothing() -> None:
    async with inside(BUNDLE, live=Options(Limits(most=1))) as server:
        await say(server, "a", SAID[0])
        wrong = ({"text": [1.0]}, SAID[0] | {"corrects": "a/7"}, SAID[0] | {"revise": -1}, SAID[0] | {"recording": "x"})
        for utterance in wrong:
            assert error(await say(server, "a", utterance))[0] == 422
        status, why = error(await say(server, "b", SAID[0]))
        assert (status, why.startswith("1 dialogues are live, of 1 at most")) == (503, True)
        assert (await server.ask("POST", "/v1/dialogues/a/utterances", b"[", JSON)).status == 400
        assert (await server.ask("POST", "/v1/dialogues/a/utterances", b"{}")).status == 415
        assert (await say(server, "a", SAID[1])).said["prediction"]["unit"] == "a/1"


@in_a_loop
async def test_a_dialogue_goes_on_after_a_reload_unless_other_features_are_read_then(tmp_path: Path) -> None:
    async with inside(BUNDLE, live=Options(state=tmp_path)) as server:
        model = server.service.models["cmerc"]
        await say(server, "a", SAID[0])
        await model.open()
        assert (await say(server, "a", SAID[1])).said["prediction"]["unit"] == "a/1"
        await model.open()
        # As if the files of that folder were encoders.
        model.engine.predictor.bundle.manifest.encoders["text"] = ["variants"]
        status, why = error(await say(server, "a", SAID[2]))
        assert (status, "was kept for another model" in why) == (422, True)
        assert (await say(server, "b", SAID[2])).said["prediction"]["unit"] == "b/0"


@in_a_loop
async def test_a_dialogue_goes_on_when_the_server_was_started_again(tmp_path: Path) -> None:
    options = Options(window=3, state=tmp_path)
    answers = []
    for utterance in SAID:
        async with inside(BUNDLE, live=options) as server:
            answers.append(await say(server, "a", utterance))
    async with inside(BUNDLE, live=Options(window=3)) as server:
        for answer, utterance in zip(answers, SAID, strict=True):
            assert (await say(server, "a", utterance)).said == answer.said
    assert len(list(tmp_path.glob("cmerc/*/*.npz"))) == 3
