"""A few clips of a run's data, looked at before anything is fetched, unpacked or written where it would stay.

From the run's manifest where it is prepared, else from its corpora: of an archive the beginning alone is read, unless
its tables are in the cache from an earlier time.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from torch import Tensor
from transformers import WhisperConfig

from asr_lora.corpus import Corpus, is_path, is_quick
from asr_lora.corpus.archive import known_tables, walk
from asr_lora.corpus.common_voice import AUDIOS, CLIPS, SPONTANEOUS
from asr_lora.corpus.huggingface import is_dataset
from asr_lora.corpus.shards import PREFIX as SHARDS
from asr_lora.corpus.shards import is_url
from asr_lora.data.dataset import StepDataset
from asr_lora.data.features import IGNORE_INDEX, SpeechCollator, log_mel, with_prompt
from asr_lora.data.manifest import Clip, SplitDraw, in_shard, missing_files, sampling_order
from asr_lora.data.preparation import MOST_BAD, check_hours, label_filter
from asr_lora.data.sources import find_source, open_sources
from asr_lora.doctor.check import FAIL, OK, WARN, Check
from asr_lora.model.pretrained import language_token, load_generation_config, load_processor
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError, UserError
from asr_lora.runtime.files import existing, read_json, read_jsonl
from asr_lora.speech import audio
from asr_lora.training.builder import step_sampler

if TYPE_CHECKING:
    from asr_lora.config.compose import Config
if TYPE_CHECKING:
    from asr_lora.config.compose import Config

MOST_READ = 200e6  # bytes of an archive's files: two seconds or so
UNPACKED = 64  # clips of an archive that are kept to be heard
HEARD = 32  # clips
TABLES = ("train", "dev", "test", "validated", "clip_durations")
Batch: TypeAlias = dict[str, Tensor]
SENTENCES = 5_000  # whose labels are measured: a second's work
MOST_BAD_OF_FEW = 0.2  # of some tens of clips: below it, all of them may have few enough
SPOILT = "take tokenizer and generation_config.json of the checkpoint's own base model"


class NotInspectableError(Exception):
    """The data cannot be looked at without paying for it; it says why."""


@dataclass(frozen=True)
class DataSample:
    """What was seen of the training clips: some of them heard, as lines of a manifest; and the sentences of all.

    `left_out` says which of those heard are unusable, and why; `origin` where all is from; `source`, if there is one, a
    corpus with all tables that may be opened quickly in place of that of the settings.
    """

    clips: list[Clip]
    sentences: list[str]
    left_out: dict[str, list[str]]
    origin: str
    source: Path | None = None


def sample_data(config: "Config", scratch: Path) -> DataSample:
    """What is unpacked goes to `scratch`, and is read from there.

    Raises UnseenError, and ConfigError and ExternalError as preparing does.
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
            raise NotInspectableError("its tables lie beyond its beginning") from error
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
    few = clips[:HEARD]
    lost = {clip["id"] for clip in missing_files(few)}
    if len(lost) == len(few):
        raise NotInspectableError("the clips of its manifest are no longer in the cache; training puts them back")
    there = [clip for clip in few if clip["id"] not in lost]
    return DataSample(there, [clip["text"] for clip in clips], {}, f"the manifest, {len(clips)} clips")


def _of_corpus(config: "Config", corpus: Corpus, named: str, complete: bool, source: Path | None) -> DataSample:
    """`complete`: every clip is at hand, so that one that is not there is missing."""
    rows = sampling_order(corpus.tables["train"], config.data.seed)
    if not rows:
        raise ConfigError(f"data.source: train.tsv of {named} has no clips; a run needs train, dev and test")
    if corpus.durations and source:
        check_hours(
            config.data.hours,
            replace(corpus, source=named),
            sum(corpus.durations.get(row["path"], 30.0) for row in rows),
        )
    asked = rows[:HEARD] if complete else rows
    files = corpus.fetch([row["path"] for row in asked if not in_shard(row)])
    heard = asked if complete else [row for row in rows if row["path"] in files][:HEARD]
    if not heard:
        raise NotInspectableError("the clips that its tables name lie beyond its beginning")
    draw = SplitDraw("train", list(heard))
    draw.accept([row["path"] for row in heard], files, corpus.durations, lambda sentence: None, lambda: None)
    if not draw.chosen:
        reasons = Counter({reason: len(names) for reason, names in draw.left_out.items()})
        raise ConfigError(f"data.source: none of {len(heard)} clips of {named} can be used ({dict(reasons)})")
    return DataSample(
        draw.chosen, [row["sentence"] for row in rows], draw.left_out, f"{named}, {len(rows)} clips", source
    )


@dataclass(frozen=True)
class _Place:
    """What to open in place of a source, and whether it has every table and every clip of it."""

    path: str
    every_table: bool = True
    every_clip: bool = True


def _place(source: str, language: str, folder: Path) -> _Place:
    """Itself, or of an archive what of it was put into `folder`."""
    if source.startswith(SHARDS) and not is_url(source.removeprefix(SHARDS)):
        return _Place(source)
    if not is_path(source):
        raise NotInspectableError(f"{source} is fetched when it is prepared")
    path = existing(Path(source))
    if is_quick(path):
        return _Place(str(path))
    if is_dataset(path):
        raise NotInspectableError(f"{path} is converted when it is prepared")
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
    """Tables and the first clips of an archive; whether its beginning is all of it.

    Raises ConfigError and ExternalError as reading all of it does.
    """
    read, kept = 0, Counter[PurePosixPath]()

    def wanted(path: PurePosixPath) -> bool:
        if path.suffix == ".tsv":
            return path.stem in TABLES or path.name.startswith(SPONTANEOUS)
        return path.parent.name in (CLIPS, AUDIOS) and kept[path.parent] < UNPACKED

    folder.mkdir(parents=True)
    with closing(walk(archive, "looking into the archive", wanted)) as members:
        for path, size, content in members:
            if content is not None:
                file = folder / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                kept[path.parent] += path.suffix != ".tsv"
            read += size
            if read > MOST_READ:
                return False
    return True


def share_unusable(sight: DataSample) -> float:
    """Of the clips that were heard."""
    bad = sum(map(len, sight.left_out.values()))
    return bad / (bad + len(sight.clips))


def counted(reasons: Sequence[str]) -> str:
    """How many times which, the most frequent first."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())


def data(config: "Config", scratch: Path) -> tuple[Check, DataSample | None]:
    """Some clips are heard. Raises ConfigError and ExternalError as preparing does."""
    try:
        sight = sample_data(config, scratch)
    except NotInspectableError as unseen:
        way_out = "preparing looks at all of it, before anything trains: make prepare"
        return Check("data", WARN, f"not looked at: {unseen}", way_out), None
    found, bad = f"{sight.origin}; {len(sight.clips)} heard", share_unusable(sight)
    if not bad:
        return Check("data", OK, found), sight
    reasons = counted([reason for reason, names in sight.left_out.items() for _ in names])
    found = f"{found}, others unusable: {reasons}"
    heard_all = len(sight.clips) + sum(map(len, sight.left_out.values())) >= len(sight.sentences)
    if bad > (MOST_BAD if heard_all else MOST_BAD_OF_FEW):
        way_out = f"preparing refuses more than {MOST_BAD:.0%} of such: fetch the corpus again or mend it"
        return Check("data", FAIL, found, way_out), sight
    return Check("data", WARN, found, "preparing leaves such out and names them in data/summary.json"), sight


def labels(config: "Config", sight: DataSample) -> tuple[Check, int]:
    """How many sentences would be dropped for what they are as labels."""
    sentences, refuse = sight.sentences[:SENTENCES], label_filter(config.model, config.data.language)
    dropped = [reason for sentence in sentences if (reason := refuse(sentence))]
    if not dropped:
        return Check("labels", OK, f"none of {len(sentences):,} would be dropped"), 0
    found = f"{len(dropped):,} of {len(sentences):,} would be dropped: {counted(dropped)}"
    if len(dropped) > MOST_BAD * len(sentences):
        way_out = f"preparing refuses more than {MOST_BAD:.0%} of such; see whether data.columns names the right text"
        return Check("labels", FAIL, found, way_out), len(dropped)
    return Check("labels", WARN, found, "nothing, or shorten those sentences: preparing leaves them out"), len(dropped)


def token(config: "Config") -> tuple[Check, str]:
    """Whisper's token for the language. Raises ConfigError where there is none, naming the way out."""
    code = language_token(config.model, config.data.language)
    return Check("language", OK, f"{config.data.language} is <|{code}|>, to {config.model.task}"), code


def mel_bins(config: "Config", known: WhisperConfig) -> tuple[Check, int]:
    """Those that the feature extractor makes against those that the model hears."""
    silence = np.zeros(audio.SAMPLE_RATE, dtype=np.float32)
    made = log_mel([silence], load_processor(config.model.checkpoint).feature_extractor, seconds=1.0).shape[1]
    if made == known.num_mel_bins:
        return Check("mel bins", OK, f"{made}, as the model hears"), made
    found = f"features have {made}, the model hears {known.num_mel_bins}"
    way_out = "take preprocessor_config.json of the checkpoint's own base model"
    return Check("mel bins", FAIL, found, way_out), made


def batch(config: "Config", sight: DataSample, code: str) -> tuple[Check, Batch | None]:
    """The first batch that the run would make of the clips that were seen; None where its labels are wrong."""
    refuse = label_filter(config.model, config.data.language)
    rows = [clip for clip in sight.clips if not refuse(clip["text"])]
    if not rows:
        raise ConfigError(f"data.source: none of {len(sight.clips)} clips has a sentence that can be a label")
    processor = load_processor(config.model.checkpoint)
    processor.tokenizer = with_prompt(processor.tokenizer, code, config.model.task)
    making = SpeechCollator(processor, config.data.augment, config.seed, config.training.spec_augment)
    batches = StepDataset(rows, step_sampler(config, rows), 1, making)[0]
    generation = load_generation_config(config.model.checkpoint)
    first, end = generation.decoder_start_token_id, generation.eos_token_id
    prompt = (first, generation.lang_to_id[f"<|{code}|>"], generation.task_to_id[config.model.task])
    if wrong := [trouble for each in batches for trouble in troubles(each, prompt, end, len(processor.tokenizer))]:
        return Check("batch", FAIL, f"{wrong[0]} ({len(wrong)} such in {_size(batches)})", SPOILT), None
    said = sum(int((each["labels"] != IGNORE_INDEX).sum()) for each in batches)
    found = f"{_size(batches)}: one start token, <|{code}|>, {said} tokens to learn, each row's end among them"
    return Check("batch", OK, found), batches[0]


def _size(batches: Sequence[Batch]) -> str:
    return f"{sum(len(each['labels']) for each in batches)} clips"


def troubles(batch: Batch, prompt: Sequence[int], end: int, vocabulary: int) -> list[str]:
    """What is wrong with the labels of a batch: `prompt` are the tokens of start, language and task, `end` the last."""
    first, *after = prompt
    wrong = []
    for inputs, labels in zip(batch["decoder_input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        said = [label for label in labels if label != IGNORE_INDEX]
        if inputs[0] != first:
            wrong.append(f"a row begins with token {inputs[0]}, not with the start token {first}")
        elif first in said or inputs[: len(said)].count(first) != 1:
            wrong.append("the start token is doubled: the model would learn to say it")
        elif said[: len(after)] != after:
            wrong.append(f"language and task are {said[: len(after)]}, not {after}")
        elif said[-1] != end:
            wrong.append("the end is not among what is learnt: the model would never stop")
        elif end in said[:-1]:
            wrong.append("the end is learnt before the sentence ends")
        elif max(said) >= vocabulary:
            wrong.append(f"token {max(said)} is beyond the vocabulary of {vocabulary}")
    if not bool(batch["input_features"].isfinite().all()):
        wrong.append("features are no numbers")
    return wrong
