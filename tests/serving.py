"""A server for tests: as a process that is asked over HTTP, and as an application that is called directly."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from starlette.types import ASGIApp, Message

from mer_export.data.samples import Sample
from mer_export.launcher import module_command
from runtimes.pipeline import How
from runtimes.predict.predictor import Predictor
from runtimes.serve.app import build
from runtimes.serve.metrics import Metrics
from runtimes.serve.models import named
from runtimes.serve.service import Limits, Service
from runtimes.serve.talk import Options

JSON = {"Content-Type": "application/json"}
DATATYPES = {"float32": "FP32", "int64": "INT64"}


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)


def tensors(
    samples: Sequence[Sample], binary: bool, lengths: Sequence[int] | None = None
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an inference request with samples of one length, or padded with NaN to the longest."""
    described, tail = [], []
    for name in samples[0].inputs:
        array = np.stack([_padded(np.asarray(s.inputs[name]), name, lengths) for s in samples])
        described.append({"name": name, "datatype": DATATYPES[str(array.dtype)], "shape": list(array.shape)})
        if binary:
            described[-1]["parameters"] = {"binary_data_size": array.nbytes}
            tail.append(array.tobytes())
        else:
            described[-1]["data"] = array.tolist()
    if lengths is not None:
        described.append({"name": "lengths", "datatype": "INT64", "shape": [len(lengths)], "data": list(lengths)})
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": binary}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary else JSON
    return head + b"".join(tail), headers


def _padded(array: np.ndarray, name: str, lengths: Sequence[int] | None) -> np.ndarray:
    if lengths is None:
        return array
    axis = 1 if name == "text" else 0
    pads = [(0, max(lengths) - n if i == axis else 0) for i, n in enumerate(array.shape)]
    return np.pad(array, pads, constant_values=np.nan if array.dtype.kind == "f" else 0)


def outputs(answer: Answer) -> dict[str, np.ndarray]:
    """The arrays of an inference answer, in either form."""
    size = answer.headers.get("inference-header-content-length")
    head = json.loads(answer.body[: int(size)] if size else answer.body)
    place, found = int(size or 0), {}
    for tensor in head["outputs"]:
        if "data" in tensor:
            values = np.asarray(tensor["data"], dtype=np.float32)
        else:
            count = tensor["parameters"]["binary_data_size"]
            values = np.frombuffer(answer.body[place : place + count], dtype=np.float32)
            place += count
        found[tensor["name"]] = values.reshape(tensor["shape"])
    return found


class Running:
    """`mer serve` in a process of its own. Used as a context manager, which kills it if it has not ended."""

    def __init__(self, *words: str | Path):
        command = module_command("cli", "serve", *map(str, words), "--port", "0")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.log: list[dict[str, Any]] = []
        self._reading = threading.Thread(target=self._read, args=(self.process.stderr,))
        self._reading.start()
        self.told = self.process.stdout.readline().strip()
        self.url = self.told.split(" ")[0]
        if not self.url.startswith("http://"):
            self.__exit__()
            pytest.fail(f"it says {self.told!r}, its log {self.log}")
        parts = urlsplit(self.url)
        self.host, self.port = str(parts.hostname), int(parts.port or 0)

    def _read(self, stream: Any) -> None:
        for line in stream:
            self.log.append(json.loads(line) if line.startswith("{") else {"not JSON": line})

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=60)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        over: http.client.HTTPConnection | None = None,
    ) -> Answer:
        connection = over or self.connect()
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        found = Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        if over is None:
            connection.close()
        return found

    def wait(self) -> int:
        """The exit code, once it has ended and all of its log was read."""
        code = self.process.wait(60)
        self._reading.join()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.wait()


class Inside:
    """A server without a process: the application, called in the running event loop."""

    def __init__(self, service: Service, app: ASGIApp):
        self.service, self.app = service, app

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, ends: bool = True
    ) -> Answer:
        """One request; without `ends` the rest of its body never comes."""
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": not ends}]
        sent: list[Message] = []

        async def receive() -> Message:
            if waiting:
                return waiting.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message)

        own = {"host": "localhost", **{k.lower(): v for k, v in (headers or {}).items()}}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(k.encode(), v.encode()) for k, v in own.items()],
        }
        await self.app(scope, receive, send)
        found = {k.decode().lower(): v.decode() for k, v in sent[0]["headers"]}
        return Answer(sent[0]["status"], found, b"".join(m.get("body", b"") for m in sent[1:]))


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine, run in an event loop of its own."""

    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


@contextlib.asynccontextmanager
async def inside(
    *bundles: Path,
    how: How = How(workers=1),
    limits: Limits = Limits(),
    token: str | None = None,
    hosts: frozenset[str] | None = None,
    live: Options = Options(),
) -> AsyncIterator[Inside]:
    """Serves bundles in this process for the block."""
    metrics = Metrics()
    models = named(bundles, how, metrics, limits.queue)
    for model in models.values():
        await model.open()
    service = Service(models, metrics, limits, live)
    try:
        yield Inside(service, build(service, token, hosts))
    finally:
        for model in models.values():
            await model.close()


class Held:
    """Keeps the workers at their first step until it is told to let go."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.entered, self.free = threading.Semaphore(0), threading.Event()
        pad = Predictor.pad

        def waiting(predictor: Predictor, *rest: Any) -> Any:
            self.entered.release()
            assert self.free.wait(60)
            return pad(predictor, *rest)

        patch.setattr(Predictor, "pad", waiting)

    async def taken(self) -> None:
        """Until a worker has taken something up."""
        await asyncio.to_thread(self.entered.acquire)


def error(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.said["error"]


def counted(server: Inside, line: str) -> float:
    """One value of the metrics; 0 where it is not there yet."""
    text = server.service.metrics.page().decode()
    return next((float(found.rsplit(" ", 1)[1]) for found in text.splitlines() if found.startswith(line)), 0.0)
