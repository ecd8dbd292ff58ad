"""Builds the trainer of a run from its settings: model, adapter, sampler, dev, guard, time budget."""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import Seq2SeqTrainingArguments, WhisperForConditionalGeneration, WhisperProcessor
from transformers.integrations import TensorBoardCallback

from asr_lora.config.compose import Config
from asr_lora.config.schema import TrainingConfig
from asr_lora.data.dataset import StepDataset, StreamingStepDataset
from asr_lora.data.features import SpeechCollator, label_ids, with_prompt
from asr_lora.data.labels import label_filter
from asr_lora.data.languages import KEY, check_clips, row_tokens
from asr_lora.data.manifest import Clip, as_utterance, read_manifest
from asr_lora.data.sampler import StepSampler
from asr_lora.data.sources import excluded_utterances, open_streamed
from asr_lora.data.splits import StreamFilter
from asr_lora.data.windows import Place
from asr_lora.decoding.generate import decoding_options
from asr_lora.model import adapter, whisper
from asr_lora.model.hardware import FRAMES_PER_SECOND, Hardware, fitting_workers, step_bytes
from asr_lora.model.methods import tuning_method
from asr_lora.model.pretrained import language_token, load_config, load_processor
from asr_lora.runs import folder as run
from asr_lora.runtime import distributed
from asr_lora.runtime.console import Bar, log
from asr_lora.runtime.files import read_json
from asr_lora.speech.augment import Masks
from asr_lora.speech.limits import MAX_SECONDS
from asr_lora.training.callbacks import DivergenceGuard, KeepAdapters, TimeBudget, TrainingLog
from asr_lora.training.trainer import WhisperTrainer
from asr_lora.training.validation import DevEvaluator, dev_normalizer, eval_steps


def build_trainer(
    config: Config,
    hardware: Hardware,
    rows: Sequence[Clip],
    bar: Bar,
    budget: TimeBudget | None = None,
    rate: float = 1.0,
) -> WhisperTrainer:
    """Builds the trainer of a prepared run, with a new adapter, at `rate` times the learning rate."""
    training, folder, began = config.training, config.run, time.monotonic()
    check_clips(rows, config.model, "data/train.jsonl")
    processor, base = _processor(config), _base(config, hardware)
    dev = _dev(config, hardware, processor)
    warmup, learning_rate = round(training.warmup_ratio * config.max_steps), rate * float(training.learning_rate)
    training_log = TrainingLog(
        folder / "train" / "log.jsonl",
        bar,
        eval_steps=eval_steps(training, config.max_steps, len(dev.clips)),
        dev_share=training.dev_share,
        patience=training.patience,
        budget=budget and replace(budget, loading=time.monotonic() - began),
    )
    arguments = _arguments(config, hardware, learning_rate, warmup)
    arguments.dataloader_num_workers = _loader_processes(config, hardware, rows)
    collator = SpeechCollator(processor, config.data.augment, config.seed, masks(training), config.data.augment_labels)
    place = arguments.process_index, arguments.world_size
    method = tuning_method(config.lora, config.max_steps)
    model = adapter.attach(base, config.lora, config.seed, config.max_steps)
    kept = KeepAdapters(
        training_log,
        lambda tuned, where: adapter.save(tuned, where, config.model.checkpoint, training.context),
        run.best(folder),
        run.kept_adapters(folder),
        training.keep_adapters,
    )
    optimizer = method.optimizer and method.optimizer(model, learning_rate, training.weight_decay)
    tensorboard = (
        [TensorBoardCallback(SummaryWriter(str(folder / "train" / "tensorboard")))]
        if distributed.is_rank_zero()
        else []
    )
    return WhisperTrainer(
        model=model,
        args=arguments,
        optimizers=(optimizer, None),
        method=method,
        train_dataset=(
            streaming_dataset(config, collator, *place)
            if config.data.streaming
            else StepDataset(rows, step_sampler(config, rows), config.max_steps, collator, *place)
        ),
        capacity=hardware.capacity,
        plain_share=config.training.plain_share,
        training_log=training_log,
        guard=DivergenceGuard(config.divergence, warmup),
        dev=dev,
        record=run.streamed_record(folder, arguments.process_index),
        callbacks=[kept, *tensorboard],
    )


def _processor(config: Config) -> WhisperProcessor:
    """Loads the processor, whose tokenizer begins every label sequence with the run's language and task."""
    processor = load_processor(config.model.checkpoint)
    language = language_token(config.model, config.data.language)
    processor.tokenizer = with_prompt(processor.tokenizer, language, config.model.task)
    return processor


def _base(config: Config, hardware: Hardware) -> WhisperForConditionalGeneration:
    return whisper.load(
        config.model.checkpoint, config.model.precision, hardware.device, hardware.autocast or torch.float32,
        double_quant=bool(config.lora.double_quant),
    )  # fmt: skip


def _dev(config: Config, hardware: Hardware, processor: WhisperProcessor) -> DevEvaluator:
    language = language_token(config.model, config.data.language)
    short = config.training.context != "full"
    clips = read_manifest(run.manifest(config.run, "dev"))
    check_clips(clips, config.model, "data/dev.jsonl")
    every = eval_steps(config.training, config.max_steps, len(clips))
    return DevEvaluator(
        hardware,
        processor,
        clips,
        decoding_options(config.decoding, config.model, hardware, language, short),
        run.dev_baseline(config.run),
        dev_normalizer(config.training.dev_normalizer, language),
        config.seed,
        decodings=-(-config.max_steps // every),
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
        # With frozen first layers the reentrant kind would give the encoder's adapters no gradient.
        activation_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=hardware.device.type == "cpu",
        ddp_broadcast_buffers=False,  # it would hang in a step that gives a process no row
        dataloader_pin_memory=hardware.device.type == "cuda",
        save_steps=training.save_steps,
        ignore_data_skip=True,  # the sampler starts at the right step by itself
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


def _loader_processes(config: Config, hardware: Hardware, rows: Sequence[Clip]) -> int:
    """Returns the loader processes of this process: as set, or as many as fit the machine's shared memory."""
    training, seconds = config.training, MAX_SECONDS
    if training.context == "dynamic" and rows:
        longest = max(row["duration"] for row in rows)
        seconds = min(MAX_SECONDS, longest + training.context_margin[1] + training.context_multiple)
    share = -(-training.batch_size // hardware.processes)
    step = step_bytes(share, load_config(config.model.checkpoint).num_mel_bins, seconds)
    workers, line = fitting_workers(hardware.workers, step, distributed.local_world_size())
    if line:
        log(line)
    return workers


def masks(training: TrainingConfig) -> Masks | None:
    """Returns SpecAugment's policy of the settings; None without training.spec_augment."""
    frames = round(training.mask_seconds * FRAMES_PER_SECOND)
    return (
        Masks(training.mask_count, training.mask_bins, frames, training.mask_share) if training.spec_augment else None
    )


def step_sampler(config: Config, rows: Sequence[Clip]) -> StepSampler:
    """Builds the sampler of the run's batches."""
    training, tokens, places = config.training, [0] * len(rows), None
    if training.context == "windows":  # the lengths of labels, and which clips are neighbors, matter too
        processor = load_processor(config.model.checkpoint)
        tokens = [len(label_ids(row["text"], processor.tokenizer)) for row in rows]
        places = [
            Place(row["path"] if "start" in row else "", row.get("start", 0.0), row["speaker"], row.get(KEY, ""))
            for row in rows
        ]
    limit = load_config(config.model.checkpoint).max_target_positions
    weights = [float(row.get("weight", 1)) for row in rows] if config.data.sources else None
    return StepSampler([row["duration"] for row in rows], tokens, training, config.seed, limit, weights, places)


def streaming_dataset(
    config: Config, collator: SpeechCollator, rank: int = 0, world_size: int = 1
) -> StreamingStepDataset:
    """Builds the dataset of a streaming run. Raises as opening the data set does."""
    stream, known = open_streamed(config.data), read_json(run.summary(config.run))["splits"]["train"]["streamed"]
    if stream.fingerprint != known["fingerprint"]:
        log(f"data.source: {stream.source} is another version of the data set than dev and test were drawn from")
    held_out = [
        as_utterance(clip) for split in ("dev", "test") for clip in read_manifest(run.manifest(config.run, split))
    ]
    return StreamingStepDataset(
        stream.split(config.data.train_split, "train"), StreamFilter.by([*held_out, *excluded_utterances(config.data)],
        label_filter(config.model, config.data.language), row_tokens(config.data.language, config.model)),
        config.training, collator, load_config(config.model.checkpoint).max_target_positions,
        config.data.shuffle_buffer, rank, world_size,
    )  # fmt: skip
