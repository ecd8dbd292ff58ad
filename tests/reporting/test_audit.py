"""The audit: finds every planted issue, scans nothing twice, lists ids for data.exclude_ids."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from support.pages import HOSTILE, Page, opened, seconds_of_players, violations
from support.releases import SAMPLE_RATE, tone, utterances, write_release
from support.runs import cache_in, tiny_run

from asr_lora.config.compose import Config, load
from asr_lora.data import quality
from asr_lora.data.quality import ISSUES, ScannedClip
from asr_lora.evaluation.label_issues import (
    LabelIssue,
    is_suspect,
    label_issues,
    missing_symbols,
    rank_issues,
    suspect_threshold,
)
from asr_lora.prepare import main, prepare
from asr_lora.reporting.audit import audit
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, read_jsonl, write_jsonl
from asr_lora.speech import audio
from asr_lora.speech.audio import AudioInfo
from asr_lora.speech.normalizer import Normalizer

HEBREW = "שלום"


def sound(samples: Any, rate: int = SAMPLE_RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return file.getvalue()


def planted() -> dict[str, list[dict[str, Any]]]:
    """A release with one clip for every kind of issue, named after it; the other clips are fine."""
    train = [row | {"sentence": f"Dit is zin {word} van train"} for row, word in
             zip(utterances("train", 60, 20), ("een twee drie vier vijf zes " * 10).split(), strict=True)]  # fmt: skip
    train = [row | {"sentence": f"{row['sentence']} {'abcdefghij'[at % 10]}{'klmnop'[at // 10]}"}
             for at, row in enumerate(train)]  # fmt: skip
    time = np.arange(round(0.4 * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.sin(2 * np.pi * 300 * time)
    faulty: dict[str, dict[str, Any]] = {
        "truncated": {"clip": tone("truncated", 0.4), "seconds": 2.0},
        "silent": {"clip": sound(0.0005 * wave)},  # without any sound it would not be chosen
        "quiet": {"clip": sound(0.003 * wave)},
        "clipped": {"clip": sound(np.clip(3 * wave, -1, 1))},
        "narrow": {"clip": sound(0.3 * wave[::4], SAMPLE_RATE // 4)},
        "duplicate_audio": {"clip": tone(train[-1]["path"], 0.4)},
        "fast": {"sentence": "a b c d e f g h i j k l m n o p a r s t"},
        "slow": {"sentence": "ja", "seconds": 9.0},
        "script": {"sentence": "Dit is zin дом van hier"},
        "rare": {"sentence": "Dit is zin ñu van hier"},
        "digits": {"sentence": "Dit is zin 12 van hier"},
        "brackets": {"sentence": "Dit is zin (lacht) van hier"},
        "addresses": {"sentence": "Dit is www.zin.nl van hier"},
        "signs": {"sentence": f"Dit € {HOSTILE} {HEBREW}"},
        "repeated": {"sentence": train[0]["sentence"]},
    }
    for at, (kind, change) in enumerate(faulty.items()):
        train[at + 1] |= {"path": f"{kind}.mp3", **change}
    return {"train": train, "dev": utterances("dev", 4, 2), "test": utterances("test", 6, 3)}


def write_audit(config: Config) -> None:
    """Audits a prepared run without decoding."""
    audit(config.run, config.data, "nl", config.eval.normalizer)


class Audited:
    """An audited run of the planted release: its overrides, and its folder."""

    def __init__(self, overrides: list[str]) -> None:
        self.overrides, self.config = overrides, load(overrides)
        main(self.config)
        self.run = self.config.run

    @property
    def facts(self) -> dict[str, Any]:
        return read_json(self.run / "audit" / "audit.json")

    @property
    def page(self) -> Page:
        return Page(self.run / "audit" / "index.html")

    def ids(self) -> list[str]:
        return [line["id"] for line in read_jsonl(self.run / "data" / "train.jsonl")]

    def again(self, *more: str) -> "Audited":
        return Audited([*self.overrides, *more])


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Audited:
    folder = tmp_path_factory.mktemp("faulty")
    write_release(folder / "release", splits=planted())
    with cache_in(folder):
        return Audited(
            [*tiny_run(folder / "release", tiny_checkpoint, folder / "runs"), "eval.limit=4", "prepare.audit=true"]
        )


@pytest.fixture
def its_cache(faulty: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASR_LORA_CACHE", str(faulty.run.parent.parent / "cache"))


# ---- what is odd ----


@pytest.mark.parametrize("kind", [kind for kind in ISSUES if kind not in ("undecodable", "wordless")])
def test_every_planted_issue_is_found_and_named(faulty: Audited, kind: str) -> None:
    own = faulty.facts["odd"][kind]
    also = {  # found in HOSTILE and HEBREW, and in ordinary clips that another repeats
        "script": {"signs"}, "brackets": {"signs"}, "digits": {"signs"}, "repeated": {"common_voice_train_00000"},
    }  # fmt: skip
    trained_on = {name for name in own["found"] if "_dev_" not in name and "_test_" not in name}  # those hold digits
    if kind == "duplicate_audio":  # some tones of the release have the same pitch
        assert kind in trained_on
    else:
        assert trained_on == {kind} | also.get(kind, set())
    assert own["clips"] == len(own["found"]) == sum(own["by_split"].values())


def test_details_of_issues_are_facts_of_the_clip(faulty: Audited) -> None:
    found = {kind: own["found"].get(kind) for kind, own in faulty.facts["odd"].items()}
    assert found["truncated"].endswith(" of 2.00 s") and found["silent"] == "-69 dBFS"
    assert found["narrow"] == "8,000 Hz" and found["quiet"] == "-53 dBFS"
    assert "д (U+0434, cyrillic small letter de)" in found["script"] and "ñ (U+00F1" in found["rare"]
    assert (found["digits"], found["signs"][:1]) == ("12", "€") and found["addresses"] == "www.zin.nl"
    assert found["duplicate_audio"] == "2 clips, 2 sentences" and found["repeated"] == "in 2 clips (train 2)"


def test_the_splits_have_their_hours_speakers_and_rates(faulty: Audited) -> None:
    own = faulty.facts["splits"]["train"]
    lines = read_jsonl(faulty.run / "data" / "train.jsonl")
    assert own["clips"] == len(lines) == 60 and own["speakers"] == 20 and own["unknown"] == 0
    assert own["sampling_rates"] == {"8000": 1, "32000": 59}
    # One speaker has the long clip, 9.8 of about 32.6 s; with six others of 1.2 s each that is half.
    assert 0.25 < own["largest"] < 0.35 and own["half"] == 7


def test_no_clip_is_scanned_twice(faulty: Audited, its_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def scanned_again(segment: object) -> AudioInfo:
        raise AssertionError(f"{segment} is scanned again")

    monkeypatch.setattr(audio, "scan_clip", scanned_again)
    write_audit(faulty.config)


@pytest.mark.parametrize(("split", "name"), [("train", "rare"), ("test", "common_voice_test_00001")])
def test_a_clip_that_broke_since_is_named_and_listed_whatever_its_split(
    faulty: Audited, its_cache: None, split: str, name: str
) -> None:
    clip = next(line for line in read_jsonl(faulty.run / "data" / f"{split}.jsonl") if line["id"] == name)
    content = Path(clip["path"]).read_bytes()
    try:
        Path(clip["path"]).write_bytes(b"no sound")
        write_audit(faulty.config)
        found = faulty.facts
    finally:
        Path(clip["path"]).write_bytes(content)
        write_audit(faulty.config)
    assert found["odd"]["undecodable"]["found"] == {name: "clip cannot be decoded: Format not recognised"}
    assert name in found["suspects"] and name not in faulty.facts["suspects"] and found["for_review"] == []


def of(texts: Sequence[str], seconds: float = 1.0, **info: Any) -> list[ScannedClip]:
    """Clips of one speaker with these sentences."""
    return [
        ScannedClip({"id": str(at), "text": text, "duration": seconds, "speaker": "one"}, "train",
                  AudioInfo(None, seconds, str(at), 16_000, 0.1, 0.0, **info), Normalizer("marks")(text))
        for at, text in enumerate(texts)
    ]  # fmt: skip


def test_a_sentence_without_words_is_named() -> None:
    # Preparation drops it under the default normalizer; another may remove all of a sentence with letters.
    assert [issue.at for issue in quality.find_issues(of(["een zin", "...", "nog een"]), "words")["wordless"]] == [1]


@pytest.mark.parametrize(
    ("sentences", "usual"),
    [
        (["日本 カタカナ ひらがな"] * 60 + ["NHK です"], "Latin"),
        (["мама мыла раму"] * 9 + ["мaма"], "Latin"),  # a Latin a among Cyrillic letters
    ],
)
def test_a_script_is_foreign_if_few_clips_have_it(sentences: list[str], usual: str) -> None:
    found = quality.find_issues(of(sentences), "words")
    assert found["script"] and all(quality.script(issue.detail[0]) == usual for issue in found["script"])
    assert not quality.find_issues(of(sentences[:5]), "words")["script"]


def test_characters_are_counted_where_no_spaces_are_written() -> None:
    even = [("日本語の文です" * 3)[: 14 + at % 3] for at in range(40)]
    fast, slow, facts = quality.pace(of([*even, "日" * 90, "日"]), "characters")
    assert [issue.at for issue in fast] == [40] and [issue.at for issue in slow] == [41]
    assert facts["unit"] == "characters" and 14 <= facts["median"] <= 16


def test_outliers_are_those_of_iglewicz_and_hoaglin() -> None:
    # Their MAD is 1: 5 -+ 3.5 / 0.6745.
    assert quality.bounds([3, 4, 5, 6, 50]) == pytest.approx((5 - 5.189, 5 + 5.189), abs=1e-3)
    low, high = quality.bounds([5, 5, 5, 5, 9])  # MAD 0: the mean deviation, 0.8, takes its place
    assert (low, high) == pytest.approx((5 - 3.509, 5 + 3.509), abs=1e-3)
    assert quality.bounds([2, 2]) == (2, 2)


def test_clips_without_a_speaker_count_as_a_speaker_each() -> None:
    clips = [ScannedClip({**each.clip, "speaker": name}, "train", each.audio, each.words)
             for each, name in zip(of(["a"] * 6), ["", "", "a", "a", "a", "b"], strict=True)]  # fmt: skip
    assert quality.speakers(clips) == {"speakers": 2, "unknown": 2, "largest": 0.5, "half": 1}


# ---- what a model contradicts ----


def model_of(hypotheses: Sequence[str]) -> Mapping[str, Any]:
    return {"hypotheses": hypotheses, "truncated": [False] * len(hypotheses)}


def issues_of(transcripts: Sequence[str], hypotheses: Sequence[str], unit: str = "words") -> list[LabelIssue]:
    clips = of(transcripts, 5.0)
    return label_issues(range(len(clips)), clips, model_of(hypotheses), Normalizer("marks"), unit)


def test_a_wrong_transcript_ranks_first_and_runaway_and_short_ones_are_apart() -> None:
    right = [f"dit is een gewone zin met {word} erin" for word in "appels peren noten vijgen".split()]
    transcripts = [*right, "hier staat iets heel anders", "nog een zin om te horen", "ja"]
    hypotheses = [
        *right[:3],
        "dit is een gewone zin met vijgen er in",
        "wij gaan morgen naar de markt",
        "ho ho ho ho " * 9,
        "nee hoor",
    ]
    found = issues_of(transcripts, hypotheses)
    limit = suspect_threshold(found)
    ranked = rank_issues(found)
    assert [each.at for each in ranked["worst"]] == [4, 3] and [
        each.at for each in found if is_suspect(each, limit)
    ] == [4]
    assert [each.at for each in ranked["ran_away"]] == [5] and "loop" in ranked["ran_away"][0].signs
    assert [each.at for each in ranked["short"]] == [6]


def test_a_model_that_is_wrong_everywhere_makes_nothing_suspect() -> None:
    transcripts = [f"{word} een twee drie vier" for word in "a b c d e f".split()]
    found = issues_of(transcripts, ["xyz qrs uvw mno kl"] * 6)
    assert suspect_threshold(found) > 0.5 and not any(is_suspect(each, suspect_threshold(found)) for each in found)


def test_letters_and_words_that_the_transcripts_lack_are_counted() -> None:
    found = issues_of([f"numero {at} mas" for at in "abcdef"], [f"el número {at} más" for at in "abcdef"])
    lacking = missing_symbols(found)
    assert {row["it"] for row in lacking["letters"]} == {"ú", "á", "l"}
    assert {"it": "número", "decoded": 6, "written": 0} in lacking["words"]


@pytest.fixture
def four_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base model whose hypotheses equal the transcripts, except for four clips."""

    def decode_sets(base: Any, decoding: Any, hardware: Any, sets: Sequence[Any], tuned: Any) -> list[dict[str, Any]]:
        assert tuned is None
        wrong = {
            "common_voice_train_00030": "heel iets anders dan dat",
            "common_voice_dev_00001": "heel iets anders dan dat",
            "common_voice_test_00001": "heel iets anders dan dat",
            "common_voice_train_00020": "ho ho ho ho ho " * 9,
        }
        return [model_of([wrong.get(clip["id"], clip["text"]) for clip in each.clips]) for each in sets]

    monkeypatch.setattr("asr_lora.prepare.decode_sets", decode_sets)


def test_contradicted_transcripts_are_listed_and_runaway_hypotheses_are_not(
    faulty: Audited, its_cache: None, four_wrong: None
) -> None:
    whole = faulty.again("prepare.audit_decode=60", "eval.limit=null", "run_name=whole")
    own, page = whole.facts, whole.page
    assert own["decoded"]["clips"] == {"train": 60, "dev": 2, "test": 6}
    held_out = ["common_voice_dev_00001", "common_voice_test_00001"]
    assert list(own["decoded"]["contradicted"]) == ["common_voice_train_00030", *held_out]
    assert "common_voice_train_00020" in own["decoded"]["ran_away"]
    assert set(own["suspects"]) == {"silent", "truncated", "common_voice_train_00030"}
    assert "Runaway hypotheses" in page.text and "repetition loop" in page.text and "data.exclude_ids=" in page.text


def test_clips_of_dev_and_test_that_only_a_model_contradicts_are_for_review_and_never_in_the_list(
    faulty: Audited, its_cache: None, four_wrong: None, capsys: pytest.CaptureFixture[str]
) -> None:
    reviewed = faulty.again("prepare.audit_decode=60", "eval.limit=null", "run_name=reviewed")
    own, page = reviewed.facts, reviewed.page
    assert own["for_review"] == ["common_voice_dev_00001", "common_voice_test_00001"]
    assert own["for_review_by_split"] == {"train": 0, "dev": 1, "test": 1}
    assert own["suspects_by_split"] == {"train": 3, "dev": 0, "test": 0}
    listing = (reviewed.run / "audit" / "suspects.txt").read_text().split()
    assert not {"common_voice_dev_00001", "common_voice_test_00001"} & set(listing)
    assert "1 of dev, 1 of test" in page.text and "are not in suspects.txt" in page.text
    assert "chosen by the base model's own errors" in page.text
    assert all(f"{name} · for review, not in suspects.txt" in page.text for name in own["for_review"])
    assert all(f"{name} · in suspects.txt" in page.text for name in own["suspects"])
    assert "2 clips of dev and test are for review" in capsys.readouterr().err


def test_the_base_model_decodes_as_many_training_clips_as_set(faulty: Audited, its_cache: None) -> None:
    assert faulty.facts["decoded"] is None and "No clips were decoded" in faulty.page.text
    three = faulty.again("prepare.audit_decode=3", "run_name=asked")
    assert three.facts["decoded"]["clips"] == {"train": 3, "dev": 2, "test": 4}


def test_audit_decode_without_audit_is_refused(faulty: Audited) -> None:
    rule = r"prepare\.audit_decode: must be at least 0, and with prepare\.audit=true, got 3"
    with pytest.raises(ConfigError, match=rule):
        load([*faulty.overrides, "prepare.audit=false", "prepare.audit_decode=3"])


# ---- the list ----


def test_suspects_are_a_list_for_exclude_ids(
    faulty: Audited, its_cache: None, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = faulty.run / "audit" / "suspects.txt"
    assert sorted(listing.read_text().split("\n")[:-1]) == ["silent", "truncated"]
    dropped = faulty.again(f"data.exclude_ids={listing}", "run_name=dropped")
    assert "data.exclude_ids: 2 clips dropped" in capsys.readouterr().err
    assert set(faulty.ids()) - set(dropped.ids()) == {"silent", "truncated"} and set(dropped.ids()) < set(faulty.ids())
    assert dropped.facts["suspects"] == [] and dropped.facts["odd"]["silent"]["clips"] == 0
    assert "No clip is suspect" in dropped.page.text
    assert f"The clips that {listing} lists are excluded" in dropped.page.text


def test_a_list_that_a_user_edited_is_kept(
    faulty: Audited, its_cache: None, capsys: pytest.CaptureFixture[str]
) -> None:
    own = faulty.again("run_name=by-hand")
    folder = own.run / "audit"
    (folder / "suspects.txt").write_text("silent\n")
    for _ in range(2):
        write_audit(own.config)
        assert (folder / "suspects.txt").read_text() == "silent\n"
        assert set((folder / "suspects-new.txt").read_text().split()) == {"silent", "truncated"}
    assert "was edited and is kept" in capsys.readouterr().err
    (folder / "suspects.txt").unlink()
    write_audit(own.config)
    assert set((folder / "suspects.txt").read_text().split()) == {"silent", "truncated"}
    assert not (folder / "suspects-new.txt").exists()


def test_the_audit_changes_neither_the_manifest_nor_the_run_name(faulty: Audited, its_cache: None) -> None:
    plain = [override for override in faulty.overrides if override != "prepare.audit=true"]
    assert load(plain).run == faulty.run == load([*faulty.overrides, "prepare.audit_decode=5"]).run

    def state() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in (faulty.run / "data").iterdir()}

    before = state()
    main(faulty.config)
    assert state() == before


def test_without_prepare_audit_there_is_no_page(words: list[str]) -> None:
    config = load(words)
    main(config)
    assert (config.run / "data").is_dir() and not (config.run / "audit").exists()


def test_only_the_segment_of_a_long_recording_is_played(words: list[str], tmp_path: Path) -> None:
    config = load(words)
    prepare(config)
    manifest = config.run / "data" / "train.jsonl"
    lines = read_jsonl(manifest)
    lines[0] |= {"start": 0.1, "end": 0.3, "text": "12"}
    write_jsonl(manifest, lines)
    write_audit(config)
    (played,) = (config.run / "audit" / "clips").glob("*.flac")
    assert soundfile.info(played).duration == pytest.approx(0.2, abs=0.01)


# ---- the page ----


def test_the_page_is_one_file_that_plays_the_clips_beside_it(faulty: Audited) -> None:
    folder = faulty.run / "audit"
    page = faulty.page
    outside = [value for _, attributes in page.tags for name in ("src", "href") if (value := attributes.get(name))]
    players = {value for value in outside if value.startswith("clips/")}
    assert {path.name for path in (folder / "clips").iterdir()} == {value.removeprefix("clips/") for value in players}
    assert all(value.startswith("#") for value in outside if value not in players and value != "data:,")
    for kind, own in faulty.facts["odd"].items():
        assert (ISSUES[kind].title in page.text) == bool(own["clips"])
    assert "may not identify its speakers" not in page.text


def test_markup_in_a_corpus_stays_text(faulty: Audited) -> None:
    page = faulty.page
    assert [tag for tag, _ in page.tags if tag in ("script", "img")] == ["script"]  # ours: the tables
    assert HOSTILE in page.text and HEBREW in page.text
    paragraphs = [attributes for tag, attributes in page.tags if tag == "p" and attributes.get("class") == "words"]
    assert paragraphs and all(attributes["dir"] == "auto" for attributes in paragraphs)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_in_a_browser_the_page_has_no_errors_and_plays(
    faulty: Audited, its_cache: None, four_wrong: None, browser: Any, scheme: str
) -> None:
    own = faulty.again("prepare.audit_decode=60", f"run_name={scheme}")
    page, complaints = opened(browser, own.run / "audit" / "index.html", scheme, 390)
    assert violations(page) == []
    assert HEBREW in page.locator("#signs ~ .clip").first.inner_text()
    durations = seconds_of_players(page)
    assert durations and all(seconds > 0.3 for seconds in durations)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")  # no scrolling
    page.set_viewport_size({"width": 1280, "height": 800})
    assert violations(page) == []
    page.get_by_role("button", name="kind and rule").click()
    kinds = (
        page.locator("th[aria-sort=ascending]").locator("xpath=ancestor::table").locator("tbody a").all_inner_texts()
    )
    assert len(kinds) > 5 and kinds == sorted(kinds, key=str.lower)
    assert complaints == []
