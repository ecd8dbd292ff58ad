"""What the device is fed: each optimiser step as tensors, decoded and collated when asked for; nothing goes to disk."""

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
from asr_lora.data.manifest import LOCATION_FIELDS, Clip, waveform
from asr_lora.data.sampler import WINDOW, StepSampler, shard_for_rank
from asr_lora.data.splits import StreamFilter
from asr_lora.runtime.errors import ExternalError, check
from asr_lora.runtime.files import read_log, write_jsonl
from asr_lora.speech import audio


class StepDataset(torch.utils.data.Dataset[list[dict[str, Tensor]]]):
    """Step -> its batches, this rank's rows of them."""

    def __init__(
        self,
        rows: Sequence[Clip],
        order: StepSampler,
        steps: int,
        collator: SpeechCollator,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.clips, self.order, self.steps, self.collator = _clips(rows), order, steps, collator
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[dict[str, Tensor]]:
        return self.collator.step(
            step, shard_for_rank(self.order.step(step), self.rank, self.world_size), self.clips.__getitem__
        )


def _clips(rows: Sequence[Clip]) -> Dataset:
    """A split of the manifest as a table whose rows are decoded when asked for: `waveform` and `text`."""

    def decoded(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        places = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        return {"waveform": [waveform(place) for place in places], "text": batch["text"]}

    columns = (*LOCATION_FIELDS, "text")
    return Dataset.from_list([{name: row.get(name) for name in columns} for row in rows]).with_transform(decoded)


Step = tuple[list[dict[str, Tensor]], dict[str, Any]]  # its batches, and what is recorded of it


@dataclass
class _Heard:
    """Clips that wait to be heard."""

    clips: list[tuple[Clip, audio.Waveform]]

    def __call__(self, numbers: list[int]) -> dict[str, list[Any]]:
        chosen = [self.clips[at] for at in numbers]
        return {"waveform": [waveform for _, waveform in chosen], "text": [clip["text"] for clip, _ in chosen]}


class StreamingStepDataset(torch.utils.data.IterableDataset[Step]):
    """The steps of an epoch, each time another epoch; of every step the rows of this rank alone.

    A rank hears its part of a step's clips from its part of the stream. WINDOW steps of clips are decoded, and sorted
    by length where the context is dynamic, at a time. Fewer clips than a step's at the end of an epoch wait for the
    next. `first` is the step that the run begins or goes on from: another first step is another order.
    """

    def __init__(
        self, split: Split, sieve: StreamFilter, training: TrainingConfig, collator: SpeechCollator, token_limit: int, buffer: int,
        rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        self.split, self.sieve, self.collator, self.token_limit, self.buffer = (
            split,
            sieve,
            collator,
            token_limit,
            buffer,
        )
        self.rank, self.world_size = rank, world_size
        rule = f"at least the {world_size} processes under data.streaming=true"
        check("training.batch_size", training.batch_size, rule, training.batch_size >= world_size)
        self.training = replace(training, batch_size=len(range(rank, training.batch_size, world_size)))
        self.first = 0
        self._epoch = self._made = self._windows = 0  # so far, in this process
        self._waiting: list[tuple[Clip, audio.Waveform]] = []
        self._left_out: Counter[str] = Counter()

    def rows(self, epoch: int) -> Any:
        """The rank's part of the stream, a `datasets.IterableDataset`: of which a loader process takes its own."""
        # Shuffled anew rather than by set_epoch, whose number all loader processes share and change.
        shuffled = self.split.shuffled(self._seed(epoch), self.buffer)
        return split_dataset_by_node(shuffled, self.rank, self.world_size)

    def __iter__(self) -> Iterator[Step]:
        """Ends with a step without batches, which tells what was left out last."""
        rows, self._epoch = self.rows(self._epoch), self._epoch + 1
        full = WINDOW * self.training.batch_size
        for raw in self.split.rows(rows):
            try:
                self._waiting.append(self.sieve.clip(self.split.parse_row(raw)))
            except ValueError as reason:
                self._left_out[str(reason).partition(" (")[0]] += 1  # without what differs from clip to clip
                continue
            if len(self._waiting) == full:
                yield from self._steps()
        yield from self._steps()
        yield [], self._recorded([], 0.0)

    def _steps(self) -> Iterator[Step]:
        """All whole steps of what waits."""
        whole = len(self._waiting) // self.training.batch_size * self.training.batch_size
        window, self._waiting = _Heard(self._waiting[:whole]), self._waiting[whole:]
        if not whole:
            return
        tokens = [0] * whole
        if self.training.context == "packed":  # where the labels' lengths matter too
            tokens = [len(label_ids(clip["text"], self.collator.processor.tokenizer)) for clip, _ in window.clips]
        seconds = [len(waveform) / audio.SAMPLE_RATE for _, waveform in window.clips]
        order = StepSampler(seconds, tokens, self.training, self._seed(self._windows), self.token_limit)
        for clips in order.epoch(0):
            step = self._step()
            batches = order.batches(step, clips)
            context = sum(batch.seconds * len(batch.rows) for batch in batches)
            yield (
                self.collator.step(step, batches, window),
                self._recorded([window.clips[at][0] for at in clips], context),
            )
        self._windows += 1

    def _step(self) -> int:
        """About which step of the run is made next, where the loader processes take turns; no two are the same."""
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
    """The steps of all epochs, from `first` on, for the trainer; every one is recorded in `record` before it is heard.

    `loading` are a DataLoader's settings. `len` counts the steps of the whole run. Lines of `record` from `first` on,
    which an interrupted run left behind its last checkpoint, are taken out.
    """

    def __init__(self, made: StreamingStepDataset, record: Path, first: int, steps: int, **loading: Any) -> None:
        self.record, self.first, self.steps = record, first, steps
        made.first = first
        workers = min(loading.pop("num_workers"), made.rows(0).num_shards)  # one more would have nothing to read
        if not workers:
            loading["prefetch_factor"] = None
        # The same processes for all epochs: what fills no step waits in them.
        self.loader = DataLoader(made, batch_size=None, num_workers=workers, persistent_workers=workers > 0, **loading)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[dict[str, Tensor]]]:
        """Raises WorldError where an epoch gives no step, saying why."""
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
                    f"data.source: an epoch of the stream gives not one step of training.batch_size clips (left out: "
                    f"{reasons}); take a larger data set, a smaller batch, or fewer hardware.workers"
                )
            epoch += 1

    def _record(self, line: Mapping[str, Any]) -> None:
        with self.record.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def stream_summary(lines: Sequence[Mapping[str, Any]], workers: int) -> dict[str, Any]:
    """What a run heard of a stream, by the lines of its record, for train/metrics.json."""
    clips = [clip for line in lines for clip in line["clips"]]
    left_out: Counter[str] = Counter()
    for line in lines:
        left_out.update(line["left_out"])
    heard, shown = sum(clip["duration"] for clip in clips), sum(line["context_seconds"] for line in lines)
    return {
        "clips_seen": len(clips),
        "audio_seconds_seen": heard,
        "padding_fraction": 1 - heard / shown,
        "order": "streamed",
        "resume": "inexact",
        "streamed": {
            "clips": len({clip["sha256"] for clip in clips}),
            "speakers": len({clip["speaker"] for clip in clips} - {""}),
            "epochs": 1 + max(line["epoch"] for line in lines),  # the last of them begun
            "resumed_at": sorted({line["begun"] for line in lines} - {0}),
            "left_out": dict(left_out.most_common()),  # in all epochs
            "workers": workers,
        },
    }
