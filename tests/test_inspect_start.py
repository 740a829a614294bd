"""The commands that `posttrain inspect` ends with: each can be typed, and says what data, model and machine ask for."""

import os
import shlex
from pathlib import Path

import pytest
from helpers_data import bot, user, write_jsonl
from helpers_inspect import USER_AND_BOT, Report, commands_of, inspect, write_large_model, write_model_folder

from posttrain.config import CommonConfig, parse_command_line
from posttrain.inspection import model as model_module

Capture = pytest.CaptureFixture[str]
MESSAGES = [{"messages": [user(f"{n}?"), bot("yes " * (n + 1))]} for n in range(8)]
PAIRS = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(8)]
PROMPTS = [{"prompt": [user(f"{n}?")], "solution": str(n)} for n in range(8)]


def configs(report: Report) -> list[CommonConfig]:
    """The commands, parsed as the command line would."""
    found = []
    for command in commands_of(report):
        name, method, *words = shlex.split(command)
        assert name == "posttrain"
        found.append(parse_command_line(method, words)[0])
    return found


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 24 GiB without a GPU, whatever this one is."""
    monkeypatch.setattr(model_module, "memory", lambda torch: (24 * 2**30, "this machine"))


@pytest.mark.parametrize(
    ("rows", "method", "words"),
    [
        (MESSAGES, "sft", ["--assistant_only_loss"]),
        (PAIRS, "dpo", ["--beta", "0.2", "--no_remove_unused_columns"]),
        (PAIRS, "reward", ["--method", "reward"]),
        (PROMPTS, "grpo", ["--num_generations", "4", "--num_processes", "2"]),
        ([{"prompt": "2+2="}] * 3, "rloo", []),
        ([{"prompt": "2+2="}] * 3, "grpo", ["--method", "grpo", "--reward_funcs", "think_format_reward"]),
        (MESSAGES, "sft", ["--dataset_streaming"]),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_commands_can_be_typed_and_keep_the_user_s_flags(
    rows: list, method: str, words: list[str], named: bool, tmp_path: Path, capsys: Capture
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    model = write_model_folder(tmp_path / "tiny-instruct") if named else "Qwen/Qwen2.5-0.5B-Instruct"
    trial, run = configs(inspect(capsys, data, *words, *(["--model_name_or_path", model] if named else [])))
    for config in (trial, run):
        assert (config.method, config.dataset_name, config.model_name_or_path) == (method, str(data), str(model))
        for name, value in (("beta", 0.2), ("num_generations", 4), ("assistant_only_loss", True)):
            assert f"--{name}" not in words or getattr(config, name) == value
    assert (trial.max_steps, trial.output_dir) == (20, f"{run.output_dir}-try")
    assert run.max_steps == (1000 if "--dataset_streaming" in words else None)
    if method in ("grpo", "rloo"):
        assert run.reward_funcs == (
            words[-1:] if "--reward_funcs" in words else ["accuracy_reward"] if rows is PROMPTS else None
        )
        assert (run.reward_model_name_or_path is None) == (run.reward_funcs is not None)


def test_a_base_model_is_fine_tuned_first(tmp_path: Path, capsys: Capture) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    for name, folder_of_a_run, stages in (
        ("Some-0.5B", False, ["sft", "dpo", "dpo"]),
        ("Some-0.5B-it", False, ["dpo", "dpo"]),
        ("output", True, ["dpo", "dpo"]),
        ("Italian-0.5B", False, ["sft", "dpo", "dpo"]),
    ):
        model = write_model_folder(tmp_path / name)
        if folder_of_a_run:
            (model / "trainer_state.json").write_text("{}")
        report = inspect(capsys, data, "--model_name_or_path", model)
        found = configs(report)
        assert [config.method for config in found] == stages
        assert ("seems to be a base model" in report.text) == (stages[0] == "sft")
        if stages[0] == "sft":
            assert found[1].model_name_or_path == found[0].output_dir == f"{name}-SFT"
    model = write_model_folder(tmp_path / "Other-chat", template=None)
    assert "its tokenizer has no chat template" in inspect(capsys, data, "--model_name_or_path", model).text


def test_adapters_and_a_small_model_where_memory_is_short(memory: None, tmp_path: Path, capsys: Capture) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", MESSAGES)
    wide = {"hidden_size": 2048, "intermediate_size": 8192}
    model = write_large_model(tmp_path / "large-instruct", **wide, num_hidden_layers=20)
    report = inspect(capsys, data, "--model_name_or_path", model)
    # A layer: 3·2048·8192 and (2 + 2/2)·2048² weights, biases and norms; 262 and 6 embeddings of 2048, tied; 16 bytes.
    parameters = 20 * (3 * 2048 * 8192 + 3 * 2048**2 + 2 * 2048 + 2 * 2048) + 2048 * 263
    needed = f"{16 * parameters / 2**30:.3g} GiB"
    assert f"large-instruct · {parameters / 1e9:.3g}B parameters" in " ".join(report.text.split())
    assert f"all of it trained in float32: {needed}" in " ".join(report.text.split())
    trial, run = configs(report)
    assert trial.model_name_or_path == "Qwen/Qwen2.5-0.5B-Instruct"
    assert not trial.use_peft
    assert (run.model_name_or_path, run.use_peft, run.learning_rate, run.dtype) == (str(model), True, 2e-4, "float32")
    larger = write_large_model(tmp_path / "larger-instruct", **wide, num_hidden_layers=100)
    run = configs(inspect(capsys, data, "--model_name_or_path", larger))[-1]
    assert (run.use_peft, run.dtype, run.load_in_4bit) == (True, "bfloat16", False)


def test_on_a_gpu_the_weights_of_the_largest_are_kept_in_four_bits(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "memory", lambda torch: (2**30, "the GPU"))
    data = write_jsonl(tmp_path / "rows.jsonl", MESSAGES)
    model = write_large_model(tmp_path / "m-it", hidden_size=2048, intermediate_size=8192, num_hidden_layers=20)
    assert configs(inspect(capsys, data, "--model_name_or_path", model))[-1].load_in_4bit


def test_a_token_is_not_repeated(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    data = write_jsonl(tmp_path / "rows.jsonl", MESSAGES)
    report = inspect(capsys, data, "--hub_token", "hf_SECRET", "--max_length", 64)
    assert "--max_length 64" in report.text
    assert "hf_SECRET" not in report.text + report.error
    assert os.environ["HF_TOKEN"] == "hf_SECRET"


def test_what_the_data_asks_for_is_in_the_commands(tmp_path: Path, capsys: Capture) -> None:
    model = write_model_folder(tmp_path / "m-it", eos="<eos>")
    long = [{"messages": [user("?"), bot("x" * (1100 if n % 10 == 0 else 3))]} for n in range(300)]
    data = write_jsonl(tmp_path / "train.jsonl", long)
    run = configs(inspect(capsys, data, "--model_name_or_path", model))[-1]
    assert (run.eos_token, run.test_split_size, run.eval_strategy) == ("<|end|>", 0.05, "steps")
    assert run.max_length == 1024  # all that the model has positions for
    (tmp_path / "test.jsonl").write_bytes(data.read_bytes())
    run = configs(inspect(capsys, tmp_path, "--model_name_or_path", model, "--max_length", "64"))[-1]
    assert (run.test_split_size, run.eval_strategy, run.max_length) == (None, "steps", 64)
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "p" * n, "solution": "1"} for n in (3, 600)])
    run = configs(inspect(capsys, prompts, "--model_name_or_path", model))[-1]
    assert (run.max_prompt_tokens, run.long_prompts) == (1024 - 512, "drop")


def test_a_model_without_a_template_gets_one(tmp_path: Path, capsys: Capture) -> None:
    model = write_model_folder(tmp_path / "m", template=None)
    data = write_jsonl(tmp_path / "rows.jsonl", [{"messages": USER_AND_BOT}])
    assert configs(inspect(capsys, data, "--model_name_or_path", model))[-1].chat_template_path == "template.jinja"
