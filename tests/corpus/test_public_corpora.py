"""Public corpora as they are downloaded: LibriSpeech, MLS, FLEURS, VoxPopuli, Common Voice of Kaggle, its mirrors."""

import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.releases import COLUMNS, refusal, tone, utterances, write_lines

from asr_lora.config.compose import load
from asr_lora.corpus import Columns, Corpus, open_corpus
from asr_lora.corpus.records import Utterance
from asr_lora.data.splits import with_splits

pytestmark = pytest.mark.usefixtures("private_cache")


def clip(path: Path, seconds: float = 0.3) -> None:
    """Writes a tone whose pitch follows from the name, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pitch = 200 + sum(path.name.encode()) % 900  # Hz
    sound = 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * 16_000)) / 16_000)
    opus = {"format": "OGG", "subtype": "OPUS"} if path.suffix in (".opus", ".ogg") else {}
    soundfile.write(path, sound, 16_000, **opus)


def first(corpus: Corpus, split: str) -> Utterance:
    """Returns the first utterance of a split, whose clip is there and has a sound of 0.3 s."""
    utterance = corpus.tables[split][0]
    file = corpus.fetch([utterance.path])[utterance.path]
    assert soundfile.info(file).duration == pytest.approx(0.3, abs=0.05)
    return utterance


def counts(corpus: Corpus) -> dict[str, int]:
    return {split: len(own) for split, own in corpus.tables.items()}


# --- LibriSpeech ------------------------------------------------------------------------------------------------------


def librispeech(root: Path, parts: Sequence[str], chapters: int = 2) -> Path:
    for at, part in enumerate(parts):
        for chapter in range(chapters):
            speaker = f"{at}{chapter}4"
            home = root / part / speaker / "121"
            lines = [f"{speaker}-121-{number:04} SENTENCE {number} OF {part.upper()} {chapter}" for number in range(3)]
            for line in lines:
                clip(home / f"{line.split()[0]}.flac")
            write_lines(home / f"{speaker}-121.trans.txt", lines)
    write_lines(root / "SPEAKERS.TXT", ["; ID | SEX"])
    return root


def test_librispeech_has_its_splits_in_its_folders(tmp_path: Path) -> None:
    parts = ["train-clean-100", "train-other-500", "dev-clean", "dev-other", "test-clean"]
    corpus = open_corpus(librispeech(tmp_path / "LibriSpeech", parts), "en")
    assert counts(corpus) == {"train": 12, "dev": 12, "test": 6} and corpus.release == "LibriSpeech"
    path = "train-clean-100/004/121/004-121-0000.flac"
    assert first(corpus, "train") == Utterance(path, "SENTENCE 0 OF TRAIN-CLEAN-100 0", "004")
    assert first(corpus, "dev").speaker == "204"


def test_a_part_of_librispeech_is_split_by_speakers(tmp_path: Path) -> None:
    root = librispeech(tmp_path, ["train-clean-100"], chapters=6) / "train-clean-100"
    corpus = open_corpus(root, "en")
    assert counts(corpus) == {"train": 18}
    made = with_splits(corpus, replace(load().data, heldout_share=0.2))
    speakers = {split: {each.speaker for each in own} for split, own in made.tables.items()}
    assert counts(made) == {"train": 12, "dev": 3, "test": 3}
    assert not (speakers["train"] & (speakers["dev"] | speakers["test"]) or speakers["dev"] & speakers["test"])


def test_recordings_of_librispeech_that_are_gone_are_known_as_such(tmp_path: Path) -> None:
    root = librispeech(tmp_path, ["train-clean-100", "dev-clean"])
    (root / "train-clean-100" / "004" / "121" / "004-121-0001.flac").unlink()
    corpus = open_corpus(root, "en")
    names = [each.path for each in corpus.tables["train"]]
    assert len(names) == 6 and set(names) - set(corpus.fetch(names)) == {"train-clean-100/004/121/004-121-0001.flac"}


def test_folders_of_no_known_split_are_asked_about(tmp_path: Path) -> None:
    root = librispeech(tmp_path, ["train-clean-100", "mine", "others"])
    assert "holds mine, others, of no known split (train-clean-100 is train)" in refusal(root, "en")
    corpus = open_corpus(root, "en", Columns(splits={"mine": "test", "others": "none"}))
    assert counts(corpus) == {"train": 6, "test": 6}


# --- Multilingual LibriSpeech -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".flac", ".opus"])
def test_mls_has_a_transcript_a_split_and_folders_of_speakers_and_books(tmp_path: Path, suffix: str) -> None:
    root = tmp_path / "mls_spanish"
    for split, speaker in (("train", "84"), ("dev", "85"), ("test", "86")):
        for number in range(3):
            clip(root / split / "audio" / speaker / "7" / f"{speaker}_7_{number:06}{suffix}")
        lines = [f"{speaker}_7_{number:06}\tfrase {number} de {split}" for number in range(3)]
        write_lines(root / split / "transcripts.txt", lines)
        write_lines(root / split / "segments.txt", ["84_7_000000\thttp://x\t1\t2"])
    (root / "train" / "limited_supervision" / "9hr").mkdir(parents=True)
    write_lines(root / "train" / "limited_supervision" / "9hr" / "handles.txt", ["84_7_000000"])
    corpus = open_corpus(root, "es")
    assert counts(corpus) == {"train": 3, "dev": 3, "test": 3}
    assert first(corpus, "test") == Utterance(f"test/audio/86/7/86_7_000000{suffix}", "frase 0 de test", "86")


# --- FLEURS -----------------------------------------------------------------------------------------------------------


def fleurs(home: Path, packed: bool = False, place: str = "audio") -> Path:
    for split, count in (("train", 4), ("dev", 2), ("test", 2)):
        lines = []
        for number in range(count):
            clip(home / place / split / f"{split}{number}.wav")
            lines.append(
                f"{number}\t{split}{number}.wav\tFrase {number}, de «{split}».\tfrase {number} de {split}\t"
                f"f r a s e |\t4800\tFEMALE"
            )
        write_lines(home / f"{split}.tsv", lines)
        if packed:
            with tarfile.open(home / "audio" / f"{split}.tar.gz", "w:gz") as tar:
                tar.add(home / "audio" / split, arcname=split)
            for file in (home / "audio" / split).iterdir():
                file.unlink()
            (home / "audio" / split).rmdir()
    return home


@pytest.mark.parametrize(("packed", "place"), [(False, "audio"), (True, "audio"), (False, ".")])
def test_fleurs_is_read_as_unpacked_and_as_it_is_downloaded(tmp_path: Path, packed: bool, place: str) -> None:
    root = fleurs(tmp_path / "data" / "es_419", packed, place)
    for source in (root, tmp_path / "data"):
        corpus = open_corpus(source, "es")
        assert counts(corpus) == {"train": 4, "dev": 2, "test": 2}
        extra = {"id": "0", "transcription": "frase 0 de train", "gender": "FEMALE"}
        utterance = Utterance("train/train0.wav", "Frase 0, de «train».", duration=0.3, extra=extra)
        assert first(corpus, "train") == utterance and corpus.durations["train/train0.wav"] == 0.3


def test_one_of_fleurs_languages_is_chosen_by_its_code(tmp_path: Path) -> None:
    fleurs(tmp_path / "es_419")
    fleurs(tmp_path / "nb_no")
    assert counts(open_corpus(tmp_path, "nb-NO")) == {"train": 4, "dev": 2, "test": 2}
    assert "holds es_419, nb_no, not nl" in refusal(tmp_path)


def test_a_line_of_fleurs_of_another_width_or_without_samples_is_left_out(tmp_path: Path) -> None:
    root = fleurs(tmp_path / "es_419")
    with (root / "train.tsv").open("a") as table:
        table.write(
            "9\tx.wav\tuna\tdos\t5000\tMALE\n9\tx.wav\tuna\tdos\tt\t-3\tMALE\n9\tx.wav\tu\td\tt\t640000\tMALE\n"
        )
    corpus = open_corpus(root, "es")
    assert [line.partition(": ")[2] for line in corpus.malformed["train"]] == [
        "6 columns, not 7", "no number of samples: -3", "longer than 30 s (40 s)",
    ]  # fmt: skip


# --- VoxPopuli --------------------------------------------------------------------------------------------------------

VOXPOPULI = ["id", "raw_text", "normalized_text", "speaker_id", "split", "gender"]


@pytest.mark.parametrize("layout", ["transcribed_data", "data"])
def test_voxpopuli_is_read_from_its_own_folders_and_the_hubs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    home = tmp_path / layout / "es"
    for split in ("train", "dev", "test"):
        lines = ["\t".join(VOXPOPULI)]
        for number in range(3):
            name = f"2018{number}-PLENARY-{split}-es"
            clip(home / ("2018" if layout == "transcribed_data" else f"{split}/{split}_part_0") / f"{name}.ogg")
            raw = f"Frase {number}, {split}." if number else ""
            speaker = "None" if number else f"{split}7"
            lines.append("\t".join([name, raw, f"frase {number} {split}", speaker, split, "male"]))
        write_lines(home / f"asr_{split}.tsv", lines)
    corpus = open_corpus(tmp_path, "es")
    assert counts(corpus) == {"train": 3, "dev": 3, "test": 3}
    assert (first(corpus, "dev").text, first(corpus, "dev").speaker) == ("frase 0 dev", "dev7")
    assert (corpus.tables["dev"][1].text, corpus.tables["dev"][1].speaker) == ("Frase 1, dev.", "")
    assert "the text of 3 utterances is normalized_text" in capsys.readouterr().err
    assert "holds es, not nl; write data.language=es" in refusal(tmp_path)
    assert counts(open_corpus(home, "es")) == {"train": 3, "dev": 3, "test": 3}


# --- Common Voice of Kaggle -------------------------------------------------------------------------------------------


def kaggle(root: Path, doubled: bool) -> Path:
    for name, count in (("valid-train", 4), ("valid-dev", 2), ("valid-test", 2), ("other-train", 3), ("invalid", 1)):
        lines = ["filename,text,up_votes,down_votes,age,gender,accent,duration"]
        for number in range(count):
            path = f"cv-{name}/sample-{number:06}.mp3"
            file = root / f"cv-{name}" / path if doubled else root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(tone(path, 0.3))
            lines.append(f'{path},"so, {number} of {name}",1,0,twenties,,,')
        write_lines(root / f"cv-{name}.csv", lines)
    return root


@pytest.mark.parametrize("doubled", [False, True])
def test_kaggles_common_voice_has_its_valid_clips_by_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], doubled: bool
) -> None:
    root = kaggle(tmp_path, doubled)
    corpus = open_corpus(root, "en")
    assert counts(corpus) == {"train": 4, "dev": 2, "test": 2}
    utterance = first(corpus, "train")
    assert (utterance.path, utterance.text) == ("cv-valid-train/sample-000000.mp3", "so, 0 of valid-train")
    assert (utterance.speaker, utterance.extra["age"]) == ("", "twenties")
    said = "left out: cv-invalid (1 clips), cv-other-train (3 clips); 'data.splits={cv-invalid: train}' adds one"
    assert said in capsys.readouterr().err
    more = open_corpus(root, "en", Columns(splits={"cv-other-train": "train"}))
    assert counts(more) == {"train": 7, "dev": 2, "test": 2}


# --- mirrors ----------------------------------------------------------------------------------------------------------


def test_a_mirror_of_common_voice_has_its_clips_in_archives(tmp_path: Path, private_cache: Path) -> None:
    root = tmp_path / "common_voice_17_0"
    for language in ("nl", "es"):
        for split, count in (("train", 4), ("dev", 2), ("test", 2), ("other", 2)):
            rows = utterances(split, count, count, seconds=0.3)
            lines = [row | {"locale": language, "up_votes": 2} for row in rows]
            (root / "transcript" / language).mkdir(parents=True, exist_ok=True)
            table = root / "transcript" / language / f"{split}.tsv"
            cells = ("\t".join(str(row.get(column, "")) for column in COLUMNS) for row in lines)
            write_lines(table, ["\t".join(COLUMNS), *cells])
            for shard in range(2):
                tar_of(root / "audio" / language / split / f"{language}_{split}_{shard}.tar", rows[shard::2])
    corpus = open_corpus(root, "nl")
    assert (counts(corpus), corpus.release) == ({"train": 4, "dev": 2, "test": 2}, "common_voice_17_0")
    assert replace(first(corpus, "train"), extra={}) == Utterance(
        "common_voice_train_00000.mp3", "Dit is zin 0 van train.", "train-speaker-000"
    )
    assert len(list(private_cache.rglob("*.mp3"))) == 8  # of one language, without other
    assert "holds es, nl, not fr" in refusal(root, "fr")


def tar_of(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for row in rows:
            file = path.parent / str(row["path"])
            file.write_bytes(tone(str(row["path"]), 0.3))
            tar.add(file, arcname=f"{path.stem}/{row['path']}")
            file.unlink()
