"""What it gains that a prompt is computed once for all of its completions: the formula.

With c parameters that multiply each token, a head of h parameters and queries that are q numbers wide over all layers,
a forward and backward pass over a row of T tokens, N targets and A pairs of a query and a key takes

    F(T, A, N) = 6 · c · T + 14 · q · A + 6 · h · N          (work.py: 2 + 4, and 4 + 10 of attention)

A prompt of P tokens with G completions of L tokens each has N = G · L targets, laid out either way, and

    shared      T = P + G · L        A = P · (P + 1) / 2 + G · L · ((L + 1) / 2 + P)
    repeated    T = G · (P + L)      A = G · (P + L) · (P + L + 1) / 2

so that the completions' part of attention is the same, and all that is saved is G - 1 of the G prompts. Where nothing
but the first term counts, the gain is G · (P + L) / (P + G · L): at most G, which long prompts come near to, and at
most 1 + P / L, which many completions do.

What the formula leaves out: a prompt's keys and values are copied beside each completion's own (of memory, they are
counted), kernels that compute pairs which a mask then hides, and all that does not grow with operations, such as the
time to start a kernel.
"""

from __future__ import annotations

from posttrain.planning.batches import Load
from posttrain.planning.kept import activation_bytes, head_bytes
from posttrain.planning.memory import Setting
from posttrain.planning.shape import ModelShape
from posttrain.planning.work import training_operations


def load_of_group(prompt: int, completion: int, group: int, shared: bool) -> Load:
    """A prompt with its completions, every token of a completion a target.

    Args:
        prompt: P, its tokens.
        completion: L, tokens of each completion.
        group: G, completions.
        shared: the prompt stands in the row once, and not before each completion.
    """
    length = prompt + completion
    whole = group * length
    if shared and prompt:
        tokens = prompt + group * completion
        pairs = prompt * (prompt + 1) / 2 + group * completion * ((completion + 1) / 2 + prompt)
        keys = whole
    else:
        tokens, pairs, keys = whole, whole * (length + 1) / 2, 0
    return Load(1, tokens, group * completion, group, whole, whole, keys, pairs)


def speed_gain(shape: ModelShape, prompt: int, completion: int, group: int) -> float:
    """Operations of a forward and backward pass with the prompt repeated, by those with it shared.

    Args:
        shape: of the model.
        prompt, completion, group: as for `load_of_group`.
    """
    shared, repeated = (load_of_group(prompt, completion, group, way) for way in (True, False))
    return training_operations(shape, repeated) / training_operations(shape, shared)


def memory_gain(shape: ModelShape, setting: Setting, prompt: int, completion: int, group: int) -> float:
    """Bytes that come and go in such a pass, repeated by shared: what is kept for the backward pass and the head.

    Args:
        shape: of the model.
        setting: of the run.
        prompt, completion, group: as for `load_of_group`.
    """
    shared, repeated = (
        activation_bytes(shape, setting, load) + sum(head_bytes(shape, load.targets, setting, training=True))
        for load in (load_of_group(prompt, completion, group, way) for way in (True, False))
    )
    return repeated / shared
