"""What has been drawn so far for the completions of one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from posttrain.rollout.sampling import Sampling, draw

# A GPU is asked for the rows that have ended once in this many tokens, so that it need not be waited for at each.
_CHECK_EVERY = {"cpu": 1}
_CHECK_EVERY_ELSEWHERE = 16


# Tokens (R,), their log-probs, and those under softmax(logits / temperature) alone.
Drawn = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Completions:
    """C sampled completions: those of the first prompt, those of the second, and so on.

    Args:
        token_ids: C int64 arrays, with the token that ended the completion.
        logprobs: C float32 arrays of the same lengths, under the distribution that the tokens were drawn from.
        policy_logprobs: the same under softmax(logits / temperature) alone.
        ended: (C,) bool, False where max_new_tokens cut it off.
    """

    token_ids: list[np.ndarray]
    logprobs: list[np.ndarray]
    policy_logprobs: list[np.ndarray]
    ended: np.ndarray


class Record:
    """Draws a token for every row still in the batch, step by step, and keeps them all.

    Args:
        prompts: P arrays of token ids.
        num_completions: rows of each prompt.
        sampling: how.
        numbers: (C, max_new_tokens) in [0, 1).
        device: of the logits.
    """

    def __init__(
        self,
        prompts: Sequence[np.ndarray],
        num_completions: int,
        sampling: Sampling,
        numbers: np.ndarray,
        device: torch.device,
    ) -> None:
        self.sampling = sampling
        self.step = 0  # tokens drawn for each row
        self.rows = np.arange(len(prompts) * num_completions)  # which completions are still in the batch
        self._prompts, self._num_completions = prompts, num_completions
        self._numbers = torch.from_numpy(np.ascontiguousarray(numbers.T, dtype=np.float64)).to(device)
        self._eos = torch.tensor(sampling.eos_token_ids, dtype=torch.int64, device=device)
        self._ended = torch.zeros(len(self.rows), dtype=torch.bool, device=device)
        self._seen: torch.Tensor | None = None
        self._check_every = _CHECK_EVERY.get(device.type, _CHECK_EVERY_ELSEWHERE)
        self._new: list[Drawn] = []  # steps since rows last left
        shape = (len(self.rows), sampling.max_new_tokens)
        self._kept = tuple(np.zeros(shape, dtype) for dtype in (np.int64, np.float32, np.float32))

    @property
    def numbers(self) -> torch.Tensor:
        """(R,) those of the next tokens."""
        return self._numbers[self.step]

    def drawn(self, logits: torch.Tensor, numbers: torch.Tensor) -> Drawn:
        """Draws the next token of every row, which the caller then adds. Operators alone, the same ones each time.

        Args:
            logits: (R, V) of the rows in the batch.
            numbers: (R,) of these tokens.
        """
        if self.sampling.penalises and self._seen is None:
            self._seen = self._tokens_of_prompts(logits)
        drawn = draw(logits, numbers, self.sampling, self._seen)
        if self._seen is not None:
            self._seen.scatter_(1, drawn[0][:, None], True)
        self._ended.logical_or_((drawn[0][:, None] == self._eos).any(-1))
        return drawn

    def add(self, drawn: Drawn) -> torch.Tensor:
        """Keeps what has been drawn; returns the tokens (R,)."""
        self._new.append(drawn)
        self.step += 1
        return drawn[0]

    def unfinished(self) -> np.ndarray:
        """Indices of rows that go on, ascending; now and then some that have ended are among them."""
        if self.step == self.sampling.max_new_tokens:
            return np.empty(0, dtype=np.int64)
        if self.step % self._check_every:
            return np.arange(len(self.rows))
        return np.flatnonzero(~self._ended.cpu().numpy())

    def keep(self, rows: np.ndarray) -> None:
        """Lets all other rows leave."""
        self._flush()
        index = torch.from_numpy(rows).to(self._ended.device)
        self.rows = self.rows[rows]
        self._numbers, self._ended = self._numbers[:, index], self._ended[index]
        if self._seen is not None:
            self._seen = self._seen[index]

    def completions(self) -> Completions:
        """All completions, whatever was drawn after an end left out."""
        self._flush()
        tokens = self._kept[0]
        is_end = np.isin(tokens, self.sampling.eos_token_ids)
        is_end[:, self.step :] = False
        ended: np.ndarray = np.any(is_end, axis=1)
        lengths = np.where(ended, is_end.argmax(axis=1) + 1, self.step)
        token_ids, logprobs, policy_logprobs = (
            [row[:length].copy() for row, length in zip(kept, lengths, strict=True)] for kept in self._kept
        )
        return Completions(token_ids, logprobs, logprobs if self.sampling.is_policy else policy_logprobs, ended)

    def _flush(self) -> None:
        columns = slice(self.step - len(self._new), self.step)
        for i, kept in enumerate(self._kept if self._new else ()):
            kept[self.rows, columns] = torch.stack([drawn[i] for drawn in self._new], dim=1).cpu().numpy()
        self._new = []

    def _tokens_of_prompts(self, logits: torch.Tensor) -> torch.Tensor:
        seen = torch.zeros(len(self._prompts), logits.shape[-1], dtype=torch.bool)
        for row, prompt in zip(seen, self._prompts, strict=True):
            row[torch.from_numpy(np.asarray(prompt, dtype=np.int64))] = True
        return seen.to(logits.device).repeat_interleave(self._num_completions, 0)
