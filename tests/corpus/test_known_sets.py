"""Public data sets of the Hub need no settings: columns, splits and languages are those of their cards."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from support.corpora import lines_of
from support.hub import served, write_card, write_dataset
from support.runs import sets_of

from asr_lora.config.compose import load
from asr_lora.config.known_sets import KNOWN, configuration, source_language
from asr_lora.corpus import Columns, open_corpus
from asr_lora.corpus.streaming import open_stream
from asr_lora.data.sources import open_split
from asr_lora.evaluation.eval_sets import check_eval_sets
from asr_lora.prepare import prepare
from asr_lora.runtime.errors import ConfigError

STRING, INTEGER = datasets.Value("string"), datasets.Value("int32")
FLEURS = {
    "id": INTEGER, "num_samples": INTEGER, "path": STRING, "transcription": STRING, "raw_transcription": STRING,
    "gender": datasets.ClassLabel(names=["male", "female", "other"]), "lang_id": datasets.ClassLabel(names=["nl_nl"]),
    "language": STRING, "lang_group_id": datasets.ClassLabel(names=["western_european_we"]),
}  # fmt: skip
MLS = {
    "original_path": STRING, "begin_time": datasets.Value("float64"), "end_time": datasets.Value("float64"),
    "transcript": STRING, "audio_duration": datasets.Value("float64"), "speaker_id": STRING, "chapter_id": STRING,
    "file": STRING, "id": STRING,
}  # fmt: skip
VOXPOPULI = {
    "audio_id": STRING, "language": datasets.ClassLabel(names=["en", "nl"]), "raw_text": STRING,
    "normalized_text": STRING, "gender": STRING, "speaker_id": STRING, "is_gold_transcript": datasets.Value("bool"),
    "accent": STRING,
}  # fmt: skip


def fleurs(at: int, split: str, language: str = "Dutch") -> dict[str, Any]:
    return {
        "audio": f"{split}{language}{at}.wav", "id": at, "num_samples": 4800, "path": f"/old/{split}{at}.wav",
        "transcription": f"zin {split} {at}", "raw_transcription": f"Zin {split} {at}!", "gender": 0, "lang_id": 0,
        "language": language, "lang_group_id": 0,
    }  # fmt: skip


def mls(at: int, split: str) -> dict[str, Any]:
    return {
        "audio": f"{split}_{at}.opus", "original_path": "http://books/a.mp3", "begin_time": 400.0, "end_time": 416.0,
        "transcript": f"zin {split} {at}", "audio_duration": 16.0, "speaker_id": f"{split}{at % 2}",
        "chapter_id": "2211", "file": f"{split}_{at}.flac", "id": f"{split}_{at}",
    }  # fmt: skip


def voxpopuli(at: int, split: str) -> dict[str, Any]:
    return {
        "audio": f"{split}_part_0/{split}{at}.wav", "audio_id": f"{split}{at}", "language": 1,
        "raw_text": f"Zin {split} {at}." if at else "", "normalized_text": f"zin {split} {at}", "gender": "female",
        "speaker_id": "None" if at == 1 else f"{split}{at}", "is_gold_transcript": True, "accent": "None",
    }  # fmt: skip


def write_known(home: Path) -> None:
    """Writes data sets with the columns, configurations and splits of the real ones."""
    splits = ("train", "validation", "test")
    for config, language in (("nl_nl", "Dutch"), ("en_us", "English")):
        rows = {split: [fleurs(at, split, language) for at in range(4)] for split in splits}
        write_dataset(home / "google/fleurs", config, rows, FLEURS)
    rows = {split: [mls(at, split) for at in range(4)] for split in ("train", "dev", "test", "9_hours", "1_hours")}
    write_dataset(home / "facebook/multilingual_librispeech", "dutch", rows, MLS)
    rows = {split: [voxpopuli(at, split) for at in range(4)] for split in splits}
    write_dataset(home / "facebook/voxpopuli", "nl", rows, VOXPOPULI)
    for folder in home.glob("*/*"):
        write_card(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the data sets, where datasets finds them by their names, without asking the Hub."""
    write_known(tmp_path / "hub")
    monkeypatch.chdir(tmp_path / "hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "fetched")
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("source", "texts", "speaker"),
    [
        ("hf:google/fleurs:nl_nl", ["Zin test 0!", "Zin test 1!"], ""),
        ("hf:google/fleurs", ["Zin test 0!", "Zin test 1!"], ""),
        ("hf:facebook/multilingual_librispeech:dutch", ["zin test 0", "zin test 1"], "test0"),
        ("hf:facebook/multilingual_librispeech", ["zin test 0", "zin test 1"], "test0"),
        ("hf:facebook/voxpopuli:nl", ["zin test 0", "Zin test 1."], "test0"),
        ("hf:facebook/voxpopuli", ["zin test 0", "Zin test 1."], "test0"),
    ],
)
def test_a_known_data_set_needs_no_settings(
    hub: Path, source: str, texts: list[str], speaker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = open_corpus(source, "nl")
    assert {split: len(own) for split, own in corpus.tables.items()} == {"train": 4, "dev": 4, "test": 4}
    test = corpus.tables["test"]
    assert [each.text for each in test[:2]] == texts and test[0].speaker == speaker
    assert {(each.language, each.start, each.end) for each in test} == {("", None, None)}
    assert f"{source}: {corpus.release}, as its card describes it; the text is " in capsys.readouterr().err
    names = [each.path for each in test]
    assert len(corpus.fetch(names)) == len(names)
    (only,) = open_corpus(source, "nl", split="test").tables.items()
    assert only[0] == "test" and [each.text for each in only[1]] == [each.text for each in test]


def test_a_single_split_is_opened_alone(words: list[str], hub: Path) -> None:
    config = load([*words, "data.source=hf:facebook/multilingual_librispeech"])
    assert {split: len(own) for split, own in open_split(config.data, "test").tables.items()} == {"test": 4}


def test_the_settings_come_before_the_card(hub: Path) -> None:
    columns = Columns({"text": "transcription", "path": "file"}, {"9_hours": "train", "train": "none"})
    assert open_corpus("hf:google/fleurs", "nl", columns).tables["test"][0].text == "zin test 0"
    own = open_corpus("hf:facebook/multilingual_librispeech", "nl", columns)
    assert own.tables["train"][0].text == "zin 9_hours 0"


def test_speakers_of_voxpopuli_that_are_not_known_are_not_one_speaker(hub: Path) -> None:
    speakers = [each.speaker for each in open_corpus("hf:facebook/voxpopuli:nl", "nl").tables["train"]]
    assert speakers == ["train0", "", "train2", "train3"]


def test_a_known_data_set_is_streamed_under_its_columns(hub: Path) -> None:
    stream = open_stream("hf:facebook/voxpopuli", "nl", Columns())
    part = stream.split("train", "train")
    assert [part.parse_row(row).utterance.text for row in part.rows(part.data)][:2] == ["zin train 0", "Zin train 1."]


@pytest.mark.parametrize(
    ("source", "language", "message"),
    [
        ("hf:google/fleurs:nl", "nl", "no nl in it; nearest: nl_nl; see https"),
        ("hf:google/fleurs:nl_be", "nl", "no nl_be in it; nearest: nl_nl"),
        ("hf:google/fleurs:es_es", "es", "no es_es in it; nearest: .*es_419"),
        ("hf:facebook/multilingual_librispeech:nl", "nl", "no nl in it; nearest: dutch;"),
        ("hf:google/fleurs", "fy-NL", r"no speech in fy-NL \(data.language\), only in af, am"),
        ("hf:facebook/multilingual_librispeech", "en", "no speech in en .*, only in de, es, fr, it, nl, pl, pt;"),
        ("hf:google/fleurs:sv_se", "nl", "is in sv-SE, not in nl; set data.language=sv-SE"),
        ("hf:fixie-ai/common_voice_17_0:de", "nl", "is in de, not in nl"),
        ("hf:fixie-ai/common_voice_17_0:rm-sursilv", "nl", "is in rm-sursilv, not in nl"),
        ("hf:fixie-ai/common_voice_17_0:zh-HK", "zh-CN", "is in zh-HK, not in zh-CN"),  # Cantonese
        ("hf:google/fleurs:cmn_hans_cn", "zh-HK", "is in zh-CN, not in zh-HK"),
    ],
)
def test_a_configuration_that_is_not_there_is_answered_without_asking_the_hub(
    source: str, language: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"data.source: {source}.*{message}") as raised:
        open_corpus(source, language)
    assert "\n" not in str(raised.value)


def test_each_language_of_a_card_is_found_by_the_locale_of_common_voice() -> None:
    assert source_language("hf:google/fleurs:cmn_hans_cn", "zh-TW") == "zh-TW"
    assert source_language("hf:google/fleurs:nb_no", "no") == "no"
    assert source_language("hf:google/fleurs:yue_hant_hk", "zh-CN") == "yue"
    fleurs = KNOWN["google/fleurs"]
    found = {locale: configuration(fleurs, "hf:google/fleurs", locale) for locale in ("zh-HK", "zh-CN", "zh-TW")}
    assert found == {"zh-HK": "yue_hant_hk", "zh-CN": "cmn_hans_cn", "zh-TW": "cmn_hans_cn"}
    assert source_language("hf:owner/other:de", "nl") == "nl"
    assert len(KNOWN["google/fleurs"].configs or {}) == 102  # as the card says


def test_a_mixture_and_the_sets_of_a_run_have_the_languages_of_their_configurations(
    words: list[str], hub: Path
) -> None:
    sources = "[{path: 'hf:google/fleurs:nl_nl'},{path: 'hf:google/fleurs:en_us',weight: 0.5}]"
    mixed = [*words, "data.source=null", f"data.sources={sources}", "data.hours=null", "eval.limit=null"]
    sets = "[{source: 'hf:google/fleurs:en_us'},{source: 'hf:facebook/voxpopuli'},{source: 'hf:google/fleurs:nl_be'}]"
    with pytest.raises(ConfigError, match="no nl_be in it"):
        check_eval_sets((refused := load([*mixed, f"eval.sets={sets}"])).eval, refused.data, refused.model)
    config = load([*mixed, f"eval.sets={sets.rpartition(',{')[0]}]"])
    prepare(config)
    tokens = [line.get("language_token", "nl") for line in lines_of(config.run)["train"]]
    assert sorted(tokens) == ["en"] * 4 + ["nl"] * 4
    _, english, dutch = sets_of(config)
    assert [(each.name, each.language, len(each.clips)) for each in (english, dutch)] == [
        ("fleurs-en_us", "en", 4), ("voxpopuli-nl", "nl", 4)
    ]  # fmt: skip


def test_a_hub_over_http_is_read_by_one_word(tmp_path: Path, words: list[str], private_cache: Path) -> None:
    write_known(tmp_path / "hub")
    voxpopuli_home = tmp_path / "hub/facebook/voxpopuli"
    (voxpopuli_home / "README.md").unlink()
    voxpopuli_home.rename(tmp_path / "hub/facebook/voxpopuli@parquet")  # on main there is a script
    voxpopuli_home.mkdir()
    (voxpopuli_home / "voxpopuli.py").write_text("raise SystemExit('never run')")
    read = """if True:
        import json, sys
        from asr_lora.corpus import open_corpus
        for source, split in (("hf:google/fleurs:nl_nl", "test"), ("hf:facebook/multilingual_librispeech", "test"),
                              ("hf:facebook/voxpopuli:nl", None), ("hf:facebook/voxpopuli:nl", "test")):
            corpus = open_corpus(source, "nl", split=split)
            print(json.dumps({name: [each.text for each in own] for name, own in corpus.tables.items()}))
    """
    with served(tmp_path / "hub") as (address, asked):
        environment = os.environ | {
            "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", read], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    of_test = [f"zin test {at}" for at in range(4)]
    assert found[0] == {"test": [f"Zin test {at}!" for at in range(4)]} and found[1] == {"test": of_test}
    assert set(found[2]) == {"train", "dev", "test"} and found[3] == {"test": found[2]["test"]}
    fetched = {path.rpartition("/resolve/")[2] for path in asked if path.endswith(".parquet")}
    assert not [path for path in fetched if "dutch/train" in path or "nl_nl/train" in path]  # the test set alone
    assert "is a script on the Hub; read from the Hub's copy" in done.stderr
