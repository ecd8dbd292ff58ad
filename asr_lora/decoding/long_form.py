"""Long-form decoding of recordings: windows of 30 s, each from where the last one's timestamps ended."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.decoding.fallback import LOG_PROBABILITY, NO_SPEECH, TEMPERATURES
from asr_lora.decoding.generate import DecodingOptions, Segment, not_even_one
from asr_lora.model.cost import POSITIONS_PER_SECOND
from asr_lora.model.hardware import is_out_of_memory
from asr_lora.model.tokens import language_and_task
from asr_lora.speech import audio
from asr_lora.speech.limits import MAX_SECONDS

VERSION = 2  # raised whenever the same settings decode the same recording to other segments
TOKEN_RATIO = 1.35  # of the bytes of token numbers, as transformers compresses them; of the text it would be 2.4
MOST_TOKENS = 220  # of a window: of Whisper's 448 positions 224 are the prompt's and 4 the start's
SEED = 0  # of the tokens that the fallback draws, the same for every recording


def decode_long_form(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    waveform: audio.Waveform,
    decoding: DecodingOptions,
    previous_text: bool = False,
    move_to: Callable[[float], None] = lambda seconds: None,
) -> list[Segment]:
    """Decodes a recording of any length, (samples,) at 16 kHz, in 30 s windows by Whisper's timestamps.

    Each window begins where the last one's timestamps ended (Radford et al. 2023, section 4.5), so the model must still
    predict timestamps: the base model does, and one that was fine-tuned with training.context=windows. With
    `previous_text` a window's prompt is the text before it, as OpenAI's and faster-whisper's defaults have it, and
    `decoding.prompt` that of the first; without, that of every window. With
    `decoding.fallback` windows that Whisper would not accept are decoded again at rising temperatures.
    `move_to` is called before every window with the seconds that are decoded.
    Raises ExternalError where a window does not fit in memory.
    """

    def report(frames: Tensor) -> None:
        move_to(float(frames[0, 0]) / 2 / POSITIONS_PER_SECOND)

    inputs = processor.feature_extractor(
        waveform, sampling_rate=audio.SAMPLE_RATE, return_tensors="pt", truncation=False, padding="longest",
        return_attention_mask=True,
    )  # fmt: skip
    if len(waveform) <= MAX_SECONDS * audio.SAMPLE_RATE:  # one window, which the encoder wants whole
        inputs = processor.feature_extractor(waveform, sampling_rate=audio.SAMPLE_RATE, return_tensors="pt")
    weight = model.get_encoder().conv1.weight
    fallback = {
        "temperature": (0.0, *TEMPERATURES), "compression_ratio_threshold": TOKEN_RATIO,
        "logprob_threshold": LOG_PROBABILITY, "no_speech_threshold": NO_SPEECH,
    } if decoding.fallback else {}  # fmt: skip
    try:
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(SEED)
            output = model.generate(
                input_features=inputs.input_features.to(weight.device, weight.dtype),
                attention_mask=inputs.get("attention_mask"), num_beams=decoding.num_beams, return_timestamps=True,
                return_segments=True, condition_on_prev_tokens=previous_text, monitor_progress=report,
                max_new_tokens=min(MOST_TOKENS, decoding.max_new_tokens),
                prompt_ids=torch.tensor(decoding.prompt, device=weight.device) if decoding.prompt else None, **fallback,
                **language_and_task(model.generation_config, decoding.language, decoding.task),
            )  # fmt: skip
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise not_even_one(error) from error
        raise
    duration = len(waveform) / audio.SAMPLE_RATE  # the last window goes on behind it
    return [
        Segment(
            min(float(each["start"]), duration),
            min(float(each["end"]), duration),
            processor.decode(each["tokens"], skip_special_tokens=True).strip(),
        )
        for each in output["segments"][0]
    ]
