"""GRPO and RLOO from the command line to the finished folder: what does not matter to a step, what does, and what is
left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import curve, run, run_policy, sums, write_base, write_prompts, write_rows

from posttrain.rollout.written_out import written_out

METHODS = ["grpo", "rloo"]
NAMES = ["loss", "grad_norm", "reward", "completions/mean_length", "entropy", "num_tokens"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt to stop: its completions differ in length, and some are cut off."""
    folder = tmp_path_factory.mktemp("base")
    data = folder / "rows.jsonl"
    prompts = [question for question, _, _ in sums(16)]
    turns = [("user", prompt, "assistant", "#" * (1 + i % 5)) for i, prompt in enumerate(prompts)]
    write_rows(data, [{"messages": [{"role": r, "content": c} for r, c in (t[:2], t[2:])]} for t in turns])
    run("sft", write_base(folder / "untrained"), data, folder / "model", "--max_steps", "12", "--assistant_only_loss")
    return folder / "model"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "rows.jsonl")


def geometry(batch: int, accumulation: int) -> list[str]:
    return ["--per_device_train_batch_size", str(batch), "--gradient_accumulation_steps", str(accumulation)]


def completions(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "completions").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("method", METHODS)
def test_a_step_does_not_depend_on_how_it_is_cut(method: str, base: Path, prompts: Path, tmp_path: Path) -> None:
    """8 x 1, 4 x 2 and 2 x 4 completions a step, generated all at once or three at a time, which cuts groups apart: the
    same completions, the same step."""
    extra = ["--beta", "0.1", "--mask_truncated_completions", "--log_completions", "--num_completions_to_print", "0"]
    states = {
        batch: run_policy(method, base, prompts, tmp_path / str(batch), *geometry(batch, 8 // batch), *extra, *more)
        for batch, more in ((8, []), (4, ["--rollout_batch_size", "3"]), (2, []))
    }
    whole = torch.tensor(curve(states[8], *NAMES, "kl"))
    assert whole.shape == (3, 7)
    assert (whole[0, 1:3] - whole[2, 1:3]).abs().min() > 1e-4, "training changed nothing"
    for batch in (4, 2):
        torch.testing.assert_close(torch.tensor(curve(states[batch], *NAMES, "kl")), whole, rtol=2e-4, atol=1e-5)
        of_both = [[row["completion"] for row in completions(tmp_path / str(one))] for one in (8, batch)]
        assert of_both[0] == of_both[1]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bytes(method: str, base: Path, prompts: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_policy(method, base, prompts, tmp_path / name, "--seed", str(seed))
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(method: str, base: Path, prompts: Path, tmp_path: Path) -> None:
    state = run_policy(
        method, base, prompts, tmp_path / "out", "--max_steps", "25", "--learning_rate", "2e-2", "--beta", "0.001"
    )
    rewards = [reward for (reward,) in curve(state, "reward")]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.15


def test_a_generation_is_trained_on_in_steps_and_again(base: Path, prompts: Path, tmp_path: Path) -> None:
    """Two micro-batches a generation, each trained on twice: from the second step on the policy has moved on."""
    extra = ["--steps_per_generation", "2", "--num_iterations", "2", "--max_steps", "8", "--learning_rate", "1e-2"]
    extra += ["--log_completions", "--num_completions_to_print", "0", "--epsilon", "0.001"]
    state = run_policy("grpo", base, prompts, tmp_path / "out", *geometry(8, 1), *extra)
    files = sorted(path.name for path in (tmp_path / "out" / "completions").iterdir())
    assert files == ["completions_00001.parquet", "completions_00005.parquet"]
    assert len(completions(tmp_path / "out")) == 2 * 16
    clipped = [value for (value,) in curve(state, "clip_ratio/region_mean")]
    assert clipped[0] == clipped[4] == 0 < min(clipped[1:4] + clipped[5:])


def test_a_generation_astride_two_steps_is_off_policy_in_the_second(base: Path, prompts: Path, tmp_path: Path) -> None:
    """Each of A, B and C twice, three micro-batches a step: A A B, B C C. The policy has moved before the second B."""
    extra = ["--steps_per_generation", "1", "--num_iterations", "2", "--max_steps", "2", "--learning_rate", "1e-2"]
    state = run_policy("grpo", base, prompts, tmp_path / "out", *geometry(8, 3), *extra, "--epsilon", "0.001")
    first, second = (value for (value,) in curve(state, "clip_ratio/region_mean"))
    assert first == 0 < second


@pytest.mark.parametrize("method", METHODS)
def test_a_reference_that_moves_stands_in_the_checkpoint(
    method: str, base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = ["--sync_ref_model", "--ref_model_sync_steps", "1", "--beta", "0.5", "--learning_rate", "1e-2"]
    extra += ["--save_strategy", "steps", "--save_steps", "2", "--max_steps", "4"]
    run_policy(method, base, prompts, tmp_path / "whole", *extra)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resume = ["--resume_from_checkpoint", str(checkpoint)]
    run_policy(method, base, prompts, tmp_path / "resumed", *extra, *resume)
    whole, resumed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed
    other = [*extra, *resume, "--steps_per_generation", "2", "--num_iterations", "2"]
    with pytest.raises(AssertionError):
        run_policy(method, base, prompts, tmp_path / "other", *other)
    assert "the checkpoint holds rollouts made for" in capsys.readouterr().err
    (checkpoint / "posttrain_state_0.pt").unlink()
    with pytest.raises(AssertionError):
        run_policy(method, base, prompts, tmp_path / "other", *extra, *resume)
    assert "checkpoint-2 is damaged: posttrain_state_0.pt is missing" in capsys.readouterr().err
    (checkpoint / "manifest.json").unlink()  # a folder from elsewhere
    with pytest.raises(AssertionError):
        run_policy(method, base, prompts, tmp_path / "other", *extra, *resume)
    assert "has no posttrain_state_0.pt" in capsys.readouterr().err


def test_a_run_goes_on_in_the_middle_of_a_generation(base: Path, prompts: Path, tmp_path: Path) -> None:
    """Six steps, generations of four: the checkpoint after the third holds what is left of the first one."""
    extra = ["--steps_per_generation", "4", "--dynamic_sampling", "--use_adaptive_entropy", "--entropy_target", "9"]
    extra += ["--save_strategy", "steps", "--save_steps", "3", "--max_steps", "6", "--entropy_coef", "0.1"]
    run_policy("grpo", base, prompts, tmp_path / "whole", *extra)
    run_policy("grpo", base, prompts, tmp_path / "again", *extra)
    resume = ["--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-3")]
    run_policy("grpo", base, prompts, tmp_path / "resumed", *extra, *resume)
    whole, again, resumed = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again", "resumed")
    )
    assert whole == again == resumed


def test_completions_are_logged_with_what_they_were_worth(
    base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = run_policy(
        "grpo", base, prompts, tmp_path / "out", "--log_completions", "--scale_rewards", "none", "--max_steps", "1"
    )
    rows = completions(tmp_path / "out")
    assert len(rows) == 8
    rewards = np.array([row["share_of_one"] for row in rows]).reshape(2, 4)
    np.testing.assert_allclose(
        [row["advantage"] for row in rows], (rewards - rewards.mean(1, keepdims=True)).ravel(), atol=1e-6
    )
    assert rewards.mean() == pytest.approx(curve(state, "reward")[0][0])
    assert len({row["prompt"] for row in rows[:4]}) == 1 and rows[0]["prompt"] != rows[4]["prompt"]
    assert all(row["step"] == 1 and row["num_tokens"] <= 8 for row in rows)
    assert capsys.readouterr().err.count("advantage") == 4


def test_several_generations_in_a_step_are_all_logged(
    base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = ["--steps_per_generation", "1", "--log_completions", "--num_completions_to_print", "1", "--max_steps", "2"]
    run_policy("grpo", base, prompts, tmp_path / "out", *geometry(8, 2), *extra)
    rows = completions(tmp_path / "out")
    assert [row["step"] for row in rows] == [1] * 16 + [2] * 16
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in shown] == [
        f"step {rows[first]['step']}, row {rows[first]['row']}" for first in (0, 8, 16, 24)
    ]


def test_a_reward_sees_a_begun_message_once(base: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Ada has 1 apple."}, {"role": "assistant", "content": "She has"}]
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": turns, "tools": None}] * 4)
    reward = tmp_path / "seen.py"
    reward.write_text(
        "def seen(prompts, completions, **columns):\n"
        "    assert all([turn['role'] for turn in prompt] == ['user'] for prompt in prompts)\n"
        "    return [float(turns[0]['content'].startswith('She has')) for turns in completions]\n"
    )
    extra = ["--reward_funcs", f"{reward}:seen", "--max_reward_failures", "0", "--max_steps", "1"]
    state = run_policy("grpo", base, data, tmp_path / "out", *extra)
    assert curve(state, "reward") == [[1.0]]


def test_groups_without_variance_are_replaced_and_counted(base: Path, tmp_path: Path) -> None:
    """A reward that tells only the completions of short prompts apart: the prompts of the other rows are replaced."""
    questions = ["Ada has 1 apple." + " And one more." * (i % 4) for i in range(16)]
    data = write_rows(
        tmp_path / "rows.jsonl", [{"prompt": question, "flat": "more" in question} for question in questions]
    )
    reward = tmp_path / "some.py"
    reward.write_text(
        "def some(completion_ids, flat, **columns):\n"
        "    return [0.0 if same else float(sum(ids)) for ids, same in zip(completion_ids, flat)]\n"
    )
    extra = [
        "--reward_funcs",
        f"{reward}:some",
        "--log_completions",
        "--num_completions_to_print",
        "0",
        "--max_steps",
        "2",
    ]
    without = run_policy("grpo", base, data, tmp_path / "without", *extra)
    assert min(value for (value,) in curve(without, "frac_reward_zero_std")) > 0
    extra += ["--dynamic_sampling", "--max_resampling_rounds", "20"]
    state = run_policy("grpo", base, data, tmp_path / "with", *extra)
    assert all(value == 0 for (value,) in curve(state, "frac_reward_zero_std"))
    for replaced, kept, sampled in curve(
        state, "dynamic_sampling/replaced", "dynamic_sampling/kept_without_variance", "dynamic_sampling/prompts_sampled"
    ):
        assert kept == 0 and 0 < replaced <= 2 < sampled
    assert {row["prompt"] for row in completions(tmp_path / "with")} == {"Ada has 1 apple."}


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_truncated_completions_alone_changes_nothing(
    method: str, base: Path, prompts: Path, tmp_path: Path
) -> None:
    extra = [
        "--max_completion_length",
        "1",
        "--mask_truncated_completions",
        "--max_steps",
        "1",
        "--save_strategy",
        "no",
    ]
    state = run_policy(method, base, prompts, tmp_path / "out", *extra, "--beta", "0.1", "--weight_decay", "0")
    (line,) = curve(state, "loss", "grad_norm", "completions/clipped_ratio")
    assert line[0] == pytest.approx(0, abs=1e-6) or method == "rloo"
    assert line[1] == 0 and line[2] > 0.5


def test_lora_and_reference(base: Path, prompts: Path, tmp_path: Path) -> None:
    """The reference of an adapter is the model without it: at the first step the divergence is 0, later it is not."""
    extra = ["--use_peft", "--lora_dropout", "0", "--beta", "0.1", "--learning_rate", "0.1"]
    for method in METHODS:
        state = run_policy(method, base, prompts, tmp_path / method, *extra)
        kl = [value for (value,) in curve(state, "kl")]
        assert kl[0] == pytest.approx(0, abs=1e-6) and abs(kl[2]) > 1e-4
        assert (tmp_path / method / "adapter_model.safetensors").is_file()


def test_in_mixed_precision_policy_and_reference_are_rounded_alike(base: Path, prompts: Path, tmp_path: Path) -> None:
    """At the first step both are one model, and the reward is not lowered by their rounding; a processor without bf16
    trains in float32, in which their batches of other sizes may differ in a last bit."""
    extra = ["--beta", "0.1", "--bf16", "true", "--max_steps", "1"]
    state = run_policy("rloo", base, prompts, tmp_path / "out", *extra)
    assert curve(state, "kl") == [[pytest.approx(0, abs=1e-6)]]


def test_in_mixed_precision_completions_are_sampled_in_it(
    base: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[torch.dtype] = []

    def noted(*args: Any) -> Any:
        written = written_out(*args)
        assert written is not None
        kinds.append(written._head._kind)
        return written

    monkeypatch.setattr("posttrain.training._what_a_cpu_lacks", lambda config: {})
    monkeypatch.setattr("posttrain.rollout.engine.written_out", noted)
    run_policy("grpo", base, prompts, tmp_path / "out", "--bf16", "--max_steps", "1")
    assert kinds == [torch.float32, torch.bfloat16]  # the trial, and the generation


def test_evaluation_has_settings_of_its_own(base: Path, prompts: Path, tmp_path: Path) -> None:
    extra = ["--eval_strategy", "steps", "--eval_steps", "1", "--test_split_size", "4", "--learning_rate", "0"]
    extra += ["--eval_max_completion_length", "3", "--num_generations_eval", "1", "--eval_temperature", "2"]
    state = run_policy("rloo", base, prompts, tmp_path / "out", *extra)
    # Whatever is told of the completions is told of all of the evaluation, not of its batches.
    by_ones = run_policy("rloo", base, prompts, tmp_path / "ones", *extra, "--per_device_eval_batch_size", "1")
    wanted = ("eval_reward", "eval_reward_std", "eval_completions/mean_length", "eval_completions/max_length")
    assert curve(by_ones, *wanted)[0] == pytest.approx(curve(state, *wanted)[0])
    assert curve(state, "eval_reward_std")[0][0] > 0
    values = curve(state, "eval_reward", "eval_completions/max_length", "eval_frac_reward_zero_std")
    assert len(values) == 3 and values[0] == values[1] == values[2]
    assert values[0][1] <= 3 and values[0][2] == 1
