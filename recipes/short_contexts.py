"""Decodes exports at short contexts in their own runtimes:  python recipes/short_contexts.py RUN FOLDER ... --margin 1

FOLDER is of one format, ct2 or ggml, of any model: `export/ct2` of a run, or the base model's by `make export
ARGS="eval.strength=0 export.out=BASE"`. Each decodes the run's test clips at 30 s and at the clip's length and a
margin, greedily, without timestamps and fallbacks. Export does so itself for models that are safe there; this shows
others too. Prints WER with intervals over clips, the paired difference to 30 s, insertions, and seconds.
"""

import argparse
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from asr_lora.config.compose import load
from asr_lora.data.manifest import read_manifest, waveform
from asr_lora.evaluation import metrics
from asr_lora.evaluation.eval_sets import EvalSet, set_normalizer
from asr_lora.formats import ct2, ggml
from asr_lora.model.pretrained import language_token
from asr_lora.reporting.tables import interval
from asr_lora.runs import folder as run
from asr_lora.runtime.screen import show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--margin", type=float, default=1.0, help="seconds behind a clip (%(default)s)")
    parser.add_argument("--clips", type=int, help="the first so many (all)")
    asked = parser.parse_args()
    config = run.recorded_config(asked.run, load(), [])
    clips = read_manifest(run.manifest(asked.run, "test"))[: asked.clips]
    language = language_token(config.model, config.data.language)
    normal = set_normalizer(config.eval, EvalSet("test", "test", language, clips, len(clips)))
    references, speakers = [clip["text"] for clip in clips], [clip["speaker"] for clip in clips]
    rows: list[list[str]] = []
    for folder in asked.folders:
        module: ModuleType = ggml if (folder / ggml.FILE).is_file() else ct2
        full: list[str] = []
        for margin in (None, asked.margin):
            transcribe = module.transcriber(folder, language, config.model.task, torch.device("cpu"), margin)
            started = time.perf_counter()
            texts = [transcribe(waveform(clip)) for clip in clips]
            took, full = time.perf_counter() - started, full or texts
            scored: dict[str, Any] = metrics.score(references, texts, speakers, normal, config.seed)
            delta = metrics.paired_delta(references, full, texts, speakers, normal, config.seed)
            low, high = (100 * bound for bound in delta["ci95"])
            rows.append([
                str(folder), "30 s" if margin is None else f"clip + {margin:g} s",
                f"{scored['wer']:.1%} ({interval(scored['wer_ci95'])})",
                f"{100 * delta['wer']:+.1f} ({low:+.1f} to {high:+.1f})" if margin is not None else "",
                str(scored["insertions"]), f"{took:.1f}",
            ])  # fmt: skip
    headings = ("export", "context", "WER", "to 30 s", "insertions", "seconds")
    show(f"{len(clips)} test clips, normalized by {normal}", headings, rows, left=("export", "context"))


if __name__ == "__main__":
    main()
