"""A bundle that was changed is refused, and nothing outside of it moves."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from damage import BUNDLES, commit, tree, written

from mer_export.bundle import JOURNAL, LOCK, MANIFEST, SCHEMA_VERSION, STAGING, Bundle, seal
from mer_export.errors import BundleError, MerError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return written(tmp_path / "bundle")


def test_an_earlier_bundle_opens_and_gets_a_checksum_from_the_next_writer(tmp_path: Path) -> None:
    root = Path(shutil.copytree(BUNDLES / "emt", tmp_path / "bundle"))
    assert "checksum" not in json.loads((root / MANIFEST).read_text())
    before = Bundle.open(root)
    before.verify()
    with before.commit() as change:
        change.write("reports/note.json", "{}")
    content = json.loads((root / MANIFEST).read_text())
    assert content["schema_version"] == SCHEMA_VERSION
    assert len(content["checksum"]) == 64
    assert Bundle.open(root).manifest.variants == before.manifest.variants


def test_every_flipped_bit_of_the_manifest_is_named(root: Path) -> None:
    whole, draw = (root / MANIFEST).read_bytes(), random.Random(15)
    for _ in range(400):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (root / MANIFEST).write_bytes(content)
        with pytest.raises(BundleError, match=MANIFEST):
            Bundle.open(root)


@pytest.mark.parametrize(
    "change", [lambda c: c + b"\n", lambda c: c.replace(b": ", b":"), lambda c: c[:-1], bytes.upper]
)
def test_a_manifest_that_reads_the_same_but_is_spelled_otherwise_is_refused(
    root: Path, change: Callable[[bytes], bytes]
) -> None:
    (root / MANIFEST).write_bytes(change((root / MANIFEST).read_bytes()))
    with pytest.raises(BundleError):
        Bundle.open(root)


def leaves(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a document, containers too."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*where, key)
        yield from leaves(item, (*where, key))


STRANGE = (None, True, -1, 0, 1, 2**70, 1.5, float("nan"), "", "x", "batch", "../x", "\0", [], [1], [[]], {}, {"x": 1})


def mutated(content: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A copy in which one value is another, gone, or there twice."""
    content = json.loads(json.dumps(content))
    places = [p for p in leaves(content) if p[0] not in ("checksum", "config", "provenance")]
    *path, last = draw.choice(places)
    holder = content
    for key in path:
        holder = holder[key]
    kind = draw.randrange(4)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(holder, list):
        holder.append(holder[last])
    elif kind == 2 and isinstance(holder, dict):
        holder[draw.choice(("x", "name", str(last) + "x"))] = holder.pop(last)
    else:
        holder[last] = draw.choice(STRANGE)
    return content


def test_every_changed_field_of_the_manifest_is_named(root: Path) -> None:
    content, draw = json.loads((root / MANIFEST).read_text()), random.Random(16)
    for _ in range(500):
        changed = mutated(content, draw)
        if json.dumps(changed) == json.dumps(content):
            continue
        (root / MANIFEST).write_text(json.dumps(changed, indent=1))
        with pytest.raises(BundleError, match=MANIFEST):
            Bundle.open(root)


def test_a_changed_field_under_a_right_checksum_is_never_an_internal_error(root: Path) -> None:
    """As whoever makes a bundle by hand can do: opened or refused in a sentence, and what opens can be used."""
    content, draw, opened = json.loads((root / MANIFEST).read_text()), random.Random(17), 0
    content.pop("checksum")
    for _ in range(500):
        (root / MANIFEST).write_bytes(seal(mutated(content, draw)))
        code = outcome(lambda: use(Bundle.open(root)))
        assert code in (0, 2, 6, 7)
        opened += code == 0
    assert opened < 250


def outcome(attempt: Callable[[], object]) -> int:
    """The exit code that an attempt would end a command with."""
    try:
        attempt()
    except MerError as error:
        return error.exit_code
    return 0


def use(bundle: Bundle) -> None:
    """What every command asks of a manifest, without a runtime."""
    from mer_export.data.example_inputs import example_inputs

    contract, task = bundle.manifest.contract, bundle.manifest.task
    for variant in bundle.manifest.variants:
        bundle.find(variant.name)
        bundle.path(variant.model)
        contract.check(example_inputs(contract, variant.lengths, None))
    assert task.columns()
    assert contract.modalities is not None


@pytest.mark.parametrize("name", [LOCK, STAGING, JOURNAL, MANIFEST, "config.yaml", "variants", "reports"])
def test_nothing_is_followed_or_written_through_a_link(root: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "diary").write_text("dear diary")
    target = outside if (root / name).is_dir() or name == STAGING else outside / "diary"
    if (root / name).is_dir():
        shutil.rmtree(root / name)
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(target)
    before = tree(outside)
    for attempt in (lambda: Bundle.open(root).verify(), lambda: commit(root)):
        with pytest.raises(BundleError, match="symbolic link"):
            attempt()
    assert tree(outside) == before


@pytest.mark.parametrize("name", [LOCK, MANIFEST, "config.yaml", "model.safetensors"])
def test_a_hard_link_to_elsewhere_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    os.link(root / name, tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    for attempt in (lambda: Bundle.open(root), lambda: commit(root)):
        with pytest.raises(BundleError, match="hard link"):
            attempt()
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_a_link_that_no_manifest_names_is_found_by_verify(root: Path) -> None:
    (root / "reports" / "extra").symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="symbolic link"):
        Bundle.open(root).verify()


@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir])
def test_what_is_not_a_file_does_not_hang_a_reader(root: Path, kind: Callable[[Path], None]) -> None:
    (root / "config.yaml").unlink()
    kind(root / "config.yaml")
    with pytest.raises(BundleError, match="is not a file"):
        Bundle.open(root)


def test_a_journal_that_leads_outside_moves_nothing(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("dear diary")
    manifest = Bundle.open(root).manifest.model_dump(mode="json")
    (root / STAGING).mkdir()
    for staged, moves, removals, said in (
        ("x", ["../outside"], [], "points outside the bundle"),
        ("x", [], ["../outside"], "points outside the bundle"),
        ("link", ["reports/note.json"], [], "symbolic link"),
        ("x", [str(outside)], [], "points outside the bundle"),
    ):
        shutil.rmtree(root / STAGING)
        (root / STAGING / "reports").mkdir(parents=True)
        (root / STAGING / "reports" / "note.json").symlink_to(outside)
        (root / STAGING / staged).write_text("attack")
        (root / JOURNAL).write_text(json.dumps({"manifest": manifest, "moves": moves, "removals": removals}))
        with pytest.raises(BundleError, match=said):
            commit(root)
        assert outside.read_text() == "dear diary"
