"""`compare`, the notebook's way to eval's figures: the same numbers, without torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.package import ROOT
from support.releases import RELEASE, write_release
from support.runs import tiny_run

from asr_lora.config.compose import load
from asr_lora.eval import evaluate
from asr_lora.evaluation import compare, read_manifest, write_manifest
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import read_jsonl
from asr_lora.train import train

# What loads torch or takes seconds; a session without them is what `compare` is for.
HEAVY = ("accelerate", "bitsandbytes", "datasets", "evaluate", "pandas", "peft", "torch", "torchaudio")


def run(source: str) -> str:
    """Returns what a new Python prints."""
    return subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_the_figures_are_those_of_eval(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_release(tmp_path / RELEASE)
    overrides = [*tiny_run(tmp_path / RELEASE, tiny_checkpoint, tmp_path / "runs"), "eval.normalizer=basic"]
    train(load([*overrides, "eval.after=false"]))
    config = load(overrides)
    facts = evaluate(config)
    lines = read_jsonl(config.run / "eval" / "test" / "hypotheses.jsonl")
    sides = {"base": [line["baseline_hypothesis"] for line in lines], "own": [line["hypothesis"] for line in lines]}
    speakers = [line["speaker"] or None for line in lines]
    found = compare([line["reference"] for line in lines], sides, facts["language"], speakers, "basic")
    for scores, of_eval in ((found["base"], facts["baseline"]), (found["own"], facts)):
        delta, signs = scores.pop("delta", None), scores.pop("runaways")
        assert scores == {name: of_eval[name] for name in scores} and {"wer_ci95", "insertions"} < set(scores)
        assert signs == {name: of_eval["runaways"][name] for name in signs}
    assert delta == {name: facts["delta"][name] for name in delta} and {"wer", "ci95"} < set(delta)


def test_differences_are_to_the_first_or_to_the_one_that_is_named() -> None:
    references, texts = ["een twee", "drie vier"], {"a": ["een", "drie"], "b": ["een twee", "drie"]}
    assert compare(references, texts, "nl")["b"]["delta"]["wer"] == -0.25
    found = compare(references, texts, "nl", against="b")
    assert found["a"]["delta"]["wer"] == 0.25 and "delta" not in found["b"]


def test_looped_text_and_text_on_silence_are_counted() -> None:
    looped = "dank u wel " * 20
    signs = compare(["een twee", "..."], {"a": [looped, "dank u"]}, "nl")["a"]["runaways"]
    assert signs == {"compression": 1, "loop": 1, "silence": 1}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (([], {"a": []}, "nl"), "references: must be one a reference, and at least one, got 0 for 0 references"),
        ((["x"], {}, "nl"), "hypotheses: none are given; name each list of texts, {'base': [...]}"),
        ((["x"], {"a": []}, "nl"), "hypotheses 'a': must be one a reference, and at least one, got 0 for 1 references"),
        ((["x"], {"a": "x"}, "nl"), "hypotheses 'a': must be a list of texts, got str"),
        ((["x"], {"a": [float("nan")]}, "nl"), "hypotheses 'a'[0]: must be a text, got nan"),
        (([None], {"a": ["x"]}, "nl"), "references[0]: must be a text, got None"),
        ((["x"], {"a": ["x"]}, "nl", ["s", "t"]), "speakers: must be one a reference, and at least one, got 2 for 1"),
        ((["x"], {"a": ["x"]}, "nl", None, "none"), "normalizer: 'none' is none of raw, basic"),
        ((["x"], {"a": ["x"]}, "jp"), "language: must be Whisper's token of it, such as nl, got 'jp'"),
        ((["x"], {"a": ["x"]}, "nl", None, "marks", False, "b"), "against: b is none of a"),
    ],
)
def test_lists_that_cannot_be_scored_are_refused_in_a_line(arguments: tuple[object, ...], line: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(line)):
        compare(*arguments)  # type: ignore[arg-type]


def test_the_example_of_the_page_runs_and_loads_no_torch() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "compare" in block)
    loaded = f"\nimport json, sys; print(json.dumps(sorted(set(sys.modules) & set({HEAVY}))))"
    *printed, modules = run(example + loaded).splitlines()
    assert json.loads(modules) == []
    shown = re.findall(r"# (.*)$", example, re.M)
    assert printed == shown and printed


def test_a_manifest_of_the_leaderboard_is_read_and_written(tmp_path: Path) -> None:
    row = {
        "audio_filepath": "sample_0",
        "duration": 1.5,
        "time": 0.2,
        "text": "Het\u2028regent.",
        "pred_text": "het regen",
    }
    (tmp_path / "theirs.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    references, hypotheses = read_manifest(tmp_path / "theirs.jsonl")
    assert (references, hypotheses) == (["Het\u2028regent."], ["het regen"])
    write_manifest(tmp_path / "ours.jsonl", references, hypotheses, [1.5])
    (written,) = read_jsonl(tmp_path / "ours.jsonl")
    assert written == {**row, "time": None} and list(written) == list(row)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is no JSON"),
        ('{"text": "a"}', "line 1 has no pred_text; write it anew as the leaderboard's scripts do"),
        ('{"text": [["a"]], "pred_text": "a"}', "line 1 is damaged, text is [['a']]"),
        ('{"text": "a", "pred_text": null}', "line 1 is damaged, pred_text is None"),
        ('{"text": "\\ud800", "pred_text": "a"}', "line 1 is no JSON"),
    ],
)
def test_a_manifest_that_is_none_is_refused_in_a_line(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ExternalError, match=re.escape(message)):
        read_manifest(tmp_path / "m.jsonl")
    for place in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(ConfigError, match="manifest: "):
            read_manifest(place)
