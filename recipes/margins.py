"""Measures how much silence the base model needs behind a clip:  python recipes/margins.py MANIFEST --checkpoint FOLDER

Decodes the clips of a manifest (runs/<run>/data/test.jsonl) with the base model at short contexts, by the clips' own
length and by seconds of context behind each, and at 30 s. Runaway output is truncated and counted, not decoded again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from asr_lora.decoding.generate import DecodingOptions, decode_once
from asr_lora.evaluation import metrics
from asr_lora.model import whisper
from asr_lora.model.pretrained import load_processor
from asr_lora.runtime.console import quiet_libraries
from asr_lora.runtime.files import read_jsonl
from asr_lora.speech.normalizer import Normalizer

MARGINS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, None)  # seconds; None: all of the 30
LENGTHS = ((0.0, 2.0), (2.0, 4.0), (4.0, 8.0), (8.0, 30.0))  # seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--checkpoint", default="openai/whisper-base", help="(%(default)s)")
    parser.add_argument("--language", default="es", help="Whisper's token (%(default)s)")
    parser.add_argument("--clips", type=int, default=30, help="of each length, the first N (%(default)s)")
    asked = parser.parse_args(arguments)
    quiet_libraries()
    model, processor = whisper.load(asked.checkpoint, "fp32", torch.device("cpu")), load_processor(asked.checkpoint)
    every = read_jsonl(asked.manifest)
    table = Table(title="base model: WER (insertions, truncated clips), by seconds behind a clip")
    table.add_column("clips of")
    for margin in MARGINS:
        table.add_column("to 30 s" if margin is None else f"{margin:g} s", justify="right")
    for low, high in LENGTHS:
        clips = [clip for clip in every if low <= clip["duration"] < high][: asked.clips]
        if not clips:
            continue
        references, speakers = [clip["text"] for clip in clips], [clip["speaker"] for clip in clips]
        cells = []
        for margin in MARGINS:
            settings = DecodingOptions(asked.language, "transcribe", 1, 444, 40, margin, 8)
            hypotheses = decode_once(model, processor, clips, settings)
            found = metrics.score(references, [each.text for each in hypotheses], speakers, Normalizer("marks"), 0)
            truncated = sum(each.truncated for each in hypotheses)
            cells.append(f"{found['wer']:.1%} ({found['insertions']}, {truncated})")
        table.add_row(f"{low:g} to {high:g} s: {len(clips)}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
