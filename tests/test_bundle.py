"""A bundle is whole or refused, whatever happens to it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mer_export import registry
from mer_export.bundle import LOCK, MANIFEST, SCHEMA_VERSION, Bundle, Manifest, Variant, seal, sha256
from mer_export.errors import BundleError, UsageError
from mer_export.importer import import_checkpoint
from mer_export.kept import Kept

CONFIG = {"text_dim": 6, "audio_dim": 5, "vision_dim": 4, "width": 8, "hidden": 8, "buckets": [4]}


def manifest() -> Manifest:
    system = registry.get("cmerc")
    config = system.parse(CONFIG)
    return Manifest(
        system="cmerc",
        variant="gru",
        config=config.model_dump(mode="json"),
        task=system.task(config),
        contract=system.contract(config),
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    bundle = Bundle.create(tmp_path / "b", manifest())
    with bundle.commit() as change:
        change.write("config.yaml", "seed: 1\n")
        change.write("model.safetensors", b"weights" * 100)
    return tmp_path / "b"


def edit(root: Path, **changes: object) -> None:
    content = json.loads((root / MANIFEST).read_text())
    content.pop("checksum", None)
    (root / MANIFEST).write_bytes(seal(content | changes))


def test_a_committed_bundle_verifies_after_being_moved(root: Path, tmp_path: Path) -> None:
    shutil.move(root, tmp_path / "elsewhere")
    bundle = Bundle.open(tmp_path / "elsewhere")
    assert bundle.verify() == 2
    assert bundle.path("config.yaml").read_text() == "seed: 1\n"


def test_a_failed_transaction_changes_nothing(root: Path) -> None:
    before = (root / MANIFEST).read_bytes()

    def fail() -> None:
        with Bundle.open(root).commit() as change:
            change.write("config.yaml", "seed: 2\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (root / MANIFEST).read_bytes() == before
    assert sorted(p.name for p in root.iterdir()) == sorted([LOCK, MANIFEST, "config.yaml", "model.safetensors"])


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml"])
def test_a_flipped_bit_is_refused_before_the_file_is_handed_out(root: Path, name: str) -> None:
    content = bytearray((root / name).read_bytes())
    content[3] ^= 1
    (root / name).write_bytes(content)
    with pytest.raises(BundleError, match="does not match its checksum"):
        Bundle.open(root).path(name)


def test_a_change_leaves_verified_what_it_does_not_touch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    monkeypatch.setattr("mer_export.bundle.bundle.sha256", lambda path: hashed.append(path.name) or sha256(path))
    opened = Bundle.open(root)
    for seed in (2, 3):
        for name in ("config.yaml", "model.safetensors"):
            opened.path(name)
        with opened.commit() as change:
            change.write("config.yaml", f"seed: {seed}\n")
    assert opened.path("config.yaml").read_text() == "seed: 3\n"
    assert sorted(hashed) == ["config.yaml"] * 3 + ["model.safetensors"]


def test_truncated_and_missing_files_are_named(root: Path) -> None:
    (root / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(BundleError, match="has 7 bytes, not 700"):
        Bundle.open(root)
    (root / "model.safetensors").unlink()
    with pytest.raises(BundleError, match="missing"):
        Bundle.open(root)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b"])
def test_a_name_that_leaves_the_bundle_is_refused(root: Path, name: str) -> None:
    edit(root, files={name: {"size": 1, "sha256": 64 * "0"}})
    with pytest.raises(BundleError, match="points outside the bundle"):
        Bundle.open(root)


def test_a_symbolic_link_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("seed: 1\n")
    (root / "config.yaml").unlink()
    (root / "config.yaml").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="symbolic link"):
        Bundle.open(root)


def test_a_newer_schema_and_broken_manifests_are_refused(root: Path, tmp_path: Path) -> None:
    edit(root, schema_version=SCHEMA_VERSION + 1, something_new=1)
    with pytest.raises(BundleError, match=f"schema version {SCHEMA_VERSION + 1}"):
        Bundle.open(root)
    edit(root, schema_version=SCHEMA_VERSION)
    with pytest.raises(BundleError, match="something_new"):
        Bundle.open(root)
    (root / MANIFEST).write_text("{")
    with pytest.raises(BundleError, match="cannot be read as JSON"):
        Bundle.open(root)
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path)


def test_a_second_writer_is_refused_and_told_who_writes(root: Path) -> None:
    with Bundle.open(root).lock():
        with pytest.raises(BundleError, match=f"being written by process {os.getpid()}"), Bundle.open(root).commit():
            pass
        assert Bundle.open(root).verify() == 2
    with Bundle.open(root).commit() as change:
        change.write("config.yaml", "seed: 3\n")
    assert Bundle.open(root).path("config.yaml").read_text() == "seed: 3\n"


KILLED = """
import os, signal, sys
from mer_export.bundle import Bundle
stop = int(sys.argv[2])
calls = 0
replace = os.replace
def counted(source, target):
    global calls
    if calls == stop:
        os.kill(os.getpid(), signal.SIGKILL)
    calls += 1
    replace(source, target)
os.replace = counted
with Bundle.open(sys.argv[1]).commit() as change:
    change.write("config.yaml", "seed: 2")
    change.write("reports/a.json", "{}")
    change.remove("model.safetensors")
"""


@pytest.mark.parametrize("stop", range(5))
def test_a_killed_commit_leaves_the_old_or_the_new_bundle_never_a_mixture(root: Path, stop: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(root), str(stop)], check=False)
    bundle = Bundle.open(root)
    bundle.verify()
    old = {"config.yaml", "model.safetensors"}
    new = {"config.yaml", "reports/a.json"}
    assert set(bundle.manifest.files) == (old if stop == 0 else new)
    assert bundle.path("config.yaml").read_text().strip() == ("seed: 1" if stop == 0 else "seed: 2")
    assert (done.returncode == 0) == (stop == 4)
    with Bundle.open(root).commit() as change:
        change.write("config.yaml", "seed: 9")
    assert {p.name for p in root.iterdir()} <= {LOCK, MANIFEST, "config.yaml", "model.safetensors", "reports"}


def test_create_refuses_to_replace_without_force_and_replaces_whole_with_it(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pass --force"):
        Bundle.create(root, manifest())
    fresh = Bundle.create(root, manifest(), force=True)
    assert Bundle.open(root).verify() == 2, "the old bundle stays until the first commit"
    with fresh.commit() as change:
        change.write("config.yaml", "seed: 7\n")
    assert set(Bundle.open(root).manifest.files) == {"config.yaml"}
    assert not (root / "model.safetensors").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("dear")
    with pytest.raises(UsageError, match="is not empty and is not a bundle"):
        Bundle.create(tmp_path / "other", manifest(), force=True)
    (root / os.fsdecode(b"caf\xe9.txt")).touch()
    with pytest.raises(UsageError, match=r"holds a file whose name is no UTF-8, 'caf.*\.txt': remove it"):
        Bundle.create(root, manifest(), force=True)


def test_an_import_reads_no_checkpoint_where_it_may_not_write(root: Path) -> None:
    with pytest.raises(UsageError, match="already holds a bundle"):
        import_checkpoint("emt", root / "no checkpoint.pt", {}, root)


def test_what_is_kept_of_an_encoder_lies_outside_of_its_bundle(root: Path) -> None:
    for own in (root, root / "encoders" / "text" / "0"):
        assert Kept.beside(own).folder == root.parent / "b-engines"
    assert Kept.beside(root.parent / "c" / "text" / "0").folder == root.parent / "c" / "text" / "0-engines"


def test_a_variant_is_replaced_as_a_whole(root: Path) -> None:
    def add(files: dict[str, str]) -> Variant:
        variant = Variant(
            format="torchscript", precision="fp32", lengths={"utterances": 4}, batch=0, model="", exporter="test"
        )
        variant = variant.model_copy(update={"model": f"variants/{variant.name}/model.ts"})
        with Bundle.open(root).commit() as change:
            for name, content in files.items():
                change.write(f"variants/{variant.name}/{name}", content)
            change.add_variant(variant)
        return variant

    add({"model.ts": "one", "weights.data": "x"})
    variant = add({"model.ts": "two"})
    bundle = Bundle.open(root)
    assert bundle.manifest.variants == [variant]
    assert variant.name == "torchscript-fp32-utterances4-bdynamic"
    assert bundle.variant_files(variant).read_text() == "two"
    assert not any("weights.data" in name for name in bundle.manifest.files)
    assert bundle.find(variant.name) == variant
    with pytest.raises(UsageError, match="no variant 'x'"):
        bundle.find("x")
