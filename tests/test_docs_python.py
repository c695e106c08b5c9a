"""docs/python.md is one program: every snippet of it runs, in order, and every document that shows Python is known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "python.md"
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page, names = PAGE.read_text(encoding="utf-8"), dict[str, Any](__name__="page")
    found = list(SNIPPET.finditer(page))
    for snippet in found:
        # Line numbers of an error are those of the page.
        code = "\n" * page.count("\n", 0, snippet.start(1)) + snippet[1]
        exec(compile(code, str(PAGE), "exec"), names)
    assert len(found) == page.count("```python") == 11
    said = capsys.readouterr().out
    assert names["report"].verdict in ("pass", "warn")
    assert "wide: text" in said
