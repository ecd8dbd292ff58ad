"""The manifest of a run: which clips, in what order, why not others. Two runs with one manifest heard the same hour."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from asr_lora.corpus.shards import is_url, read_clip
from asr_lora.runs import folder
from asr_lora.runs.folder import LINE, NOT_OF_ALL
from asr_lora.runtime.errors import ExternalError
from asr_lora.runtime.files import plain_suffix, read_jsonl
from asr_lora.speech import audio
from asr_lora.speech.audio import AudioInfo, AudioSegment, scan_clip

Row = Mapping[str, str]  # a row of the corpus's table, raw
Clip = dict[str, Any]  # a line of the manifest
EXCLUDED = "the same sound as a clip of data.exclude_overlap"
LOCATION_FIELDS = (
    "path",
    "start",
    "end",
    "offset",
    "bytes",
    "member",
    "sha256",
)  # of a clip: where its sound is, and whether
IN_SHARD = ("shard", "member", "offset", "bytes", "sha256")  # of a row: in which shard, a path or URL, and where in it
MOST_APART = 0.5  # s, between a duration that a table tells and what is heard


def read_manifest(file: Path) -> list[Clip]:
    """The clips of a manifest. Raises WorldError, naming the line, where it is not as it was written."""
    return read_jsonl(file, LINE, NOT_OF_ALL)


def sampling_order(rows: Sequence[Row], seed: int) -> list[Row]:
    """The order in which clips are drawn: every speaker's first clip, then every speaker's second, and so on.

    A prefix of it is thus spread over as many speakers as it can be, and a longer draw at the same seed holds every
    shorter one. It depends on the seed, the speakers and the clip names, never on the order of the table.
    """

    def chance(text: str) -> bytes:
        return hashlib.sha256(f"{seed}:{text}".encode()).digest()

    by_speaker: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_speaker[row.get("client_id") or row["path"]].append(row)  # an unknown speaker is nobody else
    keyed = [
        (turn, chance(name), row["path"], row)
        for name, own in by_speaker.items()
        for turn, row in enumerate(sorted(own, key=lambda row: (chance(row["path"]), row["sentence"])))
    ]
    return [row for *_, row in sorted(keyed, key=lambda entry: entry[:3])]


@dataclass
class SplitDraw:
    """One split as it is being drawn: what is still waiting, what was chosen, what was left out and why."""

    split: str
    waiting: list[Row]  # in draw order
    seconds: float | None = None  # enough is this much audio,
    clips: int | None = None  # or so many clips; both None: all there is
    excluded: frozenset[str] = frozenset()  # SHA-256 of clips that are not to be in it
    chosen: list[Clip] = field(default_factory=list)
    drawn_seconds: float = 0.0
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason to clip names

    @property
    def full(self) -> bool:
        if self.seconds is not None:
            return self.drawn_seconds >= self.seconds
        return self.clips is not None and len(self.chosen) >= self.clips

    def candidates(self, duration: Callable[[str], float]) -> list[str]:
        """The clips to look at next: what is missing by `duration` (s), and a twentieth more to replace bad ones."""
        if self.full:
            return []
        count = len(self.waiting) if self.clips is None else (self.clips - len(self.chosen)) * 21 // 20 + 2
        missing = float("inf") if self.seconds is None else (self.seconds - self.drawn_seconds) * 1.05 + 60
        names: list[str] = []
        for row in self.waiting[:count]:
            if missing <= 0:
                break
            names.append(row["path"])
            missing -= duration(row["path"])
        return names

    def to_fetch(self, names: Sequence[str]) -> list[str]:
        """Those of the first `names` of what waits that have to be heard."""
        return [row["path"] for row in self.waiting[: len(names)] if not in_shard(row)]

    def accept(
        self,
        names: Sequence[str],
        files: Mapping[str, Path],
        durations: Mapping[str, float],
        refuse: Callable[[str], str | None],
        advance: Callable[[], None],
        listened: Callable[[Sequence[AudioSegment | None]], Iterable[AudioInfo]] = lambda places: map(
            scan_clip, places
        ),
    ) -> None:
        """Chooses or leaves out the first `names` of what waits, in order, until enough is chosen.

        `durations` (s) of the corpus go before those heard; `refuse` says what is wrong with a sentence, if anything;
        `listened` hears the clips, in their order. Those in shards were heard before they came there.
        """
        rows, looked = self.waiting[: len(names)], 0
        chosen = {clip["id"] for clip in self.chosen}
        places = [audio_segment(row, files.get(row["path"])) for row in rows if not in_shard(row)]
        unheard = iter(listened(places))
        for row in rows:
            heard = AudioInfo(None, sha256=row["sha256"]) if in_shard(row) else next(unheard)
            advance()
            if self.full:
                continue
            looked += 1
            twice = "listed twice" if clip_id(row) in chosen else None
            barred = EXCLUDED if heard.sha256 in self.excluded else None
            reason = twice or heard.problem or barred or refuse(row["sentence"])
            if reason:
                self.left_out.setdefault(reason, []).append(row["path"])
                continue
            where = row["shard"] if in_shard(row) else str(files[row["path"]])
            told = durations.get(row["path"], 0.0)
            # A table that says 0, or is far off (in milliseconds, say), does not know.
            known = in_shard(row) or (told and abs(told - heard.seconds) <= MOST_APART)
            clip = _line(row, where, told if known else heard.seconds, heard.sha256)
            if told and not known:
                clip["listed_duration"] = told  # a clip that is shorter was cut off
            self.chosen.append(clip)
            chosen.add(clip["id"])
            self.drawn_seconds += clip["duration"]
        self.waiting = self.waiting[looked:]


def audio_segment(row: Row, file: Path | None) -> AudioSegment | None:
    """Where the clip of a row is, given its file."""
    if file is None:
        return None
    if not row.get("start"):
        return AudioSegment(file)
    return AudioSegment(file, float(row["start"]), float(row["end"]) if row.get("end") else None)


def clip_id(row: Row) -> str:
    """A clip's name in one word, unique in its corpus; without a slash, and so one part of a path."""
    path = PurePosixPath(row["path"].lstrip("/"))
    return "-".join([*path.parts[:-1], path.stem])


def name_in_corpus(clip: Clip) -> str:
    """The `path` of the row that the clip was made of."""
    return str(clip.get("clip") or PurePosixPath(clip["path"]).name)


def as_row(clip: Clip) -> dict[str, str]:
    """What tells two clips apart, as a row of a corpus has it, and `sha256` ("" where it is not known)."""
    return {
        "client_id": clip.get("speaker", ""), "sentence": clip["text"], "path": name_in_corpus(clip),
        "sha256": clip.get("sha256", ""),
    }  # fmt: skip


def in_shard(row: Row) -> bool:
    """Whether the clip of a row is a part of a shard, whose index says all that listening would."""
    return all(row.get(name) for name in IN_SHARD)


def missing_files(clips: Sequence[Clip]) -> list[Clip]:
    """The clips of a manifest whose files are no longer on this machine; what a server holds is not looked for."""
    lost = {path for path in {clip["path"] for clip in clips} if not is_url(path) and not Path(path).is_file()}
    return [clip for clip in clips if clip["path"] in lost]


def waveform(clip: Clip) -> audio.Waveform:
    """What is heard in a clip of the manifest: (samples,) at 16 kHz.

    Raises WorldError when it cannot be read or decoded, or is another than the manifest says where it is in a shard.
    """
    if clip.get("offset") is None:
        return audio.load(Path(clip["path"]), clip.get("start"), clip.get("end"))
    try:
        return audio.load(_in_shard(clip))
    except ExternalError as error:
        raise ExternalError(f"{clip['member']}: {error}") from error


def encoded_audio(clip: Mapping[str, Any]) -> bytes:
    """A clip of the manifest as a file of its own: its bytes as they are, or FLAC where it is a part of a recording.

    Raises WorldError as `waveform` does.
    """
    if clip.get("offset") is not None:
        return _in_shard(clip)
    if clip.get("start") is not None:
        return audio.encode_flac(*audio.decode(Path(clip["path"]), clip["start"], clip.get("end")))
    return audio.encoded(Path(clip["path"]))


def audio_suffix(clip: Mapping[str, Any]) -> str:
    """How a file of `encoded_audio` is called behind its dot: mp3, ..."""
    if clip.get("start") is not None:
        return "flac"
    return plain_suffix(clip["path"] if clip.get("offset") is None else clip["member"])[1:] or "audio"


def _in_shard(clip: Mapping[str, Any]) -> bytes:
    return read_clip(clip["path"], clip["offset"], clip["bytes"], clip["sha256"])


def _line(row: Row, where: str, duration: float, sha256: str) -> Clip:
    line: Clip = {
        "id": clip_id(row),
        "path": where,
        "text": row["sentence"].strip(),
        "duration": duration,
        "speaker": row.get("client_id", ""),
        "sha256": sha256,
    }
    if row["path"] != PurePosixPath(where).name:
        line["clip"] = row["path"]
    if in_shard(row):
        line |= {"offset": int(row["offset"]), "bytes": int(row["bytes"])}
    elif row.get("start"):
        line |= {name: float(row[name]) for name in ("start", "end") if row.get(name)}
    # A table of one's own may have an offset and bytes that mean something else.
    taken = {"client_id", "sentence", "offset", "bytes", *line} | ({"shard"} if in_shard(row) else set())
    return line | {name: row[name] for name in row if name not in taken}


def trained_files(run: Path) -> list[Path]:
    """The files that say what training hears: the manifest, or where a stream was heard its record."""
    return sorted(folder.streamed_record(run, 0).parent.glob("rank-*.jsonl")) or [folder.manifest(run, "train")]


def training_clips(run: Path) -> list[dict[str, Any]]:
    """The training clips, as lines of a manifest; of a stream those that were heard, as often as they were."""
    files = trained_files(run)
    if files == [folder.manifest(run, "train")]:
        return read_manifest(files[0])
    return [clip for file in files for line in read_jsonl(file) for clip in line["clips"]]
