"""From the labels of a classifier to one number: stars, or positive minus negative."""

import re
from collections.abc import Mapping

from posttrain.errors import UserError

_STARS = re.compile(r"(\d+)[\s_]*stars?", re.IGNORECASE)
_GOOD = {"positive", "pos", "label_1"}
_BAD = {"negative", "neg", "label_0"}
_BETWEEN = {"neutral", "neu", "mixed"}


def label_values(labels: Mapping[int, str], model: str) -> list[float]:
    """What each label of a classifier is worth; the reward is the mean of that under its probabilities.

    `1 star` … `5 stars` (or bare numbers) are worth their number; positive 1, negative -1, neutral 0. Two labels
    without names are negative and positive, in this order, as is the custom.

    Args:
        labels: index → label, from the model's config.
        model: its name, for the message.

    Raises:
        UserError: the labels say nothing about what is good.
    """
    names = [labels[index].strip().lower() for index in range(len(labels))]
    stars = [_STARS.fullmatch(name) for name in names]
    if all(stars):
        return [float(match[1]) for match in stars if match is not None]
    if all(name.isdecimal() for name in names):
        return [float(name) for name in names]
    named = set(names)
    if named & _GOOD and named & _BAD and named <= _GOOD | _BAD | _BETWEEN and not _is_unnamed(named):
        return [1.0 if name in _GOOD else -1.0 if name in _BAD else 0.0 for name in names]
    raise UserError(
        f"{model}: its labels ({', '.join(labels.values())}) do not say what is good: wanted stars (1 star, …, 5 "
        "stars), or positive and negative; give such a model, or score with a function of your own",
        "rewards.md#classifiers",
    )


def _is_unnamed(names: set[str]) -> bool:
    """Whether there are LABEL_0, LABEL_1 and more or other ones: then their order means nothing that is known."""
    return any(name.startswith("label_") for name in names) and names != {"label_0", "label_1"}
