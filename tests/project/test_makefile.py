"""Tests of the Makefile: the overrides that it passes to the stages, by `make -n` and once for real."""

import shlex
from pathlib import Path

import pytest
from support.makefile import ROOT, composed, make
from support.releases import write_release

from asr_lora.runtime.files import read_json

AWKWARD = [
    "two  spaces", "a,b", "a=b", "it's", 'say "hi"', "[x]", "{x}", "a~b", "a&b", "(p)", "$x", "${x}", "\\${x}", "#h",
    "a;b", "back\\slash", 'back\\"quote', "end\\", "Zoë", "$(x", " around ",
]  # fmt: skip


def test_make_alone_lists_the_targets() -> None:
    printed = make()
    targets = (
        "demo baseline doctor prepare train eval sweep search transcribe label self-train correct record app check"
    )
    for target in [*targets.split(), "test", "test-all"]:
        assert f"\n  {target} " in printed


def test_the_locale_of_the_shell_is_no_language_of_speech() -> None:
    assert composed("train", LANG="sv_SE.UTF-8").data.language == "nl"


@pytest.mark.parametrize("language", ["sv-SE", "no", "zh-CN"])
def test_a_language_given_to_make_is_one(language: str) -> None:
    assert composed("train", f"LANG={language}", LANG="en_US.UTF-8").data.language == language


def test_the_language_of_speech_is_no_locale_of_the_stage() -> None:
    environment = make("--eval=show: ; @env", "show", "LANG=sv-SE", LANG="en_US.UTF-8").splitlines()
    assert "LC_ALL=C.UTF-8" in environment
    assert not [line for line in environment if line.startswith("LANG=")]


def test_hours_are_a_number_or_all() -> None:
    assert composed("train", "HOURS=0.5").data.hours == 0.5
    assert composed("train", "HOURS=all").data.hours is None


def test_args_reach_the_stage_unchanged() -> None:
    config = composed("train", "HOURS=1", "ARGS=lora.r=4 'data.source=\"/a, b\"' experiment=low_data")
    assert (config.lora.r, config.data.source, config.experiment_name) == (4, "/a, b", "low_data")


def test_a_sweep_is_one_run_a_rank() -> None:
    command = make("-n", "sweep", "LANG=nl", "RANKS=4,8").split()
    assert command[2:] == ["asr_lora", "train", "-m", "lora.r=4,8", "data.language=nl"]


def test_a_search_takes_its_space_from_args_as_its_page_writes_it() -> None:
    page = " ".join((ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8").split())
    (written,) = (word for word in page.split("`") if word.startswith("\"'search.space="))
    (args,) = shlex.split(written)
    space = composed("search", "LANG=nl", f"ARGS={args}").search.space
    assert space == ["lora.r=choice(8,16,32)", "training.learning_rate=tag(log,interval(1e-4,1e-2))"]


def test_a_pattern_of_runs_reaches_the_report_unopened() -> None:
    assert composed("report", "RUNS=runs/nl-1h-*").report.runs == "runs/nl-1h-*"


@pytest.mark.parametrize("name", AWKWARD)
def test_a_path_survives_the_shell_and_hydra(name: str) -> None:
    assert composed("train", f"DATA=/data/{name}").data.source == f"/data/{name}"
    assert composed("baseline", f"DATA=/data/{name}").data.source == f"/data/{name}"
    assert composed("transcribe", f"AUDIO=/talks/{name}").audio == f"/talks/{name}"
    assert composed("record", f"PROMPTS=/own/{name}").record.prompts == f"/own/{name}"


def test_recordings_are_labeled_with_the_run_that_make_was_given() -> None:
    labeled = composed("label", "AUDIO=/the radio/a, b", "RUN=/runs/it's [1]", "ARGS=label.agree=none")
    assert (labeled.audio, labeled.run_dir, labeled.label.agree) == ("/the radio/a, b", "/runs/it's [1]", "none")
    assert composed("label", "ARGS=label.source=other.tsv").audio is None


def test_what_is_corrected_is_a_source_or_the_labels_of_a_run() -> None:
    named = composed("correct", "SOURCE=/the labels/a, b", "ARGS=correct.random_share=0.5")
    assert (named.correct.source, named.correct.random_share) == ("/the labels/a, b", 0.5)
    of_run = composed("correct", "RUN=/runs/it's [1]")
    assert (of_run.correct.source, of_run.run_dir) == (None, "/runs/it's [1]")


def test_self_training_takes_recordings_and_the_first_run_by_folder_or_by_its_settings() -> None:
    found = composed("self-train", "AUDIO=/the radio/a, b", "RUN=/runs/it's [1]")
    assert (found.audio, found.run_dir) == ("/the radio/a, b", "/runs/it's [1]")
    made = composed("self-train", "AUDIO=/radio", "LANG=sv-SE", "HOURS=2", "DATA=/a b", "ARGS=self_train.rounds=3")
    assert (made.data.language, made.data.hours, made.data.source, made.self_train.rounds) == ("sv-SE", 2, "/a b", 3)


@pytest.mark.slow
def test_a_release_in_a_folder_of_awkward_name_is_prepared(tmp_path: Path, words: list[str]) -> None:
    folder = tmp_path / 'Zoë\'s [best] "$x" & a, b=#1 ${y} (~)\\'
    write_release(folder / "cv-corpus-25.0-2026-06-05")
    make("prepare", "LANG=nl", f"DATA={folder / 'cv-corpus-25.0-2026-06-05'}", f"ARGS={shlex.join(words[1:])}")
    (summary,) = (tmp_path / "runs").glob("*/data/summary.json")
    assert read_json(summary)["splits"]["train"]["clips"] == 12
