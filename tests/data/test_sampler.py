"""The sampler: a pure function of (seed, step), with little padding."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest

from asr_lora.config.compose import load
from asr_lora.config.schema import TrainingConfig
from asr_lora.data import sampler, windows
from asr_lora.data.manifest import Clip
from asr_lora.data.sampler import Batch, StepSampler, context_for, in_share, shard_for_rank
from asr_lora.data.windows import Place, RowSpec, sequence
from asr_lora.training.builder import step_sampler

KINDS = ("full", "dynamic", "windows")


def durations(clips: int, seed: int = 0) -> list[float]:
    """Draws lengths like Common Voice's: 4.4 s on average, few under 1.5 or over 9."""
    drawn = np.random.default_rng(seed).lognormal(np.log(4.2), 0.33, clips)
    return [float(seconds) for seconds in np.clip(drawn, 1.0, 12.0)]


@cache
def usual() -> TrainingConfig:
    return load().training


def order(kind: str = "dynamic", clips: int = 50, seed: int = 0, **settings: Any) -> StepSampler:
    """Returns a sampler of `training.*` of conf/, with `settings`, which may also be its durations and tokens.

    Windows are in every step.
    """
    lengths = settings.pop("durations", durations(clips))
    tokens, training = settings.pop("tokens", [20] * len(lengths)), usual()
    chosen = {"context": kind, "window_share": 1.0, **settings}
    return StepSampler(lengths, tokens, replace(training, **chosen), seed, token_limit=448)


@pytest.mark.parametrize(("share", "steps"), [(0.0, []), (0.25, [3, 7, 11]), (1.0, list(range(12)))])
def test_steps_of_a_share_are_spread_evenly(share: float, steps: list[int]) -> None:
    assert [step for step in range(12) if in_share(step, share)] == steps


def clips_of(batches: Sequence[Batch]) -> list[int]:
    """Returns the clips of a step; one that is cut at the end of a window is whole in the next."""
    return [clip for batch in batches for row in batch.rows for clip in row.clips[: len(row.clips) - row.cut]]


def length(row: RowSpec, lengths: Sequence[float]) -> float:
    return sum(lengths[clip] for clip in row.clips[: len(row.clips) - row.cut])


# --- of every kind ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_follows_from_seed_and_step_alone(kind: str) -> None:
    forwards = [order(kind).step(step) for step in range(40)]
    asked = order(kind)
    backwards = [asked.step(step) for step in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert forwards != [order(kind, seed=4).step(step) for step in range(40)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("clips", "batch_size"), [(50, 8), (16, 8), (13, 8), (8, 8), (3, 8), (1, 4), (300, 7)])
def test_every_step_has_the_same_count_of_clips(kind: str, clips: int, batch_size: int) -> None:
    drawn = order(kind, clips, batch_size=batch_size)
    assert all(len(clips_of(drawn.step(step))) == batch_size for step in range(60))


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_holds_its_longest_row(kind: str) -> None:
    lengths = durations(200)
    for batch in chain.from_iterable(order(kind, durations=lengths).step(step) for step in range(50)):
        assert max(length(row, lengths) for row in batch.rows) <= batch.seconds <= 30


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_divide_the_rows_evenly(kind: str, world_size: int) -> None:
    drawn = order(kind)
    for step in range(30):
        shares = [shard_for_rank(drawn.step(step), rank, world_size) for rank in range(world_size)]
        assert sorted(chain.from_iterable(map(clips_of, shares))) == sorted(clips_of(drawn.step(step)))
        rows = [sum(len(batch.rows) for batch in mine) for mine in shares]
        assert max(rows) - min(rows) <= 1


@pytest.mark.parametrize(("clips", "batch_size"), [(16, 8), (13, 8), (8, 8), (3, 8), (1, 4), (50, 7)])
def test_every_clip_comes_once_before_any_comes_again(clips: int, batch_size: int) -> None:
    drawn = order("full", clips, batch_size=batch_size)
    stream = list(chain.from_iterable(clips_of(drawn.step(step)) for step in range(40)))
    epochs = [stream[start : start + clips] for start in range(0, len(stream) - clips + 1, clips)]
    assert all(sorted(epoch) == list(range(clips)) for epoch in epochs)


def test_epochs_have_orders_of_their_own() -> None:
    drawn = order("full", clips=8)
    assert len({tuple(clips_of(drawn.step(epoch))) for epoch in range(20)}) == 20


def test_the_order_of_an_epoch_is_drawn_once_for_all_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []
    drawn_from = sampler._epoch_clips

    def watched(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        epochs.append(epoch)
        return drawn_from(weights, seed, epoch)

    monkeypatch.setattr(sampler, "_epoch_clips", watched)
    for kind in ("full", "dynamic"):
        drawn = order(kind, clips=46_000, seed=99)
        epochs.clear()
        for step in range(1_000):
            drawn.step(step)
        assert epochs == [0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_has_a_clip_as_often_as_its_weight(kind: str) -> None:
    lengths, weights = durations(400), [2.0] * 100 + [0.25] * 200 + [1.0] * 100
    training = replace(load().training, context=kind)
    drawn = StepSampler(lengths, [10] * 400, training, 0, 448, weights)
    assert drawn.per_epoch == 200 + 50 + 100
    steps = drawn.per_epoch // training.batch_size
    counts = Counter(clip for step in range(4 * steps) for clip in clips_of(drawn.step(step)))
    part = [sum(counts[clip] for clip in clips) for clips in (range(100), range(100, 300), range(300, 400))]
    assert np.allclose(np.array(part) / sum(part), np.array([200, 50, 100]) / 350, atol=0.02)
    once = StepSampler(lengths, [10] * 400, training, 0, 448, [1.0] * 400)
    usual = StepSampler(lengths, [10] * 400, training, 0, 448)
    assert [once.step(step) for step in range(60)] == [usual.step(step) for step in range(60)]


def test_clips_that_an_epoch_leaves_out_come_in_another() -> None:
    drawn = StepSampler(durations(100), [10] * 100, replace(load().training, context="full"), 0, 448, [0.25] * 100)
    epochs = [set(drawn._permutation(epoch).tolist()) for epoch in range(20)]
    assert all(len(epoch) == 25 for epoch in epochs) and len(set.union(*epochs)) > 95


# --- dynamic ----------------------------------------------------------------------------------------------------------


def test_like_lengths_come_together_but_batches_are_not_in_order_of_length() -> None:
    lengths = durations(2_000)
    drawn = order(durations=lengths)
    batches = [clips_of(drawn.step(step)) for step in range(250)]
    spread = np.mean([max(lengths[clip] for clip in batch) - min(lengths[clip] for clip in batch) for batch in batches])
    assert spread < 0.6  # of random batches it is over 4
    means = [np.mean([lengths[clip] for clip in batch]) for batch in batches]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


def test_an_epoch_of_like_lengths_has_no_clip_twice_and_leaves_out_less_than_a_batch() -> None:
    drawn = order(clips=53)
    epochs = [list(chain.from_iterable(clips_of(drawn.step(epoch * 6 + at)) for at in range(6))) for epoch in range(9)]
    assert all(len(set(epoch)) == 48 for epoch in epochs)
    assert set(chain.from_iterable(epochs)) == set(range(53))  # other clips are left out in each epoch


def test_a_clip_has_other_neighbors_in_every_epoch() -> None:
    drawn = order(clips=400)
    neighbors = set()
    for step in range(500):  # ten epochs
        clips = clips_of(drawn.step(step))
        neighbors |= set(clips) if 7 in clips else set()
    assert len(neighbors) > 30


def test_padding_is_under_a_third_on_clips_of_common_voices_lengths(words: list[str]) -> None:
    """With the default settings; at 30 s it is 85 %."""
    config = load([*words, "training.batch_size=8"])
    rows: list[Clip] = [
        {"duration": seconds, "text": "dit is een zin", "speaker": f"speaker{at // 5}", "path": f"{at}.mp3"}
        for at, seconds in enumerate(durations(5_000))
    ]
    assert np.mean([row["duration"] for row in rows]) == pytest.approx(4.37, abs=0.1)
    assert step_sampler(config, rows).padding_fraction(1_000) < 0.35
    full = load([*words, "training.context=full"])
    assert step_sampler(full, rows).padding_fraction(100) == pytest.approx(0.85, abs=0.01)


@pytest.mark.parametrize(
    ("seconds", "context"),
    [(5.0, 5.12), (5.12, 5.12), (5.13, 5.44), (6.4, 6.4), (29.9, 30.0), (31.0, 30.0), (0.01, 0.32)],
)
def test_contexts_are_multiples_and_never_beyond_the_window(seconds: float, context: float) -> None:
    assert context_for(seconds, 0.32) == context


# --- windows ----------------------------------------------------------------------------------------------------------


def rows_of(drawn: StepSampler, steps: int) -> list[RowSpec]:
    return [row for step in range(steps) for batch in drawn.step(step) for row in batch.rows]


def test_windows_fill_thirty_seconds_and_a_share_of_clips_stays_single() -> None:
    lengths = durations(3_000)
    drawn = order("windows", durations=lengths, batch_size=64, window_single=0.4, no_speech_share=0)
    rows = rows_of(drawn, 40)
    single = sum(len(row.clips) == 1 for row in rows) / (40 * 64)
    assert 0.35 < single < 0.45
    full = [length(row, lengths) + sum(row.pauses) for row in rows if len(row.clips) > 2 and not row.cut]
    assert max(full) <= 30 and np.mean(full) > 22


def test_a_window_with_timestamps_ends_within_a_sentence_with_which_the_next_begins() -> None:
    lengths = durations(300)
    drawn = order("windows", durations=lengths, batch_size=32, window_single=0, window_timestamps=1, no_speech_share=0)
    for step in range(20):
        (batch,) = drawn.step(step)
        assert batch.seconds == 30
        for row, following in zip(batch.rows, batch.rows[1:], strict=False):
            if row.cut:
                whole = sum(lengths[clip] for clip in row.clips[:-1]) + sum(row.pauses)
                assert (
                    following.clips[0] == row.clips[-1]
                    and whole + windows.SHORTEST_CUT <= 30 < whole + lengths[row.clips[-1]]
                )
    assert sum(row.cut for row in rows_of(drawn, 20)) > 20


def test_steps_of_windows_and_of_clips_alone_each_go_through_all_clips() -> None:
    drawn = order("windows", clips=80, window_share=0.3, window_single=0, no_speech_share=0, window_prompts=1)
    steps = [drawn.step(step) for step in range(200)]
    windowed = [any(len(row.clips) > 1 or row.before for batch in step for row in batch.rows) for step in steps]
    assert sum(windowed) == 60
    plain = [in_share(step, usual().plain_share) for step in range(200)]
    assert sum(both for both, each in zip(plain, windowed, strict=True) if each) == 30  # as many with silence
    for kind in (True, False):
        own = [clips_of(step) for step, each in zip(steps, windowed, strict=True) if each is kind]
        assert all(len(set(chain.from_iterable(own[at : at + 10]))) == 80 for at in range(0, len(own) - 9, 10))


def test_rows_without_timestamps_have_short_contexts_and_none_is_cut() -> None:
    drawn = order("windows", batch_size=8, window_timestamps=0, window_single=0.5, no_speech_share=0)
    batches = [batch for step in range(40) for batch in drawn.step(step)]
    assert not any(row.cut or row.timestamps for batch in batches for row in batch.rows)
    assert np.mean([batch.seconds < 30 for batch in batches]) > 0.5


def test_the_share_of_rows_with_times_with_a_prompt_and_without_speech_is_that_of_the_settings() -> None:
    chosen = {"window_timestamps": 0.3, "window_prompts": 0.4, "no_speech_share": 0.1, "window_single": 0}
    rows = rows_of(order("windows", clips=400, batch_size=32, **chosen), 200)
    spoken = [row for row in rows if row.clips]
    assert np.mean([row.timestamps for row in spoken]) == pytest.approx(0.3, abs=0.05)
    assert np.mean([bool(row.before) for row in spoken]) == pytest.approx(0.4, abs=0.05)
    rows += rows_of(order("windows", clips=800, batch_size=400, **chosen), 40)  # several without speech in a step
    spoken, quiet = ([row for row in rows if bool(row.clips) is kind] for kind in (True, False))
    assert all(row.no_speech for row in quiet) and len(quiet) / len(spoken) == pytest.approx(0.1, abs=0.02)


def talks(recordings: int, sentences: int) -> list[Place]:
    return [Place(f"talk{at // sentences}", 4.0 * (at % sentences), "Anna") for at in range(recordings * sentences)]


def test_neighbors_of_a_recording_stay_neighbors_and_no_window_holds_two_recordings() -> None:
    training = replace(usual(), context="windows", window_share=1.0, window_single=0.0, no_speech_share=0.0)
    places = talks(10, 23)
    drawn = StepSampler([4.0] * 230, [10] * 230, training, 0, 448, None, places)
    joins = 0
    for row in rows_of(drawn, 60):
        assert len({places[clip].recording for clip in row.clips}) == 1
        assert list(row.clips) == list(range(row.clips[0], row.clips[0] + len(row.clips)))
        assert list(row.before) == list(range(row.clips[0] - len(row.before), row.clips[0]))
        assert not row.before or places[row.before[0]].recording == places[row.clips[0]].recording
        joins += len(row.clips) > 1
    assert joins > 30


@pytest.mark.parametrize("weight", [1.5, 2.0])
@pytest.mark.parametrize("speaker", ["", "Anna"])
def test_a_prompt_is_the_text_before_and_never_that_of_the_row_where_clips_have_weights(
    weight: float, speaker: str
) -> None:
    training = replace(usual(), context="windows", window_share=1.0, window_single=0.0, window_prompts=1.0)
    for places in (talks(10, 8), [Place(speaker=speaker)] * 80):
        drawn = StepSampler([4.0] * 80, [10] * 80, training, 0, 448, [weight] * 80, places)
        rows = [row for row in rows_of(drawn, 100) if row.before]
        assert not any(set(row.before) & set(row.clips) for row in rows)
        if places[0].recording:
            assert len(rows) > 50
            assert all(list(row.before) == list(range(row.clips[0] - len(row.before), row.clips[0])) for row in rows)


def test_a_step_does_not_depend_on_the_epochs_that_were_drawn_before() -> None:
    drawn = order("windows", clips=80, window_prompts=1)
    first = [drawn.step(step) for step in range(10)]
    drawn.epoch(5, windowed=True)
    assert [drawn.step(step) for step in range(10)] == first


def test_clips_of_a_speaker_come_one_after_the_other() -> None:
    places = [Place(speaker=f"speaker{at % 7}") for at in range(70)]
    order_of = sequence(list(np.random.default_rng(0).permutation(70)), places)
    speakers = [places[clip].speaker for clip in order_of]
    assert sorted(order_of) == list(range(70)) and sum(a != b for a, b in pairwise(speakers)) == 6


def test_a_window_ends_where_the_decoder_would() -> None:
    chosen = {"window_single": 0, "window_timestamps": 0, "window_prompts": 1, "no_speech_share": 0}
    rows = rows_of(order("windows", clips=100, tokens=[200] * 100, **chosen), 20)
    assert max(200 * len(row.clips) + 200 * len(row.before) for row in rows) == 400


def test_a_label_as_long_as_the_decoder_gets_no_times_that_would_exceed_it() -> None:
    """As of 30 s in languages that Whisper writes in bytes; labels have up to 449 tokens, whose end is no input."""
    chosen = {"window_single": 0, "window_timestamps": 1, "window_prompts": 1, "no_speech_share": 0}
    for tokens in (447, 448, 449):
        rows = rows_of(order("windows", clips=40, tokens=[tokens] * 40, **chosen), 5)
        assert {row.clips[1:] + row.before for row in rows} == {()}
        inputs = tokens - 1 + any(row.timestamps for row in rows)  # two times, and no <|notimestamps|>
        assert inputs <= 448
    assert all(row.timestamps for row in rows_of(order("windows", clips=40, tokens=[400] * 40, **chosen), 5))
