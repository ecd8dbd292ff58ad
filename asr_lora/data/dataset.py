"""Training datasets: each optimizer step as tensors, decoded and collated on demand, not stored."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from asr_lora.config.schema import TrainingConfig
from asr_lora.corpus.streaming import Split
from asr_lora.data.features import SpeechCollator, label_ids
from asr_lora.data.languages import KEY
from asr_lora.data.manifest import LABEL_MODEL, LOCATION_FIELDS, Clip, waveform
from asr_lora.data.sampler import WINDOW, StepSampler, in_share, shard_for_rank
from asr_lora.data.splits import StreamFilter
from asr_lora.data.windows import Place
from asr_lora.runtime.errors import ExternalError, check
from asr_lora.runtime.files import read_log, write_jsonl
from asr_lora.speech import audio


class StepDataset(torch.utils.data.Dataset[list[dict[str, Tensor]]]):
    """Maps a step to its batches, with this rank's rows of them."""

    def __init__(
        self,
        clips: Sequence[Clip],
        order: StepSampler,
        steps: int,
        collator: SpeechCollator,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.clips, self.order, self.steps, self.collator = _as_dataset(clips), order, steps, collator
        self.texts = [clip["text"] for clip in clips]
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[dict[str, Tensor]]:
        own = shard_for_rank(self.order.step(step), self.rank, self.world_size)
        return self.collator.step(step, own, self.clips.__getitem__, self.texts)


def _as_dataset(clips: Sequence[Clip]) -> Dataset:
    """Returns clips of the manifest as a table that decodes them on demand, of the columns of `features.Table`."""

    def decoded(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        lines = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        return {"waveform": [waveform(line) for line in lines], **{name: batch[name] for name in own}}

    own = ("text", KEY, LABEL_MODEL)
    columns = (*LOCATION_FIELDS, *own)
    return Dataset.from_list([{name: clip.get(name) for name in columns} for clip in clips]).with_transform(decoded)


Step = tuple[list[dict[str, Tensor]], dict[str, Any]]  # the batches, and the line of the record


@dataclass
class _Window:
    """Decoded clips that are sorted into steps together."""

    clips: list[tuple[Clip, audio.Waveform]]

    def __call__(self, numbers: list[int]) -> dict[str, list[Any]]:
        chosen = [self.clips[at] for at in numbers]
        lines = [clip for clip, _ in chosen]
        return {
            "waveform": [waveform for _, waveform in chosen],
            "text": [line["text"] for line in lines],
            **{name: [line.get(name) for line in lines] for name in (KEY, LABEL_MODEL)},
        }


class StreamingStepDataset(torch.utils.data.IterableDataset[Step]):
    """Yields the steps of an epoch, of each step this rank's rows; each iteration is the next epoch.

    A rank takes its share of a step's clips from its share of the stream. Clips of WINDOW steps at a time are decoded,
    and sorted by length where the context is dynamic. Clips that do not fill a step at the end of an epoch are carried
    over to the next. `first` is the step at which the run begins or resumes: another first step gives another order.
    """

    def __init__(
        self, split: Split, stream_filter: StreamFilter, training: TrainingConfig, collator: SpeechCollator,
        token_limit: int, buffer: int, rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        self.split, self.stream_filter, self.collator = split, stream_filter, collator
        self.token_limit, self.buffer, self.rank, self.world_size = token_limit, buffer, rank, world_size
        rule = f"at least the {world_size} processes under data.streaming=true"
        check("training.batch_size", training.batch_size, rule, training.batch_size >= world_size)
        self.training = replace(training, batch_size=len(range(rank, training.batch_size, world_size)))
        self.first = 0
        self._epoch = self._made = self._windows = 0  # so far, in this process
        self._waiting: list[tuple[Clip, audio.Waveform]] = []
        self._left_out: Counter[str] = Counter()

    def rows(self, epoch: int) -> Any:
        """Returns the rank's share of the stream, a `datasets.IterableDataset`, which loader processes divide."""
        # Shuffled again rather than by set_epoch, whose number all loader processes share and change.
        shuffled = self.split.shuffled(self._seed(epoch), self.buffer)
        return split_dataset_by_node(shuffled, self.rank, self.world_size)

    def __iter__(self) -> Iterator[Step]:
        """Yields the steps; the last has no batches and records the clips left out since the one before."""
        rows, self._epoch = self.rows(self._epoch), self._epoch + 1
        full = WINDOW * self.training.batch_size
        for raw in self.split.rows(rows):
            try:
                self._waiting.append(self.stream_filter.clip(self.split.parse_row(raw)))
            except ValueError as reason:
                self._left_out[str(reason).partition(" (")[0]] += 1  # without the part that differs from clip to clip
                continue
            if len(self._waiting) == full:
                yield from self._steps()
        yield from self._steps()
        yield [], self._recorded([], 0.0)

    def _steps(self) -> Iterator[Step]:
        """Yields all complete steps of the waiting clips."""
        whole = len(self._waiting) // self.training.batch_size * self.training.batch_size
        window, self._waiting = _Window(self._waiting[:whole]), self._waiting[whole:]
        if not whole:
            return
        tokens = [0] * whole
        windowed = self.training.context == "windows" and in_share(self._windows, self.training.window_share)
        if windowed:  # the lengths of the labels matter too
            tokens = [len(label_ids(clip["text"], self.collator.processor.tokenizer)) for clip, _ in window.clips]
        seconds = [len(waveform) / audio.SAMPLE_RATE for _, waveform in window.clips]
        places = [Place(speaker=clip["speaker"], language=clip.get(KEY, "")) for clip, _ in window.clips]
        texts = [clip["text"] for clip, _ in window.clips]
        order = StepSampler(seconds, tokens, self.training, self._seed(self._windows), self.token_limit, None, places)
        for clips in order.epoch(0, windowed):
            step = self._step()
            batches = order.batches(step, clips, windowed)
            context = sum(batch.seconds * len(batch.rows) for batch in batches)
            yield (
                self.collator.step(step, batches, window, texts),
                self._recorded([window.clips[at][0] for at in clips], context),
            )
        self._windows += 1

    def _step(self) -> int:
        """Returns the approximate number of the next step; it is unique, as loader processes take turns."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        step, self._made = self.first + self._made * workers + worker, self._made + 1
        return step

    def _recorded(self, clips: Sequence[Clip], context: float) -> dict[str, Any]:
        left_out, self._left_out = dict(self._left_out), Counter()
        return {"clips": list(clips), "context_seconds": context, "left_out": left_out}

    def _seed(self, at: int) -> int:
        return int(np.random.SeedSequence((self.collator.seed, self.first, at)).generate_state(1)[0])


class StreamingLoader:
    """Yields the steps of all epochs from `first` on; each is written to `record` before training uses it.

    `loading` are a DataLoader's settings. `len` counts the steps of the whole run. Removes lines of `record` from
    `first` on, which an interrupted run wrote after its last checkpoint.
    """

    def __init__(self, dataset: StreamingStepDataset, record: Path, first: int, steps: int, **loading: Any) -> None:
        self.record, self.first, self.steps = record, first, steps
        dataset.first = first
        workers = min(loading.pop("num_workers"), dataset.rows(0).num_shards)  # another would have nothing to read
        if not workers:
            loading["prefetch_factor"] = None
        # The same processes for all epochs: they hold the clips that do not fill a step.
        self.loader = DataLoader(
            dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0, **loading
        )

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[dict[str, Tensor]]]:
        """Yields the batches of each step. Raises ExternalError, with the reasons, where an epoch has no step."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(self.record, [line for line in read_log(self.record) if line["step"] < self.first])
        step, epoch, left_out = self.first, 0, Counter[str]()
        while True:
            begun = step
            for batches, facts in self.loader:
                left_out.update(facts["left_out"])
                if batches:
                    self._record({"step": step, "begun": self.first, "epoch": epoch, **facts, "left_out": left_out})
                    left_out.clear()
                    yield batches
                    step += 1
            if step == begun:
                reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.most_common()) or "no rows"
                raise ExternalError(
                    f"data.source: an epoch of the stream has not one step of training.batch_size clips (left out: "
                    f"{reasons}); take a larger data set, a smaller batch, or fewer hardware.workers"
                )
            epoch += 1

    def _record(self, line: Mapping[str, Any]) -> None:
        with self.record.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def stream_summary(lines: Sequence[Mapping[str, Any]], workers: int) -> dict[str, Any]:
    """Summarizes the clips of a stream that a run was trained on, by its record, for train/metrics.json."""
    clips = [clip for line in lines for clip in line["clips"]]
    left_out: Counter[str] = Counter()
    for line in lines:
        left_out.update(line["left_out"])
    seconds, context_seconds = sum(clip["duration"] for clip in clips), sum(line["context_seconds"] for line in lines)
    return {
        "clips_seen": len(clips),
        "audio_seconds_seen": seconds,
        "padding_fraction": 1 - seconds / context_seconds,
        "order": "streamed",
        "resume": "inexact",
        "streamed": {
            "clips": len({clip["sha256"] for clip in clips}),
            "speakers": len({clip["speaker"] for clip in clips} - {""}),
            "epochs": 1 + max(line["epoch"] for line in lines),  # the last may be incomplete
            "resumed_at": sorted({line["begun"] for line in lines} - {0}),
            "left_out": dict(left_out.most_common()),  # in all epochs
            "workers": workers,
        },
    }
