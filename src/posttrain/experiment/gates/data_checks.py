"""What is measured of data before anything trains on them: contamination, duplicates, empty and very long answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.experiment.gates.data_settings import DataLimits
from posttrain.experiment.gates.limits import Check, Offender, share_checks
from posttrain.experiment.gates.near_duplicates import near_duplicates
from posttrain.experiment.gates.ngrams import Vocabulary, first_places, largest_overlaps
from posttrain.experiment.gates.pair_checks import check_pairs
from posttrain.experiment.gates.texts import TextRow


@dataclass(frozen=True)
class Part:
    """One split of one data set.

    Args:
        name: "sft_train", as metrics call it.
        rows: all of them.
    """

    name: str
    rows: Sequence[TextRow]


def check_data(
    train: Sequence[Part], held_out: Sequence[Part], limits: DataLimits
) -> tuple[list[Check], dict[str, float]]:
    """Measure everything.

    Args:
        train: what is trained on; a held-out row must be new to all of them, for the models train on one after another.
        held_out: what is evaluated on.
        limits: how, and the thresholds; a check without thresholds is left out.

    Returns:
        the checks, and further metrics.
    """
    vocabulary = Vocabulary()
    wholes = [[vocabulary.numbers(row.whole) for row in part.rows] for part in train]
    checks = _contamination(held_out, train, wholes, vocabulary, limits)
    metrics: dict[str, float] = {f"rows/{part.name}": len(part.rows) for part in (*train, *held_out)}
    for part, words in zip(train, wholes, strict=True):
        checks += _duplicates(part, words, limits)
    for part in (*train, *held_out):
        checks += _answers(part, limits)
        found, more = check_pairs(part.name, [row for row in part.rows if row.is_pair], limits)
        checks += found
        metrics |= more
    return checks, metrics


def _contamination(
    held_out: Sequence[Part],
    train: Sequence[Part],
    wholes: Sequence[Sequence[np.ndarray]],
    vocabulary: Vocabulary,
    limits: DataLimits,
) -> list[Check]:
    """Held-out prompts that stand in train: the same, and such that most of their words do.

    A prompt is contaminated where at least `contaminated_from` of its words lie in n-grams that one training row holds
    too. The share of words is Llama 2's (arXiv 2307.09288, A.6: a sample with 80% or more is dirty), n = 13 is GPT-3's
    (arXiv 2005.14165, appendix C). Both look the n-grams up in all of train at once. Here they have to come from one
    row: where problems are made from templates, or a domain has its turns of phrase, the sentences of a new prompt are
    found in many rows, and all of them in one only where the prompt itself was there. (The longest match tells more
    than the union of all: arXiv 2411.03923.)
    """
    train_rows = [row for part in train for row in part.rows]
    first: dict[bytes, TextRow] = {}
    for row in train_rows:
        first.setdefault(vocabulary.numbers(row.prompt).tobytes(), row)
    first.pop(b"", None)
    prompts = [vocabulary.numbers(row.prompt) for part in held_out for row in part.rows]
    overlaps = largest_overlaps(prompts, [words for each in wholes for words in each], limits.ngram, "contamination")
    checks, start = [], 0
    for part in held_out:
        same, near = [], []
        for number, row in enumerate(part.rows, start=start):
            other = first.get(prompts[number].tobytes())
            share = 1.0 if other is not None else overlaps[number].share
            if other is not None:
                same.append(_copied(row, "its prompt is that of", other))
            if share >= limits.contaminated_from:
                other = other or train_rows[overlaps[number].row]
                near.append((share, _copied(row, f"{share:.0%} of the words of its prompt stand in", other)))
        worst = [offender for _, offender in sorted(near, key=lambda found: -found[0])]
        checks += _contamination_checks(part, same, worst, limits)
        start += len(part.rows)
    return checks


def _contamination_checks(
    part: Part, same: Sequence[Offender], near: Sequence[Offender], limits: DataLimits
) -> list[Check]:
    is_same = "share of its rows whose prompt stands in train"
    is_dirty = f"share of its rows with {limits.contaminated_from:.0%} or more of the prompt in one training row"
    way_out = "take these rows out of train, or out of the held-out split, and prepare the data again"
    by_design = "; where templates repeat by design, set the threshold to what they give"
    return share_checks(
        len(part.rows),
        (
            ("max_same_prompt", f"same_prompt/{part.name}", same, is_same, way_out),
            ("max_contaminated", f"contamination/{part.name}", near, is_dirty, way_out + by_design),
        ),
        limits,
    )


def _copied(row: TextRow, why: str, other: TextRow) -> Offender:
    return Offender(row.place, row.prompt, f"{why} {other.place}")


def _duplicates(part: Part, words: Sequence[np.ndarray], limits: DataLimits) -> list[Check]:
    """Training rows, prompt and answers together, that an earlier row of the same set says already. (Two answers to one
    prompt are no duplicates: many data sets hold several.)"""
    rows, first = part.rows, first_places(each.tobytes() for each in words)
    exact = [
        Offender(row.place, row.whole, f"says the same as {rows[earlier].place}")
        for number, (row, earlier) in enumerate(zip(rows, first, strict=True))
        if earlier != number
    ]
    unique = [number for number, earlier in enumerate(first) if earlier == number]
    resembling = near_duplicates([words[n] for n in unique], limits.near_ngram, limits.near_from, f"{part.name}: near")
    near = [
        Offender(
            rows[unique[each.row]].place,
            rows[unique[each.row]].whole,
            f"{each.similarity:.0%} similar to {rows[unique[each.earlier]].place}",
        )
        for each in sorted(resembling, key=lambda each: -each.similarity)
    ]
    says_same = "share of its rows that say what an earlier one says, but for case, punctuation and white space"
    resembles = f"share of its rows with a similarity of {limits.near_from:g} or more to an earlier one"
    once = "keep one of each: a row that stands there twice is trained on twice as much"
    group = "keep one of each group, or raise the threshold where they are meant"
    return share_checks(
        len(rows),
        (
            ("max_exact_duplicates", f"duplicates/{part.name}_exact", exact, says_same, once),
            ("max_near_duplicates", f"duplicates/{part.name}_near", near, resembles, group),
        ),
        limits,
    )


def _answers(part: Part, limits: DataLimits) -> list[Check]:
    """Rows that ask or answer nothing, and answers that go on for very long."""
    empty = [
        Offender(row.place, row.whole, "the prompt is empty" if not row.prompt.strip() else "an answer is empty")
        for row in part.rows
        if not all(text.strip() for text in (row.prompt, *row.answers))
    ]
    lengths = [max(map(len, row.answers or (row.prompt,))) for row in part.rows]
    worst = sorted((-length, number) for number, length in enumerate(lengths) if length >= limits.long_from)
    long = [Offender(part.rows[n].place, part.rows[n].whole, f"{-length:,} characters") for length, n in worst]
    silent = "share of its rows with an empty prompt or answer"
    endless = f"share of its rows with an answer of {limits.long_from:,} characters or more"
    cut = "look whether they run on in their source; training cuts them at max_length, or leaves them out"
    return share_checks(
        len(part.rows),
        (
            ("max_empty", f"empty/{part.name}", empty, silent, "take them out: they teach a model to say nothing"),
            ("max_long", f"long/{part.name}", long, endless, cut),
        ),
        limits,
    )
