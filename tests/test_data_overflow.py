"""A dialogue longer than the model's fixed length: refused, cut, or read in windows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_export.data.overflow import fit, windows
from mer_export.data.samples import Sample
from mer_export.errors import InputError
from mer_export.models.cmerc import CmercConfig, contract

CONTRACT = contract(CmercConfig(text_dim=4, audio_dim=3, vision_dim=2, text_vectors=2))


def _sample(n: int) -> Sample:
    rows = np.arange(n, dtype=np.float32)[:, None]
    inputs = {
        "text": np.broadcast_to(rows, (2, n, 4)).copy(),
        "audio": np.broadcast_to(rows, (n, 3)).copy(),
        "speaker": np.arange(n) % 2,
    }
    return Sample("d", inputs, tuple(f"d/{i}" for i in range(n)), np.arange(n))


def test_a_dialogue_that_fits_comes_back_as_it_is():
    sample = _sample(5)
    for policy in ("error", "window", "truncate"):
        (piece,) = fit(sample, CONTRACT, {"utterances": 5}, policy)
        assert piece.sample is sample
        assert (piece.keep, piece.start) == (slice(0, 5), 0)


def test_an_over_long_dialogue_is_an_error_that_says_what_to_do():
    with pytest.raises(InputError, match=r"d: 9 utterances are more than the fixed 8: re-export with --seq-len"):
        fit(_sample(9), CONTRACT, {"utterances": 8}, "error")


def test_truncate_keeps_the_last_utterances():
    (piece,) = fit(_sample(9), CONTRACT, {"utterances": 4}, "truncate")
    assert piece.sample.units == ("d/5", "d/6", "d/7", "d/8")
    assert piece.sample.labels.tolist() == [5, 6, 7, 8]
    assert piece.sample.inputs["text"].shape == (2, 4, 4)
    assert piece.sample.inputs["audio"][:, 0].tolist() == [5, 6, 7, 8]
    assert (piece.keep, piece.start) == (slice(0, 4), 5)


@given(size=st.integers(2, 300), limit=st.integers(1, 120))
def test_windows_predict_every_utterance_exactly_once_where_it_is_most_central(size, limit):
    if size <= limit:
        return
    pieces = fit(_sample(size), CONTRACT, {"utterances": limit}, "window")
    predicted = []
    for piece in pieces:
        rows = piece.sample.units[piece.keep]
        assert len(piece.sample.units) == limit
        assert rows[0] == f"d/{piece.start}"
        assert piece.sample.inputs["audio"].shape[0] == limit
        predicted += rows
    assert predicted == [f"d/{i}" for i in range(size)]
    plan = windows(size, limit)
    for begin, first, last in plan:
        for unit in range(first, last):
            distance = abs(2 * unit - (2 * begin + limit - 1))
            assert all(distance <= abs(2 * unit - (2 * other + limit - 1)) for other, _, _ in plan)
