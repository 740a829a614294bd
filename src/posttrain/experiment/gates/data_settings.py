# ruff: noqa: RUF009 (flag() returns a dataclass field)
"""What the data are held against: the section `check_data` of params.yaml, and the flags of `posttrain check`."""

from dataclasses import dataclass

from posttrain.config.fields import flag
from posttrain.experiment.gates.limits import Thresholds


@dataclass(kw_only=True)
class DataLimits:
    """How data are measured, and the thresholds: of each, the values above which it warns and fails."""

    ngram: int = flag(13, "Words of the n-grams that held-out prompts are looked up in train by.", low=2, high=100)
    contaminated_from: float = flag(
        0.8, "Share of a prompt's words in n-grams of one training row that counts as contaminated.", low=0.01, high=1
    )
    near_ngram: int = flag(5, "Words of the n-grams that training rows are compared by.", low=1, high=100)
    near_from: float = flag(0.8, "Jaccard similarity of two rows' n-grams that counts as near.", low=0.5, high=1)
    long_from: int = flag(8000, "Characters from which an answer counts as very long.", low=1)
    max_same_prompt: Thresholds | None = flag({"fail": 0.0}, "Share of held-out rows whose prompt stands in train.")
    max_contaminated: Thresholds | None = flag({"warn": 0.01, "fail": 0.02}, "Share of contaminated held-out rows.")
    max_exact_duplicates: Thresholds | None = flag(
        {"warn": 0.0, "fail": 0.05}, "Share of training rows that an earlier one repeats word for word."
    )
    max_near_duplicates: Thresholds | None = flag(
        {"warn": 0.01, "fail": 0.1}, "Share of training rows that nearly repeat an earlier one."
    )
    max_empty: Thresholds | None = flag({"fail": 0.0}, "Share of rows with an empty prompt or answer.")
    max_long: Thresholds | None = flag({"warn": 0.01, "fail": 0.1}, "Share of rows with a very long answer.")
    max_identical: Thresholds | None = flag({"fail": 0.0}, "Share of pairs whose chosen is the rejected answer.")
    max_conflicts: Thresholds | None = flag(
        {"warn": 0.0, "fail": 0.01}, "Share of pairs with an answer that is chosen in one and rejected in another."
    )
    max_length_rule: Thresholds | None = flag(
        {"warn": 0.65, "fail": 0.9}, "Share of pairs that length alone ranks right, by longer or by shorter is better."
    )


@dataclass(kw_only=True)
class DataSettings(DataLimits):
    """The section `check_data` of params.yaml."""

    sets: list[str] = flag([], "Data sets that the stages train on, as --dataset_name takes them; all are read.")
    train: str = flag("train", "Split that is trained on.")
    held_out: list[str] = flag([], "Splits that must be new to training.")
