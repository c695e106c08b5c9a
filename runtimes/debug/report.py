"""What was found out about a variant that differs, and how it reads."""

from __future__ import annotations

from pydantic import Field

from mer_export.agreement.policy import Verdict
from mer_export.bucket import Bucket
from mer_export.bundle import Strict
from mer_export.markdown import table
from runtimes.debug.modules import ModuleRow


class KeptModule(Strict):
    """An entry of a block list, with those before it: what the file has more and the call takes longer by it, and the
    part of the tolerance that the worst sample takes then."""

    module: str
    more_bytes: int
    more_ms: float
    used: float


class DebugReport(Strict):
    """Everything that `debug_parity` found. `used` is the part of the tolerance that the worst sample takes."""

    variant: str
    runtime: str
    precision: str
    written: bool
    """Whether the bundle has the variant; otherwise it was made for this, without the gate that it fails."""
    verdict: Verdict
    reasons: list[str]
    samples: int
    sample: str
    lengths: dict[str, int]
    """Of the worst sample; 0 where a modality is missing."""
    output: str
    max_abs: float
    used: float
    module: str | None = None
    """The first module that makes an error; None where none makes more than noise."""
    note: str = ""
    rows: list[ModuleRow] = Field(default_factory=list)
    smallest: dict[str, int] | None = None
    """Lengths of the smallest sample that shows it."""
    file: str | None = None
    """Where that sample was written."""
    keep_fp32: list[KeptModule] = Field(default_factory=list)
    kept: list[str] = Field(default_factory=list)
    """What the file has in fp32 already; the entries of `keep_fp32` come to it."""
    seconds: float = 0.0
    peak_mib: int = 0
    """The most memory that the process had."""

    def page(self) -> str:
        """The report as Markdown."""
        made = "" if self.written else " (made for this, its gate left out)"
        lines = [f"# {self.runtime}: {self.variant}{made}", "", f"**{self.verdict}**", ""]
        lines += [f"* {reason}" for reason in self.reasons]
        lines += [
            f"* worst of {self.samples} samples: {self.sample} ({Bucket(self.lengths).name}), {self.output} is off by "
            f"{self.max_abs:.1e}, {self.used:.2g} of the tolerance"
        ]
        if row := next((r for r in self.rows if r.module == self.module), None):
            what = "first error in" if self.precision == "fp32" else "most of the difference is made in"
            lines += [f"* {what} **{self.module}**: {_size(row.own)} of its own, with exact values to read"]
        lines += [f"* {self.note}"] if self.note else []
        if self.smallest is not None:
            where = f", written to {self.file}" if self.file else ""
            lines += [f"* the smallest sample that shows it has {Bucket(self.smallest).name}{where}"]
        lines += ["", *self._modules(), *self._kept()]
        return "\n".join([*lines, "", f"{self.seconds:.1f} s, {self.peak_mib} MiB at most"])

    def _modules(self) -> list[str]:
        header = ("module", "error it reads", "error it gives", "growth", "of its own", "outputs by it alone")
        rows = [
            (
                f"**{r.module}**" if r.module == self.module else r.module,
                _size(r.entering),
                _size(r.error),
                "–" if r.growth is None else f"{r.growth:.1f}x",
                _size(r.own),
                "–" if r.alone is None else f"{r.alone:.2g}",
            )
            for r in self.rows
        ]
        return table(header, rows) if rows else []

    def _kept(self) -> list[str]:
        if not self.keep_fp32:
            return []
        header = ("kept in fp32, with those above", "bytes more", "ms more", "of the tolerance")
        rows = [(k.module, k.more_bytes, f"{k.more_ms:+.3f}", f"{k.used:.2g}") for k in self.keep_fp32]
        names = ", ".join([*self.kept, *(k.module for k in self.keep_fp32)])
        return ["", *table(header, rows), "", f"    keep_fp32: [{names}]"]


def _size(error: float) -> str:
    return "not finite" if error >= 1e12 else f"{error:.1e}"
