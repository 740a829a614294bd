"""The built-in reward functions. A new one is a function here and a row of FUNCTIONS.

A reward function gets its arguments by name, each a list with an entry a completion: prompts, completions,
completion_ids, and the columns of the data. It returns a list of numbers, None where it has no opinion. The ones here
look at each completion by itself, so they can be spread over processes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from posttrain.grading import is_same_mathematics
from posttrain.rollout.rewards.batch import Content, text_of

Column = list[float | None]


def accuracy_reward(
    completions: Sequence[Content],
    solution: Sequence[Any] | None = None,
    answer: Sequence[Any] | None = None,
    **columns: Any,
) -> Column:
    """1 for the right answer, 0 for a wrong one or none.

    Args:
        completions: their answer stands in `\\boxed{}`, behind `####`, or in a formula called the answer.
        solution: the right answers, or solutions that end in them.
        answer: the same; read where `solution` has nothing.

    Returns:
        1.0 or 0.0; None where the right answer cannot be read.
    """
    rights = zip(solution or [None] * len(completions), answer or [None] * len(completions), strict=True)
    references = [first if first is not None else second for first, second in rights]
    return [_grade(text_of(one), reference) for one, reference in zip(completions, references, strict=True)]


def reasoning_accuracy_reward(
    completions: Sequence[Content],
    solution: Sequence[Any] | None = None,
    answer: Sequence[Any] | None = None,
    reasoning_delimiters: Sequence[str] = ("</think>",),
    **columns: Any,
) -> Column:
    """1 for the right answer behind the reasoning, 0 for a wrong one, or for reasoning without an end.

    Args:
        completions: as for accuracy_reward.
        solution: as for accuracy_reward.
        answer: as for accuracy_reward.
        reasoning_delimiters: what reasoning may end with; the first of them that a completion holds counts, where it
            stands last.

    Returns:
        1.0 or 0.0; None where the reasoning has an end and the right answer cannot be read.
    """
    rests: list[str | None] = []
    for text in map(text_of, completions):
        end = next((delimiter for delimiter in reasoning_delimiters if delimiter in text), None)
        rests.append(None if end is None else text.rpartition(end)[2])
    grades = accuracy_reward([rest or "" for rest in rests], solution, answer)
    return [0.0 if rest is None else grade for rest, grade in zip(rests, grades, strict=True)]


def think_format_reward(completions: Sequence[Content], **columns: Any) -> Column:
    """1 for a completion that begins with `<think>`, says so only once, and goes on to `</think>`; else 0."""
    texts = [text_of(completion) for completion in completions]
    return [float(text.startswith("<think>") and text.count("<think>") == 1 and "</think>" in text) for text in texts]


def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int) -> Callable[..., Column]:
    """A reward that grows from 0 to -1 over the last tokens before the longest length (DAPO, arXiv 2503.14476, eq. 13).

    Args:
        max_completion_len: L_max, in tokens.
        soft_punish_cache: L_cache: how many tokens before it the punishment begins.

    Returns:
        The function: 0 up to L_max - L_cache tokens; (L_max - L_cache - length) / L_cache up to L_max; then -1.
    """

    def soft_overlong_punishment_reward(completion_ids: Sequence[Sequence[int]], **columns: Any) -> Column:
        beyond = [len(ids) - (max_completion_len - soft_punish_cache) for ids in completion_ids]
        return [-min(tokens / soft_punish_cache, 1.0) if tokens > 0 else 0.0 for tokens in beyond]

    return soft_overlong_punishment_reward


def _grade(text: str, reference: Any) -> float | None:
    right = None if reference is None else is_same_mathematics(text, str(reference))
    return None if right is None else float(right)


class BuiltIn(NamedTuple):
    """A built-in function.

    Args:
        function: it, or, where the flags have options for it, what makes it.
        reward_name: what its metrics are called.
        needs: columns of the data; of each group one.
        is_heavy: whether a row can take long: then each has its own limit of time, and they are spread over workers.
    """

    function: Callable[..., Any]
    reward_name: str
    needs: tuple[tuple[str, ...], ...] = ()
    is_heavy: bool = False


_SOLUTION = (("solution", "answer"),)
FUNCTIONS = {
    "accuracy_reward": BuiltIn(accuracy_reward, "accuracy_reward", _SOLUTION, True),
    "reasoning_accuracy_reward": BuiltIn(reasoning_accuracy_reward, "reasoning_accuracy_reward", _SOLUTION, True),
    "think_format_reward": BuiltIn(think_format_reward, "think_format_reward"),
    "get_soft_overlong_punishment": BuiltIn(get_soft_overlong_punishment, "soft_overlong_punishment_reward"),
}
