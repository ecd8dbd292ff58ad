"""Whisper in the asked precision, at any encoder context up to 30 s."""

import torch
from transformers import BitsAndBytesConfig, WhisperForConditionalGeneration

from asr_lora.checkpoint import resolve

MAX_POSITIONS = 1500  # encoder positions in 30 s: 100 mel frames a second, halved by the second convolution
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def load(
    checkpoint: str, precision: str, device: torch.device, compute: torch.dtype = torch.float32
) -> WhisperForConditionalGeneration:
    """The untouched model, frozen nowhere yet, in evaluation mode on `device`.

    `precision` is fp32, fp16 or bf16, or a quantised one: int8 (LLM.int8, Dettmers et al. 2022) or nf4 (Dettmers et
    al. 2023), whose other weights and products are in `compute`. The dtype is always named: transformers would
    otherwise take the file's, and an fp16 file is fp16 on a CPU too.
    Raises as `checkpoint.resolve` does.
    """
    quantisation = {
        "int8": BitsAndBytesConfig(load_in_8bit=True),
        "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute),
    }.get(precision)
    model = WhisperForConditionalGeneration.from_pretrained(
        resolve(checkpoint),
        dtype=DTYPES.get(precision, compute),
        quantization_config=quantisation,
        device_map={"": device} if quantisation else None,
        attn_implementation="sdpa",
    )
    return (model if quantisation else model.to(device)).eval()


def set_context(model: WhisperForConditionalGeneration, positions: int) -> None:
    """Lets the encoder run at `positions` of its 1,500: input_features of 2 * positions frames, generate included.

    The encoder refuses short input only by comparing it with these two numbers, and adds the first `positions` of its
    sinusoids. Set back to MAX_POSITIONS it is what it was: a saved model must say so.
    """
    if not 1 <= positions <= MAX_POSITIONS:
        raise ValueError(f"positions: must be 1 to {MAX_POSITIONS}, got {positions}")
    encoder = model.get_encoder()
    encoder.config.max_source_positions = positions
    encoder.max_source_positions = positions
    encoder.embed_positions.num_embeddings = positions
