"""The server's application, called directly: what waits, what is full or late, and what does not come or go on."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
from serving import Held, counted, error, in_a_loop, inside, tensors

from mer_export.bundle import Bundle
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.open import stream_samples
from mer_export.data.overflow import Piece
from mer_export.data.samples import Sample
from runtimes.pipeline import How
from runtimes.predict.predictor import Part, Predictor
from runtimes.serve import server as server_module
from runtimes.serve.batching import WINDOW, Deadline, Job, _alike
from runtimes.serve.server import Place
from runtimes.serve.service import Limits

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


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    found = Held(monkeypatch)
    yield found
    found.free.set()


@in_a_loop
async def test_a_full_queue_is_said_at_once_and_what_waits_is_answered(samples: list[Sample], held: Held) -> None:
    async with inside(BUNDLE, how=ALONE, limits=Limits(queue=2)) as server:
        request = tensors(samples[:1], True)
        running = asyncio.create_task(server.ask("POST", INFER, *request))
        await held.taken()
        waiting = [asyncio.create_task(server.ask("POST", INFER, *request)) for _ in range(2)]
        while server.service.models["cmerc"].depth < 2:
            await asyncio.sleep(0)
        refusal = await server.ask("POST", INFER, *request)
        assert error(refusal) == (
            503,
            "1 more do not fit into the queue, where 2 of 2 wait: try again later, or send less at once",
        )
        assert refusal.headers["retry-after"] == "1"
        too_much = await server.ask("POST", INFER, *tensors([samples[0]] * 3, True))
        assert error(too_much) == (413, "3 parts at once are more than the queue holds (2): send less")
        held.free.set()
        assert [a.status for a in await asyncio.gather(running, *waiting)] == [200] * 3


@in_a_loop
async def test_whatever_waits_for_a_worker_runs_in_one_batch(samples: list[Sample], held: Held) -> None:
    async with inside(BUNDLE, how=How(workers=1, batch=16)) as server:
        running = [asyncio.create_task(server.ask("POST", INFER, *tensors(samples[:1], True)))]
        await held.taken()
        running += [asyncio.create_task(server.ask("POST", INFER, *tensors(samples[:1], True))) for _ in range(5)]
        while server.service.models["cmerc"].depth < 5:
            await asyncio.sleep(0)
        held.free.set()
        assert [a.status for a in await asyncio.gather(*running)] == [200] * 6
        assert counted(server, 'mer_batch_size_count{model="cmerc"}') == 2
        assert counted(server, 'mer_batch_size_sum{model="cmerc"}') == 6


def waiting(lengths: list[int]) -> deque[Job]:
    """Parts of these lengths, the first one waits longest."""
    answer: Any = None
    pieces = [Piece(Sample(str(i), {}, ()), slice(0, n), 0, {"utterances": n}) for i, n in enumerate(lengths)]
    return deque(Job(Part(None, p), Deadline.after(60), i, answer) for i, p in enumerate(pieces))


def taken(queue: deque[Job], most: int) -> list[int]:
    """The numbers of the parts of the next batch."""
    return sorted(int(job.part.piece.sample.id) for job in _alike(queue, most))


def test_of_more_parts_than_run_together_those_of_like_length_do() -> None:
    queue = waiting([5, 9, 1, 5, 9, 2, 9, 5, 1])
    assert taken(queue, 3) == [0, 3, 7], "as long as the one that waits longest"
    assert taken(queue, 3) == [1, 4, 6]
    assert [job.asked for job in queue] == [2, 5, 8], "what is left waits in its order"
    assert taken(queue, 3) == [2, 5, 8]
    assert not queue


def test_the_part_that_waits_longest_is_in_every_batch_with_none_that_is_longer_unless_there_are_too_few() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        most = int(draw.integers(1, 6))
        queue = waiting(draw.integers(1, 8, int(draw.integers(1, 40))).tolist())
        there = [job.part.piece.lengths["utterances"] for job in queue]
        first, oldest = queue[0], there[: WINDOW * most]
        batch = _alike(queue, most)
        assert first in batch
        assert len(batch) == min(most, len(there))
        assert len({*batch, *queue}) == len(batch) + len(queue) == len(there)
        if sum(n <= there[0] for n in oldest) >= most:
            assert max(job.size for job in batch) == there[0]


@in_a_loop
async def test_what_comes_too_late_is_said_and_not_computed(samples: list[Sample], held: Held) -> None:
    async with inside(BUNDLE, how=ALONE, limits=Limits(deadline=60)) as server:
        body, headers = tensors(samples[:1], True)
        running = asyncio.create_task(server.ask("POST", INFER, body, headers))
        await held.taken()
        late = await server.ask("POST", INFER, body, headers | {"X-Request-Timeout": "0.02"})
        sentence = "no answer within the deadline of 0.02 s: ask for less at once, or allow more time"
        assert error(late) == (504, sentence)
        asked = json.loads(tensors(samples[:1], False)[0]) | {"parameters": {"timeout": 10_000}}
        late = await server.ask("POST", INFER, json.dumps(asked).encode())
        assert error(late) == (504, sentence.replace("0.02", "0.01"))
        held.free.set()
        assert (await running).status == 200
        assert (await server.ask("POST", INFER, body, headers)).status == 200
        assert counted(server, 'mer_batch_size_sum{model="cmerc"}') == 2


@in_a_loop
async def test_a_request_that_is_called_off_makes_room_for_the_next(samples: list[Sample], held: Held) -> None:
    async with inside(BUNDLE, how=ALONE, limits=Limits(queue=2)) as server:
        body, headers = tensors(samples[:1], True)
        running = asyncio.create_task(server.ask("POST", INFER, body, headers))
        await held.taken()
        for _ in range(3):
            two = tensors([samples[0]] * 2, True)
            late = await server.ask("POST", INFER, two[0], two[1] | {"X-Request-Timeout": "0.01"})
            assert late.status == 504
            assert server.service.models["cmerc"].depth == 0
        held.free.set()
        assert (await running).status == 200
        assert (await server.ask("POST", INFER, body, headers)).status == 200


@in_a_loop
async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async with inside(BUNDLE, limits=Limits(deadline=0.05)) as server:
        answer = await server.ask("POST", INFER, b'{"inp', ends=False)
        assert error(answer) == (408, "the body did not come within 0.05 s")


@in_a_loop
async def test_a_client_that_does_not_say_what_it_asks_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "IDLE", 0.05)
    monkeypatch.setattr(server_module, "LINGER", 0.01)
    async with inside(BUNDLE) as served:
        place, ready = Place(port=0), asyncio.Event()
        with place.bind() as listening:
            server = server_module.Server(server_module.configured(served.service, place), served.service, ready.set)
            running = asyncio.create_task(server.serve([listening]))
            await ready.wait()
            for said in (b"", b"GE", b"GET /v2 HTTP/1.1\r\nHost: local"):
                reader, writer = await asyncio.open_connection(*listening.getsockname())
                writer.write(said)
                assert await asyncio.wait_for(reader.read(), 60) == b""
                writer.close()
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.read(15)) == b"HTTP/1.1 200 OK"
            writer.close()
            server.should_exit = True
            await running


@in_a_loop
async def test_a_body_without_a_length_is_cut_off_where_it_grows_too_long() -> None:
    async with inside(BUNDLE, limits=Limits(most_bytes=1000)) as server:
        answer = await server.ask("POST", INFER, b"x" * 1001, ends=False)
        assert error(answer) == (413, "the body is longer than 1000 bytes: send less at once")


@in_a_loop
async def test_one_that_cannot_be_answered_takes_none_of_its_neighbours_with_it(
    samples: list[Sample], held: Held
) -> None:
    async with inside(BUNDLE, how=How(workers=1, batch=16)) as server:
        good, bad = samples[0], {n: a.copy() for n, a in samples[0].inputs.items()}
        bad["audio"][0, 0] = np.nan
        first = asyncio.create_task(server.ask("POST", INFER, *tensors([good], True)))
        await held.taken()
        asked = [good, Sample("bad", bad, good.units), good]
        running = [asyncio.create_task(server.ask("POST", INFER, *tensors([s], True))) for s in asked]
        while server.service.models["cmerc"].depth < 3:
            await asyncio.sleep(0)
        held.free.set()
        expected, *found = await asyncio.gather(first, *running)
        assert [a.status for a in found] == [200, 422, 200]
        assert error(found[1])[1].startswith("item 0: audio holds nan at (0, 0)")
        assert found[0].body == found[2].body == expected.body


@in_a_loop
async def test_bodies_that_do_not_end_hold_so_many_bytes_together_and_the_next_is_told_to_come_again() -> None:
    part = bytes(1000)
    async with inside(BUNDLE, limits=Limits(most_bytes=2000)) as server:
        room = server.service.room
        stuck = [asyncio.create_task(server.ask("POST", INFER, part, ends=False)) for _ in range(room.most // 1000)]
        while room.held < room.most:
            await asyncio.sleep(0)
        assert error(await server.ask("POST", INFER, part)) == (
            503,
            "the server holds 32000 bytes of requests, of 32000 at most: try again later",
        )
        for task in stuck:
            task.cancel()
        await asyncio.wait(stuck)
        assert room.held == 0
        assert (await server.ask("POST", INFER, part)).status == 400


@in_a_loop
async def test_health_says_when_a_worker_has_died(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    def deadly(*_: object) -> None:
        raise SystemExit

    async with inside(BUNDLE, how=ALONE) as server:
        assert (await server.ask("GET", "/v2/health/live")).said == {"live": True}
        monkeypatch.setattr(Predictor, "batch_for", deadly)
        body, headers = tensors(samples[:1], True)
        running = asyncio.create_task(server.ask("POST", INFER, body, headers))
        while (await server.ask("GET", "/v2/health/live")).status == 200:
            await asyncio.sleep(0)
        running.cancel()
        assert (await server.ask("POST", INFER, body, headers | {"X-Request-Timeout": "0.01"})).status == 504
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/cmerc/ready"):
            assert (await server.ask("GET", path)).status == 503


@in_a_loop
async def test_a_server_that_ends_says_so() -> None:
    async with inside(BUNDLE) as server:
        server.service.ending = True
        assert error(await server.ask("GET", "/v2/health/ready")) == (503, "the server is ending")
        answer = await server.ask("GET", "/v2/health/live")
        assert (answer.status, answer.headers["connection"]) == (200, "close")
