"""Tests of the benchmark: both arms with a tiny random Whisper, measured, kept, and compared."""

import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.makefile import INSTALLED
from support.releases import write_release

from asr_lora.config.compose import load
from asr_lora.model.pretrained import load_config, load_generation_config, load_processor
from asr_lora.prepare import prepare
from asr_lora.runtime.errors import ExternalError
from asr_lora.runtime.files import read_json, write_json

ROOT = Path(__file__).parents[2]
SIZES = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}


@pytest.fixture(scope="module")
def recipes() -> Any:
    """Imports benchmark.py with the modules beside it, as when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "recipes")
        import benchmark  # noqa: PLC0415
        import pooled  # noqa: F401, PLC0415

        yield benchmark


@pytest.fixture
def asked(release: Path, tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    return [
        f"--work={tmp_path / 'work'}", f"--source={release}", f"--checkpoint={tiny_checkpoint}", "--steps=2",
        "--batch=4", "hardware=cpu", "data.dev_clips=2", "eval.limit=4", "decoding.max_new_tokens=8", "lora.r=4",
    ]  # fmt: skip


def test_the_time_to_quality_is_that_of_the_first_adapter_as_good_as_the_tutorials_last(recipes: ModuleType) -> None:
    def points(*pairs: tuple[float, float]) -> list[dict[str, float]]:
        return [{"seconds": seconds, "wer": wer} for seconds, wer in pairs]

    theirs = points((100, 0.3), (400, 0.2))
    sooner = recipes.time_to_quality.times_sooner
    assert sooner(theirs, points((10, 0.5), (20, 0.2), (40, 0.1))) == 20
    assert sooner(theirs, points((10, 0.5), (40, 0.21))) is None
    assert recipes.time_to_quality.steps_kept(120) == [30, 60, 90, 120] and recipes.time_to_quality.steps_kept(2) == [
        1,
        2,
    ]


@pytest.mark.slow
def test_both_arms_are_measured_once_and_every_figure_is_kept(
    recipes: ModuleType, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes.benchmark(recipes.parsed(asked))
    work, found = tmp_path / "work", read_json(tmp_path / "work" / "results.json")
    for arm in ("tutorial", "ours"):
        trained, scored = found[arm]["train"], found[arm]["evaluate"]
        for name in ("command_seconds", "resident_bytes", "train_seconds", "clips_per_second", "seconds_per_step"):
            assert trained[name] > 0, (arm, name)
        # The time measured outside includes the one inside.
        assert trained["command_seconds"] > trained["train_seconds"]
        assert scored["command_seconds"] >= scored["tuned_command_seconds"] > scored["seconds"] > 0
        assert trained["peak_memory_bytes"] > 0
        assert len(found[arm]["hypotheses"]) == 4
    assert found["ours"]["evaluate"]["baseline"]["cached"] is False
    against = found["against_tutorial"]
    assert against["delta"]["ours"]["paired"] and len(against["delta"]["ours_full"]["ci95"]) == 2
    for score in against["scores"].values():
        assert set(score) >= {"wer", "wer_ci95", "cer", "insertions", "deletions", "substitutions"}

    quality = found["time_to_quality"]
    for arm in ("tutorial", "ours"):  # two steps, an adapter of each
        first, last = quality[arm]
        assert 0 < first["seconds"] < last["seconds"] == pytest.approx(found[arm]["train"]["train_seconds"])
        assert len(last["wer_ci95"]) == 2 and last["wer"] >= 0

    counts = sys.modules["pooled"].counted(work)
    assert sum(counts["arms"]["ours"]["errors"]) / sum(counts["words"]) == pytest.approx(
        found["ours"]["evaluate"]["wer"]
    )
    kept = tmp_path / "kept.json"
    write_json(kept, counts)
    assert sys.modules["pooled"].counted(kept) == counts
    pooled = sys.modules["pooled"].pooled([counts, counts], "tutorial")  # the same clips under a second seed
    assert (pooled["clips"], pooled["decoded"]) == (4, 8)
    assert pooled["delta"]["ours"]["wer"] == pytest.approx(against["delta"]["ours"]["wer"])
    assert all(len(ratios) == 2 for ratios in pooled["ratios"].values())

    features = sum(path.stat().st_size for path in (work / "tutorial" / "features").iterdir())
    assert features > 16 * 80 * 3000 * 4  # 12 clips of train and 4 of test at 30 s
    assert found["tutorial"]["bytes_written"] > features > found["ours"]["bytes_written"]
    settings = read_json(work / "tutorial" / "settings.json")
    assert (settings["training"]["max_steps"], settings["training"]["per_device_train_batch_size"]) == (2, 4)
    shown = capsys.readouterr().out
    assert "times better" in shown and "WER at 30 s against seconds of training" in shown

    measured = {path: path.stat().st_mtime_ns for path in work.glob("*/**/*")}
    recipes.benchmark(recipes.parsed(asked))
    assert {path: path.stat().st_mtime_ns for path in work.glob("*/**/*")} == measured
    assert read_json(work / "results.json") == found


def test_the_tutorial_trains_decodes_and_leaves_its_features_on_disk(
    recipes: ModuleType, words: list[str], tmp_path: Path
) -> None:
    import tutorial  # noqa: PLC0415

    config, folder = load(words), tmp_path / "tutorial"
    prepare(config)
    folder.mkdir()
    settings = sys.modules["arms"].tutorial_settings(config)
    trained = tutorial.train(settings, folder)
    assert trained["clips_per_second"] == pytest.approx(2 * 4 / trained["train_seconds"])
    decoded = tutorial.evaluate(settings, folder)
    assert len(decoded["hypotheses"]) == 4 and decoded["seconds"] > decoded["feature_seconds"] > 0
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert sum(path.stat().st_size for path in (folder / "features").iterdir()) > 16 * 80 * 3000 * 4


def test_the_tutorial_keeps_the_doubled_start_token_of_the_notebooks(
    recipes: ModuleType, tiny_checkpoint: Path
) -> None:
    import tutorial  # noqa: PLC0415

    processor = load_processor(str(tiny_checkpoint))
    rows = [
        {"input_features": np.zeros((80, 3000), np.float32), "labels": processor.tokenizer(text).input_ids}
        for text in ("ja", "neen")
    ]
    labels = tutorial.Collator(processor)(rows)["labels"]
    start = load_config(str(tiny_checkpoint)).decoder_start_token_id
    # The model puts another one before them: the decoder's input then starts with two.
    assert labels[:, 0].tolist() == [start, start]
    assert labels[0, -2:].tolist() == [-100, -100] and labels[1, -1] == processor.tokenizer.eos_token_id


@pytest.mark.slow
def test_a_large_model_stands_in_for_a_small_gpu_padded_and_dynamic(
    recipes: ModuleType, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = sys.modules["arms"]
    monkeypatch.setattr(arms, "LARGE_STEPS", 2)
    monkeypatch.setitem(arms.ARMS, "large", lambda *rest: arms.large(*rest, sizes=SIZES))
    found = recipes.benchmark(recipes.parsed([*asked, "--arms=large"]))["large"]
    assert set(found) == {"fp32-full", "fp32-dynamic"}
    for cell in found.values():
        assert cell["seconds_per_step"] > 0 and cell["peak_memory_bytes"] > 0
    assert not list((tmp_path / "work" / "large").glob("*-random"))


def test_the_random_checkpoint_has_the_asked_sizes_and_the_tokens_of_its_base(
    recipes: ModuleType, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "random"
    sys.modules["arms"].write_random(target, str(tiny_checkpoint), SIZES)
    config = load_config(str(target))
    assert (config.d_model, config.encoder_layers) == (32, 1)
    base = load_generation_config(str(tiny_checkpoint))
    assert load_generation_config(str(target)).lang_to_id == base.lang_to_id
    tokens, base_tokens = (load_processor(str(folder)).tokenizer.get_vocab() for folder in (target, tiny_checkpoint))
    assert tokens == base_tokens


def error_line(recipes: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> str:
    """Runs benchmark.py; returns its one error line."""
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    with pytest.raises(SystemExit) as left:
        recipes.main()
    assert left.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


def test_a_wrong_path_is_one_line_and_spoils_no_work_folder(
    recipes: ModuleType, asked: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = tmp_path / "not there, [really]"
    wrong = [f"--source={absent}" if word.startswith("--source") else word for word in asked]
    assert str(absent) in error_line(recipes, wrong, capsys, monkeypatch)
    assert not (tmp_path / "work" / "settings.json").exists()


def test_a_folder_measured_with_other_settings_is_not_taken_for_these(
    recipes: ModuleType, asked: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "work" / "settings.json", {"words": ["seed=7"]})
    line = error_line(recipes, asked, capsys, monkeypatch)
    assert "--work: " in line and "seed=7" in line and "training.max_steps=2" in line


def test_a_stage_that_fails_is_named_and_keeps_nothing(recipes: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ExternalError, match="ours, training: ended with status 3"):
        sys.modules["arms"].timed("ours, training", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


def test_make_bench_hands_language_hours_and_an_awkward_path_over(tmp_path: Path) -> None:
    source = tmp_path / "it's, [here] = $x"
    write_release(source)
    command = ["make", "-n", "--no-print-directory", *INSTALLED, "bench"]
    words = ["LANG=es", "HOURS=1", f"DATA={source}", "ARGS=--steps 5"]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    words = shlex.split(done.stdout.replace("\\\n", ""))
    assert words[1] == "recipes/benchmark.py"
    assert words[2:] == ["--language", "es", "--source", str(source), "data.hours=1", "--steps", "5"]
