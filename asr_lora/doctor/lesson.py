"""Whether what a run would teach is right: its clips, labels, language, mel bins, and a real batch of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from torch import Tensor
from transformers import WhisperConfig

from asr_lora.data.dataset import Steps
from asr_lora.data.features import IGNORED, log_mel, prompted
from asr_lora.data.preparation import MOST_BAD, label_rule
from asr_lora.doctor.check import FAIL, OK, WARN, Check
from asr_lora.doctor.data import Sight, UnseenError, counted, look, share_unusable
from asr_lora.model.pretrained import language_token, load_generation_config, load_processor
from asr_lora.runtime.errors import ChoiceError
from asr_lora.speech import audio
from asr_lora.training.builder import order

if TYPE_CHECKING:
    from asr_lora.config.compose import Config

Batch: TypeAlias = dict[str, Tensor]
SENTENCES = 5_000  # whose labels are measured: a second's work
MOST_BAD_OF_FEW = 0.2  # of some tens of clips: below it, all of them may have few enough
SPOILT = "take tokenizer and generation_config.json of the checkpoint's own base model"


def data(config: "Config", scratch: Path) -> tuple[Check, Sight | None]:
    """Some clips are heard. Raises ChoiceError and WorldError as preparing does."""
    try:
        sight = look(config, scratch)
    except UnseenError as unseen:
        way_out = "preparing looks at all of it, before anything trains: make prepare"
        return Check("data", WARN, f"not looked at: {unseen}", way_out), None
    found, bad = f"{sight.origin}; {len(sight.clips)} heard", share_unusable(sight)
    if not bad:
        return Check("data", OK, found), sight
    reasons = counted([reason for reason, names in sight.left_out.items() for _ in names])
    found = f"{found}, others unusable: {reasons}"
    heard_all = len(sight.clips) + sum(map(len, sight.left_out.values())) >= len(sight.sentences)
    if bad > (MOST_BAD if heard_all else MOST_BAD_OF_FEW):
        way_out = f"preparing refuses more than {MOST_BAD:.0%} of such: fetch the corpus again or mend it"
        return Check("data", FAIL, found, way_out), sight
    return Check("data", WARN, found, "preparing leaves such out and names them in data/summary.json"), sight


def labels(config: "Config", sight: Sight) -> tuple[Check, int]:
    """How many sentences would be dropped for what they are as labels."""
    sentences, refuse = sight.sentences[:SENTENCES], label_rule(config)
    dropped = [reason for sentence in sentences if (reason := refuse(sentence))]
    if not dropped:
        return Check("labels", OK, f"none of {len(sentences):,} would be dropped"), 0
    found = f"{len(dropped):,} of {len(sentences):,} would be dropped: {counted(dropped)}"
    if len(dropped) > MOST_BAD * len(sentences):
        way_out = f"preparing refuses more than {MOST_BAD:.0%} of such; see whether data.columns names the right text"
        return Check("labels", FAIL, found, way_out), len(dropped)
    return Check("labels", WARN, found, "nothing, or shorten those sentences: preparing leaves them out"), len(dropped)


def token(config: "Config") -> tuple[Check, str]:
    """Whisper's token for the language. Raises ChoiceError where there is none, naming the way out."""
    code = language_token(config.model, config.data.language)
    return Check("language", OK, f"{config.data.language} is <|{code}|>, to {config.model.task}"), code


def mel_bins(config: "Config", known: WhisperConfig) -> tuple[Check, int]:
    """Those that the feature extractor makes against those that the model hears."""
    silence = np.zeros(audio.SAMPLE_RATE, dtype=np.float32)
    made = log_mel([silence], load_processor(config.model.checkpoint).feature_extractor, seconds=1.0).shape[1]
    if made == known.num_mel_bins:
        return Check("mel bins", OK, f"{made}, as the model hears"), made
    found = f"features have {made}, the model hears {known.num_mel_bins}"
    way_out = "take preprocessor_config.json of the checkpoint's own base model"
    return Check("mel bins", FAIL, found, way_out), made


def batch(config: "Config", sight: Sight, code: str) -> tuple[Check, Batch | None]:
    """The first batch that the run would make of the clips that were seen; None where its labels are wrong."""
    refuse = label_rule(config)
    rows = [clip for clip in sight.clips if not refuse(clip["text"])]
    if not rows:
        raise ChoiceError(f"data.source: none of {len(sight.clips)} clips has a sentence that can be a label")
    processor = load_processor(config.model.checkpoint)
    processor.tokenizer = prompted(processor.tokenizer, code, config.model.task)
    steps = Steps(
        rows, order(config, rows), 1, processor,
        augment=config.data.augment, seed=config.seed, attention_mask=config.training.spec_augment,
    )  # fmt: skip
    batches, generation = steps[0], load_generation_config(config.model.checkpoint)
    first, end = generation.decoder_start_token_id, generation.eos_token_id
    prompt = (first, generation.lang_to_id[f"<|{code}|>"], generation.task_to_id[config.model.task])
    if wrong := [trouble for each in batches for trouble in troubles(each, prompt, end, len(processor.tokenizer))]:
        return Check("batch", FAIL, f"{wrong[0]} ({len(wrong)} such in {_size(batches)})", SPOILT), None
    said = sum(int((each["labels"] != IGNORED).sum()) for each in batches)
    found = f"{_size(batches)}: one start token, <|{code}|>, {said} tokens to learn, each row's end among them"
    return Check("batch", OK, found), batches[0]


def _size(batches: Sequence[Batch]) -> str:
    return f"{sum(len(each['labels']) for each in batches)} clips"


def troubles(batch: Batch, prompt: Sequence[int], end: int, vocabulary: int) -> list[str]:
    """What is wrong with the labels of a batch: `prompt` are the tokens of start, language and task, `end` the last."""
    first, *after = prompt
    wrong = []
    for inputs, labels in zip(batch["decoder_input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        said = [label for label in labels if label != IGNORED]
        if inputs[0] != first:
            wrong.append(f"a row begins with token {inputs[0]}, not with the start token {first}")
        elif first in said or inputs[: len(said)].count(first) != 1:
            wrong.append("the start token is doubled: the model would learn to say it")
        elif said[: len(after)] != after:
            wrong.append(f"language and task are {said[: len(after)]}, not {after}")
        elif said[-1] != end:
            wrong.append("the end is not among what is learnt: the model would never stop")
        elif end in said[:-1]:
            wrong.append("the end is learnt before the sentence ends")
        elif max(said) >= vocabulary:
            wrong.append(f"token {max(said)} is beyond the vocabulary of {vocabulary}")
    if not bool(batch["input_features"].isfinite().all()):
        wrong.append("features are no numbers")
    return wrong
