"""What a command found out about a bundle: kept in it as JSON for programs and as Markdown for people."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import PurePosixPath
from typing import Self

from pydantic import ValidationError

from mer_export.bundle import Bundle, Strict
from mer_export.errors import BundleError
from mer_export.registry import first_problem


class Report(Strict):
    """A kind of report. A subclass says where in a bundle it lies, which command makes it, and how it reads."""

    @classmethod
    @abstractmethod
    def path(cls) -> str:
        """Its JSON file in a bundle; the Markdown page lies beside it."""

    @classmethod
    @abstractmethod
    def command(cls) -> str:
        """The command that makes it, for messages."""

    @abstractmethod
    def page(self) -> str:
        """The report as Markdown."""

    def save(self, bundle: Bundle) -> None:
        """Writes JSON and Markdown into the bundle."""
        path = self.path()
        with bundle.commit() as change:
            change.write(path, self.model_dump_json(indent=1))
            change.write(str(PurePosixPath(path).with_suffix(".md")), self.page())

    @classmethod
    def load(cls, bundle: Bundle) -> Self | None:
        """The report of a bundle, None where there is none.

        Raises:
            BundleError: damaged, or written by another version.
        """
        path = cls.path()
        if path not in bundle.manifest.files:
            return None
        try:
            return cls.model_validate_json(bundle.path(path).read_bytes())
        except ValidationError as error:
            raise BundleError(
                f"{bundle.root}: {path} cannot be read ({first_problem(error)}): run {cls.command()} again"
            ) from None
