"""Times in a recording, as tables and captions write them."""

from __future__ import annotations

import math
import re

from mer_export.errors import InputError

CLOCK = re.compile(r"(?:(\d{1,9}):)?(\d{1,9}):(\d{1,2}(?:[.,]\d{1,99})?)")


def seconds(value: object, where: str) -> float | None:
    """Seconds that a cell says: `12.5`, or a time such as `0:12.5` or `00:00:12,500`; None for an empty one.

    Raises:
        InputError: it says something else.
    """
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    clock = CLOCK.fullmatch(text)
    if clock:
        hours, minutes, rest = clock.groups()
        return 3600 * int(hours or 0) + 60 * int(minutes) + float(rest.replace(",", "."))
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"{where} is {text!r}, it must be seconds such as 12.5, or a time such as 00:00:12.5")
    return found
