"""A face detector as a folder that runs without PyTorch: MTCNN's three networks for pictures of any size and number."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mer_export.bundle.files import replacing_folder
from mer_export.checkpoints import read_checkpoint, usual_state
from mer_export.encoders.mtcnn.detector import CELL, NETWORKS, REFINED, SUFFIX, WEIGHTS
from mer_export.errors import ParityError, UsageError
from mer_export.exporters.onnx import quiet
from mer_export.exporters.precision_gate import open_file
from mer_export.weights import import_weights

if TYPE_CHECKING:
    from mer_export.encoders.mtcnn.network import Stage

OPSET = 20
PROVEN = {"pnet": ((1, 12, 12), (1, 13, 40), (1, 97, 64)), "rnet": ((1, 24, 24), (7, 24, 24))}
PROVEN["onet"] = tuple((n, REFINED["onet"], REFINED["onet"]) for n in (1, 7))
"""Numbers, heights and widths of the pictures on which each file is proven."""
MOST = 1e-5


def import_detector(weights: Path, out: Path, force: bool = False) -> list[Path]:
    """Writes the folder from one that holds pnet.pt, rnet.pt and onet.pt, as the package `facenet-pytorch` does.

    Raises:
        UsageError: the folder exists, or weights are missing or of another network.
        InputError: damaged weights.
        ParityError: an exported file gives something else than the network.
    """
    from mer_export.encoders.mtcnn.network import SHAPES, WEIGHT_MAP, Stage

    stages = {}
    for name, file in zip(NETWORKS, WEIGHTS, strict=True):
        stages[name] = Stage(SHAPES[name]).eval()
        state = usual_state(read_checkpoint(weights / file))
        import_weights(stages[name], state, WEIGHT_MAP, SHAPES[name])
    return write_detector(stages, out, force)


def write_detector(stages: dict[str, Stage], out: Path, force: bool = False) -> list[Path]:
    """Writes the three files of networks, each proven in ONNX Runtime; with `force` where a detector is already."""
    if out.exists() and not force:
        raise UsageError(f"{out} exists: pass --force to replace it")
    if out.exists() and not (out.is_dir() and {p.name for p in out.iterdir()} <= {n + SUFFIX for n in NETWORKS}):
        raise UsageError(f"{out} is no face detector, which has {', '.join(NETWORKS)} alone: choose another --out")
    with replacing_folder(out) as fresh:
        for name, stage in stages.items():
            path = fresh / (name + SUFFIX)
            export_onnx(name, stage, path)
            prove(name, stage, path)
    return [out / (name + SUFFIX) for name in stages]


def export_onnx(name: str, stage: Stage, path: Path) -> None:
    """One file: any height and width for the first network, any number of pictures for the others."""
    import torch

    side = REFINED.get(name, 4 * CELL)
    free = {0: torch.export.Dim.DYNAMIC} if name in REFINED else dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC)
    outputs = ["face", "box"] if stage.points is None else ["face", "box", "points"]
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            stage,
            (torch.zeros(3 if name in REFINED else 1, 3, side, side + (0 if name in REFINED else 2)),),
            input_names=["pictures"],
            output_names=outputs,
            opset_version=OPSET,
            dynamic_shapes={"pictures": free},
            dynamo=True,
            verbose=False,
            optimize=True,
        )
    assert program is not None
    program.save(str(path))


def prove(name: str, stage: Stage, path: Path) -> None:
    """Holds a file against its network; raises ParityError."""
    import torch

    session, draw = open_file(path), np.random.default_rng(0)
    for number, height, width in PROVEN[name]:
        pictures = draw.integers(0, 256, (number, 3, height, width)).astype(np.float32)
        with torch.no_grad():
            wanted = [t.numpy() for t in stage(torch.from_numpy(pictures))]
        found = session.run(None, {"pictures": pictures})
        if [f.shape for f in found] != [w.shape for w in wanted]:
            raise ParityError(f"{path} gives {[f.shape for f in found]}, the network {[w.shape for w in wanted]}")
        error = max(float(np.abs(f - w).max()) for f, w in zip(found, wanted, strict=True))
        if not error <= MOST:
            raise ParityError(f"{path} differs from its network by {error:.1e}, more than {MOST:.0e}")
