"""Which status a request ends with that is not answered, and the one sentence that it gets."""

from __future__ import annotations

import errno
from collections.abc import Mapping

from mer_export import faults
from mer_export.errors import InputError, MerError, NotAvailableError
from runtimes.serve.journal import note_failure

RETRY_AFTER = {"Retry-After": "1"}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
"""Errors of the operating system that pass when there is room again."""


class Refusal(MerError):
    """A request that is not answered, with its HTTP status and headers."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None):
        super().__init__(sentence)
        self.status, self.headers = status, dict(headers or {})


def malformed(sentence: str) -> Refusal:
    """The client did not keep the protocol."""
    return Refusal(400, sentence)


def overloaded(sentence: str) -> Refusal:
    """The server takes no more at the moment."""
    return Refusal(503, sentence, RETRY_AFTER)


def too_late(seconds: float) -> Refusal:
    """The answer would come after the deadline."""
    return Refusal(504, f"no answer within the deadline of {seconds:g} s: ask for less at once, or allow more time")


def answered(error: Exception, number: str) -> Refusal:
    """Any error as what the client is told; what whoever runs the server has to mend is logged under the number."""
    refusal = as_refusal(error, number)
    if refusal.status >= 500 and refusal is not error:
        note_failure(error, number, "internal error" if refusal.status == 500 else str(refusal))
    return refusal


def as_refusal(error: BaseException, number: str) -> Refusal:
    """Any error as what the client is told; what is our own fault stays in the log, under the request's number."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InputError):
        return Refusal(422, str(error))
    if isinstance(error, RecursionError):
        return malformed("the body is nested too deep")
    if isinstance(error, MemoryError):
        return Refusal(413, "there is not enough memory for it: send less at once")
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return overloaded("the server has no room on its disk or for open files: try again later")
    known = faults.explain(error)
    if isinstance(known, NotAvailableError):
        return Refusal(501, f"this server cannot answer it: {known} there")
    return Refusal(500, f"internal error: the log of the server says more under request {number}")
