"""What an encoder can be made of, which settings each of these reads, and who makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mer_export.bundle import MANIFEST, Bundle
from mer_export.bundle.bundle import taken
from mer_export.bundle.files import scratch_folder
from mer_export.encoders.encoder import Encoder
from mer_export.encoders.faces import MARGIN, look_at_faces, sample_frames
from mer_export.encoders.mtcnn.detector import WEIGHTS, FaceDetector
from mer_export.encoders.signal.config import KINDS
from mer_export.errors import MerError, UsageError
from mer_export.exporters.export import export_variant, requests
from mer_export.overrides import apply_overrides
from mer_export.progress import Progress
from mer_export.registry import resolve

Settings = Mapping[str, Any]
"""What was asked for, by the name of the option; nothing of what was left out."""
EXPORTED = ("length", "format", "precision")
WORDS = ("name", "revision", "licence")
PICTURES = ("faces", "margin", "frames", "fps")
"""Settings of what an encoder of pictures sees of a clip."""


@dataclass(frozen=True)
class Maker:
    """One kind of source. `make` is a `module:function` of (source, out, settings, force) that gives a bundle, whose
    variants are exported then unless it brings them, or the files of a detector; `fits` says whether a source is of the
    kind."""

    title: str
    fits: Callable[[str, Settings], bool]
    reads: tuple[str, ...]
    make: str
    exports: bool = True
    bundle: bool = True
    """Whether that is a bundle."""


MAKERS = (
    Maker(
        "a bundle with a face network",
        lambda source, settings: (Path(source) / MANIFEST).is_file(),
        ("output", "unit", "format", "precision", *WORDS, *PICTURES),
        f"{__name__}:of_bundle",
    ),
    Maker(
        "a face detector",
        lambda source, settings: all((Path(source) / name).is_file() for name in WEIGHTS),
        (),
        f"{__name__}:of_detector",
        exports=False,
        bundle=False,
    ),
    Maker(
        "a folder of transformers",
        lambda source, settings: Path(source).is_dir(),
        ("layer", "stack", "pooling", "unit", "every", "window", "longest", *EXPORTED, *WORDS, *PICTURES),
        f"{__name__}:of_folder",
    ),
    Maker(
        "a signal",
        lambda source, settings: source in KINDS,
        ("pooling", "unit", "every", "rate", "set"),
        f"{__name__}:of_signal",
        exports=False,
    ),
    Maker(
        "a speech tokenizer",
        lambda source, settings: "dictionary" in settings,
        ("dictionary", "rate", "window", *EXPORTED, *WORDS),
        f"{__name__}:of_speech_tokenizer",
    ),
    Maker(
        "a file with a recipe",
        lambda source, settings: "recipe" in settings,
        ("recipe", "trust", *PICTURES),
        f"{__name__}:of_file",
        exports=False,
    ),
)


def make(source: str, out: Path, settings: Settings, force: bool, progress: Progress) -> dict[str, Any]:
    """Writes the bundle of an encoder, with its variants, or the folder of a face detector, and says what it is.

    Args:
        source: a folder, a file, or the name of a signal.
        out: the new bundle.
        settings: options of `mer encoder` by name.
        force: replace an existing bundle.
        progress: told of the variants.

    Raises:
        UsageError: nothing that an encoder is made of, or a setting that it does not read; faces of something else
            than pictures.
        MerError: whatever goes wrong while it is made.
    """
    maker = next((m for m in MAKERS if m.fits(source, settings)), None)
    if maker is None:
        raise UsageError(
            f"no encoder can be made of {source}: give a folder of transformers or of MTCNN's weights, an ONNX or "
            "TorchScript file with --recipe, a checkpoint of vq-wav2vec with --dictionary, a bundle with a face "
            f"network, or one of {list(KINDS)}"
        )
    if unread := [n for n in settings if n not in maker.reads]:
        raise UsageError(f"--{unread[0]} says nothing of {maker.title}, which reads {_listed(maker)}: leave it out")
    _check(**{n: settings[n] for n in PICTURES if n in settings})
    if not maker.bundle:
        made: list[Path] = resolve(maker.make)(source, out, {}, force)
        return {"detector": str(out), "reads": "picture", "gives": "boxes of faces", "files": [f.name for f in made]}
    # What is made beside it needs a name: that of the working directory is not said.
    out = out if out.name else out.resolve()
    taken(out, force)
    with scratch_folder(out) as folder:
        place = folder / out.name
        try:
            whole = _whole(maker, source, place, settings, progress)
        except MerError as error:
            # Nobody has heard of the place where it was made.
            raise type(error)(str(error).replace(str(place), str(out))) from error
        return described(whole.move_to(out, force))


def _whole(maker: Maker, source: str, place: Path, settings: Settings, progress: Progress) -> Bundle:
    """An encoder with all of its variants; raises as `make`."""
    shown = {n: settings[n] for n in PICTURES if n in settings}
    own = {n: v for n, v in settings.items() if n not in PICTURES}
    bundle: Bundle = resolve(maker.make)(source, place, own, False)
    _check_given(Encoder.of(bundle))
    if shown:
        _show(bundle, **shown)
    if maker.exports:
        _export(bundle, settings, progress)
    return bundle


def _check_given(encoder: Encoder) -> None:
    """Raises UsageError for what is said of states where a vector is given, or of a vector where states are."""
    config = encoder.config
    if config.every > 1 and not encoder.sequence:
        raise UsageError(f"every is {config.every}, which averages states, and pooling {config.pooling}: say none")
    if config.unit and encoder.sequence:
        raise UsageError("unit is of a vector, and pooling none gives states: leave one of them out")


def described(bundle: Bundle) -> dict[str, Any]:
    """An encoder that was made, for people."""
    encoder, contract = Encoder.of(bundle), bundle.manifest.contract
    return {
        "encoder": str(bundle.root),
        "name": encoder.identity.name,
        "sha256": encoder.identity.sha256,
        "reads": "faces" if getattr(encoder.input, "faces", None) else encoder.input.kind,
        "gives": [s.model_dump(mode="json", include={"name", "dims"}) for s in contract.outputs],
        "variants": [v.name for v in bundle.manifest.variants],
    }


def of_detector(source: str, out: Path, settings: Settings, force: bool) -> list[Path]:
    """A face detector of MTCNN's published weights."""
    from mer_export.exporters.encoders.faces import import_detector

    return import_detector(Path(source), out, force)


def of_folder(source: str, out: Path, settings: Settings, force: bool) -> Bundle:
    """Of a folder that the transformers package saved."""
    from mer_export.exporters.encoders.transformers_folder import Wanted, import_folder

    own = {n: v for n, v in settings.items() if n not in EXPORTED} | {"buckets": settings.get("length", ())}
    own["layers"] = own.pop("layer", ())
    return import_folder(Path(source), out, Wanted(**own), force)


def of_bundle(source: str, out: Path, settings: Settings, force: bool) -> Bundle:
    """Of a bundle of FacialMMT."""
    from mer_export.exporters.encoders.face_network import import_face_network

    own = {n: v for n, v in settings.items() if n not in EXPORTED}
    return import_face_network(Path(source), out, force=force, **own)


def of_signal(source: str, out: Path, settings: Settings, force: bool) -> Bundle:
    """Of a signal by its name."""
    from mer_export.encoders.signal.folder import write_signal_encoder

    own = {n: v for n, v in settings.items() if n not in ("set", "rate")}
    if "rate" in settings:
        if not settings["rate"].isdecimal():
            raise UsageError(f"--rate {settings['rate']}: a signal is read at a number of samples per second")
        own["rate"] = int(settings["rate"])
    return write_signal_encoder(source, out, force, **apply_overrides(own, settings.get("set", ())))  # type: ignore[arg-type]


def of_speech_tokenizer(source: str, out: Path, settings: Settings, force: bool) -> Bundle:
    """Of a checkpoint of vq-wav2vec."""
    from mer_export.exporters.encoders.speech_tokenizer import import_checkpoint

    own = {n: settings[n] for n in ("rate", "window") if n in settings} | {"buckets": tuple(settings.get("length", ()))}
    words = {n: settings[n] for n in WORDS if n in settings}
    return import_checkpoint(Path(source), settings["dictionary"], out, force=force, source=words, **own)


def of_file(source: str, out: Path, settings: Settings, force: bool) -> Bundle:
    """Of an ONNX or TorchScript file."""
    from mer_export.exporters.encoders.file import import_file

    return import_file(Path(source), settings["recipe"], out, force, settings.get("trust", False))


def _check(
    faces: Path | None = None, margin: float | None = None, frames: int | None = None, fps: float | None = None
) -> None:
    """Raises UsageError where settings contradict each other, InputError where there is no detector."""
    if frames is not None and fps is not None:
        raise UsageError(f"pass --frames ({frames}) or --fps ({fps}), not both")
    if margin is not None and faces is None:
        raise UsageError("--margin is that of faces: name their detector with --faces")
    if faces is not None:
        FaceDetector.load(faces)


def _show(bundle: Bundle, faces: Path | None = None, margin: float = MARGIN, **sampling: Any) -> None:
    """Says what an encoder of pictures sees of a clip: so many frames, and the face in them.

    Raises UsageError where it reads something else.
    """
    if sampling:
        sample_frames(bundle, **sampling)
    if faces is not None:
        look_at_faces(bundle, faces, margin=margin)


def _export(bundle: Bundle, settings: Settings, progress: Progress) -> None:
    buckets = [(b, 0) for b in bundle.manifest.contract.buckets]
    jobs = requests(bundle, settings.get("format", ["onnx"]), settings.get("precision", ["fp32"]), buckets, 0)
    with progress.over("export", len(jobs), "variant") as shown:
        for form, precision, bucket, batch in jobs:
            shown.begin(f"{form} {precision} {bucket.name}")
            export_variant(bundle, form, bucket, batch, precision)


def _listed(maker: Maker) -> str:
    return ", ".join(f"--{n}" for n in maker.reads)
