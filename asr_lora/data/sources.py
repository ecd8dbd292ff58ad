"""The corpora of a run: finds, opens, splits, mixes and filters them by the settings; restores clips."""

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from asr_lora.config.schema import DataConfig
from asr_lora.corpus import Columns, Corpus, is_path, open_corpus
from asr_lora.corpus.common_voice import CLIPS
from asr_lora.corpus.containers import UNPACKED, stem_of
from asr_lora.corpus.records import Clips, Utterance
from asr_lora.corpus.shards import read_clip
from asr_lora.corpus.streaming import Stream, held_out, open_stream
from asr_lora.data import cues
from asr_lora.data.finding import find_source
from asr_lora.data.manifest import (
    LABEL_MODEL,
    Clip,
    as_utterance,
    clip_id,
    missing_files,
    name_in_corpus,
    read_manifest,
)
from asr_lora.data.splits import with_splits
from asr_lora.runs import folder
from asr_lora.runtime.console import log, progress
from asr_lora.runtime.errors import ConfigError, ExternalError, check
from asr_lora.runtime.files import (
    atomic_file,
    cache_dir,
    existing,
    read_json,
    read_jsonl,
    sha256_file,
    write_json,
    write_jsonl,
)
from asr_lora.speech.audio import AudioSegment, scan_clip

OVERLAP_FIELDS = {"path": Path, "text": str, "speaker": str, "clip": Path, "sha256": str}  # of data.exclude_overlap
BY_HASHES = "name its new place, data.source=/path/to/it, where the clips are found by their hashes"
ANOTHER_MANIFEST = "data.exclude_overlap takes a manifest as asr_lora.prepare writes it, or a corpus"


def open_sources(data: DataConfig, test_limit: int | None) -> Corpus:
    """Opens the corpus of a run, with the tables train, dev and test, without data.exclude_ids.

    Several sources are mixed to one. `test_limit` is how many test clips are drawn from a stream (None: all).
    Raises ConfigError and ExternalError as opening and splitting do.
    """
    return _open(data, None if data.sources else find_source(data), {"dev": data.dev_clips, "test": test_limit})


def open_recorded(data: DataConfig, run: Path) -> Corpus:
    """Opens the corpus that the manifest of a run was drawn from, not a newer release.

    Raises ConfigError where it is no longer on this machine.
    """
    summary = read_json(folder.summary(run))
    source = summary["source"]
    if is_path(source) and not data.sources and not Path(source).exists():
        raise ConfigError(
            f"data.source: {source}, which {run} was drawn from, is not on this machine; put it there, or {BY_HASHES}"
        )
    return _open(data, source, {split: facts.get("asked") for split, facts in summary["splits"].items()})


def named_columns(data: DataConfig) -> Columns:
    """Returns the names of columns and splits that the settings give."""
    return Columns(data.columns or {}, data.splits or {})


def open_streamed(data: DataConfig) -> Stream:
    """Opens the data set that the settings stream. Raises ConfigError and ExternalError as that does."""
    return open_stream(data.source or "", data.language, named_columns(data))


def rows_for(clips: int | None) -> int | None:
    """Returns how many rows to stream for `clips` (None: all): a twentieth more, to replace unusable ones."""
    return None if clips is None else clips * 21 // 20 + 2


def names_of(sources: Sequence[str]) -> list[str]:
    """Returns a short name per source of a mixture: the last part of its path, numbered where two agree."""
    bare = [(Path(source).name, stem_of(Path(source))) for source in sources]
    stems = [(stem if stem != name else re.sub(r"\.[a-z]{2,7}$", "", name)) or "source" for name, stem in bare]
    twice = {stem for stem, times in Counter(stems).items() if times > 1}
    return [f"{stem}-{at}" if stem in twice else stem for at, stem in enumerate(stems, start=1)]


def _open(data: DataConfig, source: str | None, limits: Mapping[str, int | None]) -> Corpus:
    """Opens the corpus. `limits` are the numbers of clips of dev and test, which only a stream needs."""
    columns = named_columns(data)
    if data.streaming:
        wanted = {split: rows_for(limits[split]) for split in ("dev", "test")}
        return held_out(open_streamed(data), data.language, wanted, data.seed, data.shuffle_buffer)
    if data.sources:
        each = [
            _part_of_mixture(open_corpus(one.path, one.language or data.language, columns), data)
            for one in data.sources
        ]
        names = names_of([one.path for one in data.sources])
        corpus = mix_corpora([
            Part(name, corpus, one.weight, one.language or "", one.token or "")
            for name, corpus, one in zip(names, each, data.sources, strict=True)
        ])  # fmt: skip
    else:
        corpus = open_corpus(source or "", data.language, columns)
        if _labels(corpus):
            log(f"{corpus.source}: a model wrote the text, of dev and test too: scores are against that model's text")
        corpus = with_splits(corpus, data)
    return _chosen(corpus, data)


def open_split(data: DataConfig, split: str) -> Corpus:
    """Opens data.source for a split alone; one that the source does not have is drawn as for a run, from the rest.

    Raises ConfigError for a mixture of sources or a stream, and as opening and splitting do.
    """
    check("data.sources", "several", "a single data.source here", not data.sources)
    check("data.streaming", data.streaming, "false here", not data.streaming)
    corpus = open_corpus(find_source(data), data.language, named_columns(data), split)
    return _chosen(corpus if corpus.tables.get(split) else with_splits(corpus, data), data)


def _chosen(corpus: Corpus, data: DataConfig) -> Corpus:
    """Returns the corpus without data.exclude_ids, and its segments with the times of data.refine_cues."""
    if data.exclude_ids is not None:
        corpus = _without(corpus, existing(Path(data.exclude_ids), "data.exclude_ids"))
    return cues.refine(corpus) if data.refine_cues else corpus


def _labels(corpus: Corpus) -> list[Utterance]:
    """Returns all utterances of a corpus whose text a model wrote (asr_lora.label); none of any other corpus."""
    every = [each for own in corpus.tables.values() for each in own]
    return every if all(each.extra.get(LABEL_MODEL) for each in every) else []


def _part_of_mixture(corpus: Corpus, data: DataConfig) -> Corpus:
    """Returns a corpus with its splits; labels that a model wrote are all of train: people's text is what scores."""
    labels = _labels(corpus)
    if not labels:
        return with_splits(corpus, data)
    log(f"{corpus.source}: a model wrote the text of all {len(labels)} clips: none is taken for dev or test")
    left_out = [line for lines in corpus.malformed.values() for line in lines]
    return replace(corpus, tables={"train": labels, "dev": [], "test": []}, malformed={"train": left_out})


def _without(corpus: Corpus, listing: Path) -> Corpus:
    """Returns the corpus without the clips whose ids or names the file lists, one per line."""
    listed = {line.strip() for line in listing.read_text(encoding="utf-8-sig").split("\n")} - {""}
    tables: dict[str, list[Utterance]] = {}
    found: set[str] = set()
    for split, utterances in corpus.tables.items():
        named = {each.path: listed & {each.path, clip_id(each.path)} for each in utterances}
        tables[split] = [each for each in utterances if not named[each.path]]
        found = found.union(*named.values())
    clips = sum(map(len, corpus.tables.values())) - sum(map(len, tables.values()))
    unknown = f"; {len(listed - found)} are not in the corpus ({min(listed - found)}, ...)" if listed - found else ""
    log(f"data.exclude_ids: {clips} clips dropped, by {listing}{unknown}")
    return replace(corpus, tables=tables)


def excluded_utterances(data: DataConfig) -> list[Utterance]:
    """Returns the utterances of `data.exclude_overlap`, kept out of training as dev and test are.

    They are all lines of a manifest (.jsonl), dev and test of a run, or dev and test of a corpus (all of one without
    splits). `sha256` is set where known.
    """
    if data.exclude_overlap is None:
        return []
    path = existing(Path(data.exclude_overlap), "data.exclude_overlap")
    manifests = [path] if path.suffix == ".jsonl" else [path / "data" / f"{split}.jsonl" for split in ("dev", "test")]
    if not all(manifest.is_file() for manifest in manifests):
        tables = open_corpus(path, data.language, named_columns(data)).tables
        held_out = [each for split in ("dev", "test") for each in tables.get(split, [])]
        return held_out or [each for own in tables.values() for each in own]
    lines = [
        line for manifest in manifests for line in read_jsonl(manifest, maybe=OVERLAP_FIELDS, way_out=ANOTHER_MANIFEST)
    ]
    for line in lines:
        if not {"text", "path"} <= set(line):
            got = ", ".join(line) or "nothing"
            raise ConfigError(f"data.exclude_overlap: {path} is no manifest: a line needs path and text, got {got}")
    return [as_utterance(line) for line in lines]


def restore_clips(run: Path, data: DataConfig, lines: Sequence[Clip]) -> None:
    """Restores clips in the cache where it was emptied: those of an archive or a data set.

    Raises ExternalError when the source no longer holds them, or they were never in the cache.
    """
    absent = {name_in_corpus(line): line for line in missing_files(lines)}
    if not absent:
        return
    log(f"{len(absent)} clips of the manifest are no longer where they were; fetching them again")
    corpus = open_recorded(data, run)
    # A clip cannot be restored in a shard.
    found = corpus.fetch([name for name, line in absent.items() if "offset" not in line])

    def is_back(name: str) -> bool:
        # The hash of a part of a recording is of its samples: only the presence of the recording is checked.
        return name in found and ("start" in absent[name] or sha256_file(found[name]) == absent[name]["sha256"])

    if lost := [name for name in absent if not is_back(name)]:
        raise ExternalError(
            f"data.source: {corpus.source} lacks {len(lost)} clips of {run}/data ({lost[0]}, ...); "
            f"put back the release that the run was made from, or {BY_HASHES}"
        )
    # Clips of an archive that was written again lie elsewhere in the cache.
    misplaced = {name: Path(line["path"]) for name, line in absent.items() if not Path(line["path"]).is_file()}
    # A manifest may come from anywhere: its paths are written only where the cache has clips.
    cache = cache_dir().resolve()
    if outside := [path for path in misplaced.values() if not _is_for_clips(path.resolve(), cache)]:
        raise ExternalError(
            f"data.source: {len(outside)} clips of {run}/data lay outside of the cache for clips in {cache} and "
            f"are gone ({outside[0]}, ...); put them back, or name the cache that they lay in: ASR_LORA_CACHE; where "
            f"this run was moved here, {BY_HASHES}"
        )
    for name, path in misplaced.items():
        with atomic_file(path) as partial:
            shutil.copyfile(found[name], partial)


def relocate_clips(run: Path, data: DataConfig) -> None:
    """Makes the manifest of a run name the clips where the corpus of the settings has them.

    Raises ConfigError where one of them is absent there or has another hash.
    """
    source, facts = find_source(data), read_json(folder.summary(run))
    corpus = open_corpus(source, data.language, named_columns(data))
    manifests = {file: read_manifest(file) for file in sorted((run / "data").glob("*.jsonl"))}
    clips = {name_in_corpus(clip): clip for own in manifests.values() for clip in own}
    found = _places(corpus, clips)
    with progress("comparing clips", total=len(clips)) as bar:
        others = [name for name, clip in clips.items() if not _is_same(clip, found.get(name), bar.advance)]
    if others:
        raise ConfigError(
            f"run_dir: {run} was made with data.source={facts['source']}, and {len(others)} of its {len(clips)} clips "
            f"are absent or other ones in {source} ({others[0]}, ...); name the corpus that it was made with, give "
            "this run another name (run_name=...), or remove that folder to make it anew"
        )
    for file, own in manifests.items():
        write_jsonl(file, [clip | found[name_in_corpus(clip)] for clip in own])
    write_json(folder.summary(run), facts | {"source": corpus.source})
    log(f"data.source: {facts['source']} is now {source}; all {len(clips)} clips of the manifest are the same there")


def _places(corpus: Corpus, clips: Mapping[str, Clip]) -> dict[str, dict[str, Any]]:
    """Returns where the corpus has each clip, by its name, as fields of its line: a file, or a position in a shard."""
    files = corpus.fetch([name for name, clip in clips.items() if "offset" not in clip])
    in_shards = {each.path: each.shard for own in corpus.tables.values() for each in own if each.shard}
    positions = {
        name: {"path": place.shard, "offset": place.offset, "bytes": place.bytes, "member": place.member}
        for name, place in in_shards.items()
        if "offset" in clips.get(name, {})
    }
    return positions | {name: {"path": str(file)} for name, file in files.items()}


def _is_same(clip: Clip, place: Mapping[str, Any] | None, advance: Callable[[], None]) -> bool:
    """Returns whether the clip of a manifest lies in a place, by its hash."""
    advance()
    if place is None:
        return False
    if "offset" in place:
        return _is_in_shard({**clip, **place})
    file = Path(place["path"])
    if "start" in clip:
        found = scan_clip(AudioSegment(file, clip["start"], clip.get("end"))).sha256
    else:
        found = sha256_file(file)
    return found == str(clip["sha256"])


def _is_in_shard(clip: Clip) -> bool:
    try:
        read_clip(clip["path"], clip["offset"], clip["bytes"], clip["sha256"])
    except ExternalError:
        return False
    return True


def _is_for_clips(path: Path, cache: Path) -> bool:
    """Returns whether the cache has clips there: corpora/<archive>/<language>/clips/, .../unpacked/ or clips/."""
    parts = path.relative_to(cache).parts if path.is_relative_to(cache) else ()
    in_corpus = parts[:1] == ("corpora",) and (parts[-2] == CLIPS or parts[2:3] == (UNPACKED,))
    return len(parts) > 2 and (parts[0] == CLIPS or in_corpus)


class Part(NamedTuple):
    """A corpus in a mixture: `name` is its utterances' `source`, `weight` how often an epoch has a clip.

    `token` is the language of all of its utterances, `language` that of those that state none.
    """

    name: str
    corpus: Corpus
    weight: float
    language: str = ""
    token: str = ""


def mix_corpora(parts: Sequence[Part]) -> Corpus:
    """Concatenates the tables of all parts; an epoch of training has a clip `weight` times."""
    tables: dict[str, list[Utterance]] = defaultdict(list)
    malformed: dict[str, list[str]] = defaultdict(list)
    unread: Counter[str] = Counter()
    durations: dict[str, float] = {}
    for name, corpus, weight, language, token in parts:
        for table, own in corpus.tables.items():
            tables[table] += [
                replace(
                    each, path=f"{name}/{each.path}", source=name, weight=weight,
                    language=token or each.language or language,
                )
                for each in own
            ]  # fmt: skip
        durations |= {f"{name}/{clip}": seconds for clip, seconds in corpus.durations.items()}
        for table, lines in corpus.malformed.items():
            malformed[table] += [f"{name}: {line}" for line in lines]
        unread.update(corpus.unread)
    return Corpus(
        source=" + ".join(part.corpus.source for part in parts),
        release=" + ".join(part.corpus.release for part in parts),
        language=parts[0].corpus.language,
        tables=dict(tables),
        durations=durations,
        malformed=dict(malformed),
        clips=_Mixed({part.name: part.corpus.clips for part in parts}),
        unread=unread,
        shape=" + ".join(part.corpus.shape for part in parts),
    )


@dataclass(frozen=True)
class _Mixed:
    parts: Mapping[str, Clips]

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {f"{name}/{clip}": size for name, clips in self.parts.items() for clip, size in clips.sizes.items()}

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        wanted: dict[str, list[str]] = defaultdict(list)
        for each in names:
            name, _, clip = each.partition("/")
            wanted[name].append(clip)
        found = {
            f"{name}/{clip}": file
            for name, clips in wanted.items()
            if name in self.parts
            for clip, file in self.parts[name].fetch(clips).items()
        }
        return {name: found[name] for name in names if name in found}
