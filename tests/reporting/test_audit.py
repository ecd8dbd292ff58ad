"""What the audit promises: every planted fault found and named, nothing heard twice, a list that data.exclude_ids takes."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from support.pages import HOSTILE, Page, opened, seconds_of_players
from support.releases import SAMPLE_RATE, tone, utterances, write_release
from support.runs import tiny_run

from asr_lora.config.compose import load
from asr_lora.data import quality as faults
from asr_lora.data.quality import ISSUES, ScannedClip
from asr_lora.prepare import main, prepare
from asr_lora.reporting import audit as room
from asr_lora.reporting.audit import LabelIssue, audit
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
    """A release in which every kind of fault has its clip, called by the kind; the other clips are in order."""
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
    for at, (kind, fault) in enumerate(faulty.items()):
        train[at + 1] |= {"path": f"{kind}.mp3", **fault}
    return {"train": train, "dev": utterances("dev", 4, 2), "test": utterances("test", 6, 3)}


class Audited:
    """A run of the planted release that was audited: its words, and its folder."""

    def __init__(self, words: list[str]) -> None:
        self.words, self.config = words, load(words)
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
        return Audited([*self.words, *more])


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Audited:
    folder = tmp_path_factory.mktemp("faulty")
    write_release(folder / "release", splits=planted())
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ASR_LORA_CACHE", str(folder / "cache"))
        return Audited(
            [*tiny_run(folder / "release", tiny_checkpoint, folder / "runs"), "eval.limit=4", "prepare.audit=true"]
        )


@pytest.fixture
def its_cache(faulty: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASR_LORA_CACHE", str(faulty.run.parent.parent / "cache"))


# ---- what is odd ----


@pytest.mark.parametrize("kind", [kind for kind in ISSUES if kind not in ("undecodable", "wordless")])
def test_every_planted_fault_is_found_and_named(faulty: Audited, kind: str) -> None:
    own = faulty.facts["odd"][kind]
    also = {  # that of HOSTILE and HEBREW, and the ordinary clips that another repeats
        "script": {"signs"}, "brackets": {"signs"}, "digits": {"signs"}, "repeated": {"common_voice_train_00000"},
    }  # fmt: skip
    trained_on = {name for name in own["found"] if "_dev_" not in name and "_test_" not in name}  # those hold digits
    if kind == "duplicate_audio":  # some tones of the release are of one pitch
        assert kind in trained_on
    else:
        assert trained_on == {kind} | also.get(kind, set())
    assert own["clips"] == len(own["found"]) == sum(own["by_split"].values())


def test_what_is_said_of_a_clip_is_what_was_heard_in_it(faulty: Audited) -> None:
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
    # One speaker has the long clip, 9.8 of about 32.6 s; six others, of 1.2 s each, make it half.
    assert 0.25 < own["largest"] < 0.35 and own["half"] == 7


def test_nothing_is_heard_twice(faulty: Audited, its_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def heard_again(place: object) -> AudioInfo:
        raise AssertionError(f"{place} is heard again")

    monkeypatch.setattr(audio, "scan_clip", heard_again)
    audit(faulty.config)


def test_a_clip_that_broke_since_is_named(faulty: Audited, its_cache: None) -> None:
    clip = next(line for line in read_jsonl(faulty.run / "data" / "train.jsonl") if line["id"] == "rare")
    content = Path(clip["path"]).read_bytes()
    try:
        Path(clip["path"]).write_bytes(b"no sound")
        audit(faulty.config)
        found = faulty.facts
    finally:
        Path(clip["path"]).write_bytes(content)
        audit(faulty.config)
    assert found["odd"]["undecodable"]["found"] == {"rare": "clip cannot be decoded: Format not recognised"}
    assert "rare" in found["suspects"] and "rare" not in faulty.facts["suspects"]


def of(texts: Sequence[str], seconds: float = 1.0, **heard: Any) -> list[ScannedClip]:
    """Clips of one speaker with these sentences."""
    return [
        ScannedClip({"id": str(at), "text": text, "duration": seconds, "speaker": "one"}, "train",
                  AudioInfo(None, seconds, str(at), 16_000, 0.1, 0.0, **heard), Normalizer("marks")(text))
        for at, text in enumerate(texts)
    ]  # fmt: skip


def test_a_sentence_of_which_nothing_is_left_is_named() -> None:
    # Preparing leaves it out under the default normaliser; another may leave nothing of what has letters.
    assert [fault.at for fault in faults.find_issues(of(["een zin", "...", "nog een"]), "words")["wordless"]] == [1]


@pytest.mark.parametrize(
    ("sentences", "usual"),
    [
        (["日本 カタカナ ひらがな"] * 60 + ["NHK です"], "Latin"),
        (["мама мыла раму"] * 9 + ["мaма"], "Latin"),  # a Latin a among Cyrillic letters
    ],
)
def test_a_script_is_foreign_by_how_few_clips_have_it(sentences: list[str], usual: str) -> None:
    found = faults.find_issues(of(sentences), "words")
    assert found["script"] and all(faults.script(fault.detail[0]) == usual for fault in found["script"])
    assert not faults.find_issues(of(sentences[:5]), "words")["script"]


def test_characters_are_counted_where_no_spaces_are_written() -> None:
    even = [("日本語の文です" * 3)[: 14 + at % 3] for at in range(40)]
    fast, slow, said = faults.pace(of([*even, "日" * 90, "日"]), "characters")
    assert [fault.at for fault in fast] == [40] and [fault.at for fault in slow] == [41]
    assert said["unit"] == "characters" and 14 <= said["median"] <= 16


def test_outliers_are_those_of_iglewicz_and_hoaglin() -> None:
    # Their MAD is 1: 5 -+ 3.5 / 0.6745.
    assert faults.bounds([3, 4, 5, 6, 50]) == pytest.approx((5 - 5.189, 5 + 5.189), abs=1e-3)
    low, high = faults.bounds([5, 5, 5, 5, 9])  # MAD 0: the mean deviation, 0.8, takes its place
    assert (low, high) == pytest.approx((5 - 3.509, 5 + 3.509), abs=1e-3)
    assert faults.bounds([2, 2]) == (2, 2)


def test_clips_of_nobody_are_a_speaker_each() -> None:
    clips = [ScannedClip({**each.clip, "speaker": name}, "train", each.audio, each.words)
             for each, name in zip(of(["a"] * 6), ["", "", "a", "a", "a", "b"], strict=True)]  # fmt: skip
    assert faults.speakers(clips) == {"speakers": 2, "unknown": 2, "largest": 0.5, "half": 1}


# ---- what a model contradicts ----


def model_of(hypotheses: Sequence[str]) -> Mapping[str, Any]:
    return {"hypotheses": hypotheses, "truncated": [False] * len(hypotheses)}


def doubted(said: Sequence[str], heard: Sequence[str], unit: str = "words") -> list[LabelIssue]:
    return room.label_issues(range(len(said)), of(said, 5.0), model_of(heard), Normalizer("marks"), unit)


def test_a_wrong_transcript_leads_and_a_runaway_and_a_short_one_stand_apart() -> None:
    right = [f"dit is een gewone zin met {word} erin" for word in "appels peren noten vijgen".split()]
    said = [*right, "hier staat iets heel anders", "nog een zin om te horen", "ja"]
    heard = [
        *right[:3],
        "dit is een gewone zin met vijgen er in",
        "wij gaan morgen naar de markt",
        "ho ho ho ho " * 9,
        "nee hoor",
    ]
    found = doubted(said, heard)
    limit = room.suspect_threshold(found)
    ranked = room.rank_issues(found)
    assert [each.at for each in ranked["worst"]] == [4, 3] and [
        each.at for each in found if room.is_suspect(each, limit)
    ] == [4]
    assert [each.at for each in ranked["ran_away"]] == [5] and "loop" in ranked["ran_away"][0].signs
    assert [each.at for each in ranked["short"]] == [6]


def test_a_model_that_is_wrong_everywhere_makes_nothing_suspect() -> None:
    said = [f"{word} een twee drie vier" for word in "a b c d e f".split()]
    found = doubted(said, ["xyz qrs uvw mno kl"] * 6)
    assert room.suspect_threshold(found) > 0.5 and not any(
        room.is_suspect(each, room.suspect_threshold(found)) for each in found
    )


def test_letters_and_words_that_the_transcripts_lack_are_counted() -> None:
    found = doubted([f"numero {at} mas" for at in "abcdef"], [f"el número {at} más" for at in "abcdef"])
    lacking = room.missing_symbols(found)
    assert {row["it"] for row in lacking["letters"]} == {"ú", "á", "l"}
    assert {"it": "número", "heard": 6, "written": 0} in lacking["words"]


@pytest.fixture
def dishonest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that hears every sentence as it is written, but for two clips."""

    def hears(base: Any, decoding: Any, hardware: Any, sets: Sequence[Any], tuned: Any) -> list[dict[str, Any]]:
        assert tuned is None
        said = {
            "common_voice_test_00001": "heel iets anders dan dat",
            "common_voice_train_00020": "ho ho ho ho ho " * 9,
        }
        return [model_of([said.get(clip["id"], clip["text"]) for clip in each.clips]) for each in sets]

    monkeypatch.setattr("asr_lora.prepare.decode_sets", hears)


def test_what_the_model_contradicts_is_listed_and_what_ran_away_is_not(
    faulty: Audited, its_cache: None, dishonest: None
) -> None:
    whole = faulty.again("prepare.audit_decode=60", "eval.limit=null", "run_name=whole")
    own, page = whole.facts, whole.page
    assert own["decoded"]["clips"] == {"train": 60, "dev": 2, "test": 6}
    assert list(own["decoded"]["suspect"]) == ["common_voice_test_00001"]
    assert "common_voice_train_00020" in own["decoded"]["ran_away"]
    assert set(own["suspects"]) == {"silent", "truncated", "common_voice_test_00001"}
    assert "Where the model ran away" in page.text and "the same words over and over" in page.text
    assert "Dev and test are among them" in page.text and "data.exclude_ids=" in page.text


def test_the_untouched_model_is_asked_for_so_many_training_clips(faulty: Audited, its_cache: None) -> None:
    assert faulty.facts["decoded"] is None and "No model was asked" in faulty.page.text
    asked = faulty.again("prepare.audit_decode=3", "run_name=asked")
    assert asked.facts["decoded"]["clips"] == {"train": 3, "dev": 2, "test": 4}


def test_hypotheses_without_an_audit_are_refused(faulty: Audited) -> None:
    with pytest.raises(
        ConfigError, match=r"prepare\.audit_decode: must be at least 0, and with prepare\.audit=true, got 3"
    ):
        load([*faulty.words, "prepare.audit=false", "prepare.audit_decode=3"])


# ---- the list ----


def test_the_suspects_are_what_data_drop_takes(
    faulty: Audited, its_cache: None, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = faulty.run / "audit" / "suspects.txt"
    assert sorted(listing.read_text().split("\n")[:-1]) == ["silent", "truncated"]
    dropped = faulty.again(f"data.exclude_ids={listing}", "run_name=dropped")
    assert "data.exclude_ids: 2 clips dropped" in capsys.readouterr().err
    assert set(faulty.ids()) - set(dropped.ids()) == {"silent", "truncated"} and set(dropped.ids()) < set(faulty.ids())
    assert dropped.facts["suspects"] == [] and dropped.facts["odd"]["silent"]["clips"] == 0
    assert "Nothing is suspect" in dropped.page.text
    assert f"What {listing} lists is not among these clips" in dropped.page.text


def test_a_list_that_a_person_changed_stays(
    faulty: Audited, its_cache: None, capsys: pytest.CaptureFixture[str]
) -> None:
    own = faulty.again("run_name=by-hand")
    folder = own.run / "audit"
    (folder / "suspects.txt").write_text("silent\n")
    for _ in range(2):
        audit(own.config)
        assert (folder / "suspects.txt").read_text() == "silent\n"
        assert set((folder / "suspects-new.txt").read_text().split()) == {"silent", "truncated"}
    assert "was changed by hand and stays" in capsys.readouterr().err
    (folder / "suspects.txt").unlink()
    audit(own.config)
    assert set((folder / "suspects.txt").read_text().split()) == {"silent", "truncated"}
    assert not (folder / "suspects-new.txt").exists()


def test_the_manifest_is_not_touched_and_the_audit_names_no_run(faulty: Audited, its_cache: None) -> None:
    plain = [word for word in faulty.words if word != "prepare.audit=true"]
    assert load(plain).run == faulty.run == load([*faulty.words, "prepare.audit_decode=5"]).run

    def state() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in (faulty.run / "data").iterdir()}

    before = state()
    main(faulty.config)
    assert state() == before


def test_without_the_word_there_is_no_page(words: list[str]) -> None:
    config = load(words)
    main(config)
    assert (config.run / "data").is_dir() and not (config.run / "audit").exists()


def test_a_part_of_a_long_recording_is_played_alone(words: list[str], tmp_path: Path) -> None:
    config = load(words)
    prepare(config)
    manifest = config.run / "data" / "train.jsonl"
    lines = read_jsonl(manifest)
    lines[0] |= {"start": 0.1, "end": 0.3, "text": "12"}
    write_jsonl(manifest, lines)
    audit(config)
    (played,) = (config.run / "audit" / "clips").glob("*.flac")
    assert soundfile.info(played).duration == pytest.approx(0.2, abs=0.01)


# ---- the page ----


def test_the_page_is_one_file_that_plays_what_lies_beside_it(faulty: Audited) -> None:
    folder = faulty.run / "audit"
    page = faulty.page
    outside = [value for _, attributes in page.tags for name in ("src", "href") if (value := attributes.get(name))]
    players = {value for value in outside if value.startswith("clips/")}
    assert {path.name for path in (folder / "clips").iterdir()} == {value.removeprefix("clips/") for value in players}
    assert all(value.startswith("#") for value in outside if value not in players and value != "data:,")
    for kind, own in faulty.facts["odd"].items():
        assert (ISSUES[kind].title in page.text) == bool(own["clips"])
    assert "perhaps the corpus does not know who speaks" not in page.text


def test_what_a_corpus_holds_stays_text(faulty: Audited) -> None:
    page = faulty.page
    assert not [tag for tag, _ in page.tags if tag in ("script", "img")]
    assert HOSTILE in page.text and HEBREW in page.text
    paragraphs = [attributes for tag, attributes in page.tags if tag == "p" and attributes.get("class") == "words"]
    assert paragraphs and all(attributes["dir"] == "auto" for attributes in paragraphs)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_the_page_is_quiet_and_plays(
    faulty: Audited, its_cache: None, dishonest: None, browser: Any, scheme: str
) -> None:
    own = faulty.again("prepare.audit_decode=60", f"run_name={scheme}")
    page, complaints = opened(browser, own.run / "audit" / "index.html", scheme, 390)
    assert HEBREW in page.locator("#signs ~ .clip").first.inner_text()
    durations = seconds_of_players(page)
    assert durations and all(seconds > 0.3 for seconds in durations)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")  # no sideways
    assert complaints == []
