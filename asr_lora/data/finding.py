"""Where the speech of a run and the recordings of `audio=` lie, without opening them.

Imports nothing heavy, so that a missing path is answered at once.
"""

import glob
import re
from pathlib import Path

from asr_lora.config.known_sets import check_known
from asr_lora.config.schema import FETCHED, DataConfig
from asr_lora.runtime.commands import to_run
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, check
from asr_lora.runtime.files import existing

ENDS = ("", ".tar.gz", " (?).tar.gz", ".tgz", ".tar")  # of a release's name; " (1)" of a second download


def find_source(data: DataConfig) -> str:
    """Returns `data.source`, else the newest Common Voice release of the language in `data.search_dir`.

    Raises ConfigError where there is none.
    """
    if data.source is not None:
        return data.source
    newest = newest_release(data)
    log(f"data.source: {newest}")
    return str(newest)


def check_sources(data: DataConfig) -> None:
    """Raises ConfigError where a source is a path that leads nowhere, or none is set and no release is found.

    Also for a known data set of the Hub that has no such configuration or language.
    """
    if not data.sources and data.source is None:
        newest_release(data)
    named = [(each.path, each.language) for each in data.sources] or [(data.source or "", None)]
    for source, language in named:
        check_known(source, language or data.language)
        if source and not source.startswith(FETCHED):
            existing(Path(source))


def newest_release(data: DataConfig) -> Path:
    """Returns the newest Common Voice release of the language in `data.search_dir`; raises ConfigError for none."""
    place, code = Path(data.search_dir).expanduser(), data.language
    # Neither a longer code (tr, trw) nor a browser's unfinished download (nl.tar.gz.part).
    found = [path for end in ENDS for path in place.glob(f"cv-corpus-*-{code}{end}")]
    found += [path.parent for path in place.glob(f"cv-corpus-*/{code}")]
    if not found:
        raise ConfigError(
            f"data.source: no Common Voice release for {code} ({place.absolute()}/cv-corpus-*-{code}*); get one from "
            "Mozilla Data Collective (mozilladatacollective.com, free account), put it there or name it "
            f"({to_run('train', 'data.source=/path/to/archive')}), or try without any: {to_run('demo')}"
        )
    return max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])


def check_prompts(prompts: str | None) -> Path:
    """Returns the file of `record.prompts`. Raises ConfigError where none is named, or it is not there."""
    if prompts is None:
        raise ConfigError(f"record.prompts: names no file; {to_run('record', 'record.prompts=sentences.txt')}")
    return existing(Path(prompts), "record.prompts")


def named_recordings(audio: str | None, stage: str = "transcribe") -> list[Path]:
    """Returns the folder that `audio=` names, or the files that it names or matches, sorted.

    Raises ConfigError if there are none, with what to type for `stage`.
    """
    if not audio:
        raise ConfigError(
            f"audio: names no recording; {to_run(stage, 'audio=/path/to/file')}, or a folder, a pattern"
            f"{', or -' if stage == 'transcribe' else ''}"
        )
    root = Path(audio).expanduser()
    if root.is_dir() or root.is_file():
        return [root]
    matched = glob.glob(str(root), recursive=True)  # noqa: PTH207 (Path.glob takes no pattern that begins at the root)
    found = sorted(file for file in map(Path, matched) if file.is_file())
    if not found:
        raise ConfigError(f"audio: no file, folder or pattern of files {audio}; name one that exists")
    return found


def check_labeled(source: str | None, audio: str | None) -> None:
    """Raises ConfigError unless one of `label.source` and `audio=` is named, and is there."""
    check("label.source", source, "null with audio=", source is None or not audio)
    check("audio", audio, "a file, a folder or a pattern for label", audio != "-")
    if source is None:
        named_recordings(audio, "label")
    elif not source.startswith(FETCHED):
        existing(Path(source), "label.source")
