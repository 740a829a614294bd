"""Answers side by side."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import UserError
from posttrain.experiment.evaluation_samples import read_results, side_by_side


def result(number: int, text: str, correct: bool, **more: Any) -> dict[str, Any]:
    question = [{"role": "user", "content": f"{number} + 1?"}]
    fields = {"id": f"prompts/{number}", "prompt": question, "reference": f"so\n#### {number + 1}"}
    return {**fields, "completion": text, "correct": correct, "ended": True, **more}


def by_id(*results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in results}


def test_problems_that_split_the_models_come_first() -> None:
    results = {
        "sft": by_id(result(1, "#### 2", True), result(2, "3 or 4\n#### 4", False), result(3, "#### 4", True)),
        "grpo": by_id(
            result(1, "#### 2", True),
            result(2, "2+1=3\n#### 3", True, reward_score=1.25),
            result(3, "and so", False, ended=False),
        ),
    }
    expected = """\
# Greedy answers side by side

3 held-out problems; on 2 of them some models are right and others wrong.
✓ right, ✗ wrong, … cut off at the limit of tokens.

| | sft | grpo |
|---|---|---|
| exact match | 66.7% | 66.7% |

## Some right, some wrong

### prompts/2

> 2 + 1?

Right: 3

```
sft ✗   grpo ✓  reward +1.25

3 or 4  2+1=3
#### 4  #### 3
```

## All right, or all wrong

### prompts/1

> 1 + 1?

Right: 2

```
sft ✓   grpo ✓

#### 2  #### 2
```
"""
    assert side_by_side(results, num_differing=1, num_agreeing=5) == expected


def test_an_answer_cut_off_says_so_and_backticks_stay_inside_their_block() -> None:
    page = side_by_side({"sft": by_id(result(1, "```python", False, ended=False))}, 0, 1)
    assert "````\nsft ✗ …\n\n```python\n````\n" in page


def test_long_lines_are_wrapped_into_their_column() -> None:
    text = "word " * 60
    page = side_by_side({name: by_id(result(1, text, True)) for name in ("sft", "dpo", "grpo", "rloo")}, 0, 1)
    assert max(map(len, page.splitlines())) <= 140
    assert page.count("word") == 4 * 60


def test_models_that_answered_other_problems_are_not_set_side_by_side() -> None:
    results = {"sft": by_id(result(1, "", False)), "dpo": by_id(result(2, "", False))}
    with pytest.raises(UserError, match=r"evaluate_dpo.jsonl is of other problems than the rest"):
        side_by_side(results, 1, 1)


def test_only_problems_are_read_and_a_missing_file_names_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    lines = [result(1, "one\u2028line", True), {"id": "preference/1", "margin_logprob": 1.0}]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    Path("results/evaluate_sft.jsonl").write_text(text, encoding="utf-8")
    assert list(read_results("sft")) == ["prompts/1"]
    with pytest.raises(UserError, match=r"evaluate_dpo.jsonl: no such file; the stage evaluate@dpo writes it"):
        read_results("dpo")
