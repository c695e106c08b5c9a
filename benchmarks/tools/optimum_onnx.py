"""optimum-onnx on an encoder of the `transformers` package: `python -I optimum_onnx.py GIVEN OUT`.

Reads `encoder.json` (`config`, and the input that has its `tokens`) and `inputs.npz` in GIVEN; writes `result.json` in
OUT with the exported and optimised file, whose weights are random.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
LEVEL = "O2"


def main(given: Path, out: Path) -> None:
    if not (given / "encoder.json").exists():
        sys.exit("accepts architectures of the `transformers` package only, and this network is none of them")
    import numpy
    import torch
    from optimum.exporters.onnx import main_export
    from transformers import RobertaConfig, RobertaModel

    encoder = json.loads((given / "encoder.json").read_text())
    config = RobertaConfig(**encoder["config"])
    torch.manual_seed(0)
    RobertaModel(config, add_pooling_layer=False).save_pretrained(out / "encoder")
    main_export(
        str(out / "encoder"),
        out / "exported",
        task="feature-extraction",
        library_name="transformers",
        optimize=LEVEL,
        do_validation=False,
    )
    with numpy.load(given / "inputs.npz") as arrays:
        tokens = arrays[encoder["tokens"]]
    real = (tokens != config.pad_token_id).astype(tokens.dtype)
    numpy.savez(out / "feed.npz", input_ids=tokens, attention_mask=real)
    result = {
        "model": str(out / "exported" / "model.onnx"),
        "feed": str(out / "feed.npz"),
        "did": f"exported the encoder alone as RobertaModel with other random weights, optimised with {LEVEL}",
    }
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
