"""Report and comparison pages: complete, safe from markup in a corpus, working in a browser."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from support.pages import HOSTILE, Page, opened, seconds_of_players, violations
from support.releases import utterances, write_release
from support.runs import cache_in, tiny_run
from transformers import WhisperConfig

from asr_lora.config.compose import load
from asr_lora.model.cost import PUBLISHED
from asr_lora.report import compare, report
from asr_lora.reporting.pages import hub_id, unbroken, write_card
from asr_lora.reporting.tables import show_run
from asr_lora.runs import finding
from asr_lora.runs import folder as run
from asr_lora.runs.folder import FIGURES
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, read_jsonl, write_json, write_jsonl
from asr_lora.train import show_end, train

MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def hostile_words(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> list[str]:
    """Overrides of a trained run on a corpus whose sentences and speakers contain markup."""
    folder = tmp_path_factory.mktemp("hostile")
    splits = {name: utterances(name, count, 3) for name, count in (("train", 12), ("dev", 4), ("test", 6))}
    for row in splits["test"]:
        row["sentence"] += HOSTILE
        row["gender"], row["age"] = (MARKUP, "") if row["path"] < "common_voice_test_00003" else ("", "twenties")
    write_release(folder / "release", splits=splits)
    words = [*tiny_run(folder / "release", tiny_checkpoint, folder / "runs"), "eval.sets=[{source: silence}]"]
    with cache_in(folder):
        train(load(words))
        train(load([*words, "lora.r=2"]))
    # A random model is wrong everywhere: let one clip improve, and one degrade.
    file = load(words).run / "eval" / "test" / "hypotheses.jsonl"
    lines = read_jsonl(file)
    for line, model in ((lines[0], ""), (lines[1], "baseline_")):
        line[f"{model}hypothesis"], line[f"{model}errors"] = line["reference"], 0
        line[f"{model}hypothesis_normalized"] = line["reference_normalized"]
    write_jsonl(file, lines)
    return words


def test_the_page_is_one_file_with_the_numbers_of_the_run(hostile_words: list[str]) -> None:
    folder = load(hostile_words).run
    page = Page(report(folder))
    facts = read_json(folder / "eval" / "test" / "metrics.json")
    assert f"{facts['baseline']['wer']:.1%}" in page.text and f"{facts['wer']:.1%}" in page.text
    for text in (
        "silence",
        "Substitutions",
        "Most degraded",
        "twenties",
        "asr_lora.train",
        "train and test share 0 speakers, 0 sentences, 0 clips; dev and test share 0 speakers",
        "the base model is decoded at 30 s context, the fine-tuned model at clip length",
        "Word error rate on dev, normalized by marks 2, 95 % intervals",
        "loss (nats per token)",
        "optimizer step",
        "neither model has Whisper's fallback",
    ):
        assert text in page.text
    assert len(json.loads(page.json)["lines"]) == 6
    dev = run.training_metrics(folder)["dev"]
    assert dev and all(point["wer_ci95"][0] <= point["wer"] <= point["wer_ci95"][1] for point in dev)
    outside = [value for _, attributes in page.tags for name in ("src", "href") if (value := attributes.get(name))]
    players = [value for value in outside if value.startswith("clips/")]
    assert players and all((folder / "report" / value).is_file() for value in players)
    others = [value for value in outside if value not in players]
    assert "data:," in others and all(value.startswith("#") for value in others if value != "data:,")
    anchors = {f"#{attributes['id']}" for _, attributes in page.tags if "id" in attributes}
    assert {"#sets", "#groups", "#helped", "#harmed", "#every"} == set(others) - {"data:,"} <= anchors


SAMPLED = (
    "a sample, each speaker's first clip before any second; not comparable with published rates of the whole test set"
)


@pytest.mark.parametrize(
    ("limit", "available", "way"),
    [(6, 9, ", which eval.limit=null"), (6, None, ", which a new run with eval.limit=null"), (9, 7, ""), (None, 7, "")],
)  # 6 clips are scored: of 7 one is unusable; of a stream the number is unknown
def test_a_score_of_a_sample_says_so_and_how_to_get_that_of_the_whole_set(
    hostile_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    limit: int | None, available: int | None, way: str,
) -> None:  # fmt: skip
    made = shutil.copytree(load(hostile_words).run, tmp_path / "nl-a")
    file = made / "eval" / "test" / "metrics.json"
    write_json(file, read_json(file) | {"limit": limit, "available": available})
    scores = run.read_scores(made)
    show_run("nl-a", scores)
    base = run.settings(made)["model"]["checkpoint"]
    write_card(made, made, "apache-2.0", run.training_metrics(made), read_json(run.summary(made)), scores, base)
    page = Page(report(made)).text
    compared = Page(compare(str(tmp_path / "nl-*"), tmp_path)).text
    shown = page, (made / "README.md").read_text(), capsys.readouterr().out, compared
    for text in shown:
        words = " ".join(text.split())
        assert (SAMPLED + way in words) if way else "a sample" not in words


def test_an_interval_stays_on_one_line_and_markup_beside_it_stays_text() -> None:
    assert unbroken("+1.0 points (-1.0 to +3.0) <b>") == (
        '<span>+1.0 points <span class="whole">(-1.0 to +3.0)</span> &lt;b&gt;</span>'
    )


def test_markup_in_a_corpus_stays_text(hostile_words: list[str]) -> None:
    page = Page(report(load(hostile_words).run))
    assert [tag for tag, _ in page.tags].count("script") == 3  # ours: the clips as data, the search, the tables
    assert not [tag for tag, attributes in page.tags if tag == "img" or "onerror" in attributes]
    assert any(HOSTILE in line["reference"] for line in json.loads(page.json)["lines"])
    assert MARKUP[:20] in page.text  # the name of a group
    # Otherwise the Latin label would make Arabic and Hebrew run from left to right.
    labels = [attributes.get("dir") for tag, attributes in page.tags if tag == "em"]
    assert labels and set(labels) == {"ltr"}


def test_a_missing_clip_is_logged_and_the_page_is_complete(
    hostile_words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = load(hostile_words).run
    clip = Path(read_jsonl(folder / "eval" / "test" / "hypotheses.jsonl")[0]["path"])
    away = clip.rename(clip.with_suffix(".away"))
    try:
        page = Page(report(folder))
    finally:
        away.rename(clip)
    assert "its audio is missing" in page.text
    assert "1 of the shown clips are missing and have no player" in capsys.readouterr().err


def test_sets_and_strengths_that_were_scored_otherwise_are_on_no_page(
    hostile_words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = load(hostile_words).run
    own, other = folder / "eval" / "test" / "metrics.json", folder / "eval" / "silence" / "metrics.json"
    before, facts = other.read_text(), read_json(own)
    scored = {"language": "nl", "clips": 6, "wer": 0.123, "wer_ci95": [0.1, 0.2], "cer": 0.1, "hallucinated_words": 0}
    curve = {
        "best": 0.5, "best_context": "full", "average": None, "normalizer": facts["inputs"]["normalizer"],
        "figures": FIGURES, "curve": [{"strength": 0.5, "context": "full", "sets": {"dev": scored}}],
    }  # fmt: skip
    strengths = folder / "eval" / "strengths.json"
    try:
        write_json(strengths, curve)
        assert "12.3% (10.0% to 20.0%)" in Page(report(folder)).text
        write_json(strengths, curve | {"normalizer": "raw 2"})
        changed = read_json(other)
        changed["inputs"]["adapter_sha256"] = "another"
        write_json(other, changed)
        page = Page(report(folder))
    finally:
        other.write_text(before)
        strengths.unlink()
    assert "12.3%" not in page.text and "of 8, " not in page.text
    assert "left out, scored with another adapter, normalizer or decoding than test: silence" in capsys.readouterr().err


def test_the_end_of_a_run_writes_its_page_once_and_names_it_and_the_next_command(
    hostile_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = shutil.copytree(load(hostile_words).run, tmp_path / "nl-a")
    shutil.rmtree(run_dir / "report", ignore_errors=True)
    config = load([*hostile_words, f"run_dir={run_dir}"])
    page = run_dir / "report" / "index.html"
    show_end(config, "python -m asr_lora.next")
    made, shown = page.stat().st_mtime_ns, " ".join(capsys.readouterr().out.split())
    assert f": {page} next: python -m asr_lora.next" in shown and "WER base" in shown
    show_end(config, "python -m asr_lora.next")
    assert page.stat().st_mtime_ns == made
    os.utime(run_dir / "eval" / "test" / "metrics.json")  # scored again
    show_end(config, "python -m asr_lora.next")
    assert page.stat().st_mtime_ns > made
    capsys.readouterr()
    show_end(load([*hostile_words, "eval.after=false"]), "python -m asr_lora.next")
    out, err = capsys.readouterr()
    assert out == "" and err == "next, to score the run: make eval\n"


def test_a_comparison_has_a_row_for_every_run_and_its_difference(hostile_words: list[str]) -> None:
    runs = load(hostile_words).run.parent
    report(load(hostile_words).run)
    page = Page(compare(str(runs / "nl-*"), runs))
    assert page.text.count("chosen by dev WER") == page.text.count("Chosen by dev WER (") == 1
    assert "points (" in page.text
    assert [tag for tag, _ in page.tags].count("svg") == 1  # two ranks make a plot
    (link,) = (attributes["href"] for tag, attributes in page.tags if tag == "a")
    assert link is not None and (runs / "comparison" / link).is_file()


def test_a_comparison_names_the_precision_of_the_base_where_runs_differ_in_it(
    hostile_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, precision, seed in (("nl-gpu", "int8", 0), ("nl-cpu", "fp32", 0), ("nl-cpu-1", "fp32", 1)):
        shutil.copytree(load(hostile_words).run, tmp_path / name)
        file = finding.settings_file(tmp_path / name)
        recorded = file.read_text().replace("precision: fp32", f"precision: {precision}")
        file.write_text(recorded.replace("\nseed: 0\n", f"\nseed: {seed}\n"))
    page = Page(compare(str(tmp_path / "nl-*"), tmp_path))
    shown = capsys.readouterr().out
    for precision in ("fp32", "int8"):  # two rows: runs of different precisions are not seeds of one run
        assert page.text.count(f"base in {precision}") == shown.count(f", base in {precision}") == 1
    assert "Error by run" in page.text and [tag for tag, _ in page.tags].count("svg") == 1  # not a sweep over the rank
    assert "base in" not in Page(compare(str(tmp_path / "nl-cpu*"), tmp_path)).text
    assert "base in" not in capsys.readouterr().out


def copied(words: list[str], target: Path, *, dev: float | None, wer: float, seed: int = 0, **trained: Any) -> Path:
    """Copies a run; `dev` and `wer` are the copy's rates on dev and test, `trained` other facts of its training."""
    shutil.copytree(load(words).run, target)
    facts = read_json(run.train_metrics(target)) | trained
    kept = [{"step": 1, "wer": 0.01}, {"step": 2, "wer": dev}, {"step": 3, "wer": 0.02}]  # the kept one is not lowest
    facts |= {"dev": kept if dev is not None else [], "best_step": 2 if dev is not None else None}
    write_json(run.train_metrics(target), facts)
    file = target / "eval" / "test" / "metrics.json"
    write_json(file, read_json(file) | {"wer": wer})
    recorded = finding.settings_file(target)
    recorded.write_text(recorded.read_text().replace("\nseed: 0\n", f"\nseed: {seed}\n"))
    return target


def test_dev_chooses_the_run_of_a_sweep_and_test_clips_choose_nothing(
    hostile_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied([*hostile_words, "lora.r=2"], tmp_path / "nl-lowest-on-test", dev=0.7, wer=0.111)
    copied(hostile_words, tmp_path / "nl-lowest-on-dev", dev=0.6, wer=0.222)
    page = " ".join(Page(compare(str(tmp_path / "nl-*"), tmp_path)).text.split())
    assert "2 runs; dev chose one with a word error rate of 22.2% on test" in page
    rule = "hosen by dev WER (60.0%, 2 clips, normalized by marks 2): nl-lowest-on-dev; differences are to it"
    shown = " ".join(capsys.readouterr().out.split())
    assert f"C{rule}" in page and f"c{rule}" in shown
    table = page.rpartition("to the chosen")[2]
    of_first, of_second = table.split("nl-lowest-on-dev")[:2]
    assert "70.0%" in of_first and "chosen" not in of_first
    assert "60.0%" in of_second and "chosen by dev WER" in of_second


def test_dev_wers_of_the_seeds_of_a_run_are_averaged(hostile_words: list[str], tmp_path: Path) -> None:
    copied(hostile_words, tmp_path / "nl-a", dev=0.2, wer=0.1)
    copied(hostile_words, tmp_path / "nl-b", dev=0.5, wer=0.1, seed=1)  # 35 % on average
    copied([*hostile_words, "lora.r=2"], tmp_path / "nl-c", dev=0.3, wer=0.444)
    page = " ".join(Page(compare(str(tmp_path / "nl-*"), tmp_path)).text.split())
    assert "dev chose one with a word error rate of 44.4%" in page and "35.0%" in page


@pytest.mark.parametrize("change", ["no dev", "another normalizer", "other clips"])
def test_without_comparable_dev_figures_nothing_is_chosen(
    hostile_words: list[str], tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"dev_normalizer": "raw 2"} if change == "another normalizer" else {}
    copied([*hostile_words, "lora.r=2"], tmp_path / "nl-b", dev=0.7, wer=0.2)
    changed = copied(hostile_words, tmp_path / "nl-a", dev=None if change == "no dev" else 0.6, wer=0.1, **other)
    if change == "other clips":
        clips = read_jsonl(run.manifest(changed, "dev"))
        write_jsonl(run.manifest(changed, "dev"), clips[1:])
    page = " ".join(Page(compare(str(tmp_path / "nl-*"), tmp_path)).text.split())
    reason = "not every run has a dev WER" if change == "no dev" else "their dev clips or normalizers differ"
    rule = f"othing is chosen: {reason}; differences are to the first"
    assert f"N{rule}" in page and f"n{rule}" in " ".join(capsys.readouterr().out.split())
    assert "dev chose" not in page and "chosen by dev" not in page and "2 runs" in page


def test_runs_scored_otherwise_share_no_table_no_chart_and_no_choice(
    hostile_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The choice is among the largest group, even if a run on other clips or normalizer is lower."""
    one, two = load(hostile_words).run, load([*hostile_words, "lora.r=2"]).run
    changes: dict[str, dict[str, Any]] = {
        "nl-a": {}, "nl-b": {}, "nl-fewer": {"wer": 0.0}, "nl-raw": {"wer": 0.0, "normalizer": "raw"},
        "nl-cer": {"cer": 0.0, "language": "zh"}, "nl-full": {"context": "full"},
    }  # fmt: skip
    for name, change in changes.items():
        shutil.copytree(two if name == "nl-b" else one, tmp_path / name)
        file = tmp_path / name / "eval" / "test" / "metrics.json"
        facts = read_json(file) | change
        if name == "nl-fewer":
            facts["inputs"]["clips_sha256"] = "others"
        write_json(file, facts)
    page = Page(compare(str(tmp_path / "nl-*"), tmp_path))
    verdict = " ".join(page.text.split("Chosen by dev WER ")[0].split())
    assert "6 runs; of the 3 that can be compared, dev chose one with a word error rate of" in verdict
    assert "of 0.0%" not in verdict
    assert page.text.count("both models are decoded at 30 s") == 1  # comparable, but noted
    for apart in ("other clips", "another normalizer", "another rate, another language"):
        assert f"Not comparable with those above: {apart}" in page.text
    assert "WER on 6 test clips, normalized by raw 2" in page.text and "CER on 6 test clips" in page.text
    assert [tag for tag, _ in page.tags].count("svg") == 1
    assert capsys.readouterr().err.count("not comparable with the others, ") == 3


def test_a_page_of_dev_alone_states_that_dev_chose_the_adapter(
    hostile_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(load(hostile_words).run, tmp_path / "dev-only")
    shutil.move(tmp_path / "dev-only" / "eval" / "test", tmp_path / "dev-only" / "eval" / "dev")
    file = tmp_path / "dev-only" / "eval" / "dev" / "metrics.json"
    write_json(file, read_json(file) | {"split": "dev"})
    assert "Dev chose the adapter" in Page(report(tmp_path / "dev-only")).text
    show_run("dev-only", run.read_scores(tmp_path / "dev-only"))
    assert "dev chose the adapter" in " ".join(capsys.readouterr().out.split())
    assert "ev chose the adapter" not in Page(report(load(hostile_words).run)).text


def test_the_price_of_a_known_gpu_is_found_by_its_recorded_name(hostile_words: list[str], tmp_path: Path) -> None:
    shutil.copytree(load(hostile_words).run, tmp_path / "on-t4")
    assert "the price of this machine is unknown" in Page(report(tmp_path / "on-t4")).text
    file = run.train_metrics(tmp_path / "on-t4")
    write_json(file, read_json(file) | {"device": "Tesla T4"})
    assert "at $0.59 per hour (Modal, 2026-05-07)" in Page(report(tmp_path / "on-t4")).text
    assert "at $1.5 per hour" in Page(report(tmp_path / "on-t4", price=1.5)).text


@pytest.mark.parametrize(
    ("name", "known_as"),
    [
        ("whisper-base", "openai/whisper-base"),
        ("faster-whisper-base", "openai/whisper-base"),
        ("base", "openai/whisper-base"),
        ("whisper-small", None),  # has other dimensions
        ("my-dutch-base", None),  # has the dimensions, but may have other weights
    ],
)
def test_a_folder_with_name_and_dimensions_of_a_published_whisper_has_its_hub_id(
    tmp_path: Path, name: str, known_as: str | None
) -> None:
    assert hub_id("openai/whisper-large-v2") == "openai/whisper-large-v2"
    shape = PUBLISHED["openai/whisper-base"]
    WhisperConfig(
        d_model=shape.d_model, encoder_ffn_dim=shape.ffn, encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers, num_mel_bins=shape.mels, vocab_size=shape.vocabulary,
    ).save_pretrained(tmp_path / name)  # fmt: skip
    save_file({"x": torch.zeros(1)}, tmp_path / name / "model.safetensors")  # only the dimensions are read
    assert hub_id(str(tmp_path / name)) == known_as


def test_runs_that_are_not_scored_are_refused_or_left_out(
    hostile_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"run_dir: must be of a trained and scored run, got .*"):
        report(tmp_path)
    with pytest.raises(ConfigError, match=r"report\.runs: no scored run matches"):
        compare(str(tmp_path / "none-*"), tmp_path)
    shutil.copytree(load(hostile_words).run, tmp_path / "earlier")
    file = tmp_path / "earlier" / "eval" / "test" / "metrics.json"
    facts = read_json(file)
    of_earlier_versions = {"inputs": facts["inputs"] | {"figures": 1}}, {"asked": facts["inputs"]}
    for inputs in of_earlier_versions:
        write_json(file, {name: value for name, value in facts.items() if name != "inputs"} | inputs)
        with pytest.raises(ConfigError, match="or one that an earlier version scored"):
            report(tmp_path / "earlier")
    (tmp_path / "nl-half").mkdir()
    (tmp_path / "nl-whole").symlink_to(load(hostile_words).run)
    compare(str(tmp_path / "nl-*"), tmp_path)
    assert "left out, not fully trained or not scored by this version" in capsys.readouterr().err


def test_the_card_has_the_hubs_metadata_and_the_same_numbers(hostile_words: list[str]) -> None:
    folder = load(hostile_words).run
    card = ModelCard.load(folder / "train" / "adapter" / "README.md")
    facts = read_json(folder / "eval" / "test" / "metrics.json")
    assert (card.data.base_model, card.data.library_name, card.data.language) == ("whisper-random", "peft", "nl")
    assert card.data.license == "apache-2.0" and card.data.metrics == ["wer", "cer"]
    wer = next(result for result in card.data.eval_results if result.metric_type == "wer")
    assert wer.metric_value == round(100 * facts["wer"], 2) and "marks 2" in wer.metric_name
    assert f"{facts['baseline']['wer']:.1%}" in card.text and "silence" in card.text
    assert "Difference in WER: " in card.text and "Neither model has Whisper's fallback" in card.text
    assert 'base = "/path/to/whisper-random"  # a local folder' in card.text


# ---- in a real browser ----


WINDOWS = [
    ("light", 1280),
    *(pytest.param(*each, marks=pytest.mark.slow) for each in (("light", 390), ("dark", 390), ("dark", 1280))),
]


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), WINDOWS)
def test_in_a_browser_the_comparison_has_no_errors_and_fits(
    hostile_words: list[str], browser: Any, scheme: str, width: int
) -> None:
    runs = load(hostile_words).run.parent
    report(load(hostile_words).run)
    page, complaints = opened(browser, compare(str(runs / "nl-*"), runs), scheme, width)
    assert page.locator("tbody tr:has(td.n), table > tr:has(td.n)").count() == 2
    assert page.locator("svg").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")  # no scrolling
    assert violations(page) == []
    ranks = page.locator("td[data-name=r]")
    before = ranks.all_inner_texts()
    for order, shown in (("ascending", sorted(before)), ("descending", sorted(before)[::-1])):
        page.get_by_role("button", name="r", exact=True).click()
        assert page.locator(f"th[aria-sort={order}]").count() == 1 and ranks.all_inner_texts() == shown
    names = page.locator("tbody td.title").all_inner_texts()
    assert ["-r4-" in names[0], "-r2-" in names[1]] == [True, True]  # the name of a run moves with its figures
    page.locator("tbody a").last.click()
    assert page.locator("#count").inner_text() == "6 of 6 clips"  # the link leads to the page of a run
    assert complaints == []


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), WINDOWS)
def test_in_a_browser_the_page_has_no_errors_and_its_filter_works(
    hostile_words: list[str], browser: Any, scheme: str, width: int
) -> None:
    page, complaints = opened(browser, report(load(hostile_words).run), scheme, width)
    assert page.locator("#count").inner_text() == "6 of 6 clips"
    page.fill("#words", "zin 3")
    assert page.locator("#count").inner_text() == "1 of 6 clips"
    assert HOSTILE in page.locator("#rows").inner_text()
    page.fill("#words", "")
    page.select_option("#kind", "better")
    errors = [line["errors"] for line in json.loads(page.locator("#lines").text_content())["lines"]]
    better = sum(tuned < base for base, tuned in errors)
    assert page.locator("#count").inner_text() == f"{better} of 6 clips"
    page.select_option("#kind", "all")
    page.get_by_role("button", name="base errors").click()
    counts = sorted(base for base, _ in errors)
    assert [int(each) for each in page.locator("#rows td[data-name='base errors']").all_inner_texts()] == counts
    assert violations(page) == []
    durations = seconds_of_players(page)
    assert durations and all(seconds > 0.3 for seconds in durations)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")  # no scrolling
    assert complaints == []


@pytest.mark.browser
def test_in_a_browser_a_waveform_seeks_and_plays_its_clip_by_mouse_and_keyboard(
    hostile_words: list[str], browser: Any
) -> None:
    page, complaints = opened(browser, report(load(hostile_words).run), "light", 1280)
    wave, clip = page.get_by_role("slider").first, page.locator(".clip", has=page.locator(".wave")).first
    seconds = float(wave.get_attribute("aria-valuemax"))
    wave.focus()
    page.keyboard.press("End")
    assert wave.get_attribute("aria-valuetext") == f"{seconds:.1f} of {seconds:.1f} s"
    page.keyboard.press("Home")
    assert wave.get_attribute("aria-valuenow") == "0.0"
    player = clip.locator("audio").element_handle()
    page.keyboard.press(" ")
    page.wait_for_function("player => player.ended || player.currentTime > 0.1", arg=player)
    wave.click(position={"x": wave.bounding_box()["width"] / 2, "y": 5})
    page.wait_for_function("([player, least]) => player.currentTime >= least", arg=[player, 0.45 * seconds])
    assert clip.locator(".wave i").bounding_box()["width"] > 50  # the mark of progress
    assert complaints == []


@pytest.mark.browser
def test_in_a_browser_everything_is_reached_by_tab_and_the_focus_is_visible(
    hostile_words: list[str], browser: Any
) -> None:
    page, _ = opened(browser, report(load(hostile_words).run), "dark", 1280)
    active = "document.activeElement"
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        name = page.evaluate(f"{active}.tagName + ({active}.className || '')")
        if name == "BODY":
            break
        reached.add(name)
        assert page.evaluate(f"getComputedStyle({active}).outlineStyle") != "none", name
    assert {"A", "BUTTON", "INPUT", "SELECT", "AUDIO", "DIVwave"} <= reached


@pytest.mark.browser
def test_without_javascript_the_page_reads_and_plays(hostile_words: list[str], browser: Any) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(report(load(hostile_words).run).as_uri())
    assert page.locator("th", has_text="fine-tuned").first.is_visible() and page.locator("th button").count() == 0
    assert page.locator(".clip audio").first.is_visible() and page.locator(".wave svg").first.is_visible()
    assert page.locator("noscript p").is_visible() and not page.locator("#words").is_visible()
