"""The application: the service's endpoints behind a gate that every request passes."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping, Sequence
from itertools import count
from secrets import token_hex
from time import perf_counter

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtimes.serve import reading
from runtimes.serve.journal import note
from runtimes.serve.openapi import Endpoint
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


class Routes:
    """From a request to its endpoint by the parts of its path: a table, as there are few."""

    def __init__(self, endpoints: Sequence[Endpoint]):
        self._table: dict[int, list[tuple[list[str], dict[str, Endpoint]]]] = {}
        for endpoint in endpoints:
            parts = endpoint.path.split("/")
            alike = self._table.setdefault(len(parts), [])
            there = next((methods for p, methods in alike if p == parts), None)
            if there is None:
                alike.append((parts, {endpoint.method: endpoint}))
            else:
                there[endpoint.method] = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            endpoint = self._find(scope)
            request.state.route = endpoint.path
            response = await endpoint.answer(request)
        except Exception as error:
            response = refused(answered(error, request.state.number))
        await response(scope, receive, send)

    def _find(self, scope: Scope) -> Endpoint:
        """What answers; raises Refusal (404, 405) where nothing does."""
        said = scope["path"].split("/")
        for parts, methods in self._table.get(len(said), ()):
            names = _matched(parts, said)
            if names is None:
                continue
            asked = "GET" if scope["method"] == "HEAD" else scope["method"]
            if asked not in methods:
                allowed = [*methods, *(["HEAD"] if "GET" in methods else [])]
                raise Refusal(405, f"{scope['method']} is not answered here", {"Allow": ", ".join(allowed)})
            scope["path_params"] = names
            return methods[asked]
        raise Refusal(404, "there is nothing here: see /openapi.json")


def _matched(parts: Sequence[str], said: Sequence[str]) -> dict[str, str] | None:
    """What a path says for the names in braces; None where it is another one."""
    names = {}
    for part, word in zip(parts, said, strict=True):
        if part.startswith("{") and word:
            names[part[1:-1]] = word
        elif part != word:
            return None
    return names


def build(service: Service, token: str | None = None, hosts: frozenset[str] | None = None) -> ASGIApp:
    """The ASGI application."""
    return Gate(Routes(service.endpoints), service, token, hosts)


def refused(refusal: Refusal) -> Response:
    """The answer to a request that is not answered: one sentence, where the protocol has it."""
    content = json.dumps({"error": str(refusal)}).encode()
    return Response(content, refusal.status, refusal.headers, reading.JSON)
