"""The doctor: passes a healthy run, finds every problem, writes and downloads nothing."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.releases import pack, utterances, write_release
from support.runs import hardware_of
from transformers import WhisperFeatureExtractor, WhisperProcessor

from asr_lora.config.compose import load
from asr_lora.config.schema import LORA_KEYS
from asr_lora.data.dataset import StepDataset
from asr_lora.data.features import Example, SpeechCollator, collate, label_ids
from asr_lora.doctor import data, machine
from asr_lora.doctor.__main__ import doctor, examine, main
from asr_lora.doctor.check import Check, check_versions, is_pair
from asr_lora.model import adapter, adapter_folder, hardware, probes
from asr_lora.model.pretrained import load_config, load_processor
from asr_lora.model.probes import Base
from asr_lora.prepare import prepare
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import read_jsonl
from asr_lora.train import train
from asr_lora.training.builder import step_sampler

CPU = torch.device("cpu")


def examined(overrides: Sequence[str], scratch: Path) -> dict[str, Check]:
    """Returns all checks of a run by name."""
    return {check.name: check for check in examine(load(overrides), scratch, Check("versions", "ok", "")).checks}


def verdicts(checks: dict[str, Check], verdict: str) -> set[str]:
    return {name for name, check in checks.items() if check.verdict == verdict}


def commanded(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asr_lora.doctor", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


# ---- the command ----


def test_a_healthy_run_passes_and_nothing_is_written(
    words: list[str], tmp_path: Path, private_cache: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # which launch would set for good
    monkeypatch.setattr(sys, "argv", ["doctor", *words, "--json"])
    main()
    result = json.loads(capsys.readouterr().out)
    assert {each["verdict"] for each in result["checks"]} == {"ok"}, result
    assert result["ok"] == len(result["checks"]) == 16 and (result["warn"], result["fail"]) == (0, 0)
    assert {"name", "verdict", "found", "way_out"} == result["checks"][0].keys()
    assert len(result["clips"]) == 10 and result["clips"][0].keys() >= {"clip", "seconds", "rate", "level", "text"}
    assert all(clip["seconds"] > 0 and clip["rate"] > 0 and clip["level"] < 0 for clip in result["clips"])
    assert not (tmp_path / "runs").exists() and not private_cache.exists()


def test_failures_are_printed_with_their_way_out(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(ExternalError, match="doctor: data failed"):
        doctor(load([*words, f"data.source={tmp_path}/nowhere"]), Check("versions", "ok", ""))
    screen = capsys.readouterr().out
    assert f"data.source: no file or folder {tmp_path}/nowhere\n" in screen.replace("  ", "").replace(" \n", "\n")
    assert "-> name one that is there" in screen
    assert " 1 failed, in " in screen


def test_a_failure_is_an_exit_status_and_json_alone_on_standard_output(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # which launch would set for good
    monkeypatch.setattr(sys, "argv", ["doctor", "--json", *words, "hardware.memory_gb=0.001"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    (failed,) = (each for each in json.loads(out)["checks"] if each["verdict"] == "fail")
    assert failed["name"] == "memory" and failed["found"].startswith("does not fit: ") and failed["way_out"]
    assert err.strip().splitlines()[-1] == "error: doctor: memory failed; the way out is beside each"


def test_a_torchaudio_of_another_torch_is_reported_before_anything_imports_it(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('undefined symbol: _ZN5torch')")
    facts = tmp_path / "torchaudio-2.9.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torchaudio\nVersion: 2.9.0\n")
    done = commanded(*words, "--json", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert done.returncode == 1, done.stderr
    (only,) = json.loads(done.stdout)["checks"]
    assert only["found"].startswith("torchaudio 2.9.0 is not made for torch 2.11.0") and "uv sync" in only["way_out"]
    assert "Traceback" not in done.stderr


def test_a_pair_is_of_one_release_and_one_build() -> None:
    assert is_pair("2.11.0", "2.11.0+cu130") and is_pair("2.11.1+cpu", "2.11.1+cpu")
    assert not is_pair("2.11.0+cpu", "2.11.0+cu130") and not is_pair("2.11.0", "2.11.1")
    assert check_versions().verdict == "ok"


def test_a_small_shared_memory_is_a_warning_with_its_way_out(
    words: list[str], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hardware, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    monkeypatch.setattr(hardware, "SHARED_MEMORY", tmp_path)
    check, _ = machine.device(load([*words, "hardware.workers=2"]), load_config(str(tiny_checkpoint)))
    assert check.verdict == "warn"
    assert "2 loader processes pass up to" in check.found and "1.0 MB free, so none are used" in check.found
    assert check.way_out.startswith("give the container more, docker run --shm-size=2g")


# ---- the data ----


def test_an_archive_is_inspected_and_nothing_of_it_is_cached(
    words: list[str], release: Path, tmp_path: Path, private_cache: Path
) -> None:
    archive = pack(release, tmp_path / "cv-corpus-25.0-nl.tar.gz")
    found = examined([*words, f"data.source={archive}"], tmp_path / "scratch")
    assert not verdicts(found, "fail") and not verdicts(found, "warn")
    assert found["data"].found == f"{archive}, 12 clips; 12 decoded"
    assert found["hours"].found.endswith(f"clips: {archive}, 12 clips")
    assert not private_cache.exists()


def test_only_the_beginning_of_a_large_archive_is_read(
    words: list[str], release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MOST_READ", 5_000)
    last = pack(release, tmp_path / "last.tar.gz", order="last")
    found = examined([*words, f"data.source={last}"], tmp_path / "one")
    assert found["data"].verdict == "warn" and "beyond its beginning" in found["data"].found
    assert {"data", "labels", "batch"} <= verdicts(found, "warn") and not verdicts(found, "fail")
    assert "on noise" in found["gradients"].found
    prepare(load([*words, f"data.source={last}", "run_name=before"]))  # which caches its tables
    assert examined([*words, f"data.source={last}"], tmp_path / "two")["batch"].verdict == "ok"


def test_a_prepared_run_is_inspected_by_its_manifest(words: list[str], tmp_path: Path) -> None:
    prepare(load(words))
    assert examined(words, tmp_path / "scratch")["data"].found == "the manifest, 12 clips; 12 decoded"


def test_a_missing_corpus_and_a_wrong_language_fail_as_preparing_would(
    words: list[str], release: Path, tmp_path: Path
) -> None:
    nowhere = examined(
        [*(word for word in words if "data.source" not in word), f"data.search_dir={tmp_path / 'none'}"], tmp_path
    )
    assert verdicts(nowhere, "fail") == {"data"} and "make demo" in nowhere["data"].way_out
    assert nowhere["labels"].found == nowhere["memory"].found == "skipped: needs data"
    archive = pack(release, tmp_path / "nl.tar.gz")
    other = examined([*words, f"data.source={archive}", "data.language=sv-SE"], tmp_path / "scratch")["data"]
    assert other.found == f"data.language: {archive} holds nl, not sv-SE" and "data.language=nl" in other.way_out


def test_a_remote_corpus_is_not_downloaded(words: list[str], tmp_path: Path) -> None:
    found = examined([*words, "data.source=mdc:cv-nl"], tmp_path)
    assert (found["data"].verdict, found["data"].found) == (
        "warn", "skipped: mdc:cv-nl is downloaded when it is prepared",
    )  # fmt: skip


def test_more_hours_than_there_are_fail(words: list[str], tmp_path: Path) -> None:
    found = examined([*words, "data.hours=5"], tmp_path)
    assert found["data"].found.startswith("data.hours: 5 is more than there is")


def test_unusable_clips_and_overlong_labels_are_counted(words: list[str], tmp_path: Path) -> None:
    train = utterances("train", 40, 20)
    train[3]["sentence"] = "ja " * 60  # the tiny model's limit is 64 tokens, each a byte
    train[4]["clip"] = b"no sound"
    release = tmp_path / "cv-corpus-1.0"
    write_release(release, splits={"train": train, "dev": utterances("dev", 4, 2), "test": utterances("test", 4, 2)})
    found = examined([*words, f"data.source={release}"], tmp_path / "scratch")
    assert found["labels"].verdict == "warn"
    assert found["labels"].found == "1 of 40 would be dropped: 1 label longer than 64 tokens"
    assert found["batch"].verdict == "ok"
    few = [*train[:6], train[4] | {"path": "common_voice_other.mp3"}]
    write_release(tmp_path / "cv-corpus-2.0", splits={"train": few, "dev": train[10:14], "test": train[20:24]})
    bad = examined([*words, f"data.source={tmp_path / 'cv-corpus-2.0'}"], tmp_path / "other")["data"]
    assert bad.verdict == "fail" and "unusable: 2 " in bad.found and "5%" in bad.way_out


# ---- labels ----


def test_a_locale_without_a_token_fails_and_names_a_related_one(words: list[str], tmp_path: Path) -> None:
    release = tmp_path / "cv-corpus-fy"
    write_release(release, "fy-NL")
    mine = [*words, f"data.source={release}", "data.language=fy-NL"]
    found = examined(mine, tmp_path / "one")
    assert verdicts(found, "fail") == {"language"} and "model.language=nl" in found["language"].way_out
    assert found["batch"].found == "skipped: needs language"
    passed = examined([*mine, "model.language=nl"], tmp_path / "two")
    assert not verdicts(passed, "fail") and passed["language"].found == "fy-NL -> <|nl|>, task transcribe"


@pytest.mark.parametrize(
    ("spoil", "trouble"),
    [
        (lambda ids: [ids[0], *ids], "start token is doubled"),
        (lambda ids: ids[1:], "not with the start token"),
        (lambda ids: ids[:-1], "would never stop"),
        (lambda ids: [ids[0], ids[1] + 1, *ids[2:]], "language and task are"),
    ],
)
def test_wrong_labels_are_reported(spoil: Any, trouble: str, processor: WhisperProcessor) -> None:
    ids = label_ids("dit is een zin", processor.tokenizer)
    silence = torch.zeros(16_000).numpy()
    prompt, end = ids[:3], processor.tokenizer.eos_token_id
    right = collate([Example(silence, ids), Example(silence, ids[:4] + ids[-1:])], processor, 1.0)
    assert data.troubles(right, prompt, end, len(processor.tokenizer)) == []
    wrong = collate([Example(silence, spoil(ids)), Example(silence, ids)], processor, 1.0)
    (reported,) = data.troubles(wrong, prompt, end, len(processor.tokenizer))
    assert trouble in reported


def test_windows_with_the_text_before_them_as_prompt_are_right(words: list[str], tmp_path: Path) -> None:
    windows = ["experiment=long_form", "training.window_prompts=1", "training.window_single=0"]
    found = examined([*words, *windows], tmp_path / "scratch")
    assert not verdicts(found, "fail") and found["batch"].verdict == "ok"


# ---- the checkpoint ----


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_or_a_cut_download_in_place_of_a_file_fails(
    name: str, words: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    spoilt = tmp_path / "whisper-spoilt"
    shutil.copytree(tiny_checkpoint, spoilt)
    (spoilt / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1a2b\nsize 290403936\n")
    found = examined([*words, f"model.checkpoint={spoilt}"], tmp_path / "one")["checkpoint"]
    assert found.verdict == "fail" and f"{name} is a Git LFS pointer" in found.found and "git lfs pull" in found.way_out
    (spoilt / name).write_bytes((tiny_checkpoint / name).read_bytes()[:-9])
    found = examined([*words, f"model.checkpoint={spoilt}"], tmp_path / "two")["checkpoint"]
    assert found.verdict == "fail" and f"{name} is cut short" in found.found and "download it again" in found.way_out


def test_tokens_of_another_whisper_fail_and_training_refuses_them_before_it_starts(
    words: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "whisper-other"
    shutil.copytree(tiny_checkpoint, other)
    generation = json.loads((other / "generation_config.json").read_text())
    generation["task_to_id"] = {name: number + 1 for name, number in generation["task_to_id"].items()}
    (other / "generation_config.json").write_text(json.dumps(generation))
    mine = [*words, f"model.checkpoint={other}"]
    found = examined(mine, tmp_path / "scratch")
    assert {"mel bins", "labels", "batch"} <= verdicts(found, "fail")
    assert "are of different Whispers: <|transcribe|> is" in found["labels"].found
    assert "the checkpoint's own base model" in found["labels"].way_out
    with pytest.raises(ConfigError, match=r"are of different Whispers: <\|transcribe\|> is"):
        train(load(mine))
    assert not (load(mine).run / "train").exists()


# ---- training ----


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_side_that_is_left_out_on_purpose_is_explained(kind: str, words: list[str], tmp_path: Path) -> None:
    found = examined([*words, f"lora={kind}", "lora.r=4"], tmp_path)["gradients"]
    assert found.verdict == "ok" and f"lora={kind} trains that side alone" in found.found


def test_an_adapter_without_gradient_fails(words: list[str], tmp_path: Path) -> None:
    config = load(words)
    prepare(config)
    rows = read_jsonl(run.manifest(config.run, "train"))
    base = Base(config.model.checkpoint, "fp32", CPU, None)
    model = probes.tuned(base, config.lora, 0, 2, gradient_checkpointing=False)
    # As with a frozen front and reentrant checkpointing: the output of the encoder has no graph.
    model.get_base_model().model.encoder.register_forward_hook(lambda module, given, made: made.__class__(
        {name: value.detach() for name, value in made.items()}
    ))  # fmt: skip
    (batch, *_) = StepDataset(
        rows, step_sampler(config, rows), 1, SpeechCollator(load_processor(config.model.checkpoint))
    )[0]
    probes.back_propagate(model, base, batch)
    arrived = probes.gradients(model)
    assert arrived == {"encoder": (0, 4), "decoder": (8, 8)}
    check = machine.judged("qv", arrived, "")
    assert check.verdict == "fail" and check.found.startswith("none in the encoder")
    assert machine.judged("decoder", arrived, "").verdict == "ok"


@pytest.mark.parametrize("kind", ["dora", "pissa", "adalora", "ia3", "bitfit", "full", "lora_plus"])
def test_every_tuning_method_has_gradients_and_reloads(kind: str, words: list[str], tmp_path: Path) -> None:
    mine = [word for word in words if word != "lora.r=4" or "r" in LORA_KEYS[kind]]
    config = load([*mine, f"lora={kind}", "training.max_steps=10"])
    known = load_config(config.model.checkpoint)
    gradients, trial = machine.gradients(config, known, hardware_of(config), None, tmp_path)
    assert gradients.verdict == "ok" and trial is not None, gradients
    back, _ = machine.reloaded(config, trial, tmp_path)
    assert back.verdict == "ok", back


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_quantized_base_multiplies_back_propagates_and_reloads(
    precision: str, words: list[str], tmp_path: Path
) -> None:
    mine = [*words, f"model.precision={precision}", "model.checkpoint=openai/whisper-tiny", "lora.r=65"]
    found = examined(mine, tmp_path)  # wider than one block
    assert {found[name].verdict for name in ("bitsandbytes", "gradients", "save, reload")} == {"ok"}, found
    assert "a small random model" in found["gradients"].found
    assert found["device"].verdict == "warn" and "slowly" in found["device"].way_out


def test_a_reload_that_loses_weights_fails(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = adapter.save

    def half(model: Any, folder: Path, base: str, context: str) -> None:
        save(model, folder, base, context)
        weights = load_file(adapter_folder.weights_file(folder))
        save_file({name: weight / 2 for name, weight in weights.items()}, adapter_folder.weights_file(folder))

    monkeypatch.setattr(adapter, "save", half)
    found = examined(words, tmp_path)
    assert verdicts(found, "fail") == {"save, reload"} and "peft" in found["save, reload"].way_out


def test_features_of_another_whisper_fail(words: list[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "whisper-of-128"
    shutil.copytree(tiny_checkpoint, other)
    processor = WhisperProcessor.from_pretrained(other)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=128), processor.tokenizer).save_pretrained(other)
    check = examined([*words, f"model.checkpoint={other}"], tmp_path)["mel bins"]
    assert check.verdict == "fail" and "have 128 mel bins, the model expects 80" in check.found


def test_a_full_disk_fails_and_names_the_other_disks(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(words)
    prediction = machine.predicted(config, None)
    monkeypatch.setattr(machine, "disk_usage", lambda place: SimpleNamespace(free=100))
    check, _ = machine.disk(config, prediction)
    assert check.verdict == "fail" and "ASR_LORA_CACHE" in check.way_out


# ---- the Hub ----


def test_a_checkpoint_on_an_unreachable_hub_fails(words: list[str], tmp_path: Path) -> None:
    found = examined([*words, "model.checkpoint=openai/whisper-tiny"], tmp_path)
    assert verdicts(found, "fail") == {"Hub"}
    assert found["Hub"].found.startswith("needed for all of openai/whisper-tiny, and does not return it: ")
    assert "model.checkpoint=/path" in found["Hub"].way_out
    assert found["language"].found == "skipped: needs Hub"
    assert found["gradients"].verdict == found["memory"].verdict == "ok"  # its dimensions are published


@pytest.mark.parametrize(
    ("words", "verdict", "found"),
    [
        ([], "ok", "0.001"),
        (["model=whisper_small"], "ok", "auto"),
        (["model=whisper_large_v3", "training.learning_rate=1e-3"], "warn", "0.001; above 0.0005 a model of the large"),
        (["model=whisper_turbo", "training.learning_rate=1e-4"], "ok", "0.0001"),
        (["lora=full", "training.learning_rate=1e-3"], "warn", "0.001; above 0.0001 full fine-tuning"),
    ],
)
def test_a_learning_rate_that_is_known_to_fail_is_warned_of(words: list[str], verdict: str, found: str) -> None:
    config = load(words)
    check, _ = machine.learning_rate(config, machine.architecture(config.model.checkpoint))
    assert check.verdict == verdict and check.found.startswith(found)
    assert bool(check.way_out) == (verdict == "warn")
