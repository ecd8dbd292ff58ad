"""Measures the times of words:  python recipes/word_times.py RUN [--clips 60]

Joins test clips of a run to recordings of 15 s, whose sentences begin and end at known times, has the base and the
fine-tuned model transcribe them with `transcribe.words`, and aligns their words with the references. Prints how far the
begin of a sentence's first word, and the end of its last, are from where its speech begins and ends; words that the
model does not write there are left out and counted.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from asr_lora.config.compose import load
from asr_lora.data import recordings
from asr_lora.data.manifest import read_manifest
from asr_lora.data.recordings import Recording
from asr_lora.decoding.generate import Segment
from asr_lora.decoding.transcriber import Transcriber, with_base, with_run
from asr_lora.evaluation.error_analysis import alignments
from asr_lora.model.hardware import resolve_hardware
from asr_lora.model.pretrained import language_token
from asr_lora.runs import folder as run
from asr_lora.runtime.console import log, progress, quiet_libraries
from asr_lora.runtime.screen import show
from asr_lora.speech.limits import MAX_SECONDS
from asr_lora.speech.normalizer import Normalizer

MINUTES = 0.25


def errors(recording: Recording, segments: list[Segment], normal: Normalizer) -> tuple[list[float], list[float], int]:
    """Returns seconds between words and the begins, and the ends, of sentences, and how many sentences lack either."""
    words = [word for segment in segments for word in segment.words]
    # One key a word, so that numbers of keys are numbers of words.
    keys = ["".join(normal(word.text).split()) or "-" for word in words]
    cues = [["".join(normal(word).split()) or "-" for word in cue.text.split()] for cue in recording.cues]
    places: dict[int, int] = {}
    at, own = 0, 0
    for chunk in alignments([" ".join(word for cue in cues for word in cue)], [" ".join(keys)])[0]:
        if chunk.kind == "equal":
            places |= {at + step: own + step for step in range(len(chunk.reference))}
        at, own = at + len(chunk.reference), own + len(chunk.hypothesis)
    begins, ends, lacking, first = [], [], 0, 0
    for cue, texts in zip(recording.cues, cues, strict=True):
        last = first + len(texts) - 1
        begins += [words[places[first]].start - cue.start] if first in places else []
        ends += [words[places[last]].end - cue.end] if last in places else []
        lacking += (first not in places) + (last not in places)
        first = last + 1
    return begins, ends, lacking


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clips", type=int, default=60, help="(%(default)s)")
    asked = parser.parse_args()
    quiet_libraries()
    config = run.recorded_config(asked.run, load(), [])
    hardware = resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size)
    language = language_token(config.model, config.data.language)
    clips = read_manifest(run.manifest(asked.run, "test"))[: asked.clips]
    normal, rows = Normalizer(config.eval.normalizer, language), []
    with TemporaryDirectory() as scratch:
        built = recordings.build(clips, MINUTES, 1, config.seed, Path(scratch))
        made = [each for each in built if each.duration <= MAX_SECONDS]
        sentences = sum(len(each.cues) for each in made)
        log(f"{len(made)} of {len(built)} recordings are at most {MAX_SECONDS:g} s long, {sentences} sentences")
        for name in ("base", "fine-tuned"):
            model: Transcriber = (
                with_base(config.model, config.decoding, hardware)
                if name == "base"
                else with_run(asked.run, config.model, config.decoding, hardware)
            )
            parts = [(each.path, 0.0, each.duration) for each in made]
            with model.session(language, None) as settings, progress(name, total=len(parts)) as bar:
                segments = model.segments(parts, settings, bar.advance, words=True)
            found = [errors(each, [segment], normal) for each, segment in zip(made, segments, strict=True)]
            for which, at in (("begin of the first word", 0), ("end of the last word", 1)):
                apart = np.array([error for each in found for error in each[at]])
                rows.append([
                    name, which, str(len(apart)), f"{np.median(apart):+.2f}", f"{np.median(np.abs(apart)):.2f}",
                    f"{np.quantile(np.abs(apart), 0.9):.2f}",
                    *(f"{np.mean(np.abs(apart) <= near):.0%}" for near in (0.1, 0.2, 0.5)),
                ])  # fmt: skip
            log(f"{name}: {sum(each[2] for each in found)} of {2 * sentences} words are written otherwise")
    headings = ("model", "what", "words", "median, s", "median apart", "90 % within", "0.1 s", "0.2 s", "0.5 s")
    show(f"times of words, {sentences} sentences", headings, rows, left=("what",))


if __name__ == "__main__":
    main()
