"""What a notebook shows of a run: the table, and three clips with sound and marked differences."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr_lora.reporting import notebook
from asr_lora.reporting.notebook import notebook_end
from asr_lora.runs import folder as run
from asr_lora.runs.finding import set_last_run
from asr_lora.runtime.files import write_json, write_jsonl

SCORES = {
    "wer": 1.052, "wer_ci95": [0.526, 1.578], "baseline": {"wer": 2.075, "wer_ci95": [1.038, 3.112]},
    "delta": {"wer": -1.023, "ci95": [-1.471, -0.751]}, "language": "nl", "split": "test", "set": "test",
    "normalizer": "marks", "normalizer_version": 2, "numbers_as_words": False,
    "inputs": {"decoding": {"fallback": False}, "figures": run.FIGURES},
}  # fmt: skip
TEXTS = {  # reference, base, fine-tuned
    "a": ("een boom", "een boem", "een boom"),
    "b": ("de kat zat op de mat", "de gat op mat", "de kat zat op de mat"),
    "c": ("ja & <nee>", "ja & <nee>", "<b>ja</b>"),
    "d": ("dank je", "dank je", "dank je"),
}


def written(folder: Path, errors: dict[str, tuple[int, int]]) -> Path:
    """Writes a scored run of these clips, the first without its recording."""
    lines: list[dict[str, Any]] = []
    for name, (before, after) in errors.items():
        texts = dict(zip(("reference", "baseline_hypothesis", "hypothesis"), TEXTS[name], strict=True))
        again = {"without_fallback": texts["hypothesis"], "baseline_without_fallback": texts["baseline_hypothesis"]}
        about = {"id": name, "path": str(folder / f"{name}.wav"), "duration": 1.0, "speaker": "", "runaway": []}
        counts = {"errors": after, "baseline_errors": before, "baseline_runaway": []}
        lines.append(about | again | counts | texts | {f"{key}_normalized": text for key, text in texts.items()})
        if lines[1:]:
            soundfile.write(folder / f"{name}.wav", np.zeros(160), 16_000)
    write_json(folder / "eval" / "test" / "metrics.json", SCORES | {"clips": len(lines)})
    write_jsonl(folder / "eval" / "test" / "hypotheses.jsonl", lines)
    return folder


def test_it_has_both_rates_with_intervals_and_three_clips_with_their_differences_marked(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "nl"
    folder.mkdir(parents=True)
    written(folder, {"a": (1, 0), "b": (3, 0), "c": (0, 2), "d": (0, 0)})
    (folder / "train" / "adapter").mkdir(parents=True)
    end = notebook_end(folder)
    assert "<td>base</td><td>207.5% (103.8% to 311.2%)</td>" in end["table"]
    assert "<td>difference</td><td>-102.3 points (-147.1 to -75.1)</td>" in end["table"]
    assert "WER of 4 test clips" in end["table"]
    improved, degraded, median = end["clips"]
    assert improved["text"] == (
        "<b>most improved, 3 to 0 errors</b>: de kat zat op de mat<br>"
        "<b>base</b>: de <mark>[gat]</mark> <mark>[-]</mark> op <mark>[-]</mark> mat<br>"
        "<b>fine-tuned</b>: de kat zat op de mat"
    )
    assert "ja &amp; &lt;nee&gt;<br>" in degraded["text"]  # markup in a corpus stays text
    assert "<mark>[&lt;b&gt;ja&lt;/b&gt;]</mark>" in degraded["text"]
    assert Path(improved["sound"]).read_bytes() == (folder / "b.wav").read_bytes()
    assert {Path(clip["sound"]).parent for clip in (improved, degraded, median)} == {folder / "report" / "clips"}
    assert (end["adapter"], end["page"]) == (str(folder / "train" / "adapter"), str(folder / "report" / "index.html"))


def test_a_clip_without_its_recording_has_no_sound(tmp_path: Path) -> None:
    folder = tmp_path / "nl"
    folder.mkdir()
    (clip,) = notebook_end(written(folder, {"a": (1, 0)}))["clips"]
    assert clip["sound"] is None and "een <mark>[boem]</mark>" in clip["text"]


def test_its_command_prints_json_of_the_last_run_and_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "nl"
    folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["notebook", str(tmp_path / "runs")])
    set_last_run(folder, tmp_path / "runs")
    with pytest.raises(SystemExit):
        notebook.main()
    printed = capsys.readouterr()
    assert (
        printed.out == ""
        and printed.err == f"error: run_dir: must be of a scored run, got {folder}; make eval scores it\n"
    )
    written(folder, {"a": (1, 0), "d": (0, 0)})
    notebook.main()
    assert len(json.loads(capsys.readouterr().out)["clips"]) == 2
