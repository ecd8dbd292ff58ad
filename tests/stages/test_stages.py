"""prepare, train and eval from overrides to files: a random tiny Whisper learns a tiny release."""

import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jiwer
import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from support.models import tiny_tokenizer, tiny_whisper
from support.releases import utterances, write_release
from transformers import WhisperFeatureExtractor, WhisperProcessor

from asr_lora.config.compose import load, quote_override
from asr_lora.eval import evaluate
from asr_lora.model.pretrained import fingerprint
from asr_lora.runs.folder import recorded_config, settings
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.train import train
from asr_lora.training.validation import DevEvaluator, DevResult

TRAINED = (
    "trainable_parameters adapter_bytes steps clips_seen audio_seconds_seen train_seconds dev_seconds total_seconds "
    "seconds_per_step clips_per_second data_wait_fraction padding_fraction peak_memory_bytes device precision context "
    "versions"
).split()
SCORED = (
    "clips audio_seconds seconds load_seconds rtfx normalizer wer wer_ci95 ci_unit cer wer_raw words hits "
    "substitutions deletions insertions empty_references"
).split()


def modified(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_run_writes_the_contract_and_the_same_overrides_find_it_complete(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(words)
    train(config)
    run = config.run
    lines = read_jsonl(run / "eval" / "test" / "hypotheses.jsonl")
    trained, scored = read_json(run / "train" / "metrics.json"), read_json(run / "eval" / "test" / "metrics.json")
    assert set(TRAINED) <= set(trained)
    assert set(SCORED) <= set(scored) and set(SCORED) <= set(scored["baseline"])
    assert set(scored["delta"]) >= {"wer", "ci95", "paired"}
    assert (trained["steps"], trained["clips_seen"]) == (2, 8)
    assert trained["padding_fraction"] < 0.9 and trained["context"] == "windows"
    assert scored["clips"] == len(lines) == 4
    assert [line["loss"] for line in read_jsonl(run / "train" / "log.jsonl") if "loss" in line]
    assert list((run / "train" / "tensorboard").iterdir())
    assert (run.parent / "last").read_text().strip() == str(run.resolve())
    assert "fine-tuned" in capsys.readouterr().out

    # WER recomputed from the file by jiwer equals ours to the last digit.
    again = jiwer.wer(
        [line["reference_normalized"] for line in lines], [line["hypothesis_normalized"] for line in lines]
    )
    assert again == scored["wer"]

    before = modified(run)
    train(config)
    evaluate(config)
    assert modified(run) == before
    with pytest.raises(ConfigError, match=r"lora\.r=4, not 8; .*run_name=.*remove"):
        train(load([*words, "lora.r=8", f"run_dir={run}"]))
    assert modified(run) == before


def test_an_adapter_that_learned_nothing_changes_no_hypothesis(words: list[str]) -> None:
    config = load([*words, "training.learning_rate=1e-30", "training.max_steps=1"])
    train(config)
    lines = read_jsonl(config.run / "eval" / "test" / "hypotheses.jsonl")
    assert [line["hypothesis"] for line in lines] == [line["baseline_hypothesis"] for line in lines]
    assert read_json(config.run / "eval" / "test" / "metrics.json")["delta"]["wer"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_quantized_base_trains_and_is_scored_unquantized(words: list[str], tmp_path: Path, precision: str) -> None:
    # On a CPU with AVX512-BF16 bitsandbytes decodes 4 bits in blocks of 32 by 64, which fit all real Whispers.
    tokenizer, checkpoint = tiny_tokenizer(), tmp_path / "whisper-of-64"
    tiny_whisper(tokenizer, d_model=64, encoder_ffn_dim=64, decoder_ffn_dim=64).save_pretrained(checkpoint)
    WhisperProcessor(feature_extractor=WhisperFeatureExtractor(), tokenizer=tokenizer).save_pretrained(checkpoint)
    # Dev is also decoded before the last step: a model that was packed to decode must continue training.
    config = load([*words, f"model.checkpoint={checkpoint}", f"model.precision={precision}", "training.eval_steps=1"])
    train(config)
    assert read_json(config.run / "train" / "metrics.json")["precision"] == precision
    assert read_json(config.run / "eval" / "test" / "metrics.json")["precision"] == "fp32"


def test_a_locale_without_a_token_trains_and_is_scored_under_a_related_one(words: list[str], tmp_path: Path) -> None:
    write_release(tmp_path / "frisian", language="fy-NL")
    frisian = [*words, f"data.source={tmp_path / 'frisian'}", "data.language=fy-NL"]
    with pytest.raises(ConfigError, match=r"model\.language=nl"):
        train(load(frisian))
    config = load([*frisian, "model.language=nl"])
    train(config)
    assert config.run_name.startswith("fy-NL-")
    assert (config.run / "eval" / "test" / "metrics.json").is_file()


@pytest.mark.slow
def test_scoring_with_other_settings_is_done_again_and_recorded(words: list[str]) -> None:
    train(load([*words, "eval.after=false"]))
    few = evaluate(load([*words, "eval.limit=2"]))
    assert (few["clips"], few["limit"], few["normalizer"]) == (2, 2, "marks")
    every = evaluate(load([*words, "eval.limit=null", "eval.normalizer=basic"]))
    assert (every["clips"], every["limit"], every["normalizer"]) == (6, None, "basic")
    dev = evaluate(load([*words, "eval.split=dev"]))
    assert dev["clips"] == 4  # all of dev, though the manifest drew two for training


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("asr_lora.evaluation.eval_sets.decode_clips", never)


def test_another_normalizer_decodes_nothing_again(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    train(load(words))
    forbid_decoding(monkeypatch)
    again = evaluate(load([*words, "eval.normalizer=raw"]))
    assert again["normalizer"] == "raw" and again["cached"] and again["baseline"]["cached"]


@pytest.mark.slow
def test_a_sweep_decodes_the_base_model_once(words: list[str]) -> None:
    facts = []
    for rank in (2, 4):
        config = load([*words, f"lora.r={rank}"])
        train(config)
        facts.append(read_json(config.run / "eval" / "test" / "metrics.json"))
    assert [fact["baseline"]["cached"] for fact in facts] == [False, True]
    assert [fact["cached"] for fact in facts] == [False, False]
    assert facts[0]["baseline"]["wer"] == facts[1]["baseline"]["wer"]


def test_cached_hypotheses_are_not_used_for_other_clips_or_decoding_settings(words: list[str]) -> None:
    config = load([*words, "training.max_steps=1"])
    train(config)
    for change in ("decoding.max_new_tokens=7", "eval.limit=3", "decoding.num_beams=2"):
        other = evaluate(recorded_config(config.run, load([change, "hardware=cpu"]), [change]))
        assert not other["cached"] and not other["baseline"]["cached"], change


def test_an_adapter_that_is_scaled_by_its_configuration_is_decoded_again(words: list[str]) -> None:
    config = load(words)
    train(config)
    settings = config.run / "train" / "adapter" / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"lora_alpha": 8.0', '"lora_alpha": 4.0'))
    assert not evaluate(config)["cached"]


@pytest.mark.slow
def test_only_a_fine_tuned_model_that_knows_short_contexts_is_decoded_at_one(words: list[str]) -> None:
    scored = {}
    for context in ("dynamic", "full", "windows"):
        config = load([*words, f"training.context={context}", "training.window_share=1"])
        train(config)
        scored[context] = read_json(config.run / "eval" / "test" / "metrics.json")
    assert {kind: facts["context"] for kind, facts in scored.items()} == {
        "dynamic": "short", "full": "full", "windows": "short",
    }  # fmt: skip
    assert all(facts["baseline"]["context"] == "full" for facts in scored.values())
    full = evaluate(
        recorded_config(config.run, load(["decoding.context=full", "hardware=cpu"]), ["decoding.context=full"])
    )
    assert full["context"] == "full"


def test_a_run_of_another_version_is_refused_in_one_line(words: list[str]) -> None:
    config = load([*words, "eval.after=false"])
    train(config)
    settings = config.run / "train" / "config.yaml"
    settings.write_text(settings.read_text().replace("  context_margin: 1.0\n", ""))
    with pytest.raises(ConfigError, match=r"another version of asr_lora.*context_margin"):
        recorded_config(config.run, load(["hardware=cpu"]), [])


def test_a_run_without_an_adapter_cannot_be_scored(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="no adapter"):
        evaluate(load(words))


def test_an_unknown_checkpoint_without_network_names_the_setting_of_a_local_one(words: list[str]) -> None:
    config = load([*words, "model.checkpoint=openai/whisper-nonesuch"])
    with pytest.raises(ExternalError, match=r"model\.checkpoint=/path/to/whisper"):
        train(config)
    assert not config.run.exists()


@pytest.mark.parametrize("worse", [True, False])
def test_an_earlier_adapter_is_kept_only_if_the_last_is_significantly_worse_on_dev(
    words: list[str], monkeypatch: pytest.MonkeyPatch, worse: bool
) -> None:
    decoded = iter([DevResult(0.5, None), DevResult(0.7, None, worse=worse)])
    weights = []

    def judged(dev: DevEvaluator, model: Any, lowest: Sequence[int]) -> DevResult:
        weights.append(
            {
                name: weight.clone()
                for name, weight in get_peft_model_state_dict(model, save_embedding_layers=False).items()
            }
        )
        return next(decoded)

    monkeypatch.setattr(DevEvaluator, "evaluate", judged)
    config = load(
        [*words, "training.eval_steps=1", "training.dev_share=1", "training.save_steps=1", "eval.after=false"]
    )
    train(config)
    kept = load_file(config.run / "train" / "adapter" / "adapter_model.safetensors")
    best, other = weights if worse else reversed(weights)
    assert all(torch.equal(kept[name], weight) for name, weight in best.items())
    assert not all(torch.equal(kept[name], weight) for name, weight in other.items())


def test_more_new_tokens_than_the_checkpoint_has_positions_are_refused_at_once(words: list[str]) -> None:
    config = load([*words, "decoding.max_new_tokens=61"])
    with pytest.raises(ConfigError, match=r"decoding\.max_new_tokens: must be at most 60"):
        train(config)
    assert not config.run.exists()


def test_translation_is_refused_for_training_and_scoring_before_anything_is_done(words: list[str]) -> None:
    config = load([*words, "model.task=translate"])
    for stage in (train, evaluate):
        with pytest.raises(ConfigError, match=r"model\.task: must be transcribe to train and to score, got translate"):
            stage(config)
    assert not config.run.exists()


def test_a_split_without_usable_clips_is_refused(words: list[str], tmp_path: Path) -> None:
    dev = [{**utterances("dev", 1, 1)[0], "clip": b"no mp3"}]
    splits = {"train": utterances("train", 60, 6), "dev": dev, "test": utterances("test", 6, 3)}
    write_release(tmp_path / "broken", splits=splits)
    with pytest.raises(ConfigError, match="no usable clip of dev"):
        train(load([*words, f"data.source={tmp_path / 'broken'}"]))


def test_a_run_from_a_path_that_looks_like_an_interpolation_is_scored_again(words: list[str], tmp_path: Path) -> None:
    odd = tmp_path / "a ${b}"
    write_release(odd)
    config = load([*words, f"data.source={quote_override(str(odd))}", "eval.after=false"])
    train(config)
    recorded = recorded_config(config.run, load(["hardware=cpu", "eval.limit=2"]), ["eval.limit=2"])
    assert recorded.data.source == str(odd)
    assert evaluate(recorded)["clips"] == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 kB: a tiny run's manifest fits, its first checkpoint does not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("a full disk needs the right to mount a tmpfs: run this test as root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_an_error_and_the_same_overrides_finish_when_there_is_room(
    words: list[str], small_disk: Path
) -> None:
    more = [*words, "lora.r=32", f"runs_dir={small_disk}", "eval.after=false"]
    config = load(more)
    with pytest.raises((ExternalError, OSError), match=r"(?i)no space|cannot write"):
        train(config)
    assert not (config.run / "train" / "metrics.json").exists()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    train(config)
    assert (config.run / "train" / "metrics.json").is_file()


MEMORY_MAY_GROW = 40e6  # bytes from the second job of six to the last; a job holds some 150e6 while it runs


@pytest.mark.slow
def test_a_sweep_ends_in_one_table_and_page_and_its_jobs_leak_no_memory(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "asr_lora.train", "-m", *words, "lora.r=2,4", "seed=0,1,2", "eval.limit=3"]
    first = subprocess.run(command, check=True, cwd=tmp_path, timeout=500, capture_output=True, text=True)
    runs = sorted((tmp_path / "runs").glob("nl-all-random-qv-r*"))
    scored = [read_json(folder / "eval" / "test" / "metrics.json") for folder in runs]
    assert sum(not facts["baseline"]["cached"] for facts in scored) == 1 and len(runs) == 6
    for rank in (2, 4):
        wers = [facts["wer"] for folder, facts in zip(runs, scored, strict=True) if f"-r{rank}-" in folder.name]
        page = (tmp_path / "runs" / "comparison" / "index.html").read_text()
        assert len(wers) == 3 and f"{statistics.fmean(wers):.1%}" in page
        assert f"sd {statistics.stdev(wers) * 100:.1f} points, 3 seeds" in page
    shown = " ".join(first.stdout.split())  # a name as wide as the terminal has a line of its own
    assert "spread" in shown and "2: nl-all-random-qv-r4-s0" in shown
    assert "comparison of 6 runs: " in first.stderr
    (ledger,) = (tmp_path / "runs" / ".hydra").glob("2*")
    held = [read_json(ledger / f"{number}.json")["resident_bytes"] for number in range(6)]
    assert held[5] - held[1] < MEMORY_MAY_GROW, held

    before = modified(runs[0])
    shutil.rmtree(runs[5])
    again = subprocess.run(command, check=True, cwd=tmp_path, timeout=500, capture_output=True, text=True)
    assert again.stderr.count("already trained") == again.stderr.count("already evaluated") == 5
    assert modified(runs[0]) == before and runs[5].is_dir()
    assert read_json(runs[5] / "eval" / "test" / "metrics.json")["wer"] == scored[5]["wer"]


@pytest.mark.slow
def test_rank_and_learning_rate_are_swept_together_and_overrides_replace_the_file(tmp_path: Path) -> None:
    script = (
        "from asr_lora.runs.launch import launch\n"
        "launch(lambda config: print(config.lora.r, config.training.learning_rate))\n"
    )
    command = [sys.executable, "-c", script, "experiment=sweep_rank_lr"]
    outputs = [
        subprocess.run([*command, *more], check=True, cwd=tmp_path, capture_output=True, text=True).stdout.splitlines()
        for more in ([], ["lora.r=4,8", "training.learning_rate=1e-3"])
    ]
    assert len(outputs[0]) == len(set(outputs[0])) == 12 and "32 0.003" in outputs[0]
    assert outputs[1] == ["4 0.001", "8 0.001"]


@pytest.mark.slow
def test_loader_processes_change_no_loss(words: list[str]) -> None:
    losses = []
    for workers in (0, 2):
        config = load([*words, f"hardware.workers={workers}", f"run_name=workers{workers}", "eval.after=false"])
        train(config)
        log = read_jsonl(config.run / "train" / "log.jsonl")
        losses.append([line["loss"] for line in log if "loss" in line])
    assert losses[0] == losses[1]


# ---- the base is pinned ----


def hub(home: Path, commits: Sequence[tuple[str, Path]]) -> Path:
    """Makes a cache in the Hub's layout, whose main is the last commit of owner/whisper-random."""
    model = home / "models--owner--whisper-random"
    for commit, folder in commits:
        shutil.copytree(folder, model / "snapshots" / commit, dirs_exist_ok=True)
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / "main").write_text(commit)
    return model


def another(checkpoint: Path, folder: Path) -> Path:
    """Copies a model with other weights."""
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor * 0.9 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.slow
def test_a_run_stays_at_the_hub_commit_that_it_began_with(
    words: list[str], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, first, second = tmp_path / "hub", "1" * 40, "2" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    hub(cache, [(first, tiny_checkpoint)])
    config = load([*words, "model.checkpoint=owner/whisper-random"])
    train(config)
    assert settings(config.run)["base"] == f"owner/whisper-random@{first}"
    recorded = read_json(config.run / "train" / "adapter" / "adapter_config.json")
    assert (recorded["base_model_name_or_path"], recorded["revision"]) == ("owner/whisper-random", first)
    before = read_json(config.run / "eval" / "test" / "metrics.json")

    hub(cache, [(second, another(tiny_checkpoint, tmp_path / "other"))])  # a newer commit
    assert fingerprint("owner/whisper-random").endswith(second)
    shutil.rmtree(config.run / "eval")
    again = evaluate(config)
    assert again["cached"] and again["baseline"]["cached"] and again["wer"] == before["wer"]


def test_a_run_whose_base_has_been_replaced_is_refused(words: list[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = tmp_path / "whisper-mine"
    shutil.copytree(tiny_checkpoint, base)
    config = load([*words, f"model.checkpoint={base}", "eval.after=false"])
    train(config)
    shutil.rmtree(base)
    another(tiny_checkpoint, base)
    with pytest.raises(ConfigError, match=r"model\.checkpoint: .* does not have the files .* \(run_name="):
        evaluate(config)
