"""Raw things that nobody said or saw, to prove an encoder on: as short, as long and as loud as real ones."""

from __future__ import annotations

import numpy as np

from mer_export.bundle import Bundle
from mer_export.data.samples import Sample
from mer_export.encoders.encoder import Encoder
from mer_export.encoders.inputs import SoundInput, TextInput

ITEMS = 12


def examples(bundle: Bundle) -> list[Sample]:
    """Samples of every length that a bucket is made for, and of the shortest."""
    encoder, draw = Encoder.of(bundle), np.random.default_rng(0)
    recipe, found = encoder.input, []
    longest = [next(iter(b.values())) if b else 1 for b in recipe.lengths]
    sizes = [1, *longest, *draw.integers(1, longest[-1] + 1, ITEMS)]
    for number, size in enumerate(map(int, sizes)):
        if isinstance(recipe, TextInput):
            ids = draw.integers(0, recipe.vocabulary, max(3, size))
            samples = [recipe.sample(str(number), ids)]
        elif isinstance(recipe, SoundInput):
            loud = 10.0 ** draw.uniform(-3, -0.5)
            samples = encoder.samples(
                _sound(draw, max(recipe.field, size * recipe.hop), recipe.rate, loud), str(number)
            )
        else:
            picture = draw.integers(0, 256, (recipe.height + size, recipe.width + 2 * size, 3))
            samples = encoder.samples(picture.astype(np.uint8), str(number))
        found += encoder.as_one(samples)
    return found


def _sound(draw: np.random.Generator, samples: int, rate: int, loud: float) -> np.ndarray:
    """A hum with its overtones, in noise."""
    time, pitch = np.arange(samples) / rate, draw.uniform(80, 300)
    tones = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 6))
    noise = draw.standard_normal(samples)
    return (loud * (tones + 0.3 * noise) / 3).astype(np.float32)
