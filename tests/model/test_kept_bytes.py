"""The bytes that a forward pass keeps for backward, counted under CUDA's casts, against the predictions of plan."""

import gc
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cuda_policy import CudaPolicy, Kept, Products
from support.models import tiny_tokenizer
from transformers import WhisperConfig, WhisperForConditionalGeneration

from asr_lora.config.compose import load
from asr_lora.model import adapter, cost, whisper

CPU = torch.device("cpu")
SHAPE = cost.ModelDimensions(128, 512, 2, 2, 80, 300)
CONTEXTS = ((4.0, 20), (30.0, 100))  # seconds, tokens
HALF = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float16, "nf4": torch.float16}


# The others take the same casts as these two, or none.
OF_HALF = [each if each in ("fp16", "int8") else pytest.param(each, marks=pytest.mark.slow) for each in HALF]
QUANTIZED = ["int8", pytest.param("nf4", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Whisper of SHAPE, so wide that rank 4 and a head's logsumexp are negligible."""
    sizes: dict[str, Any] = {"d_model": SHAPE.d_model, "num_mel_bins": SHAPE.mels, "vocab_size": SHAPE.vocabulary}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 2, f"{side}_attention_heads": 2, f"{side}_ffn_dim": SHAPE.ffn}
    folder = tmp_path_factory.mktemp("memory") / "whisper"
    ends = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
    WhisperForConditionalGeneration(WhisperConfig(**sizes, **ends)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def dropout_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter.Dropout, "forward", torch.nn.Dropout.forward)


def tuned(checkpoint: Path, precision: str, kind: str = "qv") -> adapter.Tuned:
    rank = [] if kind == "ia3" else ["lora.r=4"]
    lora = load([f"lora={kind}", "model.precision=fp32", *rank]).lora
    base = whisper.load(str(checkpoint), precision, CPU, HALF[precision] or torch.float32)
    base.set_attn_implementation("sdpa")  # as on a GPU; a CPU takes eager attention in bf16
    return adapter.attach(base, lora, seed=0).train()


def forward(model: adapter.Tuned, seconds: float, tokens: int, rows: int, half: torch.dtype | None) -> torch.Tensor:
    ids = torch.randint(2, SHAPE.vocabulary, (rows, tokens))
    with whisper.encoder_context(model, seconds), CudaPolicy(half):
        logits: torch.Tensor = model(
            input_features=torch.randn(rows, 80, int(seconds * 100)), decoder_input_ids=ids
        ).logits
    return logits


@cache
def measured(checkpoint: Path, precision: str) -> tuple[float, ...]:
    """Returns the kept bytes of a row for each of CONTEXTS."""
    model = tuned(checkpoint, precision)
    return tuple(kept(model, *context, HALF[precision]) for context in CONTEXTS)


def kept(model: adapter.Tuned, seconds: float, tokens: int, half: torch.dtype | None) -> float:
    """Returns kept bytes a row, without its logits: the difference of 3 rows and 1 excludes what is kept once."""
    held = []
    for rows in (1, 3):
        with Kept() as counted:
            logits = forward(model, seconds, tokens, rows, half)
            gc.collect()
            held.append(counted.bytes() - logits.numel() * logits.element_size())
        del logits
    return (held[1] - held[0]) / 2


@pytest.mark.parametrize("precision", OF_HALF)
def test_plan_predicts_bytes_kept_for_backward_within_a_tenth(checkpoint: Path, precision: str) -> None:
    half = HALF[precision] is not None
    predicted = tuple(cost.kept_bytes(SHAPE, *context, half=half, on_gpu=True) for context in CONTEXTS)
    assert predicted == pytest.approx(measured(checkpoint, precision), rel=0.1)


@pytest.mark.parametrize("kind", ["all_linear", "encoder", "decoder", "adalora", "ia3"])
def test_plan_predicts_what_every_kind_of_adapter_keeps(checkpoint: Path, kind: str) -> None:
    predicted = cost.kept_bytes(SHAPE, *CONTEXTS[0], half=True, on_gpu=True, kind=kind)
    measured = kept(tuned(checkpoint, "int8", kind), *CONTEXTS[0], torch.float16)
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_quantized_base_keeps_no_more_than_one_in_half_precision(checkpoint: Path, precision: str) -> None:
    ours, in_half = measured(checkpoint, precision), measured(checkpoint, "fp16")
    assert all(quantized <= half for quantized, half in zip(ours, in_half, strict=True))


@pytest.mark.parametrize("precision", QUANTIZED)
def test_no_product_of_a_quantized_base_is_in_fp32_backward_either(checkpoint: Path, precision: str) -> None:
    logits = forward(tuned(checkpoint, precision), 4.0, 20, 2, torch.float16)
    with Products() as products:
        logits.float().sum().backward()
    assert products.dtypes == {torch.float16}


@pytest.mark.parametrize("precision", QUANTIZED)
def test_keys_and_values_of_dev_decoding_are_in_half_precision(checkpoint: Path, precision: str) -> None:
    model = tuned(checkpoint, precision).eval()
    with torch.inference_mode(), CudaPolicy(torch.float16):
        made = model(input_features=torch.randn(1, 80, 3000), decoder_input_ids=torch.tensor([[1, 5]]), use_cache=True)
    caches = (made.past_key_values.self_attention_cache, made.past_key_values.cross_attention_cache)
    found = {tensor.dtype for cache in caches for layer in cache.layers for tensor in (layer.keys, layer.values)}
    assert found == {torch.float16}


@pytest.mark.parametrize("seconds", [2.0, 8.0, 30.0])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_plan_gives_an_8_bit_base_no_more_memory_than_fp16_at_any_context(seconds: float, checkpointing: bool) -> None:
    large, tokens = cost.PUBLISHED["openai/whisper-large-v2"], 20
    for rows in (1, 8, 64):
        held = [
            cost.training_bytes(
                large, cost.TrainingMode(precision, True, checkpointing, 15_728_640, on_gpu=True), rows, seconds, tokens
            )
            for precision in ("int8", "fp16")
        ]
        assert held[0] <= held[1]
