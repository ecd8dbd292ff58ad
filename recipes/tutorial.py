"""The recipe of the public notebooks, for recipes/benchmark.py:  python recipes/tutorial.py train|evaluate FOLDER

Whisper with peft's LoRA as in most tutorials, rewritten here: 30 s log-mel features of every clip on disk by
`datasets.map`, the stock Seq2SeqTrainer over batches in random order, then `generate` with the adapter unmerged, the
test set in batches in its own order. FOLDER has settings.json and receives features/, adapter/, adapter-<step>/,
train.json, evaluate.json.

Faster than the notebooks where that is not compared: clips are decoded by asr_lora.speech.audio, features reach the
collator as arrays (their nested lists cost 0.7 s a batch of 8), and there are no checkpoints and no dev decodings.
"""

import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    BitsAndBytesConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from asr_lora.model.hardware import peak_memory_bytes
from asr_lora.runtime.console import progress
from asr_lora.runtime.files import read_json, read_jsonl, write_json
from asr_lora.speech import audio

PROMPT_TOKENS = 4  # start, language, task, no timestamps


def train(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Maps the training clips, trains, and writes adapter/.

    Times are measured inside; the loop's include its data.
    """
    device, processor = torch.device(settings["device"]), _processor(settings)
    dataset, feature_seconds = _features(settings, "train", processor, folder)
    base = _base(settings)
    if settings["precision"] == "int8":
        base = prepare_model_for_kbit_training(base, gradient_checkpointing_kwargs={"use_reentrant": False})
    base.config.use_cache = False
    model = get_peft_model(base, LoraConfig(**settings["lora"]))
    steps = Steps(folder, settings["kept"])
    Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(folder / "trainer"),
            **settings["training"],
            lr_scheduler_type="linear",
            optim="adamw_torch",
            use_cpu=device.type == "cpu",
            fp16=_autocast(settings) is torch.float16,
            bf16=_autocast(settings) is torch.bfloat16,
            save_strategy="no",
            logging_steps=25,
            remove_unused_columns=False,
            label_names=["labels"],
            report_to="none",
        ),
        train_dataset=dataset,
        data_collator=Collator(processor),
        processing_class=processor,
        callbacks=[steps],
    ).train()
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    clips = len(steps.seconds) * settings["training"]["per_device_train_batch_size"]
    return {
        "feature_seconds": feature_seconds,
        "train_seconds": sum(steps.seconds),
        "clips_per_second": clips / sum(steps.seconds),
        "seconds_per_step": median(steps.seconds),
        "peak_memory_bytes": peak_memory_bytes(device),
        "kept_seconds": steps.kept,
    }


def evaluate(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Maps the test clips and decodes them.

    `seconds` includes both, as ours includes clip decoding and features.
    """
    device, processor = torch.device(settings["device"]), _processor(settings)
    model = PeftModel.from_pretrained(_base(settings), folder / "adapter").to(device).eval()
    started = time.perf_counter()
    dataset, feature_seconds = _features(settings, "test", processor, folder)
    limit = min(settings["max_new_tokens"], model.config.max_target_positions - PROMPT_TOKENS)
    hypotheses: list[str] = []
    autocast = _autocast(settings)
    batches = DataLoader(dataset, batch_size=settings["decode_batch"], collate_fn=Collator(processor))
    with progress("decoding", total=len(dataset)) as bar, torch.inference_mode():
        for batch in batches:
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                ids = model.generate(
                    input_features=batch["input_features"].to(device),
                    language=settings["language"],
                    task=settings["task"],
                    max_new_tokens=limit,
                )
            hypotheses += [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
            bar.advance(len(ids))
    return {
        "feature_seconds": feature_seconds,
        "seconds": time.perf_counter() - started,
        "peak_memory_bytes": peak_memory_bytes(device),
        "hypotheses": hypotheses,
    }


class Collator:
    """Stacks features; pads labels with -100.

    The doubled start token of the notebooks is deliberate. They cut the first label where it is bos_token_id, because
    the model itself puts a start token before the labels; but bos_token_id is <|endoftext|>, which opens no label, so
    nothing is ever cut and the decoder is trained with two start tokens.
    """

    def __init__(self, processor: WhisperProcessor) -> None:
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        features = [{"input_features": row["input_features"]} for row in rows]
        batch = self.processor.feature_extractor.pad(features, return_tensors="pt")
        padded = self.processor.tokenizer.pad([{"input_ids": row["labels"]} for row in rows], return_tensors="pt")
        labels = padded.input_ids.masked_fill(padded.attention_mask.ne(1), -100)
        if (labels[:, 0] == self.processor.tokenizer.bos_token_id).all():
            labels = labels[:, 1:]
        return {"input_features": batch.input_features, "labels": labels}


class Steps(TrainerCallback):
    """Records the seconds of every step, its batch included; keeps the adapters of some, outside of the time."""

    def __init__(self, folder: Path, steps: list[int]) -> None:
        self.folder, self.steps = folder, steps
        self.seconds: list[float] = []
        self.kept: dict[int, float] = {}  # seconds of training by step

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.mark = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.mark)
        step = len(self.seconds)
        if step in self.steps:
            kwargs["model"].save_pretrained(self.folder / f"adapter-{step}", save_embedding_layers=False)
            self.kept[step] = sum(self.seconds)
        self.mark = time.perf_counter()


def _features(settings: dict[str, Any], split: str, processor: WhisperProcessor, folder: Path) -> tuple[Dataset, float]:
    """Returns 30 s of log-mel of every clip, 0.96 MB each, in an Arrow file; and the seconds that it took."""

    def prepared(row: dict[str, Any]) -> dict[str, Any]:
        extracted = processor.feature_extractor(audio.load(Path(row["path"])), sampling_rate=audio.SAMPLE_RATE)
        return {"input_features": extracted.input_features[0], "labels": processor.tokenizer(row["text"]).input_ids}

    started = time.perf_counter()
    rows = [{"path": row["path"], "text": row["text"]} for row in read_jsonl(Path(settings[split]))]
    cache = folder / "features" / f"{split}.arrow"
    cache.parent.mkdir(exist_ok=True)
    dataset = Dataset.from_list(rows[: settings["limit"]] if split == "test" else rows)
    mapped = dataset.map(prepared, remove_columns=["path", "text"], cache_file_name=str(cache))
    return mapped.with_format("numpy"), time.perf_counter() - started


def _processor(settings: dict[str, Any]) -> WhisperProcessor:
    processor = WhisperProcessor.from_pretrained(settings["checkpoint"])
    processor.tokenizer.set_prefix_tokens(
        language=settings["language"], task=settings["task"], predict_timestamps=False
    )
    return processor


def _base(settings: dict[str, Any]) -> WhisperForConditionalGeneration:
    quantized = settings["precision"] == "int8"
    return WhisperForConditionalGeneration.from_pretrained(
        settings["checkpoint"],
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True) if quantized else None,
        device_map={"": settings["device"]} if quantized else None,
    )


def _autocast(settings: dict[str, Any]) -> torch.dtype | None:
    """Returns the dtype of mixed precision by the Trainer's fp16=True or bf16=True; the same as ours."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(settings["autocast"])


if __name__ == "__main__":
    stage, scratch = {"train": train, "evaluate": evaluate}[sys.argv[1]], Path(sys.argv[2])
    write_json(scratch / f"{sys.argv[1]}.json", stage(read_json(scratch / "settings.json"), scratch))
