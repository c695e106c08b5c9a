"""The log of the server: a JSON object a line on standard error, and in it nothing of what people send."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger("mer")


class JsonLines(logging.Formatter):
    """A record with its fields; of an exception the kind and the places, as its words may quote a request."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "said", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            said |= _failure(record.exc_info[1])
        return json.dumps(said, ensure_ascii=False)


def start(level: int) -> None:
    """From now on everything that is logged is JSON on standard error: from `level` on, of others warnings alone."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.root.handlers = [handler]
    logging.captureWarnings(True)
    log.handlers = []
    log.setLevel(level)


def note(event: str, **said: Any) -> None:
    """Logs an event with its fields."""
    if log.isEnabledFor(logging.INFO):
        log.info(event, extra={"said": said})


def note_failure(error: BaseException, number: str, event: str) -> None:
    """Logs what failed here under the number of the request; its words only where details are asked for."""
    words = {"words": str(error)} if log.isEnabledFor(logging.DEBUG) else {}
    log.error(event, extra={"said": {"request": number, **_failure(error), **words}})


def _failure(error: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno} {f.name}" for f in frames]
    return {"kind": type(error).__name__, "at": places[-8:]}
