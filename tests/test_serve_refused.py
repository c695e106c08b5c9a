"""What the server refuses, with which status, and in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
from serving import JSON, Answer, in_a_loop, inside

from runtimes.serve.app import LOOPBACK

BUNDLES = [Path(__file__).parent / "data" / "bundles" / name for name in ("cmerc", "emt")]
INFER = "/v2/models/cmerc/infer"
PREDICT = "/v1/models/cmerc/predict"
UTTERANCE: dict[str, Any] = {"text": [[0.1] * 8] * 2, "audio": [0.1] * 5, "vision": [0.1] * 4}
SAID: dict[str, Any] = {"utterances": [UTTERANCE]}
TENSOR: dict[str, Any] = {"name": "audio", "datatype": "FP32", "shape": [1, 1, 5], "data": [0.1] * 5}
SPEAKER: dict[str, Any] = {"name": "speaker", "datatype": "INT64", "shape": [1, 1], "data": [0]}


def said(**changes: Any) -> dict[str, Any]:
    return {"utterances": [UTTERANCE | changes]}


def sent(**changes: Any) -> dict[str, Any]:
    return {"inputs": [TENSOR | changes, SPEAKER]}


BAD: list[tuple[str, Any, int, str]] = [
    (PREDICT, b"", 400, "the body is not JSON"),
    (PREDICT, b"{", 400, "the body is not JSON"),
    (PREDICT, b"\xff\xfe{}", 400, "the body is not JSON"),
    (PREDICT, b"[" * 100_000, 400, "nested too deep"),
    (PREDICT, b'{"utterances": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400, "nested too deep"),
    (PREDICT, [], 400, "the body is a list, expected an object"),
    (PREDICT, None, 400, "the body is a NoneType, expected an object"),
    (PREDICT, {}, 422, "'utterances' is missing"),
    (PREDICT, {"utterances": []}, 422, "has no utterances"),
    (PREDICT, {"utterances": {}}, 422, "has no utterances"),
    (PREDICT, {"utterances": [1]}, 422, "is not a dialogue"),
    (PREDICT, {"dialogues": []}, 400, "there is no dialogue"),
    (PREDICT, {"dialogues": {}}, 400, "dialogues must be a list of objects"),
    (PREDICT, {"dialogues": [1]}, 400, "dialogues must be a list of objects"),
    (PREDICT, {"dialogues": [SAID | {"dialogue": "a"}] * 2}, 422, "'a' is there twice"),
    (PREDICT, SAID | {"stream": "yes"}, 400, "stream is 'yes'"),
    (PREDICT, SAID | {"speakers": -1}, 422, "speakers"),
    (PREDICT, SAID | {"labels": 3}, 422, "label"),
    (PREDICT, SAID | {"unit": "word"}, 422, "unit"),
    (PREDICT, said(text=[[0.1] * 7] * 2), 422, "text is 7 wide, the model was made for 8"),
    (PREDICT, said(text=[0.1] * 8), 422, "text is 1 wide, the model was made for 2"),
    (PREDICT, said(audio="loud"), 422, "is not a dialogue"),
    (PREDICT, said(audio=[[0.1], [0.1, 0.2]]), 422, "is not a dialogue"),
    (PREDICT, said(audio=[float("nan")] * 5), 422, "audio holds nan at (0, 0)"),
    (PREDICT, said(audio=[1e300] * 5), 422, "audio holds inf at (0, 0)"),
    (PREDICT, said(audio=[10**400] * 5), 422, "is not a dialogue"),
    (PREDICT, said(speaker=7), 422, "speaker goes from 7 to 7, the model knows 0..1"),
    (PREDICT, said(recording="/etc/passwd"), 422, "names the file '/etc/passwd', and no file is read here"),
    (PREDICT, said(label="bored"), 422, "label 'bored' is none of the classes"),
    (PREDICT, {"utterances": [UTTERANCE] * 9}, 422, "9 utterances are more than the fixed 8"),
    (PREDICT, {"utterances": [UTTERANCE, {"audio": [0.1] * 5}]}, 422, "has text for some utterances only"),
    (INFER, b"", 400, "the request is not JSON"),
    (INFER, [], 400, "the request"),
    (INFER, {}, 400, "inputs"),
    (INFER, {"inputs": []}, 400, "inputs"),
    (INFER, {"inputs": [{"name": "audio"}]}, 400, "inputs"),
    (INFER, {"inputs": [TENSOR, TENSOR]}, 400, "input 'audio' is there twice"),
    (INFER, {"inputs": [TENSOR]}, 422, "speaker is missing"),
    (INFER, {"inputs": [SPEAKER]}, 422, "item 0: there is nothing to read"),
    (INFER, sent(name="smell"), 422, "no input 'smell'"),
    (INFER, sent(datatype="BYTES"), 400, "input 'audio' is 'BYTES', it must be one of"),
    (INFER, sent(datatype="INT64"), 400, "data must be numbers of INT64"),
    (INFER, {"inputs": [SPEAKER | {"datatype": "INT32", "data": [2**32 + 1]}]}, 400, "4294967297, which is no INT32"),
    (INFER, {"inputs": [SPEAKER | {"datatype": "UINT64", "data": [-1]}]}, 400, "-1, which is no UINT64"),
    (INFER, sent(shape=[1, -1, 5]), 400, "a length cannot be negative"),
    (INFER, sent(shape=[1, 2, 5]), 400, "needs 10 numbers, data has 5"),
    (INFER, sent(shape=[1, 5, 1]), 422, "audio has shape (1, 5, 1), expected dims ('batch', 'utterances', 5)"),
    (INFER, sent(shape=[1, 5]), 422, "audio has shape (1, 5), expected dims"),
    (INFER, sent(shape=[10**18, 10**18, 5]), 400, "numbers, data has 5"),
    (INFER, sent(shape=[0, 1, 5], data=[]), 422, "the first dim is the number of items"),
    (INFER, sent(shape=[1, 2, 5], data=[0.1] * 10), 422, "utterances"),
    (INFER, sent(data=None), 400, "data must be numbers"),
    (INFER, sent(data=["a"] * 5), 400, "data must be numbers"),
    (INFER, sent(data=[[1], [2, 3]]), 400, "differ in length"),
    (INFER, sent(data=[float("inf")] * 5), 422, "audio holds inf"),
    (INFER, sent(parameters={"binary_data_size": 20}), 400, "binary_data_size is 20 and 0 are left"),
    (INFER, sent(parameters={"binary_data_size": "20"}), 400, "binary_data_size is '20'"),
    (INFER, sent() | {"outputs": [{"name": "label"}]}, 400, "no output 'label', its outputs are ['log_prob']"),
    ("/v1/predict", SAID, 404, "there are several models: POST to /v1/models/NAME/predict"),
    ("/v1/models/no/predict", SAID, 404, "no model 'no', there are ['cmerc', 'emt']"),
    ("/v2/models/cmerc/versions/2/infer", sent(), 404, "cmerc has version 1 alone"),
    ("/v1/models", {}, 405, "POST is not answered here"),
    ("/etc/passwd", {}, 404, "there is nothing here"),
    ("/v2/models/..%2f..%2fetc/infer", {}, 404, ""),
]


def sentence(answer: Answer) -> str:
    """The one line of an error."""
    assert set(answer.said) == {"error"}, answer.body
    error = answer.said["error"]
    assert "\n" not in error
    assert "Traceback" not in error
    return error


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@in_a_loop
async def test_what_is_wrong_with_a_request_is_one_sentence() -> None:
    async with inside(*BUNDLES, hosts=LOOPBACK) as server:
        for path, body, status, words in BAD:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = await server.ask("POST", path, content, JSON)
            assert (answer.status, words in sentence(answer)) == (status, True), (path, body, answer.body)
        for headers, status, words in (
            ({"Content-Type": "text/plain"}, 415, "the body is 'text/plain': send application/json"),
            ({"Content-Type": "multipart/form-data; boundary=x"}, 415, "takes features and sentences, no recordings"),
            ({"Content-Type": "audio/wav"}, 415, "takes features and sentences, no recordings"),
            (JSON | {"Content-Encoding": "gzip"}, 415, "the body is compressed"),
            (JSON | {"X-Request-Timeout": "soon"}, 400, "X-Request-Timeout is 'soon'"),
            (JSON | {"X-Request-Timeout": "-1"}, 400, "X-Request-Timeout is '-1'"),
            (JSON | {"X-Request-Timeout": "nan"}, 400, "X-Request-Timeout is 'nan'"),
            (JSON | {"Host": "elsewhere.example"}, 421, "answers to the name of this machine alone"),
        ):
            answer = await server.ask("POST", PREDICT, json.dumps(SAID).encode(), headers)
            assert (answer.status, words in sentence(answer)) == (status, True), (headers, answer.body)
        for length in ("-1", "x", "999999", "5"):
            answer = await server.ask("POST", INFER, b"{}", {"Inference-Header-Content-Length": length})
            assert "the body has 2 bytes" in sentence(answer)
        lines = {"Content-Type": "application/x-ndjson"}
        second = await server.ask("POST", PREDICT, json.dumps(SAID).encode() + b"\n{]", lines)
        assert "line 2 is not JSON" in sentence(second)
        head = await server.ask("POST", PREDICT, b'{"colour": 1}\n' + json.dumps(SAID).encode(), lines)
        assert "line 1 has ['colour']" in sentence(head)
        assert (await server.ask("GET", "/v2/health/live")).status == 200
