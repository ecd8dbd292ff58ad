"""One command with the stages as subcommands:  asr-lora train data.language=nl data.hours=1

`asr-lora <stage> ...` is `python -m asr_lora.<stage> ...`: the same process, exit statuses and records. The help texts
are made of the stages' docstrings and of the files in conf/; nothing heavy is imported for them.
"""

import ast
import re
import runpy
import shutil
import sys
import textwrap
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from asr_lora import __version__
from asr_lora.config import conf
from asr_lora.runtime import ranks
from asr_lora.runtime.console import log_error
from asr_lora.runtime.streams import set_up_streams

# By stage, in the order in which they are met: the overrides of an example, and its ten commonest settings.
OF_DATA = "data.source data.language data.hours model lora"
STAGES = {
    "demo": (
        "",
        "training.max_steps training.batch_size training.learning_rate lora lora.r data.language seed run_name "
        "runs_dir hardware",
    ),
    "doctor": (
        "data.source=/path/to/speech data.language=nl data.hours=1",
        f"{OF_DATA} model.precision training.max_steps training.max_hours hardware runs_dir",
    ),
    "baseline": (
        "data.source=/path/to/speech data.language=nl",
        "data.source data.language data.hours baseline.models baseline.clips eval.split eval.normalizer eval.out "
        "decoding.fallback hardware",
    ),
    "plan": (
        "data.language=nl data.hours=10 model=whisper_small",
        f"{OF_DATA} model.precision training.max_steps eval.limit plan.calibrate plan.clip_seconds",
    ),
    "prepare": (
        "data.source=/path/to/speech data.language=nl data.hours=1 prepare.audit=true",
        "data.source data.language data.hours data.columns data.splits data.train_split data.dev_clips prepare.audit "
        "prepare.shards data.seed",
    ),
    "train": (
        "data.source=/path/to/speech data.language=nl data.hours=1",
        f"{OF_DATA} hardware training.max_steps training.learning_rate training.max_hours run_name",
    ),
    "eval": (
        "eval.limit=null",
        "run_dir eval.limit eval.split eval.sets eval.models eval.normalizer eval.max_regression eval.strength "
        "decoding.fallback decoding.context",
    ),
    "report": (
        "report.runs='runs/nl-1h-*'",
        f"run_dir report.runs report.license runs_dir run_name {OF_DATA}",
    ),
    "soup": (
        "'adapters=[runs/a,runs/b]'",
        "adapters run_name runs_dir eval.limit eval.sets eval.strengths eval.contexts decoding.fallback hardware "
        "report.license",
    ),
    "search": (
        "data.language=nl data.hours=1 search.max_hours=8",
        f"{OF_DATA} search.trials search.max_hours search.warmup_share search.startup_trials training.max_steps",
    ),
    "transcribe": (
        "audio=talk.mp3 'transcribe.formats=[txt,srt]'",
        "audio run_dir transcribe.out transcribe.formats transcribe.language transcribe.max_segment_seconds "
        "transcribe.long_form transcribe.base_model adapters hardware.decode_batch",
    ),
    "label": (
        "audio=radio run_dir=runs/nl-1h",
        "audio run_dir label.source label.split label.out label.writer label.base label.agree label.max_cer "
        "label.max_wer",
    ),
    "self_train": (
        "audio=radio data.source=/path/to/speech data.language=nl data.hours=1",
        "audio label.source self_train.rounds self_train.weight label.max_cer label.max_wer run_dir data.source "
        "data.language data.hours",
    ),
    "correct": (
        "correct.source=runs/nl-1h/labels/radio",
        "correct.source correct.out correct.random_share correct.lease_minutes run_dir app.host app.port "
        "eval.normalizer eval.numbers seed",
    ),
    "export": (
        "'export.formats=[hf,ct2-int8]'",
        "run_dir export.formats export.clips export.wer_tolerance export.out export.push export.push_format "
        "export.private export.dry_run eval.strength",
    ),
    "record": (
        "record.prompts=sentences.txt record.out=mine data.language=nl",
        "record.prompts record.out data.language data.columns model model.checkpoint app.host app.port "
        "app.keep_minutes app.max_megabytes",
    ),
    "app": (
        "run_dir=runs/mine app.port=8080",
        "run_dir adapters app.host app.port app.max_minutes app.max_megabytes app.keep_minutes app.clips "
        "transcribe.language hardware",
    ),
}
USAGE = "asr-lora STAGE [setting=value ...]"
MORE = """\
asr-lora STAGE --help     what it does, often used settings, an example
asr-lora STAGE --cfg job  all settings; docs/settings.md explains them
asr-lora train -m lora.r=4,8  several values: a run each
asr-lora --version        eval "$(asr-lora -sc install=bash)" completes words"""


def main() -> None:
    """Runs the stage that the command line names, or prints help or the version."""
    first, *rest = sys.argv[1:] or ["--help"]
    if first in ("--help", "-h"):
        sys.stdout.write(overview())
    elif first == "--version":
        sys.stdout.write(f"asr-lora {__version__}\n")
    elif first in ("-sc", "--shell-completion"):
        from asr_lora.config.completion import complete  # noqa: PLC0415 (brings Hydra)

        complete(STAGES)
    elif first not in STAGES:
        near = get_close_matches(first, STAGES, n=1)
        way_out = f"did you mean {near[0]}? " if near else ""
        sys.stderr.write(f"error: {ascii(first)[1:-1]}: no such stage; {way_out}asr-lora --help lists all\n")
        raise SystemExit(2)
    else:
        sys.argv[1:] = rest
        try:
            answer_first(first, rest)
            runpy.run_module(f"asr_lora.{first}", run_name="__main__", alter_sys=True)
        except KeyboardInterrupt:  # while libraries are imported; a stage that has started answers it itself
            log_error("interrupted; nothing was started")
            raise SystemExit(130) from None


def answer_module() -> None:
    """Answers `python -m asr_lora.<stage> ...` as `asr-lora <stage> ...`; called while the package is imported."""
    words = sys.argv[1:]  # argv[0] is "-m" by now, and the module's name is before the words
    package, _, stage = sys.orig_argv[-1 - len(words)].removeprefix("-m").partition(".")
    if package == "asr_lora" and stage in STAGES:
        answer_first(stage, words)


def answer_first(stage: str, words: Sequence[str]) -> None:
    """Answers --help, invalid settings and all that is missing before the stage and its libraries are imported.

    What only Hydra's own start can resolve is left to the stage, which checks all again; doctor first checks the
    versions of libraries.
    """
    if {"--help", "-h"} & set(words):
        sys.stdout.write(stage_help(stage))
        raise SystemExit(0)
    if stage == "doctor" or ranks.world_size() > 1:
        return
    if any(word.startswith(("-", "hydra", "+hydra", "~hydra")) or "${" in word for word in words):
        return
    from asr_lora.doctor.requirements import unmet  # noqa: PLC0415 (brings Hydra)

    lines, status = unmet(stage, words)
    if lines:
        set_up_streams()
        for line in lines:
            log_error(line)
        raise SystemExit(status)


def docstring(stage: str) -> str:
    """Returns the docstring of a stage's module, read without importing it."""
    package = Path(__file__).parent
    file = package / f"{stage}.py"
    file = file if file.is_file() else package / stage / "__main__.py"
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def overview() -> str:
    """Returns the help of the command: a line a stage, 80 columns by 24 lines at most."""
    lines = [f"  {stage:<12}{docstring(stage).partition(':  ')[0]}" for stage in STAGES]
    return "\n".join([f"usage: {USAGE}", "", *lines, "", MORE]) + "\n"


def stage_help(stage: str) -> str:
    """Returns the help of a stage: its docstring, its commonest settings with defaults and comments, an example."""
    example, names = STAGES[stage]
    title, _, _ = docstring(stage).partition(":  ")
    _, _, about = docstring(stage).partition("\n\n")
    about = re.sub(r"python -m asr_lora\.(\w+)", r"asr-lora \1", about)
    width = min(shutil.get_terminal_size().columns, 100)
    known = conf.settings("demo" if stage == "demo" else None)
    lines = [f"usage: asr-lora {stage} [setting=value ...]", "", f"{title}.", ""]
    for paragraph in re.split(r"\n(?=[A-Z][\w ]*:  )|(?<=\S)\n(?=Writes )", about):
        lines += textwrap.wrap(paragraph, width, break_long_words=False, break_on_hyphens=False)
    lines += ["", "Often used settings, with their defaults:"]
    for name in names.split():
        value, note = known[name]
        lines.append(f"  {name}={value.replace(', ', ',')}")
        lines += textwrap.wrap(note, width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
    lines += ["", "Example:", f"  asr-lora {stage} {example}".rstrip(), ""]
    lines += [f"All settings: asr-lora {stage} --cfg job; each is explained in docs/settings.md."]
    return "\n".join(lines) + "\n"
