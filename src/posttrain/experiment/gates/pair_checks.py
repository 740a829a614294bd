"""What is measured of preference pairs: sides that are the same, labels that contradict each other, and length."""

from collections.abc import Sequence

from posttrain.experiment.gates.correlations import pearson
from posttrain.experiment.gates.data_settings import DataLimits
from posttrain.experiment.gates.limits import Check, Offender, share_checks
from posttrain.experiment.gates.texts import TextRow


def check_pairs(name: str, pairs: Sequence[TextRow], limits: DataLimits) -> tuple[list[Check], dict[str, float]]:
    """Measure pairs.

    Args:
        name: of the data set and split.
        pairs: rows with a chosen and a rejected answer; with none, nothing is measured.
        limits: the thresholds.

    Returns:
        the checks, and further metrics: the share of pairs whose chosen answer is the longer one (a tie is half a
        pair), and the correlation of an answer's length with its label.
    """
    if not pairs:
        return [], {}
    same = [Offender(row.place, row.whole, "chosen and rejected are the same") for row in pairs if _is_identical(row)]
    conflicts = label_conflicts(pairs)
    is_same = "share of its pairs whose two sides are the same"
    contradicts = "share of its pairs with an answer that another pair of the same prompt judges the other way"
    keep = "keep what most raters said, or neither: the two pull in opposite directions"
    checks = share_checks(
        len(pairs),
        (
            ("max_identical", f"identical/{name}", same, is_same, "take them out: training refuses them"),
            ("max_conflicts", f"conflicts/{name}", conflicts, contradicts, keep),
        ),
        limits,
    )
    longer, correlation = length_bias(pairs)
    if limits.max_length_rule is not None:
        kind = "longer" if longer >= 0.5 else "shorter"
        checks.append(
            Check(
                f"length_rule/{name}",
                max(longer, 1 - longer),
                "max_length_rule",
                limits.max_length_rule,
                f"share of its pairs that the rule 'the {kind} answer is better' ranks right",
                "a reward model can learn length in place of quality from these: add pairs whose better answer is the "
                f"{'shorter' if kind == 'longer' else 'longer'} one, or watch check_models",
            )
        )
    metrics = {f"length/{name}_longer_is_better": longer}
    return checks, metrics if correlation is None else metrics | {f"length/{name}_correlation": correlation}


def _is_identical(row: TextRow) -> bool:
    chosen, rejected = row.answers
    return chosen.split() == rejected.split()


def label_conflicts(pairs: Sequence[TextRow]) -> list[Offender]:
    """Pairs with an answer that stands on the other side in another pair of the same prompt."""
    sides: tuple[dict[tuple[str, str], str], ...] = ({}, {})
    keys = [[(_plain(row.prompt), _plain(answer)) for answer in row.answers] for row in pairs]
    for row, of_row in zip(pairs, keys, strict=True):
        for side, key in zip(sides, of_row, strict=True):
            side.setdefault(key, row.place)
    found = []
    for row, (chosen, rejected) in zip(pairs, keys, strict=True):
        if chosen == rejected:
            continue  # told as identical
        if chosen in sides[1]:
            found.append(Offender(row.place, row.answers[0], f"is chosen here and rejected in {sides[1][chosen]}"))
        elif rejected in sides[0]:
            found.append(Offender(row.place, row.answers[1], f"is rejected here and chosen in {sides[0][rejected]}"))
    return found


def _plain(text: str) -> str:
    return " ".join(text.split())


def length_bias(pairs: Sequence[TextRow]) -> tuple[float, float | None]:
    """How much length says about which answer is better.

    Args:
        pairs: at least one.

    Returns:
        the share of pairs whose chosen answer has more characters, a tie counted half: the accuracy of the rule "longer
        is better" (arXiv 2310.03716), 0.5 where length says nothing; and the point-biserial correlation of length with
        the label over all answers: Pearson's, with 1 for chosen and 0 for rejected; None where all are equally long.
    """
    lengths = [(len(row.answers[0]), len(row.answers[1])) for row in pairs]
    longer = sum((chosen > rejected) + 0.5 * (chosen == rejected) for chosen, rejected in lengths) / len(pairs)
    labels = [1.0, 0.0] * len(pairs)
    return longer, pearson([float(length) for pair in lengths for length in pair], labels)
