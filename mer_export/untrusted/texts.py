"""Texts of strangers: bytes that are UTF-8, or a sentence that says where they are not."""

from __future__ import annotations

from mer_export.errors import InputError


def decoded(content: bytes, where: str) -> str:
    """UTF-8 bytes as text; `where` is the file and the place in it that they are from.

    Raises:
        InputError: a byte that is not UTF-8; names it.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}, byte {error.start + 1} is 0x{content[error.start]:02x}, which is not UTF-8 text: "
            "save the file as UTF-8"
        ) from None
