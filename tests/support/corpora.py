"""The same 24 clips of 6 speakers as every kind of data.source, and their manifest."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import soundfile
from support.releases import pack, tone, utterances, write_lines

from asr_lora.config.compose import load
from asr_lora.prepare import prepare
from asr_lora.runtime.files import read_jsonl

ROWS = utterances("said", 24, 6, seconds=0.3)
SPLIT = [("train", 16), ("dev", 4), ("test", 4)]
COMMON = {"train": 16, "dev": 4, "test": 4}


def recordings(folder: Path, rows: Sequence[dict[str, Any]] = ROWS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        (folder / row["path"]).write_bytes(tone(row["path"], row["seconds"]))


def splits_of(rows: Sequence[Any] = ROWS) -> dict[str, list[Any]]:
    """Splits rows into 16 of train, 4 of dev, 4 of test, by whole speakers."""
    return {"train": list(rows[:16]), "dev": list(rows[16:20]), "test": list(rows[20:])}


def csv_lines(rows: Sequence[dict[str, Any]], prefix: str = "") -> list[str]:
    return ["file,text,speaker", *(f'{prefix}{row["path"]},"{row["sentence"]}",{row["client_id"]}' for row in rows)]


# --- a source of every kind, 24 clips of 6 speakers -------------------------------------------------------------------


def csv_alone(home: Path) -> Path:
    recordings(home / "wavs")
    write_lines(home / "all.csv", csv_lines(ROWS, "wavs/"))
    return home


def csv_itself(home: Path) -> Path:
    return csv_alone(home) / "all.csv"


def tsv_of_splits(home: Path) -> Path:
    recordings(home / "wavs")
    for split, rows in zip(("train", "valid", "test"), splits_of().values(), strict=True):
        lines = [f"wavs/{row['path']}\t{row['sentence']}\t{row['client_id']}" for row in rows]
        write_lines(home / f"{split}.tsv", ["audio\tsentence\tspeaker_id", *lines])
    return home


def nemo(home: Path) -> Path:
    recordings(home)
    for split, rows in splits_of().items():
        lines = [{"audio_filepath": str(home / row["path"]), "text": row["sentence"], "duration": 0.3} for row in rows]
        write_lines(home / f"{split}_manifest.json", [json.dumps(line) for line in lines])
    return home


def nemo_segments(home: Path) -> Path:
    """Writes two recordings of 12 utterances each, half a second apart."""
    home.mkdir()
    for name in ("one.wav", "two.flac"):
        soundfile.write(home / name, np.random.default_rng(0).uniform(-0.1, 0.1, 16_000 * 6), 16_000)
    lines = [
        {"audio_filepath": ("one.wav", "two.flac")[at % 2], "offset": at // 2 * 0.5, "duration": 0.3,
         "text": row["sentence"], "speaker": row["client_id"]}
        for at, row in enumerate(ROWS)
    ]  # fmt: skip
    write_lines(home / "talks.jsonl", [json.dumps(line) for line in lines])
    return home


def kaldi(home: Path) -> Path:
    recordings(home / "wavs")
    for split, rows in splits_of().items():
        (home / "data" / split).mkdir(parents=True)
        stems = [row["path"].removesuffix(".mp3") for row in rows]
        write_lines(home / "data" / split / "wav.scp", [f"{stem} {home}/wavs/{stem}.mp3" for stem in stems])
        write_lines(home / "data" / split / "text", [f"{s} {r['sentence']}" for s, r in zip(stems, rows, strict=True)])
        write_lines(
            home / "data" / split / "utt2spk", [f"{s} {r['client_id']}" for s, r in zip(stems, rows, strict=True)]
        )
    return home / "data"


def kaldi_segments(home: Path) -> Path:
    home.mkdir()
    soundfile.write(home / "talk.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 16_000 * 13), 16_000)
    write_lines(home / "wav.scp", ["talk talk.wav"])
    ids = [f"{row['client_id']}.{at:03}" for at, row in enumerate(ROWS)]
    write_lines(home / "segments", [f"{utt} talk {at / 2:.2f} {at / 2 + 0.3:.2f}" for at, utt in enumerate(ids)])
    write_lines(home / "text", [f"{utt}\t{row['sentence']}" for utt, row in zip(ids, ROWS, strict=True)])
    write_lines(home / "utt2spk", [f"{utt} {row['client_id']}" for utt, row in zip(ids, ROWS, strict=True)])
    return home


SPONTANEOUS = (
    "client_id audio_id audio_file duration_ms prompt_id prompt transcription votes age gender language split "
    "char_per_sec quality_tags"
).split()


def spontaneous(home: Path, more: Sequence[dict[str, Any]] = (), split: str | None = None) -> Path:
    release = home / "sps-corpus-3.0-2026-03-09-nl"
    recordings(release / "audios")
    lines = [
        {"client_id": row["client_id"], "audio_file": row["path"], "duration_ms": 300, "transcription": row["sentence"],
         "language": "Dutch", "split": split or its}
        for its, rows in splits_of().items() for row in rows
    ]  # fmt: skip
    rows = [*lines, *more]
    write_lines(
        release / "ss-corpus-nl.tsv",
        ["\t".join(SPONTANEOUS), *("\t".join(str(row.get(column, "")) for column in SPONTANEOUS) for row in rows)],
    )
    write_lines(release / "ss-reported-audios-nl.tsv", ["client_id\taudio_file\treason"])
    return release


def spontaneous_archive(home: Path) -> Path:
    return pack(spontaneous(home), home / "sps-corpus-3.0-2026-03-09-nl.tar.gz")


def as_table(rows: Sequence[dict[str, Any]], named: bool = True) -> pa.Table:
    """Makes a table like a data set of the Hub: audio as bytes beside the name of its file."""
    sound = [{"bytes": tone(row["path"], row["seconds"]), "path": row["path"] if named else None} for row in rows]
    features = datasets.Features({
        "audio": datasets.Audio(16_000), "transcription": datasets.Value("string"),
        "speaker_id": datasets.Value("int64"), "begin": datasets.List(datasets.Value("int8")),
    })  # fmt: skip
    columns = {
        "audio": pa.array(sound, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "transcription": [row["sentence"] for row in rows],
        "speaker_id": [int(row["client_id"][-3:]) for row in rows],
        "begin": pa.array([[1]] * len(rows), pa.list_(pa.int8())),
    }
    return pa.table(columns).replace_schema_metadata(features.arrow_schema.metadata)


def parquet(home: Path) -> Path:
    (home / "data").mkdir(parents=True)
    for split, rows in zip(("train", "validation", "test"), splits_of().values(), strict=True):
        pyarrow.parquet.write_table(as_table(rows), home / "data" / f"{split}-00000-of-00001.parquet")
    return home


def parquet_alone(home: Path) -> Path:
    home.mkdir()
    pyarrow.parquet.write_table(as_table(ROWS, named=False), home / "speech.parquet")
    return home / "speech.parquet"


def saved(home: Path) -> Path:
    datasets.Dataset(as_table(ROWS)).save_to_disk(home)
    return home


def audiofolder(home: Path) -> Path:
    for split, rows in zip(("train", "validation", "test"), splits_of().values(), strict=True):
        recordings(home / split / "clips", rows)
        lines = [f"clips/{row['path']},{row['sentence']}" for row in rows]
        write_lines(home / split / "metadata.csv", ["file_name,transcription", *lines])
    return home


def audiofolder_of_one_table(home: Path) -> Path:
    for split, rows in splits_of().items():
        recordings(home / split, rows)
    lines = [f"{split}/{row['path']},{row['sentence']}" for split, rows in splits_of().items() for row in rows]
    write_lines(home / "metadata.csv", ["file_name,transcription", *lines])
    return home


Kind = Callable[[Path], Path]


def prepared(words: Sequence[str], source: object, *more: str) -> Path:
    config = load([*words, f'data.source="{source}"', "data.dev_clips=99", "eval.limit=null", *more])
    prepare(config)
    return config.run


def lines_of(run: Path) -> dict[str, list[dict[str, Any]]]:
    return {split: read_jsonl(run / "data" / f"{split}.jsonl") for split in ("train", "dev", "test")}
