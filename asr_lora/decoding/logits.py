"""LogitsProcessors: suppressed tokens, log-probabilities of sequences, tokens drawn at a temperature."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Suppressed:
    """A LogitsProcessor: these tokens are never generated."""

    def __init__(self, tokens: Sequence[int], device: torch.device) -> None:
        self.tokens = torch.tensor(tokens, device=device)

    def __call__(self, _: Tensor, scores: Tensor) -> Tensor:
        """Sets the tokens' scores, (rows, vocabulary), to minus infinity."""
        return scores.index_fill(-1, self.tokens, -math.inf)


class SequenceScores:
    """A LogitsProcessor that adds up the log-probabilities of sequences: greedy, drawn, or of beams.

    Scores stay as they are. Probabilities are those after the suppressed tokens are taken out, at temperature 1. Only
    sums, and the scores of one step, are kept: those of all steps would take 0.2 MB a row and token.
    """

    def __init__(self, num_beams: int, prompt: int, end: int) -> None:
        self._num_beams, self._prompt, self._end = num_beams, prompt, end  # tokens of the prompt, the end token
        self._places: dict[tuple[int, ...], int] = {}  # of the last step: row and tokens
        self._sums = self._last = torch.zeros(0)  # (rows times beams,) and (rows times beams, vocabulary)
        self._found: dict[tuple[int, ...], tuple[float, float]] = {}  # by row and tokens: sum, and that with the end

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """`ids`: (rows times beams, tokens so far); `scores`: (rows times beams, vocabulary)."""
        keys = [(at // self._num_beams, *row) for at, row in enumerate(ids[:, self._prompt :].tolist())]
        if self._places:
            parents = [self._places[key[:-1]] for key in keys]  # beams change places; equal ones have equal sums
            self._sums = self._sums[parents] + self._last[parents, ids[:, -1]]
        else:
            self._sums = scores.new_zeros(len(scores))
        self._last, self._places = scores.log_softmax(-1), {key: at for at, key in enumerate(keys)}
        ended = self._sums + self._last[:, self._end]
        self._found |= zip(keys, zip(self._sums.tolist(), ended.tolist(), strict=True), strict=True)
        return scores

    def mean(self, row: int, tokens: Sequence[int], truncated: bool) -> float:
        """Returns the mean log-probability of a row's tokens and their end, in nats.

        Of truncated tokens, that of all but the last, whose score may not have been seen.
        """
        if truncated:
            return self._found[row, *tokens[:-1]][0] / max(len(tokens) - 1, 1)
        return self._found[row, *tokens][1] / (len(tokens) + 1)


class Sampled:
    """A LogitsProcessor that draws each token at a temperature, a row from its own seed.

    The highest of scores / temperature + Gumbel noise is a draw from their softmax (the Gumbel-max trick; Maddison et
    al. 2014), so a greedy search draws. A row's tokens do not depend on the other rows of its batch.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self._temperature = temperature
        self._streams = [np.random.default_rng((seed, round(100 * temperature))) for seed in seeds]

    def __call__(self, _: Tensor, scores: Tensor) -> Tensor:
        """`scores`: (rows, vocabulary)."""
        noise = np.stack([stream.gumbel(size=scores.shape[-1]) for stream in self._streams])
        return scores / self._temperature + torch.from_numpy(noise).to(scores)
