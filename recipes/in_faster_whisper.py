"""Scores exports with faster-whisper:  python recipes/in_faster_whisper.py --run runs/mine BASE/ct2 TUNED/ct2

Decodes all test clips of the run with faster-whisper's defaults (five beams, timestamps, its fallbacks, clips padded to
30 s). Logs word error rates with intervals over clips, and the second folder's difference to the first. The base model
is exported by `python -m asr_lora.export eval.strength=0 export.out=BASE 'export.formats=[ct2]'`.
"""

import argparse
import time
from pathlib import Path

from faster_whisper import WhisperModel

from asr_lora.config.compose import load
from asr_lora.data.manifest import read_manifest, waveform
from asr_lora.evaluation import metrics
from asr_lora.evaluation.eval_sets import EvalSet, set_normalizer
from asr_lora.model.pretrained import language_token
from asr_lora.runs import folder as run
from asr_lora.runtime.console import log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("folders", type=Path, nargs=2)
    asked = parser.parse_args()
    config = run.recorded_config(asked.run, load(), [])
    clips, language = read_manifest(run.manifest(asked.run, "test")), language_token(config.model, config.data.language)
    normal = set_normalizer(config.eval, EvalSet("test", "test", language, clips, len(clips)))
    references, speakers = [clip["text"] for clip in clips], [clip["speaker"] for clip in clips]
    hypotheses = []
    for folder in asked.folders:
        model, started = WhisperModel(str(folder), device="cpu"), time.perf_counter()
        texts = []
        for clip in clips:
            segments, _ = model.transcribe(waveform(clip), language=language)
            texts.append(" ".join(segment.text.strip() for segment in segments))
        scored = metrics.score(references, texts, speakers, normal, config.seed)
        low, high = (100 * bound for bound in scored["wer_ci95"])
        took = f"{len(clips)} clips in {time.perf_counter() - started:.0f} s"
        log(f"{folder}: WER {100 * scored['wer']:.1f} % ({low:.1f} to {high:.1f}), {took}")
        hypotheses.append(texts)
    delta = metrics.paired_delta(references, *hypotheses, speakers, normal, config.seed)
    low, high = (100 * bound for bound in delta["ci95"])
    log(f"difference: {100 * delta['wer']:+.1f} points ({low:+.1f} to {high:+.1f}), normalized by {normal}")


if __name__ == "__main__":
    main()
