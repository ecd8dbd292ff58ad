"""The manifest of a run: its clips in order, and the reason for each one left out."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from asr_lora.corpus.records import Utterance
from asr_lora.corpus.shards import is_url, read_clip
from asr_lora.runs import folder
from asr_lora.runs.folder import LINE, NOT_OF_ALL
from asr_lora.runtime.errors import ExternalError
from asr_lora.runtime.files import plain_suffix, read_jsonl
from asr_lora.speech import audio
from asr_lora.speech.audio import AudioInfo, AudioSegment, scan_clip
from asr_lora.speech.limits import MAX_SECONDS

Clip = dict[str, Any]  # a line of the manifest
EXCLUDED = "the same sound as a clip of data.exclude_overlap"
LOCATION_FIELDS = ("path", "start", "end", "offset", "bytes", "member", "sha256")  # where the audio of a clip is
RESERVED = {*LINE, *NOT_OF_ALL, "member", "source", "weight", "listed_duration"}  # keys of a line that no column has
LABEL_MODEL = "label_model"  # column of asr_lora.label's tables: the model that wrote the text; empty for a given one
MOST_APART = 0.1  # s, between a table's duration and that of the decoded clip; mp3 frames and rounding cause less


def read_manifest(file: Path) -> list[Clip]:
    """Reads the clips of a manifest. Raises ExternalError, with the line, for a damaged one."""
    return read_jsonl(file, LINE, NOT_OF_ALL)


def sampling_order(utterances: Sequence[Utterance], seed: int) -> list[Utterance]:
    """Returns the order of the draw: every speaker's first clip, then every speaker's second, and so on.

    A prefix of it thus has as many speakers as possible, and a longer draw at the same seed holds every shorter one. It
    depends on the seed, the speakers and the clip names, never on the order of the table.
    """

    def chance(text: str) -> bytes:
        return hashlib.sha256(f"{seed}:{text}".encode()).digest()

    by_speaker: dict[str, list[Utterance]] = defaultdict(list)
    for each in utterances:
        by_speaker[each.speaker or each.path].append(each)  # an unknown speaker is a speaker of one clip
    keyed = [
        (turn, chance(name), each.path, each)
        for name, own in by_speaker.items()
        for turn, each in enumerate(sorted(own, key=lambda each: (chance(each.path), each.text)))
    ]
    return [each for *_, each in sorted(keyed, key=lambda entry: entry[:3])]


@dataclass
class SplitDraw:
    """The draw of one split: utterances still waiting, clips chosen, clips left out and why."""

    split: str
    waiting: list[Utterance]  # in the order of the draw
    seconds: float | None = None  # of audio that are enough
    clips: int | None = None  # that are enough; with both None all are chosen
    excluded: frozenset[str] = frozenset()  # SHA-256 of clips that must not be chosen
    chosen: list[Clip] = field(default_factory=list)
    drawn_seconds: float = 0.0
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason to clip names

    @property
    def full(self) -> bool:
        if self.seconds is not None:
            return self.drawn_seconds >= self.seconds
        return self.clips is not None and len(self.chosen) >= self.clips

    def candidates(self, duration: Callable[[str], float]) -> list[str]:
        """Returns the clips to scan next: as many as are missing by `duration` (s), and a twentieth more.

        These replace unusable ones.
        """
        if self.full:
            return []
        count = len(self.waiting) if self.clips is None else (self.clips - len(self.chosen)) * 21 // 20 + 2
        missing = float("inf") if self.seconds is None else (self.seconds - self.drawn_seconds) * 1.05 + 60
        names: list[str] = []
        for each in self.waiting[:count]:
            if missing <= 0:
                break
            names.append(each.path)
            missing -= duration(each.path)
        return names

    def to_fetch(self, names: Sequence[str]) -> list[str]:
        """Returns those of the first `names` waiting clips that have to be scanned."""
        return [each.path for each in self.waiting[: len(names)] if each.shard is None]

    def accept(
        self,
        names: Sequence[str],
        files: Mapping[str, Path],
        durations: Mapping[str, float],
        refuse: Callable[[str, str], str | None],
        advance: Callable[[], None],
        scan: Callable[[Sequence[AudioSegment | None]], Iterable[AudioInfo]] = lambda clips: map(scan_clip, clips),
    ) -> None:
        """Chooses or leaves out the first `names` waiting clips, in order, until enough are chosen.

        A line has the decoded duration: contexts are made for it, and what exceeds a context would be cut off.
        `durations` (s) are those that the corpus lists. `refuse` returns why a sentence is unusable, or None, given it
        and its language token (empty: the run's). `scan` scans clips, in their order; those in shards were scanned
        before they were written.
        """
        utterances, looked = self.waiting[: len(names)], 0
        chosen = {clip["id"] for clip in self.chosen}
        scanned = iter(scan([_segment(each, files.get(each.path)) for each in utterances if each.shard is None]))
        for each in utterances:
            info = AudioInfo(None, sha256=each.sha256) if each.shard else next(scanned)
            advance()
            if self.full:
                continue
            looked += 1
            twice = "listed twice" if clip_id(each.path) in chosen else None
            excluded = EXCLUDED if info.sha256 in self.excluded else None
            reason = twice or info.problem or excluded or refuse(each.text, each.language)
            if reason:
                self.left_out.setdefault(reason, []).append(each.path)
                continue
            where, listed = each.shard.shard if each.shard else str(files[each.path]), durations.get(each.path, 0.0)
            clip = _line(each, where, listed if each.shard else info.seconds, info.sha256)
            whole = min(listed, MAX_SECONDS) if listed <= audio.LONGEST else listed
            if not each.shard and listed and abs(whole - info.seconds) > MOST_APART:
                clip["listed_duration"] = listed  # the audit reports a clip that is shorter as truncated
            self.chosen.append(clip)
            chosen.add(clip["id"])
            self.drawn_seconds += clip["duration"]
        self.waiting = self.waiting[looked:]


def _segment(utterance: Utterance, file: Path | None) -> AudioSegment | None:
    """Returns the segment of an utterance in its file; None without a file."""
    return None if file is None else AudioSegment(file, utterance.start, utterance.end)


def clip_id(name: str) -> str:
    """Returns the id of a clip's name in its corpus, unique there and without a slash."""
    path = PurePosixPath(name.lstrip("/"))
    return "-".join([*path.parts[:-1], path.stem])


def name_in_corpus(clip: Mapping[str, Any]) -> str:
    """Returns the `path` of the utterance that the clip was drawn from."""
    return str(clip.get("clip") or PurePosixPath(clip["path"]).name)


def as_utterance(clip: Mapping[str, Any]) -> Utterance:
    """Returns the utterance of a clip of a manifest, with the fields that distinguish two clips."""
    return Utterance(name_in_corpus(clip), clip["text"], clip.get("speaker", ""), sha256=clip.get("sha256", ""))


def missing_files(clips: Sequence[Clip]) -> list[Clip]:
    """Returns the clips whose files are no longer on this machine; those on a server are not checked."""
    lost = {path for path in {clip["path"] for clip in clips} if not is_url(path) and not Path(path).is_file()}
    return [clip for clip in clips if clip["path"] in lost]


def waveform(clip: Clip) -> audio.Waveform:
    """Decodes a clip of the manifest: (samples,) float32 at 16 kHz, at most 30 s.

    Raises ExternalError when it cannot be read or decoded, is longer than Whisper's window, or has another hash than
    the manifest's in a shard.
    """
    if clip.get("offset") is None:
        sound = audio.load(Path(clip["path"]), clip.get("start"), clip.get("end"))
    else:
        try:
            sound = audio.load(_in_shard(clip))
        except ExternalError as error:
            raise ExternalError(f"{clip['member']}: {error}") from error
    if len(sound) > (audio.LONGEST + audio.ROUNDED) * audio.SAMPLE_RATE:
        raise ExternalError(
            f"{clip.get('member') or clip['path']}: clip is longer than {MAX_SECONDS:g} s, Whisper's window; it "
            "has changed since it was scanned: restore it, or prepare a new run"
        )
    return audio.in_window(sound)


def encoded_audio(clip: Mapping[str, Any]) -> bytes:
    """Returns a clip of the manifest as the bytes of a file: unchanged, or FLAC for a part of a recording.

    Raises ExternalError as `waveform` does.
    """
    if clip.get("offset") is not None:
        return _in_shard(clip)
    if clip.get("start") is not None:
        return audio.encode_flac(*audio.decode(Path(clip["path"]), clip["start"], clip.get("end")))
    return audio.encoded(Path(clip["path"]))


def audio_suffix(clip: Mapping[str, Any]) -> str:
    """Returns the suffix of a file of `encoded_audio`, without its dot: mp3, ..."""
    if clip.get("start") is not None:
        return "flac"
    return plain_suffix(clip["path"] if clip.get("offset") is None else clip["member"])[1:] or "audio"


def _in_shard(clip: Mapping[str, Any]) -> bytes:
    return read_clip(clip["path"], clip["offset"], clip["bytes"], clip["sha256"])


def _line(utterance: Utterance, where: str, duration: float, sha256: str) -> Clip:
    """Returns the line of the manifest; a column of the corpus named like a key of a line gets a suffix _."""
    line: Clip = {
        "id": clip_id(utterance.path),
        "path": where,
        "text": utterance.text.strip(),
        "duration": duration,
        "speaker": utterance.speaker,
        "sha256": sha256,
    }
    if utterance.path != PurePosixPath(where).name:
        line["clip"] = utterance.path
    if (shard := utterance.shard) is not None:
        line |= {"offset": shard.offset, "bytes": shard.bytes, "member": shard.member}
    elif utterance.start is not None:
        times = {"start": utterance.start, "end": utterance.end}
        line |= {name: time for name, time in times.items() if time is not None}
    if utterance.source:
        line |= {"source": utterance.source, "weight": f"{utterance.weight:g}"}
    if utterance.language:
        line["language_token"] = utterance.language
    return line | {f"{name}_" if name in RESERVED else name: cell for name, cell in utterance.extra.items()}


def trained_files(run: Path) -> list[Path]:
    """Returns the files that list the training clips: the manifest, or of a stream its records."""
    return sorted(folder.streamed_record(run, 0).parent.glob("rank-*.jsonl")) or [folder.manifest(run, "train")]


def training_clips(run: Path) -> list[dict[str, Any]]:
    """Returns the training clips as lines of a manifest; of a stream those that were used, each time."""
    files = trained_files(run)
    if files == [folder.manifest(run, "train")]:
        return read_manifest(files[0])
    return [clip for file in files for line in read_jsonl(file) for clip in line["clips"]]
