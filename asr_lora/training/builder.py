"""A run's trainer, put together from its settings: model and adapter, the order of its batches, dev, guard, budget."""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import Seq2SeqTrainingArguments
from transformers.integrations import TensorBoardCallback

from asr_lora.config.compose import Config
from asr_lora.data.dataset import Steps, StreamedSteps
from asr_lora.data.features import Making, prompted, token_ids
from asr_lora.data.manifest import Clip, as_row, read_manifest
from asr_lora.data.preparation import label_filter
from asr_lora.data.sampler import Order
from asr_lora.data.sources import excluded_rows, open_streamed
from asr_lora.data.splits import Sieve
from asr_lora.decoding.generate import decoding_options
from asr_lora.model import adapter, whisper
from asr_lora.model.hardware import Hardware
from asr_lora.model.methods import method
from asr_lora.model.pretrained import language_token, load_config, load_processor
from asr_lora.runs import folder as run
from asr_lora.runtime import distributed as ranks
from asr_lora.runtime.console import Bar, say
from asr_lora.runtime.files import read_json
from asr_lora.training.callbacks import Budget, Guard, Journal, KeepAdapters
from asr_lora.training.trainer import WhisperTrainer
from asr_lora.training.validation import Dev, dev_normalizer, eval_steps


def build(
    config: Config, hardware: Hardware, rows: Sequence[Clip], bar: Bar, budget: Budget | None = None, rate: float = 1.0
) -> WhisperTrainer:
    """The trainer of a prepared run, with the model and a fresh adapter in it, at `rate` times the learning rate."""
    building = time.monotonic()
    processor = load_processor(config.model.checkpoint)
    language = language_token(config.model, config.data.language)
    processor.tokenizer = prompted(processor.tokenizer, language, config.model.task)
    base = whisper.load(
        config.model.checkpoint, config.model.precision, hardware.device, hardware.autocast or torch.float32,
        double_quantisation=bool(config.lora.double_quantisation),
    )  # fmt: skip
    masks = config.training.spec_augment
    if masks:
        whisper.mask_features(base, config.training.mask_time_prob, config.training.mask_feature_prob)
    folder, dev = config.run / "train", read_manifest(run.manifest(config.run, "dev"))
    steady, learning_rate = round(config.training.warmup * config.max_steps), rate * config.training.learning_rate
    journal = Journal(
        folder / "log.jsonl",
        bar,
        eval_steps=eval_steps(config.training, config.max_steps, len(dev)),
        dev_share=config.training.dev_share,
        patience=config.training.patience,
        budget=budget and replace(budget, loading=time.monotonic() - building),
    )
    arguments = _arguments(config, hardware, learning_rate, steady)
    place = arguments.process_index, arguments.world_size
    making = Making(processor, config.data.augment, config.seed, masks)
    steps: Steps | StreamedSteps
    if config.data.streaming:
        steps = of_stream(config, making, *place)
    else:
        steps = Steps(rows, order(config, rows), config.max_steps, making, *place)
    short = config.training.context == "dynamic"
    options = decoding_options(config.decoding, config.model, hardware, language, short)
    way = method(config.lora, config.max_steps)
    model = adapter.attach(base, config.lora, config.seed, config.max_steps)
    optimiser = way.optimiser and way.optimiser(model, learning_rate, config.training.weight_decay)
    return WhisperTrainer(
        model=model,
        args=arguments,
        optimizers=(optimiser, None),
        method=way,
        train_dataset=steps,
        capacity=hardware.capacity,
        journal=journal,
        guard=Guard(config.guard, steady),
        dev=Dev(
            hardware,
            processor,
            dev,
            options,
            run.untouched_dev(config.run),
            dev_normalizer(config.training.dev_normalizer, language),
            config.seed,
        ),
        record=run.streamed_record(config.run, arguments.process_index),
        callbacks=[
            KeepAdapters(
                journal,
                lambda tuned, where: adapter.save(tuned, where, config.model.checkpoint, config.training.context),
                run.best_so_far(config.run),
                run.kept_adapters(config.run),
                config.training.keep_adapters,
            ),
            *([TensorBoardCallback(SummaryWriter(str(folder / "tensorboard")))] if ranks.first() else []),
        ],
    )


def _arguments(config: Config, hardware: Hardware, learning_rate: float, warmup_steps: int) -> Seq2SeqTrainingArguments:
    training = config.training
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(run.checkpoints(config.run)),
        max_steps=config.max_steps,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=warmup_steps,
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
    stream, known = open_streamed(config.data), read_json(run.summary(config.run))["splits"]["train"]["streamed"]
    if stream.fingerprint != known["fingerprint"]:
        say(f"data.source: {stream.source} is another version of the data set than dev and test were drawn from")
    held_out = [as_row(clip) for split in ("dev", "test") for clip in read_manifest(run.manifest(config.run, split))]
    return StreamedSteps(
        stream.split(config.data.train_split, "train"), Sieve.by([*held_out, *excluded_rows(config.data)],
        label_filter(config.model, config.data.language)),
        config.training, making, load_config(config.model.checkpoint).max_target_positions,
        config.data.shuffle_buffer, rank, world_size,
    )  # fmt: skip
