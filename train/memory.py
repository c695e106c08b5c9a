"""Memory of the host that one step leaves to the next."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mer_export.malloc import MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD, glibc

MOST = 2**31 - 1
GLIBC_MMAP_MAX, GLIBC_LARGEST = 65536, 32 * 2**20
"""What glibc starts with, and the largest threshold that it comes to by itself."""


@contextlib.contextmanager
def kept_between_steps() -> Iterator[None]:
    """Inside, the C library keeps what is freed.

    glibc gives large blocks back to the kernel, which fills each with zeros, page by page, when the next step asks for
    it again (`python3 -m benchmarks.training` shows what that costs). Elsewhere nothing changes.
    """
    library = glibc()
    if library is None:
        yield
        return
    library.mallopt(MMAP_MAX, 0)
    library.mallopt(TRIM_THRESHOLD, MOST)
    try:
        yield
    finally:
        # There is no way to ask what was set before: what glibc itself comes to with large blocks.
        library.mallopt(MMAP_MAX, GLIBC_MMAP_MAX)
        library.mallopt(MMAP_THRESHOLD, GLIBC_LARGEST)
        library.mallopt(TRIM_THRESHOLD, 2 * GLIBC_LARGEST)
        library.malloc_trim(0)
