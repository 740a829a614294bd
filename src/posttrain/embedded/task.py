"""The embedded task as files: three sets of word problems in three splits, and the base model that learns them."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.embedded.problems import ITEMS, Draws, Problem, draw_problem
from posttrain.embedded.slips import draw_slip
from posttrain.embedded.tokenizer import train_tokenizer, write_tokenizer
from posttrain.embedded.weights import count_parameters, write_model

SETS = ("sft", "preference", "prompts")
# Drawn in this order, so that another number of training problems leaves the held-out ones as they are.
SPLITS = ("test", "validation", "train")

# Of these items, someone in a hurry wrote many of the solutions: the answer alone. A model that learns from them does
# the same; what that costs is for the later stages to find out.
HURRIED = ITEMS[::2]

Problems = dict[tuple[str, str], list[Problem]]


def draw_sets(seed: int, sizes: Mapping[tuple[str, str], int]) -> Problems:
    """Draw all problems, none twice: what one split of one set holds occurs in no other.

    Args:
        seed: where every choice comes from.
        sizes: number of problems by set and split.

    Returns:
        the problems by set and split.
    """
    seen: set[str] = set()
    problems: Problems = {}
    for split in SPLITS:
        for name in SETS:
            draws = Draws(f"{seed}/{name}/{split}")
            chosen: list[Problem] = []
            while len(chosen) < sizes[name, split]:
                problem = draw_problem(draws)
                if problem.key not in seen:
                    seen.add(problem.key)
                    chosen.append(problem)
            problems[name, split] = chosen
    return problems


def check_disjoint(problems: Problems) -> None:
    """Check that no two problems are the same, by their equations or by their text, within a split or across splits.

    Raises:
        AssertionError: naming the first problem that occurs twice, and where.
    """
    where: dict[str, tuple[str, str]] = {}
    for place, group in problems.items():
        for problem in group:
            for sign in (problem.key, problem.question):
                assert sign not in where, f"{sign!r} stands in {where[sign]} and in {place}"
                where[sign] = place


def rows(name: str, split: str, problems: Iterable[Problem], seed: int, terse_share: float) -> Iterator[dict[str, Any]]:
    """The rows of one file.

    Args:
        name: one of SETS. sft: `messages`; preference: `prompt`, `chosen`, `rejected`; prompts: `prompt`, `solution`.
        split: one of SPLITS.
        problems: one for each row.
        seed: where the slips come from.
        terse_share: share of the sft rows about HURRIED items that state the answer alone.
    """
    draws = Draws(f"{seed}/{name}/{split}/slips")
    for problem in problems:
        question, answer = _message("user", problem.question), _message("assistant", problem.solution)
        if name == "sft":
            terse = problem.items in HURRIED and draws.chance(terse_share)
            yield {"messages": [question, _message("assistant", problem.answer_alone) if terse else answer]}
        elif name == "preference":
            slip = _message("assistant", draw_slip(problem, draws))
            yield {"prompt": [question], "chosen": [answer], "rejected": [slip]}
        else:
            yield {"prompt": [question], "solution": str(problem.answer)}


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def write_data(problems: Problems, seed: int, terse_share: float, root: Path) -> None:
    """Write `<set>/<split>.jsonl` under a folder; each set's folder is replaced as a whole."""
    for name in SETS:
        folder = new_folder(root / name)
        for split in SPLITS:
            written = rows(name, split, problems[name, split], seed, terse_share)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in written)
            with open(folder / f"{split}.jsonl", "w", encoding="utf-8", newline="\n") as file:
                file.writelines(lines)
        put_in_place(folder, root / name)


def write_base_model(texts: Iterable[str], vocab_size: int, sizes: Mapping[str, int], seed: int, path: Path) -> int:
    """Train the tokenizer, draw the weights, and write the model's folder.

    Args:
        texts: what the tokenizer is trained on.
        vocab_size: the largest number of tokens; a text with few words gives fewer.
        sizes: hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads.
        seed: where the weights come from.
        path: the model's folder; replaced as a whole.

    Returns:
        the number of the model's parameters.
    """
    folder = new_folder(path)
    tokenizer = train_tokenizer(texts, vocab_size)
    write_tokenizer(tokenizer, folder)
    shape = {**sizes, "vocab_size": tokenizer.get_vocab_size()}
    write_model(shape, seed, folder)
    put_in_place(folder, path)
    return count_parameters(shape)


def tokenizer_texts(problems: Iterable[Problem]) -> list[str]:
    """The conversations without their special tokens, roles included."""
    return [f"user\n{problem.question}\nassistant\n{problem.solution}\n" for problem in problems]


def describe(problems: Problems) -> dict[str, int]:
    """Counts for the metrics file: rows of each file, and training problems of each number of steps."""
    counts = {f"num_rows/{name}/{split}": len(problems[name, split]) for name in SETS for split in SPLITS}
    steps = Counter(len(problem.steps) for problem in problems["sft", "train"])
    return counts | {f"num_{number}_step_problems": steps[number] for number in sorted(steps)}


def new_folder(path: Path) -> Path:
    """An empty folder beside `path`. What stands there may be a link into a cache: nothing is written through it."""
    folder = path.with_name(path.name + ".new")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def put_in_place(folder: Path, path: Path) -> None:
    """Give a folder from `new_folder` the name that it was made for, whatever stood there before."""
    if path.exists():
        shutil.rmtree(path)
    folder.rename(path)
