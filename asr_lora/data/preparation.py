"""The preparation of a run: draws its clips from a corpus, scans them and writes the manifest."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from asr_lora.config.naming import RENAMED, plain_sources
from asr_lora.config.schema import DataConfig, ModelConfig
from asr_lora.corpus import SPLITS, UNSPLIT, Corpus, open_corpus
from asr_lora.corpus.columns import LANGUAGE
from asr_lora.corpus.records import Utterance
from asr_lora.data.labels import label_filter, text_problem
from asr_lora.data.languages import count_languages, run_tokens, with_tokens
from asr_lora.data.manifest import (
    EXCLUDED,
    Clip,
    SplitDraw,
    as_utterance,
    name_in_corpus,
    read_manifest,
    sampling_order,
    training_clips,
)
from asr_lora.data.sources import (
    excluded_utterances,
    named_columns,
    open_recorded,
    open_sources,
    open_split,
    open_streamed,
    relocate_clips,
    restore_clips,
    rows_for,
)
from asr_lora.data.splits import drop_leaks, remove_overlap
from asr_lora.runs import folder
from asr_lora.runtime.console import log, progress
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import atomic_folder, read_json, write_json, write_jsonl
from asr_lora.speech.audio import AudioScanner
from asr_lora.speech.limits import MAX_SECONDS

MOST_BAD = 0.05  # share of unusable clips, above which the corpus is damaged or of another language
MOST_SHOWN = 60  # characters of a row's sentence
BYTES_PER_SECOND = 8_000  # mp3 at 64 kbit/s, Common Voice's upper end: estimates short where durations are unknown


def make_manifest(run: Path, data: DataConfig, model: ModelConfig, test_limit: int | None) -> None:
    """Draws the clips of a run and writes its manifest, data/ of its folder.

    A manifest that is there must be of the same settings; its missing clips are restored, and where the corpus was
    moved they must be the same in its new place. `test_limit` is the number of
    test clips (None: all). Raises ConfigError and ExternalError as opening, splitting and scanning the corpus do, and
    ConfigError for a run folder of other settings.
    """
    language, *_ = run_tokens(data, model)
    if folder.summary(run).is_file():
        before, now = _recorded_settings(run), _settings(data)
        moved = {} if data.streaming else {key: now[key] for key in folder.PLACES if key in now}
        folder.check_settings(run, before | moved, now)
        _follow_source(run, data)
        restore_clips(run, data, [line for split in SPLITS for line in read_manifest(folder.manifest(run, split))])
        return
    if (run / "data").exists():  # it would be replaced
        raise ConfigError(
            f"run_dir: {run / 'data'} holds no manifest (no summary.json), so it is not a run's; name another "
            "folder for this run, or move that one away"
        )
    if data.streaming:
        _prepare_stream(run, data, model, language, test_limit)
        return
    corpus, elsewhere = with_tokens(open_sources(data, test_limit), data.language, model), excluded_utterances(data)
    _log_corpus(corpus)
    train, leaks = drop_leaks(
        _utterances(corpus, "train"), [each for split in ("dev", "test") for each in _utterances(corpus, split)]
    )
    train, shared = remove_overlap(train, elsewhere)
    available = {"train": len(train), **{split: len(_utterances(corpus, split)) for split in ("dev", "test")}}
    if not train:
        raise ConfigError(
            f"data.source: nothing is left to train on: every train clip of {corpus.source} shares something with dev "
            f"or test ({_counts(leaks)}); use splits that do not"
        )
    if corpus.durations:  # too many hours are refused before a clip is fetched; an unlisted clip may have any length
        check_hours(data.hours, corpus, sum(corpus.durations.get(each.path) or MAX_SECONDS for each in train))
    seconds = None if data.hours is None else data.hours * 3600
    sounds = frozenset(each.sha256 for each in elsewhere if each.sha256)
    draws = [
        SplitDraw("train", sampling_order(train, data.seed), seconds=seconds, excluded=sounds),
        _held_out(corpus, "dev", data.dev_clips, data.seed),
        _held_out(corpus, "test", test_limit, data.seed),
    ]
    _fill(draws, corpus, label_filter(model, data.language))
    facts = {"leaks_dropped_from_train": leaks, "excluded": {"by": data.exclude_overlap, **shared}}
    _write(run, data, language, corpus, draws, facts, available)


def _log_corpus(corpus: Corpus) -> None:
    """Logs what a corpus was recognized as, how many rows its splits have, and its first row."""
    rows = ", ".join(f"{split} {len(corpus.tables[split])}" for split in SPLITS)
    first = next((each for split in SPLITS for each in corpus.tables[split]), None)
    row = f'; {first.path}: "{first.text[:MOST_SHOWN]}", speaker {first.speaker[:12] or "unknown"}' if first else ""
    log(f"{corpus.source}: {corpus.shape}; rows: {rows}{row}")


def _prepare_stream(run: Path, data: DataConfig, model: ModelConfig, language: str, test_limit: int | None) -> None:
    """Draws dev and test of a stream like those of any corpus; the manifest of train is empty."""
    stream = open_streamed(data)
    train = stream.split(data.train_split, "train")
    corpus = with_tokens(open_sources(data, test_limit), data.language, model)
    asked = {"dev": data.dev_clips, "test": test_limit}
    draws = [_held_out(corpus, split, limit, data.seed) for split, limit in asked.items()]
    _fill(draws, corpus, label_filter(model, data.language))
    available: dict[str, int | None] = {"train": None}
    for draw in draws:
        rows = len(corpus.tables[draw.split]) + len(corpus.malformed.get(draw.split, []))
        # If rows were not scanned or fetched, training may use clips that share something with these.
        whole = not draw.waiting and rows != rows_for(asked[draw.split])
        available[draw.split] = len(corpus.tables[draw.split]) if whole else None
    facts = {
        "split": data.train_split, "fingerprint": stream.fingerprint, "files": train.data.num_shards,
        "features": {name: str(feature) for name, feature in train.data.features.items()},
    }  # fmt: skip
    dropped = {"leaks_dropped_from_train": {}, "excluded": {"by": data.exclude_overlap}}
    unread = [] if "language" in train.columns else [name for name in train.data.column_names if name in LANGUAGE]
    if unread:
        each = f"'data.columns={{language: {unread[0]}}}' trains each row in its own"
        log(f"{stream.source}: all rows are taken for {data.language}; {each}")
    streamed = {"streamed": facts, "asked": asked}
    _write(run, data, language, corpus, [SplitDraw("train", []), *draws], dropped, available, streamed)


def _follow_source(run: Path, data: DataConfig) -> None:
    """Makes the manifest name the clips in another place of its corpus, where the settings name one."""
    before, now = _recorded_settings(run), _settings(data)
    moved = {key: now[key] for key in folder.PLACES if key in before and before[key] != now[key]}
    if moved and not data.streaming:
        relocate_clips(run, data)
        write_json(folder.summary(run), read_json(folder.summary(run)) | {"settings": before | moved})


def _recorded_settings(run: Path) -> dict[str, Any]:
    """Returns the settings that the manifest was drawn with, under their current names."""
    return {RENAMED.get(key, key): value for key, value in read_json(folder.summary(run))["settings"].items()}


def split_clips(run: Path, data: DataConfig, model: ModelConfig, split: str, limit: int | None) -> list[Clip]:
    """Returns the first `limit` clips of a split (None: all).

    They are drawn from the corpus again where the manifest holds fewer. The manifest itself never changes: a longer
    draw is a file of its own, such as data/test-all.jsonl. Where the settings name another place of the corpus, the
    clips are found there by their hashes. Raises ConfigError for more clips than a stream's draw has.
    """
    _follow_source(run, data)
    drawn = read_manifest(folder.manifest(run, split))
    facts = read_json(folder.summary(run))["splits"][split]
    held = facts["clips"] + sum(map(len, facts["left_out"].values()))
    if facts["available"] is None:
        most = facts["asked"]
        if limit is None or limit > most:
            raise ConfigError(
                f"eval.limit: of {split} the first {most} clips of the stream were kept, and training may have used "
                f"clips that share something with others; set eval.limit={most}, or give a new run a larger limit"
            )
    elif (limit is None or limit > len(drawn)) and held < facts["available"]:
        longer = folder.manifest(run, f"{split}-{limit or 'all'}")
        if not longer.is_file():
            corpus = with_tokens(open_recorded(data, run), data.language, model)
            draw = _held_out(corpus, split, limit, data.seed)
            _fill([draw], corpus, label_filter(model, data.language))
            write_jsonl(longer, draw.chosen)
        drawn = read_manifest(longer)
    restore_clips(run, data, drawn[:limit])
    return drawn[:limit]


def draw_split(data: DataConfig, split: str, limit: int | None) -> tuple[Corpus, list[Clip]]:
    """Draws the first `limit` clips of a split (None: all) of data.source, for no run; returns its corpus and them.

    Raises ConfigError and ExternalError as opening, splitting and scanning do.
    """
    corpus = open_split(data, split)
    if not (utterances := corpus.tables.get(split, [])):
        raise ConfigError(f"data.source: {corpus.source} has no {split}; eval.split=test, or another source")
    # A column of languages is left aside: the token of a language depends on the model.
    alike = [replace(each, language="") for each in utterances]
    draw = SplitDraw(split, sampling_order(alike, data.seed), clips=limit)
    _fill([draw], corpus, text_problem)
    if not draw.chosen:
        raise ConfigError(f"data.source: no usable clip of {split} in {corpus.source}")
    return corpus, draw.chosen


def draw_from_corpus(
    run: Path, data: DataConfig, model: ModelConfig, source: str, locale: str, split: str, limit: int | None
) -> tuple[list[Clip], int, dict[str, int]]:
    """Draws clips of another corpus: the first `limit` (None: all) of a split, in the order of the seed.

    Returns them, the size of the split, and counts of those left out because training used their speaker, sentence or
    clip: another release of a corpus may have as test what this one has as train. Raises as `make_manifest` does, with
    messages that begin with eval.sets.
    """
    draw, _, utterances, leaks = _draw_other(run, data, model, source, locale, split, limit)
    return draw.chosen, len(utterances), leaks


def draw_segments(
    run: Path, data: DataConfig, model: ModelConfig, source: str, locale: str, split: str
) -> tuple[list[Clip], list[Clip], dict[str, int]]:
    """Draws all clips of another corpus as `draw_from_corpus` does; returns them, the segments that were not, counts.

    Those are lines with `path`, `start` and `end` alone: segments of the same recordings that training used, or that
    are unusable.
    """
    draw, corpus, utterances, leaks = _draw_other(run, data, model, source, locale, split, None)
    drawn = {name_in_corpus(clip) for clip in draw.chosen}
    others = [each for each in utterances if each.path not in drawn and each.start is not None]
    files = corpus.fetch([each.path for each in others])
    return draw.chosen, [
        {"path": str(files[each.path]), "start": each.start, "end": each.end} for each in others if each.path in files
    ], leaks  # fmt: skip


def _draw_other(
    run: Path, data: DataConfig, model: ModelConfig, source: str, locale: str, split: str, limit: int | None
) -> tuple[SplitDraw, Corpus, list[Utterance], dict[str, int]]:
    try:
        corpus = with_tokens(open_corpus(source, locale, named_columns(data), split), locale, model)
        utterances = corpus.tables.get(split) or corpus.tables.get(UNSPLIT, [])
        if not utterances:
            there = ", ".join(name for name, own in corpus.tables.items() if own)
            raise ConfigError(f"{split}.tsv of {corpus.source} has no clips, but {there}; set its split=...")
        unseen, leaks = drop_leaks(utterances, [as_utterance(clip) for clip in training_clips(run)])
        draw = SplitDraw(split, sampling_order(unseen, data.seed), clips=limit)
        _fill([draw], corpus, label_filter(model, data.language))
        if not draw.chosen:
            raise ConfigError(
                f"no usable clip of {split} in {corpus.source} that training has not used ({_counts(leaks)})"
            )
    except (ConfigError, ExternalError) as error:
        raise type(error)(f"eval.sets: {error}") from error
    return draw, corpus, utterances, leaks


def _utterances(corpus: Corpus, split: str) -> list[Utterance]:
    utterances = corpus.tables.get(split, [])
    if not utterances:
        raise ConfigError(f"data.source: {split}.tsv of {corpus.source} has no clips; a run needs train, dev and test")
    return utterances


def _held_out(corpus: Corpus, split: str, limit: int | None, seed: int) -> SplitDraw:
    return SplitDraw(split, sampling_order(_utterances(corpus, split), seed), clips=limit)


def check_hours(hours: float | None, corpus: Corpus, seconds: float) -> None:
    """Raises ConfigError where `hours` is more than the training clips' `seconds`."""
    if hours is not None and seconds < hours * 3600:
        raise ConfigError(
            f"data.hours: {hours:g} is more than there is, {_length(seconds)} of training clips in "
            f"{corpus.source}; ask for less, or data.hours=null for all"
        )


def _fill(draws: Sequence[SplitDraw], corpus: Corpus, refuse: Callable[[str, str], str | None]) -> None:
    """Fetches and scans clips until each draw is full or no utterance is waiting.

    Raises ExternalError as soon as more than MOST_BAD of all scanned clips are unusable.
    """

    def duration(name: str) -> float:
        return corpus.durations.get(name) or corpus.sizes.get(name, 0) / BYTES_PER_SECOND

    with AudioScanner(corpus.source) as scanner:
        while any(wants := [draw.candidates(duration) for draw in draws]):
            files = corpus.fetch(
                [name for draw, names in zip(draws, wants, strict=True) for name in draw.to_fetch(names)]
            )
            for draw, names in zip(draws, wants, strict=True):
                if names:
                    with progress(f"scanning {draw.split}", total=len(names)) as bar:
                        draw.accept(names, files, corpus.durations, refuse, bar.advance, scanner.scan)
            _check_usable(draws, corpus)


def _check_usable(draws: Sequence[SplitDraw], corpus: Corpus) -> None:
    left_out: dict[str, list[str]] = defaultdict(list)
    for draw in draws:
        for reason, names in draw.left_out.items():
            if reason != EXCLUDED:
                left_out[reason] += names
    bad = sum(map(len, left_out.values()))
    scanned = bad + sum(len(draw.chosen) for draw in draws)
    drawn = [draw.split for draw in draws]
    unread = sum(corpus.unread.get(split, 0) for split in drawn)
    share_unread = unread / (unread + sum(len(corpus.tables.get(split, ())) for split in drawn) or 1)
    if 1 - (1 - share_unread) * (1 - bad / (scanned or 1)) > MOST_BAD:  # of the rows, read or not
        reasons = ", ".join(f"{reason}: {len(names)} ({names[0]}, ...)" for reason, names in left_out.items())
        lines = [line for split in drawn if corpus.unread.get(split) for line in corpus.malformed[split]]
        rows = f", and {unread} rows of its tables malformed ({lines[0]}, ...)" if unread else ""
        raise ExternalError(
            f"data.source: {bad} of {scanned} clips of {corpus.source} are unusable ({reasons or 'none'}){rows}; "
            f"more than {MOST_BAD:.0%} means a damaged download or another language: fetch it again or repair it"
        )


def _settings(data: DataConfig) -> dict[str, Any]:
    return {f"data.{key}": value for key, value in plain_sources(asdict(data)).items()}


def _write(
    run: Path, data: DataConfig, language: str, corpus: Corpus, draws: Sequence[SplitDraw], dropped: dict[str, Any],
    available: Mapping[str, int | None], stream: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes the manifest and its summary, and logs them. `language` is the run's token.

    `stream` describes the `streamed` train, and has the numbers of clips `asked` of the other splits.
    """
    check_hours(data.hours, corpus, draws[0].drawn_seconds)
    if empty := [draw.split for draw in draws if not draw.chosen and not (stream and draw.split == "train")]:
        raise ConfigError(f"data.source: no usable clip of {' or '.join(empty)} in {corpus.source}; a run needs them")
    splits: dict[str, dict[str, Any]] = {
        draw.split: {
            "clips": len(draw.chosen),
            "hours": round(draw.drawn_seconds / 3600, 4),
            "speakers": len({clip["speaker"] for clip in draw.chosen} - {""}),  # known ones
            "available": available[draw.split],
            "left_out": draw.left_out,
            "malformed_rows": corpus.malformed.get(draw.split, []),
            **({"languages": counted} if (counted := count_languages(draw.chosen, language)) else {}),
        }
        for draw in draws
    }
    for split, limit in (stream["asked"] if stream else {}).items():
        splits[split]["asked"] = limit
    if stream:
        splits["train"]["streamed"] = stream["streamed"]
    facts = {
        "release": corpus.release,
        "source": corpus.source,
        "seed": data.seed,
        "settings": _settings(data),
        **dropped,
        "splits": splits,
        "versions": folder.versions(),
    }
    with atomic_folder(run / "data") as made:
        for draw in draws:
            write_jsonl(made / f"{draw.split}.jsonl", draw.chosen)
        write_json(made / "summary.json", facts)
    if stream:
        streamed = stream["streamed"]
        log(
            f"train: {streamed['split']} of {corpus.source} is streamed, from {streamed['files']} files; clips that "
            "share a speaker, sentence or clip with dev or test are dropped during training"
        )
        draws = [draw for draw in draws if draw.split != "train"]
    for draw in draws:
        _log_draw(draw, splits[draw.split])
    leaks = dropped["leaks_dropped_from_train"]
    if not stream:
        log(f"dropped from train for overlap with dev or test: {sum(leaks.values())} ({_counts(leaks)})")
    if data.exclude_overlap is not None and not stream:
        shared = {kind: len(names) for kind, names in dropped["excluded"].items() if kind != "by"}
        shared["sound"] = len(draws[0].left_out.get(EXCLUDED, []))
        log(f"dropped from train for overlap with {data.exclude_overlap}: {sum(shared.values())} ({_counts(shared)})")
    log(f"manifest: {run / 'data'}")


def _log_draw(draw: SplitDraw, fact: Mapping[str, Any]) -> None:
    out = sum(map(len, draw.left_out.values())) + len(fact["malformed_rows"])
    length = _length(draw.drawn_seconds)
    log(f"{draw.split}: {fact['clips']} clips, {length}, {fact['speakers']} known speakers, {out} left out")
    if "languages" in fact:
        log(f"{draw.split}, clips by language token: {_counts(fact['languages'])}")


def _length(seconds: float) -> str:
    hours = f"{seconds / 3600:.2f} h"
    return hours if seconds >= 3600 else f"{seconds / 60:.1f} min ({hours})"


def _counts(leaks: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in leaks.items())
