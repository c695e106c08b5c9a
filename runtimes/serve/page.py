"""The page at `/`: one file, which asks the same endpoints as everybody else and nothing of the network."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

FILE = Path(__file__).with_name("page.html")
INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def render() -> str:
    """The page as it is sent."""
    return FILE.read_text(encoding="utf-8")


def _policy(html: str) -> str:
    """Its own script and style run, named by their hashes, and nothing else does."""
    hashes = {
        kind: "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind, text in INLINE.findall(html)
    }
    return (
        f"default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"script-src '{hashes['script']}'; style-src '{hashes['style']}'"
    )


HEADERS = {"Content-Security-Policy": _policy(render()), "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
