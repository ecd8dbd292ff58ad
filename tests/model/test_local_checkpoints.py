"""Local checkpoints as people have them: OpenAI's files, parts missing, downloads cut short, other kinds of folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import batch, english_tokenizer, tiny_whisper
from support.releases import tone
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor, WhisperTokenizer

from asr_lora.config.schema import ModelConfig
from asr_lora.data.features import label_ids, log_mel, window_label_ids, with_prompt
from asr_lora.decoding.generate import DecodingOptions, decode_once, suppress_tokens
from asr_lora.decoding.long_form import decode_long_form
from asr_lora.model import checkpoint_files, complete, whisper
from asr_lora.model.convert_openai import openai_name
from asr_lora.model.pretrained import (
    fingerprint,
    language_token,
    language_tokens,
    load_config,
    load_generation_config,
    load_processor,
    resolve,
)
from asr_lora.model.tokens import check_same_whisper
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.speech import audio

CPU = torch.device("cpu")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1a2b\nsize 290403936\n"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """Returns a copy of the tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "whisper-mine"))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def without(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).unlink()
    return folder


def edit(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def model_config(checkpoint: Path, **settings: Any) -> ModelConfig:
    return ModelConfig(**{"name": "mine", "checkpoint": str(checkpoint), "precision": "fp32", "language": None,
                          "learning_rate": 1e-3, "task": "transcribe", **settings})  # fmt: skip


def write_openai(file: Path, model: WhisperForConditionalGeneration, **more: Any) -> Path:
    """Writes a Whisper as OpenAI's files have it."""
    sizes = model.config
    dims = {
        "n_mels": sizes.num_mel_bins, "n_vocab": sizes.vocab_size, "n_audio_ctx": sizes.max_source_positions,
        "n_audio_state": sizes.d_model, "n_audio_head": sizes.encoder_attention_heads,
        "n_audio_layer": sizes.encoder_layers, "n_text_ctx": sizes.max_target_positions,
        "n_text_state": sizes.d_model, "n_text_head": sizes.decoder_attention_heads,
        "n_text_layer": sizes.decoder_layers,
    }  # fmt: skip
    state = {openai_name(name): each for name, each in model.state_dict().items() if name != "proj_out.weight"}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"dims": dims, "model_state_dict": state, **more}, file)
    return file


# ---- OpenAI's .pt ----


@pytest.mark.parametrize("named", ["folder", "file"])
def test_openais_file_converts_to_the_same_logits(folder: Path, tmp_path: Path, named: str) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    file = write_openai(tmp_path / "from-openai" / "tiny.pt", model)
    for name in TOKENIZER:
        shutil.copy(folder / name, file.parent)
    checkpoint = str(file if named == "file" else file.parent)
    converted = whisper.load(checkpoint, "fp32", CPU)
    inputs = batch(model)
    torch.testing.assert_close(converted(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)
    assert "encoder.blocks.0.attn.query.weight" in torch.load(file, weights_only=True)["model_state_dict"]
    assert load_config(checkpoint).decoder_start_token_id == model.config.decoder_start_token_id
    assert load_generation_config(checkpoint).task_to_id == load_generation_config(str(folder)).task_to_id
    assert load_processor(checkpoint).feature_extractor.feature_size == 80
    assert fingerprint(checkpoint) == fingerprint(checkpoint)
    assert sorted(each.name for each in file.parent.iterdir()) == ["tiny.pt", *TOKENIZER]


def test_openais_file_of_published_sizes_names_the_tokenizer_that_it_needs(tmp_path: Path) -> None:
    tokenizer = english_tokenizer()
    file = write_openai(tmp_path / "mine.pt", tiny_whisper(tokenizer))
    with pytest.raises(ConfigError, match=r"no tokenizer.*copy tokenizer.json .* of openai/whisper-tiny.en beside it"):
        resolve(str(file))


def test_a_file_with_code_is_not_run_and_one_of_another_kind_is_named(folder: Path, tmp_path: Path) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    with pytest.raises(ConfigError, match=r"code.pt holds more than weights, code that would run"):
        resolve(str(write_openai(tmp_path / "code.pt", model, hook=Path)))
    torch.save({"state_dict": {}, "epoch": 1}, tmp_path / "lightning.pt")
    with pytest.raises(ConfigError, match=r"lightning.pt is no Whisper of OpenAI's.*got: state_dict, epoch"):
        resolve(str(tmp_path / "lightning.pt"))


def test_a_damaged_file_of_openais_is_refused(folder: Path, tmp_path: Path) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    file = write_openai(tmp_path / "tiny.pt", model)
    content = torch.load(file, weights_only=True)
    file.write_bytes(file.read_bytes()[:1_000])
    with pytest.raises(ExternalError, match=r"tiny.pt is cut short at 1,000 bytes"):
        resolve(str(file))
    for name, value in (("n_text_layer", 10**9), ("n_audio_head", 3), ("n_mels", "80")):
        torch.save(content | {"dims": content["dims"] | {name: value}}, file)
        with pytest.raises(ExternalError, match=r"dims and model_state_dict of .*tiny.pt do not fit"):
            resolve(str(file))
    del content["model_state_dict"]["decoder.ln.bias"]
    torch.save(content, file)
    with pytest.raises(ExternalError, match=r"no complete Whisper; missing.*decoder.ln.bias"):
        resolve(str(file))


# ---- missing parts ----


def test_missing_feature_extractor_and_generation_config_are_made_and_nothing_is_written_beside(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = load_generation_config(str(folder))
    edit(folder / "config.json", suppress_tokens=[5, 6])
    before = contents(without(folder, "processor_config.json", "generation_config.json"))
    processor, generation = load_processor(str(folder)), load_generation_config(str(folder))
    assert contents(folder) == before
    assert (generation.lang_to_id, generation.task_to_id) == (expected.lang_to_id, expected.task_to_id)
    assert generation.no_timestamps_token_id == expected.no_timestamps_token_id
    assert generation.suppress_tokens == [5, 6]
    assert processor.feature_extractor.feature_size == 80
    inputs = batch(model := WhisperForConditionalGeneration.from_pretrained(folder).eval())
    torch.testing.assert_close(whisper.load(str(folder), "fp32", CPU)(**inputs).logits, model(**inputs).logits)
    said = [
        line for line in capsys.readouterr().err.splitlines() if "whisper-mine lacks preprocessor_config.json" in line
    ]
    assert len(said) == 1 and "of 80 mel bins, the generation config of its tokenizer's tokens" in said[0]


def test_a_missing_tokenizer_is_that_of_the_base_which_config_json_names(
    folder: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without(folder, *TOKENIZER, "generation_config.json")
    edit(folder / "config.json", _name_or_path=str(tiny_checkpoint))
    tokenizer = load_processor(str(folder)).tokenizer
    assert tokenizer.get_vocab() == load_processor(str(tiny_checkpoint)).tokenizer.get_vocab()
    assert f"the tokenizer of {tiny_checkpoint}" in capsys.readouterr().err
    assert (
        load_generation_config(str(folder)).to_diff_dict()
        == load_generation_config(str(tiny_checkpoint)).to_diff_dict()
    )


def test_a_missing_tokenizer_is_in_the_hubs_cache_under_the_base_of_its_sizes(
    folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(folder, *TOKENIZER)
    asked = []

    def cached(name: str, file: str) -> str | None:
        asked.append(name)
        return str(tiny_checkpoint / file) if name == "openai/whisper-small" else None

    monkeypatch.setattr(complete, "cached_file", cached)
    monkeypatch.setattr(complete, "load_tokenizer", lambda place: WhisperTokenizer.from_pretrained(tiny_checkpoint))
    sizes = {"d_model": 768, "encoder_layers": 12, "decoder_layers": 12, "vocab_size": 51_865}
    config = json.loads((folder / "config.json").read_text())
    assert complete.published_base(config | sizes) == "openai/whisper-small"
    edit(folder / "config.json", **sizes)
    complete.add_missing(folder, folder)
    assert asked[0] == "openai/whisper-small" and (folder / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("sizes", "base"),
    [
        ((512, 6, 6, 51_865, 80), "openai/whisper-base"),
        ((768, 12, 12, 51_864, 80), "openai/whisper-small.en"),
        ((1280, 32, 32, 51_866, 128), "openai/whisper-large-v3"),
        ((1280, 32, 4, 51_866, 128), "openai/whisper-large-v3-turbo"),
        ((1280, 32, 2, 51_866, 128), "openai/whisper-large-v3"),  # distilled
        ((16, 2, 2, 1865, 80), None),
    ],
)
def test_the_base_is_told_by_its_sizes(sizes: tuple[int, ...], base: str | None) -> None:
    names = ("d_model", "encoder_layers", "decoder_layers", "vocab_size", "num_mel_bins")
    assert complete.published_base({"encoder_ffn_dim": 0, **dict(zip(names, sizes, strict=True))}) == base


def test_the_error_for_a_tokenizer_that_is_nowhere_names_files_and_base(folder: Path) -> None:
    without(folder, *TOKENIZER)
    edit(folder / "config.json", _name_or_path="openai/whisper-small")
    assert load_config(str(folder)).d_model == 16
    generation = (folder / "generation_config.json").read_text()
    assert load_generation_config(str(folder)).lang_to_id == json.loads(generation)["lang_to_id"]
    without(folder, "generation_config.json")
    for load_part in (load_processor, load_generation_config):
        with pytest.raises(ConfigError) as refused:
            load_part(str(folder))
        assert "whisper-mine has no tokenizer (tokenizer.json, or vocab.json and merges.txt)" in str(refused.value)
        assert "that of openai/whisper-small is neither on this machine" in str(refused.value)
        assert "huggingface.co/" not in str(refused.value)


def test_incomplete_files_of_a_tokenizer_are_replaced_and_not_written_to(folder: Path, tiny_checkpoint: Path) -> None:
    without(folder, "tokenizer.json")
    (folder / "added_tokens.json").write_text('{"<|nl|>": 5}')
    edit(folder / "config.json", _name_or_path=str(tiny_checkpoint))
    before = contents(folder)
    tokenizer = load_processor(str(folder)).tokenizer
    assert tokenizer.get_vocab() == load_processor(str(tiny_checkpoint)).tokenizer.get_vocab()
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "tokenizer.json",
            "{}",
            r"tokenizer.json or preprocessor_config.json of .*whisper-mine is no Whisper's, or is",
        ),
        ("processor_config.json", '{"feature_extractor": 3}', r"preprocessor_config.json of .*whisper-mine is no Whis"),
        ("config.json", '{"model_type": "whisper", "d_model": "a"}', r"config.json of .*whisper-mine is no Whisper's"),
        ("config.json", "{}", r"config.json of .*whisper-mine is no Whisper's"),
    ],
)
def test_a_file_of_another_kind_is_named_without_advice_for_the_hub(
    folder: Path, file: str, content: str, message: str
) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ConfigError, match=message) as refused:
        load_processor(str(folder))
    assert "huggingface.co" not in str(refused.value)


def test_a_tokenizer_in_the_files_of_older_tools_is_the_same(folder: Path) -> None:
    expected = load_processor(str(folder)).tokenizer
    expected.backend_tokenizer.model.save(str(folder))
    (folder / "added_tokens.json").write_text(json.dumps(expected.get_added_vocab()))
    without(folder, "tokenizer.json", "tokenizer_config.json")
    tokenizer = load_processor(str(folder)).tokenizer
    assert tokenizer.get_vocab() == expected.get_vocab() and tokenizer.pad_token == "<|endoftext|>"
    sentence = label_ids("dag allemaal", with_prompt(expected, "nl", "transcribe"))
    assert label_ids("dag allemaal", with_prompt(tokenizer, "nl", "transcribe")) == sentence
    without(folder, "added_tokens.json")
    with pytest.raises(ConfigError, match=r"whisper-mine.*of another Whisper|whisper-mine.*different Whispers"):
        load_processor(str(folder))


def test_languages_of_an_early_model_are_those_of_its_tokenizer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = load_generation_config(str(folder))
    generation = json.loads((folder / "generation_config.json").read_text())
    for name in ("lang_to_id", "task_to_id", "is_multilingual", "no_timestamps_token_id"):
        del generation[name]
    generation |= {"forced_decoder_ids": [[1, 300], [2, 301]], "suppress_tokens": [7]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    found = load_generation_config(str(folder)), load_generation_config(str(folder))
    assert found[0].lang_to_id == expected.lang_to_id and found[0].task_to_id == expected.task_to_id
    assert found[0].suppress_tokens == [7] and not hasattr(found[0], "forced_decoder_ids")
    assert (
        capsys.readouterr().err.count(
            "has no lang_to_id and no task_to_id and no no_timestamps_token_id in its generation_config.json"
        )
        == 1
    )
    assert language_token(model_config(folder), "nl") == "nl"
    model = whisper.load(str(folder), "fp32", CPU)
    silence = torch.full((1, 80, 3000), -1.0)
    assert model.generate(silence, language="nl", task="transcribe", max_new_tokens=2).shape[0] == 1


# ---- English-only models ----


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a tiny model of the .en kind, as OpenAI's: no lang_to_id, no task_to_id."""
    folder, tokenizer = tmp_path_factory.mktemp("checkpoints") / "whisper-tiny.en", english_tokenizer()
    model = tiny_whisper(tokenizer)
    vars(model.generation_config).update(is_multilingual=False)
    for name in ("lang_to_id", "task_to_id"):
        delattr(model.generation_config, name)
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


def test_an_english_only_model_has_english_alone(english: Path) -> None:
    assert language_tokens(str(english)) == {"en"}
    assert language_token(model_config(english), "en") == "en"
    with pytest.raises(ConfigError, match=r"data.language: .* is English-only, got 'nl'.*=openai/whisper-tiny$"):
        language_token(model_config(english), "nl")
    with pytest.raises(ConfigError, match=r"model.task: .* only transcribes, got translate"):
        language_token(model_config(english, task="translate"), "en")
    made = load_generation_config(
        str(without(Path(shutil.copytree(english, f"{english}-2")), "generation_config.json"))
    )
    assert made.is_multilingual is False and not hasattr(made, "lang_to_id")


def test_labels_of_an_english_only_model_have_no_language_and_no_task(english: Path) -> None:
    tokenizer = with_prompt(load_processor(str(english)).tokenizer, "en", "transcribe")
    ids = tokenizer.convert_ids_to_tokens(label_ids("a", tokenizer))
    assert ids == ["<|startoftranscript|>", "<|notimestamps|>", "Ġ", "a", "<|endoftext|>"]
    packed = tokenizer.convert_ids_to_tokens(window_label_ids(["a"], [(0.0, 1.0)], tokenizer))
    assert packed[:2] == ["<|startoftranscript|>", "<|0.00|>"] and packed[-2:] == ["<|1.00|>", "<|endoftext|>"]


def test_an_english_only_model_decodes_as_plain_generate_without_language_and_task(
    english: Path, tmp_path: Path
) -> None:
    model, processor = whisper.load(str(english), "fp32", CPU), load_processor(str(english))
    (tmp_path / "clip.mp3").write_bytes(tone("clip", 1.0))
    settings = DecodingOptions("en", "transcribe", 1, 12, 40, None, 8)
    (ours,) = decode_once(model, processor, [{"path": str(tmp_path / "clip.mp3"), "duration": 1.0}], settings)
    features = log_mel([audio.load(tmp_path / "clip.mp3")], processor.feature_extractor)
    plain = model.generate(features, max_new_tokens=12, **suppress_tokens(model)).tolist()[0]
    assert (ours.tokens, len(ours.tokens)) == (plain, 12)
    assert decode_long_form(model, processor, audio.load(tmp_path / "clip.mp3"), settings)
    assert whisper.detect_language(model, features) == "en"


# ---- other Whispers' parts ----


def test_the_tokenizer_of_another_whisper_is_refused(folder: Path, tmp_path: Path) -> None:
    processor = load_processor(str(folder))
    processor.tokenizer.add_tokens(["<|new|>"])
    processor.tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"tokenizer of .* is of another Whisper: its last token is \d+, that of the"):
        load_processor(str(folder))


def test_the_generation_config_of_another_whisper_is_refused(folder: Path) -> None:
    tasks = load_generation_config(str(folder)).task_to_id
    edit(folder / "generation_config.json", task_to_id={name: number + 1 for name, number in tasks.items()})
    with pytest.raises(
        ConfigError, match=r"of different Whispers: <\|transcribe\|> is \d+ in the one, \d+ in the other"
    ):
        load_processor(str(folder))
    edit(folder / "generation_config.json", task_to_id=tasks, is_multilingual=False)
    with pytest.raises(ConfigError, match=r"multilingual and its generation_config.json English-only"):
        load_processor(str(folder))


def test_a_smaller_whispers_tokenizer_beside_larger_weights_is_refused(folder: Path) -> None:
    processor, generation = load_processor(str(folder)), load_generation_config(str(folder))
    config = load_config(str(folder))
    config.vocab_size = 51_866
    with pytest.raises(ConfigError, match=r"is of another Whisper: its last token is \d+, that of the weights 51865"):
        check_same_whisper("mine", config, generation, processor.tokenizer, 80)


# ---- damaged files ----


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def written(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data) and None


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights are a pointer": (
        written("model.safetensors", POINTER), r"model.safetensors is a Git LFS pointer, .*`git lfs pull`",
    ),
    "tokenizer is a pointer": (written("tokenizer.json", POINTER), r"tokenizer.json is a Git LFS pointer"),
    "weights are cut": (cut("model.safetensors"), r"model.safetensors is cut short: [\d,]+ bytes of [\d,]+; copy or"),
    "weights are cut early": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:50]),
        r"model.safetensors is cut short: 50 bytes of [\d,]+ or more",
    ),
    "weights are a web page": (written("model.safetensors", "<!doctype html>"), r"is no safetensors file"),
    "weights are empty": (written("model.safetensors", ""), r"model.safetensors is empty"),
    "header is no header": (
        written("model.safetensors", (4).to_bytes(8, "little") + b"[[]]"), r"is no safetensors file",
    ),
    "config is cut": (cut("config.json"), r"config.json is cut short or damaged, no JSON"),
    "tokenizer is cut": (cut("tokenizer.json"), r"tokenizer.json is cut short or damaged, no JSON"),
    "tokenizer is a list": (written("tokenizer.json", "[]"), r"tokenizer.json is damaged, no JSON object"),
    "generation config is cut": (cut("generation_config.json"), r"generation_config.json is cut short or damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named_with_the_way_out(folder: Path, kind: str) -> None:
    spoil, message = DAMAGE[kind]
    spoil(folder)
    with pytest.raises(ExternalError, match=message):
        load_config(str(folder))


def test_pickled_weights_are_checked_and_never_run(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    without(folder, "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    assert whisper.load(str(folder), "fp32", CPU).config.d_model == 16
    (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:-30])
    with pytest.raises(ExternalError, match=r"pytorch_model.bin is cut short at [\d,]+ bytes"):
        resolve(str(folder))
    torch.save({**weights, "code": Path}, folder / "pytorch_model.bin")
    with pytest.raises(ExternalError, match=r"weights of .* hold more than weights"):
        whisper.load(str(folder), "fp32", CPU)


def test_shards_load_and_missing_ones_are_named(folder: Path) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(folder).half()
    without(folder, "model.safetensors")
    model.save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(file.name for file in folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and whisper.load(str(folder), "fp32", CPU).dtype is torch.float32
    index = (folder / "model.safetensors.index.json").read_text()
    without(folder, "model.safetensors.index.json")
    with pytest.raises(ExternalError, match=r"lacks model.safetensors.index.json, which says what is in model-00001"):
        resolve(str(folder))
    (folder / "model.safetensors.index.json").write_text(index)
    without(folder, shards[-1])
    with pytest.raises(ExternalError, match=rf"lacks {shards[-1]}, which model.safetensors.index.json names"):
        resolve(str(folder))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(ExternalError, match=r"index.json names no files"):
        resolve(str(folder))


def test_weights_that_are_not_a_whole_whisper_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    part = {name: each for name, each in weights.items() if "decoder.layers.1" not in name}
    save_file(part, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExternalError, match=r"not a whole Whisper, \d+ tensors are missing \(model.decoder.layers.1"):
        whisper.load(str(folder), "fp32", CPU)


# ---- other kinds of folder ----


@pytest.mark.parametrize("named", ["adapter", "run"])
def test_an_adapter_names_its_base_and_how_to_use_it(tmp_path: Path, named: str) -> None:
    adapter = tmp_path / "train" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "openai/whisper-small"}')
    (adapter / "adapter_model.safetensors").touch()
    with pytest.raises(ConfigError) as refused:
        resolve(str(tmp_path if named == "run" else adapter))
    assert f"{adapter} is an adapter, not a model; name its base, model.checkpoint=openai/whisper-small" in str(
        refused.value
    )
    assert f"'adapters={{<language>: {adapter}}}'" in str(refused.value)


@pytest.mark.parametrize(("name", "framework"), [("flax_model.msgpack", "Flax"), ("tf_model.h5", "TensorFlow")])
def test_weights_of_another_framework_are_refused_with_the_way_out(folder: Path, name: str, framework: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ConfigError, match=rf"weights of {framework} alone \({name}\); download model.safetensors"):
        resolve(str(folder))


def test_a_folder_of_checkpoints_names_the_last_of_them(folder: Path, tmp_path: Path) -> None:
    for step in (100, 1000, 900):
        shutil.copytree(folder, tmp_path / "output" / f"checkpoint-{step}")
    with pytest.raises(ConfigError, match=r"output holds checkpoint-100, checkpoint-1000, .*output/checkpoint-1000$"):
        resolve(str(tmp_path / "output"))


def test_a_file_of_a_folder_names_the_folder(folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"model.safetensors is a file; name model.checkpoint={folder}$"):
        resolve(str(folder / "model.safetensors"))


def test_a_folder_without_config_json_or_weights_says_which(folder: Path) -> None:
    config = (folder / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=r"no model in .* \(no config.json\)"):
        resolve(str(without(folder, "config.json")))
    (folder / "config.json").write_bytes(config)
    with pytest.raises(ConfigError, match=r"no model in .* \(no weights\)"):
        resolve(str(without(folder, "model.safetensors")))
    assert not checkpoint_files.holds_model(folder)
