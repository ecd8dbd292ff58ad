"""Data sets that `datasets` reads: `hf:<name>[:config]` of the Hub; parquet, arrow, save_to_disk's.

Their audio is bytes in a column. asr_lora decodes them as it does files: `datasets` would need torchcodec. The clips
that a run draws are written to the cache, each once, under the hash of its bytes.
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
import pyarrow.parquet
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HfHubHTTPError

from asr_lora.config import known_sets
from asr_lora.corpus.columns import Columns
from asr_lora.corpus.records import Corpus, CorpusBuilder, parse_utterance, segment_name
from asr_lora.corpus.split_names import UNSPLIT, by_split
from asr_lora.corpus.table_files import as_cell
from asr_lora.corpus.tabular import open_listing
from asr_lora.runtime.console import log, progress
from asr_lora.runtime.errors import ConfigError, ExternalError, UserError, listed
from asr_lora.runtime.files import another_cache, atomic_file, cache_dir, disk_errors, plain_suffix

PREFIX, PAGES = known_sets.HUB, known_sets.PAGES
PARQUET = "refs/convert/parquet"  # revision that the Hub makes of a data set; of a split beyond 5 GB, its beginning
SCRIPT = ("scripts are no longer supported", "Couldn't find cache for")  # in errors; the latter once it is fetched
LOCAL = "the formats that it reads at https://huggingface.co/docs/datasets"
SAVED = ("dataset_dict.json", "state.json")  # files of save_to_disk, for several splits or one
FILES = (".parquet", ".arrow")
BEGINS = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}  # by the first bytes; others are mp3
PLACES = ("start", "end", "split")
ROWS = 256  # read at a time, without the audio column


def is_dataset(source: Path) -> bool:
    """Returns whether `datasets` reads a file or folder."""
    if source.is_file():
        return source.suffix.lower() in FILES
    return is_saved(source) or any(
        next(source.glob(f"{depth}*{end}"), None) for depth in ("", "*/", "*/*/") for end in FILES
    )


def is_saved(source: Path) -> bool:
    """Returns whether a folder is one that save_to_disk wrote."""
    return any((source / name).is_file() for name in SAVED)


def open_hub(named: str, language: str, columns: Columns, split: str | None = None) -> Corpus:
    """Opens a data set of the Hub, `name` or `name:config`, and fetches it, or a split, into the Hugging Face cache.

    Raises ConfigError for a name, a configuration or columns that are not there, ExternalError where the Hub cannot be
    reached.
    """
    title = f"{PREFIX}{named}"
    named, columns = resolve_known(named, language, columns)
    name = named.partition(":")[0]
    builder = hub_builder(named)
    with hub_errors(title, f"{PAGES}/{name}"):
        if not is_audiofolder(builder):
            builder = _with_split(builder, split, columns, title)
            builder.download_and_prepare()
            loaded = builder.as_dataset()
        else:  # datasets cannot read a folder of recordings without torchcodec, but we can
            loaded = Path(huggingface_hub.snapshot_download(name, repo_type="dataset"))
    if isinstance(loaded, Path):
        return replace(open_listing(loaded, language, columns), source=title, release=named)
    return _corpus(loaded, title, named, language, columns)


def resolve_known(named: str, language: str, columns: Columns) -> tuple[str, Columns]:
    """Returns the name of a known data set with its configuration, and its columns; any other as it is.

    Raises ConfigError for a configuration that is not there, or of another language.
    """
    source = f"{PREFIX}{named}"
    known, name, _ = known_sets.known_set(source)
    if known is None:
        return named, columns
    named = f"{name}:{known_sets.configuration(known, source, language)}"
    log(f"{source}: {named}, as its card describes it; the text is {known.note}")
    return named, columns.of(known)


def hub_builder(named: str) -> Any:
    """Returns the `datasets` builder of a data set of the Hub; fetches no data. Raises as `open_hub`."""
    name, _, config = named.partition(":")
    title = f"{PREFIX}{named}"
    if not name or name.count("/") > 1:
        raise ConfigError(f"data.source: {title} must be hf:<owner>/<name>[:config], a data set's name on {PAGES}")
    with hub_errors(title, f"{PAGES}/{name}"):
        try:
            return datasets.load_dataset_builder(name, config or None)
        except (RuntimeError, ValueError) as error:
            if name not in known_sets.KNOWN or not any(sign in str(error) for sign in SCRIPT):
                raise
            log(f"{title} is a script on the Hub; read from the Hub's copy, of large splits the first 5 GB")
            return datasets.load_dataset_builder(name, data_dir=config, revision=PARQUET)


def _with_split(builder: Any, split: str | None, columns: Columns, title: str) -> Any:
    """Returns a builder of one split's files alone, where the files of each are known; else the given one."""
    files = builder.config.data_files if split and _reads(builder, "Parquet") else None
    named = {str(name): (str(name), paths) for name, paths in (files or {}).items()}
    own = by_split(named, columns.splits, title).get(split or "", [])
    return datasets.load_dataset_builder("parquet", data_files=dict(own)) if own else builder


def is_audiofolder(builder: Any) -> bool:
    return _reads(builder, "AudioFolder")


def _reads(builder: Any, kind: str) -> bool:
    """Returns whether a builder is of a kind of `datasets`', which it subclasses for the configurations of a card."""
    return any(each.__name__ == kind for each in type(builder).__mro__)


def open_local(source: Path, language: str, columns: Columns) -> Corpus:
    """Opens a parquet or arrow file, or a folder of them. Raises as `open_hub` does."""
    if (table := _table_of_names(source)) is not None:
        return replace(open_listing(table, language, columns), shape="a table")
    cache = str(cache_dir() / "datasets")  # of the arrow files that others are converted to
    with hub_errors(str(source), LOCAL):
        if source.is_file():
            loaded = datasets.load_dataset(source.suffix[1:], data_files=str(source), cache_dir=cache)
        elif is_saved(source):
            loaded = datasets.load_from_disk(str(source))
        else:
            loaded = datasets.load_dataset(str(source), cache_dir=cache)
    return _corpus(loaded, str(source), source.name, language, columns)


def _table_of_names(source: Path) -> Path | None:
    """Returns the one parquet file that names its recordings, as pandas writes a table; None where they are in it."""
    files = [source] if source.is_file() else sorted(source.glob("*.parquet"))
    if len(files) != 1 or files[0].suffix.lower() != FILES[0] or is_saved(source):
        return None
    try:
        types = pyarrow.parquet.read_schema(files[0]).types
    except (pyarrow.ArrowException, OSError):
        return None  # datasets says what is wrong with it
    inner = (pyarrow.types.is_nested, pyarrow.types.is_binary, pyarrow.types.is_large_binary)
    return None if any(is_inner(each) for each in types for is_inner in inner) else files[0]


def _corpus(loaded: Any, source: str, release: str, language: str, columns: Columns) -> Corpus:
    """Reads a `datasets.DatasetDict`, or a `Dataset`, which has no splits."""
    splits: dict[str, Any] = dict(loaded) if isinstance(loaded, dict) else {UNSPLIT: loaded}
    parts = by_split({name: (name, data) for name, data in splits.items()}, columns.splits, source)
    builder, clips = CorpusBuilder(source), _ColumnClips()
    for split, own in parts.items():
        for name, data in own:
            _add_split(builder, clips, split, name, data, columns)
    return builder.corpus(release, language, clips)


def _add_split(
    builder: CorpusBuilder, clips: "_ColumnClips", split: str, name: str, data: Any, columns: Columns
) -> None:
    """Adds a split of the data set. Of its audio only the names of the files that it came from are read."""
    sound, plain, found = resolve_columns(data, columns, f"{builder.of} ({name})")
    found = columns.with_language(found, plain, lambda column: [cell or "" for cell in data.with_format(None)[column]])
    alone = data.select_columns([sound]).cast_column(sound, datasets.Audio(decode=False))
    clip_names = _names(alone, name, sound)
    values = (row for batch in data.select_columns(plain).with_format(None).iter(ROWS) for row in _unbatched(batch))
    for at, row in enumerate(values):
        clip = clip_names[at] if clip_names[at] not in clips.places else _numbered(name, at, clip_names[at])
        cells = {column: as_cell(value) for column, value in row.items()} | {sound: clip}
        try:
            utterance = parse_utterance(columns.filled(cells, found), found)
        except ValueError as error:
            builder.leave_out(split, f"{name} row {at}", error)
            continue
        own = segment_name(clip, utterance)
        builder.add(split, own, utterance)
        clips.places[own] = (alone, at, sound)


def resolve_columns(data: Any, columns: Columns, table: str) -> tuple[str, list[str], dict[str, str]]:
    """Returns the audio column, those of plain values, and the name of the column of each field.

    Raises ConfigError where a required column is not there.
    """
    sound = _sound_column(data, columns, table)
    plain = [column for column, feature in data.features.items() if _is_plain(feature) and column != sound]
    # The times of a clip in a recording that is not here are ignored, unless the settings name their columns.
    found = replace(columns, named={**columns.named, "path": sound}).found_in([sound, *plain], table)
    return sound, plain, {its: own for its, own in found.items() if its not in PLACES or its in columns.named}


def _unbatched(batch: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))


def _is_plain(feature: Any) -> bool:
    """Returns whether a feature is text, a number or a class, and no list or structure."""
    return isinstance(feature, (datasets.Value, datasets.ClassLabel)) and "binary" not in feature.dtype


def _sound_column(data: Any, columns: Columns, table: str) -> str:
    """Returns the audio column: encoded bytes, and the name of the file that they came from.

    Raises ConfigError where there is none, or the one that the settings name holds something else.
    """
    holds = [column for column, feature in (data.features or {}).items() if _is_sound(feature)]
    guess = "audio" if "audio" in holds or not holds else holds[0]
    named = guess if columns.known else columns.named.get("path", guess)
    if named not in holds:
        raise ConfigError(
            f"data.columns: {named} of {table} holds no audio as datasets stores it, a file's bytes "
            f"(columns that do: {listed(holds)}; got: {listed(data.column_names or [])}); "
            "set 'data.columns={path: <its name>}'"
        )
    return named


def _is_sound(feature: Any) -> bool:
    undecoded = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    return undecoded or isinstance(feature, datasets.Audio) or feature == datasets.Value("binary")


def _names(sound: Any, split: str, column: str) -> list[str]:
    """Returns the clips' names: of their files where all differ, else the split and a number."""
    paths = pyarrow.compute.struct_field(sound.with_format("arrow")[:][column], "path").to_pylist()
    names = [PurePosixPath(path).name if path else "" for path in paths]
    if "" in names or len(set(names)) < len(names):
        return [_numbered(split, at, name) for at, name in enumerate(names)]
    return names


def _numbered(split: str, at: int, name: str) -> str:
    return f"{split}-{at:07}{PurePosixPath(name).suffix}"


@dataclass
class _ColumnClips:
    """Clips that are bytes in a column; `places` maps a name to the data set, the row and the column."""

    places: dict[str, tuple[Any, int, str]] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        lengths: dict[int, list[int | None]] = {}
        for name, (sound, at, column) in self.places.items():
            if id(sound) not in lengths:
                encoded = pyarrow.compute.struct_field(sound.with_format("arrow")[:][column], "bytes")
                lengths[id(sound)] = pyarrow.compute.binary_length(encoded).to_pylist()
            found[name] = lengths[id(sound)][at] or 0
        return found

    def fetch(self, names: Sequence[str]) -> dict[str, Path]:
        """Writes the clips to the cache, one at a time; a clip without bytes must be a file that is there."""
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
    """Returns the file of these bytes in the cache. Raises ExternalError where it cannot be written."""
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
    """Turns errors of the Hugging Face libraries into one line with the way out."""
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
            f"data.source: {title}: cannot reach the Hub ({first_line(error)}); check the network and run the "
            "same command again, or name a copy that is on this machine"
        ) from error
    except (DatasetsError, pyarrow.ArrowException, ValueError, RuntimeError, OSError, ImportError) as error:
        if isinstance(error, OSError) and (way_out := another_cache(error)):
            raise ExternalError(f"data.source: {title}: {first_line(error)}; {way_out}") from error
        raise ConfigError(
            f"data.source: {title}: datasets cannot read it ({first_line(error.__cause__ or error)}); see {page}"
        ) from error


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
