"""What clients, the operating system and changing bundles do to `mer serve`, and what it answers then."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import output
from benchmarks.endurance import GROWN_MIB
from benchmarks.fault_world import Row, World, place_in
from benchmarks.http_load import Found, Served, inference, load, request, served, tensors
from benchmarks.suite import samples_of
from mer_export.bundle import Bundle
from mer_export.data.samples import Sample
from runtimes.predict.predictor import Predictor

CLIENTS = 8
TOLERANCE = 1e-6
OPTIONS = ("--threads", "1", "--workers", "2")


def faults(world: World, count: int) -> list[Row]:
    """Every fault on the bundle of a world; `count` malformed requests, and a share of that of the others."""
    samples, (good, expected) = samples_in(world), requests_of(world)
    rows = []
    with served(world.bundle, *OPTIONS) as server:
        rows += [malformed(server, samples, "bundle", count), mixed(server, good, expected, 10 * count)]
        rows += [half_sent(server, good, expected, count // 50), memory(server, good, 2 * count)]
    rows += [
        overflow(world, good, expected, count),
        changed(world, good, expected, max(1, count // 1000)),
        ended(world, good, expected, max(1, count // 500), signal.SIGTERM),
        ended(world, good, expected, max(1, count // 1000), signal.SIGKILL),
    ]
    for row in rows:
        output.say(f"{row.fault}: {row.survived} of {row.tried}, {row.notes}")
    return rows


def samples_in(world: World) -> list[Sample]:
    """Made-up dialogues of every length that fits."""
    return samples_of(Bundle.open(world.bundle).manifest.contract, [{"utterances": n} for n in range(1, 33)])


def requests_of(world: World) -> tuple[list[bytes], list[np.ndarray]]:
    """The requests with these dialogues, one each, and what the predictor says of them."""
    samples = samples_in(world)
    with Predictor(Bundle.open(world.bundle)) as predictor:
        return [inference("bundle", s, "binary") for s in samples], predictor.scores(samples)


def right(answer: Found, expected: Sequence[np.ndarray]) -> bool:
    """Whether an answer is there and the predictor's."""
    if answer.status != 200:
        return False
    found, wanted = answer.output()[0], expected[answer.asked]
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() <= TOLERANCE)


def damaged(body: bytes, draw: random.Random) -> bytes:
    """A body with bytes changed, taken out, doubled, or its end cut off."""
    place, length = draw.randrange(len(body)), draw.randrange(1, 40)
    kind = draw.randrange(4)
    if kind == 0:
        return body[:place] + draw.randbytes(length) + body[place + length :]
    if kind == 1:
        return body[:place] + body[place + length :]
    if kind == 2:
        return body[:place] + body[place : place + length] + body[place:]
    return body[:place]


JUNK: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**70, 1e300, "", "word", "\0", "../../etc", [], {}, [[]], [1, [2]], {"a": 1}),
    *([float("nan")], ["x"] * 9, list(range(1000)), json.loads("[" * 400 + "]" * 400)),
)


def twisted(value: Any, draw: random.Random) -> Any:
    """JSON with something else in one place."""
    inner = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    if not inner or draw.random() < 0.15:
        return draw.choice(JUNK)
    changed, place = copy.copy(value), draw.choice(list(inner))
    changed[place] = twisted(changed[place], draw)
    return changed


def malformed(server: Served, samples: Sequence[Sample], model: str, count: int, seed: int = 0) -> Row:
    """Damaged bytes and JSON of another shape, tensors and dialogues: a sentence, or an answer all the same."""
    draw, row = random.Random(seed), Row("malformed requests")
    (told,) = (m for m in json.loads(server.get("/v1/models"))["models"] if m["name"] == model)
    dialogue, typed = {"dialogues": [told["example"]], "speakers": 2}, {"Content-Type": "application/json"}
    sent = []
    for number in range(count):
        sample, path = samples[number % len(samples)], f"/v2/models/{model}/infer"
        body, headers = tensors(sample, ("json", "binary")[number % 2])
        if number % 4 == 0:
            body = json.dumps(twisted(json.loads(body), draw)).encode()
        elif number % 4 == 1:
            body = damaged(body, draw)
        else:
            path, headers = f"/v1/models/{model}/predict", typed
            body = json.dumps(twisted(dialogue, draw)).encode()
            body = damaged(body, draw) if number % 8 == 7 else body
        sent.append(request("POST", path, body, headers))
    for answer in load(server, sent, CLIENTS, count=count):
        row.add(200 <= answer.status < 500, f"status {answer.status}")
    row.add(b"true" in server.get("/v2/health/live"), "alive after it")
    return row


def mixed(server: Served, good: Sequence[bytes], expected: Sequence[np.ndarray], count: int) -> Row:
    """Requests of mixed lengths from several clients: each gets the predictor's answer."""
    row = Row(f"{CLIENTS} clients with mixed lengths")
    for answer in load(server, good, CLIENTS, count=count):
        row.add(right(answer, expected), "right" if right(answer, expected) else f"status {answer.status}")
    return row


def half_sent(server: Served, good: Sequence[bytes], expected: Sequence[np.ndarray], count: int) -> Row:
    """Connections that stop in the middle of a head or a body, while others ask."""
    row = Row("others ask while so many connections stop half-way")
    with contextlib.ExitStack() as open_ones:
        for number in range(count):
            stuck = open_ones.enter_context(socket.create_connection((server.host, server.port)))
            stuck.sendall(good[0][: 20 if number % 2 else -20])
        row.notes["connections that stop"] = count
        for answer in load(server, good, CLIENTS, count=10 * count):
            row.add(right(answer, expected), "right" if right(answer, expected) else f"status {answer.status}")
    return row


def memory(server: Served, good: Sequence[bytes], count: int) -> Row:
    """What the process holds after many requests, against a tenth of them."""
    row, held = Row(f"{count} requests"), []
    for wanted in (count // 10, count):
        load(server, good, CLIENTS, count=wanted)
        held.append(_resident_mib(server.process.pid))
    grown = held[1] - held[0]
    row.add(grown <= GROWN_MIB, f"{held[1]:.0f} MiB, {grown:.0f} more than after a tenth of them")
    return row


def overflow(world: World, good: Sequence[bytes], expected: Sequence[np.ndarray], count: int) -> Row:
    """More clients than the queue holds: each gets its answer, or is told when to come again."""
    row = Row("64 clients, a queue of 4")
    with served(world.bundle, "--queue", "4", *OPTIONS) as server:
        for answer in load(server, good, 64, count=count):
            told = answer.status == 503 and answer.headers.get("retry-after") == "1"
            row.add(told or right(answer, expected), f"status {answer.status}")
    return row


def changed(world: World, good: Sequence[bytes], expected: Sequence[np.ndarray], count: int) -> Row:
    """The bundle changes while clients ask; it is opened anew, and nobody notices."""
    row = Row("the bundle changes under load")
    with place_in(world) as place, served(place / "bundle", *OPTIONS) as server:
        for _ in range(count):
            answers = load(server, good, CLIENTS, count=2000, during=lambda: change(server, place / "bundle"))
            lost = sum(not right(a, expected) for a in answers)
            row.add(not lost, f"{len(answers)} requests right" if not lost else f"{lost} lost")
    return row


def change(server: Served, bundle: Path) -> None:
    """Changes a bundle, and waits until its server has noticed."""
    before = server.reloads()
    with Bundle.open(bundle).commit() as staged:
        staged.write("reports/note.txt", str(time.time_ns()))
    while server.reloads() == before:
        time.sleep(0.1)


ROUNDS = 30


def soak(world: World, count: int) -> list[Row]:
    """`count` requests to one process: right and malformed ones, connections that stop half-way, a bundle that changes.

    Memory, descriptors and threads of the last third of the rounds are held against the middle one: until then caches
    fill, and allocators keep what opening the bundle anew takes.
    """
    samples, (good, expected), part = samples_in(world), requests_of(world), count // ROUNDS
    row, held = Row(f"{count} requests of every kind to one process"), []
    with place_in(world) as place, served(place / "bundle", *OPTIONS) as server:
        for number in range(ROUNDS):
            rounds = [
                mixed(server, good, expected, part * 3 // 4),
                malformed(server, samples, "bundle", part // 5, seed=number),
                half_sent(server, good, expected, max(1, part // 200)),
            ]
            change(server, place / "bundle")
            fine = all(r.survived == r.tried for r in rounds)
            row.add(fine, "rounds answered" if fine else f"round {number}: {[r.notes for r in rounds]}")
            held.append(_held(server.process.pid))
    middle, last = (_most(third) for third in (held[ROUNDS // 3 : -ROUNDS // 3], held[-ROUNDS // 3 :]))
    grown = {name: last[name] - middle[name] for name in last}
    flat = grown["MiB"] <= GROWN_MIB and grown["descriptors"] <= 0 and grown["threads"] <= 0
    row.add(flat, f"at most {_said(last)}, more than in the rounds before: {_said(grown)}")
    output.say(f"{row.fault}: {row.survived} of {row.tried}, {row.notes}, {held}")
    return [row]


def _held(process: int) -> dict[str, int]:
    """What a process holds, its closed connections apart, which go a moment later."""
    time.sleep(1)
    folders = {"descriptors": "fd", "threads": "task"}
    counts = {name: len(os.listdir(f"/proc/{process}/{folder}")) for name, folder in folders.items()}
    return {"MiB": round(_resident_mib(process)), **counts}


def _most(rounds: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: max(held[name] for held in rounds) for name in rounds[0]}


def _said(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items())


def ended(
    world: World, good: Sequence[bytes], expected: Sequence[np.ndarray], count: int, number: signal.Signals
) -> Row:
    """A signal under load. SIGTERM: every request is answered, exit code 0. SIGKILL: no answer is wrong."""
    row = Row(f"{number.name} under load")
    for _ in range(count):
        with served(world.bundle, *OPTIONS) as server:
            answers = load(server, good, CLIENTS, seconds=60, during=lambda: server.process.send_signal(number))
            wrong = sum(not right(a, expected) for a in answers if a.status)
            lost = sum(not a.status for a in answers)
            code = server.process.wait()
        fine = not wrong and (number == signal.SIGKILL or (not lost and code == 0))
        row.add(fine, f"exit code {code}, {wrong} wrong, {lost if number == signal.SIGTERM else 'any number'} lost")
    return row


def _resident_mib(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmRSS"))
