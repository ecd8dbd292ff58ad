"""Checks of a run's data on a few clips, without downloads and without files that stay.

The clips are from the run's manifest where it is prepared, else from its corpora: of an archive only the beginning is
read, unless its tables are in the cache.
"""

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from torch import Tensor

from asr_lora.corpus import Corpus, is_path, is_quick
from asr_lora.corpus.archive import MARKS, known_tables
from asr_lora.corpus.common_voice import AUDIOS, CLIPS, SPONTANEOUS
from asr_lora.corpus.containers import is_unpacked, unpacked, walk
from asr_lora.corpus.huggingface import is_dataset
from asr_lora.corpus.shards import PREFIX as SHARDS
from asr_lora.corpus.shards import is_url
from asr_lora.data.dataset import StepDataset
from asr_lora.data.features import IGNORE_INDEX, SpeechCollator, log_mel, with_prompt
from asr_lora.data.finding import find_source
from asr_lora.data.labels import label_filter
from asr_lora.data.languages import KEY, row_tokens, run_tokens
from asr_lora.data.manifest import Clip, SplitDraw, missing_files, name_in_corpus, sampling_order
from asr_lora.data.preparation import MOST_BAD, check_hours
from asr_lora.data.sources import open_sources
from asr_lora.doctor.check import FAIL, OK, WARN, Check
from asr_lora.model.pretrained import load_config, load_generation_config, load_processor
from asr_lora.model.tokens import OF_BASE, is_english_only
from asr_lora.runs import folder as run
from asr_lora.runtime.commands import to_run
from asr_lora.runtime.errors import ConfigError, UserError
from asr_lora.runtime.files import existing, read_json, read_jsonl
from asr_lora.speech import audio
from asr_lora.speech.audio import AudioSegment, scan_clip
from asr_lora.training.builder import step_sampler

if TYPE_CHECKING:
    from asr_lora.config.compose import Config

MOST_READ = 200e6  # bytes of an archive's files: two seconds or so
UNPACKED = 64  # clips of an archive that are unpacked for the sample
SAMPLED = 32  # clips
SHOWN = 10  # of them
TABLES = ("train", "dev", "test", "validated", "clip_durations")
Batch: TypeAlias = dict[str, Tensor]
SENTENCES = 5_000  # whose label lengths are measured: about a second
MOST_BAD_OF_FEW = (
    0.2  # share of unusable clips in a sample of some tens: below it, the whole corpus may have few enough
)


class NotInspectableError(Exception):
    """Raised where the data cannot be inspected without a download or conversion.

    Its message is the reason.
    """


@dataclass(frozen=True)
class DataSample:
    """A sample of the training clips: some decoded, as lines of a manifest, and the sentences of all.

    `left_out`: the unusable ones of the decoded, by reason; `origin`: where all is from; `source`: a corpus with all
    tables that opens quickly, to use in place of that of the settings, or None.
    """

    clips: list[Clip]
    sentences: list[str]
    left_out: dict[str, list[str]]
    origin: str
    source: Path | None = None


def sample_data(config: "Config", scratch: Path) -> DataSample:
    """Samples the training clips; unpacks to the folder `scratch` and reads from there.

    Raises NotInspectableError, and ConfigError and ExternalError as preparing does.
    """
    if run.summary(config.run).is_file():
        return _of_manifest(config)
    if config.data.streaming:
        raise NotInspectableError(f"{config.data.source} is streamed")
    named = [each.path for each in config.data.sources] or [find_source(config.data)]
    languages = [each.language or config.data.language for each in config.data.sources] or [config.data.language]
    places = [_place(*each, scratch / str(at)) for at, each in enumerate(zip(named, languages, strict=True))]
    if config.data.sources:
        sources = [replace(each, path=place.path) for each, place in zip(config.data.sources, places, strict=True)]
        data = replace(config.data, sources=sources)
    else:
        data = replace(config.data, source=places[0].path)
    try:
        corpus = open_sources(data, config.eval.limit)
    except UserError as error:
        if not all(place.every_table for place in places):
            raise NotInspectableError("its tables are beyond its beginning") from error
        text = str(error)
        for source, place in zip(named, places, strict=True):
            text = text.replace(place.path, source)
        raise type(error)(text) from error
    (first, *more), every_clip = places, all(place.every_clip for place in places)
    alone = Path(first.path) if first.every_table and is_path(first.path) and not more else None
    return _of_corpus(config, corpus, ", ".join(named), every_clip, alone)


def _of_manifest(config: "Config") -> DataSample:
    facts = read_json(run.summary(config.run))
    clips = read_jsonl(run.manifest(config.run, "train"))
    if not clips:
        raise NotInspectableError(f"{facts['source']} is streamed")
    few = clips[:SAMPLED]
    lost = {clip["id"] for clip in missing_files(few)}
    if len(lost) == len(few):
        raise NotInspectableError("the clips of its manifest are no longer in the cache; training puts them back")
    there = [clip for clip in few if clip["id"] not in lost]
    return DataSample(there, [clip["text"] for clip in clips], {}, f"the manifest, {len(clips)} clips")


def _of_corpus(config: "Config", corpus: Corpus, named: str, complete: bool, source: Path | None) -> DataSample:
    """Samples an open corpus. `complete`: every clip is on the disk, so that an absent one is missing."""
    utterances = sampling_order(corpus.tables["train"], config.data.seed)
    if not utterances:
        raise ConfigError(f"data.source: train.tsv of {named} has no clips; a run needs train, dev and test")
    if corpus.durations and source:
        check_hours(
            config.data.hours,
            replace(corpus, source=named),
            sum(corpus.durations.get(each.path, 30.0) for each in utterances),
        )
    asked = utterances[:SAMPLED] if complete else utterances
    files = corpus.fetch([each.path for each in asked if each.shard is None])
    found = asked if complete else [each for each in utterances if each.path in files][:SAMPLED]
    if not found:
        raise NotInspectableError("the clips that its tables name are beyond its beginning")
    draw = SplitDraw("train", list(found))
    draw.accept([each.path for each in found], files, corpus.durations, lambda *_: None, lambda: None)
    if not draw.chosen:
        reasons = Counter({reason: len(names) for reason, names in draw.left_out.items()})
        raise ConfigError(f"data.source: none of {len(found)} clips of {named} can be used ({dict(reasons)})")
    return DataSample(
        draw.chosen, [each.text for each in utterances], draw.left_out, f"{named}, {len(utterances)} clips", source
    )


@dataclass(frozen=True)
class _Place:
    """What to open in place of a source, and whether it has all of its tables and clips."""

    path: str
    every_table: bool = True
    every_clip: bool = True


def _place(source: str, language: str, folder: Path) -> _Place:
    """Returns the source itself, or for an archive `folder` with what was unpacked there."""
    if source.startswith(SHARDS) and not is_url(source.removeprefix(SHARDS)):
        return _Place(source)
    if not is_path(source):
        raise NotInspectableError(f"{source} is downloaded when it is prepared")
    path = existing(Path(source))
    if is_quick(path):
        return _Place(str(path))
    if is_dataset(path):
        raise NotInspectableError(f"{path} is converted when it is prepared")
    if path.is_dir():
        raise NotInspectableError(f"the archives in {path} are unpacked when it is prepared")
    if is_unpacked(path):
        return _Place(str(unpacked(path, [path])))
    tables = known_tables(path, language)
    if tables and (clips := tables.folder.parent / CLIPS).is_dir():
        home = folder / tables.release / language
        home.mkdir(parents=True)
        for table in tables.folder.glob("*.tsv"):
            (home / table.name).symlink_to(table)
        (home / tables.within.name).symlink_to(clips)
        return _Place(str(folder), every_clip=False)
    return _Place(str(folder), every_table=_unpack_beginning(path, folder), every_clip=False)


def _unpack_beginning(archive: Path, folder: Path) -> bool:
    """Unpacks tables and the first clips of an archive; returns whether that was all of it.

    Raises ConfigError and ExternalError as reading all of it does, NotInspectableError for other speech than Common
    Voice's.
    """
    read, kept, other = 0, Counter[PurePosixPath](), False

    def wanted(path: PurePosixPath) -> bool:
        if path.suffix == ".tsv":
            return path.stem in TABLES or path.name.startswith(SPONTANEOUS)
        return path.parent.name in (CLIPS, AUDIOS) and kept[path.parent] < UNPACKED

    folder.mkdir(parents=True)
    with closing(walk(archive, "reading the archive", wanted)) as members:
        for path, size, content in members:
            if content is not None:
                file = folder / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"".join(content))
                kept[path.parent] += path.suffix != ".tsv"
            other = other or path.suffix.lower() in MARKS
            read += size
            if read > MOST_READ:
                return False
    if other and not sum(kept.values()):
        raise NotInspectableError(f"{archive} is unpacked when it is prepared")
    return True


def share_unusable(sample: DataSample) -> float:
    """Returns the share of unusable clips in the sample."""
    bad = sum(map(len, sample.left_out.values()))
    return bad / (bad + len(sample.clips))


def counted(reasons: Sequence[str]) -> str:
    """Returns each reason with its count, the most frequent first."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())


def data(config: "Config", scratch: Path) -> tuple[Check, DataSample | None]:
    """Decodes some clips. Raises ConfigError and ExternalError as preparing does."""
    try:
        sample = sample_data(config, scratch)
    except NotInspectableError as unseen:
        way_out = f"preparing scans all of it, before training starts: {to_run('prepare')}"
        return Check("data", WARN, f"skipped: {unseen}", way_out), None
    found, bad = f"{sample.origin}; {len(sample.clips)} decoded", share_unusable(sample)
    if not bad:
        return Check("data", OK, found), sample
    reasons = counted([reason for reason, names in sample.left_out.items() for _ in names])
    found = f"{found}, others unusable: {reasons}"
    all_decoded = len(sample.clips) + sum(map(len, sample.left_out.values())) >= len(sample.sentences)
    if bad > (MOST_BAD if all_decoded else MOST_BAD_OF_FEW):
        way_out = f"preparing refuses more than {MOST_BAD:.0%} of such: download the corpus again or repair it"
        return Check("data", FAIL, found, way_out), sample
    return Check("data", WARN, found, "preparing leaves such out and names them in data/summary.json"), sample


def shown_clips(sample: DataSample) -> list[dict[str, Any]]:
    """Returns the first SHOWN clips for people: seconds, rate (Hz), level (dB of full scale), speaker and text."""
    rows: list[dict[str, Any]] = []
    for clip in sample.clips[:SHOWN]:
        row = {"clip": name_in_corpus(clip), "seconds": clip["duration"], "rate": None, "level": None}
        if "offset" not in clip:  # those in shards were scanned before they were written
            info = scan_clip(AudioSegment(Path(clip["path"]), clip.get("start"), clip.get("end")))
            row |= {"rate": info.rate, "level": round(20 * math.log10(max(info.loudness, 1e-6)), 1)}
        rows.append(row | {"speaker": clip["speaker"], "text": clip["text"]})
    return rows


def labels(config: "Config", sample: DataSample) -> tuple[Check, int]:
    """Counts the sentences that preparing would drop because of their labels."""
    sentences, refuse = sample.sentences[:SENTENCES], label_filter(config.model, config.data.language)
    dropped = [reason for sentence in sentences if (reason := refuse(sentence, ""))]
    if not dropped:
        return Check("labels", OK, f"none of {len(sentences):,} would be dropped"), 0
    found = f"{len(dropped):,} of {len(sentences):,} would be dropped: {counted(dropped)}"
    if len(dropped) > MOST_BAD * len(sentences):
        way_out = f"preparing refuses more than {MOST_BAD:.0%} of such; check that data.columns names the text"
        return Check("labels", FAIL, found, way_out), len(dropped)
    return Check("labels", WARN, found, "nothing, or shorten those sentences: preparing leaves them out"), len(dropped)


def token(config: "Config") -> tuple[Check, str]:
    """Finds Whisper's token for the language. Raises ConfigError where there is none, or for another task."""
    config.model.check_scored()
    code, *others = run_tokens(config.data, config.model)
    named = "".join(f", <|{other}|>" for other in others)
    found = f"{config.data.language} -> <|{code}|>{named}, task {config.model.task}"
    if is_english_only(load_generation_config(config.model.checkpoint)):
        found = f"{config.data.language}, the language of an English-only model, which has no token of it"
    return Check("language", OK, found), code


def mel_bins(config: "Config") -> tuple[Check, int]:
    """Makes features. Raises ConfigError where they, or the tokens, are not those of the model's weights."""
    silence = np.zeros(audio.SAMPLE_RATE, dtype=np.float32)
    made = log_mel([silence], load_processor(config.model.checkpoint).feature_extractor, seconds=1.0).shape[1]
    return Check("mel bins", OK, f"{made}, as the model expects"), made


def batch(config: "Config", sample: DataSample, code: str) -> tuple[Check, Batch | None]:
    """Makes the run's first batch of the sampled clips; returns None where its labels are wrong.

    Of a run with several languages all are of one, its own where the sample has it.
    """
    refuse, clips = label_filter(config.model, config.data.language), _with_tokens(sample.clips, config)
    rows = [clip for clip in clips if not refuse(clip["text"], clip.get(KEY, ""))]
    first = min((clip.get(KEY, "") for clip in rows), default="")
    rows, code = [clip for clip in rows if clip.get(KEY, "") == first], first or code
    if not rows:
        raise ConfigError(f"data.source: none of {len(sample.clips)} clips has a sentence that can be a label")
    processor = load_processor(config.model.checkpoint)
    processor.tokenizer = with_prompt(processor.tokenizer, code, config.model.task)
    making = SpeechCollator(processor, config.data.augment, config.seed, augment_labels=config.data.augment_labels)
    batches = StepDataset(rows, step_sampler(config, rows), 1, making)[0]
    generation = load_generation_config(config.model.checkpoint)
    prompt, end = [generation.decoder_start_token_id], generation.eos_token_id
    if not is_english_only(generation):
        prompt += [generation.lang_to_id[f"<|{code}|>"], generation.task_to_id[config.model.task]]
    known = load_config(config.model.checkpoint).vocab_size
    if wrong := [trouble for each in batches for trouble in troubles(each, prompt, end, known)]:
        return Check("batch", FAIL, f"{wrong[0]} ({len(wrong)} such in {_size(batches)})", OF_BASE), None
    tokens = sum(int((each["labels"] != IGNORE_INDEX).sum()) for each in batches)
    named = "" if is_english_only(generation) else f"<|{code}|>, "
    found = f"{_size(batches)}: one start token, {named}{tokens} label tokens, an end token in each row"
    return Check("batch", OK, found), batches[0]


def _with_tokens(clips: Sequence[Clip], config: "Config") -> list[Clip]:
    """Returns clips of a sample, which have languages as their corpus states them, with tokens in place of these."""
    token, found = row_tokens(config.data.language, config.model), list[Clip]()
    for clip in clips:
        with suppress(ValueError):  # no token: preparing leaves it out
            own = token(clip.get(KEY, ""))
            plain = {name: value for name, value in clip.items() if name != KEY}
            found.append(plain | ({KEY: own} if own else {}))
    return found


def _size(batches: Sequence[Batch]) -> str:
    return f"{sum(len(each['labels']) for each in batches)} clips"


def troubles(batch: Batch, prompt: Sequence[int], end: int, vocabulary: int) -> list[str]:
    """Returns what is wrong with a batch's labels.

    `prompt`: tokens of start, language and task; `end`: the last.
    """
    first, *after = prompt
    wrong = []
    for inputs, labels in zip(batch["decoder_input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        tokens = [label for label in labels if label != IGNORE_INDEX]
        before = labels.index(tokens[0])  # tokens of the text before a window, which have no labels
        if inputs[before] != first:
            wrong.append(f"a row begins with token {inputs[before]}, not with the start token {first}")
        elif first in tokens or inputs[: before + len(tokens)].count(first) != 1:
            wrong.append("the start token is doubled: the model would learn to output it")
        elif tokens[: len(after)] != after:
            wrong.append(f"language and task are {tokens[: len(after)]}, not {after}")
        elif tokens[-1] != end:
            wrong.append("the labels lack the end token: the model would never stop")
        elif end in tokens[:-1]:
            wrong.append("the end token is in the labels before the sentence ends")
        elif max(tokens) >= vocabulary:
            wrong.append(f"token {max(tokens)} is beyond the vocabulary of {vocabulary}")
    if not bool(batch["input_features"].isfinite().all()):
        wrong.append("features are not finite")
    return wrong
