"""Augmentation: what each kind does to audio, reproducibly, in training alone; and SpecAugment."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.releases import tone
from support.runs import Fixed, hardware_of
from transformers import WhisperProcessor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from asr_lora import train
from asr_lora.config.compose import load
from asr_lora.data.dataset import StepDataset
from asr_lora.data.features import Example, SpeechCollator, collate, label_ids
from asr_lora.data.sampler import Batch, StepSampler
from asr_lora.data.windows import RowSpec
from asr_lora.model import whisper
from asr_lora.prepare import prepare
from asr_lora.runs import folder as run
from asr_lora.runtime.console import progress
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import read_json, read_jsonl, write_json
from asr_lora.speech import audio, augment
from asr_lora.speech.audio import SAMPLE_RATE
from asr_lora.speech.limits import AUGMENTATIONS
from asr_lora.training import builder


def speech(seconds: float) -> audio.Waveform:
    """Synthesizes syllables of noise, half of the time silence."""
    rng, samples = np.random.default_rng(0), round(seconds * SAMPLE_RATE)
    syllables = np.sin(2 * np.pi * 4 * np.arange(samples) / SAMPLE_RATE) > 0
    return (0.1 * rng.standard_normal(samples) * syllables).astype(np.float32)


def draws(kind: str, waveform: audio.Waveform, count: int = 20) -> list[audio.Waveform]:
    return [augment.augment(waveform, kind, np.random.default_rng(at)) for at in range(count)]


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_all_random_numbers_come_from_the_given_generator(kind: str) -> None:
    waveform = speech(1)
    before = waveform.copy(), torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first, second = draws(kind, waveform), draws(kind, waveform)
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    assert len({one.tobytes() for one in first}) == len(first)
    assert np.array_equal(waveform, before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.array_equal(np.random.get_state()[1], before[2])
    assert random.getstate() == before[3]


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("samples", [1, 2, 100, 16_000, 80_001])
def test_any_clip_becomes_finite_audio_that_fits(kind: str, samples: int) -> None:
    waveform, longest = speech(6)[2:][:samples], int(samples * 1.03)
    for at in range(20):
        sound = augment.augment(waveform, kind, np.random.default_rng(at), longest)
        assert sound.dtype == np.float32 and sound.ndim == 1 and np.isfinite(sound).all()
        assert 0.9 * samples <= len(sound) <= longest
        assert len(sound) == samples or kind != "telephone"
        # A filter behind the gain may add half a dB over full scale.
        assert abs(sound).max() <= 1.06


def test_a_silent_clip_does_not_change() -> None:
    for kind in AUGMENTATIONS:
        for loudness in (0, 1e-6):
            silence = np.full(800, loudness, dtype=np.float32)
            assert all(np.array_equal(sound, silence) for sound in draws(kind, silence))


def alone(monkeypatch: pytest.MonkeyPatch, **constants: Any) -> None:
    """Turns off all augmentation but what `constants` set."""
    nothing = {"SPEED": 0, "GAINS": (0.0, 0.0), "ROOM_SHARE": 0.0, "NOISY_SHARE": 0.0, "TELEPHONE_SHARE": 0.0}
    for name, value in (nothing | constants).items():
        monkeypatch.setattr(augment, name, value)


def decibels(sound: audio.Waveform) -> float:
    return float(10 * np.log10(np.mean(sound.astype(np.float64) ** 2)))


def test_speed_changes_length_and_pitch_alike_and_slower_as_often_as_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, SPEED=10)
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    sounds = draws("light", (0.1 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32), 200)
    for sound in sounds:
        pitch = np.abs(np.fft.rfft(sound)).argmax() * SAMPLE_RATE / len(sound)
        assert pitch * len(sound) / SAMPLE_RATE == pytest.approx(1000, abs=1)
    lengths = [len(sound) / SAMPLE_RATE for sound in sounds]
    assert (min(lengths), max(lengths)) == pytest.approx((1 / 1.1, 1 / 0.9), abs=0.01)
    assert np.mean([length > 1 for length in lengths]) == pytest.approx(0.48, abs=0.1)


def test_gain_is_within_its_range_and_never_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, GAINS=(-10.0, 10.0))
    waveform = speech(1)
    change = [decibels(sound) - decibels(waveform) for sound in draws("light", waveform, 100)]
    assert -10 <= min(change) < -8 and 5 < max(change) <= 10
    loud = waveform / abs(waveform).max()
    assert max(abs(sound).max() for sound in draws("light", loud)) <= 1 + 1e-6


def test_noise_has_the_given_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, NOISY_SHARE=1.0)
    waveform = speech(2)
    ratios = [decibels(waveform) - decibels(sound - waveform) for sound in draws("noisy", waveform, 60)]
    low, high = augment.SNRS
    assert low - 0.1 <= min(ratios) < low + 4 and high - 4 < max(ratios) <= high + 0.1


def test_a_crowd_has_the_spectrum_of_the_clip_and_none_of_its_pauses() -> None:
    waveform = speech(2)
    murmur = augment._crowd(torch.from_numpy(waveform), np.random.default_rng(0))
    assert decibels(murmur) == pytest.approx(decibels(waveform), abs=0.1)
    pauses = waveform == 0
    assert decibels(waveform[~pauses]) - decibels(waveform) > 2.5
    assert decibels(murmur[pauses]) == pytest.approx(decibels(murmur[~pauses]), abs=1)


def test_a_room_dies_away_by_sixty_decibels_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, ROOM_SHARE=1.0, REVERBERATIONS=(0.4, 0.4), DIRECT=(6.0, 6.0))
    click = np.zeros(SAMPLE_RATE, dtype=np.float32)
    click[0] = 0.5
    for sound in draws("noisy", click, 5):
        assert decibels(sound) == pytest.approx(decibels(click), abs=0.01) and len(sound) == len(click)
        assert 10 * np.log10(sound[0] ** 2 / np.sum(sound[1:] ** 2)) == pytest.approx(6, abs=0.1)
        early, late = (decibels(sound[round(at * SAMPLE_RATE) :][:800]) for at in (0.05, 0.25))
        assert early - late == pytest.approx(60 * 0.2 / 0.4, abs=3)


def test_a_telephone_line_removes_highs_and_lows_and_keeps_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, TELEPHONE_SHARE=1.0)
    hiss = (0.1 * np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE)).astype(np.float32)
    frequencies = np.fft.rfftfreq(len(hiss), 1 / SAMPLE_RATE)

    def band(sound: audio.Waveform, low: float, high: float) -> float:
        return decibels(np.abs(np.fft.rfft(sound))[(frequencies >= low) & (frequencies < high)])

    received = draws("telephone", hiss, 12)
    assert len({sound.tobytes() for sound in received}) == len(augment.LINE_CODECS)
    for sound in received:
        assert np.correlate(sound, hiss[800:-800]).argmax() == 800
        assert band(sound, 500, 3000) == pytest.approx(band(hiss, 500, 3000), abs=3)
        assert band(sound, 4200, 8000) < band(hiss, 4200, 8000) - 30
        assert band(sound, 10, 100) < band(hiss, 10, 100) - 10


# ---- in the collator ----


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    """Twelve clips of 0.3 to 1.4 s."""
    made = []
    for at in range(12):
        path = tmp_path / f"{at}.mp3"
        path.write_bytes(tone(path.name, 0.3 + 0.1 * at))
        made.append({"path": str(path), "text": f"zin {at}", "duration": len(audio.load(path)) / SAMPLE_RATE})
    return made


def equal(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    assert [list(batch) for batch in one] == [list(batch) for batch in other]
    return all(torch.equal(batch[key], other[at][key]) for at, batch in enumerate(one) for key in batch)


def dynamic(rows: list[dict[str, Any]], *overrides: str) -> StepSampler:
    training = load(["training.batch_size=4", *overrides]).training
    return StepSampler([row["duration"] for row in rows], [4] * len(rows), training, 0, 448)


def test_without_augmentation_a_batch_is_the_plain_one(rows: list[dict[str, Any]], processor: WhisperProcessor) -> None:
    (batch,) = StepDataset(rows, Fixed(Batch((RowSpec((3,)), RowSpec((5,))), 1.6)), 1, SpeechCollator(processor))[0]
    examples = [
        Example(audio.load(Path(rows[at]["path"])), label_ids(rows[at]["text"], processor.tokenizer)) for at in (3, 5)
    ]
    assert equal([batch], [collate(examples, processor, 1.6)])
    assert list(batch) == ["input_features", "decoder_input_ids", "labels"]


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_augmentation_follows_from_seed_step_and_clip_alone(
    rows: list[dict[str, Any]], processor: WhisperProcessor, kind: str
) -> None:
    steps = StepDataset(rows, dynamic(rows), 6, SpeechCollator(processor, kind, 1))
    alone, crew = (list(torch.utils.data.DataLoader(steps, batch_size=None, num_workers=workers)) for workers in (0, 2))
    assert all(equal(one, other) for one, other in zip(alone, crew, strict=True))
    assert equal(steps[4], alone[4])  # asked for again, out of order
    fixed = Fixed(Batch((RowSpec((7,)), RowSpec((8,))), 30.0))
    (first,) = StepDataset(rows, fixed, 2, SpeechCollator(processor, kind, 1))[0]
    (later,) = StepDataset(rows, fixed, 2, SpeechCollator(processor, kind, 1))[1]
    (other,) = StepDataset(rows, fixed, 2, SpeechCollator(processor, kind, 2))[0]
    assert not torch.equal(first["input_features"], later["input_features"])
    assert not torch.equal(first["input_features"], other["input_features"])
    (mine,) = StepDataset(rows, fixed, 2, SpeechCollator(processor, kind, 1), rank=1, world_size=2)[0]
    assert torch.equal(mine["input_features"], first["input_features"][1:])


def test_clips_that_a_model_labeled_have_an_augmentation_of_their_own(
    rows: list[dict[str, Any]], processor: WhisperProcessor
) -> None:
    labeled = [row | {"label_model": "nl"} if at == 7 else row for at, row in enumerate(rows)]
    fixed = Fixed(Batch((RowSpec((7,)), RowSpec((8,))), 30.0))

    def features(*kinds: str | None) -> torch.Tensor:
        (batch,) = StepDataset(labeled, fixed, 1, SpeechCollator(processor, kinds[0], augment_labels=kinds[1]))[0]
        return batch["input_features"]

    plain, own, both, light = (
        features(*kinds) for kinds in [(None, None), (None, "noisy"), ("light", "noisy"), ("light", None)]
    )
    assert torch.equal(own[1], plain[1]) and not torch.equal(own[0], plain[0])
    assert torch.equal(both[0], own[0]) and torch.equal(both[1], light[1]) and not torch.equal(light[0], plain[0])


@pytest.mark.parametrize("context", ["dynamic", "full", "windows"])
def test_no_sample_is_cut_however_tight_the_context(
    rows: list[dict[str, Any]], processor: WhisperProcessor, context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone(monkeypatch, SPEED=10)
    for module in ("sampler", "windows"):
        monkeypatch.setattr(f"asr_lora.data.{module}.MAX_SECONDS", 3.0)  # so that windows are tight
    tight = [
        "training.context_margin=[0,0]", "training.context_multiple=0.02",
        "training.window_share=1", "training.no_speech_share=0", "training.window_pauses=[0,0]",
    ]  # fmt: skip
    order = dynamic(rows, f"training.context={context}", *tight)
    steps, stretched = StepDataset(rows, order, 60, SpeechCollator(processor, "light")), []
    for step in range(60):
        for batch in order.step(step):
            for row in batch.rows:
                samples = len(steps.collator.example(row, steps.clips[list(row.clips)], step, batch.seconds).waveform)
                assert samples <= round(batch.seconds * SAMPLE_RATE)
                if not row.cut:
                    stretched.append(samples / sum(round(rows[clip]["duration"] * SAMPLE_RATE) for clip in row.clips))
    assert min(stretched) < 0.97 and max(stretched) > 1.03


def test_timestamps_of_joined_clips_are_those_of_the_augmented_audio(
    rows: list[dict[str, Any]], processor: WhisperProcessor
) -> None:
    row = RowSpec((2, 9, 4), timestamps=True)
    steps = StepDataset(rows, Fixed(Batch((row,), 30.0)), 9, SpeechCollator(processor, "light"))
    for step in range(9):
        tokens = processor.tokenizer.convert_ids_to_tokens(
            steps.collator.example(row, steps.clips[list(row.clips)], step, 30.0).ids
        )
        times = [float(token[2:-2]) for token in tokens if token.startswith("<|") and "." in token]
        streams = {clip: np.random.default_rng((0, step, clip, *b"augment")) for clip in row.clips}
        lengths = [len(augment.augment(audio.load(Path(rows[at]["path"])), "light", streams[at])) for at in row.clips]
        ends = np.cumsum(lengths) / SAMPLE_RATE
        assert times == pytest.approx([0, ends[0], ends[0], ends[1], ends[1], ends[2]], abs=0.011)
        assert len(steps.collator.example(row, steps.clips[list(row.clips)], step, 30.0).waveform) == sum(lengths)


# ---- in a run ----


def test_only_training_clips_are_augmented_and_the_run_records_it(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    augmented, really = [], augment.augment

    def spy(waveform: audio.Waveform, *args: Any, **rest: Any) -> audio.Waveform:
        augmented.append(len(waveform))
        return really(waveform, *args, **rest)

    for module in ("asr_lora.speech.augment", "asr_lora.data.features"):
        monkeypatch.setattr(f"{module}.augment", spy)
    config = load([*words, "data.augment=noisy", "training.learning_rate=1e-30"])
    train.train(config)
    facts = read_json(config.run / "train" / "metrics.json")
    assert (facts["augment"], facts["spec_augment"]) == ("noisy", False)
    assert 0 <= facts["data_wait_fraction"] <= 1
    assert len(augmented) == facts["clips_seen"] == 8  # dev and test were decoded as well
    # With an adapter that learned nothing, dev and test give the hypotheses of the base model.
    lines = read_jsonl(config.run / "eval" / "test" / "hypotheses.jsonl")
    assert [line["hypothesis"] for line in lines] == [line["baseline_hypothesis"] for line in lines]


def test_run_names_have_it_in_a_word() -> None:
    assert load(["data.augment=telephone"]).run_name == "nl-1h-large_v2-qv-r32-s0-telephone"
    assert load(["training.spec_augment=true"]).run_name == "nl-1h-large_v2-qv-r32-s0-specaugment"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (["data.augment=loud"], r"data\.augment: loud is none of light, noisy, telephone"),
        (["training.mask_share=2"], r"training\.mask_share: must be a share"),
        (["training.mask_bins=81"], r"training\.mask_bins: must be within 0 to 80"),
        (["training.mask_seconds=31"], r"training\.mask_seconds: must be within 0 to 30"),
    ],
)
def test_impossible_settings_are_refused(setting: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(setting)


MASKED = ["training.spec_augment=true", "training.mask_count=3", "training.mask_share=0.5"]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_jsonl(folder / "train" / "log.jsonl") if "loss" in line]


@pytest.mark.parametrize("context", ["dynamic", "full", "windows"])
def test_spec_augment_silences_parts_of_clips_in_training_alone(
    words: list[str], context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, really = [], augment.mask

    def spy(features: torch.Tensor, *args: Any) -> torch.Tensor:
        drawn.append((features.clone(), really(features, *args)))
        return drawn[-1][1]

    monkeypatch.setattr("asr_lora.data.features.mask", spy)
    contexts = [f"training.context={context}", "training.window_share=1"]
    config = load([*words, *MASKED, *contexts, "eval.after=false", "hardware.micro_batch=8"])
    prepare(config)
    seen: list[torch.Tensor] = []
    with progress("training", total=2) as bar:
        trainer = builder.build_trainer(config, hardware_of(config), read_jsonl(run.manifest(config.run, "train")), bar)
        (encoder,) = (module for module in trainer.model.modules() if isinstance(module, WhisperEncoder))
        encoder.conv1.register_forward_pre_hook(
            lambda module, args: seen.extend(args[0].clone()) if module.training else None
        )
        trainer.train()
    assert len(trainer.dev.clips) and len(drawn) == len(seen)  # dev was decoded too
    for row, (before, masked) in zip(seen, drawn, strict=True):
        assert torch.equal(row, masked)
        silence = torch.full((), max(float(before.max()) - 2, -1.5))  # of this clip
        torch.testing.assert_close(masked[masked != before], silence.expand(int((masked != before).sum())))
    assert sum(not torch.equal(*pair) for pair in drawn) > len(drawn) / 2


def test_masks_are_of_a_policys_sizes_at_uniform_places(processor: WhisperProcessor) -> None:
    features, policy = torch.randn(80, 400), augment.Masks(1, 27, 50, 0.2)
    widths, lengths, covered = [], [], torch.zeros(400)
    for seed in range(3000):
        masked = augment.mask(features, 200, policy, np.random.default_rng(seed))
        silent = masked == features.max() - 2
        assert not silent[:, 200:].any()  # the silence behind the clip stays as it is
        widths.append(int(silent[:, :200].all(dim=1).sum()))
        lengths.append(int(silent.all(dim=0).sum()))
        covered += silent.all(dim=0)
    assert (min(widths), max(widths)) == (0, 27) and np.mean(widths) == pytest.approx(13.5, abs=0.6)
    assert (min(lengths), max(lengths)) == (0, 40) and np.mean(lengths) == pytest.approx(20, abs=0.9)  # 40 = 0.2 of 200
    middle = covered[50:150] / 3000  # a place far from both ends is covered as often as any other
    assert float(middle.mean()) == pytest.approx(20 / 180, rel=0.1) and float(middle.std()) < 0.2 * float(middle.mean())


@pytest.mark.slow
def test_spec_augment_is_drawn_from_the_seed_and_is_not_saved_with_the_adapter(words: list[str]) -> None:
    usual, one, two, cut = (
        load([*words, *settings, "data.augment=light", "eval.after=false", f"run_name={name}"])
        for name, settings in {
            "usual": [], "one": MASKED, "two": [*MASKED, "hardware.workers=2"],
            "cut": [*MASKED, "hardware.gradient_checkpointing=true"],
        }.items()
    )  # fmt: skip
    for config in (usual, one, two, cut):
        train.train(config)
    assert losses(one.run) == losses(two.run) == pytest.approx(losses(cut.run)) and losses(one.run) != losses(usual.run)
    weights = [load_file(run.adapter(config.run) / "adapter_model.safetensors") for config in (one, two)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    for name in ("adapter_config.json", "asr_lora.json"):
        assert read_json(run.adapter(one.run) / name) == read_json(run.adapter(usual.run) / name)
    assert read_json(one.run / "train" / "metrics.json")["spec_augment"] is True


def test_a_base_that_masks_by_itself_does_not_in_training(tiny_checkpoint: Path, tmp_path: Path) -> None:
    masking = shutil.copytree(tiny_checkpoint, tmp_path / "masking")
    write_json(masking / "config.json", read_json(masking / "config.json") | {"apply_spec_augment": True})
    assert not whisper.load(str(masking), "fp32", torch.device("cpu")).config.apply_spec_augment


def test_silent_and_very_short_clips_are_masked_without_an_error(processor: WhisperProcessor) -> None:
    policy = augment.Masks(2, 27, 50, 0.2)
    for seconds, loudness in ((0.05, 1.0), (0.005, 1.0), (0.6, 0.0)):
        example = Example((loudness * speech(seconds)).astype(np.float32), label_ids("ja", processor.tokenizer), (7,))
        masked, before = (collate([example], processor, 0.6, which)["input_features"] for which in (policy, None))
        assert masked.isfinite().all() and torch.equal(masked[..., 10:], before[..., 10:]) == (
            seconds < 0.1 or not loudness
        )
