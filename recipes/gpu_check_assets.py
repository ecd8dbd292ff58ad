"""Inputs of recipes/gpu_check.py, made without downloads: clips, a tokenizer, random weights."""

import random
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from arms import write_random
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from asr_lora.config.compose import Config, load, quote_override
from asr_lora.data.manifest import Clip, read_manifest
from asr_lora.model import cost
from asr_lora.runs import folder as run
from asr_lora.runtime.files import atomic_folder

LANGUAGE = "nl"
SPLITS = {"train": (24, 12), "dev": (2, 2), "test": (16, 4)}  # clips, speakers; dev is decoded after what is timed
CLIP_SECONDS = (5.2, 6.7)  # with training's margin contexts of 6 to 8 s, as for most of Common Voice
CLIP_RATE = 32_000  # Hz, as in Common Voice
LETTERS = "abcdefghijklmnoprstuvwz"
LETTERS_PER_SECOND = 4.0  # a token each, so that labels are as long as the plan assumes for Dutch
DEV_TOKENS = 8  # of a clip at most, where dev is decoded after training, which is not timed
COMMAND = ("python", "recipes/gpu_check.py")
TINY = cost.ModelDimensions(d_model=16, ffn=32, encoder_layers=2, decoder_layers=2, mels=80, vocabulary=2_000)
SHAPES = {
    "large-v2": cost.PUBLISHED["openai/whisper-large-v2"],
    "small": cost.PUBLISHED["openai/whisper-small"],
    "tiny": TINY,
}


@dataclass(frozen=True)
class Bench:
    """Settings of all parts: the `folder` of their files, GB of `memory`, the choice of conf/hardware/.

    Training stops early when time.monotonic() has passed `until`.
    """

    folder: Path
    memory: float
    hardware: str
    on_gpu: bool
    until: float

    def config(self, model: str, precision: str, context: str, steps: int, *more: str) -> Config:
        """Returns the settings of a run in a separate folder, prepared once `make clips` is done."""
        name = "-".join(("run", model, precision, context, *(word.replace("=", "-") for word in more)))
        size = [f"hardware.memory_gb={self.memory:g}"] if self.on_gpu else ["training.batch_size=4"]
        if not (self.folder / name).is_dir() and (self.folder / "prepared").is_dir():
            shutil.copytree(self.folder / "prepared" / "data", self.folder / name / "data")
        return load([
            f"data.source={quote_override(str(self.folder / 'cv-corpus-noise-1.0'))}", f"data.language={LANGUAGE}",
            "data.hours=null", "data.dev_clips=2", f"model.checkpoint={quote_override(str(self.folder / model))}",
            f"model.name={model.replace('-', '_')}", f"model.precision={precision}", f"hardware={self.hardware}",
            *size, f"training.context={context}", f"training.max_steps={steps}", f"training.eval_steps={steps}",
            f"decoding.max_new_tokens={DEV_TOKENS}", "eval.after=false", f"runs_dir={quote_override(str(self.folder))}",
            f"run_dir={quote_override(str(self.folder / name))}", *more,
        ])  # fmt: skip

    def clips(self, split: str) -> list[Clip]:
        return read_manifest(run.manifest(self.folder / "prepared", split))


def write_clips(folder: Path) -> Path:
    """Writes a release like Common Voice's of noise over a tone as mp3.

    No two splits share a speaker or sentence.
    """
    home, rng = folder / "cv-corpus-noise-1.0" / LANGUAGE, random.Random(0)
    (home / "clips").mkdir(parents=True)
    seconds: dict[Path, float] = {}
    for split, (clips, speakers) in SPLITS.items():
        lines = ["client_id\tpath\tsentence\tup_votes\tdown_votes\tlocale"]
        for index in range(clips):
            clip = home / "clips" / f"common_voice_{split}_{index:03}.mp3"
            seconds[clip] = rng.uniform(*CLIP_SECONDS)
            sentence = _sentence(seconds[clip], rng)
            lines.append(f"{split}-{index * speakers // clips}\t{clip.name}\t{sentence}\t2\t0\t{LANGUAGE}")
        (home / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with ThreadPoolExecutor() as pool:
        list(pool.map(_write_noise, seconds, seconds.values()))
    durations = ["clip\tduration[ms]", *(f"{clip.name}\t{round(1000 * each)}" for clip, each in seconds.items())]
    (home / "clip_durations.tsv").write_text("\n".join(durations) + "\n", encoding="utf-8")
    return home.parent


def _sentence(seconds: float, rng: random.Random) -> str:
    words = round(seconds * LETTERS_PER_SECOND / 5)  # of four letters and a space
    return " ".join("".join(rng.choices(LETTERS, k=rng.randint(3, 5))) for _ in range(words))


def _write_noise(clip: Path, seconds: float) -> None:
    """Writes a clip whose noise is seeded by its name: no two clips are the same file."""
    rng = np.random.default_rng(zlib.crc32(clip.name.encode()))
    time = np.arange(round(seconds * CLIP_RATE)) / CLIP_RATE
    wave = 0.2 * np.sin(2 * np.pi * 150 * time) + rng.normal(0, 0.05, len(time))
    soundfile.write(clip, wave, CLIP_RATE, format="MP3")


def write_tiny(target: Path) -> None:
    """Writes a random Whisper of the sizes TINY, with Whisper's layout of tokens over single bytes."""
    tokenizer = _tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in tokenizer.get_vocab() if name.startswith("<|")}
    start, end = ids["<|startoftranscript|>"], ids["<|endoftext|>"]
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    model = WhisperForConditionalGeneration(
        WhisperConfig(**_sizes(TINY), **special, dropout=0.0, decoder_start_token_id=start)
    )
    model.generation_config = GenerationConfig(
        **special, decoder_start_token_id=start, max_length=cost.TARGET_POSITIONS, is_multilingual=True,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
    )  # fmt: skip
    with atomic_folder(target) as partial:
        model.save_pretrained(partial)
        WhisperProcessor(feature_extractor=WhisperFeatureExtractor(), tokenizer=tokenizer).save_pretrained(partial)


def write_weights(folder: Path, model: str) -> None:
    """Writes random fp16 weights of the sizes in SHAPES to `folder`/<model>, 3.1 GB for large-v2.

    On a GPU they are drawn there, in seconds, and take 6.2 GB of it for a moment.
    """
    tiny = folder / "tiny"
    if not tiny.is_dir():
        write_tiny(tiny)
    if model != "tiny":
        write_random(folder / model, str(tiny), _sizes(SHAPES[model]))


def _sizes(shape: cost.ModelDimensions) -> dict[str, int]:
    """Returns the sizes with WhisperConfig's names; a head is 64 wide in all published models."""
    heads = max(2, shape.d_model // 64)
    return {
        "d_model": shape.d_model, "vocab_size": shape.vocabulary, "num_mel_bins": shape.mels,
        "encoder_layers": shape.encoder_layers, "decoder_layers": shape.decoder_layers,
        "encoder_attention_heads": heads, "decoder_attention_heads": heads,
        "encoder_ffn_dim": shape.ffn, "decoder_ffn_dim": shape.ffn,
    }  # fmt: skip


def _tokenizer() -> WhisperTokenizer:
    """Makes a tokenizer of bytes, end, start, languages, tasks, no timestamps, timestamps."""
    vocab = {byte: index for index, byte in enumerate(sorted(ByteLevel.alphabet()))}
    special = [
        "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES), "<|translate|>", "<|transcribe|>",
        "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
    ]  # fmt: skip
    tokenizer = WhisperTokenizer(vocab=vocab, merges=[], pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(1501)])
    return tokenizer
