"""Compares the tutorial recipe with ours:  python recipes/benchmark.py [--source ARCHIVE] [--steps 120]   (make bench)

Same corpus, checkpoint, training and test clips, batch size, steps, learning rate and seed. Every stage of an arm is a
separate process, timed from outside. Results of an arm are kept in the work folder and not measured again; an
interrupted arm starts again. With an NVIDIA GPU there is a third arm, `large`: our training of a random large-v2 within
15 GB, padded and dynamic, in 8 and 16 bits.
"""

import argparse
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import time_to_quality
import torch
from arms import ARMS, LARGE_STEPS, T4_GIGABYTES, Facts, ours_kept, tutorial_kept
from rich.console import Console
from rich.table import Table

from asr_lora.config.compose import Config, load, quote_override
from asr_lora.demo.assets import RELEASE, whisper_base_from_wheels, write_demo_corpus
from asr_lora.evaluation import metrics
from asr_lora.model.hardware import resolve_hardware
from asr_lora.model.pretrained import language_token, resolve
from asr_lora.prepare import prepare
from asr_lora.runs import folder as run
from asr_lora.runtime.console import log, quiet_libraries
from asr_lora.runtime.errors import ConfigError, UserError
from asr_lora.runtime.files import cache_dir, read_json, read_jsonl, write_json
from asr_lora.speech.normalizer import Normalizer


def benchmark(asked: argparse.Namespace) -> Facts:
    """Runs the arms that were not run yet; writes, prints and returns results.json. Raises UserError."""
    work: Path = asked.work.expanduser().absolute()
    overrides = _overrides(asked)
    _check_same_settings(work, overrides)
    config = load(
        [*overrides, f"run_dir={quote_override(str(work / 'prepared'))}", f"runs_dir={quote_override(str(work))}"]
    )
    hardware = resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size)
    prepare(config)
    write_json(work / "settings.json", {"words": overrides})
    results: Facts = {"words": overrides, "machine": hardware.name, "versions": run.versions()}
    for arm in asked.arms:
        kept = work / f"{arm}.json"
        if kept.is_file():
            log(f"{arm}: measured before, {kept}")
        else:
            shutil.rmtree(work / arm, ignore_errors=True)
            (work / arm).mkdir()
            write_json(kept, ARMS[arm](config, overrides, work / arm))
        results[arm] = read_json(kept)
    for other in {"tutorial", "padded"} & set(results) if "ours" in results else ():
        results[f"against_{other}"] = compared = _compared(config, results[other], results["ours"])
        _show(other, results[other], results["ours"], compared)
    if {"tutorial", "ours"} <= set(results):
        results["time_to_quality"] = _time_to_quality(config, work)
    if "large" in results:
        _show_large(results["large"])
    write_json(work / "results.json", results)
    log(f"all figures: {work / 'results.json'}")
    return results


# ---- results ----


def _compared(config: Config, theirs: Facts, own: Facts) -> Facts:
    """Scores both arms in the same way, and ours minus theirs on the same clips, short and at 30 s."""
    rows = read_jsonl(run.manifest(config.run, "test"))[: config.eval.limit]
    references, speakers = [row["text"] for row in rows], [row["speaker"] for row in rows]
    rule = Normalizer(config.eval.normalizer, language_token(config.model, config.data.language)), config.seed
    decoded = {"theirs": theirs["hypotheses"], "ours": own["hypotheses"], "ours_full": own["hypotheses_full"]}
    return {
        "scores": {arm: metrics.score(references, texts, speakers, *rule) for arm, texts in decoded.items()},
        "delta": {
            arm: metrics.paired_delta(references, decoded["theirs"], texts, speakers, *rule)
            for arm, texts in decoded.items()
            if arm != "theirs"
        },
    }


def _time_to_quality(config: Config, work: Path) -> Facts:
    """Scores the adapters that both arms kept on the way, and shows how much sooner ours is as good."""
    full = replace(config.decoding, context="full")
    theirs = time_to_quality.score(config, tutorial_kept(work / "tutorial"), full)
    own = time_to_quality.score(config, ours_kept(work / "ours"), full)
    time_to_quality.show("tutorial", theirs, own)
    return {"tutorial": theirs, "ours": own, "times_sooner": time_to_quality.times_sooner(theirs, own)}


def _show(name: str, theirs: Facts, own: Facts, compared: Facts) -> None:
    """Prints the table to standard output."""
    table = Table(title=f"{name} and ours")
    for heading in ("", name, "ours", "times better"):
        table.add_column(heading, justify="right" if heading else "left")
    for title, part, figure, digits, unit in (
        ("training, whole loop (clips/s)", "train", "clips_per_second", 2, 1),
        ("training, median step (s)", "train", "seconds_per_step", 3, 1),
        ("training, whole command (s)", "train", "command_seconds", 1, 1),
        ("training, peak memory (GB)", "train", "peak_memory_bytes", 2, 1e9),
        ("training, peak memory of the process (GB)", "train", "resident_bytes", 2, 1e9),
        ("evaluation, fine-tuned pass (s)", "evaluate", "seconds", 1, 1),
        ("evaluation, command without the base model (s)", "evaluate", "tuned_command_seconds", 1, 1),
    ):
        before, after = theirs[part][figure] / unit, own[part][figure] / unit
        better = after / before if figure == "clips_per_second" else before / after
        table.add_row(title, f"{before:,.{digits}f}", f"{after:,.{digits}f}", f"{better:.2f}")
    before, after = theirs["bytes_written"] / 1e6, own["bytes_written"] / 1e6
    table.add_row("written to disk (MB)", f"{before:,.1f}", f"{after:,.1f}", f"{before / after:.2f}")
    scores = compared["scores"]
    for arm, title in (("ours", "WER"), ("ours_full", "WER, ours decoded at 30 s")):
        points = _points(compared["delta"][arm])
        table.add_row(title, _percent(scores["theirs"]["wer"]), _percent(scores[arm]["wer"]), points)
        insertions = str(scores["theirs"]["insertions"]), str(scores[arm]["insertions"])
        table.add_row(f"insertions, of {scores[arm]['words']} words", *insertions, "")
    table.caption = "WER: ours minus the other's in points, with the paired 95 % interval"
    Console().print(table)


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"


def _points(delta: Facts) -> str:
    if delta["wer"] is None:
        return "-"
    low, high = delta["ci95"]
    return f"{delta['wer'] * 100:+.1f} ({low * 100:+.1f} to {high * 100:+.1f})"


def _show_large(cells: Facts) -> None:
    table = Table(title=f"large-v2 with random weights within {T4_GIGABYTES} GB, {LARGE_STEPS} steps")
    for heading in ("", "median step (s)", "clips/s", "peak memory (GB)"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, cell in cells.items():
        if cell is None:
            table.add_row(name, "failed", "-", "-")
            continue
        memory = f"{cell['peak_memory_bytes'] / 1e9:.2f}"
        table.add_row(name, f"{cell['seconds_per_step']:.3f}", f"{cell['clips_per_second']:.2f}", memory)
    Console().print(table)


# ---- command line ----


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark"), help="folder of all files (%(default)s)")
    parser.add_argument("--source", type=Path, help="archive or folder in Common Voice's layout (the demo's Dutch)")
    parser.add_argument("--language", default="nl", help="locale of the corpus (%(default)s)")
    parser.add_argument("--checkpoint", help="Hub id or folder (whisper-base from the package registry)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16", "int8"))
    parser.add_argument("--steps", type=int, default=120, help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="clips a step (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    arms = "of tutorial, padded (ours at 30 s), ours and large (tutorial,ours; large too with an NVIDIA GPU)"
    parser.add_argument("--arms", type=_arms, default=_arms(), help=arms)
    parser.add_argument(
        "overrides", nargs="*", help="Hydra overrides; the tutorial uses those that it has settings for"
    )
    return parser.parse_intermixed_args(arguments)


def _arms(text: str | None = None) -> list[str]:
    if text is None:
        return ["tutorial", "ours"] + ["large"] * torch.cuda.is_available()
    if unknown := set(text.split(",")) - set(ARMS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of {', '.join(ARMS)}")
    return text.split(",")


def _overrides(asked: argparse.Namespace) -> list[str]:
    """Returns the settings of both arms as Hydra overrides."""
    source = _demo_corpus() if asked.source is None else asked.source.expanduser().absolute()
    checkpoint = resolve(asked.checkpoint or str(whisper_base_from_wheels()))[0]
    return [
        f"data.source={quote_override(str(source))}",
        f"data.language={quote_override(asked.language)}",
        "data.hours=null",
        f"model.checkpoint={quote_override(checkpoint)}",
        f"model.name={re.sub(r'[^a-zA-Z0-9_.]+', '_', Path(checkpoint).name)}",
        f"model.precision={asked.precision}",
        f"training.max_steps={asked.steps}",
        f"training.batch_size={asked.batch}",
        f"seed={asked.seed}",
        *asked.overrides,
    ]


def _demo_corpus() -> Path:
    archive = cache_dir() / "demo" / f"{RELEASE}-nl.tar.gz"
    if not archive.is_file():
        write_demo_corpus(archive)
    return archive


def _check_same_settings(work: Path, overrides: Sequence[str]) -> None:
    """Raises ConfigError when the work folder was measured with other settings."""
    note = work / "settings.json"
    if note.is_file() and (changed := set(read_json(note)["words"]) ^ set(overrides)):
        raise ConfigError(
            f"--work: {work} was measured with other settings ({', '.join(sorted(changed))}); name another folder, or "
            "remove that one"
        )


def main() -> None:
    quiet_libraries()
    try:
        benchmark(parsed())
    except KeyboardInterrupt:
        log("interrupted; complete arms are kept, and the same command goes on with the next")
        raise SystemExit(130) from None
    except (UserError, OSError) as error:
        log(f"error: {' '.join(str(error).splitlines())}")
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from error


if __name__ == "__main__":
    main()
