"""A served bundle as a process, and clients that ask it over loopback: bounded, few instructions per request."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from mer_export.data.samples import Sample
from mer_export.errors import NotAvailableError
from mer_export.launcher import module_command
from runtimes.serve.protocol import HEADER_LENGTH, NAMES

Form = Literal["json", "binary"]


@dataclass(frozen=True)
class Listening:
    """Where a server listens, and its process."""

    host: str
    port: int
    process: subprocess.Popen[str] | subprocess.Popen[bytes]

    def get(self, path: str) -> bytes:
        """The body of an answer."""
        (found,) = load(self, [request("GET", path)], clients=1, count=1)
        return found.body

    def cpu_seconds(self) -> float:
        """How long its process and those that it has started have computed, in them and in the system (Linux)."""
        said = {}
        for file in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                said[int(file.parent.name)] = file.read_text().rpartition(")")[2].split()
        own = [self.process.pid]
        for pid in own:
            own += [child for child, words in said.items() if int(words[1]) == pid]
        ticks = sum(int(said[pid][11]) + int(said[pid][12]) for pid in own if pid in said)
        return ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Served(Listening):
    """`mer serve`."""

    def counts(self) -> dict[str, float]:
        """Its metrics by name and labels."""
        lines = (line for line in self.get("/metrics").decode().splitlines() if line and line[0] != "#")
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def reloads(self, result: str = "done") -> float:
        """How often its bundles were opened anew, or failed to."""
        said = f'result="{result}"'
        return sum(n for name, n in self.counts().items() if name.startswith("mer_reloads_total") and said in name)


@contextmanager
def served(bundle: Path, *words: str) -> Iterator[Served]:
    """Serves a bundle for the block, without a log of requests; a process that is still there at its end is killed."""
    command = module_command("cli", "serve", str(bundle), "--port", "0", "--quiet", *words)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = process.stdout.readline().split()
            if not told:
                raise NotAvailableError(f"mer serve ended with exit code {process.wait()}")
            place = urlsplit(told[0])
            yield Served(str(place.hostname), int(place.port or 0), process)
        finally:
            process.kill()


def request(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """A request as it goes over the wire."""
    said = {"Host": "localhost", "Content-Length": str(len(body)), **(headers or {})}
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in said.items())])
    return head.encode() + b"\r\n\r\n" + body


def inference(model: str, sample: Sample, form: Form) -> bytes:
    """One unpadded item by the Open Inference Protocol."""
    return request("POST", f"/v2/models/{model}/infer", *tensors(sample, form))


def tensors(sample: Sample, form: Form) -> tuple[bytes, dict[str, str]]:
    """Body and headers of that."""
    described: list[dict[str, Any]] = []
    tail = b""
    for name, array in sample.inputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": NAMES[str(array.dtype)], "shape": [1, *array.shape]}
        if form == "binary":
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            tail += np.ascontiguousarray(array).tobytes()
        else:
            tensor["data"] = array.ravel().tolist()
        described.append(tensor)
    said = {"inputs": described, "parameters": {"binary_data_output": form == "binary"}}
    head = json.dumps(said).encode()
    return head + tail, {HEADER_LENGTH: str(len(head))} if form == "binary" else {"Content-Type": "application/json"}


@dataclass
class Found:
    """The answer to request number `asked`; status 0 where the connection ended without one."""

    asked: int
    seconds: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def output(self) -> np.ndarray:
        """The first output of an inference."""
        size = self.headers.get(HEADER_LENGTH.lower())
        (tensor, *_) = json.loads(self.body[: int(size)] if size else self.body)["outputs"]
        if size is None:
            return np.asarray(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
        count = math.prod(tensor["shape"])
        return np.frombuffer(self.body, np.float32, count, int(size)).reshape(tensor["shape"])


def load(
    server: Listening,
    requests: Sequence[bytes],
    clients: int,
    seconds: float | None = None,
    count: int | None = None,
    during: Callable[[], None] | None = None,
    pause: float = 0.0,
) -> list[Found]:
    """What clients get that each ask again as soon as they are answered, or a pause (s) later, over one connection.

    Ends after so many seconds or requests; `during` is called in the middle of that, beside them. Where neither is said
    it ends with `during`.
    """

    async def run() -> list[Found]:
        found: list[Found] = []
        until = None if seconds is None else time.perf_counter() + seconds
        over = asyncio.Event()
        numbers = iter(range(count)) if count is not None else _for_ever()

        async def client() -> None:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            try:
                for number in numbers:
                    if over.is_set() or (until is not None and time.perf_counter() > until):
                        return
                    answer = await _ask(reader, writer, requests, number % len(requests))
                    found.append(answer)
                    if pause:
                        await asyncio.sleep(pause)
                    if answer.headers.get("connection") == "close" or not answer.status:
                        return
            finally:
                writer.close()

        working = [asyncio.create_task(client()) for _ in range(clients)]
        if during is not None:
            while len(found) < (count or 100) // 2 and not all(task.done() for task in working):
                await asyncio.sleep(0.01)
            try:
                await asyncio.to_thread(during)
            finally:
                if seconds is None and count is None:
                    over.set()
        await asyncio.gather(*working)
        return found

    return asyncio.run(run())


def _for_ever() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, requests: Sequence[bytes], number: int
) -> Found:
    begun = time.perf_counter()
    try:
        writer.write(requests[number])
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
        body = await reader.readexactly(int(headers["content-length"]))
    except (OSError, asyncio.IncompleteReadError):
        return Found(number)
    return Found(number, time.perf_counter() - begun, int(first.split()[1]), headers, body)
