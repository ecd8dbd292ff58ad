"""Releases of Common Voice that are not the usual one: additions, small locales, other names, left-behind files."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from support.corpora import lines_of, prepared
from support.releases import (
    COLUMNS,
    RELEASE,
    clip_names,
    pack,
    refusal,
    utterances,
    write_lines,
    write_release,
)

from asr_lora.config.compose import load
from asr_lora.corpus import Corpus, open_corpus
from asr_lora.data.splits import with_splits
from asr_lora.prepare import prepare
from asr_lora.runtime.errors import ExternalError, UserError
from asr_lora.runtime.files import read_json

pytestmark = pytest.mark.usefixtures("private_cache")

VALIDATED = utterances("validated", 24, 8)
Splits = Mapping[str, Sequence[dict[str, Any]]]
SMALL: Splits = {"train": [], "dev": [], "test": [], "validated": VALIDATED}
ADDED: Splits = {"validated": VALIDATED, "other": utterances("other", 3, 3)}


def opened(tmp_path: Path, splits: Splits, packed: bool, language: str = "nl", name: str = "nl") -> Corpus:
    """Opens a release of these splits, as a folder or as an archive, whose language folder has the `name`."""
    home = write_release(tmp_path / RELEASE, language, splits)
    home.rename(home.with_name(name))
    source = pack(home.parent, tmp_path / "x.tar.gz") if packed else home.parent
    return open_corpus(source, language)


def speakers(corpus: Corpus) -> dict[str, set[str]]:
    return {split: {each.speaker for each in own} for split, own in corpus.tables.items()}


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("splits", [SMALL, ADDED, {"validated": VALIDATED}], ids=["small", "added", "validated alone"])
def test_without_clips_in_train_all_that_was_validated_is_split_by_speakers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], splits: Splits, packed: bool
) -> None:
    corpus = with_splits(opened(tmp_path, splits, packed), load().data)
    own = speakers(corpus)
    assert sum(map(len, corpus.tables.values())) == 24 and all(corpus.tables.values())
    assert not own["train"] & (own["dev"] | own["test"]) and not own["dev"] & own["test"]
    assert corpus.tables["train"][0].text.endswith(" van validated.")
    said = capsys.readouterr().err
    assert "has no clips in train: trained on validated (24 clips)" in said
    assert "has no test and no dev: taken from validated by whole speakers" in said


@pytest.mark.parametrize("lacking", ["dev", "test"])
def test_an_empty_split_is_taken_from_train(tmp_path: Path, capsys: pytest.CaptureFixture[str], lacking: str) -> None:
    kept = "test" if lacking == "dev" else "dev"
    splits = {"train": utterances("train", 24, 8), lacking: [], kept: utterances(kept, 4, 2)}
    corpus = with_splits(opened(tmp_path, splits, packed=False), load().data)
    own = speakers(corpus)
    assert corpus.tables[kept][0].speaker.startswith(kept) and own[lacking] and not own[lacking] & own["train"]
    assert f"has no {lacking}: taken from train by whole speakers" in capsys.readouterr().err


def test_what_is_taken_from_all_validated_shares_nothing_with_the_test_that_is_there(tmp_path: Path) -> None:
    splits = {"train": [], "dev": [], "test": VALIDATED[:9], "validated": VALIDATED}
    corpus = with_splits(opened(tmp_path, splits, packed=False), load().data)
    own = speakers(corpus)
    assert own["dev"] and not own["dev"] & own["test"]
    assert len(corpus.tables["test"]) == 9
    assert len(corpus.tables["train"]) + len(corpus.tables["dev"]) == 24  # those of test leave train as leaks


def test_a_release_without_any_clip_says_how_many_each_table_has(tmp_path: Path) -> None:
    corpus = opened(tmp_path, {"train": [], "dev": [], "test": []}, packed=False)
    with pytest.raises(UserError, match=r"has no train \(got: train without clips, dev without clips, "):
        with_splits(corpus, load().data)


def test_a_small_locale_is_prepared(words: list[str], tmp_path: Path) -> None:
    home = write_release(tmp_path / "own" / RELEASE, "nl", {**SMALL, "validated": utterances("validated", 60, 20)})
    run = prepared(words, home)
    assert {split: bool(own) for split, own in lines_of(run).items()} == {"train": True, "dev": True, "test": True}


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_the_language_of_a_folder_of_another_name_is_that_of_its_tables(tmp_path: Path, packed: bool) -> None:
    splits = {"train": [], "dev": [], "test": [], "validated": VALIDATED}  # the first rows are in the last table
    corpus = opened(tmp_path, splits, packed, "it", "italian")
    assert corpus.release == RELEASE and len(corpus.fetch(clip_names(corpus, "validated"))) == 24
    source = tmp_path / "x.tar.gz" if packed else tmp_path / RELEASE
    assert "holds it, not nl; write data.language=it" in refusal(source)


@pytest.mark.parametrize("packed", [False, True])
def test_tables_without_a_locale_under_a_name_of_ones_own_are_taken_for_the_language_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], packed: bool
) -> None:
    home = write_release(tmp_path / RELEASE, columns=["client_id", "path", "sentence"])
    home = home.rename(home.with_name("italian"))
    source = pack(home.parent, tmp_path / "x.tar.gz") if packed else home
    assert len(open_corpus(source, "it").tables["train"]) == 12
    assert "the tables of italian name no locale; taken for it (data.language)" in capsys.readouterr().err


@pytest.mark.parametrize("packed", [False, True])
def test_what_file_managers_leave_behind_does_not_count(tmp_path: Path, packed: bool) -> None:
    home = write_release(tmp_path / RELEASE)
    for name in ("._train.tsv", ".DS_Store", "clips/._common_voice_train_00000.mp3", "Thumbs.db"):
        (home / name).write_bytes(b"\0\5\26\7\0")
    shutil.copytree(home, tmp_path / RELEASE / "__MACOSX" / "nl")
    source = pack(tmp_path / RELEASE, tmp_path / "x.tar.gz") if packed else tmp_path / RELEASE
    corpus = open_corpus(source, "nl")
    assert {split: len(own) for split, own in corpus.tables.items()} == {"train": 12, "dev": 4, "test": 6}


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_folders_in_folders_are_searched_three_levels_deep(tmp_path: Path, depth: int) -> None:
    root = tmp_path / "above"
    home = write_release(root.joinpath(*["nl"] * (depth - 1)))
    assert len(open_corpus(root, "nl").tables["train"]) == 12
    assert home == root.joinpath(*["nl"] * depth)


# --- clips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_clips_that_were_converted_are_found_under_the_names_of_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], packed: bool
) -> None:
    home = write_release(tmp_path / RELEASE)
    for clip in sorted((home / "clips").iterdir()):
        soundfile.write(clip.with_suffix(".wav"), np.full(4_800, 0.1), 16_000)
        clip.unlink()
    corpus = open_corpus(pack(home.parent, tmp_path / "x.tar.gz") if packed else home, "nl")
    (name,) = clip_names(corpus, "dev")[:1]
    assert name == "common_voice_dev_00000.mp3" and corpus.sizes[name] > 9_600
    assert soundfile.info(corpus.fetch([name])[name]).frames == 4_800
    assert "another suffix than in the tables (common_voice_train_00000.wav for" in capsys.readouterr().err


# --- malformed rows ---------------------------------------------------------------------------------------------------


def spoilt(tmp_path: Path, rows: int) -> Path:
    """Writes a release of 60 good rows of train and some with a tab in the sentence."""
    splits = {"train": utterances("train", 60, 20), "dev": utterances("dev", 4, 2), "test": utterances("test", 6, 3)}
    home = write_release(tmp_path / "own" / RELEASE, splits=splits)
    with (home / "train.tsv").open("a") as table:
        for number in range(rows):
            cells = {"client_id": "x", "path": f"x{number}.mp3", "sentence": "met een\ttab"}
            table.write("\t".join(cells.get(column, "") for column in COLUMNS) + "\n")
    return home


def test_malformed_rows_count_among_those_left_out(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepared(words, spoilt(tmp_path, 3))
    assert "train: 60 clips" in (said := capsys.readouterr().err) and "3 left out" in said
    assert len(read_json(run / "data" / "summary.json")["splits"]["train"]["malformed_rows"]) == 3


def test_more_malformed_rows_than_a_release_has_are_refused(words: list[str], tmp_path: Path) -> None:
    home = spoilt(tmp_path, 9)
    expected = r"0 of 70 clips of .* are unusable \(none\), and 9 rows of its tables malformed \(line 62: 14 columns"
    with pytest.raises(ExternalError, match=expected) as error:
        prepare(load([*words, f'data.source="{home}"', "data.dev_clips=99", "eval.limit=null"]))
    assert "\n" not in str(error.value)


def test_malformed_rows_of_a_table_that_is_not_used_do_not_count(words: list[str], tmp_path: Path) -> None:
    home = spoilt(tmp_path, 0)
    write_lines(home / "validated.tsv", ["\t".join(COLUMNS), *["x\ty"] * 99])
    assert len(lines_of(prepared(words, home))["train"]) == 60
