"""Recordings and sentences over HTTP: a bundle with encoders answers what `mer infer` does of the same files."""

from __future__ import annotations

import asyncio
import base64
import csv
import errno
import gc
import io
import json
import os
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
soundfile = pytest.importorskip("soundfile")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("python_multipart")

from conftest import Mer  # noqa: E402
from serving import JSON, Answer, Inside, in_a_loop, inside  # noqa: E402

from benchmarks.small_encoders import save_folder  # noqa: E402
from mer_export.bundle import Bundle  # noqa: E402
from mer_export.data.dialogues import Utterance  # noqa: E402
from mer_export.encoders.attached import attach  # noqa: E402
from mer_export.encoders.encoder import Encoder  # noqa: E402
from mer_export.encoders.faces import sample_frames  # noqa: E402
from mer_export.encoders.signal.folder import write_signal_encoder  # noqa: E402
from mer_export.exporters import export_variant  # noqa: E402
from mer_export.exporters.encoders.transformers_folder import Wanted, import_folder  # noqa: E402
from runtimes.features import encoded  # noqa: E402
from runtimes.pipeline import How  # noqa: E402
from runtimes.serve import reading  # noqa: E402
from runtimes.serve.reading import Asked  # noqa: E402
from runtimes.serve.scratch import Scratch  # noqa: E402
from runtimes.serve.service import Limits  # noqa: E402

PREDICT = "/v1/predict"
DATA = Path(__file__).parent / "data"
ROWS = [("hello there you", 1.0), ("a", 0.4), ("", 0.7), ("the quick brown fox", 0.0), ("", 0.0)]
"""A sentence and seconds of sound: the third says nothing, the fourth is silent, of the last there is nothing."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is exported already, with encoders of text and of sound that have its widths."""
    folder = tmp_path_factory.mktemp("model")
    save_folder("bert", folder / "source", hidden_size=7, num_attention_heads=1)
    text = import_folder(folder / "source", folder / "text", Wanted(longest=24, buckets=(24,)))
    export_variant(text, "onnx", text.manifest.contract.buckets[0])
    audio = write_signal_encoder("mfcc", folder / "audio", coefficients=5, pooling="mean")
    bundle = Bundle.open(shutil.copytree(DATA / "bundles" / "emt", folder / "emt"))
    attach(bundle, {"text": [Encoder.open(text.root)], "audio": [Encoder.open(audio.root)]})
    return bundle.root


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recordings of the rows, and a table that names them."""
    folder = tmp_path_factory.mktemp("clips")
    with (folder / "clips.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["recording", "sentence"])
        for number, (sentence, seconds) in enumerate(ROWS):
            noise = 0.1 * np.random.default_rng(number).standard_normal(round(16000 * (seconds or 0.5)))
            soundfile.write(folder / f"{number}.wav", noise * (seconds > 0), 16000)
            table.writerow([f"{number}.wav", sentence])
    return folder


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files lie."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def sound(path: Path) -> dict[str, str]:
    return {"data": base64.b64encode(path.read_bytes()).decode()}


def form(parts: Mapping[str, bytes | str]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a form: texts are fields, bytes are files."""
    body = b""
    for name, content in parts.items():
        file, data = ('; filename="x"', content) if isinstance(content, bytes) else ("", content.encode())
        body += f'--cut\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b"\r\n"
    return body + b"--cut--\r\n", {"Content-Type": "multipart/form-data; boundary=cut"}


async def utterances(server: Inside, *given: dict[str, Any]) -> Answer:
    return await server.ask("POST", PREDICT, json.dumps({"utterances": given}).encode(), JSON)


def near(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    """The same modalities, and scores as near as batches of another size leave them; no score is NaN."""
    scores = [np.array([r["score"] for r in rows], dtype=float) for rows in (found, wanted)]
    used = [[r["modalities"] for r in rows] for rows in (found, wanted)]
    return used[0] == used[1] and np.allclose(*scores, atol=1e-5, equal_nan=True)


@in_a_loop
async def _answers_in_every_form(model: Path, clips: Path, wanted: list[dict[str, Any]], scratch: Path) -> None:
    said = [{"id": str(i), "sentence": s} for i, (s, _) in enumerate(ROWS)]
    files = {f"clip{i}": (clips / f"{i}.wav").read_bytes() for i in range(len(ROWS))}
    async with inside(model) as server:
        inline = await utterances(server, *(u | {"sound": sound(clips / f"{u['id']}.wav")} for u in said))
        assert inline.status == 200, inline.body
        dialogue = {"utterances": [u | {"sound": {"part": f"clip{u['id']}"}} for u in said]}
        parts = await server.ask("POST", PREDICT, *form({"dialogue": json.dumps(dialogue), **files}))
        assert parts.status == 200, parts.body
        alone = await server.ask("POST", PREDICT, *form({"clip": files["clip2"]}))
        words = await utterances(server, {"sentence": ROWS[3][0]})
        assert near(inline.said["predictions"], wanted)
        assert near(parts.said["predictions"], wanted)
        assert near(alone.said["predictions"], wanted[2:3])
        assert near(words.said["predictions"], wanted[3:4])
        (told,) = (await server.ask("GET", "/v1/models")).said["models"]
        assert (told["sentences"], told["recordings"]) == (True, ["sound", "video"])
        count = 'mer_stage_seconds_count{model="emt",stage="encode"} 4.0'
        assert count in (await server.ask("GET", "/metrics")).body.decode()
    assert not list(scratch.glob("mer-serve-*"))


def test_recordings_and_sentences_get_what_infer_writes_of_the_files(
    model: Path, clips: Path, mer: Mer, tmp_path: Path, scratch: Path
) -> None:
    code, _, err = mer("infer", model, clips / "clips.csv", "-o", tmp_path / "out.jsonl")
    assert code == 0, err
    wanted = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [a["modalities"] for a in wanted] == [["text", "audio"], ["text", "audio"], ["audio"], ["text"], []]
    _answers_in_every_form(model, clips, wanted, scratch)


@in_a_loop
async def _answers_live(model: Path, clips: Path, wanted: list[dict[str, Any]]) -> None:
    async with inside(model) as server:
        for number, (sentence, _) in enumerate(ROWS):
            said = {"id": str(number), "sentence": sentence, "sound": sound(clips / f"{number}.wav")}
            answer = await server.ask("POST", "/v1/dialogues/a/utterances", json.dumps(said).encode(), JSON)
            assert answer.status == 200, answer.body
            assert near([answer.said["prediction"]], wanted[number : number + 1])
        broken = {"sound": {"data": base64.b64encode(b"RIFF" + bytes(99)).decode()}}
        answer = await server.ask("POST", "/v1/dialogues/a/utterances", json.dumps(broken).encode(), JSON)
        assert answer.status == 422


def test_utterances_of_a_live_dialogue_are_encoded_as_those_of_a_file(
    model: Path, clips: Path, mer: Mer, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mer("infer", model, clips / "clips.csv", "-o", tmp_path / "out.jsonl")[0] == 0
    wanted = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    _answers_live(model, clips, wanted)
    monkeypatch.chdir(clips)
    said = [{"dialogue": "a", "sentence": s, "recording": f"{i}.wav"} for i, (s, _) in enumerate(ROWS)]
    lines = "".join(json.dumps(line) + "\n" for line in said).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    code, out, err = mer("infer", model, "--live")
    assert code == 0, err
    assert near([json.loads(row)["prediction"] for row in out.splitlines()], wanted)


@in_a_loop
async def test_what_is_wrong_with_a_recording_is_one_sentence(model: Path, clips: Path, scratch: Path) -> None:
    whole = (clips / "0.wav").read_bytes()
    cut = {"data": base64.b64encode(whole[:2000]).decode()}
    where = "the sound of utterance 0 of dialogue 0"
    async with inside(model, limits=Limits(most_bytes=100_000)) as server:
        for given, status, words in (
            ({"sound": cut}, 422, f"{where} claims"),
            ({"sound": {"data": "bm8gc291bmQ="}}, 422, where),
            ({"sound": {"data": "no base64!"}}, 400, f"{where} is not base64"),
            ({"sound": "0.wav"}, 400, f'{where} must be {{"data": BASE64}}'),
            ({"sound": {"part": "clip"}}, 400, f"{where} is the part 'clip', there are []"),
            ({"sound": cut, "video": cut}, 400, "utterance 0 has ['sound', 'video']"),
            ({"recording": "0.wav"}, 422, "no file is read here"),
        ):
            answer = await utterances(server, given)
            assert (answer.status, words in answer.said["error"]) == (status, True), answer.body
            assert str(scratch) not in answer.said["error"]
        named = json.dumps({"utterances": [{"sound": {"part": "one"}}] * 4})
        for parts, status, words in (
            ({"dialogue": named, "one": whole}, 413, "its recordings are longer than 100000 bytes"),
            ({"dialogue": named, "one": whole[:9], "two": b"x"}, 400, "no utterance names the part 'two'"),
            ({"one": b"x", "two": b"x"}, 400, "the form has 2 files and no part 'dialogue'"),
            ({"words": "hello"}, 400, "the part 'words' is not a file"),
        ):
            answer = await server.ask("POST", PREDICT, *form(parts))
            assert (answer.status, words in answer.said["error"]) == (status, True), answer.body
        for boundary in ("", "; boundary=other"):
            body, headers = form({"one": whole[:99]})[0], {"Content-Type": f"multipart/form-data{boundary}"}
            answer = await server.ask("POST", PREDICT, body, headers)
            assert (answer.status, "is not multipart/form-data" in answer.said["error"]) == (400, True), answer.body
        large = await server.ask("POST", PREDICT, *form({"clip": whole * 4}))
        assert (large.status, "longer than 100000 bytes" in large.said["error"]) == (413, True)
    assert not list(scratch.glob("mer-serve-*"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with sound, one without, one that was cut off, and a table that names the first two."""
    media_files = pytest.importorskip("media_files")
    folder = tmp_path_factory.mktemp("videos")
    media_files.write_video(folder / "both.mp4", options={"preset": "ultrafast"})
    media_files.write_video(folder / "mute.mp4", audio="", options={"preset": "ultrafast"})
    whole = (folder / "both.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "clips.csv").write_text("recording,sentence\nboth.mp4,hello there you\nmute.mp4,a\n")
    return folder


@in_a_loop
async def _answers_without_the_tokenizers_files(model: Path) -> None:
    async with inside(model) as server:
        shutil.rmtree(model / "encoders" / "text" / "0" / "tokenizer")
        found = await utterances(server, {"sentence": ROWS[0][0]})
        assert found.status == 200, found.body


def test_a_server_has_read_what_comes_before_the_networks_before_the_first_request(model: Path, tmp_path: Path) -> None:
    _answers_without_the_tokenizers_files(Path(shutil.copytree(model, tmp_path / "emt")))


@pytest.fixture(scope="module")
def seeing(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network with an encoder of pictures too."""
    folder = tmp_path_factory.mktemp("seeing")
    bundle = Bundle.open(shutil.copytree(model, folder / "emt"))
    width = next(s for s in bundle.manifest.contract.features if s.name == "vision").dims[-1]
    save_folder("vit", folder / "source", hidden_size=width, num_attention_heads=1)
    vision = import_folder(folder / "source", folder / "vision", Wanted())
    export_variant(vision, "onnx", vision.manifest.contract.buckets[0])
    sample_frames(vision, frames=2)
    attach(bundle, {"vision": [Encoder.open(vision.root)]})
    return bundle.root


@in_a_loop
async def _answers_videos(model: Path, videos: Path, wanted: list[dict[str, Any]], scratch: Path) -> None:
    files = {n: (videos / f"{n}.mp4").read_bytes() for n in ("both", "mute", "cut")}
    said = [{"sentence": "hello there you", "video": {"part": "both"}}, {"sentence": "a", "video": {"part": "mute"}}]
    async with inside(model) as server:
        parts = {n: files[n] for n in ("both", "mute")}
        named = await server.ask("POST", PREDICT, *form({"dialogue": json.dumps({"utterances": said}), **parts}))
        assert named.status == 200, named.body
        assert near(named.said["predictions"], wanted)
        inline = await utterances(server, {"sentence": "hello there you", "video": sound(videos / "both.mp4")})
        assert near(inline.said["predictions"], wanted[:1])
        broken = await server.ask("POST", PREDICT, *form({"clip": files["cut"]}))
        assert (broken.status, str(scratch) in broken.said["error"]) == (422, False), broken.body
    assert not list(scratch.glob("mer-serve-*"))


def test_videos_get_what_infer_writes_of_the_files_and_a_mute_one_lacks_its_sound(
    seeing: Path, videos: Path, mer: Mer, tmp_path: Path, scratch: Path
) -> None:
    code, _, err = mer("infer", seeing, videos / "clips.csv", "-o", tmp_path / "out.jsonl")
    assert code == 0, err
    wanted = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [a["modalities"] for a in wanted] == [["text", "audio", "vision"], ["text", "vision"]]
    _answers_videos(seeing, videos, wanted, scratch)


@in_a_loop
async def test_a_bundle_without_encoders_takes_no_recording(clips: Path) -> None:
    async with inside(DATA / "bundles" / "cmerc") as server:
        answer = await utterances(server, {"sound": sound(clips / "0.wav")})
        assert (answer.status, "no encoder of this model reads it" in answer.said["error"]) == (415, True)
        answer = await server.ask("POST", PREDICT, *form({"clip": b"RIFF"}))
        assert (answer.status, "no recordings" in answer.said["error"]) == (415, True)


@in_a_loop
async def test_a_package_that_is_missing_here_is_a_sentence_for_who_asks_and_a_warning_at_the_start(
    model: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    async with inside(model) as server:
        assert "recordings that soundfile reads get 501, which is not installed" in caplog.messages[0]
        answer = await utterances(server, {"sound": sound(clips / "0.wav")})
        assert (answer.status, answer.said["error"]) == (
            501,
            "this server cannot answer it: soundfile, which reads and writes sound files, is not installed: "
            "pip install 'mer-export[media]' there",
        )
        assert any(answer.said["error"] in m for m in caplog.messages)
        assert (await utterances(server, {"sentence": "a"})).status == 200


@in_a_loop
async def test_a_disk_without_room_for_recordings_is_a_matter_of_time(
    model: Path, clips: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with inside(model) as server:
        monkeypatch.setattr(Path, "write_bytes", full)
        answer = await utterances(server, {"sound": sound(clips / "0.wav")})
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.said["error"].startswith("the server has no room on its disk")


@in_a_loop
async def test_requests_that_wait_for_encoders_hold_so_many_bytes_and_those_called_off_none(
    model: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, entered = threading.Event(), threading.Semaphore(0)
    original, parse = encoded.Encoder._read, reading.parse
    parsed: list[weakref.ref[Asked]] = []

    def held(self: encoded.Encoder, named: tuple[int, str, Utterance]) -> Any:
        entered.release()
        assert free.wait(60)
        return original(self, named)

    def watched(*arguments: Any) -> Asked:
        found = parse(*arguments)
        parsed.append(weakref.ref(found))
        return found

    body = json.dumps({"utterances": [{"sound": sound(clips / "0.wav")}]}).encode()
    limits = Limits(most_bytes=len(body))
    size = len(body) + (clips / "0.wav").stat().st_size
    async with inside(model, how=How(workers=1), limits=limits) as server:
        monkeypatch.setattr(encoded.Encoder, "_read", held)
        monkeypatch.setattr(reading, "parse", watched)
        room = server.service.room
        fit = room.most // size
        waiting = [asyncio.create_task(server.ask("POST", PREDICT, body, JSON)) for _ in range(fit)]
        await asyncio.to_thread(entered.acquire)
        while room.held < fit * size:
            await asyncio.sleep(0)
        refused = await server.ask("POST", PREDICT, body, JSON)
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        held_now = f"the server holds {fit * size} bytes of requests, of {16 * len(body)} at most"
        assert refused.said["error"] == f"{held_now}: try again later"
        for task in waiting[1:]:
            task.cancel()
        await asyncio.wait(waiting[1:])
        del waiting[1:], task
        assert room.held == size
        gc.collect()
        assert sum(asked() is not None for asked in parsed) == 1
        free.set()
        assert (await waiting[0]).status == 200
        assert room.held == 0


def test_recordings_that_a_killed_server_left_go_when_the_next_one_starts(scratch: Path) -> None:
    child = os.fork()
    if not child:
        (Scratch().path / "0-0.clip").write_bytes(b"somebody's voice")
        os._exit(0)
    os.waitpid(child, 0)
    (left,) = scratch.iterdir()
    (scratch / "mer-serve-note").write_text("a file")
    (scratch / "mer-serve-link").symlink_to(scratch.parent)
    living = Scratch()
    assert not left.exists()
    other = Scratch()
    assert living.path.is_dir()
    for made in (living, other):
        made.close()
    assert {p.name for p in scratch.iterdir()} == {"mer-serve-note", "mer-serve-link"}


@in_a_loop
async def test_no_utterance_is_encoded_after_the_deadline_and_no_more_wait_than_may(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, entered = threading.Event(), threading.Semaphore(0)
    read: list[tuple[int, str, Utterance]] = []
    original = encoded.Encoder._read

    def held(self: encoded.Encoder, named: tuple[int, str, Utterance]) -> Any:
        read.append(named)
        entered.release()
        assert free.wait(60)
        return original(self, named)

    async with inside(model, limits=Limits(queue=1)) as server:
        monkeypatch.setattr(encoded.Encoder, "_read", held)
        first = asyncio.create_task(utterances(server, {"sentence": "a"}))
        await asyncio.to_thread(entered.acquire)
        body = json.dumps({"utterances": [{"sentence": "late"}]}).encode()
        late = await server.ask("POST", PREDICT, body, JSON | {"X-Request-Timeout": "0.02"})
        assert (late.status, "no answer within the deadline of 0.02 s" in late.said["error"]) == (504, True)
        waiting = asyncio.create_task(utterances(server, {"sentence": "b"}))
        encoders = server.service.models["emt"].engine.encoders
        assert encoders is not None
        while len(encoders._begun) < 2:
            await asyncio.sleep(0)
        refused = await utterances(server, {"sentence": "c"})
        assert (refused.status, refused.said["error"]) == (
            503,
            "the encoders have 2 requests, of 2 at most: try again later",
        )
        free.set()
        assert [a.status for a in await asyncio.gather(first, waiting)] == [200, 200]
    assert [u.sentence for _, _, u in read] == ["a", "b"]
