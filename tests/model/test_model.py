"""asr_lora.model: parameter counts, gradients, precisions, contexts, and adapters that load elsewhere."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from support.models import batch, move_b, step, tiny_tokenizer, tiny_whisper
from transformers import WhisperConfig, WhisperForConditionalGeneration

from asr_lora.config.compose import load
from asr_lora.model import adapter, adapter_folder, arithmetic, whisper
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, write_json

CPU = torch.device("cpu")
QV = load(["lora=qv", "lora.dropout=0"]).lora


def test_large_v2_trains_the_published_number_of_parameters() -> None:
    sizes = {"encoder_layers": 32, "decoder_layers": 32, "encoder_attention_heads": 20, "decoder_attention_heads": 20}
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(
            WhisperConfig(d_model=1280, encoder_ffn_dim=5120, decoder_ffn_dim=5120, vocab_size=51865, **sizes)
        )
        model = adapter.attach(model, QV, seed=0)
    trainable = adapter.trainable_parameters(model)
    assert trainable == 15_728_640
    assert 0.009 < trainable / sum(p.numel() for p in model.parameters()) < 0.011
    size = sum(t.numel() * t.element_size() for t in get_peft_model_state_dict(model).values())
    assert size == pytest.approx(63e6, rel=0.01)  # bytes: fp32


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_of_encoder_and_decoder_receive_gradient(checkpointing: bool) -> None:
    model = adapter.attach(tiny_whisper(tiny_tokenizer()), QV, seed=0).train()
    if checkpointing:
        model.base_model.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    step(model, batch(model))
    # B of every target: A gets none in the first step, since B is zero.
    gradients = {name: p.grad for name, p in model.named_parameters() if "lora_B" in name}
    assert len(gradients) == 2 * (2 + 2 + 2)  # q and v of two encoder, decoder and cross-attention layers
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())
    assert all(p.grad is None for name, p in model.named_parameters() if "lora_" not in name)


def test_checkpointing_changes_no_gradient() -> None:
    norms = []
    for checkpointing in (False, True):
        model = adapter.attach(tiny_whisper(tiny_tokenizer()), QV, seed=0).train()
        move_b(model)
        if checkpointing:
            model.base_model.model.activation_checkpointing_enable(
                activation_checkpointing_kwargs={"use_reentrant": False}
            )
        step(model, batch(model))
        norms.append([float(p.grad.norm()) for p in model.parameters() if p.grad is not None])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("precision", ["int8", "nf4", "bf16", "fp32"])
def test_every_precision_learns_on_a_cpu(tiny_checkpoint: Path, precision: str) -> None:
    model = adapter.attach(whisper.load(str(tiny_checkpoint), precision, CPU), QV, seed=0).train()
    quantized = {"int8": torch.int8, "nf4": torch.uint8}.get(precision)
    base = model.base_model.model.model.encoder.layers[0].self_attn.q_proj.base_layer.weight
    assert base.dtype == (quantized or whisper.DTYPES[precision])
    assert all(p.dtype is torch.float32 for p in model.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(6):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses.append(step(model, batch(model)))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.01


def test_the_dtype_is_the_given_one_whatever_the_file_holds(tiny_checkpoint: Path, tmp_path: Path) -> None:
    whisper.load(str(tiny_checkpoint), "fp16", CPU).save_pretrained(tmp_path / "half")
    assert whisper.load(str(tmp_path / "half"), "fp32", CPU).dtype is torch.float32


def test_a_short_context_has_its_positions_and_a_few_of_silence_and_the_full_one_is_restored() -> None:
    model = tiny_whisper(tiny_tokenizer())
    inputs = batch(model)
    with torch.inference_mode():
        before = model(**inputs).logits
        with whisper.encoder_context(model, 4.0):
            assert model.get_encoder()(inputs["input_features"][..., :400]).last_hidden_state.shape == (2, 200 + 82, 16)
            short = model.generate(inputs["input_features"][..., :400], language="nl", max_new_tokens=3)
            assert short.shape[0] == 2
        assert torch.equal(model(**inputs).logits, before)
    assert model.config.max_source_positions == 1500


def test_attention_is_eager_only_at_short_contexts_on_a_cpu_in_bf16_with_the_same_gradients(
    tiny_checkpoint: Path,
) -> None:
    def kinds(model: Any) -> list[str]:
        found = []
        for seconds in (4.0, 30.0):
            with whisper.encoder_context(model, seconds):
                found.append(model.get_decoder().config._attn_implementation)
        return [*found, model.config._attn_implementation]

    fused = whisper.load(str(tiny_checkpoint), "fp32", CPU)
    plain = whisper.load(str(tiny_checkpoint), "fp32", CPU, torch.bfloat16)
    assert kinds(fused) == ["sdpa", "sdpa", "sdpa"]
    assert kinds(plain) == ["eager", "sdpa", "eager"]
    gradients = []
    for model in (fused, plain):
        with whisper.encoder_context(model, 4.0):
            step(model, batch(model, frames=400))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


def test_a_base_in_4_bits_trains_as_before_after_it_was_evaluated(tiny_checkpoint: Path) -> None:
    """bitsandbytes packs 4 bits on some CPUs for good once a model runs in evaluation mode, as in dev decoding."""
    base = whisper.load(str(tiny_checkpoint), "nf4", CPU)
    assert not any(module.training for module in base.modules())
    model = adapter.attach(base, QV, seed=0)
    gradients = []
    for _ in range(2):
        model.train()
        with whisper.encoder_context(model, 4.0):
            step(model, batch(model, frames=400))
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        model.zero_grad()
        model.eval()
        with torch.inference_mode(), whisper.encoder_context(model, 4.0):
            model(**batch(model, frames=400))
    assert all(torch.equal(*both) for both in zip(*gradients, strict=True))


def test_at_thirty_seconds_encoder_and_gradients_equal_hugging_faces() -> None:
    """Compared with a model that was never at another context; to 1e-5 in fp32."""
    outcomes = []
    for within in (False, True):
        model = adapter.attach(tiny_whisper(tiny_tokenizer()), QV, seed=0)
        move_b(model)
        if within:
            with whisper.encoder_context(model, 4.0):
                step(model, batch(model, frames=400))
            model.zero_grad()
            with whisper.encoder_context(model, 30.0):
                loss = step(model, batch(model))
        else:
            loss = step(model, batch(model))
        outcomes.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    assert outcomes[0][0] == pytest.approx(outcomes[1][0], abs=1e-5)
    for name, gradient in outcomes[0][1].items():
        torch.testing.assert_close(outcomes[1][1][name], gradient, atol=1e-5, rtol=1e-5)


def test_a_model_saved_after_an_interruption_at_a_short_context_has_1500_positions(tmp_path: Path) -> None:
    model = tiny_whisper(tiny_tokenizer())
    with pytest.raises(KeyboardInterrupt), whisper.encoder_context(model, 4.0):
        raise KeyboardInterrupt
    model.save_pretrained(tmp_path)
    assert WhisperConfig.from_pretrained(tmp_path).max_source_positions == 1500


@pytest.mark.parametrize("seconds", [0.0, 30.1])
def test_contexts_beyond_the_window_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"), whisper.encoder_context(tiny_whisper(tiny_tokenizer()), seconds):
        pass


@pytest.mark.parametrize(
    ("context", "short"), [("dynamic", True), ("full", False), ("windows", True), ("packed", False)]
)
def test_the_adapter_folder_records_the_context_it_was_trained_at(
    tiny_checkpoint: Path, tmp_path: Path, context: str, short: bool
) -> None:
    model = adapter.attach(whisper.load(str(tiny_checkpoint), "fp32", CPU), QV, seed=0)
    adapter.save(model, tmp_path / "adapter", str(tiny_checkpoint), context)
    assert adapter_folder.knows_short_context(tmp_path / "adapter") is short
    (tmp_path / "adapter" / "asr_lora.json").unlink()  # an adapter from elsewhere
    assert not adapter_folder.knows_short_context(tmp_path / "adapter")


def test_an_adapter_folder_loads_with_plain_peft_and_gives_the_same_logits(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = adapter.attach(whisper.load(str(tiny_checkpoint), "fp32", CPU), QV, seed=0).eval()
    move_b(model)
    adapter.save(model, tmp_path / "adapter", str(tiny_checkpoint), "full")
    plain = PeftModel.from_pretrained(  # no code of ours
        WhisperForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32), tmp_path / "adapter"
    )
    base = whisper.load(str(tiny_checkpoint), "fp32", CPU)
    merged = adapter.merge(whisper.load(str(tiny_checkpoint), "fp32", CPU), tmp_path / "adapter")
    with torch.inference_mode():
        ours = model(**batch(model)).logits
        assert torch.equal(plain(**batch(model)).logits, ours)
        torch.testing.assert_close(merged(**batch(model)).logits, ours, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(base(**batch(model)).logits, ours, atol=1e-2)


def test_a_saved_adapter_contains_no_path_of_this_machine(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = adapter.attach(whisper.load(str(tiny_checkpoint), "fp32", CPU), QV, seed=0)
    adapter.save(model, tmp_path / "adapter", str(tiny_checkpoint), "full")
    settings = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert '"base_model_name_or_path": "whisper-random"' in settings
    assert str(tiny_checkpoint.parent) not in settings + (tmp_path / "adapter" / "README.md").read_text()
    assert '"task_type": null' in settings  # SEQ_2_SEQ_LM would pass input_ids


def test_a_new_adapter_depends_only_on_the_seed() -> None:
    first, again, other = (
        get_peft_model_state_dict(adapter.attach(tiny_whisper(tiny_tokenizer()), QV, seed)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_error_for_an_unknown_target_module_lists_the_known_ones() -> None:
    wrong = replace(QV, target_modules=["q_proj", "w_proj"])
    with pytest.raises(ConfigError, match=r"lora\.target_modules: w_proj .* v_proj"):
        adapter.attach(tiny_whisper(tiny_tokenizer()), wrong, seed=0)


@pytest.fixture
def saved(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The folder of an adapter that changes the model."""
    model = adapter.attach(whisper.load(str(tiny_checkpoint), "fp32", CPU), QV, seed=0)
    move_b(model)
    adapter.save(model, tmp_path / "adapter", str(tiny_checkpoint), "dynamic")
    return tmp_path / "adapter"


def change(checkpoint: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Returns what an adapter adds to every weight of the base."""
    base = whisper.load(str(checkpoint), "fp32", CPU).state_dict()
    merged = adapter.merge(whisper.load(str(checkpoint), "fp32", CPU), folder).state_dict()
    return {name: merged[name] - base[name] for name in base if name.endswith(("q_proj.weight", "v_proj.weight"))}


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.5])
def test_a_scaled_adapter_is_an_ordinary_one_with_a_scaled_change_of_every_weight(
    tiny_checkpoint: Path, saved: Path, tmp_path: Path, strength: float
) -> None:
    arithmetic.scale_adapter(saved, strength, tmp_path / "scaled", str(tiny_checkpoint))
    before, after = change(tiny_checkpoint, saved), change(tiny_checkpoint, tmp_path / "scaled")
    for name, delta in before.items():
        torch.testing.assert_close(after[name], strength * delta, atol=1e-6, rtol=1e-4)
        assert delta.abs().max() > 1e-3
    assert not adapter_folder.knows_short_context(tmp_path / "scaled")
    assert adapter_folder.fingerprint(tmp_path / "scaled") != adapter_folder.fingerprint(saved)
    PeftModel.from_pretrained(whisper.load(str(tiny_checkpoint), "fp32", CPU), tmp_path / "scaled")  # no code of ours


@pytest.mark.parametrize(("key", "value"), [("use_dora", True), ("peft_type", "IA3"), ("init_lora_weights", "pissa")])
def test_a_kind_that_does_not_scale_to_the_base_model_is_refused(
    tiny_checkpoint: Path, saved: Path, tmp_path: Path, key: str, value: object
) -> None:
    settings = read_json(saved / "adapter_config.json")
    write_json(saved / "adapter_config.json", settings | {key: value})
    with pytest.raises(ConfigError, match=r"eval.strength: must be 1 except for a plain LoRA, got .*, which is none"):
        arithmetic.scale_adapter(saved, 0.5, tmp_path / "scaled", str(tiny_checkpoint))
    assert not (tmp_path / "scaled").exists()


def test_the_average_of_an_adapter_and_half_of_it_lies_between(
    tiny_checkpoint: Path, saved: Path, tmp_path: Path
) -> None:
    arithmetic.scale_adapter(saved, 0.5, tmp_path / "half", str(tiny_checkpoint))
    arithmetic.average_adapters([tmp_path / "half", saved], tmp_path / "mean")
    whole, mean = change(tiny_checkpoint, saved), change(tiny_checkpoint, tmp_path / "mean")
    for name, delta in whole.items():
        torch.testing.assert_close(mean[name], 0.75 * delta, atol=1e-6, rtol=1e-4)  # they differ only in B
    assert adapter_folder.knows_short_context(tmp_path / "mean")


def test_an_adapter_is_never_merged_into_a_quantized_base(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = adapter.attach(whisper.load(str(tiny_checkpoint), "fp32", CPU), QV, seed=0)
    adapter.save(model, tmp_path / "adapter", str(tiny_checkpoint), "full")
    with pytest.raises(ValueError, match="quantized"):
        adapter.merge(whisper.load(str(tiny_checkpoint), "int8", CPU), tmp_path / "adapter")
