"""A small bundle with encoders of text and of sound inside, and `mer infer` where there is no PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import Once
from small_emt import SHORT, make_emt
from without_packages import Without

from benchmarks.small_encoders import save_folder
from mer_export.bucket import Bucket
from mer_export.bundle import Bundle
from mer_export.encoders.attached import attach
from mer_export.encoders.encoder import Encoder
from mer_export.exporters import export_variant
from mer_export.exporters.encoders.transformers_folder import Wanted, import_folder

WIDTHS = {"text_dim": 32, "audio_dim": 32, "vision_dim": 32}
BUCKETS = [SHORT, Bucket(text_len=9, audio_len=24, vision_len=8)]
KINDS = {
    "text": ("bert", Wanted(longest=24, buckets=(24,))),
    "audio": ("whisper", Wanted(window=1.0, pooling="none", every=10)),
}


def attached_encoder(once: Once, name: str) -> Encoder:
    """Of text or of sound, for its longest length; read only."""
    kind, wanted = KINDS[name]

    def made(root: Path) -> Bundle:
        save_folder(kind, root.with_name("source"))
        bundle = import_folder(root.with_name("source"), root, wanted)
        export_variant(bundle, "onnx", bundle.manifest.contract.buckets[0])
        return bundle

    return Encoder.of(once(f"encoder of {name}", made))


def attached_model(once: Once) -> Path:
    """A network on text, sound and pictures with the encoders of the first two inside, exported; read only."""
    encoders = {name: [attached_encoder(once, name)] for name in KINDS}

    def made(root: Path) -> Bundle:
        bundle = make_emt(root, "mult vectors", **WIDTHS, arrays=BUCKETS[1], buckets=BUCKETS)
        export_variant(bundle, "onnx", bundle.manifest.contract.buckets[-1])
        attach(Bundle.open(root), encoders)
        return Bundle.open(root)

    return once("model with encoders", made).root


Infer = Callable[..., tuple[list[dict[str, object]], str]]


@contextmanager
def inferring() -> Iterator[Infer]:
    """What `mer infer` writes in a process of its own, in which importing torch or transformers is an error."""
    with Without(["torch", "transformers"]) as without:

        def answers(bundle: Path, source: Path, out: Path, *more: str) -> tuple[list[dict[str, object]], str]:
            code, *said = without.mer("infer", bundle, source, "-o", out, *more)
            assert code == 0, said
            return [json.loads(line) for line in out.read_text().splitlines()], "".join(said)

        yield answers
