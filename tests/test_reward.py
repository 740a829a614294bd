"""Reward modeling: the loss and its metrics by hand, the rows, and what a run learns, saves and loads again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_data import bot, make_tokenizer, user, write_jsonl
from tiny import curve, run, sums, write_base, write_preference, write_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from posttrain.cli import main
from posttrain.config import RewardConfig
from posttrain.data.prepare import PreparedData, prepare
from posttrain.errors import UserError
from posttrain.losses.reward import NUM_BINS, confidence_gaps, reward_loss, with_calibration_error
from posttrain.reward_model import load_sequence_classifier, set_padding_token

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft, of transformers
)

Prepared = Callable[..., PreparedData]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# -- the loss


def test_loss_and_metrics_of_two_pairs() -> None:
    """Differences 2 and -1. Loss: -log σ(2) - log σ(-1); Brier: σ(-2)² + σ(1)²."""
    loss = reward_loss(torch.tensor([1.5, -0.5, 0.0, 1.0]))
    (term,) = loss.terms
    assert term.divide_by == "groups" and term.coefficient == 1.0
    assert term.sum.item() == pytest.approx(-math.log(sigmoid(2)) - math.log(sigmoid(-1)), rel=1e-6)
    ratios = {name: float(total) / float(weight) for name, (total, weight) in loss.metrics.items()}
    assert ratios["mean_reward"] == pytest.approx(0.5)
    assert ratios["accuracy"] == pytest.approx(0.5)
    assert ratios["margin"] == pytest.approx(0.5)
    assert ratios["brier_score"] == pytest.approx((sigmoid(-2) ** 2 + sigmoid(1) ** 2) / 2)
    assert loss.minima["min_reward"].item() == -0.5 and loss.maxima["max_reward"].item() == 1.5


def test_margins_and_centering() -> None:
    """With margins 0.5 and 1: -log σ(1.5) - log σ(-2). Centering: (1.5 - 0.5)² + (0 + 1)²."""
    loss = reward_loss(torch.tensor([1.5, -0.5, 0.0, 1.0]), torch.tensor([0.5, 1.0]), 0.01)
    pairs, centre = loss.terms
    assert pairs.sum.item() == pytest.approx(-math.log(sigmoid(1.5)) - math.log(sigmoid(-2)), rel=1e-6)
    assert (centre.sum.item(), centre.divide_by, centre.coefficient) == (2.0, "groups", 0.01)
    assert loss.metrics["margin"][0].item() == 1.0  # of the scores alone
    assert loss.metrics["accuracy"][0].item() == 1.0


def test_calibration_error_of_four_pairs() -> None:
    """Two pairs with confidence 0.8, one of them right: a gap of 0.3, with half of the weight. One with 0.97, right:
    0.03. One with 0.52, wrong: 0.52. Together 0.3 / 2 + 0.03 / 4 + 0.52 / 4 = 0.2875."""
    log_odds = [math.log(p / (1 - p)) for p in (0.8, 0.97, 0.52)]
    difference = torch.tensor([log_odds[0], -log_odds[0], log_odds[1], -log_odds[2]])
    gaps = confidence_gaps(difference)
    assert gaps.shape == (NUM_BINS,)
    expected = {6: 0.6, 9: -0.03, 0: 0.52}  # bins of 0.05 from 0.5
    assert gaps.tolist() == pytest.approx([expected.get(number, 0.0) for number in range(NUM_BINS)], abs=1e-5)
    scores = torch.stack([difference, torch.zeros(4)], dim=1).flatten()
    # In two batches, as in one: the sums of the batches are added, then divided by all pairs.
    batches = [reward_loss(scores[:2]).metrics, reward_loss(scores[2:]).metrics]
    ratios = {name: float(sum(b[name][0] for b in batches) / sum(b[name][1] for b in batches)) for name in batches[0]}
    values = with_calibration_error(ratios)
    assert values["calibration_error"] == pytest.approx(0.2875, abs=1e-5)
    assert values.keys() == {"mean_reward", "accuracy", "margin", "brier_score", "calibration_error"}
    assert with_calibration_error({"loss": 1.0}) == {"loss": 1.0}


# -- the rows


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    def make(rows: list[Any], tokenizer: Any = None, **flags: Any) -> PreparedData:
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        config = RewardConfig(
            model_name_or_path="m", dataset_name=str(path), cache_dir=str(tmp_path / "cache"), **flags
        )
        data = prepare(config, tokenizer or make_tokenizer(), "reward", "train")
        assert data is not None
        return data

    return make


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "ab", "chosen": "cd", "rejected": "ef"}, ("ab", "cd<|end|>", "ef<|end|>")),
        ({"chosen": "ab cd", "rejected": "ab ef"}, ("ab ", "cd<|end|>", "ef<|end|>")),
        # what the answers have in common is shared too: only the last tokens are scored
        ({"prompt": "ab", "chosen": "xyc", "rejected": "xyd"}, ("abxy", "c<|end|>", "d<|end|>")),
        # but no end of a sequence
        ({"prompt": "ab", "chosen": "x", "rejected": "xy"}, ("abx", "<|end|>", "y<|end|>")),
        ({"prompt": "", "chosen": "cd", "rejected": "e"}, ("", "cd<|end|>", "e<|end|>")),
        (
            {"prompt": [user("?")], "chosen": [bot("y")], "rejected": [bot("n")]},
            ("<|user|>?<|end|>\n<|bot|>", "y<|end|>\n", "n<|end|>\n"),
        ),
    ],
)
def test_formats(prepared: Prepared, row: Any, expected: tuple[str, str, str]) -> None:
    (tokens,) = prepared([row]).dataset
    tokenizer = make_tokenizer()
    assert tuple(tokenizer.decode(tokens[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected")) == expected


def test_a_pair_that_is_too_long_is_left_out_and_named(prepared: Prepared, caplog: pytest.LogCaptureFixture) -> None:
    pair = {"prompt": "ab", "chosen": "cd", "rejected": "e"}
    rows = [pair, {**pair, "chosen": "cde"}, {**pair, "rejected": "efgh"}, {**pair, "margin": 0.5}]
    data = prepared(rows, max_length=5)
    assert [(row["row"], row["margin"]) for row in data.dataset] == [(0, None), (3, 0.5)]
    assert data.counts["rows_dropped_pair_too_long"] == 2
    assert (data.counts["rows"], data.counts["rows_read"], data.counts["tokens"]) == (2, 4, 14)
    (note,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "2 of 4 rows dropped, a side is longer than --max_length 5" in note and "line 2" in note


# -- runs


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


def plain_scores(model: torch.nn.Module, folder: Path, count: int = 6) -> torch.Tensor:
    """Scores of chosen and rejected answers by the book: rows padded by the tokenizer, the model's own pooling."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    conversations = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, *answers in sums(count)
        for answer in answers
    ]
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    rows = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        return model.eval()(rows["input_ids"], attention_mask=rows["attention_mask"]).logits[:, 0]


def evaluated(model: Path, folder: Path, out: Path) -> dict[str, float]:
    """What a run without learning says of the held-out rows."""
    words = ["--learning_rate", "0", "--max_steps", "1", "--eval_strategy", "steps", "--eval_steps", "1"]
    state = run("reward", model, folder, out, *words)
    return next(line for line in state["log_history"] if "eval_loss" in line)


def both_splits(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    for name in ("train", "test"):
        write_preference(folder / f"{name}.jsonl", count)
    return folder


def test_a_full_run_leaves_a_classifier_of_transformers(base: Path, tmp_path: Path) -> None:
    """Loaded by transformers alone, it scores padded rows as the run's own evaluation did."""
    data = both_splits(tmp_path / "rows")
    words = ["--eval_strategy", "steps", "--eval_steps", "30", "--max_steps", "30"]
    state = run("reward", base, data, tmp_path / "out", *words)
    losses = curve(state, "loss", "accuracy")
    assert losses[0][0] > 0.4 and losses[-1] == [pytest.approx(0, abs=0.05), 1.0]
    line = next(line for line in state["log_history"] if "eval_loss" in line)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_labels == 1 and "posttrain" not in (tmp_path / "out" / "config.json").read_text()
    scores = plain_scores(model, tmp_path / "out")
    difference = scores[::2] - scores[1::2]
    assert line["eval_margin"] == pytest.approx(difference.mean().item(), rel=1e-4)
    assert line["eval_min_reward"] == pytest.approx(scores.min().item(), rel=1e-4)
    assert line["eval_max_reward"] == pytest.approx(scores.max().item(), rel=1e-4)
    assert line["eval_brier_score"] == pytest.approx((torch.sigmoid(-difference) ** 2).mean().item(), rel=1e-3)
    assert line["eval_loss"] == pytest.approx(-torch.nn.functional.logsigmoid(difference).mean().item(), rel=1e-3)
    # A classifier is something to start from: the same scores.
    assert evaluated(tmp_path / "out", data, tmp_path / "again")["eval_margin"] == pytest.approx(
        line["eval_margin"], rel=1e-5
    )


def test_the_evaluation_does_not_depend_on_its_batches(base: Path, tmp_path: Path) -> None:
    data = both_splits(tmp_path / "rows", count=7)
    names = ["loss", "accuracy", "margin", "brier_score", "calibration_error", "min_reward", "max_reward"]
    lines = []
    for size in ("1", "3", "7"):
        words = ["--eval_strategy", "steps", "--eval_steps", "3", "--per_device_eval_batch_size", size]
        state = run("reward", base, data, tmp_path / size, *words)
        (line,) = curve(state, *(f"eval_{name}" for name in names))
        lines.append(line)
    assert lines == [pytest.approx(lines[0], rel=1e-5)] * 3
    assert not any(name.startswith("eval_calibration_gap") for line in state["log_history"] for name in line)


@pytest.mark.parametrize("task_type", [[], ["--lora_task_type", "SEQ_CLS"]])
def test_lora_trains_and_saves_the_head(task_type: list[str], base: Path, tmp_path: Path) -> None:
    """Nothing is asked for; peft loads the folder, and the scores are those of the run's last evaluation, as are those
    of a run that starts from it."""
    from peft import AutoPeftModelForSequenceClassification
    from safetensors.torch import load_file

    data = both_splits(tmp_path / "rows")
    words = ["--use_peft", "--lora_r", "4", "--eval_strategy", "steps", "--eval_steps", "30", "--max_steps", "30"]
    state = run("reward", base, data, tmp_path / "out", *words, *task_type)
    line = next(line for line in state["log_history"] if "eval_loss" in line)
    assert line["eval_accuracy"] == 1.0 and line["eval_margin"] > 1
    head = [key for key in load_file(tmp_path / "out" / "adapter_model.safetensors") if "score" in key]
    assert len(head) == 1
    model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=1)
    scores = plain_scores(model, tmp_path / "out")
    assert line["eval_margin"] == pytest.approx((scores[::2] - scores[1::2]).mean().item(), rel=1e-4)
    assert line["eval_max_reward"] == pytest.approx(scores.max().item(), rel=1e-4)
    again = evaluated(tmp_path / "out", data, tmp_path / "again")
    assert again["eval_margin"] == pytest.approx(line["eval_margin"], rel=1e-4)
    assert again["eval_loss"] == pytest.approx(line["eval_loss"], rel=1e-3)
    torch.testing.assert_close(plain_scores(load_sequence_classifier(str(tmp_path / "out")), tmp_path / "out"), scores)


def test_an_adapter_of_a_language_model_is_a_start(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its base alone, with the same seed and so the same new head, scores differently: the adapter is merged in. A new
    adapter of the two together would load without the first one, so there is none."""
    data = both_splits(tmp_path / "rows")
    run("dpo", base, data, tmp_path / "adapter", "--use_peft", "--lora_r", "4", "--max_steps", "5")
    adapted = evaluated(tmp_path / "adapter", data, tmp_path / "a")
    plain = evaluated(base, data, tmp_path / "b")
    assert abs(adapted["eval_margin"] - plain["eval_margin"]) > 1e-4
    words = ["--model_name_or_path", str(tmp_path / "adapter"), "--dataset_name", str(data), "--use_peft"]
    assert main(["reward", *words, "--output_dir", str(tmp_path / "c")]) == 2
    assert "nowhere on disk; leave use_peft out" in capsys.readouterr().err
    with pytest.raises(UserError, match="no score head, so its scores would be random"):
        load_sequence_classifier(str(tmp_path / "adapter"))


def test_a_margin_column_counts(base: Path, tmp_path: Path) -> None:
    """Margins of 0 or none change nothing; one of 1 makes the loss larger; both columns leave accuracy alone."""
    rows = [{"prompt": q, "chosen": c, "rejected": r} for q, c, r in sums(4)]
    losses = {}
    for name, margin in {"none": None, "zero": 0.0, "one": 1.0}.items():
        data = write_rows(tmp_path / f"{name}.jsonl", [{**row, "margin": margin} for row in rows])
        state = run("reward", base, data, tmp_path / name, "--max_steps", "1", "--per_device_train_batch_size", "4")
        losses[name] = curve(state, "loss")[0][0]
    assert losses["none"] == losses["zero"] < losses["one"] - 0.1


def test_mistakes(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_preference(tmp_path / "rows.jsonl")

    def message(model: Path, *words: str) -> str:
        flags = ["--model_name_or_path", str(model), "--dataset_name", str(data), "--output_dir", str(tmp_path / "o")]
        assert main(["reward", *flags, *words]) == 2
        return capsys.readouterr().err

    assert "SEQ_CLS" in message(base, "--use_peft", "--lora_task_type", "CAUSAL_LM")
    assert "none is left to train on: a side is longer than --max_length 5" in message(base, "--max_length", "5")
    two = write_base(tmp_path / "two")
    config = json.loads((two / "config.json").read_text())
    config |= {"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "bad", "1": "good"}}
    (two / "config.json").write_text(json.dumps(config))
    assert "a classifier with 2 labels (bad, good)" in message(two)
    config |= {"id2label": {"0": "good"}}
    (two / "config.json").write_text(json.dumps(config))
    assert "weights are missing: score.weight" in message(two)
    config |= {"architectures": ["GraniteForCausalLM"], "model_type": "granite"}
    (two / "config.json").write_text(json.dumps(config))
    assert "no sequence classifier for models of the type granite; it has one for gemma2" in message(two)


def test_a_classifier_needs_a_padding_token() -> None:
    tokenizer = make_tokenizer()
    set_padding_token(tokenizer, "model")
    assert tokenizer.pad_token == "<pad>"
    tokenizer.pad_token = None
    with pytest.raises(UserError, match=r"no padding token.*--pad_token"):
        set_padding_token(tokenizer, "model")
    tokenizer.unk_token = "<bos>"
    set_padding_token(tokenizer, "model")
    assert tokenizer.pad_token == "<bos>"
