"""`mer serve` as a process: its answers are the predictor's, under load, when it is told to end, and when bundles
change."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Mer

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
from serving import JSON, Running, outputs, tensors

from benchmarks.http_load import Served
from benchmarks.served_faults import malformed
from mer_export.bundle import Bundle
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.open import stream_samples
from mer_export.data.samples import Sample
from runtimes.predict.predictor import Predictor

DATA = Path(__file__).parent / "data"
DIALOGUES = DATA / "small" / "dialogues.jsonl"
INFER = "/v2/models/cmerc/infer"
PREDICT = "/v1/models/cmerc/predict"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(DATA / "bundles" / "cmerc", tmp_path_factory.mktemp("served") / "cmerc"))


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Running]:
    with Running(bundle, DATA / "bundles" / "emt", "--workers", "2", "--threads", "1") as running:
        yield running


@pytest.fixture(scope="module")
def samples(bundle: Path) -> list[Sample]:
    return list(stream_samples(DIALOGUES, bundle_spec(Bundle.open(bundle), DIALOGUES)))


@pytest.fixture(scope="module")
def scores(bundle: Path, samples: list[Sample]) -> list[np.ndarray]:
    """What the predictor says of each sample, alone."""
    with Predictor(Bundle.open(bundle)) as predictor:
        return predictor.scores(samples)


def test_it_says_where_it_is_and_what_it_serves(server: Running) -> None:
    rest = server.told.removeprefix(server.url)
    assert rest == " serves cmerc (onnxruntime fp32, 2 workers), emt (onnxruntime fp32, 2 workers)"


def test_it_runs_without_pytorch(server: Running) -> None:
    loaded = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" in loaded
    assert "libtorch" not in loaded


@pytest.mark.parametrize("binary", [False, True])
def test_tensors_get_the_predictors_answers(
    server: Running, samples: list[Sample], scores: list[np.ndarray], binary: bool
) -> None:
    assert len({len(s.units) for s in samples}) > 4
    for sample, expected in zip(samples, scores, strict=True):
        answer = server.ask("POST", INFER, *tensors([sample], binary))
        assert answer.status == 200, answer.body
        np.testing.assert_allclose(outputs(answer)["log_prob"], expected[None], atol=1e-6)


def test_items_of_several_lengths_are_cut_to_theirs(
    server: Running, samples: list[Sample], scores: list[np.ndarray]
) -> None:
    """What stands behind the lengths is NaN, which the model would refuse."""
    lengths = [len(s.units) for s in samples[:6]]
    (found,) = outputs(server.ask("POST", INFER, *tensors(samples[:6], True, lengths))).values()
    assert found.shape == (6, max(lengths), 3)
    for row, length, expected in zip(found, lengths, scores, strict=False):
        np.testing.assert_allclose(row[:length], expected, atol=1e-6)
        assert not row[length:].any()


def test_tritonclient_talks_to_it_unchanged(server: Running, samples: list[Sample], scores: list[np.ndarray]) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(f"{server.host}:{server.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("cmerc", "1")
    assert client.get_server_metadata()["name"] == "mer"
    described = client.get_model_metadata("cmerc")
    types = {i["name"]: i["datatype"] for i in described["inputs"]}
    assert described["outputs"] == [{"name": "log_prob", "datatype": "FP32", "shape": [-1, -1, 3]}]
    for binary in (True, False):
        given = []
        for name, array in samples[3].inputs.items():
            given.append(triton.InferInput(name, [1, *array.shape], types[name]))
            given[-1].set_data_from_numpy(array[None], binary_data=binary)
        wanted = [triton.InferRequestedOutput("log_prob", binary_data=binary)]
        for asked in (wanted, None):
            found = client.infer("cmerc", given, outputs=asked, request_id="17")
            np.testing.assert_allclose(found.as_numpy("log_prob"), scores[3][None], atol=1e-6)
            assert found.get_response()["id"] == "17"
    with pytest.raises(triton.InferenceServerException, match="no model 'meld', there are"):
        client.infer("meld", given)
    client.close()


def alike(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """The same, with probabilities and scores as near as batches of another size leave them."""
    pair = (found, expected)
    numbers = [np.asarray([*(r.get("probabilities") or {}).values(), r.get("score", 0)], dtype=float) for r in pair]
    rest = [{k: v for k, v in r.items() if k not in ("probabilities", "score")} for r in pair]
    return rest[0] == rest[1] and found.keys() == expected.keys() and np.allclose(*numbers, atol=1e-6)


def test_dialogues_get_what_infer_writes(server: Running, bundle: Path, tmp_path: Path, mer: Mer) -> None:
    assert mer("infer", bundle, DIALOGUES, "-o", tmp_path / "out.jsonl", "-q")[0] == 0
    expected = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    lines = server.ask("POST", PREDICT, DIALOGUES.read_bytes(), {"Content-Type": "application/x-ndjson"})
    assert lines.headers["content-type"].startswith("application/x-ndjson")
    streamed = [json.loads(line) for line in lines.body.splitlines()]
    head, *dialogues = (json.loads(line) for line in DIALOGUES.open())
    whole = server.ask("POST", PREDICT, json.dumps(head | {"dialogues": dialogues}).encode(), JSON).said
    one = server.ask("POST", PREDICT, json.dumps(dialogues[2]).encode(), JSON).said
    own = [r for r in expected if r["sample"] == dialogues[2]["dialogue"]]
    assert whole["model"] == one["model"] == "cmerc"
    for found, wanted in ((streamed, expected), (whole["predictions"], expected), (one["predictions"], own)):
        assert len(found) == len(wanted) > 0
        assert all(map(alike, found, wanted))


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_sends_a_file_as_the_page_says(server: Running) -> None:
    page = (DATA.parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    (said,) = re.findall(r"`(curl .*--data-binary @dialogues\.jsonl)`", page)
    said = said.replace("localhost:8000/v1/predict", server.url.rstrip("/") + PREDICT).replace(
        "dialogues.jsonl", str(DIALOGUES)
    )
    done = subprocess.run([*shlex.split(said), "-sS", "--fail"], capture_output=True, check=True)
    wanted = server.ask("POST", PREDICT, DIALOGUES.read_bytes(), {"Content-Type": "application/x-ndjson"}).body
    found, expected = ([json.loads(line) for line in body.splitlines()] for body in (done.stdout, wanted))
    assert len(found) == len(expected) > 0
    assert all(map(alike, found, expected))


def test_utterances_of_a_regression_get_what_infer_writes(server: Running, tmp_path: Path, mer: Mer) -> None:
    emt = DATA / "bundles" / "emt"
    random = np.random.default_rng(0)
    said = [
        {"id": f"u{n}", "text": random.normal(size=(2 + n, 7)).tolist(), "audio": random.normal(size=(3, 5)).tolist()}
        for n in range(4)
    ]
    line = json.dumps({"dialogue": "d", "utterances": said})
    (tmp_path / "in.jsonl").write_text(line)
    assert mer("infer", emt, tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", "-q")[0] == 0
    expected = [json.loads(row) for row in (tmp_path / "out.jsonl").open()]
    found = server.ask("POST", "/v1/models/emt/predict", line.encode(), JSON).said["predictions"]
    assert [r["modalities"] for r in found] == [["text", "audio"]] * 4
    assert all(map(alike, found, expected))


def load(server: Running, samples: list[Sample], scores: list[np.ndarray], threads: int, calls: int) -> tuple[int, int]:
    """How many of `threads` × `calls` requests of one or two items of mixed lengths were answered, how many wrongly."""

    def client(seed: int) -> tuple[int, int]:
        random = np.random.default_rng(seed)
        connection, right, wrong = server.connect(), 0, 0
        for _ in range(calls):
            picked = random.integers(len(samples), size=random.integers(1, 3))
            own = [samples[i] for i in picked]
            request = tensors(own, bool(random.integers(2)) or len(own) > 1, [len(s.units) for s in own])
            answer = server.ask("POST", INFER, *request, over=connection)
            assert answer.status == 200, answer.body
            (found,) = outputs(answer).values()
            pairs = zip(found, (scores[i] for i in picked), strict=True)
            fits = all(np.allclose(row[: len(own)], own, atol=1e-6) for row, own in pairs)
            right, wrong = right + fits, wrong + (not fits)
        connection.close()
        return right, wrong

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(client, range(threads)))
    return sum(r for r, _ in found), sum(w for _, w in found)


def test_eight_clients_with_mixed_lengths_get_their_own_answers(
    server: Running, samples: list[Sample], scores: list[np.ndarray]
) -> None:
    assert load(server, samples, scores, threads=8, calls=40) == (320, 0)


UTTERANCE: dict[str, Any] = {"text": [[0.1] * 8] * 2, "audio": [0.1] * 5, "vision": [0.1] * 4}


def test_more_than_a_body_may_have_is_refused_before_it_comes(server: Running) -> None:
    with socket.create_connection((server.host, server.port), timeout=60) as raw:
        raw.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode())
        raw.sendall(b"Content-Length: 99999999999\r\n\r\n{")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_what_is_no_http_is_sent_away(server: Running) -> None:
    for garbage in (b"\0" * 50, b"GET / SPAM/9\r\n\r\n", b"POST /v2 HTTP/1.1\r\nContent-Length: -4\r\n\r\n"):
        with socket.create_connection((server.host, server.port), timeout=60) as raw:
            raw.sendall(garbage + b"\r\n\r\n")
            assert raw.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert server.ask("GET", "/v2/health/ready").status == 200


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        (b"GET /v2 HTTP/1.1\r\n", b"X-Word: %d\r\n"),
        (b"GET /v2 HTTP/1.1\r\nX-Word: ", b"%d"),
        (b"GET /", b"%d"),
        (
            b"POST /v1/models/cmerc/predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n",
            b"X-%d: 1\r\n",
        ),
    ],
)
def test_a_head_that_does_not_end_is_cut_off(server: Running, begins: bytes, goes_on: bytes) -> None:
    with socket.create_connection((server.host, server.port), timeout=60) as raw, suppress(OSError):
        raw.sendall(begins)
        for first in range(0, 1_000_000, 100):
            raw.sendall(b"".join(goes_on % n for n in range(first, first + 100)))
    assert first < 100_000


def test_requests_that_come_at_once_are_answered_in_their_order(server: Running) -> None:
    pair = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\nHEAD /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    found = b""
    with socket.create_connection((server.host, server.port), timeout=60) as raw:
        raw.sendall(pair * 1000)
        while found.count(b"HTTP/1.1 200 OK") < 2000 or not found.endswith(b"\r\n\r\n"):
            found += raw.recv(1 << 16)
    assert found.count(b'{"name": "mer"') == 1000


def test_random_requests_of_its_own_description_are_no_fault_of_the_server(server: Running) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings
    from schemathesis import checks

    checks.load_all_checks()
    names = ("not_a_server_error", "status_code", "content_type", "response_schema")
    held = [checks.CHECKS.get_one(n if n.endswith("error") else f"{n}_conformance") for n in names]
    schema = schemathesis.openapi.from_url(f"{server.url}openapi.json")
    tried = 0
    told = "/v1/models/{model}/dialogues/{dialogue}/utterances"
    for path in ("/v2/models/{model}/infer", "/v1/models/{model}/predict", told):
        operation = schema[path]["POST"]

        @given(case=operation.as_strategy())
        @settings(
            max_examples=5,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        def fuzzed(case: Any) -> None:
            nonlocal tried
            case.call_and_validate(checks=held)
            tried += 1

        fuzzed()
    assert tried >= 10
    assert server.ask("GET", "/v2/health/live").status == 200


def test_damaged_requests_are_no_fault_of_the_server(server: Running, samples: list[Sample]) -> None:
    """benchmarks/faults.py tries ten thousand."""
    row = malformed(Served(server.host, server.port, server.process), samples, "cmerc", 400)
    assert row.survived == row.tried == 401, row.notes
    assert len(row.notes) > 2


def test_the_page_shows_labels_without_a_network(server: Running, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("Chromium, which shows the page, is not installed")
    page = server.ask("GET", "/")
    assert b"http://" not in page.body.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https://" not in page.body
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"]
    command += ["--disable-background-networking", "--disable-sync", f"--user-data-dir={tmp_path}"]
    command += ["--virtual-time-budget=5000", "--dump-dom", f"{server.url}#example"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "3 utterances" in shown
    assert shown.count('class="unit"') == 3
    assert shown.count("<polyline") == 3
    assert ">vision</span>" in shown
    assert 'id="wrong" role="alert" hidden' in shown


def test_metrics_say_what_happened(server: Running, samples: list[Sample]) -> None:
    def counts() -> dict[str, float]:
        text = server.ask("GET", "/metrics").body.decode()
        return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}

    before = counts()
    for _ in range(3):
        server.ask("POST", INFER, *tensors(samples[:1], True))
    server.ask("POST", INFER, b"{}")
    after = counts()

    def added(name: str) -> float:
        return after[name] - before.get(name, 0)

    route = 'route="/v2/models/{model}/infer"'
    assert added(f'mer_requests_total{{code="200",model="cmerc",{route}}}') == 3
    assert added(f'mer_requests_total{{code="400",model="cmerc",{route}}}') == 1
    assert added('mer_batch_size_sum{model="cmerc"}') == 3
    for stage in ("queue", "collate", "run"):
        assert added(f'mer_stage_seconds_count{{model="cmerc",stage="{stage}"}}') == 3
    assert after['mer_queue_depth{model="cmerc"}'] == 0


def test_the_log_is_json_lines_without_what_was_sent(server: Running) -> None:
    secret = "the-secret-of-ann"
    body = json.dumps({"dialogue": secret, "utterances": [UTTERANCE | {"id": secret, "speaker": secret}]}).encode()
    answer = server.ask("POST", PREDICT, body, JSON)
    assert secret in answer.body.decode()
    refusal = server.ask("POST", PREDICT, body.replace(b"[0.1, ", b"[1e99, "), JSON)
    assert refusal.status == 422
    number, last = (a.headers["x-request-id"] for a in (answer, refusal))
    while not any(line.get("request") == last for line in list(server.log)):
        time.sleep(0.01)
    (line,) = (line for line in server.log if line.get("request") == number)
    said = {k: line[k] for k in ("event", "method", "route", "model", "status")}
    route = "/v1/models/{model}/predict"
    assert said == {"event": "request", "method": "POST", "route": route, "model": "cmerc", "status": 200}
    assert not [line for line in server.log if secret in json.dumps(line) or "not JSON" in line]


def test_a_bundle_that_changes_under_load_is_opened_anew_and_no_request_is_lost(
    server: Running, bundle: Path, samples: list[Sample], scores: list[np.ndarray]
) -> None:
    """The change takes the longer bucket away, so that long dialogues tell which state answers."""
    short = [i for i, s in enumerate(samples) if len(s.units) <= 4]
    long = next(s for s in samples if len(s.units) > 4)
    assert server.ask("POST", INFER, *tensors([long], True)).status == 200
    changed = threading.Event()

    def change() -> None:
        opened = Bundle.open(bundle)
        with opened.commit() as staged:
            gone = [v for v in staged.manifest.variants if v.lengths["utterances"] > 4]
            staged.manifest.variants = [v for v in staged.manifest.variants if v not in gone]
            for name in [n for n in staged.manifest.files if any(n.startswith(f"variants/{v.name}/") for v in gone)]:
                staged.remove(name)
            for name in {v.model for v in gone}:
                staged.remove(name)
        while server.ask("POST", INFER, *tensors([long], True)).status == 200:
            pass
        changed.set()

    thread = threading.Thread(target=change)
    thread.start()
    answered = 0
    while not changed.is_set():
        right, wrong = load(server, [samples[i] for i in short], [scores[i] for i in short], threads=4, calls=20)
        assert (right, wrong) == (80, 0)
        answered += right
    thread.join()
    assert answered > 0
    refusal = server.ask("POST", INFER, *tensors([long], True))
    assert (refusal.status, "are more than the fixed 4" in refusal.said["error"]) == (422, True)
    assert 'mer_reloads_total{model="cmerc",result="done"} 1.0' in server.ask("GET", "/metrics").body.decode()


def test_told_to_end_under_load_it_answers_what_it_took_and_exits_with_0(
    samples: list[Sample], scores: list[np.ndarray]
) -> None:
    """Clients that keep their connection get an answer to every request, and hear with the last that there is no more.
    New connections are refused."""
    with Running(DATA / "bundles" / "cmerc", "--workers", "2", "--threads", "1") as server:
        busy, answered, lost = threading.Barrier(9), [0] * 8, [0] * 8

        def client(number: int) -> None:
            connection = server.connect()
            for turn in range(100_000):
                sample = (number + turn) % len(samples)
                answer = server.ask("POST", INFER, *tensors([samples[sample]], True), over=connection)
                (found,) = outputs(answer).values()
                fits = answer.status == 200 and np.allclose(found, scores[sample][None], atol=1e-6)
                answered[number] += fits
                lost[number] += not fits
                if answer.headers.get("connection") == "close":
                    return
                if turn == 5:
                    busy.wait()

        threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        busy.wait()
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert server.wait() == 0
        assert lost == [0] * 8
        assert sum(answered) == sum(line.get("status") == 200 for line in server.log) >= 48
        assert server.log[-1]["event"] == "ended"
        with pytest.raises((OSError, HTTPException)):
            server.ask("GET", "/v2/health/live")
