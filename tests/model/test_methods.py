"""The tuning methods: each trains, resumes, is scored and reported, and its saved model loads with other libraries."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from peft import AdaLoraModel, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file
from support.models import tiny_tokenizer, tiny_whisper
from support.runs import hardware_of, killed
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.config.compose import conf_dir, load
from asr_lora.config.schema import LORA_KEYS, WHOLE, LoraConfig
from asr_lora.eval import evaluate
from asr_lora.model import adapter, adapter_folder, arithmetic, cost, whisper
from asr_lora.model.methods import TuningMethod, tuning_method
from asr_lora.model.pretrained import load_config
from asr_lora.planning.estimate import saved_bytes
from asr_lora.prepare import prepare
from asr_lora.report import report
from asr_lora.runs import folder as run
from asr_lora.runtime.console import progress
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.train import train
from asr_lora.training.builder import build_trainer

STEPS = 4
CPU = torch.device("cpu")


@pytest.fixture
def of_64(tmp_path: Path) -> Path:
    """A checkpoint that bitsandbytes decodes in 4 bits on any CPU: its widths are multiples of 64, as real ones are."""
    tokenizer, checkpoint = tiny_tokenizer(), tmp_path / "whisper-of-64"
    tiny_whisper(tokenizer, d_model=64, encoder_ffn_dim=64, decoder_ffn_dim=64).save_pretrained(checkpoint)
    WhisperProcessor(feature_extractor=WhisperFeatureExtractor(), tokenizer=tokenizer).save_pretrained(checkpoint)
    return checkpoint


def tuned_by(kind: str, words: list[str], of_64: Path) -> list[str]:
    """Returns the overrides of a run of STEPS steps of four clips, with dropout where the kind has it."""
    mine = [word for word in words if word != "lora.r=4" or "r" in LORA_KEYS[kind]]
    if kind == "qlora":
        mine += [f"model.checkpoint={of_64}", "model.precision=nf4"]
    return [
        *mine,
        f"lora={kind}",
        f"training.max_steps={STEPS}",
        "training.warmup_ratio=0",
        "training.learning_rate=1e-2",
    ]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_jsonl(folder / "train" / "log.jsonl") if "loss" in line]


def logits(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 80, 3000, generator=generator)
    with torch.inference_mode():
        found: torch.Tensor = model(input_features=features, decoder_input_ids=torch.arange(10).view(2, 5)).logits
    return found


def load_without_ours(folder: Path, checkpoint: str) -> Any:
    """Loads a saved model by peft or transformers alone, in fp32."""
    if not (folder / "adapter_config.json").is_file():
        return WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    base = WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    return PeftModel.from_pretrained(base, folder)


QUICK = ("qv", "adalora", "full")  # an adapter, one whose ranks change, a whole model: all hooks of a tuning method


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")  # peft's warning of its own AdaLoRA
@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in LORA_KEYS]
)
def test_every_method_trains_resumes_is_scored_reported_and_loads_with_other_libraries(
    kind: str, words: list[str], of_64: Path
) -> None:
    mine = tuned_by(kind, words, of_64)
    config = load(mine)
    train(config)
    tuned = run.tuned(config.run)
    assert tuned.name == ("model" if kind in WHOLE else "adapter")
    assert (config.run / "train" / "adapter").exists() is (kind not in WHOLE)
    assert (config.run / "eval" / "test" / "metrics.json").is_file()
    assert report(config.run, None).is_file()
    facts, weights = read_json(config.run / "train" / "metrics.json"), load_file(adapter_folder.weights_file(tuned))
    if kind not in WHOLE:  # whose tiny model has fewer positions than all published ones
        shape = cost.dimensions(load_config(config.model.checkpoint).to_dict())
        predicted = saved_bytes(config.lora, facts["trainable_parameters"], shape, "fp32")
        assert sum(weight.nbytes for weight in weights.values()) == predicted
    assert facts["adapter_bytes"] == adapter_folder.weights_file(tuned).stat().st_size

    base = whisper.load(config.model.checkpoint, "fp32", CPU)
    ours = logits(adapter.load(config.model.checkpoint, tuned, "fp32", CPU))
    theirs = logits(load_without_ours(tuned, config.model.checkpoint).eval())
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits(base), ours, atol=1e-4)

    again = [*mine, "run_name=killed", "training.save_steps=1", "eval.after=false"]
    killed(again, step=2)
    train(load(again))
    other = load(again).run
    assert losses(other) == losses(config.run)  # to the last bit
    resumed = load_file(adapter_folder.weights_file(run.tuned(other)))
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(weight, resumed[name]) for name, weight in weights.items())


# ---- AdaLoRA ----


def test_adalora_calls_its_allocator_every_step_and_ends_with_the_ranks_of_the_settings(
    words: list[str], of_64: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of the initial rank is removed, unevenly; the schedule follows the run's own number of steps."""
    calls: list[tuple[int, int, int]] = []
    usual = AdaLoraModel.update_and_allocate

    def update_and_allocate(self: Any, step: int) -> None:
        usual(self, step)
        left = sum(int((weight != 0).sum()) for name, weight in self.named_parameters() if "lora_E" in name)
        calls.append((step, self.peft_config["default"].total_step, left))

    monkeypatch.setattr(AdaLoraModel, "update_and_allocate", update_and_allocate)
    config = load([*tuned_by("adalora", words, of_64), "lora.tinit=0.25", "lora.tfinal=0.25", "eval.after=false"])
    train(config)
    assert [(step, total) for step, total, _ in calls] == [(step, STEPS) for step in range(1, STEPS + 1)]
    modules = 2 * (2 + 2 + 2)  # q and v of two encoder, decoder and cross-attention layers
    lefts = [left for *_, left in calls]
    assert lefts[0] == 6 * modules and lefts[-1] == 4 * modules  # r=4, and 1.5 times as much before
    assert lefts == sorted(lefts, reverse=True)
    ranks = [
        len(e) for name, e in load_file(adapter_folder.weights_file(run.tuned(config.run))).items() if "lora_E" in name
    ]
    assert sum(ranks) == 4 * modules and len(set(ranks)) > 1


def test_a_step_that_overflowed_does_not_change_adaloras_averages() -> None:
    method, model = adalora(settings_of("adalora"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, float("inf"))
    assert method.after_step and method.state
    method.after_step(model, 1, True)
    assert method.state(model) == {}
    method.after_step(model, 1, False)
    assert len(method.state(model)) == 3 * 3 * 12  # three averages of A, B and E of every module


def test_a_matrix_that_adalora_left_without_rank_is_saved_and_loaded_as_the_others(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    method = tuning_method(settings_of("adalora"), 10)
    model = adapter.attach(
        whisper.load(str(tiny_checkpoint), "fp32", CPU), settings_of("adalora"), seed=0, steps=10
    ).eval()
    torch.manual_seed(1)
    pattern = {}
    with torch.no_grad():
        for index, (name, values) in enumerate((n, p) for n, p in model.named_parameters() if "lora_E" in n):
            kept = torch.arange(6)[:, None] < index % 6  # none of the first, more of those that follow
            values.normal_().mul_(kept)
            pattern[f"rank_pattern.{name.removeprefix('base_model.model.')}"] = kept[:, 0]
    assert method.restore
    method.restore(model, pattern)
    adapter.save(model, tmp_path, str(tiny_checkpoint), "full")
    loaded = adapter.load(str(tiny_checkpoint), tmp_path, "fp32", CPU)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-4)
    ranks = [len(e) for name, e in load_file(adapter_folder.weights_file(tmp_path)).items() if "lora_E" in name]
    assert sorted(ranks) == sorted(index % 6 for index in range(12))


def test_adaloras_orthogonality_is_added_to_the_loss_once_a_step_however_the_step_is_split(
    words: list[str], of_64: Path
) -> None:
    mine = [*tuned_by("adalora", words, of_64), "training.max_steps=2", "lora.dropout=0", "eval.after=false"]
    found = []
    for rows, weight in ((4, 0.5), (1, 0.5), (4, 0.0)):
        config = load(
            [*mine, f"hardware.micro_batch={rows}", f"lora.orth_reg_weight={weight}", f"run_name=rows{rows}-{weight}"]
        )
        train(config)
        found.append(losses(config.run)[0])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    method, model = adalora(settings_of("adalora"))
    assert method.penalty and found[0] - found[2] == pytest.approx(float(method.penalty(model).detach()), rel=1e-3)
    # As peft adds it to the model's own loss.
    inputs = {"input_features": torch.zeros(1, 80, 3000), "labels": torch.arange(4)[None]}
    with_term, without = (float(each(**inputs).loss.detach()) for each in (model.base_model, model.get_base_model()))
    assert with_term - without == pytest.approx(float(method.penalty(model).detach()), rel=1e-4)


def settings_of(kind: str) -> LoraConfig:
    return load([f"lora={kind}", *(["lora.r=4"] if "r" in LORA_KEYS[kind] else [])]).lora


def adalora(settings: LoraConfig) -> tuple[TuningMethod, Any]:
    return tuning_method(settings, 10), adapter.attach(tiny_whisper(tiny_tokenizer()), settings, seed=0, steps=10)


# ---- other methods ----


def test_b_has_its_own_rate_under_lora_plus(words: list[str], of_64: Path) -> None:
    config = load(tuned_by("lora_plus", words, of_64))
    prepare(config)
    with progress("training", total=1) as bar:
        trainer = build_trainer(config, hardware_of(config), read_jsonl(run.manifest(config.run, "train")), bar)
    rates = {id(each): group["lr"] for group in trainer.optimizer.param_groups for each in group["params"]}
    named = {name: rates[id(each)] for name, each in trainer.model.named_parameters() if each.requires_grad}
    assert {rate for name, rate in named.items() if "lora_B" in name} == {16 * 1e-2}
    assert {rate for name, rate in named.items() if "lora_A" in name} == {1e-2}


def test_pissa_is_saved_as_an_ordinary_lora_of_twice_the_rank(tmp_path: Path, tiny_checkpoint: Path) -> None:
    base = whisper.load(str(tiny_checkpoint), "fp32", CPU)
    before = logits(base)
    model = adapter.attach(base, settings_of("pissa"), seed=0).eval()
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-4)  # it begins as the base model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(1.5)
    adapter.save(model, tmp_path, str(tiny_checkpoint), "full")
    settings = read_json(tmp_path / "adapter_config.json")
    assert (settings["r"], settings["lora_alpha"], settings["init_lora_weights"]) == (8, 16.0, True)
    loaded = logits(load_without_ours(tmp_path, str(tiny_checkpoint)).eval())
    torch.testing.assert_close(loaded, logits(model), atol=1e-5, rtol=1e-4)
    arithmetic.scale_adapter(tmp_path, 0.0, tmp_path / "none", str(tiny_checkpoint))
    nothing = logits(adapter.load(str(tiny_checkpoint), tmp_path / "none", "fp32", CPU))
    torch.testing.assert_close(nothing, before, atol=1e-5, rtol=1e-4)


def test_encoder_and_decoder_tune_only_their_own_part(tiny_checkpoint: Path) -> None:
    for kind, other in (("encoder", "decoder"), ("decoder", "encoder")):
        model = adapter.attach(whisper.load(str(tiny_checkpoint), "fp32", CPU), settings_of(kind), seed=0)
        named = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert all(f".{kind}." in name and f".{other}." not in name for name in named)
        assert any("encoder_attn" in name for name in named) is (kind == "decoder")


def test_only_biases_train_under_bitfit_and_all_but_the_sinusoids_under_full(tiny_checkpoint: Path) -> None:
    base = whisper.load(str(tiny_checkpoint), "fp32", CPU)
    biases = {name for name, parameter in base.named_parameters() if name.endswith("bias")}
    everything = {name for name, parameter in base.named_parameters()}
    for kind, expected in (("bitfit", biases), ("full", everything - {"model.encoder.embed_positions.weight"})):
        model = adapter.attach(whisper.load(str(tiny_checkpoint), "bf16", CPU), settings_of(kind), seed=0)
        trained = {name: parameter.dtype for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == dict.fromkeys(expected, torch.float32)


def test_a_whole_model_is_interpolated_with_the_base_model_by_its_strength(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = adapter.attach(whisper.load(str(tiny_checkpoint), "fp32", CPU), settings_of("full"), seed=0)
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    adapter.save(model, tmp_path / "model", str(tiny_checkpoint), "dynamic")
    arithmetic.scale_adapter(tmp_path / "model", 0.5, tmp_path / "half", str(tiny_checkpoint))
    half = adapter.load(str(tiny_checkpoint), tmp_path / "half", "fp32", CPU).state_dict()
    for name, weight in half.items():
        torch.testing.assert_close(weight, base[name] + 0.05, atol=1e-6, rtol=1e-5)
    arithmetic.average_adapters([tmp_path / "model", tmp_path / "half"], tmp_path / "mean")
    mean = adapter.load(str(tiny_checkpoint), tmp_path / "mean", "fp32", CPU).state_dict()
    torch.testing.assert_close(mean["model.encoder.conv1.bias"], base["model.encoder.conv1.bias"] + 0.075)


@pytest.mark.slow
def test_a_whole_model_is_scored_at_the_strength_of_the_settings(words: list[str], of_64: Path) -> None:
    mine = tuned_by("full", words, of_64)
    train(load([*mine, "eval.after=false"]))
    config = load([*mine, "eval.strength=0.5"])
    facts = evaluate(config)
    half = config.run / "train" / "model-strength0.5"
    assert facts["strength"] == 0.5 and facts["inputs"]["adapter_sha256"] == adapter_folder.fingerprint(half)
    assert facts["context"] == "full"  # it was never trained to stop at short ones
    assert "library_name: transformers" in (half / "README.md").read_text()


def test_a_whole_model_contains_no_path_of_this_machine(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = adapter.attach(whisper.load(str(tiny_checkpoint), "fp32", CPU), settings_of("full"), seed=0)
    adapter.save(model, tmp_path / "model", str(tiny_checkpoint), "full")
    text = "".join(file.read_text() for file in (tmp_path / "model").iterdir() if file.suffix in (".json", ".md"))
    assert str(tiny_checkpoint.parent) not in text
    assert WhisperForConditionalGeneration.from_pretrained(tmp_path / "model").config.max_source_positions == 1500


@pytest.mark.slow
def test_adams_moments_can_be_in_8_bits(words: list[str], of_64: Path) -> None:
    mine = [*tuned_by("full", words, of_64), f"model.checkpoint={of_64}", "lora.optim=adamw_8bit", "eval.after=false"]
    config = load([*mine, "training.save_steps=1"])
    killed([*mine, "training.save_steps=1"], step=2)
    state = torch.load(config.run / "train" / "checkpoints" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    moments = [each["__bnb_optimizer_quant_state__"]["state1"].dtype for each in state["state"].values()]
    assert torch.uint8 in moments
    train(config)
    steady = load([*mine, "run_name=steady"])
    train(steady)
    assert losses(config.run) == losses(steady.run)


def test_double_quantization_quantizes_the_scales_too(of_64: Path) -> None:
    def scales(double: bool) -> torch.dtype:
        model = whisper.load(str(of_64), "nf4", CPU, double_quant=double)
        dtype: torch.dtype = model.model.decoder.layers[0].fc1.weight.quant_state.absmax.dtype
        return dtype

    assert (scales(True), scales(False)) == (torch.uint8, torch.float32)


def test_the_reason_against_prefix_tuning_of_whisper_still_holds() -> None:
    tuned = get_peft_model(
        tiny_whisper(tiny_tokenizer()), PrefixTuningConfig(num_virtual_tokens=4, task_type="SEQ_2_SEQ_LM")
    )
    with pytest.raises(ValueError, match="You have to provide either input_ids or inputs_embeds"):
        tuned(input_features=torch.zeros(1, 80, 3000), decoder_input_ids=torch.zeros(1, 4, dtype=torch.long))
    for words in (["lora=prefix"], ["lora.kind=prefix"]):
        with pytest.raises(ConfigError, match=r"lora.*: peft 0\.21 cannot put prefixes on Whisper"):
            load(words)


# ---- settings ----


@pytest.mark.parametrize("kind", LORA_KEYS)
def test_a_kind_has_only_its_own_settings_with_a_reason_each(kind: str) -> None:
    file = conf_dir() / "lora" / f"{kind}.yaml"
    settings = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(settings, dict)
    assert set(settings.get("lora", settings)) == {"kind", *LORA_KEYS[kind]}
    for line in file.read_text(encoding="utf-8").splitlines():
        assert "#" in line or line.endswith(":") or line.strip() == f"kind: {kind}", f"{line}: gives no reason"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lora=ia3", "lora.r=8"], r"lora\.r: is no setting of lora=ia3; it has lora\.target_modules"),
        (["lora=full", "lora.dropout=0"], r"lora\.dropout: is no setting of lora=full; it has lora\.optim"),
        (["lora.lr_ratio=2"], r"lora\.lr_ratio: is no setting of lora=qv"),
        (["lora.kind=bitfit"], r"lora\.r: is no setting of lora=bitfit; it has none but its kind"),
        (["lora=full", "model.precision=int8"], "cannot be int8 under lora=full: a weight in int8 has no gradients"),
        (["lora=full", "model.precision=fp16"], "cannot be fp16 under lora=full"),
        (["lora=pissa", "model.precision=nf4"], "cannot be nf4 under lora=pissa: it starts from singular vectors"),
        (["lora=dora", "model.precision=int8"], "cannot be int8 under lora=dora: bitsandbytes loses the scales"),
        (["lora=bitfit", "model.precision=int8"], "cannot be int8 under lora=bitfit: the trainer accepts a base"),
        (["lora=qlora", "model.precision=fp16"], "cannot be fp16 under lora=qlora"),
        (["lora=dora", "eval.strength=0.5"], r"eval\.strength: must be 1 under lora=dora"),
        (["lora=ia3", "eval.strengths=[0,1]"], r"eval\.strength: must be 1 under lora=ia3"),
        (["lora=adalora", "eval.average=2"], r"eval\.average: must be null under lora=adalora"),
        (["lora=adalora", "training.max_steps=1"], r"training\.max_steps: must be enough for two steps before"),
        (["lora=adalora", "lora.tinit=0.7"], "shares of the steps, together less than 1"),
        (["lora=ia3", "lora.feedforward_modules=[fc1]"], r"must be some of lora\.target_modules"),
    ],
)
def test_impossible_settings_are_refused_with_the_reason(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(words)


def test_a_kind_sets_its_rate_and_precision_and_overrides_win() -> None:
    usual, overridden = load(["lora=full"]), load(["lora=full", "training.learning_rate=3e-5", "hardware=cpu"])
    assert (usual.training.learning_rate, usual.model.precision) == (1e-5, "fp32")
    assert usual.run_name == "nl-1h-large_v2-full-s0"  # no r: it has none
    assert overridden.training.learning_rate == 3e-5 and overridden.run_name == "nl-1h-large_v2-full-s0-lr3e-5"
    assert load(["lora=pissa", "model.precision=fp16"]).run_name == "nl-1h-large_v2-pissa-r32-s0-fp16"
    assert load(["lora=qlora", "model=whisper_small"]).run_name == "nl-1h-small-qlora-r32-s0"
