"""Search: by dev WER only, pruned, within its hours, and resumed after an interruption."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from support.pages import opened, violations

from asr_lora.config.compose import load
from asr_lora.runs import finding
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.search import study
from asr_lora.search.__main__ import search
from asr_lora.training.trainer import WhisperTrainer
from asr_lora.training.validation import DevEvaluator, DevResult

PRUNED = TrialState.PRUNED
SPACE = "search.space=['lora.r=choice(2,4)','training.learning_rate=tag(log,interval(1e-3,1e-2))']"


@pytest.fixture
def few(words: list[str]) -> list[str]:
    """Overrides of trials of two steps, with dev decoded after each."""
    every = ["training.eval_steps=1", "training.dev_share=1", "training.save_steps=1"]
    return [*words, *every, SPACE, "search.startup_trials=1", "search.warmup_share=0", "search.trials=3"]


def studied(page: Path) -> list[optuna.trial.FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(page.parent / "study.log"))
    return optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(backend)).trials


def states(page: Path) -> list[str]:
    return [trial.state.name for trial in studied(page)]


@pytest.mark.slow
def test_a_search_tries_the_defaults_first_scores_no_test_and_logs_the_command_of_the_best(
    few: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    page = search(load(few), few)
    trials = studied(page)
    assert len(trials) == 3 and trials[0].params == pytest.approx({"lora.r": "4", "training.learning_rate": 1e-3})
    folders = [Path(trial.user_attrs["run"]) for trial in trials]
    assert not any((folder / "eval").exists() for folder in folders)
    output = capsys.readouterr()
    (command,) = (line for line in output.err.splitlines() if line.startswith("best on dev"))
    best = min((trial for trial in trials if trial.value is not None), key=lambda trial: trial.value)
    assert f"lora.r={best.params['lora.r']}" in command and "eval.after" not in command and "search." not in command
    assert finding.last_run(page.parent.parent.parent) == Path(best.user_attrs["run"])
    assert "dev WER" in output.out
    text = page.read_text()
    assert text.count("<svg") == 4 and "asr_lora.train" in text and "http" not in text.partition("<svg")[0]
    # The same overrides find everything complete.
    before = [trial.number for trial in trials]
    assert [trial.number for trial in studied(search(load(few), few))] == before


@pytest.mark.slow
def test_a_trial_that_is_worse_than_the_median_is_pruned_and_leaves_no_checkpoints(
    few: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wers = iter([0.5, 0.4, 0.9, 0.45, 0.3])
    monkeypatch.setattr(DevEvaluator, "evaluate", lambda *args: DevResult(next(wers), None))
    page = search(load(few), few)
    assert states(page) == ["COMPLETE", "PRUNED", "COMPLETE"]
    pruned = studied(page)[1]
    assert pruned.intermediate_values == {1: 0.9}
    assert not (Path(pruned.user_attrs["run"]) / "train" / "checkpoints").exists()
    assert "pruned at step 1" in page.read_text()


@pytest.mark.slow
def test_an_interrupted_search_resumes_the_trial_and_draws_the_same_settings(
    few: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [*few, f"runs_dir={tmp_path / 'whole'}", "search.startup_trials=9"]
    cut = [*few, f"runs_dir={tmp_path / 'cut'}", "search.startup_trials=9"]
    drawn = [trial.params for trial in studied(search(load(whole), whole))]
    usual, count = DevEvaluator.evaluate, iter(range(100))

    def judged(*args: Any) -> DevResult:
        if next(count) == 3:  # of the second trial's last step
            raise KeyboardInterrupt
        return usual(*args)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(DevEvaluator, "evaluate", judged)
        search(load(cut), cut)
    trials = studied(search(load(cut), cut))
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE,
    ]  # fmt: skip
    assert set(trials[2].intermediate_values) == {1, 2}
    assert [trials[place].params for place in (0, 2, 3)] == drawn


@pytest.mark.slow
def test_a_running_trial_stops_with_a_checkpoint_when_the_hours_are_over(
    few: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [*few, "training.max_steps=4", "training.eval_steps=4", "search.trials=1"]
    short = [*steps, "search.max_hours=1"]
    usual = time.monotonic

    def late(*args: Any, **kwargs: Any) -> Any:  # the clock jumps by an hour with the first step
        monkeypatch.setattr("asr_lora.search.__main__.time.monotonic", lambda: usual() + 3600)
        return original(*args, **kwargs)

    original = WhisperTrainer.training_step
    monkeypatch.setattr(WhisperTrainer, "training_step", late)
    page = search(load(short), short)
    monkeypatch.undo()
    assert states(page) == ["RUNNING"] and "the same command goes on" in page.read_text()
    (folder,) = (Path(trial.user_attrs["run"]) for trial in studied(page))
    assert (folder / "train" / "checkpoints" / "checkpoint-1").is_dir()
    assert not run.train_metrics(folder).exists()
    assert "the trial stopped with a checkpoint" in capsys.readouterr().err
    search(load(steps), steps)
    assert "resuming from" in capsys.readouterr().err
    assert states(page) == ["FAIL", "COMPLETE"]


@pytest.mark.slow
def test_no_trial_begins_that_would_not_end_in_time(few: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    one = [*few, "search.trials=1"]
    search(load(one), one)
    hasty = [*few, "search.trials=9", "search.max_hours=1e-5"]
    assert states(search(load(hasty), hasty)) == ["COMPLETE"]
    assert "no further trial" in capsys.readouterr().err


@pytest.mark.slow
def test_an_error_of_one_trial_is_logged_and_an_error_of_the_first_is_raised(
    few: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual, count = DevEvaluator.evaluate, iter(range(100))

    def judged(*args: Any) -> DevResult:
        if next(count) in broken:
            raise ExternalError("hardware: too small")
        return usual(*args)

    monkeypatch.setattr(DevEvaluator, "evaluate", judged)
    broken = {0}
    with pytest.raises(ExternalError):
        search(load(few), few)
    broken, count = {2}, iter(range(100))
    page = search(load(few), few)
    assert states(page).count("FAIL") == 2  # the first was tried again
    assert "hardware: too small" in capsys.readouterr().err and "failed: hardware: too small" in page.read_text()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("['lora.rr=choice(1,2)']", "lora.rr: "),
        ("['lora.r=4']", "lora.r must be choice"),
        ("[lora.r]", "lora.r must be choice"),
        ("['lora.r=choice(0,4)']", "lora.r: must be at least 1"),
        ("['lora.dropout=interval(0.5,2)']", "lora.dropout: must be in"),
        ("['lora.dropout=tag(log,interval(0,1))']", "must begin above 0"),
        ("['data.hours=choice(1,2)']", "leave the dev WER comparable"),
        ("[]", "must name a setting"),
    ],
)
def test_an_impossible_space_is_refused_before_anything_runs(words: list[str], space: str, message: str) -> None:
    overrides = [*words, f"search.space={space}"]
    with pytest.raises(ConfigError) as refusal:
        search(load(overrides), overrides)
    assert message in str(refusal.value)


def test_defaults_are_tried_as_far_as_the_space_has_them() -> None:
    settings = study.parse_space(
        ["lora.r=choice(2,4)", "lora.dropout=interval(0,0.1)", "training.warmup_ratio=range(2)"]
    )
    recorded = {"lora": {"r": 4, "dropout": 0.5}, "training": {"warmup_ratio": 0.1}}
    assert study.default_values(settings, recorded) == {"lora.r": "4"}


@pytest.mark.slow
def test_at_the_command_line_ctrl_c_leaves_a_search_that_the_same_overrides_finish(few: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "asr_lora.search",
        *few,
        "training.max_steps=20",
        "training.eval_steps=20",
        "search.trials=1",
    ]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children of a background shell ignore it
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    runs = load(few).run.parent
    while not list(runs.glob("*/train/checkpoints/*/trainer_state.json")) and started.poll() is None:
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate()
    assert started.returncode == 130 and "Traceback" not in errors, errors
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "resuming from" in ended.stderr and "this scores it on test: python -m asr_lora.train" in ended.stderr


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_in_a_browser_the_page_of_a_search_fits_and_its_trials_sort_by_number(
    browser: Any, tmp_path: Path, scheme: str
) -> None:
    tried = optuna.create_study(study_name="nl-search", direction="minimize")
    searched = {"training.learning_rate": FloatDistribution(1e-5, 1e-3), "lora.r": CategoricalDistribution(["4", "16"])}
    for rate, rank, wer, state in (
        (1e-3, "16", 0.3, TrialState.COMPLETE), (3.7e-5, "4", 0.2, TrialState.COMPLETE), (5e-4, "4", None, PRUNED),
    ):  # fmt: skip
        params = {"training.learning_rate": rate, "lora.r": rank}
        steps = {10: 0.6, 20: wer or 0.5}
        tried.add_trial(create_trial(state=state, value=wer, params=params, distributions=searched,
                                     intermediate_values=steps, user_attrs={"seconds": 60}))  # fmt: skip
    settings = study.parse_space(["training.learning_rate=tag(log,interval(1e-5,1e-3))", "lora.r=choice(4,16)"])
    page, complaints = opened(browser, study.write_page(tried, settings, tmp_path, "make eval"), scheme, 390)
    assert page.locator("svg").count() == 4 and page.get_by_text("pruned or failed").count() > 0
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert violations(page) == []
    page.get_by_role("button", name="training.learning_rate").click()
    shown = [float(text) for text in page.locator("td[data-name='training.learning_rate']").all_inner_texts()]
    assert shown == sorted(shown) == [3.7e-5, 5e-4, 1e-3]
    assert complaints == []
