"""Trains an adapter, preparing before and evaluating after:  python -m asr_lora.train data.language=nl data.hours=1

A sweep:  python -m asr_lora.train -m lora.r=4,8,16,32
Several GPUs:  torchrun --nproc-per-node=4 -m asr_lora.train data.language=nl data.hours=1
Leaves train/{config.yaml,adapter/,metrics.json,log.jsonl,tensorboard/} in the run folder, of lora=bitfit and lora=full
model/ in place of adapter/. The same command goes on from the last of train/checkpoints/ after an interruption, and
returns at once when the run is complete.
"""

import json
import shutil
import signal
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import Seq2SeqTrainingArguments, TrainerCallback, WhisperProcessor
from transformers.integrations import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME

from asr_lora import comparison, decode, metrics, ranks, run
from asr_lora.batches import Order
from asr_lora.checkpoint import load_config, load_processor
from asr_lora.config import Config
from asr_lora.corpus import SPLITS
from asr_lora.errors import ChoiceError, WorldError
from asr_lora.eval import evaluate
from asr_lora.features import prompted, token_ids
from asr_lora.files import read_json, read_jsonl, whole_folder, write_json
from asr_lora.hardware import Hardware, free_memory, keeping_memory, look_together, peak_memory_bytes
from asr_lora.hearing import decoding
from asr_lora.journal import Journal, eval_steps
from asr_lora.launch import launch, words_of_job
from asr_lora.loader import Making, Steps
from asr_lora.manifest import Clip, as_row
from asr_lora.model import adapter, whisper
from asr_lora.model.methods import method
from asr_lora.plan import predict
from asr_lora.prepare import label_rule, language, prepare
from asr_lora.progress import Bar, progress, say
from asr_lora.sets import refuse_unclear
from asr_lora.sources import excluded, streamed
from asr_lora.streamed import Sieve, StreamedSteps, seen
from asr_lora.text import Normalizer, leading
from asr_lora.trainer import WhisperTrainer


def train(config: Config, command: Sequence[str] | None = None, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """The main command: manifest, adapter, and (unless eval.after=false) WER before and after.

    `command` is what was typed, where it was not this module; `callbacks` watch the training, and may end it.
    """
    typed = command or ["python", "-m", "asr_lora.train", *words_of_job()]
    hardware = look_together(config)
    # What these refuse should not wait for the first dev decoding, or for the end.
    decoding(config, hardware, language(config), short=False)
    if config.eval.after:
        refuse_unclear(config)
    if ranks.first_does(lambda: _is_trained(config, typed)):
        say(f"already trained: {run.tuned(config.run)}")
    else:
        _train(config, hardware, callbacks)
    ranks.first_does(lambda: run.note_last(config.run, Path(config.runs_dir)))
    if config.eval.after:
        evaluate(config, typed)
    free_memory()  # or the next job of a sweep would begin with what is left of this one


def _is_trained(config: Config, typed: Sequence[str]) -> bool:
    """Prepares and records; whether training has been done already."""
    run.recognise(config)
    prepare(config)
    run.record(config, typed)
    return run.train_metrics(config.run).is_file()


def _train(config: Config, hardware: Hardware, callbacks: Sequence[TrainerCallback]) -> None:
    started = time.perf_counter()
    run.refuse_unshared(config.run)
    free_memory()
    manifest = {split: read_jsonl(run.manifest(config.run, split)) for split in SPLITS}
    rows, lengths = manifest["train"], {split: [row["duration"] for row in manifest[split]] for split in SPLITS}
    predicted = None if config.data.streaming else ranks.first_does(lambda: predict(config, hardware, lengths))
    with progress("training", total=config.max_steps) as bar:
        trainer = build(config, hardware, rows, bar)
        for callback in callbacks:
            trainer.add_callback(callback)
        trainable = adapter.trainable_parameters(trainer.model)
        share = trainable / sum(parameter.numel() for parameter in trainer.model.parameters())
        if predicted:
            hours = predicted["train_seconds"] / 3600, predicted["dev_seconds"] / 3600
            say(f"predicted from {predicted['basis']}: {hours[0]:.2f} h of training, {hours[1]:.2f} h of dev decoding")
        say(
            f"{config.run_name}: {config.max_steps} steps of {config.training.batch_size} clips on {hardware.name}, "
            f"{config.model.precision} base, {trainable:,} parameters train ({share:.1%})"
        )
        checkpoint = ranks.first_does(lambda: _last_checkpoint(config.run / "train" / "checkpoints"))
        if config.data.streaming:
            say(
                f"data.streaming: clips are heard as they come, shuffled among {config.data.shuffle_buffer:,} rows; a "
                "run that is resumed begins the stream anew in another order, so it is not exact"
            )
        if checkpoint:
            say(f"resuming from {checkpoint}{_inexact(config, hardware, checkpoint)}")
        with _stopping_cleanly(trainer), keeping_memory():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    peak = max(ranks.gathered(peak_memory_bytes(hardware.device)))  # all have left their last checkpoint, too
    counted = {
        "trainable_parameters": trainable, "trainable_share": share, "predicted": predicted, "peak_memory_bytes": peak,
    }  # fmt: skip
    ranks.first_does(lambda: _finish(config, hardware, rows, trainer, counted, started))


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
    """Leaves what was learnt and how that went, `counted` beside it, and clears away what led there."""
    learnt = run.whole_model(config.run) if config.lora.whole else run.adapter(config.run)
    with whole_folder(learnt) as partial:
        shutil.copytree(trainer.best, partial, dirs_exist_ok=True)
    journal, written = trainer.journal, adapter.weights_file(learnt).stat().st_size
    facts = {
        **counted,
        "adapter_bytes": written,
        **_course(config, hardware, rows, trainer),
        "total_seconds": journal.earlier_seconds + time.perf_counter() - started,
    }
    write_json(run.train_metrics(config.run), facts)
    for used_up in (trainer.best, config.run / "train" / "checkpoints"):
        shutil.rmtree(used_up)
    say(
        f"{adapter.described(learnt)}: {learnt} ({written / 1e6:.1f} MB), best at step {journal.best['step']}, dev WER "
        f"{journal.best['wer']:.1%} ({_dev_normalizer(config)}), {journal.train_seconds:.0f} s of training"
    )


def _course(config: Config, hardware: Hardware, rows: Sequence[Clip], trainer: WhisperTrainer) -> dict[str, Any]:
    """How training went, and on what, for train/metrics.json."""
    journal, steps = trainer.journal, trainer.state.global_step
    return {
        "best_step": journal.best["step"],
        "dev": journal.dev,
        "dev_normalizer": str(_dev_normalizer(config)),
        "dev_decodings_skipped": journal.dev_skipped,
        "steps": steps,
        **(_seen_of_stream(config, hardware) if config.data.streaming else _seen(rows, config, steps)),
        "train_seconds": journal.train_seconds,
        "dev_seconds": journal.dev_seconds,
        "seconds_per_step": statistics.median(journal.step_seconds),
        "clips_per_second": steps * config.training.batch_size / journal.train_seconds,
        "data_wait_fraction": journal.data_wait / journal.train_seconds,
        "device": hardware.name,
        "processes": hardware.processes,
        "precision": config.model.precision,
        "autocast": hardware.autocast_name,
        "context": config.training.context,
        "augment": config.data.augment,
        "spec_augment": config.training.spec_augment,
        "out_of_memory": journal.out_of_memory,
        "versions": run.versions(),
    }


@contextmanager
def _stopping_cleanly(trainer: WhisperTrainer) -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the step, saves a checkpoint and says so; a second one stops at once.

    Raised in the middle of a step it might also be lost: libsndfile's callbacks swallow exceptions. Of several
    processes each is signalled by what started them, which waits half a minute; they end the same step.
    """

    def stop(*_: Any) -> None:
        trainer.journal.stop_asked = True
        if ranks.count() > 1:
            return
        say("stopping at the end of this step, with a checkpoint; Ctrl-C again stops at once")
        for number, before in usual.items():
            signal.signal(number, before)

    usual = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
        if trainer.journal.stop_asked and trainer.state.global_step < trainer.state.max_steps:
            say(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}: {trainer.args.output_dir}")
            raise KeyboardInterrupt
    except torch.OutOfMemoryError as error:
        raise WorldError(
            "hardware: not even one clip at a time fits in memory; take hardware.gradient_checkpointing=true, "
            "model.precision=int8 or a smaller model"
        ) from error
    except RuntimeError as error:
        if ranks.lost_another(error):
            usual.clear()  # what started this process is about to end it: not before it has said why
        raise
    finally:
        for number, before in usual.items():
            signal.signal(number, before)


def build(config: Config, hardware: Hardware, rows: Sequence[Clip], bar: Bar) -> WhisperTrainer:
    """The trainer of a prepared run, with the model and a fresh adapter in it."""
    processor = load_processor(config.model.checkpoint)
    processor.tokenizer = prompted(processor.tokenizer, language(config), config.model.task)
    base = whisper.load(
        config.model.checkpoint, config.model.precision, hardware.device, hardware.autocast or torch.float32,
        double_quantisation=bool(config.lora.double_quantisation),
    )  # fmt: skip
    masks = config.training.spec_augment
    if masks:
        whisper.mask_features(base, config.training.mask_time_prob, config.training.mask_feature_prob)
    folder, dev = config.run / "train", read_jsonl(run.manifest(config.run, "dev"))
    journal = Journal(
        folder / "log.jsonl",
        bar,
        eval_steps=eval_steps(config.training, config.max_steps, len(dev)),
        dev_share=config.training.dev_share,
        patience=config.training.patience,
    )
    arguments = _arguments(config, hardware)
    place = arguments.process_index, arguments.world_size
    steps: Steps | StreamedSteps
    if config.data.streaming:
        steps = of_stream(config, Making(processor, config.data.augment, config.seed, masks), *place)
    else:
        steps = Steps(
            rows, order(config, rows), config.max_steps, processor, *place,
            augment=config.data.augment, seed=config.seed, attention_mask=masks,
        )  # fmt: skip
    way = method(config.lora, config.max_steps)
    model = adapter.attach(base, config.lora, config.seed, config.max_steps)
    training = config.training
    optimiser = way.optimiser and way.optimiser(model, training.learning_rate, training.weight_decay)
    return WhisperTrainer(
        model=model,
        args=arguments,
        optimizers=(optimiser, None),
        method=way,
        train_dataset=steps,
        capacity=hardware.capacity,
        journal=journal,
        dev_wer=lambda tuned: _dev_wer(tuned, processor, dev, config, hardware),
        save_adapter=lambda tuned, where: adapter.save(tuned, where, config.model.checkpoint, config.training.context),
        best=folder / "best",
        kept=run.kept_adapters(config.run),
        keep=config.training.keep_adapters,
        record=run.streamed_record(config.run, arguments.process_index),
        callbacks=[TensorBoardCallback(SummaryWriter(str(folder / "tensorboard")))] if ranks.first() else [],
    )


def _arguments(config: Config, hardware: Hardware) -> Seq2SeqTrainingArguments:
    training = config.training
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(config.run / "train" / "checkpoints"),
        max_steps=config.max_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(training.warmup * config.max_steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch",
        seed=config.seed,
        fp16=hardware.autocast is torch.float16,
        bf16=hardware.autocast is torch.bfloat16,
        activation_checkpointing=hardware.gradient_checkpointing,
        # With a frozen front the reentrant kind would leave the encoder's adapters without gradient.
        activation_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=hardware.device.type == "cpu",
        ddp_broadcast_buffers=False,  # it would wait, in a step that gave a process no row
        dataloader_num_workers=hardware.workers,
        dataloader_pin_memory=hardware.device.type == "cuda",
        save_steps=training.save_steps,
        save_total_limit=2,
        ignore_data_skip=True,  # the order of batches starts at the right step by itself
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process, one GPU: DataParallel over two would double the loss
    return arguments


def _dev_wer(model: Any, processor: WhisperProcessor, dev: Sequence[Clip], config: Config, hardware: Hardware) -> float:
    model.eval()
    short = config.training.context == "dynamic"
    with torch.autocast(hardware.device.type, hardware.autocast, enabled=hardware.autocast is not None):
        heard = decode.transcribe(model, processor, dev, decoding(config, hardware, language(config), short))
    hypotheses = [hypothesis.text for hypothesis in heard]
    model.train()
    references, speakers = [clip["text"] for clip in dev], [clip["speaker"] for clip in dev]
    normal = _dev_normalizer(config)
    wer = ranks.first_does(lambda: metrics.score(references, hypotheses, speakers, normal, config.seed)["wer"])
    if wer is None:
        raise ChoiceError(f"training.dev_normalizer: {normal.name} leaves no word of the dev references; take another")
    return float(wer)


def _dev_normalizer(config: Config) -> Normalizer:
    """Where no spaces part words, each character counts as one: errors of phrases would tell adapters apart badly."""
    token = language(config)
    usual = "characters" if leading(token) == "cer" else "marks"
    return Normalizer(config.training.dev_normalizer or usual, token)


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: the Trainer's state is its last file."""
    found = [path for path in folder.glob("checkpoint-*") if _is_whole(path / TRAINER_STATE_NAME)]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_whole(state: Path) -> bool:
    try:
        return bool(read_json(state))
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def order(config: Config, rows: Sequence[Clip]) -> Order:
    """The batches of every step of the run."""
    training, tokens = config.training, [0] * len(rows)
    if training.context == "packed":  # where the labels' lengths matter too
        processor = load_processor(config.model.checkpoint)
        tokens = [len(token_ids(row["text"], processor.tokenizer)) for row in rows]
    limit = load_config(config.model.checkpoint).max_target_positions
    weights = [float(row.get("weight", 1)) for row in rows] if config.data.sources else None
    return Order([row["duration"] for row in rows], tokens, training, config.seed, limit, weights)


def of_stream(config: Config, making: Making, rank: int = 0, world_size: int = 1) -> StreamedSteps:
    """The steps of a run that streams. Raises ChoiceError and WorldError as opening the data set does."""
    stream, known = streamed(config), read_json(run.summary(config.run))["splits"]["train"]["streamed"]
    if stream.fingerprint != known["fingerprint"]:
        say(f"data.source: {stream.source} is another version of the data set than dev and test were drawn from")
    held_out = [as_row(clip) for split in ("dev", "test") for clip in read_jsonl(run.manifest(config.run, split))]
    return StreamedSteps(
        stream.split(config.data.train_split, "train"), Sieve.by([*held_out, *excluded(config)], label_rule(config)),
        config.training, making, load_config(config.model.checkpoint).max_target_positions,
        config.data.shuffle_buffer, rank, world_size,
    )  # fmt: skip


def _seen_of_stream(config: Config, hardware: Hardware) -> dict[str, Any]:
    records = [read_jsonl(run.streamed_record(config.run, rank)) for rank in range(hardware.processes)]
    found = seen([line for record in records for line in record], hardware.workers)
    reasons = ", ".join(f"{reason}: {count}" for reason, count in found["streamed"]["left_out"].items()) or "nothing"
    say(f"the stream gave {found['clips_seen']:,} clips; left out: {reasons}")
    return found


def _seen(rows: Sequence[Clip], config: Config, steps: int) -> dict[str, Any]:
    """Clips and seconds that training heard, and the share of encoder positions that carried none of it."""
    batches = order(config, rows)
    heard = [clip for step in range(steps) for batch in batches.step(step) for row in batch.rows for clip in row.clips]
    return {
        "clips_seen": len(heard),
        "audio_seconds_seen": sum(rows[clip]["duration"] for clip in heard),
        "padding_fraction": batches.padding_fraction(steps),
        "order": "seeded",
        "resume": "exact",
    }


if __name__ == "__main__":
    launch(train, after_sweep=comparison.after_sweep, several=True)
