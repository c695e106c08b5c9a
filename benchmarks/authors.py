"""The authors' way from their files to answers, in eager PyTorch: how their code reads, batches and runs.

    python3 -m benchmarks.authors REQUEST

Written again from what is known of the public code, with this project's networks: `pickle` without any check, padding
as their loaders pad, batches as their recipes say, in file order. Where their network takes another form than ours,
theirs is run (`forms`), and where their forward does more than answer, so does this (`Loop.views`). REQUEST is
JSON: a bundle, a network of `suite.NETWORKS`, its data and where to write; printed are seconds of starting, reading,
computing (collation included) and writing.
"""

from __future__ import annotations

import itertools
import json
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.forms import in_their_form
from benchmarks.suite import NETWORKS
from mer_export.bundle import Bundle
from mer_export.contract import Contract
from mer_export.weights import bundle_model

Item = dict[str, Tensor]
"""Of one item: each input's steps first."""
SPLIT = "test"


def _load(path: Path) -> Any:
    with path.open("rb") as stream:
        return pickle.load(stream, encoding="latin1")


def _cmerc(data: Path) -> Iterator[Item]:
    first = _load(data / "data" / "MELD_features_raw1.pkl")
    roberta = _load(data / "data" / "meld_features_roberta.pkl")
    for key in first[8]:
        text: list[Tensor] = [torch.FloatTensor(np.array(vectors[key])) for vectors in roberta[3:7]]
        yield {
            "text": torch.stack(text, dim=1),
            "vision": torch.FloatTensor(np.array(first[5][key])),
            "audio": torch.FloatTensor(np.array(first[4][key])),
            "speaker": torch.FloatTensor(np.array(first[1][key])),
        }


def _mtee(data: Path) -> Iterator[Item]:
    import h5py

    arrays = {}
    for name, file in (("text", f"text_{SPLIT}_emb"), ("audio", f"audio_{SPLIT}"), ("vision", f"video_{SPLIT}")):
        with h5py.File(data / f"{file}.h5", "r") as stored:
            arrays[name] = torch.from_numpy(np.array(stored["d1"]))
    arrays["audio"][arrays["audio"] == -np.inf] = 0
    return ({n: a[i] for n, a in arrays.items()} for i in range(len(arrays["text"])))


def _emt(data: Path) -> Iterator[Item]:
    content = _load(data / "MOSI" / "Processed" / "unaligned_50.pkl")[SPLIT]
    text, audio, vision = (content[n].astype(np.float32) for n in ("text_bert", "audio", "vision"))
    audio[audio == -np.inf] = 0
    for row in range(len(text)):
        yield {
            "text_bert": torch.tensor(text[row].T),
            "audio": torch.tensor(audio[row]),
            "vision": torch.tensor(vision[row]),
            "audio_lengths": torch.tensor(content["audio_lengths"][row]),
            "vision_lengths": torch.tensor(content["vision_lengths"][row]),
        }


def _tab(data: Path) -> Iterator[Item]:
    names = [line.split("\t")[0].rsplit(".", 1)[0] for line in (data / "labels_train_t.txt").read_text().splitlines()]
    for name in (n for n in names if "_s_5_" in n):
        words = {f: (data / f / f"{name}.txt").read_text().split() for f in ("GPT2Tokens", "vqw2vTokens", WINDOWS)}
        yield {
            "text_tokens": torch.tensor([int(w) for w in words["GPT2Tokens"]][:512]),
            "audio_tokens": torch.tensor([int(w) for w in words["vqw2vTokens"]][:2048]),
            "tab_embedding": torch.tensor([float(w) for w in words[WINDOWS]]),
        }


WINDOWS = "FullBertEmb3"


def _facialmmt(data: Path) -> Iterator[Item]:
    from mer_export.data.formats.facialmmt import reader
    from mer_export.data.shapes import packed

    folder = data / "T+A+V"
    # The object of their class is unpickled without any check.
    kept = _own_object(next(folder.glob(f"meld_multimodal_{SPLIT}_T+A+V_roberta*.dt")))
    profile = json.loads((folder / f"{SPLIT}_utt_profile.json").read_text())
    parts = {m: _load(folder / f"meld_{SPLIT}_{m}_utt.pkl")[SPLIT] for m in ("audio", "vision")}
    ids, masks, ends = (kept[reader.CACHED[n]] for n in ("input_ids", "input_mask", "separators"))
    for row in range(len(parts["vision"]["labels"])):
        _, _, dialogue, _, place = profile[str(row)]
        closing = tuple(np.flatnonzero(ends[dialogue]).tolist())
        text = packed.Packed(ids[dialogue].numpy(), closing, "roberta")
        yield {
            "input_ids": ids[dialogue],
            "text_lengths": masks[dialogue].sum(),
            "text_span": torch.from_numpy(packed.inputs(text, place)["text_span"]),
            **{m: torch.from_numpy(p[m][row]) for m, p in parts.items()},
            **{f"{m}_lengths": torch.tensor(int(p[f"{m}_utt_mask"][row].sum())) for m, p in parts.items()},
        }


def _own_object(path: Path) -> dict[str, Any]:
    """The attributes of a stored object whose class is not here."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module.startswith("utils."):
                return type(name, (), {"__module__": module})
            return super().find_class(module, name)

    theirs = type("pickle", (), {"Unpickler": Unpickler, "load": pickle.load})
    return vars(torch.load(path, pickle_module=theirs, weights_only=False))


def _dialogues(batch: Item) -> Item:
    """Lengths are counted, speakers are one-hot rows and the four vectors of a text stand before its steps."""
    return batch | {"text": batch["text"].permute(0, 2, 1, 3), "speaker": batch["speaker"].argmax(-1)}


def _whole(batch: Item) -> Item:
    """Every row of MTEE's arrays is a step."""
    size, steps = batch["text"].shape[:2]
    return batch | {f"{m}_lengths": torch.full((size,), steps) for m in ("text", "audio", "vision")}


def _bert(batch: Item) -> Item:
    planes = batch.pop("text_bert").long()
    lengths = planes[:, :, 1].sum(1)
    return batch | {"input_ids": planes[:, :, 0], "token_type_ids": planes[:, :, 2], "text_lengths": lengths}


def _faces(batch: Item) -> Item:
    """Nothing is known of expressions, and without noise all faces count."""
    zeros = torch.zeros(*batch["vision"].shape[:2], 7)
    return batch | {"expression_logits": zeros, "gumbel_noise": zeros}


def _as_it_is(batch: Item) -> Item:
    return batch


@dataclass(frozen=True)
class Loop:
    """What their code does with its files.

    `read` gives the items of the test split; `prepare` makes the network's inputs of a padded batch, `method` of the
    network answers. EMT's forward runs every item in two `views`, complete and incomplete, also to test.
    """

    read: Callable[[Path], Iterator[Item]]
    prepare: Callable[[Item], Item] = _as_it_is
    views: int = 1
    method: str = "forward"


LOOPS = {
    "cmerc_meld": Loop(_cmerc, _dialogues, method="in_batch"),
    "mtee_mosei": Loop(_mtee, _whole),
    "emt_mosi": Loop(_emt, _bert, views=2),
    "tab_iemocap": Loop(_tab),
    "facialmmt_fusion": Loop(_facialmmt, _faces),
}
"""By network."""


def padded(items: Sequence[Item], contract: Contract) -> Item:
    """Items one behind the other, padded to the longest; how long they are where nothing else says it."""
    padding = {s.name: s.padding or 0 for s in contract.inputs}
    batch = {
        name: torch.stack([i[name] for i in items])
        if items[0][name].ndim == 0
        else nn.utils.rnn.pad_sequence([i[name] for i in items], batch_first=True, padding_value=padding.get(name, 0))
        for name in items[0]
    }
    if "lengths" in padding:
        batch["lengths"] = torch.tensor([len(i["speaker"]) for i in items])
    return batch


def answers(network: nn.Module, loop: Loop, batch: Item, shared: Item) -> Tensor:
    """The rows of a padded batch."""
    inputs = loop.prepare(batch) | shared
    found: Any = None
    with torch.no_grad():
        for _ in range(loop.views):
            found = getattr(network, loop.method)(**inputs)
    rows: Tensor = found[0] if isinstance(found, tuple) else found
    return torch.cat([r[:n] for r, n in zip(rows, batch["lengths"], strict=True)]) if "lengths" in batch else rows


def main() -> None:
    """Runs the request on the command line."""
    request = json.loads(sys.argv[1])
    bundle = Bundle.open(request["bundle"])
    contract, loop = bundle.manifest.contract, LOOPS[request["network"]]
    network = in_their_form(bundle_model(bundle)).eval()
    shared = {
        s.name: torch.tensor(contract.shared_arrays[s.name], dtype=torch.float32)
        for s in contract.inputs
        if not s.batched
    }
    marks = [request["spawned"], time.time()]
    items = list(loop.read(Path(request["data"])))
    marks.append(time.time())
    original = NETWORKS[request["network"]].original
    size = original.batch if original else 1
    batches = (padded(items[i : i + size], contract) for i in range(0, len(items), size))
    rows = torch.cat([answers(network, loop, batch, shared) for batch in batches]).numpy()
    marks.append(time.time())
    labels = bundle.manifest.task.labels
    with Path(request["out"]).open("w") as stream:
        for number, row in enumerate(rows.tolist()):
            stream.write(json.dumps({"unit": number, "label": labels[int(np.argmax(row))], "scores": row}) + "\n")
    marks.append(time.time())
    parts = [b - a for a, b in itertools.pairwise(marks)]
    print(json.dumps(dict(zip(("start", "read", "compute", "write"), parts, strict=True)) | {"units": len(rows)}))


if __name__ == "__main__":
    main()
