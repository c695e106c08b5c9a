"""What the server answers: one table of endpoints, and a function for each."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from mer_export import __version__
from mer_export.data.samples import Sample
from mer_export.untrusted.cells import whole_number
from runtimes.predict.output import json_row
from runtimes.serve import openapi, page, protocol, reading, recordings, talk
from runtimes.serve.batching import Deadline
from runtimes.serve.metrics import Metrics
from runtimes.serve.models import QUEUE, Engine, Model
from runtimes.serve.openapi import Endpoint
from runtimes.serve.refusals import Refusal, answered, malformed, overloaded

ASIDE = 1 << 16
"""Bytes of a body from which it is read in a thread, so that others are answered meanwhile."""
TIMEOUT = "X-Request-Timeout"
REQUESTS = 16
"""So many of the longest requests may be held at a time, or more of shorter ones."""
HELD = "held"
Made = TypeVar("Made")


@dataclass(frozen=True)
class Limits:
    """What requests may take: bytes of a body, seconds until an answer, and how many items of a model may wait."""

    most_bytes: int = 32 << 20
    deadline: float = 30.0
    queue: int = QUEUE

    @property
    def held(self) -> int:
        """Bytes of all requests that are being received, wait or are answered."""
        return REQUESTS * self.most_bytes


class Room:
    """The bytes that all requests hold together, each until it is answered: of its body, and of recordings in it.

    A request that finds no room is refused at once and waits for none, so that requests never wait for each other.
    """

    def __init__(self, most: int):
        """`most` has to be enough for any request alone."""
        self.most, self.held = most, 0

    def take(self, state: MutableMapping[str, Any], size: int) -> None:
        """Holds so many bytes for the request with this state; raises Refusal (503) where there is no room."""
        if self.held + size > self.most:
            raise overloaded(f"the server holds {self.held} bytes of requests, of {self.most} at most: try again later")
        self.held += size
        state[HELD] = state.get(HELD, 0) + size

    def give_back(self, state: MutableMapping[str, Any]) -> None:
        """All that the request with this state holds."""
        self.held -= state.pop(HELD, 0)


class Service:
    """The models that are served, and what is said of them over HTTP."""

    def __init__(
        self, models: Mapping[str, Model], metrics: Metrics, limits: Limits, live: talk.Options = talk.Options()
    ):
        self.models, self.metrics, self.limits = models, metrics, limits
        self.talks = {name: talk.Talk(model, live) for name, model in models.items()}
        self.room = Room(limits.held)
        self.ending = False
        """Whether no more is taken than what was begun."""
        self._page = page.render()
        own = "/v2/models/{model}"
        self.endpoints = (
            Endpoint("GET", "/", self.show_page, "A page to try the models on", gives="page", open=True),
            Endpoint("GET", "/v2/health/live", self.live, "Are the workers at work?", open=True),
            Endpoint("GET", "/v2/health/ready", self.ready, "May requests be sent?", open=True),
            Endpoint("GET", "/v2", self.server, "Name and version of the server", gives="server"),
            *(
                endpoint
                for place in (own, f"{own}/versions/{{version}}")
                for endpoint in (
                    Endpoint("GET", place, self.model, "Inputs and outputs of a model", gives="model"),
                    Endpoint("GET", f"{place}/ready", self.model_ready, "May requests be sent to this model?"),
                    Endpoint("POST", f"{place}/infer", self.infer, "Tensors in, tensors out", "tensors", "outputs"),
                )
            ),
            Endpoint("GET", "/v1/models", self.list_models, "What each model takes and says", gives="models"),
            Endpoint("POST", "/v1/predict", self.predict, "Dialogues to the only model", "dialogues", "predictions"),
            Endpoint(
                "POST", "/v1/models/{model}/predict", self.predict, "Dialogues to a model", "dialogues", "predictions"
            ),
            *(
                endpoint
                for place, to in (("/v1", "to the only model"), ("/v1/models/{model}", "to a model"))
                for endpoint in (
                    Endpoint(
                        "POST",
                        f"{place}/dialogues/{{dialogue}}/utterances",
                        self.say,
                        f"An utterance of a live dialogue {to}",
                        "spoken",
                        "answer",
                    ),
                    Endpoint("DELETE", f"{place}/dialogues/{{dialogue}}", self.end, "A live dialogue is over"),
                )
            ),
            Endpoint("GET", "/metrics", self.show_metrics, "Counts for Prometheus", gives="metrics"),
            Endpoint("GET", "/openapi.json", self.describe, "This description", gives="any"),
        )

    async def show_page(self, request: Request) -> Response:
        return HTMLResponse(self._page, headers=page.HEADERS)

    async def live(self, request: Request) -> Response:
        dead = [m.name for m in self.models.values() if not m.alive]
        if dead:
            raise Refusal(503, f"workers of {dead[0]} have died: start the server again")
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        if self.ending:
            raise overloaded("the server is ending")
        await self.live(request)
        return _json({"ready": True})

    async def server(self, request: Request) -> Response:
        return _json({"name": "mer", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def model(self, request: Request) -> Response:
        model = self._asked_for(request)
        predictor = model.engine.predictor
        return _json(protocol.metadata(model.name, f"mer_{predictor.backend}", predictor.contract))

    async def model_ready(self, request: Request) -> Response:
        if not self._asked_for(request).alive:
            raise overloaded("its workers have died")
        return _json({"ready": True})

    async def list_models(self, request: Request) -> Response:
        return _json({"models": [_told(m.name, m.engine) for m in self.models.values()]})

    async def show_metrics(self, request: Request) -> Response:
        for model in self.models.values():
            model.judge_features()
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def describe(self, request: Request) -> Response:
        return _json(openapi.document(self.endpoints, list(self.models), self.limits.most_bytes))

    async def infer(self, request: Request) -> Response:
        """Open Inference Protocol v2."""
        model = self._asked_for(request)
        body = await self._body(request)
        header = request.headers.get(protocol.HEADER_LENGTH)
        # Bytes behind the JSON are looked at where they are.
        asked = await aside(protocol.json_size(header, len(body)), lambda: protocol.read_request(body, header))
        deadline = self._deadline(request, asked.seconds)
        engine = model.engine
        with engine.used():
            samples = protocol.samples_of(asked.tensors, engine.predictor.contract)
            outputs = await engine.outputs(samples, deadline)
            engine.predictor.features.add(samples)
            arrays = protocol.stacked(outputs, engine.predictor.contract, asked.tensors)
        content, size = protocol.write_response(model.name, asked, arrays)
        if size is None:
            return Response(content, media_type=reading.JSON)
        return Response(content, media_type=openapi.BYTES, headers={protocol.HEADER_LENGTH: str(size)})

    async def predict(self, request: Request) -> Response:
        """Dialogues as `mer infer` reads them, answers as it writes them."""
        model = self._asked_for(request)
        content_type = request.headers.get("content-type", "")
        kind = reading.kind_of(content_type, model.engine.takes)
        body = await self._body(request)
        deadline, size = self._deadline(request), len(body)
        parts: recordings.Parts = {}
        if kind == recordings.FORM:
            body, parts = await recordings.opened(body, content_type)
        asked = await aside(size, lambda: reading.parse(body, kind, parts))
        if asked.clip_bytes > self.limits.most_bytes:
            raise Refusal(413, f"its recordings are longer than {self.limits.most_bytes} bytes: send less at once")
        self.room.take(request.scope["state"], asked.clip_bytes)
        rows = self._rows(model, asked, deadline, size)
        if asked.stream:
            # What is refused at once gets its status; later errors are a last line.
            first = await anext(rows)
            return StreamingResponse(_lines(first, rows, request), media_type=reading.LINES)
        return _json({"model": model.name, "predictions": [row async for row in rows]})

    async def say(self, request: Request) -> Response:
        """An utterance of a live dialogue, which is answered with what was said before."""
        model = self._asked_for(request)
        reading.require_json(request.headers.get("content-type", ""))
        body = await self._body(request)
        line = await aside(len(body), lambda: reading.spoken(body))
        talking, dialogue = self.talks[model.name], request.path_params["dialogue"]
        answer = await talking.say(dialogue, line, self._deadline(request))
        return _json({"model": model.name, **answer})

    async def end(self, request: Request) -> Response:
        model, dialogue = self._asked_for(request), request.path_params["dialogue"]
        await self.talks[model.name].end(dialogue)
        return _json({"dialogue": dialogue, "end": True})

    async def _rows(
        self, model: Model, asked: reading.Asked, deadline: Deadline, size: int
    ) -> AsyncIterator[dict[str, Any]]:
        engine = model.engine
        with engine.used():
            recordings.require_taken(asked.clips.values(), engine.takes)
            if engine.encoders is None:
                samples: list[Sample] = await aside(size, lambda: engine.reader.samples(asked))
            else:
                samples = await engine.encoders.samples(engine.reader, asked, deadline)
            async for prediction in engine.predictions(samples, deadline):
                yield json_row(prediction, engine.predictor.task)
            engine.predictor.features.add(samples)

    def _asked_for(self, request: Request) -> Model:
        """The model that the path names, or the only one."""
        names = list(self.models)
        if "model" not in request.path_params and len(names) > 1:
            raise Refusal(404, f"there are several models: POST to /v1/models/NAME/predict, one of {names}")
        name = request.path_params.get("model", names[0])
        model = self.models.get(name)
        if model is None:
            raise Refusal(404, f"no model {name[:100]!r}, there are {names}")
        if request.path_params.get("version", "1") != "1":
            raise Refusal(404, f"{model.name} has version 1 alone")
        request.state.model = model.name
        return model

    async def _body(self, request: Request) -> bytes:
        """All of the body, within what a request may take."""
        most, patience = self.limits.most_bytes, self.limits.deadline
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "the body is compressed: send it as it is")
        too_long = Refusal(413, f"the body is longer than {most} bytes: send less at once")
        said = request.headers.get("content-length", "0")
        if (whole_number(said) or 0) > most:
            raise too_long
        chunks, size, more = [], 0, True
        try:
            async with asyncio.timeout(patience):
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise malformed("the client went away before its body was there")
                    chunk = message.get("body", b"")
                    size, more = size + len(chunk), message.get("more_body", False)
                    if size > most:
                        raise too_long
                    self.room.take(request.scope["state"], len(chunk))
                    chunks.append(chunk)
        except TimeoutError:
            raise Refusal(408, f"the body did not come within {patience:g} s") from None
        return b"".join(chunks)

    def _deadline(self, request: Request, asked: float | None = None) -> Deadline:
        """The least of what the server, the header and the protocol allow."""
        said = request.headers.get(TIMEOUT)
        try:
            wanted = math.inf if said is None else float(said)
        except ValueError:
            wanted = math.nan
        if not wanted > 0:
            raise malformed(f"{TIMEOUT} is {str(said)[:20]!r}, it must be a number of seconds")
        return Deadline.after(min(self.limits.deadline, wanted, asked or math.inf))


async def aside(size: int, work: Callable[[], Made]) -> Made:
    """The result of work on so many bytes, in a thread where there are many."""
    return await asyncio.to_thread(work) if size > ASIDE else work()


def _told(name: str, engine: Engine) -> dict[str, Any]:
    """What somebody has to know to ask a model."""
    predictor = engine.predictor
    manifest, task = predictor.bundle.manifest, predictor.task
    return {
        "name": name,
        "system": manifest.system,
        "runtime": predictor.backend,
        "precision": predictor.precision,
        "task": task.kind,
        "labels": task.labels,
        "limits": task.limits if task.kind == "regression" else None,
        "modalities": predictor.contract.modalities,
        "sentences": engine.reader.takes_sentences,
        "recordings": engine.takes,
        "example": engine.reader.example(),
    }


def _json(content: Any) -> Response:
    return Response(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"), media_type=reading.JSON)


async def _lines(first: Any, rows: AsyncIterator[Any], request: Request) -> AsyncIterator[bytes]:
    """Rows as they come, one a line; an error ends them as a line of its own."""
    try:
        yield _line(first)
        async for row in rows:
            yield _line(row)
    except Exception as error:
        yield _line({"error": str(answered(error, request.state.number))})


def _line(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
