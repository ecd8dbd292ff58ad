"""Tests of the command line: a user's mistake is one line with the way out, and results are kept."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from asr_lora.config.compose import load, quote_override, to_dict
from asr_lora.config.naming import ADDED
from asr_lora.prepare import main as prepare
from asr_lora.runs import finding
from asr_lora.runs import folder as run
from asr_lora.runs.launch import launch
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.train import train


def start(stage: str, *words: str) -> subprocess.Popen[str]:
    # Ctrl-C must reach it also where these tests run in the background of a shell, whose children ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-m", "asr_lora", stage, *words]  # as make and asr-lora start it
    # One thread: a tiny model gains nothing from more, which on a busy machine wait for each other.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


# ---- refusals ----


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.hour=1", "data.hour: no such setting; did you mean data.hours?"),
        ("+data.hour=1", "data.hour: no such setting; did you mean data.hours?"),
        ("modl=whisper_tiny", "modl: no such setting; did you mean model?"),
        ("qqqqqq=1", "qqqqqq: no such setting; --cfg job prints all"),
        ("hydra.launcher.x=1", "hydra.launcher.x: no setting of Hydra or the launcher; +hydra."),
        ("hydra/launcher=other", "hydra/launcher: other is none of basic, ray, submitit_slurm, submitit_local"),
        ("hydra/launcher=0", "hydra/launcher: 0 is none of those of Hydra and its plugins"),
        ("~data=0", "data: 0 is none of common_voice"),
        ("lora=lokr", "lora: lokr is none of adalora, all_linear, bitfit"),
        ("experiment=fast", "experiment: fast is none of best, demo, full_data, long_form, low_data"),
        ("data.hours=two", "data.hours: Value 'two' of type 'str' could not be converted to Float"),
        ("lora.r=4.5", "lora.r: Value '4.5' of type 'float' could not be converted to Integer"),
        ("lora.r=4,8", "-m"),
        ("lora.target_modules=q_proj", "lora.target_modules: must be a list, for instance 'lora.target_modules=[a,b]'"),
        ("~data.hours", "data.hours: has no value"),
        ("data.language=???", "data.language: has no value"),
        ("hours", "hours: must be setting=value, for instance data.hours=1"),
        ("data.hours=0", "data.hours: must be more than 0, or null for all there is, got 0.0"),
        ("data.hours=-1", "data.hours: must be more than 0"),
        ("data.hours=nan", "data.hours: must be more than 0"),
        ("data.hours=inf", "data.hours: must be more than 0"),
        ("data.source=", "data.source: must be a path"),
        ("data.language=../nl", "data.language: must be a locale such as nl or sv-SE, got '../nl'"),
        ("data.dev_clips=0", "data.dev_clips: must be at least 1, got 0"),
        ("model.name=a/b", "model.name: must be letters, digits"),
        ("model.precision=int4", "model.precision: int4 is none of auto, int8, nf4, fp16, bf16, fp32"),
        ("model.task=sing", "model.task: sing is none of transcribe, translate"),
        ("lora.r=0", "lora.r: must be at least 1, got 0"),
        ("lora.scaling=nan", "lora.scaling: must be more than 0"),
        ("lora.dropout=1", "lora.dropout: must be in [0, 1)"),
        ("lora.target_modules=[]", "lora.target_modules: must be at least one module name"),
        ("training.max_steps=0", "training.max_steps: must be at least 1"),
        ("training.learning_rate=inf", "training.learning_rate: must be more than 0"),
        ("training.weight_decay=-1", "training.weight_decay: must be at least 0"),
        ("training.max_grad_norm=0", "training.max_grad_norm: must be more than 0"),
        ("training.warmup_ratio=1", "training.warmup_ratio: must be a share in [0, 1)"),
        ("training.dev_share=0", "training.dev_share: must be a share in (0, 1]"),
        ("training.dev_normalizer=no", "training.dev_normalizer: no is none of raw, basic, marks"),
        ("training.context=half", "training.context: half is none of dynamic, full, windows"),
        ("decoding.num_beams=0", "decoding.num_beams: must be at least 1"),
        ("hardware.device=tpu", "hardware.device: tpu is none of auto, cpu, cuda"),
        ("hardware.workers=-1", "hardware.workers: must be at least 0"),
        ("eval.split=train", "eval.split: train is none of test, dev"),
        ("eval.limit=0", "eval.limit: must be at least 1, or null for all"),
        ("eval.normalizer=no", "eval.normalizer: no is none of raw, basic, marks"),
        ("eval.sets=[{source: ''}]", "eval.sets.source: must be a path, silence or noise"),
        ("eval.sets=[{source: a, name: b/c}]", "eval.sets.name: must be letters, digits"),
        ("eval.sets=[{sauce: a}]", "sauce: no such setting"),
        ("eval.strength=3", "eval.strength: must be within 0 (base model) to 2"),
        ("eval.strengths=[0,-1]", "eval.strengths: must be within 0 (base model) to 2"),
        ("eval.max_regression=2", "eval.max_regression: must be a share of at least 0, such as 0.01"),
        ("eval.average=0", "eval.average: must be at least 1"),
        ("seed=-1", "seed: must be at least 0"),
        ("app.port=0", "app.port: must be 1 to 65535, got 0"),
        ("app.host=' '", "app.host: must be a name or address"),
        ("app.max_minutes=0", "app.max_minutes: must be more than 0"),
        ("app.max_megabytes=0", "app.max_megabytes: must be at least 1"),
        ("app.clips=-1", "app.clips: must be at least 0"),
    ],
)
def test_an_invalid_setting_is_one_line_before_anything_loads(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load([override])
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_at_the_command_line_a_mistake_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    cannot_be_a_folder = tmp_path / "file"
    cannot_be_a_folder.touch()
    mistakes = {
        "data.hour=1": (2, "data.hour: no such setting; did you mean data.hours?"),  # Hydra refuses
        "data.hours=two": (2, "data.hours: Value 'two' of type 'str'"),  # OmegaConf does
        "data.hours=0": (2, "data.hours: must be more than 0"),  # we do
    }
    started = {override: start("prepare", override) for override in mistakes}
    for override, process in started.items():
        stdout, stderr = process.communicate()
        status, message = mistakes[override]
        assert process.returncode == status
        assert stderr.startswith(f"error: {message}") and stderr.count("\n") == 1
        assert stdout == ""


def test_an_unwritable_run_folder_is_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").write_text("a file where the runs would go")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # which the door sets for good
    monkeypatch.setattr(sys, "argv", ["prepare", *words])
    with pytest.raises(SystemExit) as ended:
        launch(prepare)
    assert ended.value.code == 1
    stderr = capsys.readouterr().err
    last = stderr.splitlines()[-1]
    assert last.startswith("error: ") and str(tmp_path / "runs") in last and "runs_dir" in last
    assert "Traceback" not in stderr


def test_help_fits_one_screen() -> None:
    # Any stage's help is the same; this one costs no start of torch.
    code = "from asr_lora.runs.launch import launch; launch(print)"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    for text in ("setting=value", "model: whisper_base", "data.source=", "--cfg job", "-m lora.r="):
        assert text in done.stdout
    assert len(done.stdout.splitlines()) <= 25


# ---- real paths ----

AWKWARD = [
    "two  spaces", "a,b", "a=b", "it's", 'say "hi"', "[x]", "{x: 1}", "a~b", "~a", "a&b", "(p)", "$x", "${x}", "\\${x}",
    "a#h", "back\\slash", 'back\\"quote', "end\\", "Zoë", "日本語", " around ", "null", "007", "???x",
]  # fmt: skip


@pytest.mark.parametrize("name", AWKWARD)
def test_a_quoted_value_is_taken_literally(name: str) -> None:
    assert load([f"data.source={quote_override(name)}"]).data.source == name


@pytest.mark.parametrize(
    "name", ["a,b", "a=b", "it's", 'say "hi"', "[x]", "{x: 1}", "a~b", "a&b", "(p)", "${x}", "#h", "Zoë", "a  [b]  c"]
)
def test_the_error_for_an_unquoted_value_has_the_quoted_one_to_paste(name: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load([f"data.source=/data/{name}"])
    pasted = str(refusal.value).partition("quote it: ")[2].partition("; to try several")[0]
    assert load(shlex.split(pasted)).data.source == f"/data/{name}"


# ---- the run folder ----


def test_a_run_folder_of_other_settings_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    folder = f"run_dir={tmp_path}"
    run.record(load([folder]), [], base="0a1b")
    recorded = (tmp_path / "train" / "config.yaml").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"training.learning_rate=0.001, not 0.0003; .*run_name=.*remove that folder"):
        run.check_same_settings(load([folder, "training.learning_rate=3e-4"]))
    run.check_same_settings(load([folder, "hardware=cpu", "eval.limit=3", "training.save_steps=7"]))
    assert (tmp_path / "train" / "config.yaml").read_text(encoding="utf-8") == recorded


def test_a_scored_run_keeps_its_settings_except_named_overrides(tmp_path: Path) -> None:
    run.record(
        load([f"run_dir={tmp_path}", "eval.limit=50", "decoding=beam", "lora.r=4", "hardware=t4"]), [], base="0a1b"
    )

    def scored(*words: str) -> tuple[int | None, str, int, int | None]:
        config = run.recorded_config(tmp_path, load(words), words)
        assert (config.lora.r, config.run, config.hardware) == (4, tmp_path, load(words).hardware)
        return config.eval.limit, config.eval.split, config.decoding.num_beams, config.decoding.max_new_tokens

    assert scored() == (50, "test", 5, None)
    assert scored("hardware=cpu") == (50, "test", 5, None)
    assert scored("eval.split=dev") == (50, "dev", 5, None)
    assert scored("eval.limit=null", "decoding.max_new_tokens=9") == (None, "test", 5, 9)
    assert scored("decoding=greedy", "eval.limit=1000") == (1000, "test", 1, None)


def test_a_run_that_was_made_before_a_setting_was_added_is_scored_with_the_value_that_it_had(tmp_path: Path) -> None:
    run.record(load([f"run_dir={tmp_path}"]), [], base="0a1b")
    file = finding.settings_file(tmp_path)
    recorded = OmegaConf.load(file)
    for group, added in ADDED.items():
        for name in added:
            del recorded[group][name]
    file.write_text(OmegaConf.to_yaml(recorded), encoding="utf-8")
    config = to_dict(run.recorded_config(tmp_path, load(), []))
    assert all(config[group][name] == value for group, added in ADDED.items() for name, value in added.items())


def test_a_folder_without_a_run_names_those_beside_it(tmp_path: Path) -> None:
    run.record(load([f"runs_dir={tmp_path}", "run_name=there"]), [], base="0a1b")
    with pytest.raises(ConfigError, match=r"no run in .*/absent .*beside it are there; make train makes one"):
        run.recorded_config(tmp_path / "absent", load(), [])


def test_the_last_run_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no run yet"):
        finding.last_run(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    finding.set_last_run(Path("runs/mine"), Path("runs"))
    assert finding.last_run(tmp_path / "runs") == tmp_path / "runs" / "mine"


@pytest.mark.slow
def test_ctrl_c_logs_what_is_kept_and_the_same_command_goes_on(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    many = [*words, "training.max_steps=30", "training.batch_size=2", "training.save_steps=2", "eval.after=false"]
    folder = load(many).run / "train"
    process = start("train", *many)
    while not list(folder.glob("checkpoints/*/trainer_state.json")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "is kept: the same command goes on from there" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert not (folder / "metrics.json").exists()

    train(load(many))
    assert "resuming from" in capsys.readouterr().err
    assert read_json(folder / "metrics.json")["steps"] == 30
    steps = [line["step"] for line in read_jsonl(folder / "log.jsonl") if "loss" in line]
    assert steps == list(range(1, 31))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        (["lora.r=2", "'data.source=\"a, b\"'"], ["lora.r=2 'data.source=\"a, b\"'"]),
        (
            ["-m", "lora.r=2,4", "'data.source=\"a, b\"'"],
            ["lora.r=2 'data.source=\"a, b\"'", "lora.r=4 'data.source=\"a, b\"'"],
        ),
    ],
)
def test_the_recorded_overrides_are_those_of_one_job(tmp_path: Path, words: list[str], jobs: list[str]) -> None:
    script = (
        "import shlex\n"
        "from asr_lora.runs.launch import job_overrides, launch\n"
        "launch(lambda config: print(shlex.join(job_overrides())))\n"
    )
    typed = shlex.split(" ".join(words))
    done = subprocess.run(
        [sys.executable, "-c", script, *typed], check=True, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == jobs


@pytest.mark.slow
def test_the_main_command_logs_nothing_on_import() -> None:
    """On CPUs with AVX512-BF16 bitsandbytes warns on import, and transformers imports it before we do."""
    loaded = subprocess.run([sys.executable, "-c", "import asr_lora.train"], capture_output=True, text=True, check=True)
    assert loaded.stderr == ""


@pytest.mark.slow
def test_an_unknown_choice_of_a_group_is_a_choice_at_the_command_line_too() -> None:
    """Hydra's error for it is an OSError too, but not one of the disk."""
    command = [sys.executable, "-m", "asr_lora.train", "lora=lokr"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1][:36]) == (2, "error: lora: lokr is none of adalora")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora=4", "lora: 4 is none of adalora, "),
        ("data=[{source: silence}]", "data: [{source: silence}] is none of common_voice"),
        ('data="\0"', 'data: "\\x00" is none of common_voice'),
        ("lora=NULL", "lora: NULL is none of adalora, "),
        (f"lora.kind={'x' * 300}", "lora.kind: "),
        ("=0", "=0: must be setting=value"),
        ("data={a: 1}", "data: {a: 1} is none of common_voice"),
        ("~A", "~A: no such setting to remove"),
        ("~", "~: no such setting to remove"),
        ("A~", "A~: must be setting=value"),
        ("", "'': must be setting=value"),
        ("data.language=\u2028", "data.language: "),
        ("data.source=\x1b[2J", "data.source: "),
    ],
)
def test_an_override_that_hydra_has_no_error_for_is_named_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load([override])
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1 and "\x1b" not in str(error.value)


def test_an_error_is_one_printable_line_whatever_value_it_has() -> None:
    message = str(ConfigError(f"data.source: \x1b[2J two\nlines \ud800 {'9' * 100_000}; take another"))
    assert message.startswith("data.source: \\x1b[2J two lines \\ud800 999") and message.endswith("; take another")
    assert len(message) < 2_000
