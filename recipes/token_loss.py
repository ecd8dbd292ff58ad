"""Measures the references' loss under fine-tuned models:  python recipes/token_loss.py RUN ... [--other MANIFEST:es]

The cross-entropy of test references and their end token, in nats a token, teacher-forced: it moves less by chance than
WER, and at short contexts it takes a tenth of the time of decoding. At 30 s (full), at a plain short context of 0.3 s
behind the clip (plain), and with the cached silence there (auto); `--other` adds a manifest in another language, at the
first of the contexts, which shows what was forgotten. Prints a row a run, with the paired difference to the first run
and its interval over clips.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from asr_lora.config.compose import load
from asr_lora.data.features import label_ids, log_mel, with_prompt
from asr_lora.data.manifest import Clip, read_manifest, waveform
from asr_lora.data.sampler import context_for
from asr_lora.evaluation import metrics
from asr_lora.model import adapter, whisper
from asr_lora.model.pretrained import language_token, load_processor
from asr_lora.runs import folder as run
from asr_lora.runtime.console import log, quiet_libraries
from asr_lora.runtime.screen import show
from asr_lora.speech.limits import MAX_SECONDS

MARGIN, MULTIPLE = 0.3, 0.32  # seconds, as training's least


def token_losses(
    model: torch.nn.Module, checkpoint: str, clips: Sequence[Clip], language: str, context: str
) -> list[tuple[float, int]]:
    """Returns for each clip the summed cross-entropy of its text and end tokens, in nats, and their number."""
    processor = load_processor(checkpoint)
    tokenizer = with_prompt(processor.tokenizer, language, "transcribe")
    start, found = len(tokenizer.prefix_tokens), []
    with torch.inference_mode():
        for clip in clips:
            seconds = MAX_SECONDS if context == "full" else context_for(clip["duration"] + MARGIN, MULTIPLE)
            ids = torch.tensor([label_ids(clip["text"], tokenizer)])
            features = log_mel([waveform(clip)], processor.feature_extractor, seconds)
            with whisper.encoder_context(model, seconds, silent=context == "auto"):
                logits: Tensor = model(input_features=features, decoder_input_ids=ids[:, :-1]).logits
            targets = ids[0, start:]
            found.append((float(cross_entropy(logits[0, start - 1 :], targets, reduction="sum")), len(targets)))
    return found


def difference(own: Sequence[tuple[float, int]], first: Sequence[tuple[float, int]]) -> str:
    changes, tokens = [a - b for (a, _), (b, _) in zip(own, first, strict=True)], [count for _, count in first]
    (low, high), _ = metrics.bootstrap(changes, tokens, [""] * len(tokens), seed=0)
    return f"{sum(changes) / sum(tokens):+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--other", metavar="MANIFEST:LANGUAGE", help="clips in another language, with Whisper's token")
    parser.add_argument("--contexts", default="full,plain,auto", help="(%(default)s)")
    asked = parser.parse_args()
    contexts = asked.contexts.split(",")
    quiet_libraries()
    first: dict[str, list[tuple[float, int]]] = {}
    rows = []
    for folder in asked.runs:
        log(f"measuring {folder.name}")
        config = run.recorded_config(folder, load(), [])
        checkpoint, tuned = config.model.checkpoint, run.tuned(folder)
        model = adapter.load(checkpoint, tuned, "fp32", torch.device("cpu"))
        language = language_token(config.model, config.data.language)
        clips = read_manifest(run.manifest(folder, "test"))
        found = {context: token_losses(model, checkpoint, clips, language, context) for context in contexts}
        if asked.other:
            manifest, _, token = asked.other.rpartition(":")
            found["other"] = token_losses(model, checkpoint, read_manifest(Path(manifest)), token, contexts[0])
        first = first or found
        means = [f"{sum(nats for nats, _ in each) / sum(n for _, n in each):.3f}" for each in found.values()]
        changed = [difference(each, first[name]) for name, each in found.items()]
        rows.append([folder.name, *(f"{mean} {change}" for mean, change in zip(means, changed, strict=True))])
    headings = ("run", *contexts, *(["other language"] if asked.other else []))
    show("nats a token, and the difference to the first run", headings, rows, left=("run",))


if __name__ == "__main__":
    main()
