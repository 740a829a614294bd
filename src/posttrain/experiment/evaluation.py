"""What a model can do on held-out problems: greedy answers, graded, and whether it prefers the right one of two.

Only transformers' plain models are used here, none of the training core: what a run reports is checked by other means
than those that trained it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.readers import read_rows
from posttrain.errors import UserError
from posttrain.grading import final_answer, is_correct

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Z_95 = 1.959964  # quantile of the normal distribution that leaves 2.5% on either side
CONVERSATION = "a list of messages"


@dataclass(frozen=True)
class Answer:
    """What a model wrote after a prompt.

    Attributes:
        text: without special tokens.
        num_tokens: how many tokens it wrote, the one that ends the turn included.
        ended: whether it ended its turn, rather than running into the limit.
    """

    text: str
    num_tokens: int
    ended: bool


def read_problems(path: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read held-out rows and check their columns.

    Args:
        path: a data file.
        columns: the names that each row must have; all but `solution` hold a list of messages.

    Raises:
        UserError: naming the file and line of the first row that does not fit.
    """
    rows = []
    for place, row in read_rows(Path(path)):
        for name in columns:
            wanted = str if name == "solution" else list
            if not isinstance(row.get(name), wanted):
                kind = "text" if wanted is str else CONVERSATION
                raise UserError(f"{place}: wanted a column {name} with {kind}; the row has {', '.join(row)}")
        rows.append(row)
    return rows


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927, without continuity correction).

    Args:
        successes: how many of the trials succeeded.
        trials: at least 1.

    Returns:
        lower and upper end, within 0 to 1.
    """
    share, z2 = successes / trials, Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Cut indices into batches of similar length, longest first, so that a lack of memory shows at once.

    Args:
        lengths: of each item, in tokens.
        batch_size: items in a batch; the last one may have fewer.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: list[dict[str, str]]) -> list[int]:
    """The tokens that an answer to a conversation comes after."""
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    batch_size: int,
) -> list[Answer]:
    """Let a model answer, taking the likeliest token each time.

    Args:
        model: a causal language model, in evaluation mode.
        tokenizer: the model's.
        prompts: tokens of each prompt.
        max_new_tokens: where an answer without an end is cut off.
        batch_size: prompts answered at a time.

    Returns:
        the answers, in the prompts' order.
    """
    import torch
    from tqdm import tqdm

    answers: dict[int, Answer] = {}
    progress = tqdm(total=len(prompts), desc="answers", unit="prompt")
    for batch in batches_by_length([len(ids) for ids in prompts], batch_size):
        width = len(prompts[batch[0]])
        rows = [[tokenizer.pad_token_id] * (width - len(prompts[i])) + prompts[i] for i in batch]
        mask = [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in batch]
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        for index, ids in zip(batch, output[:, width:].tolist(), strict=True):
            ended = tokenizer.eos_token_id in ids
            ids = ids[: ids.index(tokenizer.eos_token_id) + 1] if ended else ids
            answers[index] = Answer(tokenizer.decode(ids, skip_special_tokens=True), len(ids), ended)
        progress.update(len(batch))
    progress.close()
    return [answers[index] for index in range(len(prompts))]


def answer_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[tuple[list[int], str]],
    batch_size: int,
    title: str,
) -> list[float]:
    """Sum the log-probs of whole answers, the token that ends the turn included.

    Args:
        model: a causal language model, in evaluation mode.
        tokenizer: the model's.
        conversations: tokens of the prompt, and the text of the answer.
        batch_size: conversations scored at a time.
        title: what the progress bar says.

    Returns:
        natural log-probability of each answer given its prompt.
    """
    import torch
    from tqdm import tqdm

    answers = [tokenizer(text, add_special_tokens=False)["input_ids"] for _, text in conversations]
    whole = [prompt + ids + [tokenizer.eos_token_id] for (prompt, _), ids in zip(conversations, answers, strict=True)]
    sums: dict[int, float] = {}
    progress = tqdm(total=len(whole), desc=title, unit="answer")
    for batch in batches_by_length([len(ids) for ids in whole], batch_size):
        width = len(whole[batch[0]])
        # Padding stands behind: a causal model never looks there, and the positions need no correction.
        rows = torch.tensor([whole[i] + [tokenizer.pad_token_id] * (width - len(whole[i])) for i in batch])
        position = torch.arange(1, width)
        first = torch.tensor([[len(conversations[i][0])] for i in batch])
        stop = torch.tensor([[len(whole[i])] for i in batch])
        counts = (position >= first) & (position < stop)
        with torch.inference_mode():
            logits = model(input_ids=rows.to(model.device)).logits[:, :-1].float()
            chosen = logits.gather(-1, rows[:, 1:, None].to(model.device)).squeeze(-1)
            logprobs = (chosen - logits.logsumexp(-1)).cpu()
        totals = torch.where(counts, logprobs, 0.0).double().sum(-1).tolist()
        sums.update(zip(batch, totals, strict=True))
        progress.update(len(batch))
    progress.close()
    return [sums[index] for index in range(len(whole))]


def grade_answers(rows: Sequence[dict[str, Any]], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """One result a problem, in the order of the rows.

    Args:
        rows: with `prompt` and `solution`.
        answers: the model's.
    """
    return [
        {
            "id": f"prompts/{number}",
            "prompt": row["prompt"],
            "completion": answer.text,
            "reference": row["solution"],
            "correct": is_correct(answer.text, row["solution"]),
            "formatted": final_answer(answer.text) is not None,
            "ended": answer.ended,
            "num_tokens": answer.num_tokens,
        }
        for number, (row, answer) in enumerate(zip(rows, answers, strict=True))
    ]


def answer_metrics(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Shares and means of the results of grade_answers."""
    number = len(results)
    correct = sum(result["correct"] for result in results)
    low, high = wilson_interval(correct, number)
    return {
        "exact_match": correct / number,
        "exact_match_low": low,
        "exact_match_high": high,
        "format_rate": sum(result["formatted"] for result in results) / number,
        "eos_rate": sum(result["ended"] for result in results) / number,
        "mean_completion_length": sum(result["num_tokens"] for result in results) / number,
        "num_prompts": number,
    }


def pair_margins(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[dict[str, Any]],
    batch_size: int,
    title: str,
) -> list[float]:
    """By how much a model finds the chosen answer likelier than the rejected one.

    Args:
        model: a causal language model, in evaluation mode.
        tokenizer: the model's.
        pairs: rows with `prompt`, `chosen` and `rejected`, each a list of messages; an answer is one message.
        batch_size: answers scored at a time.
        title: what the progress bar says.

    Returns:
        log p(chosen | prompt) − log p(rejected | prompt) of each pair.
    """
    conversations = []
    for pair in pairs:
        prompt = prompt_ids(tokenizer, pair["prompt"])
        conversations += [(prompt, pair[side][-1]["content"]) for side in ("chosen", "rejected")]
    sums = answer_logprobs(model, tokenizer, conversations, batch_size, title)
    return [chosen - rejected for chosen, rejected in zip(sums[::2], sums[1::2], strict=True)]


def share_above_zero(margins: Sequence[float]) -> float:
    """The share of pairs whose chosen answer wins; a tie is no win."""
    return sum(margin > 0 for margin in margins) / len(margins)
