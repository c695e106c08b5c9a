"""The server's application, called directly: who may ask, what dialogues get, what happens when it breaks."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
from serving import JSON, counted, error, in_a_loop, inside, outputs, tensors
from small_emt import make_emt

import cli
from mer_export import machine
from mer_export.bundle import MANIFEST, Bundle, FeatureStatistics
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.feature_check import FeatureCheck
from mer_export.data.open import stream_samples
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from runtimes.backends.onnx_runtime import OnnxRuntimeSession
from runtimes.pipeline import How
from runtimes.predict import opening
from runtimes.predict.output import json_row
from runtimes.predict.predictor import Predictor
from runtimes.serve import journal, models
from runtimes.serve.app import LOOPBACK
from runtimes.serve.batching import Deadline
from runtimes.serve.metrics import Metrics
from runtimes.serve.models import named, opened_predictor
from runtimes.serve.reading import parse
from runtimes.serve.server import Place, read_token

DATA = Path(__file__).parent / "data"
BUNDLE, DIALOGUES = DATA / "bundles" / "cmerc", DATA / "small" / "dialogues.jsonl"
INFER, PREDICT = "/v2/models/cmerc/infer", "/v1/predict"
ALONE = How(workers=1, batch=1)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(stream_samples(DIALOGUES, bundle_spec(Bundle.open(BUNDLE), DIALOGUES)))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mer")


@in_a_loop
async def test_who_has_no_token_sees_health_and_the_page_alone() -> None:
    async with inside(BUNDLE, token="open-sesame") as server:
        for path in ("/v2", "/v1/models", "/metrics", "/openapi.json", "/v2/models/cmerc", "/nothing"):
            for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "open-sesame"}):
                refusal = await server.ask("GET", path, headers=headers)
                assert error(refusal) == (401, "a token is needed: send Authorization: Bearer TOKEN")
                assert refusal.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/v2/health/live", "/v2/health/ready"):
            assert (await server.ask("GET", path)).status == 200
        assert (await server.ask("GET", "/v2", headers={"Authorization": "Bearer open-sesame"})).status == 200


@in_a_loop
async def test_a_page_of_somebody_else_cannot_ask_under_its_own_name() -> None:
    async with inside(BUNDLE, hosts=LOOPBACK) as server:
        for host in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
            assert (await server.ask("GET", "/v2", headers={"Host": host})).status == 200
        for host in ("evil.example", "localhost.evil.example:8000", ""):
            assert (await server.ask("GET", "/v2", headers={"Host": host})).status == 421


@in_a_loop
async def test_every_answer_has_a_number_and_is_not_guessed_at() -> None:
    async with inside(BUNDLE) as server:
        answers = [await server.ask("GET", path) for path in ("/", "/v2", "/nothing")]
        assert len({a.headers["x-request-id"] for a in answers}) == 3
        assert {a.headers["x-content-type-options"] for a in answers} == {"nosniff"}
        policy = answers[0].headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; connect-src 'self';")
        assert "unsafe" not in policy


@in_a_loop
async def test_a_fault_of_the_server_stays_in_its_log(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret of a path of its own")

    async with inside(BUNDLE) as server:
        monkeypatch.setattr(OnnxRuntimeSession, "compute", broken)
        for path, (body, headers) in (
            (INFER, tensors(samples[:1], True)),
            (PREDICT, (DIALOGUES.read_bytes(), {"Content-Type": "application/x-ndjson"})),
        ):
            answer = await server.ask("POST", path, body, headers)
            number = answer.headers["x-request-id"]
            sentence = f"internal error: the log of the server says more under request {number}"
            assert error(answer) == (500, sentence)
            lines = [json.loads(journal.JsonLines().format(r)) for r in caplog.records]
            (line,) = (r for r in lines if r["event"] == "internal error" and r["request"] == number)
            assert line["kind"] == "RuntimeError"
            assert line["at"][-1].startswith("tests/test_serve_inside.py:")
            assert "secret" not in json.dumps(line)
        assert (await server.ask("GET", "/v2/health/ready")).status == 200


@in_a_loop
async def test_an_error_in_the_middle_of_a_stream_is_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = OnnxRuntimeSession.compute, iter(range(100))

    def broken_later(session: OnnxRuntimeSession, inputs: Any) -> Any:
        if next(calls) == 2:
            raise RuntimeError("broken")
        return run(session, inputs)

    async with inside(BUNDLE, how=ALONE) as server:
        monkeypatch.setattr(OnnxRuntimeSession, "compute", broken_later)
        answer = await server.ask("POST", PREDICT, DIALOGUES.read_bytes(), {"Content-Type": "application/x-ndjson"})
        *rows, last = map(json.loads, answer.body.splitlines())
        assert answer.status == 200
        assert rows
        assert all(row["label"] for row in rows)
        assert list(last) == ["error"]


@pytest.fixture(scope="module")
def long() -> dict[str, Any]:
    """A dialogue of 30 utterances, for buckets of 8."""
    random = np.random.default_rng(0)
    return {
        "dialogue": "long",
        "utterances": [
            {
                "speaker": n % 2,
                "text": random.normal(size=(2, 8)).round(3).tolist(),
                "audio": random.normal(size=5).round(3).tolist(),
            }
            for n in range(30)
        ],
    }


@pytest.mark.parametrize("overflow", ["window", "truncate"])
@in_a_loop
async def test_a_dialogue_that_is_cut_gets_the_predictors_answers(overflow: Any, long: dict[str, Any]) -> None:
    async with inside(BUNDLE, how=How(workers=1, batch=1, overflow=overflow)) as server:
        engine = server.service.models["cmerc"].engine
        answer = await server.ask("POST", PREDICT, json.dumps(long | {"stream": True}).encode(), JSON)
        streamed = [json.loads(line) for line in answer.body.splitlines()]
        whole = (await server.ask("POST", PREDICT, json.dumps(long).encode(), JSON)).said["predictions"]
        (sample,) = engine.reader.samples(parse(json.dumps(long).encode(), "application/json"))
        expected = [json_row(p, engine.predictor.task) for p in engine.predictor.predict([sample])]
        expected = json.loads(json.dumps(expected))
        assert streamed == whole == expected
        assert sum(r["label"] is None for r in expected) == (22 if overflow == "truncate" else 0)
        rows = outputs(await server.ask("POST", INFER, *tensors([sample], True)))["log_prob"]
        np.testing.assert_allclose(rows[0], engine.predictor.scores([sample])[0], atol=1e-6)
        listed = (await server.ask("POST", INFER, *tensors([sample], False))).said["outputs"][0]["data"]
        assert listed.count(None) == 3 * (22 if overflow == "truncate" else 0)


@in_a_loop
async def test_units_of_a_long_dialogue_come_before_the_last_is_known(
    long: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pad, calls, free = Predictor.pad, iter(range(100)), threading.Event()

    def waiting(predictor: Predictor, *rest: Any) -> Any:
        if next(calls) == 1:
            assert free.wait(60)
        return pad(predictor, *rest)

    async with inside(BUNDLE, how=How(workers=1, batch=1, overflow="window")) as server:
        engine = server.service.models["cmerc"].engine
        samples = engine.reader.samples(parse(json.dumps(long).encode(), "application/json"))
        monkeypatch.setattr(Predictor, "pad", waiting)
        rows = engine.predictions(samples, Deadline.after(60))
        first = [(await anext(rows)).unit for _ in range(6)]
        assert first == [f"long/{n}" for n in range(6)]
        free.set()
        assert len([p async for p in rows]) == 24


@in_a_loop
async def test_nothing_to_read_is_no_label_as_infer_has_it() -> None:
    async with inside(BUNDLE) as server:
        body = json.dumps({"utterances": [{"speaker": "Ann"}, {"speaker": "Bob"}]}).encode()
        found = (await server.ask("POST", PREDICT, body, JSON)).said["predictions"]
        assert [(p["unit"], p["label"], p["modalities"]) for p in found] == [("0/0", None, []), ("0/1", None, [])]


@in_a_loop
async def test_a_sentence_becomes_tokens_where_the_bundle_keeps_a_tokenizer(tmp_path: Path) -> None:
    bundle = make_emt(tmp_path / "emt", "emt")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "how", "was", "your", "day", "?", *"abcdefghijklmnop"]
    with bundle.commit() as change:
        change.write("tokenizer/vocab.txt", "\n".join(words))

    async with inside(bundle.root, how=How(runtime="torch", workers=1)) as server:
        said = (await server.ask("GET", "/v1/models")).said["models"][0]
        assert said["sentences"]
        assert said["example"]["utterances"][0] == {"id": "u1", "speaker": "Ann", "sentence": "How was your day?"}
        answer = await server.ask("POST", PREDICT, json.dumps(said["example"]).encode(), JSON)
        assert [p["modalities"] for p in answer.said["predictions"]] == [["text"]] * 3
        body = json.dumps({"utterances": [{"id": "u1", "sentence": "How was your day?"}]}).encode()
        (found,) = (await server.ask("POST", PREDICT, body, JSON)).said["predictions"]
        assert (found["unit"], found["modalities"]) == ("u1", ["text"])
        predictor = server.service.models["emt"].engine.predictor
        (expected,) = predictor.predict([{"input_ids": [2, 5, 6, 7, 8, 9, 3]}])
        assert found["score"] == pytest.approx(expected.score, abs=1e-6)


@pytest.mark.parametrize("system", ["cmerc", "emt"])
@in_a_loop
async def test_the_example_of_a_model_is_one_that_it_takes(system: str) -> None:
    async with inside(DATA / "bundles" / system) as server:
        (told,) = (await server.ask("GET", "/v1/models")).said["models"]
        answer = await server.ask("POST", PREDICT, json.dumps(told["example"]).encode(), JSON)
        assert [p["unit"] for p in answer.said["predictions"]] == ["u1", "u2", "u3"]
        assert {p["label"] for p in answer.said["predictions"]} <= set(told["labels"])


@in_a_loop
async def test_features_unlike_those_of_training_are_counted_and_told(
    samples: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    async with inside(BUNDLE) as server:
        known = {
            "audio": FeatureStatistics(width=5, mean=100, std=1, minimum=99, maximum=101),
            "vision": FeatureStatistics(width=4, mean=0, std=1, minimum=-9, maximum=9),
        }
        server.service.models["cmerc"].engine.predictor.features = FeatureCheck(known)
        assert (await server.ask("POST", INFER, *tensors(samples[:1], True))).status == 200
        server.service.models["cmerc"].judge_features()
        assert counted(server, 'mer_foreign_features{input="audio",model="cmerc"}') == 1
        assert counted(server, 'mer_foreign_features{input="vision",model="cmerc"}') == 0
        assert "features are not like those that the model was trained on: audio" in caplog.text


@in_a_loop
async def test_a_change_that_cannot_be_opened_leaves_the_state_before_in_service(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(models, "LOOK", 0.001)
    bundle = Path(shutil.copytree(BUNDLE, tmp_path / "cmerc"))

    async with inside(bundle) as server:
        model = server.service.models["cmerc"]
        before = model.engine
        following = asyncio.create_task(model.follow())
        manifest = (bundle / MANIFEST).read_bytes()
        (bundle / MANIFEST).write_bytes(manifest[:-9])
        while not counted(server, 'mer_reloads_total{model="cmerc",result="failed"}'):
            await asyncio.sleep(0.001)
        assert "cmerc was changed and cannot be opened, the state before is served: " in caplog.text
        assert (await server.ask("POST", INFER, *tensors(samples[:1], True))).status == 200
        assert model.engine is before
        with before.used():
            (bundle / MANIFEST).write_bytes(manifest)
            while model.engine is before:
                await asyncio.sleep(0.001)
            # Whoever uses the state before still gets its answers.
            assert len(await before.outputs(samples[:1], Deadline.after(60))) == 1
        following.cancel()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda folder: Place("0.0.0.0"), r"--host 0\.0\.0\.0 lets others in: pass --token-file, or --no-token"),
        (lambda folder: Place("example.org"), "lets others in"),
        (lambda folder: Place("::"), "lets others in"),
        (lambda folder: read_token(folder / "none"), "cannot be read: No such file"),
        (lambda folder: read_token(folder / "empty"), "must hold one word"),
        (lambda folder: read_token(folder / "two"), "must hold one word"),
        (lambda folder: named([BUNDLE, folder / "cmerc"], How(), Metrics()), "two bundles are called 'cmerc'"),
        (lambda folder: opened_predictor(BUNDLE, How(goal="latency", workers=2)), "--goal says how many workers"),
        (lambda folder: opened_predictor(BUNDLE, How(goal="latency")), "no profile of this machine"),
    ],
)
def test_what_cannot_be_served_is_refused_before_it_begins(wrong: Any, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "two").write_text("open sesame")
    with pytest.raises(UsageError, match=sentence):
        wrong(tmp_path)


def test_a_taken_port_is_said() -> None:
    with Place(port=0).bind() as first:
        first.listen()
        with pytest.raises(UsageError, match=r"--host 127\.0\.0\.1 --port \d+: address already in use: choose others"):
            Place(port=first.getsockname()[1]).bind()


def test_others_may_be_let_in_on_purpose(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("open-sesame\n")
    assert Place("0.0.0.0", token=read_token(tmp_path / "token")).token == "open-sesame"
    assert not Place("0.0.0.0", open_to_all=True).loopback
    assert Place("localhost").loopback
    assert Place("::1").loopback


def test_sessions_share_the_cores_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    asked = [("cpu", None, None), ("cpu", 2, None), ("cpu", None, 2), ("cpu", 3, 1), ("cpu", 16, None)]
    shared = [opening.share_out(*how) for how in (*asked, ("cuda", None, None))]
    assert shared == [(1, 8), (2, 4), (4, 2), (3, 1), (16, 1), (None, 1)]


@in_a_loop
async def test_the_documentation_names_every_endpoint_and_option() -> None:
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text()
    async with inside(BUNDLE) as server:
        paths = (await server.ask("GET", "/openapi.json")).said["paths"]
    named = {line.split("`")[1] for line in page.splitlines() if line.startswith(("| `GET", "| `POST", "| `DELETE"))}
    assert named == {f"{method.upper()} {path}" for path, own in paths.items() for method in own}
    options = {o for p in typer.main.get_command(cli.app).commands["serve"].params for o in p.opts if len(o) > 2}
    assert options - {"--help", "--verbose", "bundles"} <= {w.strip("`,.()") for w in page.split()}
