"""What a signal encoder says of itself: which signal, at which rate, with which settings."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from mer_export.bucket import Bucket
from mer_export.contract import BATCH, TensorSpec
from mer_export.encoders.config import EncoderConfig, Provenance
from mer_export.encoders.inputs import EncoderInput, Positive
from mer_export.encoders.signal import egemaps
from mer_export.encoders.signal.spectra import Spectrum
from mer_export.errors import UsageError
from mer_export.registry import first_problem

Kind = Literal["egemaps", "egemaps_lld", "log_mel", "mfcc"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LEVELS: dict[Kind, egemaps.Level] = {"egemaps": "Functionals", "egemaps_lld": "LowLevelDescriptors"}
"""Signals that the opensmile package makes."""
WIDTHS: dict[Kind, int] = {"egemaps": 88, "egemaps_lld": 25}
USUAL_RATE, DESCRIPTOR_HOP = 16000, 0.010
MOST = 1 << 20
"""Frames that a contract says: nothing here is as long as a bucket."""


class SignalInput(EncoderInput):
    """A waveform (samples,) float32 at `rate`, of any length.

    `half_step` adds half a quantisation step to sound that was 16-bit integers: rounding down on writing took that away
    on the average, and openSMILE, which truncates, sees one step more or less in silence.
    """

    unit: ClassVar[str] = "clip"
    steps: ClassVar[str] = "frames"

    kind: Literal["sound"] = "sound"
    rate: Positive = 16000
    half_step: bool = False
    hop: Positive
    """Samples between the beginnings of frames."""

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="sound", dtype="float32", dims=(BATCH, "frames", self.hop), modality="audio"),)

    @property
    def lengths(self) -> tuple[Bucket, ...]:
        return (Bucket(frames=MOST),)


class SignalConfig(EncoderConfig):
    """`spectrum` is of `log_mel` and `mfcc`, `coefficients` of `mfcc`, `version` of the others' opensmile package."""

    signal: Kind
    input: SignalInput  # type: ignore[assignment]
    spectrum: Spectrum | None = None
    coefficients: int | None = Field(None, ge=1)
    version: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> SignalConfig:
        smile = self.signal in LEVELS
        if smile != bool(self.version) or smile == (self.spectrum is not None):
            raise ValueError(f"{self.signal} is made by {'opensmile: say its version' if smile else 'a spectrum'}")
        if (self.signal == "mfcc") != (self.coefficients is not None):
            raise ValueError(f"coefficients are of mfcc, this is {self.signal}")
        if self.spectrum is not None and (self.coefficients or 1) > self.spectrum.mels:
            raise ValueError(f"{self.spectrum.mels} mel filters have no {self.coefficients} coefficients")
        if self.spectrum is not None:
            self.spectrum.check(self.input.rate)
        if self.width != (wanted := self._width()):
            raise ValueError(f"{self.signal} is {wanted} wide, not {self.width}")
        return self

    def _width(self) -> int:
        if self.spectrum is None:
            return WIDTHS[self.signal]
        return self.coefficients or self.spectrum.mels


def signal_config(kind: Kind, **settings: Any) -> SignalConfig:
    """The configuration of a signal.

    Args:
        kind: one of `KINDS`.
        settings: `rate`, `half_step`, `pooling`, `every`, `unit`; of `mfcc` also `coefficients`, and of it and
            `log_mel` the fields of `Spectrum`. Functionals are one vector, the others a sequence unless pooled.

    Raises:
        UsageError: no such signal or setting, or a value that cannot be.
        NotAvailableError: opensmile is not installed.
    """
    if kind not in KINDS:
        raise UsageError(f"no signal {kind!r}, there are {list(KINDS)}")
    try:
        own = _of_opensmile(kind) if kind in LEVELS else _of_spectrum(kind, settings)
        hop = own["spectrum"].hop if own.get("spectrum") else DESCRIPTOR_HOP
        heard = SignalInput(rate=settings.pop("rate", USUAL_RATE), half_step=settings.pop("half_step", False), hop=1)
        heard = heard.model_copy(update={"hop": max(1, round(heard.rate * hop))})
        said: dict[str, Any] = {"pooling": "mean" if kind == "egemaps" else "none"} | own | settings
        return SignalConfig(signal=kind, input=heard, **said)
    except ValidationError as error:
        raise UsageError(f"{kind}: {first_problem(error)}") from None


def _of_opensmile(kind: Kind) -> dict[str, Any]:
    version = egemaps.installed()
    name = f"{egemaps.SET} {LEVELS[kind]}, {egemaps.PACKAGE} {version}"
    return {
        "version": version,
        "width": WIDTHS[kind],
        "source": Provenance(name=name, revision=version, licence=egemaps.LICENCE),
    }


def _of_spectrum(kind: Kind, settings: dict[str, Any]) -> dict[str, Any]:
    """Takes the settings of a spectrum out of `settings`."""
    spectrum = Spectrum(**{n: settings.pop(n) for n in list(settings) if n in Spectrum.model_fields})
    coefficients = settings.pop("coefficients", 13) if kind == "mfcc" else None
    return {
        "spectrum": spectrum,
        "coefficients": coefficients,
        "width": coefficients or spectrum.mels,
        "source": Provenance(name=kind),
    }
