"""Data sets that `datasets` reads: `hf:<name>[:config]` from the Hub; parquet, arrow and what save_to_disk wrote.

Their sound is bytes in a column, which we decode ourselves as we do files: `datasets` would want torchcodec for it. The
clips that a run draws are written to the cache, each once, under the hash of its bytes.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import huggingface_hub
import pyarrow
import pyarrow.compute
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HfHubHTTPError

from asr_lora.corpus.records import UNSPLIT, Corpus, CorpusBuilder, by_split, parse_utterance, segment_name
from asr_lora.corpus.tabular import Columns, as_cell, open_listing
from asr_lora.runtime.console import progress
from asr_lora.runtime.errors import ConfigError, ExternalError, UserError, listed
from asr_lora.runtime.files import atomic_file, cache_dir, disk_errors, plain_suffix

PREFIX = "hf:"  # what data.source begins with
PAGES = "https://huggingface.co/datasets"
LOCAL = "what it should be at https://huggingface.co/docs/datasets"
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves, of several splits or of one
FILES = (".parquet", ".arrow")
BEGINS = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}  # what bytes without a name are; else mp3
PLACES = ("start", "end", "split")
ROWS = 256  # read at a time; the column of the sound is left where it is


def is_dataset(source: Path) -> bool:
    """Whether a file or folder is one that `datasets` reads."""
    if source.is_file():
        return source.suffix.lower() in FILES
    if any((source / name).is_file() for name in SAVED):
        return True
    return any(next(source.glob(f"{depth}*{end}"), None) for depth in ("", "*/", "*/*/") for end in FILES)


def open_hub(named: str, language: str, columns: Columns) -> Corpus:
    """A data set of the Hub, by `name` or `name:config`; fetched into the cache of the Hugging Face libraries.

    Raises ChoiceError for a name, a configuration or columns that are not there, WorldError where it cannot be reached.
    """
    name, title = named.partition(":")[0], f"{PREFIX}{named}"
    builder = hub_builder(named)
    with hub_errors(title, f"{PAGES}/{name}"):
        if not is_audiofolder(builder):
            builder.download_and_prepare()
            loaded = builder.as_dataset()
        else:  # datasets cannot read a folder of recordings without torchcodec, but we can
            loaded = Path(huggingface_hub.snapshot_download(name, repo_type="dataset"))
    if isinstance(loaded, Path):
        return replace(open_listing(loaded, language, columns), source=title, release=named)
    return _corpus(loaded, title, named, language, columns)


def hub_builder(named: str) -> Any:
    """What `datasets` reads a data set of the Hub with; of the set itself nothing is fetched. Raises as `open_hub`."""
    name, _, config = named.partition(":")
    title = f"{PREFIX}{named}"
    if not name or name.count("/") > 1:
        raise ConfigError(f"data.source: {title} must be hf:<owner>/<name>[:config], a data set's name on {PAGES}")
    with hub_errors(title, f"{PAGES}/{name}"):
        return datasets.load_dataset_builder(name, config or None)


def is_audiofolder(builder: Any) -> bool:
    return type(builder).__name__ == "AudioFolder"


def open_local(source: Path, language: str, columns: Columns) -> Corpus:
    """Parquet or arrow files, or a folder of them. Raises as `open_hub` does."""
    cache = str(cache_dir() / "datasets")  # of the arrow files that are made of others
    with hub_errors(str(source), LOCAL):
        if source.is_file():
            loaded = datasets.load_dataset(source.suffix[1:], data_files=str(source), cache_dir=cache)
        elif any((source / name).is_file() for name in SAVED):
            loaded = datasets.load_from_disk(str(source))
        else:
            loaded = datasets.load_dataset(str(source), cache_dir=cache)
    return _corpus(loaded, str(source), source.name, language, columns)


def _corpus(loaded: Any, source: str, release: str, language: str, columns: Columns) -> Corpus:
    """From a `datasets.DatasetDict`, or a `Dataset`, which nobody has split."""
    splits: dict[str, Any] = dict(loaded) if isinstance(loaded, dict) else {UNSPLIT: loaded}
    parts = by_split({name: (name, data) for name, data in splits.items()}) or {UNSPLIT: list(splits.items())}
    gathered, clips = CorpusBuilder(source), _Rows()
    for split, own in parts.items():
        for name, data in own:
            _gather(gathered, clips, split, name, data, columns)
    return gathered.corpus(release, language, clips)


def _gather(gathered: CorpusBuilder, clips: "_Rows", split: str, name: str, data: Any, columns: Columns) -> None:
    """One split of the data set. Its sound is not looked at, but for the names of the files that it came from."""
    sound, plain, found = resolve_columns(data, columns, f"{gathered.of} ({name})")
    alone = data.select_columns([sound]).cast_column(sound, datasets.Audio(decode=False))
    called = _names(alone, name, sound)
    values = (row for batch in data.select_columns(plain).with_format(None).iter(ROWS) for row in _unbatched(batch))
    for at, row in enumerate(values):
        clip = called[at] if called[at] not in clips.places else _numbered(name, at, called[at])
        try:
            utterance = parse_utterance(
                {column: as_cell(value) for column, value in row.items()} | {sound: clip}, found
            )
        except ValueError as error:
            gathered.leave_out(split, f"{name} row {at}", error)
            continue
        own = segment_name(clip, utterance)
        gathered.add(split, own, utterance)
        clips.places[own] = (alone, at, sound)


def resolve_columns(data: Any, columns: Columns, table: str) -> tuple[str, list[str], dict[str, str]]:
    """The column of the sound, those of plain values, and by what they are to us the ones among all of these.

    Raises ChoiceError where a column that is needed is not there.
    """
    sound = _sound_column(data, columns, table)
    plain = [column for column, feature in data.features.items() if _is_plain(feature) and column != sound]
    # Where a clip lay in a recording that is not here is no matter, unless the settings say that it is.
    found = Columns({**columns.named, "path": sound}).found_in([sound, *plain], table)
    return sound, plain, {its: own for its, own in found.items() if its not in PLACES or its in columns.named}


def _unbatched(batch: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))


def _is_plain(feature: Any) -> bool:
    """Text, a number or a class, no list or structure."""
    return isinstance(feature, (datasets.Value, datasets.ClassLabel)) and "binary" not in feature.dtype


def _sound_column(data: Any, columns: Columns, table: str) -> str:
    """The column of the sound, encoded bytes and the name of the file that they came from.

    Raises ChoiceError where there is none, or the one that is named holds something else.
    """
    holds = [column for column, feature in (data.features or {}).items() if _is_sound(feature)]
    named = columns.named.get("path", "audio" if "audio" in holds or not holds else holds[0])
    if named not in holds:
        raise ConfigError(
            f"data.columns: {named} of {table} holds no sound as datasets keeps it, a file's bytes "
            f"(such are: {listed(holds)}; got: {listed(data.column_names or [])}); "
            "say 'data.columns={path: <its name>}'"
        )
    return named


def _is_sound(feature: Any) -> bool:
    undecoded = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    return undecoded or isinstance(feature, datasets.Audio) or feature == datasets.Value("binary")


def _names(sound: Any, split: str, column: str) -> list[str]:
    """The clips' names: those of their files where no two are alike, else the split and a number."""
    told = pyarrow.compute.struct_field(sound.with_format("arrow")[:][column], "path").to_pylist()
    names = [PurePosixPath(path).name if path else "" for path in told]
    if "" in names or len(set(names)) < len(names):
        return [_numbered(split, at, name) for at, name in enumerate(names)]
    return names


def _numbered(split: str, at: int, name: str) -> str:
    return f"{split}-{at:07}{PurePosixPath(name).suffix}"


@dataclass
class _Rows:
    """Clips that are bytes in a column: by name the data set, the row and the column."""

    places: dict[str, tuple[Any, int, str]] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        lengths: dict[int, list[int | None]] = {}
        for name, (sound, at, column) in self.places.items():
            if id(sound) not in lengths:
                held = pyarrow.compute.struct_field(sound.with_format("arrow")[:][column], "bytes")
                lengths[id(sound)] = pyarrow.compute.binary_length(held).to_pylist()
            found[name] = lengths[id(sound)][at] or 0
        return found

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        """Writes their bytes to the cache, a clip at a time; a file that is only named must be there."""
        wanted = [name for name in names if name in self.places]
        found: dict[str, Path] = {}
        with progress("writing clips", total=len(wanted)) as bar:
            for name in wanted:
                sound, at, column = self.places[name]
                value = sound[at][column] or {}
                if value.get("bytes") is not None:
                    found[name] = cache_audio(value["bytes"], PurePosixPath(name).suffix)
                elif value.get("path") and Path(value["path"]).is_file():
                    found[name] = Path(value["path"])
                bar.advance()
        return found


def cache_audio(content: bytes, suffix: str) -> Path:
    """The file of these bytes in the cache. Raises WorldError where it cannot be written."""
    digest = hashlib.sha256(content).hexdigest()
    file = cache_dir() / "clips" / digest[:2] / f"{digest[:32]}{plain_suffix(suffix) or suffix_of(content)}"
    if not file.is_file():
        with disk_errors(file.parent), atomic_file(file) as partial:
            partial.write_bytes(content)
    return file


def suffix_of(content: bytes) -> str:
    return BEGINS.get(content[:4], ".mp3")


@contextmanager
def hub_errors(title: str, page: str) -> Iterator[None]:
    """Turns what the Hugging Face libraries raise into one line with the way out."""
    try:
        yield
    except UserError:
        raise
    except DatasetNotFoundError as error:
        gated = "gated" in str(error)
        what = "its terms are not accepted" if gated else "the Hub has no such data set, or does not show it to you"
        raise ConfigError(
            f"data.source: {title}: {what} ({first_line(error)}); see {page}, accept its terms if it has any, and log "
            "in: hf auth login"
        ) from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise ExternalError(
            f"data.source: {title}: cannot reach the Hub ({first_line(error)}); look to the network and type the same "
            "again, or name a copy that is on this machine"
        ) from error
    except (DatasetsError, pyarrow.ArrowException, ValueError, RuntimeError, OSError, ImportError) as error:
        raise ConfigError(
            f"data.source: {title}: datasets cannot read it ({first_line(error.__cause__ or error)}); see {page}"
        ) from error


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
