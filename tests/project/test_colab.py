"""Tests of recipes/colab.ipynb: its targets exist, it stops on errors, and runs in a checkout's copy."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from support.makefile import composed, make

from asr_lora.demo.assets import whisper_base_from_wheels
from asr_lora.runtime.files import read_json

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "recipes" / "colab.ipynb"


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def cell(name: str) -> str:
    (source,) = (each.source for each in read().cells if each.id == name)
    return str(source)


def filled_in(**settings: str) -> nbformat.NotebookNode:
    """Returns the notebook with other values in its first cell, as a user would fill in the form."""
    notebook = read()
    (first,) = (each for each in notebook.cells if each.id == "settings")
    for name, value in settings.items():
        (line,) = (line for line in first.source.splitlines() if line.startswith(f"{name} = "))
        first.source = first.source.replace(line, f"{name} = {value!r}")
    return notebook


class Shown:
    """Stands for IPython's display of a text that is replaced."""

    def __init__(self, bundle: dict[str, str], **options: bool) -> None:
        self.text = bundle["text/plain"]

    def update(self, bundle: dict[str, str], raw: bool) -> None:
        self.text = bundle["text/plain"]


def executed(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()


def made(**settings: str) -> list[list[str]]:
    """Returns the arguments of make in the data, look and train cells, with these settings; runs nothing."""
    commands: list[tuple[str, ...]] = []
    names: dict[str, Any] = {"run": lambda *command, **options: commands.append(command)}
    opening = [
        part for part in ast.parse(cell("get")).body if isinstance(part, ast.Import | ast.ImportFrom | ast.ClassDef)
    ]
    exec(ast.unparse(ast.Module(opening, [])), names)
    for each in filled_in(**settings).cells:
        if each.id in ("settings", "data", "look", "train"):
            exec(each.source, names)
    return [words for program, *words in commands if program == "make"]


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolates the kernel from the user's settings and history, and from the make that runs the tests."""
    for name in ("LANG", "MAKEFLAGS", "MAKELEVEL", "MDC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Returns a copy of what the notebook uses, in which make finds everything installed."""
    copy = tmp_path / "checkout"
    for name in ("asr_lora", "conf", "recipes"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "uv.lock"):
        shutil.copy(ROOT / name, copy)
    for program in (".venv/bin/python", ".uv/bin/uv"):
        (copy / program).parent.mkdir(parents=True)
        (copy / program).write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (copy / program).chmod(0o755)
    for name in ("core", "demo"):
        (copy / ".venv" / f".installed-{name}").touch()
    return copy


def test_it_is_a_valid_notebook_for_a_t4_without_results() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    nbformat.validate(notebook)
    assert notebook["nbformat"] == 4
    assert notebook["metadata"]["accelerator"] == "GPU" and notebook["metadata"]["colab"]["gpuType"] == "T4"
    for each in notebook["cells"]:
        assert each["id"]
        if each["cell_type"] == "code":
            assert each["outputs"] == [] and each["execution_count"] is None


def test_all_settings_of_the_user_are_a_form_in_the_first_cell() -> None:
    first, *others = [each.source for each in read().cells if each.cell_type == "code"]
    field = r'[A-Z]+ = ".*"  # @param (\{type:"string"\}|\[.+\] \{allow-input: true\})'
    for line in first.splitlines():
        assert re.fullmatch(rf"# @markdown .+|{field}", line)
    assert first.count(" = ") == 6
    assert not any("@param" in source for source in others)


def test_every_target_that_it_makes_is_one_of_the_makefile() -> None:
    calls = [
        [word.value for word in node.args if isinstance(word, ast.Constant)]
        for each in read().cells if each.cell_type == "code"
        for node in ast.walk(ast.parse(each.source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run"
    ]  # fmt: skip
    targets = {words[1] for words in calls if words[0] == "make"}
    assert targets == {"torch", ".venv/.installed-demo", "plan", "doctor", "train"}
    for target in targets:
        make("-n", target)


def test_the_settings_of_the_form_reach_plan_doctor_and_training() -> None:
    source = "/content/drive/MyDrive/Common Voice, nl.tar.gz"
    settings = {"LANGUAGE": "sv-SE", "HOURS": "0.5", "DATA": source, "MODEL": "whisper_small"}
    settings["ARGS"] = "experiment=t4_fast 'runs_dir=\"/my drive/runs\"'"
    targets = []
    for target, *words in made(**settings):
        config = composed(target, *words)
        assert (config.data.language, config.data.hours, config.data.source) == ("sv-SE", 0.5, source)
        assert (config.model.name, config.runs_dir) == ("small", "/my drive/runs")
        assert (config.experiment_name, config.model.precision, config.hardware.autocast) == ("t4_fast", "fp16", "fp16")
        targets.append(target)
    assert targets == ["plan", "doctor", "train"]


def test_without_data_training_takes_a_hundred_steps_on_all_synthetic_dutch_unless_set_otherwise() -> None:
    for args, steps in {"experiment=t4_fast": 100, "training.max_steps=7": 7}.items():
        for target, *words in made(ARGS=args):
            config = composed(target, *words)
            assert (config.data.source, config.data.hours) == ("data/synthetic-nl.tar.gz", None)
            assert config.max_steps == steps


def test_a_language_without_synthetic_voices_and_without_data_is_refused() -> None:
    with pytest.raises(Exception, match=r"LANGUAGE: only nl has synthetic voices \(got: fr\); set DATA"):
        made(LANGUAGE="fr")


def test_without_checkout_and_address_it_stops_with_a_line(alone: None, tmp_path: Path) -> None:
    notebook, nowhere = read(), tmp_path / "empty" / "folder"
    nowhere.mkdir(parents=True)
    with pytest.raises(CellExecutionError):
        executed(notebook, nowhere)
    last = [each for each in notebook.cells if each.cell_type == "code" and each.outputs][-1]
    assert last.id == "get"
    (line,) = last.outputs[0]["traceback"]
    assert line.startswith("error: REPOSITORY: must be the address") and "\n" not in line


def test_it_clones_the_address_and_finds_the_clone_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin, here = tmp_path / "origin", tmp_path / "here"
    origin.mkdir()
    here.mkdir()
    shutil.copy(ROOT / "pyproject.toml", origin)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "--message=all"]):
        subprocess.run(["git", *words], cwd=origin, check=True)
    for address in (origin.as_uri(), "nowhere, and not used"):
        monkeypatch.chdir(here)
        exec(cell("get"), {"REPOSITORY": address, "display": Shown})
        assert Path.cwd() == here / "asr_lora"


def test_a_command_shows_its_last_lines_and_one_that_fails_all_of_them_and_stops_the_notebook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MPLBACKEND", "module://of_the_kernel")
    shown: list[Shown] = []
    names: dict[str, Any] = {
        "REPOSITORY": "",
        "display": lambda *each, **options: shown.append(Shown(*each)) or shown[-1],
    }
    exec(cell("get"), names)
    names["run"]("seq", "100", last=2)
    names["run"]("sh", "-c", "echo $MPLBACKEND; echo well")
    with pytest.raises(names["StoppedError"], match=r"^sh -c: ended with status 3; its output is above$"):
        names["run"]("sh", "-c", "seq 3; echo what >&2; exit 3", last=1)
    assert [each.text for each in shown] == ["99\n100\n", "\nwell\n", "1\n2\n3\nwhat\n"]


def test_the_stop_button_lets_a_command_save_what_it_has() -> None:
    stage = "import time\ntry: print('begun', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: exit('saved')"
    shown = (
        "class display:\n def __init__(*_, **__): 0\n def update(_, new, raw): print(*new.values(), end='', flush=True)"
    )
    program = f"REPOSITORY = ''\n{shown}\n{cell('get')}\nrun(sys.executable, '-c', {stage!r})\n"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout and process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=30)
    assert output == "begun\nsaved\n"
    assert error.endswith("-c: stopped; the same cell resumes from what was saved\n")


@pytest.mark.slow
@pytest.mark.timeout(3600)  # it trains: beside other work that takes several times its two minutes
def test_it_runs_top_to_bottom_on_synthetic_dutch(alone: None, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(os.cpu_count()))  # real weights need them
    few = (
        f"model.checkpoint={whisper_base_from_wheels()} model.precision=fp32 hardware=cpu training.max_steps=4 "
        "training.batch_size=2 data.dev_clips=2 eval.limit=8 decoding.max_new_tokens=64"
    )
    args = f"experiment=t4_fast {few} 'runs_dir=\"my runs\"'"
    notebook = filled_in(MODEL="whisper_base", ARGS=args)
    executed(notebook, checkout / "recipes")
    output = {
        each.id: [part.get("data", {}) for part in each.outputs] for each in notebook.cells if each.cell_type == "code"
    }
    texts = {name: [data["text/plain"] for data in parts] for name, parts in output.items()}
    assert "\x1b" not in "".join(text for each in texts.values() for text in each)  # no moving bars, only lines
    assert "synthesizing 316 Dutch sentences" in texts["data"][0]
    planned, checked = texts["look"]
    assert "this machine" in planned and "0 failed" in checked
    assert len(texts["train"][0].splitlines()) == 20
    (folder,) = (path.parent.parent for path in (checkout / "my runs").glob("*/train/adapter"))
    scored = read_json(folder / "eval" / "test" / "metrics.json")
    table, *clips = [data["text/html"] for data in output["results"]]
    for name, facts in (("base", scored["baseline"]), ("fine-tuned", scored)):
        assert f"<td>{name}</td><td>{100 * facts['wer']:.1f}%" in table
    assert f"<td>difference</td><td>{100 * scored['delta']['wer']:+.1f} points" in table
    players, words = clips[::2], clips[1::2]
    assert len(players) == len(words) == 3 and all("data:audio/mpeg;base64," in player for player in players)
    assert all("<b>base</b>: " in each and "<b>fine-tuned</b>: " in each for each in words)
    assert any("<mark>" in each for each in words)
    with zipfile.ZipFile(checkout / "my runs" / f"{folder.name}-adapter.zip") as zipped:
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(zipped.namelist())
    with zipfile.ZipFile(checkout / "my runs" / f"{folder.name}-report.zip") as zipped:
        assert "index.html" in zipped.namelist()
