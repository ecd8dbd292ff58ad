"""Trains an adapter, preparing before and evaluating after:  python -m asr_lora.train data.language=nl data.hours=1

A sweep:  python -m asr_lora.train -m lora.r=4,8,16,32
Several GPUs:  torchrun --nproc-per-node=4 -m asr_lora.train data.language=nl data.hours=1
Leaves train/{config.yaml,adapter/,metrics.json,log.jsonl,tensorboard/} in the run folder, of lora=bitfit and lora=full
model/ in place of adapter/. The same command goes on from the last of train/checkpoints/ after an interruption, and
returns at once when the run is complete.
"""

import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from asr_lora.config.compose import Config
from asr_lora.corpus import SPLITS
from asr_lora.data.manifest import Clip, read_manifest
from asr_lora.decoding.generate import decoding
from asr_lora.eval import evaluate
from asr_lora.evaluation.eval_sets import refuse_unclear
from asr_lora.model import adapter_folder as stored
from asr_lora.model.hardware import Hardware, device_of, free_memory, keeping_memory, look_together, peak_memory_bytes
from asr_lora.model.memory import is_out_of_memory
from asr_lora.model.pretrained import identity, language_token
from asr_lora.planning.devices import predict
from asr_lora.prepare import prepare
from asr_lora.reporting import comparison
from asr_lora.runs import folder as run
from asr_lora.runs.launch import launch, words_of_job
from asr_lora.runtime import distributed as ranks
from asr_lora.runtime.console import progress, say
from asr_lora.runtime.errors import ChoiceError, WorldError, reason
from asr_lora.runtime.files import read_json, whole_folder, write_json
from asr_lora.training import checkpointing as checkpoints
from asr_lora.training import course, guard
from asr_lora.training.builder import build
from asr_lora.training.callbacks import is_judged
from asr_lora.training.guard import CollapsedError, Retreat
from asr_lora.training.trainer import WhisperTrainer

ECHO = 1.0  # seconds within which a signal is the first one's copy: `timeout` signals its child, and then the group


def train(config: Config, command: Sequence[str] | None = None, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """The main command: manifest, adapter, and (unless eval.after=false) WER before and after.

    `command` is what was typed, where it was not this module; `callbacks` watch the training, and may end it.
    """
    began = time.monotonic()
    typed = command or ["python", "-m", "asr_lora.train", *words_of_job()]
    config, base = _settled(config)
    hardware = look_together(config)
    steps = f"{config.max_steps} steps of {config.training.batch_size} clips"
    about = f"{config.run_name}: {steps} on {hardware.name}, {base}"
    # What these refuse should not wait for the first dev decoding, or for the end.
    decoding(config, hardware, language_token(config.model, config.data.language), short=False)
    if config.eval.after:
        refuse_unclear(config)
    with run.held(config.run):
        if ranks.first_does(lambda: _is_trained(config, typed, about)):
            say(f"already trained: {run.tuned(config.run)}")
        else:
            config = ranks.first_does(partial(run.pinned, config))
            _train(config, hardware, callbacks, began)
        ranks.first_does(lambda: run.note_last(config.run, Path(config.runs_dir)))
        if config.eval.after:
            evaluate(config, typed)
        ranks.first_does(lambda: _tell_unfinished(config, began))
    free_memory()  # or the next job of a sweep would begin with what is left of this one


def _settled(config: Config) -> tuple[Config, str]:
    """`run.settled` as the first process has it, so that all processes train one precision."""
    device = device_of(config)
    ranks.join(device)
    return ranks.first_does(lambda: run.settled(config, device.type))


def _is_trained(config: Config, typed: Sequence[str], about: str) -> bool:
    """Prepares and records, after a line `about` the run; whether training has been done already, to its end."""
    run.recognise(config)
    if not run.is_trained(config.run):
        say(about)
    prepare(config)
    run.record(config, typed, base=identity(config.model.checkpoint))
    if not run.is_trained(config.run):
        return False
    _clear_away(config)  # where a kill came between
    return True


def _tell_unfinished(config: Config, began: float) -> None:
    if not run.is_trained(config.run):
        steps, hours = read_json(run.train_metrics(config.run))["steps"], (time.monotonic() - began) / 3600
        say(
            f"training.max_hours: {config.training.max_hours:g} h asked, {hours:.2f} h taken; training is at step "
            f"{steps} of {config.max_steps}, and the same command goes on from there"
        )


def _train(config: Config, hardware: Hardware, callbacks: Sequence[TrainerCallback], began: float) -> None:
    started = time.perf_counter()
    run.refuse_unshared(config.run)
    free_memory()
    manifest = {split: read_manifest(run.manifest(config.run, split)) for split in SPLITS}
    lengths = {split: [row["duration"] for row in manifest[split]] for split in SPLITS}
    predicted = None if config.data.streaming else ranks.first_does(lambda: predict(config, hardware, lengths))
    if predicted:
        hours = predicted["train_seconds"] / 3600, predicted["dev_seconds"] / 3600
        say(f"predicted from {predicted['basis']}: {hours[0]:.2f} h of training, {hours[1]:.2f} h of dev decoding")
    if config.data.streaming:
        say(
            f"data.streaming: clips are heard as they come, shuffled among {config.data.shuffle_buffer:,} rows; a "
            "run that is resumed begins the stream anew in another order, so it is not exact"
        )
    while (trainer := _trained(config, hardware, manifest["train"], callbacks, began)) is None:
        free_memory()  # the guard has taken training back, and it begins anew from there

    peak = max(ranks.gathered(peak_memory_bytes(hardware.device)))  # all have left their last checkpoint, too
    counted = {"predicted": predicted, "peak_memory_bytes": peak}
    ranks.first_does(lambda: _finish(config, hardware, manifest["train"], trainer, counted, started))


def _trained(
    config: Config, hardware: Hardware, rows: Sequence[Clip], callbacks: Sequence[TrainerCallback], began: float
) -> WhisperTrainer | None:
    """The trainer at its end; None where the guard has taken training back."""
    folder = run.checkpoints(config.run)
    retreat = ranks.first_does(lambda: guard.resumed(run.retreat(config.run), folder))
    with progress("training", total=config.max_steps) as bar:
        trainer = build(config, hardware, rows, bar, began=began, rate=retreat.rate)
        for callback in callbacks:
            trainer.add_callback(callback)
        trainable, share = course.trainable(trainer.model)
        say(f"{trainable:,} parameters train ({share:.1%})")
        checkpoint = ranks.first_does(lambda: checkpoints.last(folder))
        if checkpoint:
            say(f"resuming from {checkpoint}{_inexact(config, hardware, checkpoint)}")
        try:
            with _stopping_cleanly(trainer), keeping_memory():
                if checkpoint is None and is_judged(config, len(trainer.dev.clips)):
                    trainer.dev.hear_untouched(trainer.model)
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except CollapsedError as collapse:
            ended = ranks.first_does(partial(_retreat, config, trainer, retreat, collapse))
            return trainer if ended else None
    return trainer


def _retreat(config: Config, trainer: WhisperTrainer, before: Retreat, collapse: CollapsedError) -> bool:
    """Takes training back to the best dev decoding at a lower rate, once; whether training ends here instead.

    Raises ChoiceError when it ends and nothing was learnt that is not worse than the untouched model.
    """
    journal, file = trainer.journal, run.retreat(config.run)
    best = journal.best["step"] if journal.dev and "trouble" not in journal.best else None
    once_before = before.step is not None
    if collapse.action == "back" and not once_before:
        step, rate = best or 0, config.guard.lower
        lost = [event for event in trainer.guard.events if event["step"] > step]
        guard.note(file, Retreat(rate, step, pending=True, events=[*before.events, *lost]))
        say(f"guard: back to step {step}, with {rate:g} of the learning rate from there on")
        return False
    trainer.journal.ended_by = collapse.reason
    if best is not None:
        say(f"guard: training ends here; the best adapter, of step {best}, is kept")
        return True
    again = f" and, with {before.rate:g} of the learning rate, once more" if once_before else ""
    over = (
        f"training.learning_rate: must be lower than {config.training.learning_rate:g} here: training collapsed{again} "
        f"(step {collapse.step}: {collapse.reason}) before it had learnt anything; take "
        f"{'a tenth' if once_before else 'a third'} of it, say"
    )
    guard.note(file, replace(before, over=over))
    write_json(run.train_metrics(config.run), {"finished": False, **course.of(config, trainer)})
    raise ChoiceError(over)


def _inexact(config: Config, hardware: Hardware, checkpoint: Path) -> str:
    """What keeps a resumed run from being the same to the last bit, in words; nothing where it is."""
    if config.data.streaming:
        return ", not exactly: the stream begins anew, in another order"
    before = len(list(checkpoint.glob("rng_state*.pth")))  # a process each
    if before == hardware.processes:
        return ""
    return (
        f" (processes: {hardware.processes}, before {before}): the same clips in the same order, but dropout is drawn "
        "anew and sums round otherwise, so not to the last bit"
    )


def _finish(
    config: Config, hardware: Hardware, rows: Sequence[Clip], trainer: WhisperTrainer, counted: Mapping[str, Any],
    started: float,
) -> None:  # fmt: skip
    """Leaves what was learnt and how that went, `counted` beside it, and clears away what led there.

    Where time alone has ended it, what led there is what the same command goes on from.
    """
    learnt = run.whole_model(config.run) if config.lora.whole else run.adapter(config.run)
    with whole_folder(learnt) as partial:
        shutil.copytree(trainer.best, partial, dirs_exist_ok=True)
    journal, written = trainer.journal, stored.weights_file(learnt).stat().st_size
    facts = {
        "finished": not journal.out_of_time,
        **counted,
        "adapter_bytes": written,
        **course.of(config, trainer),
        **course.heard(config, hardware, rows, trainer.state.global_step),
        **course.setting(config, hardware),
        "total_seconds": journal.earlier_seconds + time.perf_counter() - started,
    }
    write_json(run.train_metrics(config.run), facts)
    if facts["finished"]:
        _clear_away(config)
    say(
        f"{stored.described(learnt)}: {learnt} ({written / 1e6:.1f} MB), best at step {journal.best['step']}, dev WER "
        f"{journal.best['wer']:.1%} ({facts['dev_normalizer']}), {journal.train_seconds:.0f} s of training"
    )


def _clear_away(config: Config) -> None:
    """What training has no more use for once it has ended."""
    for used_up in (run.best_so_far(config.run), run.checkpoints(config.run)):
        shutil.rmtree(used_up, ignore_errors=True)


@contextmanager
def _stopping_cleanly(trainer: WhisperTrainer) -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the step, saves a checkpoint and says so; one that comes later than ECHO stops at once.

    Raised in the middle of a step it might also be lost: libsndfile's callbacks swallow exceptions. Of several
    processes each is signalled by what started them, which waits half a minute; they end the same step.
    """

    first: float | None = None

    def stop(number: int, _: object) -> None:
        nonlocal first
        trainer.journal.stop_asked = True
        if ranks.count() > 1:
            return
        if first is None:
            first = time.monotonic()
            say("stopping at the end of this step, with a checkpoint; Ctrl-C again stops at once")
        elif time.monotonic() > first + ECHO:
            for each, before in usual.items():
                signal.signal(each, before)
            signal.raise_signal(number)

    usual = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
        if trainer.journal.stop_asked and trainer.state.global_step < trainer.state.max_steps:
            say(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}: {trainer.args.output_dir}")
            raise KeyboardInterrupt
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise WorldError(
                f"hardware: not even one clip at a time fits in memory ({reason(error)}); take "
                "hardware.gradient_checkpointing=true, model.precision=int8 or a smaller model"
            ) from error
        if ranks.lost_another(error):
            usual.clear()  # what started this process is about to end it: not before it has said why
        raise
    finally:
        if first is not None:  # a copy of the signal may still be on its way
            time.sleep(max(0.0, first + ECHO - time.monotonic()))
        for number, before in usual.items():
            signal.signal(number, before)


if __name__ == "__main__":
    launch(train, after_sweep=comparison.after_sweep, several=True)
