"""Completions from vLLM, behind the interface of posttrain's own engine.

vLLM draws with a random generator a request, whose seed here is the first of the completion's own numbers: so what is
drawn depends on the seed of the run and the number of the completion, and, by rounding alone, on what else vLLM
computes at the same time. Log-probs are those under the distribution that was drawn from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from posttrain.errors import EngineLost
from posttrain.rollout.record import Completions
from posttrain.rollout.sampling import Sampling

# Whole numbers that float64, JSON and vLLM all hold exactly.
_SEEDS = 2**53


@dataclass(frozen=True)
class Drawn:
    """One completion.

    Args:
        token_ids: (length,) int64, with the token that ended it.
        logprobs: (length,) float32, under the distribution that it was drawn from.
        ended: whether a token ended it.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    ended: bool


class Backend(Protocol):
    """A vLLM, wherever it runs.

    Args:
        loads_everywhere: whether each process has one of its own to load weights into.
    """

    loads_everywhere: bool

    def load(self, folder: Path, version: str) -> None:
        """Takes the weights of a model folder; all that is drawn afterwards is drawn with them.

        Raises:
            EngineLost: it does not.
        """

    def remember(self, folder: Path, version: str) -> None:
        """Which weights another process has loaded into the same vLLM."""

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        regex: str | None = None,
    ) -> list[Drawn]:
        """A completion of each prompt.

        Args:
            prompts: C lists of token ids.
            seeds: C, of the completions' generators.
            sampling: how.
            regex: that completions follow; None: any.

        Raises:
            EngineLost: there is none.
        """

    def rest(self) -> None:
        """Nothing is drawn for a while: gives back the memory that it can do without."""

    def close(self) -> None:
        """Gives back what it holds."""


class VLLMEngine:
    """Samples through a vLLM.

    Args:
        backend: the vLLM.
        regex: that completions follow; None: any.
    """

    def __init__(self, backend: Backend, regex: str | None = None) -> None:
        self.backend, self.regex = backend, regex

    def generate(
        self,
        model: Any,
        prompts: Sequence[np.ndarray],
        num_completions: int,
        sampling: Sampling,
        uniforms: np.ndarray,
        autocast: contextlib.AbstractContextManager[Any] | None = None,
    ) -> Completions:
        """Completions of every prompt, from the weights that vLLM has; see `engine.Engine.generate`.

        Args:
            model, autocast: not needed.
            prompts: P arrays of token ids, none of them empty.
            num_completions: G, of each prompt.
            sampling: how.
            uniforms: (P * G, max_new_tokens) in [0, 1), of which the first of each completion is taken.
        """
        asked = [prompt.tolist() for prompt in prompts for _ in range(num_completions)]
        seeds = (uniforms[:, 0] * _SEEDS).astype(np.int64).tolist()
        drawn = self.backend.draw(asked, seeds, sampling, self.regex)
        logprobs = [one.logprobs for one in drawn]
        ended = np.array([one.ended for one in drawn], dtype=bool)
        return Completions([one.token_ids for one in drawn], logprobs, logprobs, ended)


def parameters(sampling: Sampling, seed: int, regex: str | None) -> dict[str, Any]:
    """Of one completion, under the names of vLLM's SamplingParams.

    Args:
        sampling: how.
        seed: of its generator.
        regex: that the completion follows; None: any.
    """
    chosen = {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p or 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": seed,
        "logprobs": 0,  # those of the tokens drawn
        "ignore_eos": True,  # the ends of this model and tokenizer, and no other ones
        "stop_token_ids": list(sampling.eos_token_ids),
        "detokenize": False,
    }
    return chosen if regex is None else chosen | {"structured_outputs": {"regex": regex}}


def raise_lost(told: Iterable[Any]) -> None:
    """Raises the first EngineLost among what the processes tell each other, in all of them."""
    lost = [one for one in told if isinstance(one, EngineLost)]
    if lost:
        raise max(lost, key=lambda one: one.asked is not None)
