"""README's first install line is enough for the commands below it: they run where no other extra's package is there."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from without_packages import Without

from mer_export import registry
from mer_export.bundle import Bundle
from mer_export.weights import bundle_model, export_weights

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = re.search(r"pip install '\.\[([\w,-]+)\]'", README)[1].split(",")  # type: ignore[index]
INSTEAD = {"DIR": "data", "--preset meld": "--preset sample/demo"}
"""What the commands name, by what this test has: a small data set and the recipe for it."""
QUICK: dict[str, list[str]] = {
    "synth": [
        *("--out", "data", "--dialogues", "5"),
        *("--set", "text_dim=32", "--set", "audio_dim=24", "--set", "vision_dim=16"),
    ],
    "train": ["--set", "epochs=1"],
    "train cmerc": ["--set", "model.buckets=[33]"],
    "import": ["--set", "model.buckets=[33]", "--force"],
    "export runs/a --plan": ["--threads", "1", "--max-variants", "2"],
    "parity": ["--limit", "2", "--threads", "1"],
    "bench": ["--rounds", "3", "--batch", "1", "--threads", "1"],
    "bench runs/a --baseline": ["--runtime", "onnxruntime"],
    "tune": ["--batch", "1", "--precision", "fp32"],
}
"""Options that make a command small, none of which needs a package, by how it begins."""
SLOWER = 4
"""The exit code of a benchmark below its baseline: on a busy machine it may be."""


def installed(names: Iterable[str]) -> set[str]:
    """Distributions that come with these requirements."""
    found: set[str] = set()
    open_ends = [Requirement(n) for n in names]
    while open_ends:
        one = open_ends.pop()
        name = canonicalize_name(one.name)
        if name in found:
            continue
        found.add(name)
        try:
            needed = [Requirement(r) for r in requires(one.name) or ()]
        except PackageNotFoundError:
            continue
        wanted = [{"extra": e} for e in ("", *one.extras)]
        open_ends += [r for r in needed if r.marker is None or any(r.marker.evaluate(w) for w in wanted)]
    return found


def absent() -> list[str]:
    """Modules of this environment that the install line does not bring."""
    optional = PROJECT["optional-dependencies"]
    given = installed([*PROJECT["dependencies"], *(r for e in EXTRAS for r in optional[e])])
    others = {canonicalize_name(Requirement(r).name) for rows in optional.values() for r in rows} - {PROJECT["name"]}
    modules = packages_distributions()
    return [m for m, names in modules.items() if {canonicalize_name(n) for n in names} <= others - given]


def commands() -> list[str]:
    """The commands of the block, alternatives behind a `# or:` too."""
    start = README.index("    mer synth cmerc")
    block = README[start : README.index("\n\n", start)].splitlines()
    shown = [
        part for line in block for part in re.split(r"# (?:or: (?=mer))?", line) if part.strip().startswith("mer ")
    ]
    assert len(shown) >= len(block)
    return [c.strip() for c in shown]


@pytest.mark.slow
def test_the_install_line_is_enough_for_the_commands_below_it(tmp_path: Path) -> None:
    gone = absent()
    assert {"tokenizers", "pyarrow", "h5py", "tensorboard", "transformers", "sklearn"} <= {*gone}
    own = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ran = []
    with Without(gone, tmp_path, own) as without:
        for command in commands():
            for shown, there in INSTEAD.items():
                command = command.replace(shown, there)
            verb, *words = shlex.split(command)[1:]
            if verb == "import":
                model = bundle_model(Bundle.open(tmp_path / "runs" / "a"))
                names = registry.resolve(registry.get("cmerc").weights)
                torch.save(export_weights(model, names, model.config), tmp_path / "checkpoint.pkl")
            if "old.json" in words:
                (tmp_path / "old.json").write_bytes((tmp_path / "runs" / "a" / "reports" / "bench.json").read_bytes())
            asked = f"{verb} {' '.join(words)} "
            more = [o for start, options in QUICK.items() if asked.startswith(f"{start} ") for o in options]
            code, out, err = without.mer(verb, *words, *more)
            assert code in ((0, SLOWER) if "--baseline" in words else (0,)), f"{command}: {err}"
            assert "not installed" not in out + err, command
            ran.append(verb)
    assert {*ran} == {"synth", "inspect", "train", "import", "export", "parity", "bench", "tune", "infer", "eval"}
