"""The table of metrics that ends a pipeline."""

import json
from pathlib import Path

import pytest

from posttrain.errors import UserError
from posttrain.experiment.metrics_table import read_metrics, tables


def test_columns_follow_the_pipeline_and_matrix_runs_stand_apart(tmp_path: Path) -> None:
    files = {
        "dpo": {"loss": 0.25, "rewards/margins": 0.000015},
        "sft": {"loss": 1.23456, "rows": 12000, "tokens_per_second": 54321.9},
        "evaluate_sft": {"exact_match": 0.5},
        "evaluate_dpo": {"exact_match": 1.0},
    }
    for name, metrics in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(metrics))
    expected = """\
stages                sft      dpo
-----------------  ------  -------
loss                1.235     0.25
rows               12,000
tokens_per_second  54,322
rewards/margins            1.5e-05

evaluate     sft  dpo
-----------  ---  ---
exact_match  0.5    1"""
    assert tables(read_metrics(tmp_path), ["prepare", "sft", "dpo", "evaluate"]) == expected


def test_an_interval_stands_behind_its_metric() -> None:
    values = {"exact_match": 0.6185, "exact_match_high": 0.64858, "exact_match_low": 0.58849, "eos_low": 1}
    found = tables({"evaluate_sft": values}, ["evaluate"])
    assert [line.split() for line in found.splitlines()] == [
        ["evaluate", "sft"],
        ["-" * 11, "-" * 20],
        ["exact_match", "0.6185", "[0.588", "0.649]"],
        ["eos_low", "1"],
    ]


def test_no_metrics_yet_names_the_way_to_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make pipeline"):
        read_metrics(tmp_path)
