"""The work of a run, and estimates of it on a device: seconds and bytes of every stage."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from asr_lora.corpus import SPLITS
from asr_lora.data.manifest import read_manifest
from asr_lora.data.sampler import StepSampler, count_micro_batches
from asr_lora.decoding.generate import batches, rows_per_batch
from asr_lora.evaluation.eval_sets import eval_sets
from asr_lora.model import adapter, cost
from asr_lora.model.hub import cached_file, is_local, parse_id
from asr_lora.model.methods import initial_rank
from asr_lora.model.pretrained import load_config
from asr_lora.planning.timing import Forward, Timings
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json
from asr_lora.training.callbacks import TimeBudget
from asr_lora.training.validation import decodes_baseline, eval_steps

if TYPE_CHECKING:
    from asr_lora.config.compose import Config
    from asr_lora.config.schema import LoraConfig

STAGES = ("prepare", "train", "dev", "eval")
PROMPT_TOKENS, TOKENS_PER_SECOND = 5, 4.0  # of labels: special tokens, and text tokens a second of speech (Dutch)
REDECODED = 0.2  # decodings of the fallback over clips: 15 for 81 Spanish clips with whisper-base before training
SCAN_RATE = 50  # clips a second that prepare decodes and hashes (a guess, not measured)
MP3_RATE = 6_000  # bytes a second of Common Voice's clips (estimated: 48 kbit/s)

COUNTED: dict[str, int] = {}  # trained parameters by architecture and method


@dataclass(frozen=True)
class DecodePass:
    """One decoding of clips with these durations: at short contexts with `margin`, or (None) at 30 s."""

    seconds: Sequence[float]
    margin: float | None

    def forwards(self, rows: int) -> list[Forward]:
        """Returns its batches on a device that decodes `rows` rows at 30 s at once."""
        return [
            Forward(len(clips), context, _tokens(self.seconds[clips[0]]), sum(self.seconds[clip] for clip in clips))
            for clips, context in batches(self.seconds, rows, self.margin)
        ]


@dataclass(frozen=True)
class Workload:
    """What a run does on any device: forwards, not yet split to fit memory, and bytes on the disk."""

    shape: cost.ModelDimensions
    trainable: int
    kind: str  # the tuning method
    clips: dict[str, int]  # by stage
    trained: list[Forward]
    decoded: dict[str, list[DecodePass]]  # by stage; dev: of one decoding; eval: base and fine-tuned
    beams: int
    decodings: int  # of dev while training, at most
    dev_share: float  # of training's time, at most
    baseline: int  # how often dev is also decoded with the base model
    disk: dict[str, float]
    kept: dict[str, Any]  # LoraConfig.memory: what memory depends on besides trainable parameters

    def decoding(self, stage: str, rows: int) -> list[Forward]:
        """Returns the batches of a stage's passes on a device that decodes `rows` rows at 30 s at once."""
        return [forward for once in self.decoded[stage] for forward in once.forwards(rows)]


@dataclass(frozen=True)
class Estimate:
    """Seconds and peak bytes by stage. `problem`: why the run is impossible, or None."""

    seconds: dict[str, float]
    memory: dict[str, float]
    problem: str | None = None


def base_pass(seconds: Sequence[float], fallback: bool) -> DecodePass:
    """Returns the base model's decoding of clips for scores, at 30 s, with those that the fallback decodes again."""
    return DecodePass([*seconds, *seconds[: round(REDECODED * len(seconds) * fallback)]], None)


def workload(config: "Config", seconds: Mapping[str, Sequence[float]]) -> Workload:
    """Computes the work of a run on clips with these durations, `seconds` by split."""
    known = architecture(config.model.checkpoint)
    shape = cost.dimensions(known.to_dict())
    trainable = trained_parameters(known, config.lora)
    train, dev, test = (seconds[split] for split in SPLITS)
    steps, batch_size, training = config.max_steps, config.training.batch_size, config.training
    decodings, soup = -(-steps // eval_steps(training, steps, len(dev))), training.soup
    judged = decodes_baseline(training, config.divergence, steps, len(dev))
    scored = (test if config.eval.split == "test" else dev)[: config.eval.limit]
    margin = (
        config.decoding.context_margin if training.context != "full" and config.decoding.context == "auto" else None
    )
    audio_seconds = sum(map(sum, (train, dev, test)))
    counts = {
        "prepare": len(train) + len(dev) + len(test), "train": soup * steps * batch_size,
        "dev": soup * (decodings + judged) * len(dev), "eval": 2 * len(scored) * config.eval.after,
    }  # fmt: skip
    decoded = {
        "dev": [DecodePass(dev, margin)],
        "eval": [base_pass(scored, config.decoding.fallback), DecodePass(scored, margin)] * config.eval.after,
    }
    # The base as published, in fp16; weights saved twice, and two checkpoints with the optimizer's moments.
    kept = 2 * saved_bytes(config.lora, trainable, shape, config.model.precision) + 2 * 3 * 4 * trainable
    disk = {"prepare": audio_seconds * MP3_RATE, "train": 2 * cost.parameters(shape) + kept, "dev": 0, "eval": 0}
    order = StepSampler(train, [_tokens(each) for each in train], training, config.seed, known.max_target_positions)
    return Workload(
        shape, trainable, config.lora.kind, counts, soup * _trained(train, order, steps), decoded,
        config.decoding.num_beams, soup * decodings, training.dev_share, soup * judged, disk, config.lora.memory,
    )  # fmt: skip


def architecture(checkpoint: str) -> WhisperConfig:
    """Returns a checkpoint's architecture from config.json on this machine, else as published.

    Downloads nothing.
    Raises ConfigError for a model that is neither.
    """
    if is_local(checkpoint):
        return load_config(checkpoint)
    name, _ = parse_id(checkpoint)
    if "/" in name and (cached := cached_file(checkpoint, "config.json")):
        return WhisperConfig.from_dict(read_json(cached))
    if name not in cost.PUBLISHED:
        raise ConfigError(
            f"model.checkpoint: the sizes of {checkpoint} are not known here; name a local directory, or one of "
            f"{', '.join(cost.PUBLISHED)}"
        )
    shape = cost.PUBLISHED[name]
    heads = shape.d_model // 64  # in every Whisper
    return WhisperConfig(
        d_model=shape.d_model, encoder_ffn_dim=shape.ffn, decoder_ffn_dim=shape.ffn, vocab_size=shape.vocabulary,
        encoder_layers=shape.encoder_layers, decoder_layers=shape.decoder_layers, num_mel_bins=shape.mels,
        encoder_attention_heads=heads, decoder_attention_heads=heads,
    )  # fmt: skip


def trained_parameters(known: WhisperConfig, lora: "LoraConfig") -> int:
    """Counts trainable parameters on models of the meta device, which allocate no memory.

    All layers of a side are alike: models with one layer more on either side give what each layer adds.
    Counted once for the same architecture and method, which a plan needs for its hours and for its table of methods.
    """
    key = f"{known.to_json_string(use_diff=False)} {lora}"
    if key not in COUNTED:
        COUNTED[key] = _count_trained(known, lora)
    return COUNTED[key]


def _count_trained(known: WhisperConfig, lora: "LoraConfig") -> int:
    def counted(encoder: int, decoder: int) -> int:
        small = WhisperConfig.from_dict(known.to_dict() | {"encoder_layers": encoder, "decoder_layers": decoder})
        with torch.device("meta"):
            model = adapter.attach(WhisperForConditionalGeneration(small), lora, seed=0)
        return adapter.trainable_parameters(model)

    least = counted(1, 1)
    encoders, decoders = int(known.encoder_layers) - 1, int(known.decoder_layers) - 1
    return least + encoders * (counted(2, 1) - least) + decoders * (counted(1, 2) - least)


def saved_bytes(lora: "LoraConfig", trainable: int, shape: cost.ModelDimensions, precision: str) -> float:
    """Returns the bytes of the saved weights.

    Adapters are in fp32, PiSSA's at twice the rank, AdaLoRA's at the final rank.
    """
    if lora.whole:
        frozen = 2 if precision in ("fp16", "bf16") else 4
        return frozen * (cost.parameters(shape) - trainable) + 4 * trainable
    if lora.kind == "adalora" and lora.r:
        return 4 * trainable * lora.r / initial_rank(lora.r)
    return 4 * trainable * (2 if lora.kind == "pissa" else 1)


def _trained(seconds: Sequence[float], order: StepSampler, steps: int) -> list[Forward]:
    works = []
    for batch in (batch for step in range(steps) for batch in order.step(step)):
        lengths = [sum(seconds[clip] for clip in row.clips) for row in batch.rows]
        works.append(Forward(len(batch.rows), batch.seconds, _tokens(max(lengths)), sum(lengths)))
    return works


def _tokens(seconds: float) -> int:
    return PROMPT_TOKENS + math.ceil(TOKENS_PER_SECOND * seconds)


def flops(work: Workload, checkpointing: bool) -> dict[str, float]:
    """Returns floating-point operations by stage, of one beam."""
    train = (
        each.rows * cost.training_flops(work.shape, each.seconds, each.tokens, work.trainable, checkpointing, work.kind)
        for each in work.trained
    )
    decoded = {
        stage: sum(
            each.rows * cost.forward_flops(work.shape, each.seconds, each.tokens) for each in work.decoding(stage, 1)
        )
        for stage in work.decoded
    }
    return {
        "prepare": 0,
        "train": sum(train),
        "dev": (work.decodings + work.baseline) * decoded["dev"],
        "eval": decoded["eval"],
    }


# ---- on a device ----


@dataclass(frozen=True)
class Device:
    """A device, and how the run uses it. `memory` in bytes.

    `capacity`: seconds of context in one training forward; `decode_rows`: rows decoded at once (clips at 30 s, times
    beams); `half`: arithmetic in half precision.
    """

    memory: float
    capacity: float
    decode_rows: int
    half: bool
    checkpointing: bool
    on_gpu: bool


def estimate_on(work: Workload, device: Device, precision: str, clocks: Timings) -> Estimate:
    """Estimates the run on a device with the base in `precision`.

    `clocks` gives the seconds of each forward.
    """
    train, beams, on_gpu = split_to_capacity(work.trained, device.capacity), work.beams, device.on_gpu
    dev, scored = (work.decoding(stage, rows_per_batch(device.decode_rows, beams)) for stage in ("dev", "eval"))
    seconds = {
        "prepare": work.clips["prepare"] / SCAN_RATE,
        "train": sum(map(clocks.train, train)),
        "eval": sum(map(clocks.eval, scored)),
    }
    once = sum(map(clocks.dev, dev))
    seconds["dev"] = _dev_seconds(once, seconds["train"], work.decodings, work.dev_share) + once * work.baseline

    mode = cost.TrainingMode(precision, device.half, device.checkpointing, work.trainable, on_gpu, **work.kept)

    def training(each: Forward) -> float:
        return cost.training_bytes(work.shape, mode, each.rows, each.seconds, each.tokens)

    def decoding(each: Forward, weights: float, half: bool) -> float:
        return cost.decoding_bytes(work.shape, weights, each.rows * beams, each.seconds, each.tokens, half)

    trained, merged = cost.weight_bytes(work.shape, precision), 2 if on_gpu else 4
    held = {
        "prepare": cost.PROCESS_BYTES,
        "train": max(map(training, set(train))),
        "dev": max(decoding(each, trained, device.half) for each in dev),
        "eval": max((decoding(each, merged * cost.parameters(work.shape), on_gpu) for each in scored), default=0),
    }
    most = max(held.values())
    trouble = None
    if most > device.memory:
        trouble = f"does not fit: {most / 1e9:.1f} of {device.memory / 1e9:.0f} GB"
    return Estimate(seconds, held, trouble)


def _dev_seconds(once: float, train: float, decodings: int, share: float) -> float:
    """Returns the seconds of all dev decodings.

    One is skipped while dev is above its share of time, never the last.
    """
    spent = 0.0
    for due in range(1, decodings + 1):
        if due == decodings or spent <= share * train * due / decodings:
            spent += once
    return spent


def split_to_capacity(works: Sequence[Forward], capacity: float) -> list[Forward]:
    """Splits forwards into ones of at most `capacity` seconds of context, as the trainer does."""
    parts: list[Forward] = []
    for work in works:
        count = count_micro_batches(work.rows, work.seconds, capacity)
        for at in range(count):
            rows = work.rows // count + (at < work.rows % count)
            parts.append(replace(work, rows=rows, audio_seconds=work.audio_seconds * rows / work.rows))
    return parts


def time_budget(config: "Config", began: float) -> TimeBudget | None:
    """Returns the budget of training.max_hours, counted from `began` (time.monotonic).

    Returns None without a limit.
    """
    hours = config.training.max_hours
    if hours is None:
        return None
    lengths = {split: [row["duration"] for row in read_manifest(run.manifest(config.run, split))] for split in SPLITS}
    lengths["train"] = lengths["train"] or lengths["dev"]  # a stream has no listed durations
    scored = lengths["test"][: config.eval.limit] if config.eval.split == "test" else lengths["dev"]
    if config.eval.after:
        scored = scored + [
            clip["duration"]
            for each in eval_sets(config.run, config.eval, config.data, config.model)[1:]
            for clip in each.clips
        ]
    whole = replace(config, eval=replace(config.eval, limit=None, split="test"))
    work = workload(whole, {**lengths, "test": scored})
    done = flops(work, checkpointing=False)
    decoding = done["dev"] / (work.decodings + work.baseline)
    return TimeBudget(hours, began, step=done["train"] / config.max_steps, dev=decoding, eval=done["eval"])
