"""The allocator of the C library, where it is glibc's: elsewhere nothing changes."""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -3, -4, -8
"""What `mallopt` calls its settings."""


def glibc() -> ctypes.CDLL | None:
    """The C library with `mallopt` and `malloc_trim`; None where it is another one."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def one_arena() -> None:
    """Threads share one arena from now on.

    Each thread otherwise frees into one of its own, from which others do not take: a process that opens models again
    and again, in new threads, grows with each.
    """
    library = glibc()
    if library is not None:
        library.mallopt(ARENA_MAX, 1)
