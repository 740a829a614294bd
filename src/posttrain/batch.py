"""The one shape of data in training: a row of tokens without padding, cut into segments.

A segment may have a parent, whose tokens it continues: a document has none, the completions of a prompt have the
prompt. A token attends to its own segment up to itself and to all of its parent, and its position id continues that.
So a prompt is computed once for all of its completions, nothing is padded, and no document sees another.

Shape legend of the whole code base:
    T  tokens of a packed row          S  segments                 N  target tokens (those with a loss)
    C  sequences: the leaves of the forest of segments (documents, or completions with their prompt)
    B  rows of a padded batch          L  their length             H  hidden size          V  vocabulary size
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

NO_PARENT = -1


# No dataclass: FSDP makes others of those at each of its units, with their tensors in its type of products, so that
# what is held for all layers would be rounded, and made in each.
class Segments:
    """How a row of T tokens is cut up, in the form that attention needs. Knows nothing of token ids. Not changed once
    made; two of the same lengths and parents are equal.

    Args:
        lengths: tokens of each of the S segments, in the order of the row.
        parents: index of each segment's parent, or NO_PARENT. A parent stands before its children and is itself a root.
    """

    def __init__(self, lengths: tuple[int, ...], parents: tuple[int, ...]):
        self.lengths = lengths
        self.parents = parents
        self._masks: dict[tuple[Any, ...], torch.Tensor] = {}
        self._indices: dict[str, tuple[torch.Tensor, ...]] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Segments) and (self.lengths, self.parents) == (other.lengths, other.parents)

    def __hash__(self) -> int:
        return hash((self.lengths, self.parents))

    def __repr__(self) -> str:
        return f"Segments({self.lengths}, {self.parents})"

    @property
    def has_parents(self) -> bool:
        return any(parent != NO_PARENT for parent in self.parents)

    @property
    def key_lengths(self) -> tuple[int, ...]:
        """Keys that each segment attends to: its parent's tokens and its own; (S,)."""
        return tuple(
            length + (self.lengths[parent] if parent != NO_PARENT else 0)
            for length, parent in zip(self.lengths, self.parents, strict=True)
        )

    def with_document(self, length: int) -> Segments:
        """The same with another segment behind, that has no parent; masks that have been made are shared."""
        longer = Segments((*self.lengths, length), (*self.parents, NO_PARENT))
        longer._masks = self._masks
        return longer

    def mask(self, query_length: int, key_length: int, window: int | None, device: torch.device) -> torch.Tensor:
        """Causal mask aligned at the bottom right, True = attends; (query_length, key_length), shared by all layers."""
        key = (query_length, key_length, window)
        if key not in self._masks:
            rows = torch.arange(key_length - query_length, key_length, device=device)[:, None]
            columns = torch.arange(key_length, device=device)[None, :]
            mask = columns <= rows
            self._masks[key] = mask if window is None else mask & (rows - columns < window)
        return self._masks[key]

    def added_mask(
        self, query_length: int, key_length: int, window: int | None, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        """The same mask as numbers to be added to scores: 0 = attends, else -inf. What torch makes of the other one at
        every call, and keeps for the backward pass each time, is thus made once for all segments of a shape and
        layers."""
        key = (query_length, key_length, window, dtype)
        if key not in self._masks:
            mask = self.mask(query_length, key_length, window, device)
            self._masks[key] = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(~mask, -torch.inf)
        return self._masks[key]

    def gather_indices(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For kernels of variable length: where each segment's queries start, where its keys start, and which tokens
        of the row its keys are.

        Returns:
            cu_queries (S + 1,) int32, cu_keys (S + 1,) int32, key_index (sum of key_lengths,) int64; without parents,
            where keys are the row's tokens in their order, an empty one.
        """
        key = str(device)
        if key not in self._indices:
            starts = np.concatenate([[0], np.cumsum(self.lengths)])
            pieces = [np.arange(0)]
            for index, parent in enumerate(self.parents if self.has_parents else ()):
                if parent != NO_PARENT:
                    pieces.append(np.arange(starts[parent], starts[parent + 1]))
                pieces.append(np.arange(starts[index], starts[index + 1]))
            cu_keys = np.concatenate([[0], np.cumsum(self.key_lengths)])
            self._indices[key] = (
                torch.from_numpy(starts.astype(np.int32)).to(device, non_blocking=True),
                torch.from_numpy(cu_keys.astype(np.int32)).to(device, non_blocking=True),
                torch.from_numpy(np.concatenate(pieces).astype(np.int64)).to(device, non_blocking=True),
            )
        return self._indices[key]  # type: ignore[return-value]


@dataclass(frozen=True)
class PaddedRows:
    """The same sequences as rows of a rectangle, for models that cannot attend by segments.

    Args:
        input_ids: (B, L) int64, one row a sequence, padded on the right with zeros.
        attention_mask: (B, L) int64, 1 = a token.
        target_index: (N,) int64, the place of each target's predecessor in the flattened (B * L) rectangle.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    target_index: torch.Tensor


@dataclass(frozen=True)
class PackedBatch:
    """A row of segments with its targets. Losses see only the flat vectors over the N targets and the C sequences.

    Args:
        input_ids: (T,) int64.
        position_ids: (T,) int64, counted from the start of the parent where there is one.
        segments: how the row is cut up.
        target_positions: (N,) int64, index in the row of the token whose hidden state predicts the target.
        target_ids: (N,) int64, the tokens to be predicted.
        sequence_ids: (N,) int64, which of the C sequences a target belongs to; sorted.
        end_positions: (C,) int64, index in the row of each sequence's last token.
        num_groups: documents, pairs or prompts in the row.
        num_tokens: tokens of all sequences, a shared prompt counted once for each of them.
        reference_logprobs: (N,) float32, log-probs of the targets under the reference model, where a method has one.
        old_logprobs: (N,) float32, log-probs under the policy that sampled the targets; None = under this very policy.
        sampler_log_ratio: (N,) float32, log-probs under the policy that sampled the targets, less those that another
            engine told as it sampled them; None = it did not, or nothing is made of that.
        advantages: (C,) float32, how much better than expected each sequence is.
        entropy_mask: (N,) float32, 1 = the target is among the uncertain ones that a policy is trained on; None = all.
        margins: (num_groups,) float32, how much better the chosen completion of each pair is, where rows say so.
        places: where its rows stand in the data, in words; one a row of the data set.
        is_filler: it only keeps this process in step with the others; nothing of it counts.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segments: Segments
    target_positions: torch.Tensor
    target_ids: torch.Tensor
    sequence_ids: torch.Tensor
    end_positions: torch.Tensor
    num_groups: int
    num_tokens: int
    reference_logprobs: torch.Tensor | None = None
    old_logprobs: torch.Tensor | None = None
    sampler_log_ratio: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    entropy_mask: torch.Tensor | None = None
    margins: torch.Tensor | None = None
    places: tuple[str, ...] = ()
    is_filler: bool = False

    @property
    def num_targets(self) -> int:
        return self.target_ids.shape[0]

    @property
    def num_sequences(self) -> int:
        return self.end_positions.shape[0]

    def sequences(self) -> list[torch.Tensor]:
        """The tokens of each of the C sequences, its prompt in front of it."""
        pieces = self.input_ids.split(self.segments.lengths)
        with_children = set(self.segments.parents)
        return [
            own if parent == NO_PARENT else torch.cat([pieces[parent], own])
            for segment, (own, parent) in enumerate(zip(pieces, self.segments.parents, strict=True))
            if segment not in with_children
        ]

    def weights(self) -> dict[str, int]:
        """What a loss may be divided by, before any forward pass: targets, sequences and groups of this row."""
        return {"targets": self.num_targets, "sequences": self.num_sequences, "groups": self.num_groups}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """The same batch with its tensors on `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory, from where copies to a GPU are fast; a DataLoader calls this."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PackedBatch:
        changed: dict[str, Any] = {
            f.name: change(value)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), torch.Tensor)
        }
        return dataclasses.replace(self, **changed)

    def padded(self) -> PaddedRows:
        """Lays every sequence, its prompt in front of it, out as one row of a rectangle."""
        device = self.input_ids.device
        starts = np.concatenate([[0], np.cumsum(self.segments.lengths)])
        with_children = set(self.segments.parents)
        rows = []
        for segment, parent in enumerate(self.segments.parents):
            if segment not in with_children:
                own = np.arange(starts[segment], starts[segment + 1])
                prompt = np.arange(starts[parent], starts[parent + 1]) if parent != NO_PARENT else own[:0]
                rows.append(np.concatenate([prompt, own]))
        length = max(len(row) for row in rows)
        index = np.zeros((len(rows), length), dtype=np.int64)
        mask = np.zeros_like(index)
        for row, tokens in enumerate(rows):
            index[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        attention_mask = torch.from_numpy(mask).to(device, non_blocking=True)
        return PaddedRows(
            input_ids=self.input_ids[torch.from_numpy(index).to(device, non_blocking=True)] * attention_mask,
            attention_mask=attention_mask,
            target_index=self.sequence_ids * length + self.position_ids[self.target_positions],
        )


def pack(
    token_ids: Sequence[np.ndarray],
    target_masks: Sequence[np.ndarray],
    parents: Sequence[int],
    num_groups: int,
    reference_logprobs: np.ndarray | None = None,
    margins: Sequence[float] | None = None,
    places: Sequence[str] = (),
) -> PackedBatch:
    """Lays segments side by side in one row.

    Args:
        token_ids: S arrays of ints, the tokens of each segment.
        target_masks: S arrays of the same lengths, 1 = the token is a target. A segment with children has none; nor
            has the first token of a root, since nothing predicts it.
        parents: S indices of parents, or NO_PARENT; a parent is a root, not empty, and stands before its children.
        num_groups: documents, pairs or prompts among the segments.
        reference_logprobs: (N,) in the order of the targets.
        margins: (num_groups,) of pairs.
        places: where the rows stand in the data, in words.

    Returns:
        The batch, on the CPU.
    """
    lengths = np.array([len(ids) for ids in token_ids], dtype=np.int64)
    parent_of = np.asarray(parents, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    is_child = parent_of != NO_PARENT
    is_leaf = np.ones(len(lengths), dtype=bool)
    is_leaf[parent_of[is_child]] = False
    assert (parent_of < np.arange(len(lengths))).all() and not is_child[parent_of[is_child]].any()
    depth = np.where(is_child, lengths[parent_of], 0)

    flat_ids = np.concatenate(token_ids).astype(np.int64)
    segment_of = np.repeat(np.arange(len(lengths)), lengths)
    offset = np.arange(len(flat_ids)) - starts[segment_of]
    targets = np.flatnonzero(np.concatenate(target_masks))
    target_segment = segment_of[targets]
    # The first token of a child is predicted by the last token of its parent, which stands elsewhere in the row.
    first = offset[targets] == 0
    predecessor = np.where(first, starts[parent_of[target_segment] + 1] - 1, targets - 1)
    assert is_leaf[target_segment].all(), "a shared segment holds a target"
    assert is_child[target_segment[first]].all(), "the first token of a root is a target"
    sequence_of_segment = np.cumsum(is_leaf) - 1
    return PackedBatch(
        input_ids=torch.from_numpy(flat_ids),
        position_ids=torch.from_numpy(offset + depth[segment_of]),
        segments=Segments(tuple(lengths.tolist()), tuple(parent_of.tolist())),
        target_positions=torch.from_numpy(predecessor),
        target_ids=torch.from_numpy(flat_ids[targets]),
        sequence_ids=torch.from_numpy(sequence_of_segment[target_segment]),
        end_positions=torch.from_numpy((starts[1:] - 1)[is_leaf]),
        num_groups=num_groups,
        num_tokens=int((lengths + depth)[is_leaf].sum()),
        reference_logprobs=None if reference_logprobs is None else torch.from_numpy(reference_logprobs).float(),
        margins=None if margins is None else torch.tensor(margins, dtype=torch.float32),
        places=tuple(places),
    )
