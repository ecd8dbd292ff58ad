"""Tests of the settings: each file of conf/ composes, and experiments never share a folder."""

import random
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from asr_lora.config.compose import Config, conf_dir, load, to_dict
from asr_lora.config.naming import RUN_NAME_LIMIT, result_settings, run_name
from asr_lora.runtime.errors import ConfigError

CHOICES = sorted(f"{file.parent.name}={file.stem}" for file in conf_dir().glob("*/*.yaml"))
EXPERIMENTS = sorted((conf_dir() / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def usual() -> Config:
    return load()


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_every_group_composes(choice: str) -> None:
    load([choice])


def test_settings_without_overrides_are_those_of_the_contract(usual: Config) -> None:
    assert (usual.model.name, usual.model.precision, usual.hardware.device) == ("large_v2", "auto", "auto")
    assert (usual.lora.r, usual.lora.scaling, usual.lora.dropout) == (32, 2.0, 0.05)
    assert usual.lora.target_modules == ["q_proj", "v_proj"]
    assert (usual.training.batch_size, usual.training.learning_rate, usual.eval.limit) == (8, 1e-3, 1000)


def test_only_conf_has_values() -> None:
    branches = [Config, *(field.type for field in fields(Config) if is_dataclass(field.type))]
    for field in (field for branch in branches for field in fields(branch)):
        assert field.default is MISSING and field.default_factory is MISSING, field.name


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_an_experiment_opens_with_its_command_names_itself_and_reasons_every_line(file: Path) -> None:
    package, command, *lines = file.read_text(encoding="utf-8").splitlines()
    assert package == "# @package _global_"
    assert f"experiment={file.stem}" in command or f"make {file.stem}" in command
    assert f"experiment_name: {file.stem}" in lines
    for line in lines:
        if not line.endswith(":") and not line.startswith("experiment_name:"):
            assert " # " in line, f"{line}: gives no reason"


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["data.hours=1"], 2000),
        (["data.hours=2"], 2000),
        (["data.hours=2.1"], 5000),
        (["data.hours=null"], 5000),
        (["data.hours=null", "training.max_steps=7"], 7),
    ],
)
def test_steps_are_2000_up_to_two_hours_and_5000_beyond_unless_given(words: list[str], steps: int) -> None:
    assert load(words).max_steps == steps


# ---- run names ----


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "nl-1h-large_v2-qv-r32-s0"),
        (["data.language=sv-SE", "data.hours=null", "model=whisper_base", "seed=3"], "sv-SE-all-base-qv-r32-s3"),
        (["data.language=no", "data.hours=0.5", "lora.r=8"], "no-0.5h-large_v2-qv-r8-s0"),
        (["training.learning_rate=3e-4", "model.precision=fp32"], "nl-1h-large_v2-qv-r32-s0-fp32-lr3e-4"),
        (["lora.dropout=0", "training.batch_size=4", "data.seed=2"], "nl-1h-large_v2-qv-r32-s0-draw2-dropout0-b4"),
        (["experiment=low_data"], "nl-1h-large_v2-qv-r32-s0-low_data"),
        (["experiment=low_data", "training.max_steps=50"], "nl-1h-large_v2-qv-r32-s0-low_data-steps50"),
        (["decoding=beam"], "nl-1h-large_v2-qv-r32-s0-numbeams5"),
    ],
)
def test_a_run_is_named_by_what_its_result_depends_on(words: list[str], name: str) -> None:
    config = load(words)
    assert config.run_name == name
    assert config.run == Path("runs") / name


@pytest.mark.parametrize(
    "words",
    [
        ["eval.limit=3", "eval.split=dev", "eval.normalizer=raw", "eval.after=false"],
        ["hardware=cpu"],
        ["hardware=t4", "hardware.micro_batch=2"],
        ["training.save_steps=7"],
        ["data.hours=1.0", "lora.scaling=2", "training.learning_rate=0.001"],
    ],
)
def test_what_leaves_the_result_alone_leaves_the_name_alone(usual: Config, words: list[str]) -> None:
    assert load(words).run_name == usual.run_name


def test_a_name_and_a_folder_can_be_given() -> None:
    assert load(["run_name=mine", "runs_dir=elsewhere"]).run == Path("elsewhere/mine")
    assert load(["run_dir=there/it/is"]).run == Path("there/it/is")
    assert load(['runs_dir="~/runs"', "run_name=mine"]).run == Path.home() / "runs" / "mine"


def test_the_name_follows_from_the_overrides_and_not_from_files(tmp_path: Path) -> None:
    words = [f"data.source={tmp_path / 'corpus'}"]
    before = load(words).run_name
    (tmp_path / "corpus").mkdir()
    assert load(words).run_name == before


ALTERNATIVES: dict[str, list[Any]] = {
    "seed": [1, 11],
    "data.language": ["no", "sv-SE", "fy-NL"],
    "data.hours": [None, 1.00001, 1.000000001, 10.0, 0.1],
    "data.seed": [1, -1],
    "data.source": ["/a/x", "/b/x", "x", "X", "fp32", "/a/x ", "/a/é", "/a/è", "null", "a" * 90, "a" * 91],
    "data.search_dir": ["x", "/a/x"],
    "data.dev_clips": [1, 2],
    "model.name": ["tiny", "base"],
    "model.checkpoint": ["x", "/a/x", "openai/whisper-tiny", "other/whisper-tiny"],
    "model.language": ["nl", "de"],
    "model.task": ["translate"],
    "model.precision": ["int8", "fp32", "bf16"],
    "lora.r": [1, 2, 321],
    "lora.scaling": [1.0, 2.0000001],
    "lora.dropout": [0.0, 0.0500001, 0.050000001, 0.5],
    "lora.target_modules": [["q_proj"], ["v_proj", "q_proj"], ["q_proj", "v_proj", "k_proj", "out_proj", "fc1"]],
    "training.max_steps": [2, 22, 2000],
    "training.batch_size": [1, 2, 16],
    "training.learning_rate": [3e-4, 3.0000001e-4, 1e-5, 1e-05 + 1e-12],
    "training.weight_decay": [0.01, 1e-3],
    "training.eval_steps": [1, 2],
    "training.patience": [1, 2],
    "decoding.num_beams": [5],
    "decoding.max_new_tokens": [1, 2],
    "divergence.on_bad_step": ["rollback", "stop"],
    "divergence.loss_spike": [None, 3.0000001, 30.0],
}


def changed(config: Config, changes: dict[str, Any]) -> Config:
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        branch = replace(getattr(config, group), **{name: value}) if group else value
        config = replace(config, **{group or name: branch})
    return config


def test_no_two_experiments_share_a_name(usual: Config) -> None:
    chance = random.Random(0)
    singles = [{key: value} for key, values in ALTERNATIVES.items() for value in values]
    several = [
        {key: chance.choice(ALTERNATIVES[key]) for key in chance.sample(sorted(ALTERNATIVES), chance.randint(2, 12))}
        for _ in range(1000)
    ]
    made_with: dict[str, dict[str, Any]] = {}
    for changes in [{}, *singles, *several]:
        config = changed(usual, changes)
        name, settings = run_name(to_dict(config), to_dict(usual)), result_settings(to_dict(config))
        assert made_with.setdefault(name, settings) == settings, f"{name} is two experiments"
        assert len(name) <= RUN_NAME_LIMIT and "/" not in name
    assert len(made_with) > 900


def test_the_property_above_varies_every_group_that_a_result_depends_on(usual: Config) -> None:
    assert {key.partition(".")[0] for key in ALTERNATIVES} == {
        key.partition(".")[0] for key in result_settings(to_dict(usual))
    }


def test_columns_are_named_as_the_readme_says() -> None:
    assert load(["data.columns={path: file,text: sentence,speaker: who}"]).data.columns == {
        "path": "file", "text": "sentence", "speaker": "who",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"data\.columns: file is none of path, text"):
        load(["data.columns={file: path}"])


@pytest.mark.parametrize("multiple", ["0.25", "0.05", "0", "31"])
def test_contexts_are_whole_positions_of_the_encoder(multiple: str) -> None:
    with pytest.raises(ConfigError, match=r"training\.context_multiple: must be a multiple of 0\.02"):
        load([f"training.context_multiple={multiple}"])


@pytest.mark.parametrize("margin", ["[1]", "[2,1]", "[-1,1]", "[0,31]"])
def test_a_range_of_seconds_is_two_numbers_in_order(margin: str) -> None:
    with pytest.raises(ConfigError, match=r"training\.context_margin: must be two numbers of seconds"):
        load([f"training.context_margin={margin}"])
