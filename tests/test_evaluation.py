"""The stage `evaluate`: results, metrics, the same bytes again, and mistakes that end before torch is imported."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from posttrain.config.rewards import RewardSourceFlags
from posttrain.experiment import evaluation
from posttrain.experiment.evaluation_models import Answer
from posttrain.rollout.rewards.batch import RewardBatch
from posttrain.rollout.rewards.models import ModelReward
from posttrain.rollout.rewards.sources import Source
from tests.tiny import sums, write_base, write_preference, write_rows

ROOT = Path(__file__).resolve().parent.parent
PARAMS = {
    "prompts": "prompts.jsonl",
    "pairs": "pairs.jsonl",
    "reference": "sft",
    "reward_model": None,
    "max_new_tokens": 8,
    "num_sampled_prompts": 3,
    "num_samples": 4,
    "pass_at": [1, 4],
    "temperature": 1.0,
    "seed": 0,
    "dtype": "float32",
    "batch_size": 8,
    "tokens_at_once": 200,
    "num_threads": 1,
}

SAMPLES = {"models": ["sft", "dpo"], "num_differing": 2, "num_agreeing": 2}


def answer(text: str, num_tokens: int, ended: bool = True, logprob: float = 0.0) -> Answer:
    logprobs = np.full(num_tokens, logprob, dtype=np.float32)
    return Answer(text, np.arange(num_tokens), logprobs, ended)


def rows(*solutions: str) -> list[dict[str, Any]]:
    return [{"id": f"prompts/{n}", "prompt": [], "solution": solution} for n, solution in enumerate(solutions)]


def test_metrics_of_graded_answers() -> None:
    answers = [answer("#### 5", 4), answer("#### 6", 6), answer("and so on", 8, ended=False)]
    results = evaluation.grade_answers(rows("5", "7", "9"), answers)
    assert [result["id"] for result in results] == ["prompts/0", "prompts/1", "prompts/2"]
    assert [result["correct"] for result in results] == [True, False, False]
    metrics = evaluation.answer_metrics(results)
    assert metrics["exact_match"] == pytest.approx(1 / 3)
    assert metrics["format_rate"] == metrics["eos_rate"] == pytest.approx(2 / 3)
    assert metrics["mean_completion_length"] == 6


def test_pass_at_k_is_a_mean_over_prompts() -> None:
    samples = [[answer("#### 5", 3), answer("#### 5", 4)], [answer("#### 1", 5), answer("#### 7", 6)]]
    results = evaluation.grade_samples(rows("5", "7"), samples)
    assert results[1] == {"samples_correct": [False, True], "samples_num_tokens": [5, 6]}
    metrics = evaluation.sample_metrics(results, [1, 2])
    assert metrics["pass_at_1"] == 0.75
    assert metrics["pass_at_2"] == metrics["pass_at_2_low"] == metrics["pass_at_2_high"] == 1.0
    assert (metrics["num_sampled_prompts"], metrics["num_samples"]) == (2, 2)


def test_divergence_is_summed_over_a_sample_and_told_in_the_results() -> None:
    samples = [[answer("", 2, logprob=-1.0), answer("", 4, logprob=-0.5)]]
    theirs = [[np.full(2, -1.5, dtype=np.float32), np.full(4, -0.75, dtype=np.float32)]]
    results, metrics = evaluation.divergence("sft", samples, theirs)
    assert results == [{"samples_log_ratio_sft": [1.0, 1.0]}]
    assert metrics["kl_to_sft"] == 1.0
    assert metrics["kl_to_sft_per_token"] == pytest.approx(2 / 6)


def test_preferences_alone_and_against_the_reference() -> None:
    results, metrics = evaluation.preference_metrics("sft", [2.0, -1.0, 1.0], [1.0, -2.0, 3.0])
    assert results[2] == {"margin_logprob": 1.0, "margin_vs_sft": -2.0}
    assert metrics == {
        "num_pairs": 3,
        "preference_accuracy_logprob": pytest.approx(2 / 3),
        "preference_accuracy_vs_sft": pytest.approx(2 / 3),
    }
    results, metrics = evaluation.preference_metrics("sft", [2.0], None)
    assert (results, list(metrics)) == ([{"margin_logprob": 2.0}], ["num_pairs", "preference_accuracy_logprob"])


def write_reward_model(base: Path, folder: Path) -> None:
    """A classifier with one label and a random head, with its tokenizer."""
    write_base(base, seed=3)
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    with torch.no_grad():
        classifier.score.weight.copy_(torch.linspace(-1, 1, classifier.score.weight.shape[1])[None])
    classifier.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models, a copy of one, and held-out rows."""
    root = tmp_path_factory.mktemp("stage")
    write_base(root / "models/sft", seed=1)
    write_base(root / "models/dpo", seed=2)
    shutil.copytree(root / "models/sft", root / "models/copy")
    shutil.copytree(root / "models/sft", root / "models/other")
    tokenizer = root / "models/other/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"vocab": {', '"vocab": {"zebra": 3,'))
    write_reward_model(root / "models/base", root / "models/reward")
    problems = [{"prompt": [{"role": "user", "content": q}], "solution": s} for q, s, _ in sums(6)]
    write_rows(root / "prompts.jsonl", problems)
    write_preference(root / "pairs.jsonl", 5)
    (root / "params.yaml").write_text(yaml.safe_dump({"evaluate": PARAMS, "samples": SAMPLES}))
    return root


def run_script(root: Path, monkeypatch: pytest.MonkeyPatch, stage: str, *words: str) -> None:
    monkeypatch.chdir(root)
    script = str(ROOT / f"scripts/{stage}.py")
    monkeypatch.setattr(sys, "argv", [script, *words])
    assert runpy.run_path(script)["main"]() == 0


def evaluate(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Run the script in this process; returns what it wrote."""
    run_script(root, monkeypatch, "evaluate", name)
    lines = (root / f"results/evaluate_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((root / f"metrics/evaluate_{name}.json").read_text()), [json.loads(line) for line in lines]


def test_a_run_writes_metrics_and_a_result_a_row(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, results = evaluate(made, "dpo", monkeypatch)
    problems, pairs = results[:6], results[6:]
    assert (len(problems), len(pairs)) == (6, 5)
    assert all(problem["id"].startswith("prompts/") for problem in problems)
    assert ["samples_correct" in problem for problem in problems] == [True] * 3 + [False] * 3
    assert all(len(problem["samples_log_ratio_sft"]) == 4 for problem in problems[:3])
    assert metrics["kl_to_sft"] == pytest.approx(np.mean([p["samples_log_ratio_sft"] for p in problems[:3]]))
    assert metrics["kl_to_sft"] > 0.1  # two random models
    assert metrics["preference_accuracy_vs_sft"] == np.mean([pair["margin_vs_sft"] > 0 for pair in pairs])
    assert {"exact_match", "pass_at_1", "pass_at_4_low", "eos_rate", "format_rate"} <= metrics.keys()
    assert all(isinstance(value, int | float) for value in metrics.values())


def test_the_reference_itself_has_no_divergence_and_a_copy_has_none_to_speak_of(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, results = evaluate(made, "sft", monkeypatch)
    copied, _ = evaluate(made, "copy", monkeypatch)
    assert not [name for name in metrics if "_sft" in name]
    assert "margin_vs_sft" not in results[-1]
    assert copied["kl_to_sft"] == pytest.approx(0, abs=1e-4)
    assert {name: copied[name] for name in metrics} == metrics


def test_a_second_run_writes_the_same_bytes(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bytes_of_a_run() -> list[bytes]:
        evaluate(made, "dpo", monkeypatch)
        return [(made / name).read_bytes() for name in ("metrics/evaluate_dpo.json", "results/evaluate_dpo.jsonl")]

    assert bytes_of_a_run() == bytes_of_a_run()


def test_a_reward_model_scores_whole_conversations(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("models", "prompts.jsonl", "pairs.jsonl"):
        (tmp_path / name).symlink_to(made / name)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"evaluate": PARAMS | {"reward_model": "reward"}}))
    metrics, results = evaluate(tmp_path, "dpo", monkeypatch)
    model = AutoModelForSequenceClassification.from_pretrained(made / "models/reward").eval()
    tokenizer = AutoTokenizer.from_pretrained(made / "models/reward")
    scores = []
    for result in results[:6]:
        text = (
            f"<|im_start|>user\n{result['prompt'][0]['content']}<|im_end|>\n"
            f"<|im_start|>assistant\n{result['completion']}<|im_end|>\n"
        )
        with torch.no_grad():
            scores.append(model(torch.tensor([tokenizer(text)["input_ids"]])).logits.item())
    assert [result["reward_score"] for result in results[:6]] == pytest.approx(scores, abs=1e-4)
    assert len(set(scores)) == 6
    # And what GRPO and RLOO would be rewarded with.
    reward = ModelReward(Source("model", str(made / "models/reward"), "reward"), RewardSourceFlags(), "cpu")
    prompts = [result["prompt"] for result in results[:6]]
    completions = [[{"role": "assistant", "content": result["completion"]}] for result in results[:6]]
    batch = RewardBatch(prompts, completions, [[]] * 6, {}, [""] * 6)
    assert reward.submit(batch)().values == pytest.approx(scores, abs=1e-4)
    assert metrics["reward_score"] == pytest.approx(np.mean(scores), abs=1e-4)
    assert metrics["reward_score_low"] < metrics["reward_score"] < metrics["reward_score_high"]


def test_answers_of_the_models_stand_side_by_side(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sft", "dpo"):
        evaluate(made, name, monkeypatch)
    run_script(made, monkeypatch, "samples")
    page = (made / "results/samples.md").read_text(encoding="utf-8")
    assert page.count("\n### prompts/") == 2
    assert "sft ✗ …" in page and "dpo ✗ …" in page


@pytest.mark.parametrize(
    ("words", "change", "message"),
    [
        ([], {}, "wanted the name of one model, found 0"),
        (
            ["dop"],
            {},
            "models/dop is no model folder; did you mean dpo?; models/ holds base, copy, dpo, other, reward, sft",
        ),
        (["dpo"], {"reference": "start"}, "models/start is no model folder"),
        (["dpo"], {"reward_model": "rewards"}, "models/rewards is no model folder; did you mean reward?"),
        (["dpo"], {"reference": "other"}, "models/dpo and models/other have different vocabularies"),
        (["dpo"], {"pass_at": [1, 5]}, "params.yaml: evaluate.num_samples, which is 4"),
        (["dpo"], {"pass_at": []}, "params.yaml: evaluate.pass_at is []"),
        (["dpo"], {"temperature": 0}, "params.yaml: evaluate.temperature is 0; samples need one above 0"),
        (["dpo"], {"num_sampled_prompts": 7}, "evaluate.num_sampled_prompts is 7; prompts.jsonl holds 6"),
        (["dpo"], {"prompts": "pairs.jsonl"}, "pairs.jsonl line 1: wanted a column solution"),
        (["dpo"], {"num_sample": 3}, "num_sample"),
    ],
)
def test_mistakes_end_before_torch_is_imported(
    words: list[str], change: dict[str, Any], message: str, made: Path, tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"evaluate": PARAMS | change}))
    for name in ("models", "prompts.jsonl", "pairs.jsonl"):
        (tmp_path / name).symlink_to(made / name)
    command = [sys.executable, "-X", "importtime", str(ROOT / "scripts/evaluate.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    *imports, last = done.stderr.strip().splitlines()
    assert done.returncode == 2, last
    assert message in last
    assert not {"torch", "transformers"} & {line.split("|")[-1].strip() for line in imports}
