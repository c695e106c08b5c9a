"""The application: the service's endpoints behind a gate that every request passes."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from itertools import count
from secrets import token_hex
from time import perf_counter

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtimes.serve import reading
from runtimes.serve.journal import note
from runtimes.serve.openapi import Endpoint, Handler
from runtimes.serve.refusals import Refusal, answered
from runtimes.serve.service import Service

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""What a browser calls this machine: a page of somebody else's that has its own name lead here does not."""


class Gate:
    """Around every request: who may ask, what is counted and logged, and how errors look."""

    def __init__(self, app: ASGIApp, service: Service, token: str | None, hosts: frozenset[str] | None):
        """`token` None asks for none; `hosts` are the names that the server may be asked under, None is any."""
        self.app, self.service, self.hosts = app, service, hosts
        self._token = None if token is None else f"Bearer {token}".encode()
        self._start, self._numbers = token_hex(4), count(1)
        self._open = {e.path for e in service.endpoints if e.open}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        number, begun, status = f"{self._start}-{next(self._numbers)}", perf_counter(), 500
        state = scope.setdefault("state", {})
        state["number"] = number

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._headers(number)]
            await send(message)

        try:
            await self._answer(scope, receive, watched)
        finally:
            self.service.room.give_back(state)
            seconds = perf_counter() - begun
            route, model = state.get("route", "other"), state.get("model", "")
            self.service.metrics.requests.labels(model, route, status).inc()
            self.service.metrics.seconds.labels(route).observe(seconds)
            said = {"request": number, "method": scope["method"], "route": route, "model": model or None}
            note("request", **said, status=status, ms=round(1000 * seconds, 3))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._admit(scope)
        except Refusal as refusal:
            await refused(refusal)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        """Raises Refusal for whoever may not ask."""
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts is not None and host.rpartition(":")[0] not in self.hosts and host not in self.hosts:
            raise Refusal(421, "this server answers to the name of this machine alone: ask http://127.0.0.1")
        if self._token is None or scope["path"] in self._open:
            return
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._token):
            raise Refusal(401, "a token is needed: send Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    def _headers(self, number: str) -> list[tuple[bytes, bytes]]:
        found = [(b"x-request-id", number.encode()), (b"x-content-type-options", b"nosniff")]
        # Whoever keeps a connection sees with the last answer that no more will be taken on it.
        return [*found, (b"connection", b"close")] if self.service.ending else found


def build(service: Service, token: str | None = None, hosts: frozenset[str] | None = None) -> ASGIApp:
    """The ASGI application."""
    routes = [Route(e.path, _guarded(e), methods=[e.method]) for e in service.endpoints]
    return Gate(Starlette(routes=routes, exception_handlers={HTTPException: _not_routed}), service, token, hosts)


def refused(refusal: Refusal) -> Response:
    """The answer to a request that is not answered: one sentence, where the protocol has it."""
    content = json.dumps({"error": str(refusal)}).encode()
    return Response(content, refusal.status, refusal.headers, reading.JSON)


def _guarded(endpoint: Endpoint) -> Handler:
    """What answers, with errors as answers; what is our own fault is logged, without what was sent."""

    async def guarded(request: Request) -> Response:
        request.state.route = endpoint.path
        try:
            return await endpoint.answer(request)
        except Exception as error:
            return refused(answered(error, request.state.number))

    return guarded


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = {404: "there is nothing here: see /openapi.json", 405: f"{request.method} is not answered here"}
    return refused(Refusal(error.status_code, sentence.get(error.status_code, error.detail), error.headers))
