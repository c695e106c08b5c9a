"""The networks at published sizes with random weights, and items of the lengths that their data sets have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import histograms
from mer_export import registry
from mer_export.bucket import Bucket
from mer_export.bundle import WEIGHTS, Bundle, Manifest
from mer_export.contract import Contract
from mer_export.data.example_inputs import random_indices
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from mer_export.weights import save_weights
from runtimes.parity.probes import units
from train.config import load_preset


@dataclass(frozen=True)
class Real:
    """Lengths as they occur: a kind of `histograms.json`, and per sequence dim its column and how long one is.

    What is longer than `longest`, or without it the longest bucket, is cut, as the authors' files are.
    """

    kind: str
    columns: dict[str, tuple[str, float]]
    note: str = ""
    """What is assumed where the data set itself is not at hand."""
    longest: Bucket | None = None


@dataclass(frozen=True)
class Original:
    """How the authors' code runs many items: so many at a time, padded to whole arrays or the longest of a batch."""

    batch: int
    padded_to: Literal["arrays", "batch"]


@dataclass(frozen=True)
class Network:
    """One network at its published size: a preset, with a few values `changed`.

    `buckets` are what is timed, `lengths` the shortest and longest real items of each sequence dim that a sample
    brings. `real` are lengths as they occur, `original` how the authors' code batches.
    """

    preset: str
    buckets: tuple[Bucket, ...]
    lengths: dict[str, tuple[int, int]]
    batches: tuple[int, ...]
    changed: tuple[str, ...] = ()
    samples: int = 24
    """Items that parity is shown on; few where one takes seconds."""
    real: Real | None = None
    original: Original | None = None
    stages: bool = False
    """Whether its stages are exported apart too."""
    encoder: str = ""
    """The part of its configuration that is a RoBERTa, where there is next to nothing else to it."""

    @property
    def system(self) -> str:
        return self.preset.partition("/")[0]

    @property
    def config(self) -> Any:
        """The system's configuration, as the published recipe has it."""
        recipe = load_preset(self.preset, self.changed)
        return registry.get(recipe.system).parse(recipe.model)

    @property
    def longest(self) -> Bucket:
        """The bucket that holds everything that its data may have."""
        return (self.real and self.real.longest) or self.buckets[-1]

    @property
    def roberta(self) -> dict[str, Any] | None:
        """Its encoder's settings as the `transformers` package names them, and the input that has its `tokens`."""
        if not self.encoder:
            return None
        from mer_export.layers.bert.folder import SETTINGS

        own = getattr(self.config, self.encoder)
        config = {theirs: getattr(own, ours) for theirs, ours in SETTINGS.items()}
        # The package has no encoder without a table of token types.
        special = {"type_vocab_size": max(1, own.segments), "pad_token_id": own.padding_token}
        return {"config": config | special, "tokens": f"{self.encoder}_tokens"}


MTEE_BASELINES = {
    "rnn": (),
    "rnn_lf": ("model.fusion=lf",),
    "rnn_eflf": ("model.fusion=eflf",),
    "mult": ("model.model=mult",),
    "transformer": ("model.model=transformer",),
}
"""The baselines of mtee on IEMOCAP's four labels, 20 steps, by what they change in the preset of the first."""

NETWORKS = {
    "cmerc_iemocap": Network(
        preset="cmerc/iemocap",
        # The bucket of a usual dialogue, and the one that holds the longest.
        buckets=(Bucket(utterances=64), Bucket(utterances=110)),
        lengths={"utterances": (20, 110)},
        batches=(1, 16),
        real=Real(
            "meld_dialogue",
            {"utterances": ("utterances", 5.0)},
            "dialogues of IEMOCAP: those of MELD, five times as long",
        ),
        original=Original(16, "batch"),
    ),
    "cmerc_meld": Network(
        preset="cmerc/meld",
        buckets=(Bucket(utterances=16), Bucket(utterances=33)),
        lengths={"utterances": (1, 33)},
        batches=(1, 16),
        real=Real("meld_dialogue", {"utterances": ("utterances", 1.0)}),
        original=Original(16, "batch"),
    ),
    # With BERT-base as text encoder.
    "emt_mosi": Network(
        preset="emt/mosi",
        samples=6,
        buckets=(Bucket(text_len=50, audio_len=375, vision_len=500),),
        lengths={"text_len": (5, 50), "audio_len": (30, 375), "vision_len": (40, 500)},
        batches=(1, 32),
        real=Real(
            "mosi_utterance",
            {"text_len": ("tokens", 1.0), "audio_len": ("tokens", 7.5), "vision_len": ("tokens", 10.0)},
            "audio and vision as long for each word piece as in the longest utterance",
        ),
        original=Original(32, "arrays"),
    ),
    "emt_sims": Network(
        preset="emt/sims",
        samples=6,
        buckets=(Bucket(text_len=39, audio_len=400, vision_len=55),),
        lengths={"text_len": (5, 39), "audio_len": (40, 400), "vision_len": (6, 55)},
        batches=(1, 32),
    ),
    "mult_mosi": Network(
        preset="mult/mosi",
        samples=3,
        buckets=(Bucket(text_len=50, audio_len=375, vision_len=500),),
        lengths={"text_len": (5, 50), "audio_len": (30, 375), "vision_len": (40, 500)},
        batches=(1, 32),
    ),
    "tfr_net_mosi": Network(
        preset="tfr_net/mosi",
        samples=3,
        buckets=(Bucket(text_len=50, audio_len=375, vision_len=500),),
        lengths={"text_len": (5, 50), "audio_len": (30, 375), "vision_len": (40, 500)},
        batches=(1, 32),
    ),
    # Text and speech tokens as utterances of IEMOCAP have them; 461 M parameters.
    "tab_iemocap": Network(
        preset="tab/iemocap",
        buckets=(Bucket(text_len=32, audio_len=512),),
        lengths={"text_len": (4, 32), "audio_len": (60, 512)},
        batches=(1, 8),
        samples=3,
        real=Real(
            "meld_utterance",
            {"text_len": ("tokens", 1.0), "audio_len": ("milliseconds", 0.1)},
            "utterances of IEMOCAP: those of MELD, 100 speech tokens a second",
            longest=Bucket(text_len=128, audio_len=1024),
        ),
        original=Original(16, "batch"),
    ),
    # RoBERTa-large and the context: the one network whose encoder alone other tools can take.
    "tab_text": Network(
        preset="tab/iemocap_text_tab",
        buckets=(Bucket(text_len=32),),
        lengths={"text_len": (4, 32)},
        batches=(1, 8),
        samples=3,
        encoder="text",
    ),
    # With RoBERTa-large as text encoder. The lengths of the published arrays are not known, these are the presets'.
    "facialmmt_fusion": Network(
        preset="facialmmt/meld_fusion",
        samples=3,
        buckets=(Bucket(text_len=256, audio_len=512, vision_len=128),),
        lengths={"text_len": (40, 256), "audio_len": (25, 512), "vision_len": (5, 128)},
        batches=(1,),
        stages=True,
        real=Real(
            "meld_utterance",
            {"text_len": ("tokens", 10.0), "audio_len": ("milliseconds", 0.05), "vision_len": ("milliseconds", 0.016)},
            "20 ms a frame of audio and 62 of video, dialogues ten times as long as the utterance",
            longest=Bucket(text_len=512, audio_len=300, vision_len=100),
        ),
        original=Original(1, "arrays"),
    ),
    # The expression model, Swin-tiny: one face, and the faces of a short utterance.
    "facialmmt_face": Network(
        preset="facialmmt/affwild",
        buckets=(Bucket(),),
        lengths={},
        batches=(1, 16),
    ),
    "mtee_mosei": Network(
        preset="mtee/mosei",
        buckets=(Bucket(steps=20, emotions=16),),
        lengths={"steps": (5, 20)},
        batches=(1, 64),
        real=Real("mosi_utterance", {"steps": ("tokens", 1.0)}, "words of MOSEI: word pieces of MOSI"),
        original=Original(64, "arrays"),
    ),
    "mtee_iemocap": Network(
        preset="mtee/iemocap",
        buckets=(Bucket(steps=50, emotions=16),),
        lengths={"steps": (10, 50)},
        batches=(1, 64),
        real=Real("mosi_utterance", {"steps": ("tokens", 1.0)}, "words of IEMOCAP: word pieces of MOSI"),
        original=Original(64, "arrays"),
    ),
    **{
        f"mtee_{name}": Network(
            preset="mtee/iemocap_rnn",
            changed=changed,
            buckets=(Bucket(steps=20),),
            lengths={"steps": (5, 20)},
            batches=(1, 64),
        )
        for name, changed in MTEE_BASELINES.items()
    },
}


def random_bundle(root: Path, network: Network, seed: int = 0) -> Bundle:
    """A bundle of this network with random weights; inputs that items share have one random row for each label."""
    import torch

    torch.manual_seed(seed)
    config, system = network.config, registry.get(network.system)
    task, contract = system.task(config), system.contract(config)
    if network.buckets[0]:
        # What parity probes and plans start from is what is timed.
        contract = contract.model_copy(update={"buckets": network.buckets})
    draw = np.random.default_rng(seed)
    for spec in contract.inputs:
        if not spec.batched:
            rows = draw.standard_normal(spec.shape(1, {str(spec.dims[0]): len(task.labels)}))
            contract = contract.with_shared(spec.name, dict(zip(task.labels, map(tuple, rows.tolist()), strict=True)))
    manifest = Manifest(
        system=system.name,
        variant=system.variant_of(config),
        config=config.model_dump(mode="json"),
        task=task,
        contract=contract,
        provenance={"origin": "random weights", "seed": seed, "preset": network.preset},
    )
    bundle = Bundle.create(root, manifest)
    with bundle.commit() as change:
        save_weights(system.build(config), change.file(WEIGHTS))
    return bundle


def random_samples(contract: Contract, lengths: dict[str, tuple[int, int]], count: int, seed: int = 0) -> list[Sample]:
    """Unlabelled random items, lengths evenly from shortest to longest.

    All dims of an item grow together, as text, audio and video of one utterance do.
    """
    sizes = {dim: np.linspace(*ends, count).round().astype(int).tolist() for dim, ends in lengths.items()}
    return samples_of(contract, [{d: n[i] for d, n in sizes.items()} for i in range(count)], seed)


def real_samples(contract: Contract, network: Network, count: int, seed: int = 0) -> list[Sample]:
    """Unlabelled random items with lengths as they occur, in a mixed order."""
    if network.real is None:
        raise UsageError(f"nothing is known of real lengths for {network.preset}")
    columns, longest = histograms.lengths(network.real.kind), network.longest
    sizes = {
        dim: [max(1, min(longest[dim], round(per * n))) for n in columns[name][:count]]
        for dim, (name, per) in network.real.columns.items()
    }
    return samples_of(contract, [dict(zip(sizes, own, strict=True)) for own in zip(*sizes.values(), strict=True)], seed)


def samples_of(contract: Contract, lengths: Sequence[Mapping[str, int]], seed: int = 0) -> list[Sample]:
    """Unlabelled random items of these lengths."""
    random, samples = np.random.default_rng(seed), []
    for i, own in enumerate(lengths):
        inputs: dict[str, np.ndarray] = {}
        for spec in contract.features:
            # A sample has no batch dim.
            shape = spec.shape(1, own)[1:]
            if spec.dtype == "int64":
                inputs[spec.name] = random_indices(spec, shape, random)
            else:
                inputs[spec.name] = random.standard_normal(shape, dtype=np.float32)
        samples.append(Sample(f"random{i}", inputs, tuple(f"random{i}/{k}" for k in range(units(contract, own)))))
    return samples
