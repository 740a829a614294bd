"""Models as rewards: their own tokenizer, their own weights, and the number that they make of a completion."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from helpers_rewards import batch_of, column, message, rewards_of
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
)

from posttrain.errors import UserError
from posttrain.rollout.rewards.batch import RewardBatch
from posttrain.rollout.rewards.labels import label_values
from posttrain.rollout.rewards.models import pack_sequences
from posttrain.rollout.rewards.table import Rewards

STARS = {i: f"{i + 1} star{'s' * (i > 0)}" for i in range(5)}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "very", "film", "?", "a"]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with one label, made of a language model, with a tokenizer of its own."""
    base = tiny.write_base(tmp_path_factory.mktemp("decoder") / "base")
    folder = base.parent / "reward"
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = 0
    model.score.weight.data.normal_(0, 5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def write_encoder(folder: Path, labels: dict[int, str], **settings: Any) -> Path:
    """A classifier of BERT's kind with random weights, for 16 tokens at most."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        initializer_range=1.0,
        id2label=labels,
        label2id={label: index for index, label in labels.items()},
        **settings,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def score(batch: RewardBatch, **flags: Any) -> tuple[list[float | None], Rewards]:
    with rewards_of(**flags) as rewards:
        return column(rewards.submit(batch).result()), rewards


def plain_scores(folder: Path, texts: list[str]) -> list[float]:
    """What transformers gives for each text by itself, as it stands."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits.item() for text in texts]


def test_a_reward_model_scores_conversations_in_its_own_template(decoder: Path) -> None:
    prompts = [message("Ada has 1 apple", "user")] * 3 + [message("Ben has 2", "user")] * 2
    completions = [message(text) for text in ("1 apple", "1 or 2 apples", "", "2", "3")]
    scores, rewards = score(batch_of(completions, prompts), reward_model_name_or_path=str(decoder))
    assert rewards.names == ["reward"]
    texts = [
        f"<|im_start|>user\n{p[0]['content']}<|im_end|>\n<|im_start|>assistant\n{c[0]['content']}<|im_end|>\n"
        for p, c in zip(prompts, completions, strict=True)
    ]
    np.testing.assert_allclose(np.array(scores), plain_scores(decoder, texts), rtol=1e-5, atol=1e-5)
    assert len(set(scores)) == 5


def test_a_reward_model_gets_text_with_its_eos(decoder: Path) -> None:
    batch = batch_of(["1", "22", "3"], ["1+0=", "1+0=", "1+2="])
    scores, rewards = score(batch, reward_model_name_or_path=str(decoder), reward_model_dtype="float32")
    texts = ["1+0=1<|im_end|>", "1+0=22<|im_end|>", "1+2=3<|im_end|>"]
    np.testing.assert_allclose(np.array(scores), plain_scores(decoder, texts), rtol=1e-5, atol=1e-5)
    assert rewards.num_truncated == 0


def test_an_adapter_that_the_reward_method_has_made(decoder: Path, tmp_path: Path) -> None:
    data = tiny.write_preference(tmp_path / "pairs.jsonl")
    out = tmp_path / "adapter"
    tiny.run("reward", decoder.parent / "base", data, out, "--use_peft", "--lora_task_type", "SEQ_CLS")
    batch = batch_of([message("2 apples"), message("3 apples")], [message("Ada?", "user")] * 2)
    trained, _ = score(batch, reward_model_name_or_path=str(out))
    assert None not in trained
    assert trained[0] != trained[1]
    merged = tmp_path / "merged"
    from posttrain.reward_model import load_sequence_classifier

    load_sequence_classifier(str(out)).save_pretrained(merged)
    AutoTokenizer.from_pretrained(out).save_pretrained(merged)
    again, _ = score(batch, reward_model_name_or_path=str(merged))
    assert again == pytest.approx(trained, abs=1e-6)


def test_a_language_model_is_no_reward_model(decoder: Path) -> None:
    with pytest.raises(UserError, match="no score head"):
        score(batch_of(["a"]), reward_model_name_or_path=str(decoder.parent / "base"))


def test_an_encoder_with_one_score_reads_prompt_and_completion_as_a_pair(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", {0: "LABEL_0"})
    prompts, completions = ["film ?", "a film ?"], ["very good", "bad"]
    scores, _ = score(batch_of(completions, prompts), reward_model_name_or_path=str(folder))
    model, tokenizer = (
        BertForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    with torch.no_grad():
        pairs = [tokenizer(p, c, return_tensors="pt") for p, c in zip(prompts, completions, strict=True)]
        expected = [model(**pair).logits.item() for pair in pairs]
    assert scores == pytest.approx(expected, abs=1e-5)


def test_stars_become_their_mean_and_long_texts_are_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_encoder(tmp_path / "stars", STARS)
    completions = ["good film", "very " * 40, message("bad")]
    scores, rewards = score(
        batch_of(completions), reward_model_name_or_path=f"sentiment-analysis:{folder}", reward_model_dtype="float32"
    )
    model, tokenizer = (
        BertForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    texts = ["good film", "very " * 14, "bad"]  # 14 words, [CLS] and [SEP] make 16 tokens
    with torch.no_grad():
        shares = [model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1) for text in texts]
    expected = [sum((i + 1) * float(share[i]) for i in range(5)) for share in shares]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert rewards.num_truncated == 1
    assert "texts of more than 16 tokens are too long" in caplog.text


def test_a_classifier_may_stand_among_the_functions(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "mood", {0: "NEGATIVE", 1: "POSITIVE"})
    names = [f"{task}:{folder}" for task in ("text-classification", "sentiment-analysis")]
    with rewards_of("think_format_reward", names[0], reward_model_name_or_path=names[1]) as rewards:
        assert rewards.names == ["mood", "think_format_reward", "mood_2"]  # the model first, as its weight
        table = rewards.submit(batch_of(["good", "bad film"])).result()
    assert column(table, 0) == column(table, 2)
    assert all(-1 < value < 1 for value in table[:, 0])


def test_labels_with_a_probability_each(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "multi", {0: "neg", 1: "pos"}, problem_type="multi_label_classification")
    scores, _ = score(batch_of(["good"]), reward_model_name_or_path=f"text-classification:{folder}")
    model, tokenizer = (
        BertForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    with torch.no_grad():
        bad, good = model(**tokenizer("good", return_tensors="pt")).logits[0].sigmoid().tolist()
    assert scores == pytest.approx([good - bad], abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (["1 star", "2 stars", "3 stars"], [1.0, 2.0, 3.0]),
        (["5_STARS", "4_STARS"], [5.0, 4.0]),
        (["0", "1", "2"], [0.0, 1.0, 2.0]),
        (["NEGATIVE", "POSITIVE"], [-1.0, 1.0]),
        (["neg", "neu", "pos"], [-1.0, 0.0, 1.0]),
        (["LABEL_0", "LABEL_1"], [-1.0, 1.0]),
    ],
)
def test_what_labels_are_worth(labels: list[str], values: list[float]) -> None:
    assert label_values(dict(enumerate(labels)), "m") == values


@pytest.mark.parametrize(
    "labels", [["toxic", "other"], ["LABEL_0", "LABEL_1", "LABEL_2"], ["POSITIVE", "LABEL_0"], ["positive", "neutral"]]
)
def test_labels_that_say_nothing(labels: list[str]) -> None:
    with pytest.raises(UserError, match="do not say what is good"):
        label_values(dict(enumerate(labels)), "m")


def test_what_completions_of_a_prompt_share_stands_in_the_row_once() -> None:
    sequences = [[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 3], [7, 8], [1, 2, 9]]
    batch = pack_sequences(sequences, ["p", "p", "p", "q", "p"])
    # The third ends within what the others share, so its last token stands in each of the three.
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 3, 5, 6, 3, 7, 8, 1, 2, 9]
    assert batch.segments.lengths == (2, 2, 3, 1, 2, 3)
    assert batch.segments.parents == (-1, 0, 0, 0, -1, -1)
    assert [batch.input_ids[end].item() for end in batch.end_positions] == [4, 6, 3, 8, 9]
    assert batch.num_groups == 3
