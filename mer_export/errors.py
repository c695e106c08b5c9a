"""Every error a person may meet, each with the exit code of the command line.

An error message is one sentence that says what was wrong, which value, and what to do about it.
"""


class MerError(Exception):
    """An internal failure; subclasses say whose move it is."""

    exit_code = 1


class UsageError(MerError):
    """A wrong option, configuration or input file."""

    exit_code = 2


class InputError(UsageError):
    """A sample that a model cannot take: wrong width, NaN, empty, or longer than the model allows."""


class MissingTrack(InputError):
    """A media file without the sound or the picture that was asked for: that modality is missing."""


class ParityError(MerError):
    """A variant does not give the answers of the reference."""

    exit_code = 3


class PerformanceError(MerError):
    """A variant is slower than the gate allows."""

    exit_code = 4


class NotAvailableError(MerError):
    """A package, execution provider or device that this machine does not have."""

    exit_code = 5


class BundleError(MerError):
    """A bundle that is corrupt, incomplete, locked or of another schema version."""

    exit_code = 6


class UnsupportedError(MerError):
    """A combination of system, format, precision or option that does not exist."""

    exit_code = 7


class UntrustedError(BundleError):
    """A program of a bundle that does what none of our exports does, or that cannot be checked."""
