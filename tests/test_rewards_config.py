"""Mistakes in what is named as a reward: all of them told before torch is imported."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from helpers_rewards import batch_of, column, config_of, message, rewards_of, write_functions

from posttrain.config.fields import flags_of
from posttrain.config.rewards import RewardSourceFlags
from posttrain.errors import UserError
from posttrain.rollout.rewards.check import check_columns, check_rewards, required_columns
from posttrain.rollout.rewards.functions import FUNCTIONS, accuracy_reward
from posttrain.rollout.rewards.rubric import Rubric
from posttrain.rollout.rewards.sources import reward_sources

JUDGED = {"judge_base_url": "http://127.0.0.1:1/v1"}


def mistake(*reward_funcs: str, **flags: Any) -> str:
    with pytest.raises(UserError) as error:
        check_rewards(config_of(*reward_funcs, **flags))
    return str(error.value)


@pytest.mark.parametrize(
    ("names", "flags", "expected"),
    [
        ([], {}, "no reward is named; give reward_funcs"),
        (["accuracy_rewards"], {}, "no built-in reward"),
        (["accuracy_rewards"], {}, "did you mean accuracy_reward?"),
        (["accuracy_reward"] * 2, {}, "named twice"),
        (["accuracy_reward"], {"reward_weights": [1.0, 2.0]}, "reward_weights has 2 numbers for 1 rewards"),
        (["accuracy_reward"], {"reward_model_name_or_path": "m/m", "reward_weights": [1.0]}, "for 2 rewards (m/m, acc"),
        (["nowhere.py:score"], {}, "there is no file nowhere.py"),
        (["rewards.py"], {}, "name your own as package.module.function or path/to/file.py:function"),
        (["no_such_module.score"], {}, "no_such_module.score cannot be imported: ModuleNotFoundError"),
        (["json.dump_all"], {}, "json has no function 'dump_all'; did you mean dump?"),
        (["json.decoder"], {}, "json.decoder is module, not a function"),
        (["sentiment:a/b"], {}, "sentiment:a/b is neither"),
        (["sentiment_analysis:a/b"], {}, "did you mean sentiment-analysis?"),
        ([], {"reward_model_name_or_path": "zero-shot:a/b"}, "'zero-shot' is not one of sentiment-analysis"),
        ([], {"reward_model_name_or_path": "./nowhere"}, "reward_model_name_or_path: ./nowhere does not exist"),
        (["judge:m"], {}, "a judge needs judge_base_url"),
        (["judge:m"], {"judge_base_url": "127.0.0.1:8000"}, "is no address"),
        (["judge:m"], {"judge_base_url": "http://me:secret@host/v1"}, "put the key into the environment"),
        (["judge:m"], {"judge_base_url": "http://host/v1?key=1"}, "put the key into the environment"),
        (["judge:m"], JUDGED | {"judge_rubric": "nowhere.txt"}, "judge_rubric: nowhere.txt cannot be read"),
        (["think_format_reward"], {"judge_rubric": "a.txt"}, "judge_rubric without a judge would do nothing"),
        (
            ["get_soft_overlong_punishment"],
            {"soft_punish_cache": 64, "max_completion_length": 64},
            "soft_punish_cache (64) leaves no completion unpunished",
        ),
    ],
)
def test_mistakes_are_told(names: list[str], flags: dict[str, Any], expected: str) -> None:
    assert expected in mistake(*names, **flags)


def test_a_secret_is_not_repeated() -> None:
    assert "secret" not in mistake("judge:m", judge_base_url="http://me:secret@host/v1")


@pytest.mark.parametrize(
    ("text", "function", "expected"),
    [
        ("def score(completions): return", "scores", "no function 'scores'; did you mean score?"),
        ("score = 3", "score", "score is int, not a function"),
        ("class score: pass", "score", "score is type, not a function"),
        ("def score(:", "score", "SyntaxError"),
        ("import nothing_like_this", "score", "ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("1 / 0", "score", "ZeroDivisionError"),
        ("import sys; sys.exit(5)", "score", "SystemExit: 5"),
        ("", "a b", "'a b' is no name of a function"),
    ],
)
def test_mistakes_in_a_file_of_functions(tmp_path: Path, text: str, function: str, expected: str) -> None:
    path = write_functions(tmp_path, text)
    message = mistake(f"{path}:{function}")
    assert expected in message
    assert path in message


def test_the_nearest_file_is_named(tmp_path: Path) -> None:
    path = write_functions(tmp_path, "")
    assert f"did you mean {path}?" in mistake(f"{tmp_path}/mine_.py:score")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ prompt }}", "never says {{ completion }}"),
        ("{{ completion ", "line 1"),
        ("{% if %}", "line 1"),
    ],
)
def test_mistakes_in_a_rubric(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "rubric.txt"
    path.write_text(text, encoding="utf-8")
    assert expected in mistake("judge:m", judge_rubric=str(path), **JUDGED)


def test_columns_that_the_data_must_have(tmp_path: Path) -> None:
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("{{ completion }} {{ language }} {{ range(3) }}", encoding="utf-8")
    mine = write_functions(tmp_path, "def score(completions, difficulty, weight=1, **kwargs): return []")
    config = config_of("accuracy_reward", f"{mine}:score", "judge:m", judge_rubric=str(rubric), **JUDGED)
    needs = required_columns(config)
    assert needs == {
        "accuracy_reward": [("solution", "answer")],
        "score": [("difficulty",)],
        "judge_m": [("language",)],
    }
    check_columns(needs, ["prompt", "answer", "difficulty", "language"], "data.jsonl")
    with pytest.raises(UserError, match=r"data\.jsonl: the reward score needs the column difficulty, and the data has"):
        check_columns(needs, ["prompt", "answer", "dificulty", "language"], "data.jsonl")
    with pytest.raises(UserError, match="accuracy_reward needs the column solution or answer"):
        check_columns(needs, ["prompt"], "data.jsonl")


@pytest.mark.parametrize("name", ["log_extra", "log_metric", "trainer_state"])
def test_what_functions_for_trl_are_given(name: str) -> None:
    with pytest.raises(UserError, match=f"takes '{name}', which posttrain does not pass: give it a default"):
        check_columns({"mine": [(name,)]}, ["prompt"], "data.jsonl")
    check_columns({"mine": [(name,)]}, ["prompt", name], "data.jsonl")


def test_what_names_become() -> None:
    config = config_of(
        "get_soft_overlong_punishment",
        "judge:org/wise",
        "text-classification:nlptown/bert-base-multilingual-uncased-sentiment",
        "my_package.rewards.score",
        reward_model_name_or_path="models/reward/",
        **JUDGED,
    )
    found = [(source.kind, source.target, source.name) for source in reward_sources(config)]
    assert found == [
        ("model", "models/reward/", "reward"),
        ("function", "get_soft_overlong_punishment", "soft_overlong_punishment_reward"),
        ("judge", "org/wise", "judge_wise"),
        (
            "classifier",
            "nlptown/bert-base-multilingual-uncased-sentiment",
            "bert-base-multilingual-uncased-sentiment",
        ),
        ("function", "my_package.rewards.score", "score"),
    ]


def test_a_path_with_a_colon_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "step:10"
    folder.mkdir()
    [source] = reward_sources(config_of(reward_model_name_or_path=str(folder)))
    assert (source.kind, source.target) == ("model", str(folder))


def test_checking_imports_nothing_heavy_nor_the_functions(tmp_path: Path, repository: Path) -> None:
    mine = write_functions(tmp_path, "import colorsys\n\ndef score(completions): return [0.0 for _ in completions]")
    program = f"""
import sys
sys.path.insert(0, {str(repository / "tests")!r})
from posttrain.config.policy import GRPOConfig
from posttrain.rollout.rewards.check import check_rewards
check_rewards(GRPOConfig(reward_funcs=["accuracy_reward", {mine + ":score"!r}], reward_model_name_or_path="a/b"))
assert not {{"torch", "transformers", "httpx2", "math_verify", "colorsys"}} & sys.modules.keys()
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_the_page_on_rewards_holds(tmp_path: Path, repository: Path) -> None:
    page = (repository / "docs/rewards.md").read_text(encoding="utf-8")
    mine = write_functions(tmp_path, re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[0])
    with rewards_of(f"{mine}:is_short", f"{mine}:matches", reward_workers=0) as rewards:
        batch = batch_of(["so 4", message("no" * 200), "5"], solution=["4", "4", None])
        table = rewards.submit(batch).result()
    assert [column(table, number) for number in (0, 1)] == [[1.0, 0.0, 1.0], [1.0, 0.0, None]]
    rows = re.findall(r"^\| `(.+)` \| `(.+)` \| (1|0|none) \|$", page, flags=re.MULTILINE)
    assert len(rows) == 5
    solutions, completions, expected = zip(*rows, strict=True)
    references = [solution.replace("\\n", "\n") for solution in solutions]
    given = accuracy_reward(completions, solution=references)
    assert given == [{"1": 1.0, "0": 0.0, "none": None}[reward] for reward in expected]
    rubric = tmp_path / "rubric.jinja"
    rubric.write_text(re.findall(r"```jinja\n(.*?)```", page, flags=re.DOTALL)[0], encoding="utf-8")
    assert Rubric(str(rubric)).columns == ["solution"]
    for name in FUNCTIONS:
        assert f"| `{name}` |" in page
    flags = flags_of(RewardSourceFlags)
    assert all(f"--{name}" in page for name in flags)


def test_a_language_model_gives_no_scores(tmp_path: Path) -> None:
    """Its config tells so; one with weights that are no language model's alone may."""
    model = tiny.write_base(tmp_path / "model")
    about = json.loads((model / "config.json").read_text(encoding="utf-8"))
    for kind, expected in [("Qwen2ForCausalLM", True), ("Qwen2ForSequenceClassification", False)]:
        (model / "config.json").write_text(json.dumps(about | {"architectures": [kind]}), encoding="utf-8")
        if expected:
            told = mistake(reward_model_name_or_path=str(model))
            assert f"--reward_model_name_or_path {model}: it has no score head" in told
        else:
            check_rewards(config_of(reward_model_name_or_path=str(model)))
