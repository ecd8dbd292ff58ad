"""A talk of tones and the folder of a labeling of it, for tests of what people correct."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16_000
SECONDS = 1.5  # of each clip; they begin every two seconds


def write_labels(folder: Path, texts: Sequence[str], language: str = "nl", **columns: Any) -> Path:
    """Writes talk.wav and, in labels/, what label leaves of it: a clip a text, the last the one in most disagreement.

    `columns` replace those of every line. Returns the folder of the labels.
    """
    labels, recording = folder / "labels", folder / "talk.wav"
    labels.mkdir(parents=True)
    at = np.arange(round(2 * len(texts) * RATE)) / RATE
    soundfile.write(recording, 0.3 * np.sin(2 * np.pi * 220 * at) * np.sin(2 * np.pi * 0.7 * at), RATE)
    lines = [
        {
            "path": str(recording), "start": 2.0 * number, "end": 2.0 * number + SECONDS, "duration": SECONDS,
            "speaker": str(recording.with_suffix("")), "hypothesis": text, "second": text, "text": text,
            "agreement_cer": number / 100, "log_probability": -0.1, "decision": "kept", **columns,
        }
        for number, text in enumerate(texts)
    ]  # fmt: skip
    (labels / "all.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    (labels / "settings.json").write_text(json.dumps({"language": language}))
    (labels / "summary.json").write_text(json.dumps({"writer": "nl-1h"}))
    return labels
