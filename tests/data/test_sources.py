"""Every kind of data.source: one table of utterances, and a manifest by prepare."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.corpora import (
    COMMON,
    ROWS,
    SPONTANEOUS,
    Kind,
    audiofolder,
    audiofolder_of_one_table,
    csv_alone,
    csv_itself,
    kaldi,
    kaldi_segments,
    lines_of,
    nemo,
    nemo_segments,
    parquet,
    parquet_alone,
    prepared,
    recordings,
    saved,
    splits_of,
    spontaneous,
    spontaneous_archive,
    tsv_of_splits,
)
from support.releases import clip_names, pack, refusal, write_lines

from asr_lora.config.compose import load
from asr_lora.corpus import is_path, is_quick, open_corpus
from asr_lora.corpus.records import Utterance
from asr_lora.data.manifest import waveform
from asr_lora.data.preparation import draw_from_corpus
from asr_lora.planning.devices import durations
from asr_lora.prepare import prepare
from asr_lora.runtime.files import read_json

WITH_SPLITS = [tsv_of_splits, nemo, kaldi, spontaneous, spontaneous_archive, parquet, audiofolder,
               audiofolder_of_one_table]  # fmt: skip
WITHOUT = [csv_alone, csv_itself, nemo_segments, kaldi_segments, parquet_alone, saved]


@pytest.mark.parametrize("kind", WITH_SPLITS)
def test_a_source_with_splits_becomes_a_manifest_of_them(words: list[str], tmp_path: Path, kind: Kind) -> None:
    lines = lines_of(prepared(words, kind(tmp_path / "speech")))
    assert {split: len(own) for split, own in lines.items()} == COMMON
    assert len({line["id"] for own in lines.values() for line in own}) == 24
    for split, rows in splits_of().items():
        assert {line["text"] for line in lines[split]} == {row["sentence"] for row in rows}
    samples = waveform(lines["train"][0])
    assert samples.dtype == np.float32 and len(samples) == pytest.approx(0.3 * 16_000, abs=600)


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_source_without_splits_is_split_by_whole_speakers(words: list[str], tmp_path: Path, kind: Kind) -> None:
    lines = lines_of(prepared(words, kind(tmp_path / "speech")))
    speakers = {split: {line["speaker"] for line in own} for split, own in lines.items()}
    assert sum(map(len, lines.values())) == 24 == len({line["id"] for own in lines.values() for line in own})
    assert sum(map(len, speakers.values())) == 6 == len(set().union(*speakers.values()))
    assert all(line["duration"] == pytest.approx(0.3, abs=0.05) for own in lines.values() for line in own)


@pytest.mark.parametrize("kind", [csv_alone, kaldi, kaldi_segments, nemo_segments, spontaneous, parquet])
def test_an_evaluation_set_may_be_of_every_kind(words: list[str], tmp_path: Path, kind: Kind) -> None:
    config = load(words)
    prepare(config)
    clips, available, _ = draw_from_corpus(
        config.run, config.data, config.model, str(kind(tmp_path / "speech")), "nl", "test", 3
    )
    assert len(clips) == 3 and available in (4, 24)


@pytest.mark.parametrize("kind", [nemo, kaldi_segments, spontaneous])
def test_a_plan_takes_the_durations_of_a_source_and_decodes_nothing(
    words: list[str], tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = kind(tmp_path / "speech")
    monkeypatch.setattr(soundfile, "SoundFile", None)
    seconds, origin = durations(load([*words, f"data.source={source}"]))
    assert origin == str(source) and seconds["train"] == pytest.approx([0.3] * len(seconds["train"]))


def test_a_plan_opens_no_source_that_must_be_converted_or_fetched(words: list[str], tmp_path: Path) -> None:
    for source in (parquet(tmp_path / "speech"), "hf:owner/name:nl"):
        assert "typical" in durations(load([*words, f'data.source="{source}"']))[1]
    assert not is_path("hf:owner/name") and not is_quick(tmp_path / "speech")


# --- Spontaneous Speech -----------------------------------------------------------------------------------------------


def test_untranscribed_unassigned_and_overlong_answers_are_left_out_and_listed(tmp_path: Path) -> None:
    answer = {"client_id": "x", "duration_ms": 900, "transcription": "Nou [um] ja", "split": "unassigned"}
    more = [
        answer | {"audio_file": "a.mp3"},
        answer | {"audio_file": "b.mp3", "transcription": " ", "split": "train"},
        answer | {"audio_file": "c.mp3", "duration_ms": 45_000, "split": "test"},
    ]
    corpus = open_corpus(spontaneous(tmp_path, more), "nl")
    assert {split: len(own) for split, own in corpus.tables.items()} == COMMON
    assert corpus.malformed["train"] == ["line 27: not transcribed", "a.mp3: of the split unassigned"]
    assert corpus.malformed["test"] == ["line 28: longer than 30 s (45 s)"]
    assert set(corpus.durations.values()) == {0.3}


def test_a_release_without_assigned_splits_is_one_table(tmp_path: Path) -> None:
    corpus = open_corpus(spontaneous(tmp_path, split="unassigned"), "nl")
    assert {split: len(own) for split, own in corpus.tables.items()} == {"all": 24}
    assert corpus.release == "sps-corpus-3.0-2026-03-09-nl"


def test_its_archive_reads_as_its_folder_and_other_languages_are_ignored(tmp_path: Path) -> None:
    release = spontaneous(tmp_path / "both")
    other = tmp_path / "both" / "sps-corpus-3.0-2026-03-09-fy-NL"
    recordings(other / "audios", ROWS[:1])
    write_lines(other / "ss-corpus-fy-NL.tsv", ["\t".join(SPONTANEOUS)])
    archive = pack(tmp_path / "both", tmp_path / "both.tar.gz")
    packed, unpacked = open_corpus(archive, "nl"), open_corpus(tmp_path / "both", "nl")
    assert packed.tables == unpacked.tables and packed.release == unpacked.release == release.name
    assert packed.sizes == unpacked.sizes and packed.durations == unpacked.durations
    names = clip_names(packed, "test")
    assert [file.read_bytes() for file in packed.fetch(names).values()] == [
        (release / "audios" / name).read_bytes() for name in names
    ]
    for source in (archive, tmp_path / "both"):
        assert "holds fy-NL, nl, not es; write data.language=fy-NL" in refusal(source, "es")


def test_nothing_but_plain_files_of_its_own_folders_is_ever_written(tmp_path: Path, private_cache: Path) -> None:
    def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, io.BytesIO]:
        made = tarfile.TarInfo(name)
        made.size, made.type, made.linkname = len(content), kind, "/etc/passwd"
        return made, io.BytesIO(content)

    table = "client_id\taudio_file\tduration_ms\ttranscription\tsplit\n"
    table += "".join(f"x\t{number}.mp3\t300\thoi\ttrain\n" for number in range(5))
    with tarfile.open(tmp_path / "hostile.tar", "w") as packed:
        for one in (
            member("s/ss-corpus-nl.tsv", table.encode()),
            member("s/audios/0.mp3", b"good"),
            member("s/audios/1.mp3", b"", tarfile.SYMTYPE),
            member("s/audios/../../2.mp3", b"dotted"),
            member("/s/audios/3.mp3", b"absolute"),
            member("other/audios/4.mp3", b"elsewhere"),
        ):
            packed.addfile(*one)
    corpus = open_corpus(tmp_path / "hostile.tar", "nl")
    assert set(corpus.fetch(clip_names(corpus, "train"))) == {"0.mp3"} == set(corpus.sizes)
    kept = {path.name for path in private_cache.rglob("*") if path.is_file()}
    assert kept == {"ss-corpus-nl.tsv", "members.json", "0.mp3"}


# --- Kaldi ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["touch {home}/run; cat x.wav |", "sox a.flac -t wav - tempo 1.1|", "feats.ark:123"])
def test_no_command_of_wav_scp_is_ever_run(tmp_path: Path, place: str) -> None:
    write_lines(tmp_path / "wav.scp", ["a " + place.format(home=tmp_path)])
    write_lines(tmp_path / "text", ["a hoi"])
    message = refusal(tmp_path)
    assert f"line 1 of {tmp_path}/wav.scp is a" in message and "write the audio to files and name these" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "line",
    [
        "flac -c -d -s {place} |", "sox {place} -t wav - |", "ffmpeg -i {place} -f wav -ar 16000 - |",
        "sph2pipe -f wav {place} |", "/corpora/elsewhere/wavs/{name}", "D:\\\\wavs\\\\{name}",
    ],
)  # fmt: skip
def test_a_recording_that_wav_scp_only_decodes_or_has_elsewhere_is_its_file(tmp_path: Path, line: str) -> None:
    source = kaldi(tmp_path / "k")
    for scp in source.glob("*/wav.scp"):
        rows = [row.split() for row in scp.read_text().splitlines()]
        write_lines(scp, [f"{utt} {line.format(place=place, name=Path(place).name)}" for utt, place in rows])
    shutil.move(source.parent / "wavs", source / "wavs")
    corpus = open_corpus(source, "nl")
    assert len(corpus.fetch(clip_names(corpus, "train"))) == 16


def test_espnets_audio_paths_are_a_list_of_recordings(tmp_path: Path) -> None:
    source = kaldi(tmp_path / "k")
    for scp in source.glob("*/wav.scp"):
        scp.rename(scp.with_name("audio_paths"))
    corpus = open_corpus(source, "nl")
    assert len(corpus.fetch(clip_names(corpus, "train"))) == 16
    paths = source / "train" / "audio_paths"
    write_lines(paths, [line.split()[1] for line in paths.read_text().splitlines()])
    assert clip_names(open_corpus(source, "nl"), "train") == clip_names(corpus, "train")


def test_utterances_without_recording_or_times_are_left_out_and_listed(tmp_path: Path) -> None:
    source = kaldi_segments(tmp_path / "k")
    with (source / "text").open("a") as text, (source / "segments").open("a") as segments:
        text.write("x1 geen tijden\nx2 geen opname\nx3 te veel\nx4 tot het eind\nx5\n")
        segments.write("x2 nowhere 1 2\nx3 talk 1 2 1\nx4 talk 12.5 -1\nx5 talk 2 1\n")
    corpus = open_corpus(source, "nl")
    assert [line.partition(": ")[2] for line in corpus.malformed["all"]] == [
        "x1 is not in segments", "nowhere is not in wav.scp",
        "x3 has 4 fields in segments, not recording, start and end", "ends at 1 s, before it begins (2 s)",
    ]  # fmt: skip
    last = corpus.tables["all"][-1]
    assert last == Utterance("x4.wav", "tot het eind", start=12.5)


def test_relative_paths_of_kaldi_begin_where_the_recipe_was_run(tmp_path: Path) -> None:
    source = kaldi(tmp_path / "recipe")
    for scp in source.glob("*/wav.scp"):
        scp.write_text(scp.read_text().replace(f"{tmp_path}/recipe/", ""))
    corpus = open_corpus(source, "nl")
    assert len(corpus.fetch(clip_names(corpus, "train"))) == 16
    (source / "dev" / "text").unlink()
    assert f"no text beside {source}/dev/wav.scp" in refusal(source)


# --- several kinds at once --------------------------------------------------------------------------------------------


def test_sources_of_several_kinds_are_one_corpus(words: list[str], tmp_path: Path) -> None:
    kinds = (csv_alone, kaldi, spontaneous_archive, parquet)
    each = [f"{{path: {kind(tmp_path / kind.__name__)}, weight: 2}}" for kind in kinds]
    run = prepared(words, None, "data.source=null", f"data.sources=[{','.join(each)}]")
    facts = read_json(run / "data" / "summary.json")
    lines = lines_of(run)
    assert len({line["id"] for own in lines.values() for line in own}) == sum(map(len, lines.values()))
    assert len({line["source"] for line in lines["test"]}) == 4
    # The others train on the speakers that the table without splits holds out: they are the same.
    assert facts["leaks_dropped_from_train"]["speaker"] > 0
