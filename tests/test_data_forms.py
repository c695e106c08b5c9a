"""The forms in which people have the same data: each row of the table in docs/data.md is a case here."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mer_export.data.draft import draft
from mer_export.data.formats.parquet.writer import write_parquet
from mer_export.data.open import open_corpus
from mer_export.data.samples import Corpus
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError

ROOT = Path(__file__).parent.parent
LABELS = ["anger", "joy", "neutral"]
TEXT, AUDIO = ("t0", "t1"), ("f0_mean", "jitter", "shimmer")
COLUMNS = ("call", "turn", "who", "emotion", "part", "words")
SAID = {
    "dialogue": "call",
    "utterance": "turn",
    "speaker": "who",
    "label": "emotion",
    "split": "part",
    "sentence": "words",
}
FROM_COLUMNS = {"text": {"columns": "t0:t1"}, "audio": {"columns": ["f0_mean", "jitter:shimmer"]}}

Row = dict[str, Any]
Form = Callable[[Path], tuple[Path, DataSpec]]


def utterances() -> list[Row]:
    """Two calls, one of each split, with an apostrophe that is a byte of its own in every encoding."""
    draw = np.random.default_rng(3)
    found = []
    for call, part in (("c1", "train"), ("c2", "test")):
        for turn in range(3):
            words = f"I’m at line {turn}"
            row = dict(
                zip(COLUMNS, (call, str(turn), "Ann" if turn % 2 else "Bob", LABELS[turn], part, words), strict=True)
            )
            found.append(
                row | {n: float(np.float32(v)) for n, v in zip((*TEXT, *AUDIO), draw.normal(size=5), strict=True)}
            )
    return found


def vectors(names: tuple[str, ...], rows: list[Row] | None = None) -> np.ndarray:
    return np.asarray([[r[n] for n in names] for r in rows or utterances()], dtype=np.float32)


def cells(separator: str = ",", features: bool = True, rows: list[Row] | None = None, pad: str = "") -> str:
    """The table as text."""
    names = [*COLUMNS, *(TEXT if features else ()), *(AUDIO if features else ())]
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=separator, lineterminator="\n")
    writer.writerow([pad + n for n in names])
    writer.writerows([[r[n] for n in names] for r in rows or utterances()])
    return stream.getvalue()


def described(folder: Path, name: str, content: bytes | str, **more: Any) -> tuple[Path, DataSpec]:
    """A folder with a table and its table.yaml."""
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    said = {"table": name, **SAID, **({} if "text" in more else FROM_COLUMNS), **more}
    (folder / "table.yaml").write_text(yaml.safe_dump(said))
    return folder, DataSpec()


def arrays(folder: Path, **more: Any) -> tuple[Path, DataSpec]:
    """A table without features, which `more` says where to find."""
    return described(folder, "u.csv", cells(features=False), **more)


def npz(folder: Path) -> tuple[Path, DataSpec]:
    np.savez(folder / "f.npz", words=vectors(TEXT), voice=vectors(AUDIO))
    return arrays(folder, text={"file": "f.npz", "array": "words"}, audio={"file": "f.npz", "array": "voice"})


def npy(folder: Path) -> tuple[Path, DataSpec]:
    np.save(folder / "t.npy", vectors(TEXT))
    np.save(folder / "a.npy", vectors(AUDIO))
    return arrays(folder, text={"file": "t.npy"}, audio={"file": "a.npy"})


def row_numbers(folder: Path) -> tuple[Path, DataSpec]:
    np.savez(folder / "f.npz", words=vectors(TEXT)[::-1], voice=vectors(AUDIO)[::-1])
    lines = cells(features=False).splitlines()
    numbered = [f"{line},{'at' if i == 0 else len(lines) - 1 - i}" for i, line in enumerate(lines)]
    sources = {"text": {"file": "f.npz", "array": "words"}, "audio": {"file": "f.npz", "array": "voice"}}
    return described(folder, "u.csv", "\n".join(numbered), row="at", **sources)


def looked_up(folder: Path) -> tuple[Path, DataSpec]:
    keys = np.asarray([r["words"] + r["call"] for r in utterances()])
    order = [5, 3, 1, 0, 2, 4]
    np.savez(folder / "f.npz", words=vectors(TEXT)[order], voice=vectors(AUDIO)[order], names=keys[order])
    lines = cells(features=False).splitlines()
    named = [f"{line},{'key' if i == 0 else keys[i - 1]}" for i, line in enumerate(lines)]
    source = {"file": "f.npz", "keys": "names", "column": "key"}
    return described(
        folder, "u.csv", "\n".join(named), text=source | {"array": "words"}, audio=source | {"array": "voice"}
    )


def open_smile(separator: str) -> Form:
    """Functionals as openSMILE writes them: a row per recording, its name in quotes, in an order of its own."""

    def form(folder: Path) -> tuple[Path, DataSpec]:
        rows = [[f"'clips/{r['call']}-{r['turn']}.wav'", "0.0", *(r[n] for n in AUDIO)] for r in reversed(utterances())]
        lines = [["name", "frameTime", *AUDIO], *rows]
        (folder / "egemaps.csv").write_text("\n".join(separator.join(map(str, line)) for line in lines))
        np.save(folder / "t.npy", vectors(TEXT))
        table = cells(features=False).splitlines()
        clips = ["clip", *(f"{r['call']}-{r['turn']}" for r in utterances())]
        content = "\n".join(f"{line},{clip}" for line, clip in zip(table, clips, strict=True))
        audio = {"file": "egemaps.csv", "keys": "name", "column": "clip"}
        return described(folder, "u.csv", content, text={"file": "t.npy"}, audio=audio)

    return form


def own_files(suffix: str) -> Form:
    """A file per utterance, as OpenFace writes them: spaces before names, columns that are no features."""

    def form(folder: Path) -> tuple[Path, DataSpec]:
        (folder / "faces").mkdir()
        for r in utterances():
            file = folder / "faces" / f"{r['call']}_{r['turn']}{suffix}"
            values = [r[n] for n in AUDIO]
            if suffix == ".npy":
                np.save(file, np.asarray(values, dtype=np.float32))
            else:
                header = ["frame", *(f" {n}" for n in ("face_id", "timestamp", "confidence", "success", *AUDIO))]
                file.write_text(",".join(header) + "\n" + ",".join(map(str, (1, 0, 0.0, 0.98, 1, *values))))
        np.save(folder / "t.npy", vectors(TEXT))
        return arrays(folder, text={"file": "t.npy"}, audio={"file": "faces/{call}_{turn}" + suffix})

    return form


def split_files(folder: Path) -> tuple[Path, DataSpec]:
    for part in ("train", "test"):
        rows = [r for r in utterances() if r["part"] == part]
        (folder / f"{part}.csv").write_text(cells(rows=rows))
    said = {k: v for k, v in SAID.items() if k != "split"}
    spec = {"table": "{split}.csv", "splits": ["train", "test"], **said, **FROM_COLUMNS}
    (folder / "table.yaml").write_text(yaml.safe_dump(spec))
    return folder, DataSpec()


def parquet_table(folder: Path) -> tuple[Path, DataSpec]:
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = [r | {"turn": int(r["turn"])} for r in utterances()]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "u.parquet")
    said = {"table": "u.parquet", **SAID, **FROM_COLUMNS}
    (folder / "table.yaml").write_text(yaml.safe_dump(said))
    return folder, DataSpec()


def converted(folder: Path) -> tuple[Path, DataSpec]:
    pytest.importorskip("pyarrow")
    (folder / "in").mkdir()
    write_parquet(open_corpus(*described(folder / "in", "u.csv", cells())), folder / "d.parquet")
    return folder / "d.parquet", DataSpec()


def lines(name: str, header: bool, encoding: str = "utf-8") -> Form:
    def form(folder: Path) -> tuple[Path, DataSpec]:
        found = [json.dumps({"labels": LABELS, "speakers": 2})] if header else []
        for call, part in (("c1", "train"), ("c2", "test")):
            own = [r for r in utterances() if r["call"] == call]
            said = [
                {
                    "id": f"{call}/{r['turn']}",
                    "speaker": r["who"],
                    "label": r["emotion"],
                    "sentence": r["words"],
                    "text": [r[n] for n in TEXT],
                    "audio": [r[n] for n in AUDIO],
                }
                for r in own
            ]
            found.append(json.dumps({"dialogue": call, "split": part, "utterances": said}, ensure_ascii=False))
        (folder / name).write_text("\n".join(found), encoding=encoding)
        return folder / name, DataSpec()

    return form


def numbered_labels(folder: Path) -> tuple[Path, DataSpec]:
    rows = [r | {"emotion": str(LABELS.index(r["emotion"]))} for r in utterances()]
    return described(folder, "u.csv", cells(rows=rows), label_names=LABELS)


def told_by_the_preset(folder: Path) -> tuple[Path, DataSpec]:
    (folder / "u.csv").write_text(cells())
    return folder, DataSpec.model_validate({"table": "u.csv", **SAID, **FROM_COLUMNS})


def the_table_alone(folder: Path) -> tuple[Path, DataSpec]:
    described(folder, "other.csv", cells())
    (folder / "other.csv").rename(folder / "calls.csv")
    return folder / "calls.csv", DataSpec()


def drafted(folder: Path) -> tuple[Path, DataSpec]:
    (folder / "calls.csv").write_text(cells())
    (folder / "table.yaml").write_text(draft(folder))
    return folder, DataSpec()


def drafted_arrays(folder: Path) -> tuple[Path, DataSpec]:
    (folder / "calls.csv").write_text(cells(features=False))
    np.savez(folder / "features.npz", text_bert=vectors(TEXT), audio_opensmile=vectors(AUDIO))
    (folder / "table.yaml").write_text(draft(folder))
    return folder, DataSpec()


def encoded(encoding: str) -> Form:
    return lambda folder: described(folder, "u.csv", cells().encode(encoding), encoding=encoding)


FORMS: dict[str, Form] = {
    "csv, features in columns": lambda f: described(f, "u.csv", cells()),
    "tsv": lambda f: described(f, "u.tsv", cells("\t")),
    "csv with semicolons": lambda f: described(f, "u.csv", cells(";")),
    "csv with tabs": lambda f: described(f, "u.csv", cells("\t")),
    "another separator": lambda f: described(f, "u.csv", cells("|"), separator="|"),
    "lines that end in CR LF": lambda f: described(f, "u.csv", cells().replace("\n", "\r\n")),
    "spaces around column names": lambda f: described(f, "u.csv", cells(pad=" ")),
    "UTF-8 with a byte order mark": lambda f: described(f, "u.csv", cells().encode("utf-8-sig")),
    "cp1252": encoded("cp1252"),
    "gbk": encoded("gbk"),
    "UTF-16": encoded("utf-16"),
    "csv and npz": npz,
    "csv and npy": npy,
    "rows by number": row_numbers,
    "rows by key": looked_up,
    "openSMILE, semicolons": open_smile(";"),
    "openSMILE, commas": open_smile(","),
    "a csv per utterance": own_files(".csv"),
    "a npy per utterance": own_files(".npy"),
    "a table per split": split_files,
    "Parquet table": parquet_table,
    "Parquet of mer data convert": converted,
    "JSON lines": lines("d.jsonl", header=True),
    "JSON lines without a first line": lines("d.jsonl", header=False),
    "ndjson with a byte order mark": lines("d.ndjson", header=True, encoding="utf-8-sig"),
    "labels as numbers": numbered_labels,
    "told by the preset": told_by_the_preset,
    "the table alone": the_table_alone,
    "a drafted table.yaml": drafted,
    "a drafted table.yaml, npz": drafted_arrays,
}


def content(corpus: Corpus) -> dict[str, tuple[str, str, list[float], list[float]]]:
    """By split and place: label, sentence and vectors of every utterance."""
    found = {}
    for split, samples in corpus.splits.items():
        for sample in samples:
            assert sample.labels is not None
            said = corpus.info["sentences"].get(sample.id) or [""] * len(sample.units)
            for i, label in enumerate(sample.labels):
                place = f"{split}/{sample.id.rpartition('/')[2]}/{i}"
                text, audio = sample.inputs["text"][0, i].tolist(), sample.inputs["audio"][i].tolist()
                found[place] = (LABELS[label], said[i], text, audio)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_leads_to_the_same_utterances(form: str, tmp_path: Path) -> None:
    corpus = open_corpus(*FORMS[form](tmp_path))
    assert list(corpus.info["labels"]) == LABELS
    found = content(corpus)
    rows = {f"{r['part']}/{r['call']}/{r['turn']}": r for r in utterances()}
    assert set(found) == set(rows)
    for place, (label, said, text, audio) in found.items():
        row = rows[place]
        assert (label, said) == (row["emotion"], row["words"])
        assert text == [pytest.approx(row[n], abs=1e-6) for n in TEXT]
        assert audio == [pytest.approx(row[n], abs=1e-6) for n in AUDIO]


def test_the_table_in_the_documents_names_every_form() -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    section = page.split("\n## Forms that were tried\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \|", section, flags=re.MULTILINE)[1:]
    assert rows == list(FORMS)


def test_rows_of_one_recording_are_its_steps(tmp_path: Path) -> None:
    folder, _ = open_smile(";")(tmp_path)
    features = folder / "egemaps.csv"
    header, *rows = features.read_text().splitlines()
    features.write_text("\n".join([header, *(r for row in rows for r in (row, row.replace(";0.0;", ";0.01;")))]))
    corpus = open_corpus(folder, DataSpec(unit="utterance"))
    assert {s.inputs["audio"].shape for s in corpus} == {(2, 3)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.replace("c1-1", "c9-9"), "name has no 'c1-1' of column clip"),
        (lambda t: t + "\n" + t.splitlines()[1], "row 8: the rows of 'clips/c2-2.wav' are not together"),
        (lambda t: t.replace("name;", "title;"), "has no column 'name' (keys)"),
        (lambda t: t.replace(";0.0;", ";0.0;x", 1), "it must be a number"),
    ],
)
def test_a_feature_table_that_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[str], str], sentence: str
) -> None:
    folder, spec = open_smile(";")(tmp_path)
    features = folder / "egemaps.csv"
    features.write_text(change(features.read_text()))
    with pytest.raises(InputError, match=re.escape(sentence)):
        open_corpus(folder, spec)


@pytest.mark.parametrize("cell", ["../c1", "", ".."])
def test_a_cell_that_leads_out_of_the_folder_names_no_file(tmp_path: Path, cell: str) -> None:
    folder, spec = own_files(".npy")(tmp_path)
    table = folder / "u.csv"
    table.write_text(table.read_text().replace("c1,0,", f"{cell},0,", 1))
    (folder / "table.yaml").write_text((folder / "table.yaml").read_text().replace("{call}_{turn}", "{call}"))
    with pytest.raises(InputError, match="which names no file"):
        open_corpus(folder, spec)


def test_a_byte_of_a_line_that_is_not_text_is_named_with_its_place(tmp_path: Path) -> None:
    path, _ = lines("d.jsonl", header=True)(tmp_path)
    first, second, third = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, second, third.replace("’".encode(), b"\x92", 1)]))
    place = third.index("’".encode()) + 1
    with pytest.raises(
        InputError, match=f"line 3, byte {place} is 0x92, which is not UTF-8 text: save the file as UTF-8"
    ):
        open_corpus(path)


def test_utterances_of_one_name_are_named_with_their_rows(tmp_path: Path) -> None:
    folder, spec = described(tmp_path, "u.csv", cells(rows=[*utterances(), utterances()[1]]))
    with pytest.raises(InputError, match=r"utterance 'c1/1' of dialogue 'c1' is there twice \(row 3 and row 8\)"):
        open_corpus(folder, spec)
