"""Writing pickles of plain data, for synthetic files in the authors' formats."""

from __future__ import annotations

import pickle
from typing import Any


def dump_plain(content: Any) -> bytes:
    """Pickle protocol 2 with the module names of numpy 1.x, so that the authors' own code reads it too."""
    plain = pickle.dumps(content, protocol=2)
    return plain.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1)
