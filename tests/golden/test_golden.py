"""Every golden case of a directory: equal to the authors' code through the public paths.

`pytest tests/golden --golden-dir DIR` runs any directory of <system>/<case>/case.json.
"""

from __future__ import annotations

from pathlib import Path

import cmerc_adapters
import emt_adapters
import facialmmt_adapters
import mtee_adapters
import pytest
import tab_adapters
from case import CannotMap, Case, find_cases

SYSTEMS = {
    "cmerc": cmerc_adapters,
    "emt": emt_adapters,
    "facialmmt": facialmmt_adapters,
    "mtee": mtee_adapters,
    "tab": tab_adapters,
}
"""Adapters and tolerances by kind of case; kinds of two systems may share a name."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "folder" in metafunc.fixturenames:
        found = find_cases(Path(metafunc.config.getoption("--golden-dir")))
        metafunc.parametrize("folder", found, ids=[f"{f.parent.name}/{f.name}" for f in found])


def test_golden(folder: Path) -> None:
    case = Case.load(folder)
    system, model = case.content.get("system"), case.content["model"]
    if system not in SYSTEMS or model not in SYSTEMS[system].ADAPTERS:
        pytest.fail(f"cannot map this case: no adapter for system {system!r}, model {model!r}")
    try:
        found = SYSTEMS[system].ADAPTERS[model](case)
    except CannotMap as reason:
        pytest.fail(f"cannot map this case: {reason}")
    problems = case.compare(found, SYSTEMS[system].TOLERANCES.get(model))
    assert not problems, "\n".join(problems)


def test_there_are_cases(request: pytest.FixtureRequest) -> None:
    directory = Path(request.config.getoption("--golden-dir"))
    assert find_cases(directory), f"{directory} has no <system>/<case>/case.json"
