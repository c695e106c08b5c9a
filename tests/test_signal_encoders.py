"""Signal features: eGeMAPS as it is published, spectra as other code computes them, folders like those of encoders."""

from __future__ import annotations

import csv
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLE_DATA, Mer

from mer_export.encoders.encoder import Encoder
from mer_export.encoders.mel import mel_filters
from mer_export.encoders.signal import egemaps
from mer_export.encoders.signal.config import signal_config
from mer_export.encoders.signal.folder import write_signal_encoder
from mer_export.encoders.signal.spectra import Spectrum, log_mel, mfcc
from mer_export.errors import InputError, NotAvailableError, UnsupportedError, UsageError
from runtimes.encode import open_encoder

RATE = 16000
NOISE = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)


@pytest.mark.parametrize(("scale", "norm"), [("slaney", "slaney"), ("htk", None)])
def test_spectra_are_those_of_another_implementation(scale: str, norm: str | None) -> None:
    audio_utils = pytest.importorskip("transformers.audio_utils")
    fft = pytest.importorskip("scipy.fft")
    spectrum = Spectrum(scale=scale, low=20, high=7600)
    filters = audio_utils.mel_filter_bank(257, 40, 20, 7600, RATE, norm=norm, mel_scale=scale)
    np.testing.assert_allclose(mel_filters(RATE, 512, 40, scale, 20, 7600), filters, atol=1e-12)
    window = np.hanning(401)[:-1]
    wanted = audio_utils.spectrogram(
        NOISE, window, 400, 160, 512, 2.0, center=False, mel_filters=filters, log_mel="log", mel_floor=1e-10
    ).T
    found = log_mel(NOISE, RATE, spectrum)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    cepstra = fft.dct(wanted.astype(np.float64), norm="ortho")[:, :13]
    np.testing.assert_allclose(mfcc(NOISE, RATE, spectrum, 13), cepstra, atol=1e-4)


def test_a_long_sound_has_the_frames_of_its_parts() -> None:
    long = np.tile(NOISE, 45)
    found = log_mel(long, RATE, Spectrum())
    assert found.shape == (1 + (len(long) - 400) // 160, 40)
    np.testing.assert_array_equal(found[4100:4110], log_mel(long[4100 * 160 :], RATE, Spectrum())[:10])
    assert log_mel(NOISE[:10], RATE, Spectrum()).shape == (1, 40)


def test_a_signal_is_encoded_like_anything_else(tmp_path: Path) -> None:
    write_signal_encoder("mfcc", tmp_path / "mfcc", every=10)
    with open_encoder(tmp_path / "mfcc") as encoding:
        states, short = encoding.encode([NOISE, NOISE[:800]])
    plain = mfcc(NOISE, RATE, Spectrum(), 13)
    assert (states.dtype, states.shape, short.shape) == (np.float32, (10, 13), (1, 13))
    np.testing.assert_allclose(states[0], plain[:10].mean(axis=0), rtol=1e-4)
    write_signal_encoder("log_mel", tmp_path / "mean", pooling="mean", unit=True, mels=8)
    with open_encoder(tmp_path / "mean") as encoding:
        (vector,) = encoding.encode([NOISE])
        assert (vector.shape, float(np.linalg.norm(vector))) == ((8,), pytest.approx(1))
        for wrong in (NOISE[None], np.zeros(0, np.float32), NOISE.astype(np.int16), np.full(9, np.nan, np.float32)):
            with pytest.raises(InputError, match="0: a sound encoder reads finite samples"):
                list(encoding.encode([wrong]))


def test_the_identity_of_a_signal_is_all_that_decides_a_number(tmp_path: Path) -> None:
    made = [
        write_signal_encoder("log_mel", tmp_path / n, **s).root
        for n, s in {
            "a": {},
            "b": {"scale": "htk"},
            "c": {"rate": 8000},
            "d": {"half_step": True},
            "e": {"every": 2},
        }.items()
    ]
    identities = [Encoder.open(folder).identity for folder in made]
    assert len({i.sha256 for i in identities}) == len(made)
    assert {i.name for i in identities} == {"log_mel"}
    again = write_signal_encoder("log_mel", tmp_path / "again").root
    assert Encoder.open(again).identity == identities[0]


def test_settings_that_cannot_be_are_one_sentence() -> None:
    for settings, said in (
        ({"coefficients": 41}, "40 mel filters have no 41 coefficients"),
        ({"low": 9.0, "high": 8.0}, "end at 8.0 Hz and begin at 9.0 Hz"),
        ({"colour": 1}, "mfcc: colour"),
        ({"pooling": "most"}, "mfcc: pooling"),
        ({"rate": "fast"}, "mfcc: rate: .*'fast'"),
        ({"high": 9000.0}, "from 0 to 9000 Hz, and sound at 16000 Hz has no more than 8000 Hz"),
        ({"low": 8000.0}, "from 8000 Hz on, and sound at 16000 Hz has no more than 8000 Hz"),
        ({"hop": 1e-5}, "a hop of 1e-05 s at 16000 Hz is less than 1 samples"),
    ):
        with pytest.raises(UsageError, match=said):
            signal_config("mfcc", **settings)
    with pytest.raises(UsageError, match="no signal 'mel', there are"):
        signal_config("mel")  # type: ignore[arg-type]


def test_a_signal_has_nothing_to_export(mer: Mer, tmp_path: Path) -> None:
    bundle = write_signal_encoder("mfcc", tmp_path / "mfcc")
    assert bundle.verify() == 0
    code, _, err = mer("export", tmp_path / "mfcc")
    assert code == UnsupportedError.exit_code
    assert "encoders of kind signal have no network: there is nothing to export" in err


def test_without_opensmile_the_extra_and_its_licence_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(egemaps, "PACKAGE", "opensmile-that-is-not-there")
    with pytest.raises(NotAvailableError, match=r"licensed for research .*mer-export\[opensmile\]"):
        write_signal_encoder("egemaps", tmp_path / "e")


@pytest.mark.skipif(find_spec("opensmile") is None, reason="opensmile is not installed")
class TestEgemaps:
    """With the opensmile package."""

    def test_functionals_are_a_vector_and_descriptors_a_sequence(self, tmp_path: Path) -> None:
        for kind, shape in (("egemaps", (88,)), ("egemaps_lld", (10, 25))):
            folder = write_signal_encoder(kind, tmp_path / kind, **({"every": 10} if len(shape) > 1 else {})).root
            with open_encoder(folder) as encoding:
                assert next(encoding.encode([NOISE])).shape == shape
                with pytest.raises(InputError, match="800 samples at 16000 Hz are too short for eGeMAPSv02"):
                    next(encoding.encode([NOISE[:800]]))
            identity = Encoder.open(folder).identity
            assert f"opensmile {egemaps.installed()}" in identity.name
            assert "no commercial use" in Encoder.open(folder).config.source.licence

    def test_another_version_is_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        folder = write_signal_encoder("egemaps", tmp_path / "e").root
        monkeypatch.setattr(egemaps, "installed", lambda: "1.0")
        with (
            open_encoder(folder) as encoding,
            pytest.raises(NotAvailableError, match=r"1\.0 is installed .*: install that version"),
        ):
            next(encoding.encode([NOISE]))

    @pytest.mark.skipif(
        not (SAMPLE_DATA / "media" / "ravdess").is_dir(), reason="the recordings are not beside the repository"
    )
    def test_recordings_give_the_stored_functionals(self, tmp_path: Path) -> None:
        soundfile = pytest.importorskip("soundfile")
        with (SAMPLE_DATA / "ravdess_av" / "clips.csv").open() as stream:
            clips = list(csv.DictReader(stream))[4::120]
        stored = np.load(SAMPLE_DATA / "ravdess_av" / "features.npz")["audio_egemaps"]
        files = [SAMPLE_DATA / "media" / "ravdess" / f"{c['clip_id']}.flac" for c in clips]
        sounds = [soundfile.read(f, dtype="float32")[0] + np.float32(0.5 / 32768) for f in files]
        with open_encoder(write_signal_encoder("egemaps", tmp_path / "e", half_step=True).root) as encoding:
            found = np.stack(list(encoding.encode(sounds)))
        wanted = stored[[int(c["row"]) for c in clips]]
        near = np.abs(found - wanted) <= 0.01 * np.abs(wanted)
        assert len(clips) == 12
        assert near.mean() >= 0.998


def test_signals_need_no_torch_and_no_engine(tmp_path: Path) -> None:
    write_signal_encoder("mfcc", tmp_path / "mfcc")
    code = (
        "import sys, numpy; from runtimes.encode import open_encoder; "
        f"e = open_encoder({str(tmp_path / 'mfcc')!r}); next(e.encode([numpy.ones(999, 'f4')])); "
        "print([m for m in ('torch', 'transformers', 'onnxruntime', 'openvino') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
