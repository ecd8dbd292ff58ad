"""Tests of the one command, `asr-lora`: its help, its answers to mistakes, and that it runs the stages as they are."""

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.package import ROOT

from asr_lora import __version__, cli
from asr_lora.config.compose import load
from asr_lora.config.schema import FETCHED
from asr_lora.corpus import huggingface, mdc, shards
from asr_lora.doctor.requirements import EXTRAS, unmet
from asr_lora.speech import limits, normalizer

SLOW = {"torch", "torchaudio", "transformers", "datasets", "peft", "pyarrow"}
HEAVY = SLOW | {"hydra", "omegaconf"}
# Python imports it before the command; it notes what is loaded at the end.
PROBE = """
import atexit, sys
atexit.register(lambda: open("loaded.txt", "w").write(" ".join({name.partition(".")[0] for name in sys.modules})))
"""


def typed(
    *words: str, cwd: Path, module: str = "asr_lora", **environment: str
) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Runs the command; returns what came of it, and the libraries that it loaded."""
    probe = cwd / "probe"
    probe.mkdir(exist_ok=True)
    (probe / "sitecustomize.py").write_text(PROBE, encoding="utf-8")
    command = [sys.executable, "-m", module, *words]
    path = {"PYTHONPATH": f"{probe}{os.pathsep}{ROOT}", "COLUMNS": "80"}
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | path | environment, capture_output=True, text=True, check=False
    )
    return done, set((cwd / "loaded.txt").read_text(encoding="utf-8").split())


def test_the_help_is_one_screen_with_a_line_for_every_stage(tmp_path: Path) -> None:
    done, loaded = typed("--help", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "") and len(lines) <= 24 and max(map(len, lines)) <= 80
    assert "  train       Prepares, trains and evaluates a run" in lines
    assert typed(cwd=tmp_path)[0].stdout == done.stdout
    assert loaded & HEAVY == set()
    starts = 'if __name__ == "__main__":\n    '
    modules = [*(ROOT / "asr_lora").glob("*.py"), *(ROOT / "asr_lora").glob("*/__main__.py")]
    stages = [path for path in modules if starts in path.read_text(encoding="utf-8")]
    own = {path.parent.name if path.stem == "__main__" else path.stem for path in stages}
    assert set(cli.STAGES) == own - {"asr_lora"}


@pytest.mark.parametrize("stage", cli.STAGES)
def test_the_help_of_a_stage_has_ten_settings_that_compose_to_their_defaults(stage: str) -> None:
    lines = cli.stage_help(stage).splitlines()
    says = ast.get_docstring(ast.parse(source(stage).read_text(encoding="utf-8")))
    assert says and lines[2] == says.partition(":  ")[0] + "."
    shown = [found[1] for line in lines if (found := re.fullmatch(r"  ([\w.]+=.+)", line))]
    assert len(shown) == len({line.partition("=")[0] for line in shown}) == 10
    own = ["experiment=demo"] if stage == "demo" else []
    assert load([*own, *shown]) == load(own)
    example = shlex.split(lines[lines.index("Example:") + 1])
    assert example[:2] == ["asr-lora", stage]
    load(example[2:])


def source(stage: str) -> Path:
    file = ROOT / "asr_lora" / f"{stage}.py"
    return file if file.is_file() else ROOT / "asr_lora" / stage / "__main__.py"


def test_the_help_of_a_stage_imports_no_stage_and_nothing_heavy(tmp_path: Path) -> None:
    done, loaded = typed("train", "data.language=nl", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and loaded & HEAVY == set()
    assert "\n  data.language=nl\n" in done.stdout and "asr-lora train --cfg job" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_wrong_stage_is_one_line_with_the_nearest(tmp_path: Path) -> None:
    done, loaded = typed("trian", "data.language=nl", cwd=tmp_path)
    wanted = "error: trian: no such stage; did you mean train? asr-lora --help lists all\n"
    assert (done.returncode, done.stderr) == (2, wanted) and loaded & HEAVY == set()
    done, _ = typed("x\x1b[2J\n", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "\x1b" not in done.stderr


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    assert typed("--version", cwd=tmp_path)[0].stdout == f"asr-lora {__version__}\n"
    assert f'\nversion = "{__version__}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train data.hour=1", "data.hour: no such setting; did you mean data.hours?"),
        ("eval data.hours=-1", "data.hours: must be more than 0, or null for all there is, got -1.0"),
        ("demo hours", "hours: must be setting=value, for instance data.hours=1; see --help"),
        ("train data.source=not/there", "data.source: no file or folder {folder}/not/there; name one that is there"),
        (
            "transcribe transcribe.base_model=true audio=talk.mp3",
            "audio: no file, folder or pattern of files talk.mp3; name one that exists",
        ),
        ("prepare data.language=xx", "data.source: no Common Voice release for xx ({folder}/data/cv-corpus-*-xx*)"),
        ("eval", "run_dir: no run yet (no runs/last); make train makes one, or name one: run_dir=..."),
        ("report report.runs=runs/a-*", "report.runs: no scored run matches runs/a-*; quote the pattern"),
        ("export run_dir=a", "run_dir: no run in a (no train/config.yaml); make train makes one"),
    ],
)
@pytest.mark.parametrize("as_module", [False, True])
def test_a_mistake_is_answered_before_torch_is_imported(
    words: str, message: str, as_module: bool, tmp_path: Path
) -> None:
    stage, *rest = words.split()
    typing = {"module": f"asr_lora.{stage}"} if as_module else {}
    done, loaded = typed(*(rest if as_module else words.split()), cwd=tmp_path, **typing)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and lines[0].startswith(f"error: {message.format(folder=tmp_path)}")
    assert len([line for line in lines if line.startswith("error: ")]) == 1 and loaded & SLOW == set()
    assert {file.name for file in tmp_path.iterdir()} == {"loaded.txt", "probe"}


def test_all_that_is_missing_is_answered_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lines, status = unmet("train", ["data.source=a"])
    assert status == 2 and [line.partition(",")[0] for line in lines] == [
        f"error: data.source: no file or folder {tmp_path}/a; name one that is there",
        "also: model.checkpoint: openai/whisper-large-v2 is not on this machine: it is downloaded from the Hub",
    ]
    lines, _ = unmet("prepare", ["data.source=a", "model.checkpoint=/no/model"])
    assert [line.split(":")[1] for line in lines] == [" data.source", " model.checkpoint"]
    lines, _ = unmet("transcribe", ["audio=talk.mp3"])
    assert [line.split(":")[1] for line in lines] == [" audio", " run_dir"]
    lines, _ = unmet("label", ["label.source=other.tsv"])
    assert [line.split(":")[1] for line in lines] == [" label.source", " run_dir"]
    lines, _ = unmet("self_train", ["audio=talk.mp3", "data.source=a", "model.checkpoint=/no/model"])
    assert [line.split(":")[1] for line in lines] == [" data.source", " model.checkpoint", " audio"]
    (tmp_path / "talk.mp3").touch()
    assert unmet("transcribe", ["audio=talk.mp3", "transcribe.base_model=true"]) == ([], 0)


@pytest.mark.parametrize(("stage", "module"), EXTRAS.items())
def test_a_stage_without_its_extra_is_one_line_with_the_command(
    stage: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as ended:
        cli.answer_first(stage, [])
    extra = "app" if module == "gradio" else stage
    way_out = f"`uv sync --inexact --extra {extra}` installs it"
    line, *_ = capsys.readouterr().err.splitlines()
    assert (ended.value.code, line) == (1, f"error: {stage}: needs {module}, which is not installed; {way_out}")


@pytest.mark.parametrize("words", [["-m", "lora.r=4,8"], ["--cfg", "job"], ["run_name=${now:%H}"], ["hydra.x=1"]])
def test_what_only_hydras_start_resolves_is_left_to_the_stage(words: list[str]) -> None:
    cli.answer_first("train", words)


def test_prepared_data_are_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "run" / "data").mkdir(parents=True)
    cli.answer_first("train", [f"run_dir={tmp_path}/run", "data.source=/not/there"])


def test_names_that_settings_take_are_those_that_exist() -> None:
    assert tuple(normalizer.NORMALIZERS) == limits.NORMALIZERS
    assert FETCHED == (mdc.PREFIX, huggingface.PREFIX, shards.PREFIX)


def test_a_stage_runs_as_by_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def run_module(name: str, **how: object) -> None:
        seen.extend([name, sys.argv[1:], how])

    monkeypatch.setattr(sys, "argv", ["asr-lora", "train", "-m", "lora.r=4,8"])
    monkeypatch.setattr(runpy, "run_module", run_module)
    cli.main()
    assert seen == ["asr_lora.train", ["-m", "lora.r=4,8"], {"run_name": "__main__", "alter_sys": True}]


@pytest.mark.parametrize(
    ("line", "word"),
    [("asr-lora tr", "train"), ("asr-lora train lora=", "lora=dora"), ("asr-lora train data.language=nl se", "seed=")],
)
def test_tab_completes_stages_settings_and_choices(line: str, word: str, tmp_path: Path) -> None:
    done, loaded = typed("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert word in done.stdout.split() and not loaded & SLOW
    script, _ = typed("-sc", "install=bash", cwd=tmp_path)
    assert script.stdout.splitlines()[-1].endswith("hydra_bash_completion asr-lora")


def test_ctrl_c_while_libraries_are_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["asr-lora", "plan"])
    monkeypatch.setattr(runpy, "run_module", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "interrupted; nothing was started\n")
