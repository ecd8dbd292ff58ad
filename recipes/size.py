"""Times preparing a large release:  python recipes/size.py ARCHIVE [--clips 50000] [--work runs/size]

Makes a release of --clips clips in Common Voice's layout by linking those of ARCHIVE (a small one of the same layout),
60 a speaker, and times `prepare` on it as separate processes, from outside: all of it with an empty cache, again, under
another name, and an hour of it. For comparison the tutorials' method: `datasets.map` to 30 s features of 1,000 clips.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from arms import Facts, timed
from rich.console import Console
from rich.table import Table

from asr_lora.config.compose import quote_override
from asr_lora.corpus import SPLITS, open_corpus
from asr_lora.demo.assets import whisper_base_from_wheels
from asr_lora.runtime.console import log, quiet_libraries
from asr_lora.runtime.errors import UserError
from asr_lora.runtime.files import write_json

SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}
CLIPS_A_SPEAKER = 60
MAPPED = 1_000  # clips whose 30 s features are made
FEATURES = """
import sys
from datasets import Dataset, disable_progress_bars
from transformers import WhisperFeatureExtractor
from pathlib import Path
from asr_lora.speech import audio
disable_progress_bars()
extractor = WhisperFeatureExtractor()
def features(row):
    found = extractor(audio.load(Path(row["path"])), sampling_rate=audio.SAMPLE_RATE)
    return {"input_features": found.input_features[0]}
clips = [{"path": path} for path in Path(sys.argv[1]).read_text().split("\\n")]
Dataset.from_list(clips).map(features, remove_columns=["path"], cache_file_name=sys.argv[2])
"""


def linked(archive: Path, language: str, clips: int, folder: Path) -> Path:
    """Makes a release whose clips are hard links to those of the archive, repeated.

    Its sentences are numbers.
    """
    corpus = open_corpus(archive, language)
    files = sorted(corpus.fetch(list(corpus.sizes)).values())
    home = folder / "cv-corpus-linked-1.0" / language
    (home / "clips").mkdir(parents=True)
    at = 0
    for split in SPLITS:
        lines = ["client_id\tpath\tsentence"]
        for _ in range(round(clips * SHARES[split] / CLIPS_A_SPEAKER) * CLIPS_A_SPEAKER):
            name = f"common_voice_{language}_{at:08}.mp3"
            os.link(files[at % len(files)], home / "clips" / name)
            lines.append(f"speaker-{at // CLIPS_A_SPEAKER}\t{name}\t{at}")
            at += 1
        (home / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return home


def measured(asked: argparse.Namespace) -> dict[str, Facts]:
    work: Path = asked.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    release = linked(asked.archive, asked.language, asked.clips, work)
    overrides = [
        f"data.source={quote_override(str(release))}", f"data.language={asked.language}", "model=whisper_base",
        f"model.checkpoint={quote_override(str(whisper_base_from_wheels()))}",
        f"runs_dir={quote_override(str(work / 'runs'))}",
    ]  # fmt: skip
    everything = ["data.hours=null", f"data.dev_clips={asked.clips}", "eval.limit=null"]
    prepare, found = [sys.executable, "-m", "asr_lora.prepare", *overrides], {}
    for name, run_name, more in (
        ("all of it, empty cache", "all", everything),
        ("the same again", "all", everything),
        ("the same under another name", "other", everything),
        ("an hour of it", "hour", ["data.hours=1"]),
    ):
        found[name] = timed(name, [*prepare, *more, f"run_name={run_name}"], work)
        # Its manifest, and the cached scans of every clip of the release, for later runs.
        found[name]["left"] = bytes_of(work / "runs" / run_name) + bytes_of(work / "cache")
    listing = work / "clips.txt"
    listing.write_text("\n".join(str(clip) for clip in sorted((release / "clips").iterdir())[:MAPPED]))
    name, arrow = f"datasets.map, {MAPPED:,} clips", work / "features" / "train.arrow"
    arrow.parent.mkdir()
    found[name] = timed(name, [sys.executable, "-c", FEATURES, str(listing), str(arrow)], work)
    found[name]["left"] = bytes_of(arrow.parent)
    write_json(work / "size.json", found)
    return found


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def show(found: dict[str, Facts], clips: int) -> None:
    table = Table(title=f"{clips:,} clips")
    for heading in ("", "seconds", "peak memory (GB)", "left on the disk (MB)"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, facts in found.items():
        seconds, memory = f"{facts['command_seconds']:.1f}", f"{facts['resident_bytes'] / 1e9:.2f}"
        table.add_row(name, seconds, memory, f"{facts['left'] / 1e6:,.1f}")
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--language", default="es", help="of the archive (%(default)s)")
    parser.add_argument("--clips", type=int, default=50_000, help="(%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/size"), help="emptied first (%(default)s)")
    asked = parser.parse_args(arguments)
    quiet_libraries()
    try:
        show(measured(asked), asked.clips)
    except (UserError, OSError) as error:
        log(f"error: {error}")
        raise SystemExit(1) from error
    log(f"all files: {asked.work}")


if __name__ == "__main__":
    main()
