"""What is corrected: the folder of a labeling, transcripts of recordings, or the suspects of an audit, as items."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asr_lora.corpus import SPLITS
from asr_lora.corpus.tree import Tree
from asr_lora.correcting.items import Item
from asr_lora.runs import folder
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError, check
from asr_lora.runtime.files import NO_TEXT, damage, existing, parse_jsonl, read_json, read_jsonl
from asr_lora.speech.audio import LONGEST, ROUNDED

SHAPES = (
    "the folder of a labeling (all.jsonl), a transcript (.json) or a folder of some, the audit of a run (audit/), or a "
    "run with one of labels/"
)
LABELED = {"path": Path, "duration": float, "hypothesis": str}  # of a line of all.jsonl
LABELED_MAYBE = {
    "start": float, "end": float, "speaker": str, "given": str, "decision": str, "second": object,
    "agreement_cer": object, "text_cer": object, "log_probability": object,
}  # fmt: skip
TABLE = {"path": Path, "duration": float, "text": str}  # of labels.jsonl
SEGMENT = {"start": float, "end": float, "text": str}  # of a transcript
LABELS_AGAIN = "label makes {} anew"
TRANSCRIBE_AGAIN = "transcribe it again: transcribe.formats=[json]"
DROPPED = "dropped"  # of a line's decision


@dataclass(frozen=True)
class Source:
    """The items of `place`, in its order. `language` is Whisper's token, `out` where corrections lie by default.

    `run` is the run that it belongs to, None for transcripts. `written_by` names who wrote the texts, `first` what the
    order begins with, `population` the clips of which the random sample is one.
    """

    place: Path
    items: list[Item]
    language: str
    out: Path
    run: Path | None
    written_by: str
    first: str
    population: str


def newest_labels(run: Path) -> Path | None:
    """Returns the folder of a run's newest labeling; None without one."""
    made = list(run.glob("labels/*/all.jsonl"))
    return max(made, key=lambda file: file.stat().st_mtime).parent if made else None


def open_source(named: Path) -> Source:
    """Reads what is corrected. What has no recording here, or is longer than 30 s, is left out and counted.

    Raises ConfigError for a place that holds nothing of the kind, ExternalError for a damaged file.
    """
    place = existing(named, "correct.source")
    check_names("correct.source", place)
    source = _opened(place)
    left_out, items = Counter[str](), dict[str, Item]()
    there = {path: Path(path).is_file() for path in {each.path for each in source.items}}
    for each in source.items:
        if problem := _problem(each, there[each.path]):
            left_out[problem] += 1
        else:
            items.setdefault(each.key, replace(each, text=" ".join(each.text.split())))
    for problem, count in left_out.items():
        log(f"left out: {count} of {len(source.items)} clips, {problem}")
    if not items:
        raise ConfigError(f"correct.source: {place} has no clip to correct; name another source")
    return replace(source, items=list(items.values()))


def _problem(item: Item, there: bool) -> str | None:
    if not _is_text(item.path):
        return "the names of their recordings are no text"
    if not there:
        return "their recordings are not there"
    seconds = item.duration
    if item.start is not None and item.end is not None:
        seconds = item.end - item.start
    return None if 0 < seconds <= LONGEST + ROUNDED else "longer than 30 s, or they end before they begin"


def _is_text(path: str) -> bool:
    """Returns whether a path can be kept and shown as text: the names of files may be any bytes."""
    return NO_TEXT.search(path) is None


def check_names(setting: str, path: Path) -> None:
    """Raises ConfigError for a path that is not UTF-8, or has control characters."""
    check(setting, path, "a path whose names are text in UTF-8: rename it", _is_text(str(path)))


def _opened(place: Path) -> Source:
    if place.is_file():
        if place.suffix == ".jsonl":
            return _labeling(place)
        if place.suffix == ".json":
            return _transcripts(place, [place], place.with_name(f"{place.stem}-corrections"))
        raise _unknown(place)
    if (place / "all.jsonl").is_file():
        return _labeling(place / "all.jsonl")
    if (place / "audit.json").is_file():
        return _suspects(place)
    if (place / "data" / "summary.json").is_file():
        if labels := newest_labels(place):
            return _labeling(labels / "all.jsonl")
        if (place / "audit" / "audit.json").is_file():
            return _suspects(place / "audit")
        raise ConfigError(f"correct.source: run {place} has neither labels/ nor audit/; name {SHAPES}")
    files = [place / file for file in Tree(place).files if file.suffix == ".json"]
    if not files:
        raise _unknown(place)
    return _transcripts(place, files, place / "corrections")


def _unknown(place: Path) -> ConfigError:
    return ConfigError(f"correct.source: {place} is nothing that can be corrected; name {SHAPES}")


def _labeling(file: Path) -> Source:
    """Reads all.jsonl but what its rules dropped, or the lines of a table such as labels.jsonl."""
    home, whole = file.parent, file.name == "all.jsonl"
    with file.open("rb") as lines:
        needed = LABELED if whole else TABLE
        again = LABELS_AGAIN.format(home)
        rows = list(parse_jsonl(lines, str(file), needed, {**LABELED_MAYBE, "text": str}, again))
    kept = [row for row in rows if row.get("decision") != DROPPED]
    if len(kept) < len(rows):
        log(f"{len(rows) - len(kept)} of {len(rows)} clips were dropped by the rules of label, and are not shown")
    settings = read_json(home / "settings.json", LABELS_AGAIN) if (home / "settings.json").is_file() else {}
    facts = read_json(home / "summary.json", LABELS_AGAIN) if (home / "summary.json").is_file() else {}
    writer = "the source" if any("given" in row for row in kept) else str(facts.get("writer") or "the model")
    return Source(
        home if whole else file, [_labeled(row, home) for row in kept], str(settings.get("language") or ""),
        home / "corrections", _run_above(home), writer, "those whose decodings disagree most",
        "the labels that the rules did not drop" if whole else "the table",
    )  # fmt: skip


def _labeled(row: Mapping[str, Any], home: Path) -> Item:
    apart = _number(row.get("text_cer" if "given" in row else "agreement_cer"))
    sure = _number(row.get("log_probability"))
    said = [] if apart is None else [f"two decodings differ in {apart:.0%} of their characters"]
    said += [] if sure is None else [f"mean log-probability of a token {sure:.2f}"]
    second = row.get("second")
    if "given" in row:
        second = row.get("hypothesis")
    return Item(
        str(home / row["path"]), row.get("start"), row.get("end"), row["duration"],
        row.get("text") or row.get("given") or row.get("hypothesis") or "", row.get("speaker", ""),
        (apart or 0.0, -(sure or 0.0)), "; ".join(said), second if isinstance(second, str) else "",
    )  # fmt: skip


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _run_above(place: Path) -> Path | None:
    return next((each for each in place.parents if (each / "data" / "summary.json").is_file()), None)


def _transcripts(place: Path, files: list[Path], out: Path) -> Source:
    """Reads transcripts as transcribe writes them; other .json files of a folder are passed over."""
    items: list[Item] = []
    languages, others = set[str](), 0
    for file in files:
        try:
            transcript = read_json(file, TRANSCRIBE_AGAIN)
        except (ExternalError, OSError) as error:
            if file == place:
                raise ExternalError(f"correct.source: {error}") from error
            transcript = {}
        if damage(transcript, {"audio": Path, "segments": object}) or not isinstance(transcript["segments"], list):
            others += 1
            continue
        languages.add(str(transcript.get("language") or ""))
        items += _segments(file, transcript)
    if others == len(files):
        raise ConfigError(f"correct.source: {place} is no transcript of transcribe; {TRANSCRIBE_AGAIN}")
    if others:
        log(f"{others} of {len(files)} .json files are no transcripts")
    languages.discard("")
    if len(languages) > 1:
        raise ConfigError(
            f"correct.source: {place} has transcripts in several languages ({', '.join(sorted(languages))}), whose "
            "error rates have no common unit; name those of one"
        )
    language = next(iter(languages), "")
    return Source(place, items, language, out, None, "the model", "those that ran away", "the transcripts")


def _segments(file: Path, transcript: Mapping[str, Any]) -> Iterator[Item]:
    recording = Path(transcript["audio"])
    if not recording.is_file() and (file.parent / recording.name).is_file():
        recording = file.parent / recording.name  # both were moved
    path = recording.absolute()
    for at, each in enumerate(transcript["segments"], start=1):
        if not isinstance(each, dict) or (found := damage(each, SEGMENT)):
            found = found if isinstance(each, dict) else "is no object"
            raise ExternalError(f"{file}: segment {at} {found}; {TRANSCRIBE_AGAIN}")
        ran_away = each.get("truncated") is True
        yield Item(
            str(path), each["start"], each["end"], round(each["end"] - each["start"], 3), each["text"].strip(),
            str(path.with_suffix("")), (float(ran_away), 0.0), "the text ran away and was truncated" * ran_away,
        )  # fmt: skip


def _suspects(place: Path) -> Source:
    """Reads the clips of a run that its audit suspects or has for review, with their transcripts."""
    run, again = place.parent, "prepare.audit=true makes {} anew"
    facts = read_json(place / "audit.json", again)
    manifests = {split: folder.manifest(run, split) for split in SPLITS}
    if not all(file.is_file() for file in (folder.summary(run), *manifests.values())):
        raise ConfigError(f"correct.source: {place} lies in no run, whose clips it lists; name the audit/ of the run")
    if found := damage(facts, {}, {"suspects": list, "for_review": list}):
        raise ExternalError(f"{place / 'audit.json'} {found}; {again.format(place)}")
    listed = {each for name in ("suspects", "for_review") for each in facts.get(name, [])}
    decoded = facts.get("decoded")
    rates = decoded.get("contradicted") if isinstance(decoded, dict) else None
    apart = rates if isinstance(rates, dict) else {}
    items, in_shards = [], 0
    for split, file in manifests.items():
        for clip in read_jsonl(file, folder.LINE, folder.NOT_OF_ALL):
            if clip["id"] not in listed:
                continue
            if "offset" in clip:
                in_shards += 1
                continue
            rate = _number(apart.get(clip["id"]))
            why = (
                "the audit suspects it" if rate is None else f"the base model contradicts {rate:.0%} of its characters"
            )
            items.append(Item(
                clip["path"], clip.get("start"), clip.get("end"), clip["duration"], clip["text"], clip["speaker"],
                (rate or 0.0, 0.0), why, split=split, clip=clip["id"],
            ))  # fmt: skip
    if in_shards:
        log(f"left out: {in_shards} of {len(listed)} clips, which are in shards; correct those of a run without shards")
    settings = read_json(folder.summary(run)).get("settings")
    language = settings.get("data.language") if isinstance(settings, dict) else None
    return Source(
        place, items, str(language or "").partition("-")[0], run / "corrections", run, "the corpus",
        "those that the base model contradicts most", "the audit's suspects, not of the corpus",
    )  # fmt: skip
