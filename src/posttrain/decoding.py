"""Keys and values of completions that are being sampled, and one token's attention to them.

A prompt's keys are held once for all of its completions, and each completion's own in a tensor allocated at the start.
Prompts of different lengths end at the same column, so that all completions stand at one distance from all of them:
a sliding window is then a slice of columns, the same for every row.

Held for each layer, in elements of the model's type (of autocast's, inside of it):
    (P · longest prompt + P · G · max_new_tokens) · key heads · (key size + value size)

Here R is the number of completions that have not left the batch, P that of the prompts that they continue.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


class DecodingState:
    """What attention remembers between the tokens of a batch of completions. A forward pass over the packed prompts
    fills it; from then on a forward pass takes one token of every row: input_ids and position_ids of shape (R, 1).

    Args:
        prompt_lengths: tokens of each of the P prompts, none of them empty.
        num_completions: G, rows of each prompt.
        max_new_tokens: tokens that a row may be given.
        device: of the model.
    """

    def __init__(
        self, prompt_lengths: Sequence[int], num_completions: int, max_new_tokens: int, device: torch.device
    ) -> None:
        lengths = np.asarray(prompt_lengths)
        self.step = 0  # tokens of each completion that are held
        self._max_new_tokens = max_new_tokens
        self._row_prompts = np.repeat(np.arange(len(lengths)), num_completions)
        self._width = int(lengths.max())
        # Which token of the packed prompts stands in which column; the columns before a shorter one are masked.
        columns = np.arange(self._width) - (self._width - lengths[:, None])
        starts = np.cumsum(lengths) - lengths
        self._gather = torch.from_numpy(starts[:, None] + columns.clip(0)).to(device)
        padding = torch.from_numpy(columns < 0).to(device)
        self._bias: torch.Tensor | None = None
        if padding.any():
            self._bias = torch.zeros(padding.shape, device=device).masked_fill_(padding, -torch.inf)[:, None, None]
        self._prompts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # layer → (P, key heads, width, D)
        self._own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # layer → (rows at first, key heads, tokens, D)
        self._arrange()

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self._row_prompts)

    def record(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keeps the prompts' keys and values of one layer.

        Args:
            layer: its index.
            key: (1, key heads, T, D), the packed row of prompts.
            value: (1, key heads, T, E).
        """
        prompts, own = [], []
        for tensor in (key, value):
            heads, size = tensor.shape[1], tensor.shape[3]
            held = _held(tensor)[0].index_select(1, self._gather.flatten())
            prompts.append(held.view(heads, *self._gather.shape, size).transpose(0, 1).contiguous())
            own.append(held.new_empty(self.num_rows, heads, self._max_new_tokens, size))
        self._prompts[layer] = prompts[0], prompts[1]
        self._own[layer] = own[0], own[1]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Attention of each row's new token to its prompt, to the row's earlier tokens and to itself.

        Args:
            layer: its index.
            query: (R, heads, 1, D); key heads divides heads.
            key: (R, key heads, 1, D).
            value: (R, key heads, 1, E).
            scaling: of the scores; 1/sqrt(D) if None.
            window: a token sees at most this many tokens, itself among them.

        Returns:
            (R, 1, heads, E).
        """
        rows, heads, _, size = query.shape
        now = self.step + 1
        keys, values = self._own[layer]
        keys[:rows, :, self.step] = key[:, :, 0]
        values[:rows, :, self.step] = value[:, :, 0]
        first = 0 if window is None else max(0, now - window)
        own = slice(first, now)
        with torch.autocast(query.device.type, enabled=False):
            query = query.to(keys.dtype).reshape(rows, key.shape[1], -1, size)
            scores = _scores(query, keys[:rows, :, own])
            # A prompt's columns end where the row's own begin.
            prompt_first = 0 if window is None else max(0, self._width + now - window)
            shared = max(0, self._width - prompt_first)
            if shared:
                prompt_keys, prompt_values = (tensor[:, :, prompt_first:] for tensor in self._prompts[layer])
                prompt_scores = _scores(self._by_prompt(query), prompt_keys)
                if self._bias is not None:
                    prompt_scores += self._bias[..., prompt_first:]
                scores = torch.cat([self._by_row(prompt_scores, query.shape[2]), scores], dim=-1)
            weights = scores.mul_(size**-0.5 if scaling is None else scaling).softmax(-1).to(values.dtype)
            output = torch.matmul(weights[..., shared:], values[:rows, :, own])
            if shared:
                from_prompt = torch.matmul(self._by_prompt(weights[..., :shared]), prompt_values)
                output += self._by_row(from_prompt, query.shape[2])
        return output.view(rows, 1, heads, -1)

    def keep(self, rows: np.ndarray) -> None:
        """Lets all other rows leave.

        Args:
            rows: ascending indices of rows that stay, at least one.
        """
        device = self._gather.device
        index = torch.from_numpy(rows).to(device)
        prompts, self._row_prompts = np.unique(self._row_prompts[rows], return_inverse=True)
        for layer, own in self._own.items():
            for tensor in own:
                # In place: only what has been written is moved, one layer's worth of it held twice for a moment.
                tensor[: len(rows), :, : self.step] = tensor[:, :, : self.step].index_select(0, index)
            if len(prompts) < len(self._prompts[layer][0]):
                stay = torch.from_numpy(prompts).to(device)
                keys, values = self._prompts[layer]
                self._prompts[layer] = keys.index_select(0, stay), values.index_select(0, stay)
        if self._bias is not None:
            self._bias = self._bias[torch.from_numpy(prompts).to(device)]
        self._arrange()

    def _arrange(self) -> None:
        """Lays the rows out as a rectangle of prompts and places, for the products with the shared keys. Where rows
        have left, a prompt with fewer rows than another has places that hold row 0 and whose result is not read."""
        counts = np.bincount(self._row_prompts)
        self._shape = len(counts), int(counts.max())
        place = np.arange(self.num_rows) - np.repeat(np.cumsum(counts) - counts, counts)
        place += self._row_prompts * self._shape[1]
        self._places: tuple[torch.Tensor, torch.Tensor] | None = None
        if self.num_rows < self._shape[0] * self._shape[1]:
            row_of_place = np.zeros(self._shape[0] * self._shape[1], dtype=np.int64)
            row_of_place[place] = np.arange(self.num_rows)
            device = self._gather.device
            self._places = torch.from_numpy(row_of_place).to(device), torch.from_numpy(place).to(device)

    def _by_prompt(self, tensor: torch.Tensor) -> torch.Tensor:
        """(R, key heads, heads a key head, X) → (P, key heads, places · heads a key head, X)."""
        if self._places is not None:
            tensor = tensor.index_select(0, self._places[0])
        rows = tensor.view(*self._shape, *tensor.shape[1:]).transpose(1, 2)
        return rows.reshape(self._shape[0], tensor.shape[1], -1, tensor.shape[3])

    def _by_row(self, tensor: torch.Tensor, group: int) -> torch.Tensor:
        """The way back: (P, key heads, places · group, X) → (R, key heads, group, X)."""
        rows = tensor.view(*tensor.shape[:2], self._shape[1], group, -1).transpose(1, 2)
        rows = rows.reshape(-1, tensor.shape[1], group, tensor.shape[3])
        return rows if self._places is None else rows.index_select(0, self._places[1])


def _held(tensor: torch.Tensor) -> torch.Tensor:
    """In the type in which it is kept and multiplied: layers hand out float32 inside autocast too."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """(…, n, D), (…, k, D) → (…, n, k) float32: a softmax over scores in half precision would lose digits."""
    if query.dtype not in (torch.float16, torch.bfloat16):
        return torch.matmul(query, key.transpose(2, 3))
    if query.is_cuda:
        product = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), out_dtype=torch.float32)
        return product.view(*query.shape[:3], -1)
    return torch.matmul(query.float(), key.float().transpose(2, 3))
