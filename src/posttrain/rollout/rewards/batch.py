"""What a reward is asked, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Content = str | list[dict[str, Any]]  # plain text, or messages


@dataclass(frozen=True)
class RewardBatch:
    """C completions to be scored.

    Args:
        prompts: C prompts, text or messages; one with several completions stands here once for each.
        completions: C texts, or lists of one message of the assistant where the prompt is a conversation.
        completion_ids: their tokens.
        columns: the other columns of the data, by name; C values each.
        places: where each row stands in the data, for messages.
    """

    prompts: list[Content]
    completions: list[Content]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]
    places: list[str]

    def __len__(self) -> int:
        return len(self.completions)

    def arguments(self) -> dict[str, list[Any]]:
        """What a reward function is called with, by name."""
        own: dict[str, list[Any]] = {
            "prompts": self.prompts,
            "completions": self.completions,
            "completion_ids": self.completion_ids,
        }
        return self.columns | own


@dataclass(frozen=True)
class Failure:
    """Something that a reward could not do.

    Args:
        rows: which of the batch it concerns.
        reason: what happened.
    """

    rows: Sequence[int]
    reason: str

    def moved(self, rows: int) -> "Failure":
        """The same of rows so many further down."""
        return Failure([rows + row for row in self.rows], self.reason)


@dataclass
class Scores:
    """What one reward says of a batch.

    Args:
        values: C rewards; None = no opinion, or failed.
        failures: what went wrong.
        undecided: answers that a built-in function could not grade in time, and that count as wrong: what a model
            writes is no fault of the function.
    """

    values: list[float | None]
    failures: list[Failure] = field(default_factory=list)
    undecided: list[Failure] = field(default_factory=list)


def text_of(content: Content) -> str:
    """The text of a completion or of a prompt; of several messages, each with its role."""
    if isinstance(content, str):
        return content
    texts = [str(message.get("content") or "") for message in content]
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"{message['role']}: {text}" for message, text in zip(content, texts, strict=True))
