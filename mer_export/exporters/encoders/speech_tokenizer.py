"""A speech tokenizer from a fairseq checkpoint of vq-wav2vec and the dictionary of Speech-BERT."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mer_export.bundle import WEIGHTS, Bundle, sha256
from mer_export.checkpoints import read_checkpoint, usual_state
from mer_export.data.tokens.speech_dictionary import SpeechDictionary
from mer_export.encoders.config import Provenance
from mer_export.encoders.encoder import DICTIONARY, manifest_of
from mer_export.encoders.vq_wav2vec import SYSTEM
from mer_export.encoders.vq_wav2vec.config import encoder_config, from_arguments
from mer_export.errors import UsageError
from mer_export.weights import import_weights, save_weights

if TYPE_CHECKING:
    from mer_export.encoders.vq_wav2vec.network import VqWav2vec

RATES = {"faithful": 22050, "correct": 16000}
"""The original reads wav files at 22 050 Hz, which the tokenizer, trained at 16 000 Hz, takes for slow speech."""
WINDOW = 40.0
"""Seconds that an utterance may have where nobody says otherwise: those of IEMOCAP have 34."""


def import_checkpoint(
    checkpoint: Path,
    dictionary: Path,
    out: Path,
    rate: str = "correct",
    window: float = WINDOW,
    force: bool = False,
    source: dict[str, str] | None = None,
    **heard: Any,
) -> Bundle:
    """Writes the bundle of a k-means vq-wav2vec: weights and dictionary; no variant yet.

    Args:
        checkpoint: a file with `args` and `model`.
        dictionary: dict.txt.
        out: the new bundle.
        rate: one of `RATES`.
        window: seconds of the longest utterance.
        force: replace an existing bundle.
        source: name, revision and licence.
        heard: further settings of its input.

    Raises:
        UsageError: the bundle exists, no such rate, or the checkpoint is of another form.
        InputError: the dictionary is none.
        UnsupportedError: a quantiser of another kind, or residual connections, which exist for one length only.
    """
    from mer_export.encoders.vq_wav2vec.network import WEIGHT_MAP

    if rate not in RATES:
        raise UsageError(f"no sample rate {rate!r} of a speech tokenizer, there are {list(RATES)}")
    found = read_checkpoint(checkpoint)
    said = Provenance(**{"name": checkpoint.stem, "sha256": sha256(checkpoint)} | (source or {}))
    config = encoder_config(from_arguments(found.arguments), RATES[rate], window, said, **heard)
    model: VqWav2vec = SYSTEM.build(config)  # type: ignore[assignment]
    import_weights(model, usual_state(found), WEIGHT_MAP, config)
    SpeechDictionary.load(dictionary)
    bundle = Bundle.create(out, manifest_of(SYSTEM, config), force)
    with bundle.commit() as change:
        save_weights(model, change.file(WEIGHTS))
        shutil.copyfile(dictionary, change.file(DICTIONARY))
    return bundle
