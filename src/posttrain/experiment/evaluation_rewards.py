"""What a reward model says of answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from posttrain.batch import NO_PARENT, pack
from posttrain.errors import UserError
from posttrain.experiment.evaluation_models import batches_by_tokens, conversation_texts
from posttrain.reward_model import load_sequence_classifier
from posttrain.reward_scoring import RewardScorer


def reward_scores(
    folder: Path, dtype: str, prompts: Sequence[list[dict[str, Any]]], answers: Sequence[str], num_tokens: int
) -> list[float]:
    """Score answers as whole conversations, laid out as in the reward model's training.

    Args:
        folder: of a sequence classifier with one label, or of an adapter of one.
        dtype: of the weights.
        prompts: conversations.
        answers: the assistant's next message in each.
        num_tokens: tokens scored at a time.

    Returns:
        a score an answer.

    Raises:
        UserError: the model cannot be loaded, or its tokenizer has no chat template.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        raise UserError(f"{folder}: the tokenizer of the reward model has no chat template")
    name = "params.yaml: evaluate.reward_model"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = dtype if dtype == "auto" else getattr(torch, dtype)
    model = load_sequence_classifier(str(folder), dtype=loaded, name=name).eval().to(device)
    scorer = RewardScorer(model)

    conversations = [
        [*prompt, {"role": "assistant", "content": answer}] for prompt, answer in zip(prompts, answers, strict=True)
    ]
    texts = conversation_texts(tokenizer, conversations, add_generation_prompt=False)
    ids = [np.array(row) for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    scores: dict[int, float] = {}
    with tqdm(total=len(ids), desc=f"{folder.name}: scores", unit="answer") as progress:
        for indices in batches_by_tokens([len(row) for row in ids], num_tokens):
            rows = [ids[index] for index in indices]
            no_targets = [np.zeros(len(row), dtype=np.int8) for row in rows]
            batch = pack(rows, no_targets, [NO_PARENT] * len(rows), num_groups=len(rows))
            with torch.no_grad():
                found = scorer(model, batch.to(device)).cpu().tolist()
            scores.update(zip(indices, found, strict=True))
            progress.update(len(rows))
    return [scores[index] for index in range(len(ids))]
