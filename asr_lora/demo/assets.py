"""The demo's corpus: espeak-ng's voices on our sentences, packed just as Common Voice packs a release."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

from asr_lora.demo.espeak import RATE, EspeakError, Utterance, speak
from asr_lora.demo.sentences import draw_sentences
from asr_lora.runtime.console import progress, say
from asr_lora.runtime.errors import WorldError, to_install
from asr_lora.runtime.files import whole_file

RELEASE = "cv-corpus-demo-1.0-2026-11-23"
CLIP_RATE = 32_000  # Hz, as today's Common Voice clips have
SPLITS = {"train": (260, 36), "dev": (16, 8), "test": (40, 24)}  # clips, speakers

# The variants of espeak-ng whose Dutch an untouched whisper-base finds least improbable; no whispers, no robots.
VARIANTS = (
    *("m1", "m2", "m3", "m4", "m6", "m7", "m8", "f5", "klatt2", "klatt4", "adam", "Alex", "belinda", "benjamin"),
    *("caleb", "david", "Denis", "Diogo", "edward", "grandma", "grandpa", "Henrique", "Hugo", "linda", "Mario"),
    *("michel", "miguel", "Mike", "pablo", "Reed", "rob", "sandro", "victor", "zac"),
)
TAKES = 2  # speakers of one variant, apart in pitch and rate and always in the same split

COLUMNS = (
    *("client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes"),
    *("age", "gender", "accents", "variant", "locale", "segment"),
)
REPORTED_COLUMNS = ("sentence_id", "sentence", "locale", "reason")


@dataclass(frozen=True)
class Clip:
    split: str
    path: str
    sentence: str
    variant: str
    pitch: int
    rate: int

    def row(self) -> dict[str, str]:
        voice = f"espeak-ng nl+{self.variant}, pitch {self.pitch}, {self.rate} words a minute"
        return dict.fromkeys(COLUMNS, "") | {
            "client_id": hashlib.sha512(voice.encode()).hexdigest(),
            "path": self.path,
            "sentence_id": hashlib.sha256(self.sentence.encode()).hexdigest(),
            "sentence": self.sentence,
            "sentence_domain": "general",
            "up_votes": "2",
            "down_votes": "0",
            "accents": f"synthetic: {voice}",
            "locale": "nl",
        }


def write_demo_corpus(archive: Path, seed: int = 0) -> None:
    """A gzipped tar of 316 clips, 17 minutes; the same bytes for the same seed (and library versions).

    No two clips share a sentence, no two splits a speaker or a voice variant. Raises WorldError when the synthesiser is
    absent or fails, or the archive cannot be written.
    """
    rng = Random(seed)
    clips = _clips(rng)
    say(f"speaking {len(clips)} Dutch sentences with espeak-ng (synthetic voices) into {archive}")
    utterances: list[Utterance] = [
        {"text": clip.sentence, "voice": f"nl+{clip.variant}", "pitch": clip.pitch, "rate": clip.rate} for clip in clips
    ]
    try:
        speech = speak(utterances)
        with whole_file(archive) as partial:
            _pack(partial, clips, speech)
    except EspeakError as error:
        raise WorldError(f"espeak-ng cannot speak ({error}); where it is absent {to_install('demo')}") from error
    except OSError as error:
        raise WorldError(f"cannot write {archive}: {error}") from error


def _clips(rng: Random) -> list[Clip]:
    """All clips, a split after another, each grouped by speaker as the tables of Common Voice are."""
    voices = _voices(rng)
    sentences = iter(draw_sentences(sum(clips for clips, _ in SPLITS.values()), rng))
    drawn: list[Clip] = []
    for split, (clips, speakers) in SPLITS.items():
        cast = [next(voices) for _ in range(speakers)]
        for index in range(clips):
            variant, pitch, rate = cast[index * speakers // clips]
            path = f"common_voice_nl_{len(drawn) + 1:08}.mp3"
            drawn.append(Clip(split, path, next(sentences), variant, pitch, rate))
    return drawn


def _voices(rng: Random) -> Iterator[tuple[str, int, int]]:
    """Variant, pitch (0 to 99) and rate (words a minute) of one speaker after another."""
    for variant in rng.sample(VARIANTS, len(VARIANTS)):
        for take in range(TAKES):
            yield variant, rng.randrange(20, 43) + 23 * take, rng.randrange(100, 131, 5)


def _pack(target: Path, clips: Sequence[Clip], speech: Sequence[bytes]) -> None:
    """Members in the order of their names, and no time of day anywhere: equal contents give equal bytes."""
    members: dict[str, bytes] = {}
    durations = []
    with progress("encoding clips", total=len(clips)) as bar, ThreadPoolExecutor() as pool:
        for clip, (mp3, milliseconds) in zip(clips, pool.map(_encode, speech), strict=True):
            members[f"clips/{clip.path}"] = mp3
            durations.append({"clip": clip.path, "duration[ms]": str(milliseconds)})
            bar.advance()
    tables = {split: [clip.row() for clip in clips if clip.split == split] for split in SPLITS}
    tables |= {"validated": [clip.row() for clip in clips], "invalidated": [], "other": []}
    members |= {f"{name}.tsv": _table(COLUMNS, rows) for name, rows in tables.items()}
    members["reported.tsv"] = _table(REPORTED_COLUMNS, [])
    members["clip_durations.tsv"] = _table(("clip", "duration[ms]"), durations)
    with (
        target.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w|") as tar,
    ):
        for name, data in sorted(members.items()):
            member = tarfile.TarInfo(f"{RELEASE}/nl/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _encode(pcm: bytes) -> tuple[bytes, int]:
    """MP3 at CLIP_RATE, and its length in milliseconds."""
    wave = torch.from_numpy(np.frombuffer(pcm, np.int16).astype(np.float32) / 2**15)
    wave = resample(wave, RATE, CLIP_RATE).clamp(-1, 1)
    mp3 = io.BytesIO()
    soundfile.write(mp3, wave.numpy(), CLIP_RATE, format="MP3")
    return mp3.getvalue(), round(1000 * len(wave) / CLIP_RATE)


def _table(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> bytes:
    """Raw tab-separated text: no quoting, as Common Voice writes it."""
    lines = ["\t".join(columns), *("\t".join(row[column] for column in columns) for row in rows)]
    return ("\n".join(lines) + "\n").encode()
