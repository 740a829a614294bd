"""Keys and values of completions that are being sampled, and one token's attention to them.

A prompt's keys are held once for all of its completions, and each completion's own in a tensor allocated at the start.
Prompts of different lengths end at the same column, so that all completions stand at one distance from all of them:
a sliding window is then a slice of columns, the same for every row.

Held for each layer, in elements of the model's type (of autocast's, inside of it; half precision on a CPU is held in
float32, in which its many small products take a fraction of the time):
    (P · longest prompt + P · G · max_new_tokens) · key heads · (key size + value size)

Here R is the number of completions that have not left the batch, P that of the prompts that they continue.

A step that is captured as a CUDA graph (rollout/captured.py) has the same shapes each time. With `static=True` it reads
the number of tokens that are held from a tensor, and attends to the next multiple of COLUMNS, those that are not there
yet masked; columns before a sliding window are masked, too, and not left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

_HALF = (torch.float16, torch.bfloat16)

# Columns of a completion by which a static step grows: of a graph for each, and of what it reads in vain.
COLUMNS = 128


class DecodingState:
    """What attention remembers between the tokens of a batch of completions. A forward pass over the packed prompts
    fills it; from then on a forward pass takes one token of every row: input_ids and position_ids of shape (R, 1).

    Args:
        prompt_lengths: tokens of each of the P prompts, none of them empty.
        num_completions: G, rows of each prompt.
        max_new_tokens: tokens that a row may be given.
        device: of the model.
        static: whether shapes stay the same from token to token.
    """

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        num_completions: int,
        max_new_tokens: int,
        device: torch.device,
        static: bool = False,
    ) -> None:
        lengths = np.asarray(prompt_lengths)
        self.step = 0  # tokens of each completion that are held
        self._now = torch.zeros(1, dtype=torch.int64, device=device) if static else None  # the same number
        self._visible: dict[int | None, tuple[torch.Tensor, torch.Tensor | None]] = {}  # of a static step, by window
        self._max_new_tokens = max_new_tokens
        self._width = int(lengths.max())
        # Which token of the packed prompts stands in which column; the columns before a shorter one are masked.
        columns = np.arange(self._width) - (self._width - lengths[:, None])
        starts = np.cumsum(lengths) - lengths
        self._gather = torch.from_numpy(starts[:, None] + columns.clip(0)).to(device)
        padding = torch.from_numpy(columns < 0).to(device)
        self._bias: torch.Tensor | None = None  # (P, 1, 1, width)
        if padding.any():
            self._bias = torch.zeros(padding.shape, device=device).masked_fill_(padding, -torch.inf)[:, None, None]
        # By layer, keys and values: (P · key heads, width, D) and (P · key heads · places, tokens, D).
        self._prompts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.asked: dict[int, tuple[float | None, int | None]] = {}  # scaling and window of each layer's attention
        self._arrange(np.repeat(np.arange(len(lengths)), num_completions))

    def _arrange(self, row_prompts: np.ndarray) -> None:
        """Gives each row, by its prompt (R,) ascending, a place in a rectangle of prompts and places. Where rows have
        left, a prompt with fewer rows than another has places that repeat row 0, and whose result is not read."""
        counts = np.bincount(row_prompts)
        self._row_prompts, self._shape = row_prompts, (len(counts), int(counts.max()))
        place = np.arange(len(row_prompts)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._place_of_row = row_prompts * self._shape[1] + place
        self._row_of_place = np.zeros(self._shape[0] * self._shape[1], dtype=np.int64)
        self._row_of_place[self._place_of_row] = np.arange(len(row_prompts))
        self._moves: tuple[torch.Tensor, torch.Tensor] | None = None
        if len(row_prompts) < len(self._row_of_place):
            device = self._gather.device
            self._moves = (
                torch.from_numpy(self._row_of_place).to(device),
                torch.from_numpy(self._place_of_row).to(device),
            )

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self._row_prompts)

    def record(
        self,
        layer: int,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None = None,
        window: int | None = None,
    ) -> None:
        """Keeps the prompts' keys and values of one layer, and what it asks of attention.

        Args:
            layer: its index.
            key: (1, key heads, T, D), the packed row of prompts.
            value: (1, key heads, T, E).
            scaling: of the scores; 1/sqrt(D) if None.
            window: a token sees at most this many tokens, itself among them.
        """
        self.asked[layer] = scaling, window
        prompts, own = [], []
        for tensor in (key, value):
            heads, size = tensor.shape[1], tensor.shape[3]
            held = _held(tensor)[0].index_select(1, self._gather.flatten())
            held = held.view(heads, *self._gather.shape, size).transpose(0, 1)
            prompts.append(held.reshape(-1, self._width, size))
            # Zeros where columns are masked before they are written: whatever stands there would be multiplied by 0.
            make = held.new_empty if self._now is None else held.new_zeros
            own.append(make(self.num_rows * heads, self._max_new_tokens, size))
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
        heads, size = query.shape[1], query.shape[3]
        key_heads, (prompts, places) = key.shape[1], self._shape
        together, apart, group = prompts * key_heads, prompts * key_heads * places, heads // key_heads
        now = self.step + 1
        keys, values = self._own[layer]
        for held, new in ((keys, key), (values, value)):
            new = _held(new)
            if self._now is None:
                held.view(prompts, key_heads, places, -1, new.shape[3])[:, :, :, self.step].copy_(self._placed(new, 1))
            else:
                held.index_copy_(1, self._now, self._placed(new, 1).reshape(apart, 1, -1))
        unseen: torch.Tensor | None = None
        bias = self._bias
        if self._now is None:
            first = 0 if window is None else max(0, now - window)
            keys, values = keys[:, first:now], values[:, first:now]
            # A prompt's columns end where the row's own begin.
            shared = self._width if window is None else min(self._width, max(0, window - now))
        else:
            keys, values, shared = keys[:, : self.columns], values[:, : self.columns], self._width
            unseen, bias = self._masks(window)
        query, kind = _held(query), in_type_of_products(query).dtype
        with _without_autocast(query.device.type):
            query = self._placed(query, group).reshape(together, places * group, size)
            scores = _scores(query.reshape(apart, group, size), keys)
            if unseen is not None:
                scores = scores.masked_fill_(unseen, -torch.inf)
            if shared:
                prompt_keys, prompt_values = self._prompts[layer]
                if shared < self._width:
                    prompt_keys, prompt_values = prompt_keys[:, -shared:], prompt_values[:, -shared:]
                prompt_scores = _scores(query, prompt_keys)
                if bias is not None:
                    prompt_scores.view(prompts, key_heads, -1, shared).add_(bias[..., -shared:])
                scores = torch.cat((prompt_scores.view(apart, group, shared), scores), -1)
            weights = scores.mul_(size**-0.5 if scaling is None else scaling).softmax(-1).to(values.dtype)
            output = torch.bmm(weights[..., shared:], values)
            if shared:
                weights = weights.view(together, places * group, -1)[..., :shared]
                output.view(together, places * group, -1).baddbmm_(weights, prompt_values)
        output = (
            output.to(kind)
            .view(prompts, key_heads, places, group, -1)
            .transpose(1, 2)
            .reshape(prompts * places, heads, -1)
        )
        return (output if self._moves is None else output.index_select(0, self._moves[1]))[:, None]

    @property
    def columns(self) -> int:
        """Columns of the rows' own tokens that a static step attends to."""
        return min(self._max_new_tokens, -(-(self.step + 1) // COLUMNS) * COLUMNS)

    def begin_step(self) -> None:
        """Before a step: masks are its own, even of one that has been captured in vain."""
        self._visible = {}

    def end_step(self) -> None:
        """After a step: a token more is held."""
        self.step += 1
        if self._now is not None:
            self._now += 1

    def _masks(self, window: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Of a static step, the same for all layers: columns of the rows' own tokens that are not seen (columns,), and
        what is added to the scores of the prompts (P or 1, 1, 1, width)."""
        if window not in self._visible:
            assert self._now is not None
            own = torch.arange(self.columns, device=self._now.device)
            unseen, bias = own > self._now, self._bias
            if window is not None:
                unseen |= own <= self._now - window
                # Column w of a prompt stands width - w before the row's first token, and so much before this one.
                before = torch.arange(self._width, 0, -1, device=self._now.device) + self._now
                outside = torch.zeros(self._width, device=self._now.device).masked_fill_(before >= window, -torch.inf)
                bias = outside[None, None, None] if bias is None else bias + outside
            self._visible[window] = unseen, bias
        return self._visible[window]

    def _placed(self, tensor: torch.Tensor, group: int) -> torch.Tensor:
        """(R, key heads · group, 1, n) → (P, key heads, places, group, n), or without the group where it is 1."""
        if self._moves is not None:
            tensor = tensor.index_select(0, self._moves[0])
        sizes = (group, tensor.shape[3]) if group > 1 else (tensor.shape[3],)
        return tensor.view(*self._shape, -1, *sizes).transpose(1, 2)

    def keep(self, rows: np.ndarray) -> None:
        """Lets all other rows leave.

        Args:
            rows: ascending indices of rows that stay, at least one.
        """
        (num_prompts, num_places), place_of_row = self._shape, self._place_of_row
        stay, row_prompts = np.unique(self._row_prompts[rows], return_inverse=True)
        self._arrange(row_prompts)
        old = place_of_row[rows[self._row_of_place]].reshape(self._shape)  # place before, by place now
        device = self._gather.device
        for layer, own in self._own.items():
            heads = len(self._prompts[layer][0]) // num_prompts
            head = np.arange(heads)[:, None]
            index = (old[:, None] // num_places * heads + head) * num_places + old[:, None] % num_places
            moved = torch.from_numpy(index.flatten()).to(device)
            for tensor in own:
                # In place: only what has been written is moved, one layer's worth of it held twice for a moment.
                tensor[: len(moved), : self.step] = tensor[:, : self.step].index_select(0, moved)
            self._own[layer] = own[0][: len(moved)], own[1][: len(moved)]
            if len(stay) < num_prompts:
                moved = torch.from_numpy((stay[:, None] * heads + head.T).flatten()).to(device)
                keys, values = self._prompts[layer]
                self._prompts[layer] = keys.index_select(0, moved), values.index_select(0, moved)
        if self._bias is not None:
            self._bias = self._bias[torch.from_numpy(stay).to(device)]


def in_type_of_products(tensor: torch.Tensor) -> torch.Tensor:
    """In autocast's type inside of it, where layers that rotate queries and keys hand out float32."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _held(tensor: torch.Tensor) -> torch.Tensor:
    """In the type in which it is kept and multiplied."""
    rounded = in_type_of_products(tensor)
    return rounded.float() if rounded.device.type == "cpu" and rounded.dtype in _HALF else rounded


def _without_autocast(kind: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def _scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """(b, n, D), (b, k, D) → (b, n, k), float32 for half precision: a softmax over scores in that would lose digits."""
    if query.dtype not in _HALF:
        return torch.bmm(query, key.transpose(1, 2))
    if query.is_cuda:
        return torch.bmm(query, key.transpose(1, 2), out_dtype=torch.float32)
    return torch.bmm(query.float(), key.float().transpose(1, 2))
