"""Decodes exports at short contexts in their own runtimes:  python recipes/short_contexts.py RUN --margin 0.3

RUN has export/ct2 and export/ggml (`make export ARGS="'export.formats=[ct2,ggml]'"`). Each decodes the test clips at
30 s and at the clip's length and a margin: CTranslate2 with fewer frames of features, whisper.cpp with its audio_ctx
(`-ac`). Greedy, without timestamps and fallbacks. Prints WER with intervals over clips, the paired difference to 30 s,
insertions, and seconds.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import torch
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer
from pywhispercpp.model import Model

from asr_lora.config.compose import load
from asr_lora.data.manifest import read_manifest, waveform
from asr_lora.evaluation import metrics
from asr_lora.evaluation.eval_sets import EvalSet, set_normalizer
from asr_lora.export.ggml import FILE
from asr_lora.model.pretrained import language_token
from asr_lora.reporting.tables import interval
from asr_lora.runs import folder as run
from asr_lora.runtime.screen import show
from asr_lora.speech.audio import SAMPLE_RATE, Waveform
from asr_lora.speech.limits import MAX_SECONDS

Decoder = Callable[[Waveform, float], str]  # of a waveform at 16 kHz, and the seconds of context


def in_ctranslate2(folder: Path, language: str) -> Decoder:
    model = WhisperModel(str(folder), device="cpu", cpu_threads=torch.get_num_threads())
    tokenizer = Tokenizer(model.hf_tokenizer, multilingual=True, task="transcribe", language=language)
    prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]

    def decode(sound: Waveform, seconds: float) -> str:
        padded = np.pad(sound, (0, max(0, round(seconds * SAMPLE_RATE) - len(sound))))
        features = model.feature_extractor(padded, padding=0)[None, :, : round(100 * seconds)]
        view = ctranslate2.StorageView.from_array(np.ascontiguousarray(features, dtype=np.float32))
        (found,) = model.model.generate(view, [prompt], beam_size=1, max_length=448)
        return str(tokenizer.decode(found.sequences_ids[0])).strip()

    return decode


def in_whisper_cpp(folder: Path, language: str) -> Decoder:
    model = Model(
        str(folder / FILE), redirect_whispercpp_logs_to=None, n_threads=torch.get_num_threads(), print_progress=False,
        print_realtime=False,
    )  # fmt: skip

    def decode(sound: Waveform, seconds: float) -> str:
        padded = np.pad(sound, (0, max(0, round(1.1 * SAMPLE_RATE) - len(sound))))  # it refuses less than a second
        segments = model.transcribe(
            padded, language=language, no_timestamps=True, single_segment=True, temperature=0.0, temperature_inc=0.0,
            no_speech_thold=1.0, greedy={"best_of": 1}, audio_ctx=min(1500, math.ceil(seconds * 50)),
        )  # fmt: skip
        return " ".join(segment.text.strip() for segment in segments)

    return decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--margin", type=float, default=0.3, help="seconds behind a clip (%(default)s)")
    asked = parser.parse_args()
    config = run.recorded_config(asked.run, load(), [])
    clips, language = read_manifest(run.manifest(asked.run, "test")), language_token(config.model, config.data.language)
    normal = set_normalizer(config.eval, EvalSet("test", "test", language, clips, len(clips)))
    references, speakers = [clip["text"] for clip in clips], [clip["speaker"] for clip in clips]
    rows: list[list[str]] = []
    for name, made in (("ct2", in_ctranslate2), ("ggml", in_whisper_cpp)):
        decode, full = made(asked.run / "export" / name, language), list[str]()
        for context in ("30 s", f"clip + {asked.margin:g} s"):
            short, started = context != "30 s", time.perf_counter()
            texts = []
            for clip in clips:
                sound = waveform(clip)
                # A multiple of 0.08 s, and none below 1.28 s, for few different sizes.
                seconds = max(1.28, 0.08 * math.ceil((len(sound) / SAMPLE_RATE + asked.margin) / 0.08))
                texts.append(decode(sound, min(seconds, MAX_SECONDS) if short else MAX_SECONDS))
            took, full = time.perf_counter() - started, full or texts
            scored: dict[str, Any] = metrics.score(references, texts, speakers, normal, config.seed)
            delta = metrics.paired_delta(references, full, texts, speakers, normal, config.seed)
            low, high = (100 * bound for bound in delta["ci95"])
            rows.append([
                name, context, f"{scored['wer']:.1%} ({interval(scored['wer_ci95'])})",
                f"{100 * delta['wer']:+.1f} ({low:+.1f} to {high:+.1f})" if short else "",
                str(scored["insertions"]), f"{took:.1f}",
            ])  # fmt: skip
    show(
        f"{asked.run.name}: {len(clips)} test clips, normalized by {normal}",
        ("export", "context", "WER", "to 30 s", "insertions", "seconds"), rows, left=("context",),
    )  # fmt: skip


if __name__ == "__main__":
    main()
