"""What of a run is done already, and what it was asked: `manifest.json` and the answers beside it.

manifest.json        what was asked, every block with what came of it; whole when a run ends
done.jsonl           what came of each block while a run goes on, a line each
names.bin            the names that files not yet done have had (see `names`)
answers/000000.parquet ...
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mer_export import faults
from mer_export.bundle import sha256, write_atomic
from mer_export.bundle.files import plain
from mer_export.data.parts import Part
from mer_export.errors import UsageError
from mer_export.untrusted.json_files import parse_json, read_json
from mer_export.untrusted.stored import Stored
from runtimes.features.parts import alone_in
from runtimes.scale.blocks import Answered, Block, Record
from runtimes.scale.names import Names

MANIFEST, JOURNAL, NAMES, ANSWERS, LOCK = "manifest.json", "done.jsonl", "names.bin", "answers", ".lock"
OWN = frozenset({MANIFEST, JOURNAL, NAMES, ANSWERS, LOCK})
SAID = frozenset({"version", "inputs", "bundle", "options", "blocks"})
"""What every manifest of ours has."""
VERSION = 1


@dataclass(frozen=True)
class Request:
    """What decides the answers: the files in order, the bundle's checksum, and the options that change them.

    `outside` are folders that paths in the files may lead to: they decide which recordings can be read.
    """

    inputs: Sequence[Stored]
    bundle: str
    options: Mapping[str, Any]
    outside: Sequence[str] = ()

    def said(self) -> dict[str, Any]:
        """As the manifest has it."""
        inputs = [{"name": f.said, "bytes": f.size, "mark": f.mark} for f in self.inputs]
        decisive = {"inputs": inputs, "bundle": self.bundle, "options": dict(self.options)}
        return {"version": VERSION, **decisive, "outside": [*self.outside]}

    def stands(self, record: Record, earlier: Mapping[str, Any]) -> bool:
        """Whether what an earlier request left of a block holds for this one: not where recordings that could not be
        read may be readable now, as other folders are allowed, or as none of them could be."""
        tried = earlier.get("outside", []) == [*self.outside]
        return not record.unreadable or (tried and record.counts["nothing_to_read"] < record.counts["units"])

    def difference(self, other: Mapping[str, Any]) -> str | None:
        """The first thing that another request has otherwise, by name."""
        own = json.loads(json.dumps(self.said()))
        if own["version"] != other.get("version"):
            return "another version of mer"
        theirs = {f["name"]: f for f in other["inputs"]}
        changed = [f["name"] for f in own["inputs"] if theirs.get(f["name"], f) != f]
        if changed:
            return f"{changed[0]} as it was before it changed"
        if own["inputs"] != other["inputs"]:
            return f"other inputs, {', '.join(theirs)}"
        if own["bundle"] != other["bundle"]:
            return "another bundle, or this one before it changed"
        names = [n for n in own["options"] if own["options"][n] != other["options"].get(n)]
        return f"--{names[0]} {other['options'].get(names[0])}" if names else None


@dataclass
class Ledger:
    """The folder of one run: `open` one."""

    folder: Path
    request: Request
    blocks: Sequence[Block] = ()
    done: dict[int, Record] = field(default_factory=dict)
    names: Names = field(init=False)

    @classmethod
    @contextmanager
    def open(cls, out: Path, request: Request, plan: Callable[[], Iterator[Part]], force: bool) -> Iterator[Ledger]:
        """That of a directory: a new one, or one that a run for the same request left.

        Args:
            out: the directory.
            request: what is asked.
            plan: cuts the inputs, asked where nothing is there yet.
            force: what is there goes.

        Raises:
            UsageError: it is of another request or holds what no run left, or another process writes it.
        """
        ledger = cls(out, request)
        with faults.at(out):
            out.mkdir(parents=True, exist_ok=True)
            others = sorted(f.name for f in out.iterdir() if f.name not in OWN and not f.name.endswith(".tmp"))
        if others:
            raise UsageError(f"--out {out} holds {others[0]}: name a new directory, or one of an earlier run")
        with alone_in(out, LOCK):
            ledger._begin(plan, force)
            yield ledger

    def _begin(self, plan: Callable[[], Iterator[Part]], force: bool) -> None:
        found = None if force else self._found()
        other = self.request.difference(found) if found else None
        if found is None or (other and not self._any_answers(found)):
            self._clear()
            self.blocks = [Block(n, part) for n, part in enumerate(plan())]
            self._write({})
        elif other:
            raise UsageError(
                f"{self.folder} holds what was done with {other}: run that to its end, or pass --force to begin anew"
            )
        else:
            files = {f.said: f for f in self.request.inputs}
            self.blocks = [Block(n, _part(b, files)) for n, b in enumerate(found["blocks"])]
            self._take_over(found)
        (self.folder / ANSWERS).mkdir(exist_ok=True)
        self.names = Names(self.folder / NAMES, self.blocks, self.done)

    def _found(self) -> dict[str, Any] | None:
        """What an earlier run says, None where there was none; raises UsageError for what no run left."""
        path = self.folder / MANIFEST
        if not plain(path):
            # A manifest is the first that is there and the last that goes.
            left = next((n for n in (ANSWERS, JOURNAL, NAMES) if (self.folder / n).exists()), None)
            if left is None:
                return None
            raise UsageError(
                f"--out {self.folder} holds {left} and no {MANIFEST}: name a new directory, or pass --force if that "
                "may go"
            )
        found = read_json(path)
        if not isinstance(found, dict) or not found.keys() >= SAID:
            raise UsageError(f"{path} is not of mer infer: name a new directory, or pass --force if that may go")
        return found

    def _any_answers(self, found: Mapping[str, Any]) -> bool:
        """Whether a run left anything that could be lost; one that was refused at its start did not."""
        return (self.folder / JOURNAL).exists() or any(b.get("result") for b in found["blocks"])

    def file(self, block: int) -> Path:
        """Where the answers of a block lie."""
        return self.folder / ANSWERS / f"{block:06}.parquet"

    def keep(self, answered: Answered) -> None:
        """Puts the answers of a block in their place, then says so."""
        number = answered.block.number
        self.names.add(answered)
        write_atomic(self.file(number), answered.content)
        self.done[number] = answered.record
        path = self.folder / JOURNAL
        with faults.at(path), path.open("ab") as journal:
            journal.write(json.dumps({"block": number} | asdict(answered.record)).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())

    def finish(self, failed: Mapping[int, str]) -> None:
        """Writes what came of all blocks; `failed` are those without answers, and why."""
        self._write(failed)
        (self.folder / JOURNAL).unlink(missing_ok=True)
        if not failed:
            (self.folder / NAMES).unlink(missing_ok=True)

    def _take_over(self, found: Mapping[str, Any]) -> None:
        """Blocks that are done, for this request too, and whose files are still those that were written."""
        lines = [{"block": n} | b["result"] for n, b in enumerate(found["blocks"]) if b.get("result")]
        for line in (*lines, *self._journal()):
            number = line.pop("block")
            file, record = self.file(number), Record(**line | {"variants": tuple(line["variants"])})
            if self.request.stands(record, found) and plain(file) and sha256(file) == record.sha256:
                self.done[number] = record

    def _journal(self) -> Iterator[dict[str, Any]]:
        journal = self.folder / JOURNAL
        content = journal.read_bytes() if plain(journal) else b""
        # The last line may have been cut short, its block is then done again.
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            write_atomic(journal, whole)
        for line in whole.splitlines():
            yield parse_json(line, str(journal))

    def _write(self, failed: Mapping[int, str]) -> None:
        blocks = [self._said(b, failed.get(b.number)) for b in self.blocks]
        complete = len(self.done) == len(self.blocks)
        found = self.request.said() | {"complete": complete, "blocks": blocks}
        write_atomic(self.folder / MANIFEST, json.dumps(found, indent=1).encode())

    def _said(self, block: Block, failed: str | None) -> dict[str, Any]:
        part, record = block.part, self.done.get(block.number)
        said: dict[str, Any] = {"file": f"{ANSWERS}/{self.file(block.number).name}", "input": part.file.said}
        said |= {"format": part.format, "begin": part.begin, "end": part.end, "nbytes": part.nbytes}
        return said | ({"result": asdict(record)} if record else {}) | ({"failed": failed} if failed else {})

    def _clear(self) -> None:
        if (self.folder / ANSWERS).is_dir() and not (self.folder / ANSWERS).is_symlink():
            shutil.rmtree(self.folder / ANSWERS)
        for name in (JOURNAL, NAMES, MANIFEST):
            (self.folder / name).unlink(missing_ok=True)


def _part(said: Mapping[str, Any], files: Mapping[str, Stored]) -> Part:
    return Part(files[said["input"]], said["format"], said["begin"], said["end"], said["nbytes"])
