"""Claims about many live dialogues: bounded, stored under checksums, and answered line by line."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from conftest import Mer
from small_live import Case, cmerc

from mer_export.data.dialogues import Dialogue, Utterance
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.places import Reach
from runtimes.backends.session import SessionOptions
from runtimes.live.dialogues import Dialogues, FullError, Limits
from runtimes.live.lines import Lines, waiting
from runtimes.live.storage import INDEX, Folder
from runtimes.predict.live import Answer, Heard, Hearing, Turn
from runtimes.predict.predictor import Predictor

DATA = Path(__file__).parent / "data"
BUNDLE = DATA / "bundles" / "cmerc"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return cmerc(tmp_path_factory.mktemp("many") / "bundle")


@pytest.fixture(scope="module")
def predictor(case: Case) -> Iterator[Predictor]:
    with Predictor(case.bundle, "torch", SessionOptions(threads=1)) as found:
        yield found


def spoken(case: Case, dialogues: list[str], seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    return [{"dialogue": name, **case.draw(draw)} for name in dialogues]


def answered(predictor: Predictor, dialogues: Dialogues, said: list[Any], window: int | None = None) -> list[Any]:
    hearing = Hearing(predictor.bundle, predictor.task.labels, window)
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in said]
    return [json.loads(row.encode()) for row in Lines(predictor, hearing, dialogues).answers([lines])]


def test_lines_of_interleaved_dialogues_are_answered_as_each_alone(case: Case, predictor: Predictor) -> None:
    said = spoken(case, ["a", "b", "b", "a", "c", "b", "a"])
    together = answered(predictor, Dialogues(), said)
    for name in "abc":
        alone = answered(predictor, Dialogues(), [line for line in said if line["dialogue"] == name])
        assert [row for row in together if row["dialogue"] == name] == alone
    assert together[-1]["prediction"]["unit"] == "a/2"
    assert [row["unit"] for row in together[-1]["revised"]] == ["a/0", "a/1"]


def test_lines_that_wait_run_in_one_batch_up_to_the_next_of_the_same_dialogue(
    case: Case, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    run = predictor.answer_together

    def counted(turns: Sequence[Turn]) -> list[Answer]:
        sizes.append(len(turns))
        return run(turns)

    monkeypatch.setattr(predictor, "answer_together", counted)
    said = spoken(case, ["a", "b", "c", "a", "b"])
    good = answered(predictor, Dialogues(), said)
    assert sizes == [3, 2]
    # What cannot be run takes none of its neighbours with it.
    said[1] = said[1] | {"audio": [float("nan")] * 8}
    rows = answered(predictor, Dialogues(), said)
    assert ["error" in row for row in rows] == [False, True, False, False, False]
    assert [rows[i] for i in (0, 2, 3)] == [good[i] for i in (0, 2, 3)]


def test_a_line_is_answered_before_the_next_one_is_there() -> None:
    more = Event()

    def lines() -> Iterator[bytes]:
        yield b"1"
        assert more.wait(30)
        yield from (b"2", b"3", b"4", b"5")

    groups = waiting(lines(), 3)
    assert next(groups) == [b"1"]
    more.set()
    rest = list(groups)
    assert [line for group in rest for line in group] == [b"2", b"3", b"4", b"5"]
    assert max(map(len, rest)) <= 3


def test_lines_that_cannot_be_read_end_in_their_error() -> None:
    def lines() -> Iterator[bytes]:
        yield b"1"
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(waiting(lines(), 3))


def test_a_line_corrects_comes_late_or_ends_a_dialogue(case: Case, predictor: Predictor) -> None:
    one, two, three = spoken(case, ["a"] * 3)
    rows = answered(predictor, Dialogues(), [two, one | {"before": "a/0"}, three | {"corrects": "a/0"}])
    whole = answered(predictor, Dialogues(), [one | {"id": "a/1"}, three | {"id": "a/0"}])
    assert rows[-1]["prediction"] == whole[-1]["prediction"]
    assert rows[-1]["revised"] == whole[-1]["revised"]
    ended = answered(predictor, Dialogues(), [one, {"dialogue": "a", "end": True}, one])
    assert ended[1] == {"dialogue": "a", "end": True}
    assert ended[0] == ended[2]


def test_the_end_of_a_recordings_part_is_not_that_of_its_dialogue(case: Case, predictor: Predictor) -> None:
    parts: list[tuple[float | None, float | None]] = []

    def through(dialogues: Iterable[Dialogue]) -> Iterator[Dialogue]:
        for dialogue in dialogues:
            parts.extend((u.recording.start, u.recording.end) for u in dialogue.utterances if u.recording)
            yield dialogue

    hearing = Hearing(predictor.bundle, predictor.task.labels, reach=Reach(Path()), through=through)
    part = spoken(case, ["a"])[0] | {"recording": "a.wav", "start": 1.5, "end": 2.5}
    alone = {"dialogue": "a", "end": True}
    said = [part, part | {"end": True}, alone | {"end": 1}, part | {"end": False}, alone]
    rows = [*Lines(predictor, hearing, Dialogues()).answers([[json.dumps(line).encode() for line in said]])]
    assert ["error" in json.loads(row) for row in rows] == [False, True, True, False, False]
    assert json.loads(rows[-1]) == alone
    assert parts == [(1.5, 2.5), (1.5, None)]


def test_a_line_that_cannot_be_answered_says_why_and_the_next_one_is(case: Case, predictor: Predictor) -> None:
    good = spoken(case, ["a"])[0]
    bad = [b"{", b'{"speaker": 0}', b"[1]", good | {"text": [1.0]}, good | {"corrects": "a/9"}]
    bad += [{"dialogue": "z", "end": True}, good | {"corrects": "a/0", "before": "a/0"}]
    bad += [good | {name: "\ud83d"} for name in ("dialogue", "id")]
    rows = answered(predictor, Dialogues(), [good, *bad, good])
    assert all("error" in row for row in rows[1:-1])
    assert rows[1]["error"].startswith("line 2: it is not JSON")
    assert rows[4]["error"] == "line 5: a/1: text is 1 x 1, the model takes 2 x 16"
    assert "has no utterance 'a/9'" in rows[5]["error"]
    assert all(r"the name '\ud83d' cannot be written as UTF-8" in row["error"] for row in rows[8:10])
    assert rows[-1]["prediction"]["unit"] == "a/1"


def test_more_dialogues_than_there_is_room_for_are_refused_until_one_rests(case: Case, predictor: Predictor) -> None:
    clock = Clock()
    dialogues = Dialogues(Limits(most=2, idle=10.0), clock=clock)
    rows = answered(predictor, dialogues, spoken(case, ["a", "b", "c", "a"]))
    assert ["error" in row for row in rows] == [False, False, True, False]
    clock.now = 11.0
    assert "error" not in answered(predictor, dialogues, spoken(case, ["c"]))[0]
    assert len(dialogues) == 1


def test_dialogues_hold_no_more_than_the_bytes_that_they_may(case: Case, predictor: Predictor) -> None:
    one = Dialogues()
    answered(predictor, one, spoken(case, ["a"]))
    size = one.nbytes
    assert 4 * (2 * 16 + 8 + 6) < size < 1024
    dialogues = Dialogues(Limits(most_bytes=5 * size))
    rows = answered(predictor, dialogues, spoken(case, ["a", "b"] * 3))
    assert ["error" in row for row in rows] == [False] * 5 + [True]
    assert dialogues.nbytes == 5 * size
    dialogues.end("a")
    assert dialogues.nbytes == 2 * size
    short = Dialogues(Limits(most_bytes=5 * size))
    assert not any("error" in row for row in answered(predictor, short, spoken(case, ["a", "b"] * 9), window=2))
    # Who left the window keeps a name.
    assert 4 * size < short.nbytes < 5 * size
    for words in (Heard("a", (Utterance("u", sentence="w" * 2000),)), Heard("a", gone=("s" * 1000, "t" * 1000))):
        with pytest.raises(FullError, match="bytes of 2000 at most"):
            Dialogues(Limits(most_bytes=2000)).keep(words)


def test_a_dialogue_goes_on_after_a_restart_as_if_nothing_had_been(
    case: Case, predictor: Predictor, tmp_path: Path
) -> None:
    said = spoken(case, ["a", "b", "a", "b", "a"])
    wanted = answered(predictor, Dialogues(), said, window=2)
    found = []
    for line in said:
        found += answered(predictor, Dialogues(Limits(most=1), Folder(tmp_path, case.bundle)), [line], window=2)
    assert found == wanted
    crowded = Dialogues(Limits(most=1), Folder(tmp_path / "crowded", case.bundle))
    assert answered(predictor, crowded, said, window=2) == wanted
    assert len(crowded) == 1
    assert sum(1 for _ in tmp_path.glob("crowded/*/*.npz")) == 4


def test_what_another_process_heard_of_a_stored_dialogue_is_heard(
    case: Case, predictor: Predictor, tmp_path: Path
) -> None:
    said = spoken(case, ["a"] * 5)
    two = [Dialogues(state=Folder(tmp_path, case.bundle)) for _ in range(2)]
    found = [row for n, line in enumerate(said) for row in answered(predictor, two[n % 2], [line])]
    assert found == answered(predictor, Dialogues(), said)


def test_a_stored_dialogue_that_is_damaged_or_of_another_model_is_refused(
    case: Case, predictor: Predictor, tmp_path: Path
) -> None:
    answered(predictor, Dialogues(state=Folder(tmp_path, case.bundle)), spoken(case, ["a"]))
    (index,), (arrays,) = tmp_path.glob(f"*/{INDEX}"), tmp_path.glob("*/*.npz")
    for path in (index, arrays):
        whole = path.read_bytes()
        path.write_bytes(whole[:-30] + bytes([whole[-30] ^ 1]) + whole[-29:])
        with pytest.raises(InputError, match=r"damaged|not JSON"):
            Folder(tmp_path, case.bundle).load("a")
        path.write_bytes(whole)
    other = Folder(tmp_path, case.bundle)
    other.model = "another"
    with pytest.raises(InputError, match="kept for another model"):
        other.load("a")
    assert other.remove("a")
    assert list(tmp_path.iterdir()) == []


def test_a_stored_dialogue_that_rests_too_long_is_over(case: Case, tmp_path: Path) -> None:
    clock = Clock()
    folder = Folder(tmp_path, case.bundle, clock)
    folder.save(Heard("a"))
    (index,) = tmp_path.glob(f"*/{INDEX}")
    os.utime(index, (1000, 1000))
    for clock.now, there in ((1050.0, True), (1200.0, False)):
        folder.expire(100.0)
        assert index.exists() == there


def test_a_dialogue_that_another_thread_ends_meanwhile_is_no_error(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path, case.bundle)
    folder.save(Heard("a"))
    found = list(tmp_path.glob(f"*/{INDEX}"))
    assert folder.remove("a")
    folder.save(Heard("b"))
    found += tmp_path.glob(f"*/{INDEX}")
    os.utime(found[1], (0, 0))
    monkeypatch.setattr(Path, "glob", lambda *_: iter(found))
    folder.expire(100.0)
    assert not found[1].exists()


def test_a_turn_stores_what_was_removed_before_it(case: Case, predictor: Predictor, tmp_path: Path) -> None:
    folder, said = Folder(tmp_path, case.bundle), spoken(case, ["a", "a"])
    dialogues = Dialogues(state=folder)
    answered(predictor, dialogues, said[:1])
    folder.remove("a")
    answered(predictor, dialogues, said[1:])
    stored = Folder(tmp_path, case.bundle).load("a")
    assert stored is not None
    assert len(stored.utterances) == 2


@pytest.mark.parametrize("wrong", [{"most": 0}, {"idle": 0.0}, {"most_bytes": 0}])
def test_limits_are_more_than_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="more than 0"):
        Limits(**wrong)


def test_the_command_answers_standard_input(mer: Mer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    utterances = json.loads((DATA / "small" / "dialogues.jsonl").read_text().splitlines()[2])["utterances"]
    kept = ("speaker", "text", "audio", "vision")
    said = [{"dialogue": name, **{k: u[k] for k in kept}} for name, u in zip("aba", utterances, strict=False)]
    words = ("infer", BUNDLE, "--live", "--runtime", "onnxruntime", "--threads", 1)

    def run(*more: str | Path, lines: list[dict[str, Any]] = said) -> tuple[int, list[Any], str]:
        given = "".join(json.dumps(line) + "\n" for line in lines).encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        code, out, err = mer(*words, *more)
        return code, [json.loads(row) for row in out.splitlines()], err

    code, rows, err = run("--json")
    assert code == 0, err
    assert [row["prediction"]["unit"] for row in rows] == ["a/0", "b/0", "a/1"]
    assert json.loads(err[err.index("{") :]) == {"answered": 3, "dialogues": 2}
    assert run("--state", tmp_path / "state", lines=said[:2])[0] == 0
    for index in tmp_path.glob(f"state/*/{INDEX}"):
        os.utime(index, (0, 0))
    assert run("--state", tmp_path / "state", "--revise", "0", lines=said[2:])[1] == [rows[2] | {"revised": []}]
    code, rows, err = run(lines=[said[0] | {"text": [1.0]}, said[0]])
    assert (code, "error" in rows[0], "error" in rows[1]) == (2, True, False)
    assert "1 of 2 lines were not answered" in err
    monkeypatch.setattr("sys.stdin", None)
    code, out, err = mer(*words)
    assert (code, out) == (0, "")
    assert "answered 0" in err


def test_options_of_files_and_of_lines_are_not_mixed(mer: Mer, tmp_path: Path) -> None:
    for words, said in (
        (("--live", "--split", "test"), "leave --split out"),
        (("--live", "--data-format", "jsonl"), "leave --data-format out"),
        (("--live", "--block", 2), "leave --block out"),
        (("--live", "--dry-run"), "leave --dry-run out"),
        (("--live", "--out", tmp_path / "x.jsonl"), "redirect it"),
        (("--window", 3), "--window is of live dialogues"),
        (("--revise", 0, "--shards", 2), "--revise is of live dialogues"),
        ((), "name the INPUT and --out FILE, or pass --live"),
    ):
        code, out, err = mer("infer", BUNDLE, *words)
        assert (code, out) == (2, "")
        assert said in " ".join(err.split())


def test_a_full_table_is_an_error_of_its_own() -> None:
    dialogues = Dialogues(Limits(most=1))
    dialogues.keep(Heard("a"))
    with pytest.raises(FullError, match="1 at most"):
        dialogues.heard("b")
