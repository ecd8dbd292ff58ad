"""The divergence guard over whole runs of simulated dev decodings: sound runs go on, collapses end within two."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asr_lora.config.schema import DivergenceConfig
from asr_lora.data.manifest import Clip
from asr_lora.runtime.files import write_json
from asr_lora.training.callbacks import DivergenceError, DivergenceGuard
from asr_lora.training.validation import DevEvaluator, DevResult, dev_normalizer

CLIPS, DECODINGS = 20, 12
SEEDS = range(240, 300)  # of these 60 runs none ends, of the 300 from 0 on 4 do
RUNAWAY = 0.04  # of the clips; errors are 20 to 200 there, and few anywhere else
VOCABULARY = ["huis", "boom", "fiets", "water", "straat", "brood", "school", "lamp", "raam", "tafel"]
WRONG = ["muis", "droom", "niets", "later", "staat", "rood", "rol", "ramp", "kraam", "gaten", "met", "van", "toch"]

Random = np.random.Generator


def decode(random: Random, references: Sequence[str], wrong: Sequence[float]) -> list[str]:
    """Writes hypotheses: each word is wrong with its clip's probability, some clips run away."""
    texts = []
    for reference, chance in zip(references, wrong, strict=True):
        text = " ".join(random.choice(WRONG) if random.random() < chance else word for word in reference.split())
        ran = random.random() < RUNAWAY
        texts.append(text + " nee" * int(np.exp(random.uniform(np.log(20), np.log(200)))) if ran else text)
    return texts


def decoded(texts: Sequence[str]) -> dict[str, Any]:
    return {"hypotheses": list(texts), "truncated": [False] * len(texts)}


class SimulatedRun:
    """A run whose dev decodings are texts; `again` is the share of clips that are new in each."""

    def __init__(self, seed: int, folder: Path, clips: int = CLIPS, decodings: int = DECODINGS) -> None:
        self.random, self.decodings = np.random.default_rng(seed), decodings
        self.references = [" ".join(self.random.choice(VOCABULARY, self.random.integers(6, 11))) for _ in range(clips)]
        self.wrong = self.random.beta(1.2, 5.5, clips)  # by clip: mean 0.18
        self.base = decode(self.random, self.references, self.wrong)
        write_json(folder / "baseline.json", decoded(self.base))
        rows: list[Clip] = [{"text": each, "duration": 4.0, "speaker": ""} for each in self.references]  # type: ignore
        unused: Any = None
        normalizer = dev_normalizer(None, "nl")
        self.dev = DevEvaluator(
            unused, unused, rows, unused, folder / "baseline.json", normalizer, 0, decodings=decodings
        )

    def results(self, wrong: Sequence[float], again: float) -> list[DevResult]:
        """Scores all dev decodings of a fine-tuned model with these probabilities of a wrong word, by clip."""
        texts, results = decode(self.random, self.references, wrong), []
        for _ in range(self.decodings):
            new = decode(self.random, self.references, wrong)
            texts = [b if self.random.random() < again else a for a, b in zip(texts, new, strict=True)]
            results.append(self.dev._score(decoded(texts), []))
        return results


def alarm(results: Sequence[DevResult]) -> int | None:
    """Returns the dev decoding, counted from 1, at which the guard ends a run; None: never."""
    guard = DivergenceGuard(DivergenceConfig("skip", 3.0, 5, "stop", 0.3), warmup=0)
    for decoding, result in enumerate(results, 1):
        try:
            guard.check_dev(100 * decoding, result.collapse)
        except DivergenceError as collapse:
            assert "in 2 dev decodings in a row" in collapse.reason
            return decoding
    return None


@pytest.mark.slow
def test_models_as_good_as_the_base_model_go_on_though_single_decodings_look_worse(tmp_path: Path) -> None:
    looked_worse, ended = 0, 0
    for seed in SEEDS:
        simulated = SimulatedRun(seed, tmp_path)
        equal = simulated.wrong if seed % 2 else simulated.random.beta(1.2, 5.5, CLIPS)  # or wrong in other clips
        results = simulated.results(equal, again=0.2 if seed % 5 else 1.0)  # neighbours alike, or not
        looked_worse += any(result.regression for result in results)
        ended += alarm(results) is not None
    assert looked_worse > 0.05 * len(SEEDS)  # what one alarm at the ordinary level would have ended
    assert ended < 0.02 * len(SEEDS)


def doubled(run: SimulatedRun) -> list[str]:
    return decode(run.random, run.references, np.minimum(2 * run.wrong, 1.0).tolist())


def runs_away(run: SimulatedRun) -> list[str]:
    """Three of ten clips repeat themselves; all others are as the base model's."""
    return [f"{text}{' nee' * 60}" if i % 10 < 3 else text for i, text in enumerate(run.base)]


def empty(run: SimulatedRun) -> list[str]:
    return [""] * len(run.base)


@pytest.mark.parametrize("collapsed", [doubled, runs_away, empty])
def test_a_collapse_ends_the_run_at_its_second_dev_decoding(
    tmp_path: Path, collapsed: Callable[[SimulatedRun], list[str]]
) -> None:
    ended = []
    for seed in range(10):
        simulated = SimulatedRun(seed, tmp_path, clips=100, decodings=20)
        ended.append(alarm([simulated.dev._score(decoded(collapsed(simulated)), []) for _ in range(2)]))
    assert ended.count(2) >= 9
