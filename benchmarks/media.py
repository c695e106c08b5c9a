"""From recordings to labels: clips a second of the whole chain, and where the time goes.

    python3 -m benchmarks.media --clips DATA --bundle BUNDLE --source FOLDER --out benchmarks/results [--items 64]

DATA is a data set with recordings, BUNDLE a model with encoders (`mer attach`), FOLDER the `transformers` folder that
its encoder of sound was made of: a network of Whisper. Decoding, preparing, encoding and fusing are timed apart on the
same clips, encoders in turns with what a user of `transformers` would write: one clip at a time through the package's
own network, in the window of the encoder, and in the 30 s that the folder asks for. Writes `media.json` and `.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import flops, limit, output
from mer_export import machine
from mer_export.bundle import Bundle
from mer_export.data.bundle_data import bundle_spec
from mer_export.data.collate import collate
from mer_export.data.dialogues import Recording
from mer_export.data.media.sound import read_sound
from mer_export.data.open import stream_samples
from mer_export.data.samples import Sample
from mer_export.encoders.attached import attached
from mer_export.encoders.encoder import Encoder
from mer_export.markdown import table
from runtimes.backends.session import SessionOptions
from runtimes.encode import Encoding
from runtimes.features.completed import Completion
from runtimes.predict.predictor import Predictor
from runtimes.speed.timing import interleave, ratio

AUDIO = "audio"
BATCH = 16
ROUNDS = 5
WAYS = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"))
PRODUCTS = 16
"""Large products of one turn of `LIMIT`: about as long as a turn of the encoders."""
LIMIT = "fp32 limit of this machine"
EAGER, WHOLE = "transformers, one clip at a time, same window", "transformers, one clip at a time, 30 s"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the suite."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.media", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, required=True, help="data set with recordings")
    parser.add_argument("--bundle", type=Path, required=True, help="model with encoders")
    parser.add_argument("--source", type=Path, required=True, help="transformers folder of its encoder of sound")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--items", type=int, default=64, help="clips")
    parser.add_argument("--split", default="test")
    parser.add_argument("--threads", type=int, default=machine.cores())
    chosen = parser.parse_args(arguments)
    found = {"command": output.command("media", arguments), "machine": output.here(), "threads": chosen.threads}
    found |= measure(chosen.clips, chosen.bundle, chosen.source, chosen.split, chosen.items, chosen.threads)
    output.write(chosen.out, "media", found, page(found))


def measure(clips: Path, bundle: Path, source: Path, split: str, items: int, threads: int) -> dict[str, Any]:
    """Seconds of each part over all clips, and of each way to encode."""
    opened = Bundle.open(bundle)
    spec, labels = bundle_spec(opened, clips), opened.manifest.task.labels
    recordings: list[Recording] = []

    def noted(dialogues: Any) -> Any:
        for dialogue in dialogues:
            recordings.extend(u.recording for u in dialogue.utterances if u.recording)
            yield dialogue

    list(islice(stream_samples(clips, spec, labels, split, noted), items))
    recordings = recordings[:items]
    (encoder,) = attached(opened)[AUDIO]
    heard, options = encoder.input, SessionOptions(threads=threads)
    sounds = [_decode(r, heard.rate) for r in recordings]
    seconds = sum(len(s) for s in sounds) / heard.rate
    prepared = [encoder.samples(s, str(n)) for n, s in enumerate(sounds)]
    with Completion.of(opened, threads, backend="onnxruntime", options=options) as completion:
        samples = list(islice(stream_samples(clips, spec, labels, split, completion), items))
        with Predictor(opened, "onnxruntime", options, BATCH) as predictor:
            parts: dict[str, Callable[[], object]] = {
                "decode, one thread": lambda: [_decode(r, heard.rate) for r in recordings],
                f"decode, {threads} threads": lambda: _in_threads(recordings, heard.rate, threads),
                "prepare": lambda: [encoder.samples(s, "0") for s in sounds],
                "fuse": lambda: list(predictor.predict(samples)),
                "whole": lambda: list(
                    predictor.predict(islice(stream_samples(clips, spec, labels, split, completion), items))
                ),
            }
            timed = {n: np.median([x for r in t.wall for x in r]) for n, t in interleave(parts, ROUNDS).items()}
    encodings = _encodings(encoder, options)
    ways: dict[str, Callable[[], object]] = {n: partial(_encode, e, prepared) for n, e in encodings.items()}
    ways |= _eager(source, encoder, sounds, threads) | {LIMIT: _limit(threads)}
    turns = interleave(ways, ROUNDS)
    # What the network takes where every operation is one of a large matrix product, in the same turns.
    work = _gflop(encoder, prepared) / (PRODUCTS * 2 * limit.SIZE**3 / 1e9)
    for encoding in encodings.values():
        encoding.close()
    return {
        "items": len(recordings),
        "seconds": seconds,
        "parts": {n: float(t) for n, t in timed.items()},
        "ways": {n: _scaled(n, work) * float(np.median([x for r in t.wall for x in r])) for n, t in turns.items()},
        "ratios": {n: ratio(turns[EAGER], t).median / _scaled(n, work) for n, t in turns.items()},
        "whole_ratios": {n: ratio(turns[WHOLE], t).median / _scaled(n, work) for n, t in turns.items()},
    }


def _scaled(name: str, work: float) -> float:
    """By what the time of a way is multiplied to be that of all clips."""
    return work if name == LIMIT else 1.0


def _limit(threads: int) -> Callable[[], None]:
    left, right = (np.random.default_rng(s).standard_normal((limit.SIZE, limit.SIZE), dtype=np.float32) for s in (0, 1))
    call = limit.product(left, right, threads)
    assert call is not None, "encoders are timed in ONNX Runtime"

    def several() -> None:
        for _ in range(PRODUCTS):
            call()

    return several


def _gflop(encoder: Encoder, prepared: Sequence[list[Sample]]) -> float:
    """Of the network over all windows, as its exported file has them."""
    windows = [w for own in prepared for w in own]
    bundle = encoder.bundle
    variant = next(v for v in bundle.manifest.variants if (v.format, v.precision) == ("onnx", "fp32"))
    arrays = collate(windows[:1], bundle.manifest.contract, variant.lengths)
    return len(windows) * flops.gflop(bundle.variant_files(variant), arrays)


def _decode(recording: Recording, rate: int) -> np.ndarray:
    return read_sound(recording.path, recording.start, recording.end).mono(rate)


def _in_threads(recordings: Sequence[Recording], rate: int, threads: int) -> list[np.ndarray]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda r: _decode(r, rate), recordings))


def _encodings(encoder: Encoder, options: SessionOptions) -> dict[str, Encoding]:
    return {
        f"{runtime} {precision}, batches of {BATCH}": Encoding(encoder, runtime, options, BATCH, precision)
        for runtime, precision in WAYS
    }


def _encode(encoding: Encoding, prepared: Sequence[list[Sample]]) -> None:
    list(encoding.finish(prepared))


def _eager(source: Path, encoder: Encoder, sounds: Sequence[np.ndarray], threads: int) -> dict[str, Callable[[], None]]:
    """What one would write: the package's network with its hidden states, from spectrograms made before."""
    import torch
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch.set_num_threads(threads)
    made: dict[str, Callable[[], None]] = {}
    for name, frames in ((EAGER, encoder.input.most), (WHOLE, None)):
        network = WhisperEncoder.from_pretrained(source, dtype=torch.float32, key_mapping={r"^encoder\.": ""}).eval()
        frames = frames or network.config.max_source_positions
        network.config.max_source_positions = frames
        rows = network.embed_positions.weight[:frames].clone()
        network.embed_positions = torch.nn.Embedding.from_pretrained(rows)
        window = encoder.input.model_copy(update={"window": frames * encoder.input.hop / encoder.input.rate})
        mels = [_mel(window, s) for s in sounds]
        made[name] = partial(_one_by_one, network, mels, encoder.config.model_dump()["layers"])
    return made


def _mel(window: Any, sound: np.ndarray) -> Any:
    import torch

    (sample, *_) = window.samples("0", sound)
    rows = sample.inputs["sound"]
    return torch.from_numpy(rows.reshape(1, -1, window.mels).transpose(0, 2, 1).copy())


def _one_by_one(network: Any, mels: Sequence[Any], layers: Sequence[int]) -> None:
    import torch

    with torch.no_grad():
        for mel in mels:
            states = network(mel, output_hidden_states=True).hidden_states
            [states[n].mean(dim=1) for n in layers]


def page(found: dict[str, Any]) -> str:
    """What was measured, for people."""
    items, seconds = found["items"], found["seconds"]
    parts = [[n, f"{items / t:.1f}", f"{t / seconds:.4f}"] for n, t in found["parts"].items()]
    ways = [
        [n, f"{items / t:.1f}", f"{t / seconds:.4f}", f"{found['ratios'][n]:.2f}", f"{found['whole_ratios'][n]:.2f}"]
        for n, t in found["ways"].items()
    ]
    lines = output.head("From recordings to labels", found, found["threads"])
    lines += ["", f"{items} clips of {seconds:.0f} s in all.", ""]
    lines += table(["part", "clips a second", "real-time factor"], parts)
    header = ["way to encode", "clips a second", "real-time factor", "times as fast, same window", "beside 30 s"]
    return "\n".join([*lines, "", *table(header, ways), ""])


if __name__ == "__main__":
    output.end_well(main)
