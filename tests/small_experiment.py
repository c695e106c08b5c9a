"""Files of experiments that are quick to train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

RANDOM = {
    "emt": ["protocol.text_encoder=random"],
    "tab": ["first:protocol.text_encoder=random", "first:protocol.audio_encoder=random"],
}
"""What the published recipes need from the command line, by system."""
STAGES: dict[str, Any] = {
    "title": "CMERC in three stages",
    "models": {
        "M3NET": [
            {
                "preset": "synthetic/cmerc_meld",
                "set": {"protocol.curriculum": None, "protocol.calibrate": False, "protocol.contrast": False},
            }
        ],
        "CMERC": [{"preset": "synthetic/cmerc_meld", "set": {"protocol.curriculum.difficulty": "{M3NET}"}}],
    },
    "grid": {"seed": [1, 2]},
    "table": {"columns": {"weighted F1": "weighted_f1", "joy": "f1/joy"}},
}


def written(folder: Path, content: dict[str, Any] = STAGES, **changes: Any) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path
