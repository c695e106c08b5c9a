"""The process: opens the models, listens, and ends when it is told to without losing what it has begun."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mer_export.errors import UsageError
from mer_export.malloc import one_arena
from runtimes.pipeline import How
from runtimes.serve.app import LOOPBACK, build
from runtimes.serve.journal import note
from runtimes.serve.metrics import Metrics
from runtimes.serve.models import Model, named
from runtimes.serve.service import Limits, Service
from runtimes.serve.talk import Options

CONNECTIONS = 1024
"""Connections at a time; who comes then is sent away with 503."""
IDLE = 60.0
"""Seconds for which a connection may rest, or take to say what it asks."""
LONGEST_HEAD = 64 << 10
"""Bytes of a request that are not of its body."""
LINGER = 1.0
"""Seconds for which connections that are open when the server ends may still bring a last request."""


@dataclass(frozen=True)
class Place:
    """Where the server listens, and who may ask."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    open_to_all: bool = False

    def __post_init__(self) -> None:
        if not self.loopback and self.token is None and not self.open_to_all:
            raise UsageError(
                f"--host {self.host} lets others in: pass --token-file, or --no-token if everybody there may ask"
            )

    @property
    def loopback(self) -> bool:
        """Whether this machine alone can ask."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def bind(self) -> socket.socket:
        """The socket, which does not listen yet; raises UsageError where it cannot be had."""
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            found = socket.socket(family, kind, protocol)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except OSError as error:
            said = (error.strerror or str(error)).lower()
            raise UsageError(f"--host {self.host} --port {self.port}: {said}: choose others") from None
        return found


def read_token(path: Path) -> str:
    """The token in a file; raises UsageError for an empty one, or one that no header can carry."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise UsageError(f"--token-file {path} cannot be read: {why}") from None
    if not token.isprintable() or not token or " " in token:
        raise UsageError(f"--token-file {path} must hold one word: the token")
    return token


class Joined:
    """A transport that sends what is written in one turn of the event loop, head and body of an answer, at once."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop):
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """Also ends a connection whose client does not say in time what it asks, for which uvicorn waits for ever, or says
    it at a length that nobody needs."""

    _patience: asyncio.TimerHandle | None = None
    _asked = False
    """Whether the head of a request was read whose body is not."""
    _framing = _carried = 0
    """Bytes of the message that comes which are not of its body, and those that are."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Joined(transport, self.loop))  # type: ignore[arg-type]
        self._wait()

    def data_received(self, data: bytes) -> None:
        if not self._asked:
            self._wait()
        self._framing += len(data)
        super().data_received(data)
        # Chunks may be as small as a byte, which takes five more to say.
        if self._framing > LONGEST_HEAD + 8 * self._carried and not self.transport.is_closing():
            self.send_400_response("The request has too long a head.")

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._asked, self._framing, self._carried = True, 0, 0
        self._rest()

    def on_body(self, body: bytes) -> None:
        self._framing -= len(body)
        self._carried += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._asked, self._framing = False, 0

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(IDLE, self._give_up)

    def _rest(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if self.cycle is None or self.cycle.response_complete:
            self.timeout_keep_alive_handler()
        else:
            # The answer to what was asked before is still to come.
            self._wait()


class Server(uvicorn.Server):
    """Ends on SIGTERM or Ctrl-C: takes no new connections, gives those that are open a last answer, and no error."""

    def __init__(self, config: uvicorn.Config, service: Service, when_ready: Callable[[], None]):
        super().__init__(config)
        self._service, self._when_ready = service, when_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._when_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.ending = True
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        until = loop.time() + LINGER
        while self.server_state.connections and loop.time() < until and not self.force_exit:
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would end the process by the signal once more, after all is done.
        self.force_exit = self.should_exit
        self.should_exit = True


def serve_until_told(
    roots: Sequence[Path],
    how: How,
    limits: Limits,
    place: Place,
    say: Callable[[str], None],
    live: Options = Options(),
) -> None:
    """Serves bundles until the process is told to end.

    Args:
        roots: directories of bundles, whose names the models get.
        how: how they are run.
        limits: what requests may take.
        place: where to listen.
        say: told the address, and what is served there, once requests are answered.
        live: how live dialogues are kept.

    Raises:
        MerError: a bundle that cannot be opened, or a place that cannot be had.
    """
    one_arena()
    metrics = Metrics()
    models = named(roots, how, metrics, limits.queue)
    listening = place.bind()
    service = Service(models, metrics, limits, live)
    host = f"[{place.host}]" if ":" in place.host else place.host
    address = f"http://{host}:{listening.getsockname()[1]}/"
    server = Server(
        configured(service, place),
        service,
        lambda: say(f"{address} serves {', '.join(m.told for m in models.values())}"),
    )
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(_run(server, models.values(), listening))
    note("ended")


def configured(service: Service, place: Place) -> uvicorn.Config:
    """How uvicorn runs the application of a service."""
    hosts = LOOPBACK | {place.host} if place.loopback and place.token is None else None
    return uvicorn.Config(
        build(service, place.token, hosts),
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # Nobody reads who asks, and a proxy's word for it would be anybody's.
        proxy_headers=False,
        timeout_keep_alive=int(IDLE),
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=int(service.limits.deadline) + 1,
    )


async def _run(server: Server, models: Collection[Model], listening: socket.socket) -> None:
    for model in models:
        await model.open()
    following = [asyncio.create_task(model.follow()) for model in models]
    try:
        await server.serve([listening])
    finally:
        for task in following:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if not server.force_exit:
            await asyncio.gather(*(model.close() for model in models))
