"""Which files are taken for recordings by their names; what they are is decided by their content when they are read."""

from __future__ import annotations

from pathlib import PurePath

SOUNDS = frozenset([".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff"])
VIDEOS = frozenset([".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".mpg", ".mpeg", ".ogv", ".3gp"])


def is_media(name: str) -> bool:
    """Whether a name ends like that of a recording."""
    return PurePath(name).suffix.lower() in SOUNDS | VIDEOS
