"""Which status a request ends with that is not answered, and the one sentence that it gets."""

from __future__ import annotations

from collections.abc import Mapping

from mer_export.errors import InputError, MerError

RETRY_AFTER = {"Retry-After": "1"}


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
    return Refusal(500, f"internal error: the log of the server says more under request {number}")
