"""A bundle may come from a stranger: its programs do what ours do or are not loaded, and nothing outside is touched."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mer_export import trust
from mer_export.bundle import MANIFEST, Bundle, FileEntry, Variant, seal, sha256
from mer_export.errors import BundleError, UntrustedError
from mer_export.exporters import export_formats, export_variant
from mer_export.untrusted import exported_programs, torchscript_archives
from mer_export.untrusted.torchscript_archives import code_problem
from runtimes.backends import admission
from runtimes.backends.admission import admit
from runtimes.backends.table import open_session
from runtimes.backends.way import find_ways

DATA = Path(__file__).parent / "data" / "bundles"
PROGRAM = "model/models/model.json"
Edit = Callable[[dict[str, bytes]], None]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle that somebody else wrote."""
    return Bundle.open(shutil.copytree(DATA / "emt", tmp_path / "bundle"))


def variant_of(bundle: Bundle, form: str) -> Variant:
    return next(v for v in bundle.manifest.variants if v.format == form)


def replace_model(bundle: Bundle, form: str, content: bytes) -> Bundle:
    """Another model file in a bundle whose checksums are right."""
    name = variant_of(bundle, form).model
    (bundle.root / name).write_bytes(content)
    bundle.manifest.files[name] = FileEntry(size=len(content), sha256=sha256(bundle.root / name))
    (bundle.root / MANIFEST).write_bytes(seal(bundle.manifest))
    return Bundle.open(bundle.root)


def edited(path: Path, edit: Edit) -> bytes:
    """An archive with other members."""
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    edit(members)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


def program(change: Callable[[dict[str, Any]], None]) -> Edit:
    """An edit of the program in a .pt2 archive."""

    def edit(members: dict[str, bytes]) -> None:
        content = json.loads(members[PROGRAM])
        change(content)
        members[PROGRAM] = json.dumps(content).encode()

    return edit


def graph(content: dict[str, Any]) -> dict[str, Any]:
    return content["graph_module"]["graph"]


def expression(content: dict[str, Any], text: str) -> None:
    next(iter(graph(content)["sym_int_values"].values()))["as_expr"]["expr_str"] = text


def test_an_expression_in_an_exported_program_is_refused_before_it_runs(bundle: Bundle, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    attack = f"__import__('os').system('touch {marker}')"
    variant = variant_of(bundle, "exported_program")
    content = edited(bundle.path(variant.model), program(lambda c: expression(c, attack)))
    forged = replace_model(bundle, "exported_program", content)
    assert forged.verify(), "its checksums are right"
    with pytest.raises(UntrustedError, match="__import__") as caught:
        open_session(forged, variant, "exported_program")
    assert caught.value.exit_code == 6
    assert not marker.exists()
    way = next(w for w in find_ways(forged) if w.backend == "exported_program")
    assert "__import__" in str(way.why_not), "parity and bench list it with its reason"
    with pytest.raises(BundleError):
        open_session(Bundle.open(forged.root, trust=True), variant, "exported_program")
    assert marker.exists(), "the attack works on whoever asks for it"


def named(content: dict[str, Any]) -> dict[str, Any]:
    return graph(content)["nodes"][-1]


HOSTILE_PROGRAMS: dict[str, tuple[str, Edit]] = {
    "expression": ("lambda", program(lambda c: expression(c, "(lambda: 1)()"))),
    "power": (r"\*\*", program(lambda c: expression(c, "9**9**9**9"))),
    "expression that is a list": ("expr_str", program(lambda c: expression(c, ["s0"]))),  # type: ignore[arg-type]
    "guard": ("guards_code", program(lambda c: c["guards_code"].append("print(1)"))),
    "function of Python": ("torch.os.system", program(lambda c: named(c).update(target="torch.os.system"))),
    "function of math": ("math.factorial", program(lambda c: named(c).update(target="math.factorial"))),
    "file operator": ("from_file", program(lambda c: named(c).update(target="torch.ops.aten.from_file.default"))),
    "name that is code": ("import os", program(lambda c: named(c).update(name="x\n import os"))),
    "tensor that is code": ("a=b", program(lambda c: graph(c)["inputs"][0]["as_tensor"].update(name="a=b"))),
    "parameter that is code": (
        "parameter_name",
        program(
            lambda c: c["graph_module"]["signature"]["input_specs"][0]["parameter"].update(parameter_name='a")+f("')
        ),
    ),
    "module to import": (
        "in_spec",
        program(
            lambda c: c["graph_module"]["module_call_graph"][0]["signature"].update(
                in_spec='[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'
            )
        ),
    ),
    "object of a class": ("custom_obj", program(lambda c: graph(c)["custom_obj_values"].update(a={"name": "a"}))),
    "graph in a graph": ("as_graph", program(lambda c: named(c)["inputs"][0].update(arg={"as_graph": {}}))),
    "note of another kind": ("source_fn", program(lambda c: named(c)["metadata"].update(source_fn_stack="a,torch"))),
    "number that is text": ("as_int", program(lambda c: graph(c)["inputs"].append({"as_int": "exit()"}))),
    "deep nesting": ("damaged", lambda members: members.update({PROGRAM: b"[" * 200_000})),
    "example inputs": (
        "pickled example inputs",
        lambda members: members.update({"model/data/sample_inputs/model.pt": b"cos\nsystem\n(S'exit 1'\ntR."}),
    ),
    "pickled weights": (
        "use_pickle",
        lambda members: members.update(
            {
                "model/data/weights/model_weights_config.json": json.dumps(
                    {"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}
                ).encode()
            }
        ),
    ),
    "pickled object": (
        "opaque_obj_0",
        lambda members: members.update(
            {
                "model/data/constants/model_constants_config.json": json.dumps(
                    {"config": {"w": {"path_name": "opaque_obj_0", "use_pickle": False}}}
                ).encode()
            }
        ),
    ),
    "machine code": ("aotinductor", lambda members: members.update({"model/data/aotinductor/model/a.so": b"\x7fELF"})),
    "weights of an older form": ("model.pt", lambda members: members.update({"model/data/weights/model.pt": b""})),
}


@pytest.mark.parametrize("name", HOSTILE_PROGRAMS)
def test_whatever_the_loader_of_exported_programs_would_evaluate_is_refused_by_name(
    bundle: Bundle, tmp_path: Path, name: str
) -> None:
    said, edit = HOSTILE_PROGRAMS[name]
    path = tmp_path / "model.pt2"
    path.write_bytes(edited(bundle.path(variant_of(bundle, "exported_program").model), edit))
    with pytest.raises(UntrustedError, match=said) as caught:
        exported_programs.check(path)
    assert "\n" not in str(caught.value)


class Overwrites(torch.nn.Module):
    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_file(self.path, True, 4, dtype=torch.uint8).fill_(65) + x


class Remembers(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> int:
        return 1

    @torch.jit.export
    def __setstate__(self, state: int) -> None:
        self.training = False


def script(module: torch.nn.Module) -> bytes:
    made = io.BytesIO()
    torch.jit.save(torch.jit.script(module), made)
    return made.getvalue()


def test_a_model_that_writes_files_is_refused_before_it_is_loaded(bundle: Bundle, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"dear diary")
    forged = replace_model(bundle, "torchscript", script(Overwrites(str(victim))))
    assert forged.verify()
    with pytest.raises(UntrustedError, match="was not loaded"):
        open_session(forged, variant_of(forged, "torchscript"), "torchscript")
    torch.jit.load(forged.root / variant_of(forged, "torchscript").model)(torch.zeros(4))
    assert victim.read_bytes() == b"AAAA diary", "the attack works on whoever loads it"


def test_a_setter_of_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ts"
    path.write_bytes(script(Remembers()))
    with pytest.raises(UntrustedError, match=r"training|state"):
        torchscript_archives.check(path)


HOSTILE_CODE = (
    "torch.from_file(x)",
    "torch .from_file(x)",
    "torch.\nfrom_file(x)",
    "ops.aten.from_file(x)",
    "ops.aten . from_file (x)",
    "x.from_file(y)",
    "x[0].from_file(y)",
    "(x).from_file(y)",
    "(torch.add)(x)",
    "f = torch.from_file",
    "getattr(self, x)",
    "getattr (self, x)",
    "print(x)",
    "__torch__.torch.classes.a.B(x)",
    "__torch__.other.f(x)",
    "torch.classes.a.b(x)",
    "torch.set_num_threads(1)",
    "torch.ops.aten.from_file(x)",
    "self.__setstate__(x)",
    "import os",
    "for i in x:\n  pass",
    "while True:\n  pass",
    "with x:\n  pass",
    "x = 1 # type: int",
    "x; torch.add(x)",
    "x = \\\n torch.add(x)",
    "x = torch.ａdd(x)",
    "x = 'text'",
    'x = "a\\x41"',
    "x = 1.torch",
    "lambda: x",
    "@torch.add",
    "def __setstate__(self):\n  return",
    "class A(NamedTuple):\n  x : int",
)


@pytest.mark.parametrize("code", HOSTILE_CODE)
def test_code_that_no_export_of_ours_says_is_refused(code: str) -> None:
    said = "class Model(Module):\n  def forward(self: __torch__.Model, x: Tensor) -> Tensor:\n    y = torch.add(x, x)\n"
    assert code_problem(said + "    return (y, x)\n") is None
    assert code_problem(f"{said}    {code}\n") is not None


def test_a_storage_may_not_claim_more_than_its_bytes(bundle: Bundle, tmp_path: Path) -> None:
    def shorten(members: dict[str, bytes]) -> None:
        members["model/constants/0"] = b"1234"

    path = tmp_path / "model.ts"
    path.write_bytes(edited(bundle.path(variant_of(bundle, "torchscript").model), shorten))
    with pytest.raises(UntrustedError, match="longer than its bytes"):
        torchscript_archives.check(path)


class Copied(list[Any]):
    """A list that counts what is copied of it."""

    items = 0

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        self.items += len(found) if isinstance(place, slice) else 0
        return found


def test_a_tuple_of_a_table_costs_what_it_holds_and_not_what_stands_below_it() -> None:
    tables = torchscript_archives._Tables(None, "constants")  # type: ignore[arg-type]
    tables.stack = Copied()
    assert tables.problem(b"\x80\x02" + b"(NNt" * 1000 + b".") is None
    assert len(tables.stack) == 1000
    assert tables.stack.items == 2000


@pytest.mark.parametrize("reference", [b"X\x07\0\0\0storage(NNtX\x01\0\0\x000X\x03\0\0\0cpuK\x01", b"NNNNN"])
def test_a_reference_to_something_else_than_a_storage_is_refused(reference: bytes) -> None:
    tables = torchscript_archives._Tables(None, "constants")  # type: ignore[arg-type]
    assert "not to a storage" in str(tables.problem(b"\x80\x02(" + reference + b"tQ."))


def twice(content: bytes) -> bytes:
    """Two archives one after the other: some readers take the first directory, some the second."""
    return content + content


@pytest.mark.parametrize(
    "change",
    [
        twice,
        lambda c: b"before" + c,
        lambda c: c + b"after",
        lambda c: c[:-30],
        lambda c: c[: len(c) // 2],
        lambda c: c.replace(b"model/byteorder", b"model/BYTEORDER"),
        lambda c: c.replace(b"model/byteorder", b"model/../../byt"),
        lambda c: c.replace(b"model/byteorder", b"model/byteorder", 1).replace(
            b"model/byteorder", b"other/byteorder", 1
        ),
        lambda c: b"",
        lambda c: b"PK\x05\x06" + bytes(18),
    ],
)
@pytest.mark.parametrize("form", ["torchscript", "exported_program"])
def test_an_archive_that_can_be_read_in_two_ways_is_refused(
    bundle: Bundle, tmp_path: Path, form: str, change: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "model"
    path.write_bytes(change(bundle.path(variant_of(bundle, form).model).read_bytes()))
    with pytest.raises(UntrustedError):
        (torchscript_archives if form == "torchscript" else exported_programs).check(path)


@pytest.mark.parametrize("form", ["torchscript", "exported_program"])
def test_a_damaged_archive_passes_or_is_refused_and_is_never_an_internal_error(
    bundle: Bundle, tmp_path: Path, form: str
) -> None:
    """What passes has a flipped bit in its weights, which checksums find."""
    check = (torchscript_archives if form == "torchscript" else exported_programs).check
    whole = bundle.path(variant_of(bundle, form).model).read_bytes()
    path, passed = tmp_path / "model", 0
    for seed in range(300):
        content = bytearray(whole)
        place = (seed * 7919 * 104729) % len(content)
        content[place] ^= 1 << seed % 8
        path.write_bytes(content)
        with contextlib.suppress(UntrustedError):
            check(path)
            passed += 1
    assert 0 < passed < 300


@pytest.mark.parametrize("system", ["emt", "cmerc"])
def test_what_earlier_releases_exported_passes_the_tables(system: str) -> None:
    bundle = Bundle.open(DATA / system)
    for form in ("torchscript", "exported_program"):
        admit(bundle, variant_of(bundle, form))


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who can keep a key; returns where."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "mer" / "key"


def engine(root: Path) -> Bundle:
    """The bundle with a file that says it is an engine, exported by whoever has the key."""
    bundle = Bundle.open(root)
    variant = variant_of(bundle, "torchscript").model_copy(update={"format": "tensorrt", "batch": 1})
    name = f"variants/{variant.name}/model.engine"
    variant = variant.model_copy(update={"model": name})
    with bundle.commit() as change:
        change.write(name, b"machine code")
        change.add_variant(trust.mark(variant, {name: sha256(change.file(name))}))
    return bundle


def test_machine_code_runs_for_who_exported_it_and_for_nobody_else_without_trust(
    bundle: Bundle, user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engine(bundle.root)
    assert user.stat().st_mode & 0o777 == 0o600
    moved = Bundle.open(shutil.move(made.root, tmp_path / "elsewhere"))
    assert moved.verify()
    admit(moved, variant_of(moved, "tensorrt"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another user"))
    with pytest.raises(UntrustedError, match="machine code that you did not export"):
        admit(moved, variant_of(moved, "tensorrt"))
    admit(Bundle.open(moved.root, trust=True), variant_of(moved, "tensorrt"))


def test_a_mark_is_of_these_files_of_this_variant_alone(bundle: Bundle, user: Path) -> None:
    made = engine(bundle.root)
    forged = replace_model(made, "tensorrt", b"other machine code")
    with pytest.raises(UntrustedError, match="machine code that you did not export"):
        admit(forged, variant_of(forged, "tensorrt"))


def test_a_key_that_others_can_read_is_not_used(bundle: Bundle, user: Path) -> None:
    made = engine(bundle.root)
    user.chmod(0o644)
    with pytest.raises(UntrustedError, match="machine code that you did not export"):
        admit(made, variant_of(made, "tensorrt"))
    assert trust.mark(variant_of(made, "tensorrt").model_copy(update={"mac": ""}), {}).mac == ""


def test_own_exports_are_recognised(bundle: Bundle, user: Path) -> None:
    bucket = bundle.manifest.contract.buckets[0]
    variant = export_variant(bundle, "torchscript", bucket)
    assert trust.recognises(bundle, variant, [variant.model])
    reopened = Bundle.open(bundle.root)
    assert reopened.find(variant.name) == variant
    assert reopened.verify()


def test_a_mark_does_not_stand_in_the_way_of_another_program(bundle: Bundle) -> None:
    """Whoever cannot keep a key exports all the same, and what is exported passes the tables."""
    assert os.environ["XDG_CONFIG_HOME"] == os.devnull
    variant = export_variant(bundle, "torchscript", bundle.manifest.contract.buckets[0])
    assert variant.mac == ""
    admit(bundle, variant)


def test_what_is_admitted_as_data_is_every_format_whose_files_are_no_programs() -> None:
    assert {name for name, format in export_formats().items() if format.program is None} == admission.DATA
