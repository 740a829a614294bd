"""`posttrain compare`: what it takes for a difference, over rows and over seeds, and what it says of the rest."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment_folders import evaluated, write_experiment

from posttrain.cli import main
from posttrain.errors import UserError
from posttrain.experiment.comparison.compare import Difference, compare
from posttrain.experiment.comparison.directions import direction, is_chief
from posttrain.experiment.comparison.inputs import changed_inputs, not_yet_run
from posttrain.experiment.comparison.result_values import as_rows, values_of
from posttrain.experiment.comparison.sides import Unit, read_sides
from posttrain.experiment.comparison.statistics import Interval, paired_t, welch_t
from posttrain.experiment.revisions import Experiment


def compared(a: Path | str, b: Path | str) -> dict[tuple[str, str], Difference]:
    found = compare(*read_sides(str(a), str(b)))
    return {(one.stage, one.metric): one for one in found.differences}


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["compare", *map(str, words)]) == 0
    return capsys.readouterr().out


def json_of(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    return json.loads(printed(capsys, *words, "--format", "json"))


def test_results_give_the_metrics_that_stand_beside_them() -> None:
    metrics, rows = evaluated(0.6)
    # The other estimator of the divergence needs every token's log-prob, and counts are no figures.
    without = {"kl_to_sft_k3_per_token", "num_prompts", "num_pairs", "num_samples", "num_sampled_prompts"}
    checked = {name for name in metrics if not name.endswith(("_low", "_high"))} - without
    assert len(checked) == 11
    for name in checked:
        values = values_of(name, rows)
        assert as_rows(values, list(values)).value == pytest.approx(metrics[name], rel=1e-6), name
    assert all(not values_of(name, rows) for name in without)


def test_a_difference_over_rows_is_that_of_the_metrics_with_an_interval_around_it(tmp_path: Path) -> None:
    a, b = write_experiment(tmp_path / "a", 0.4), write_experiment(tmp_path / "b", 0.7, draws=1)
    found = compared(a, b)[("evaluate_dpo", "exact_match")]
    stated = [json.loads((side / "metrics/evaluate_dpo.json").read_text()) for side in (a, b)]
    assert found.interval is not None and found.num_rows == 200
    assert found.interval.difference == pytest.approx(stated[1]["exact_match"] - stated[0]["exact_match"])
    assert found.interval.low > 0 and found.verdict == "better"
    # Rows that err independently: ± 1.96 √((p₁(1 - p₁) + p₂(1 - p₂))/n)
    p, q = stated[0]["exact_match"], stated[1]["exact_match"]
    half = 1.96 * math.sqrt((p * (1 - p) + q * (1 - q)) / 200)
    assert found.interval.high - found.interval.low == pytest.approx(2 * half, rel=0.12)
    assert compared(b, a)[("evaluate_dpo", "exact_match")].verdict == "worse"


def test_a_second_look_of_the_same_kind_is_noise(tmp_path: Path) -> None:
    found = compared(write_experiment(tmp_path / "a", 0.6), write_experiment(tmp_path / "b", 0.6, draws=1))
    assert found[("evaluate_dpo", "exact_match")].verdict == "within noise"
    assert not [one for one in found.values() if one.stage == "dpo"]  # its figures are the same


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_experiment(tmp_path / "a", 0.4, beta=0.5)
    b = write_experiment(tmp_path / "b", 0.7, beta=0.05, draws=1)
    text = printed(capsys, a, b)
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert lines["dpo.beta"].split() == ["dpo.beta", "0.5", "0.05"]
    assert lines["exact_match"].endswith("  better") and " to +0." in lines["exact_match"]
    assert lines["eval_loss"].split()[-2:] == ["no", "interval"]
    assert "\ngrad_norm " not in text and "5 other metrics: --all" in text
    assert "dpo tokens_per_second 1,400 1,700 1.21 no interval" in " ".join(text.split())
    assert "bootstrap over the held-out rows (200 or 100), 10,000 draws" in text
    assert "other seeds" in text and "repeat it with other seeds" in text
    assert "\ngrad_norm " in printed(capsys, a, b, "--all")
    markdown = printed(capsys, a, b, "--format", "md")
    assert "| dpo.beta | 0.5 | 0.05 |" in markdown and "|---|---:|---:|---:|---:|---:|" in markdown
    assert text == printed(capsys, a, b)  # the draws are the same


def test_json_holds_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of(capsys, write_experiment(tmp_path / "a", 0.4), write_experiment(tmp_path / "b", 0.7))
    by_name = {(one["stage"], one["metric"]): one for one in found["metrics"]}
    speed = by_name["dpo", "tokens_per_second"]
    assert (speed["a"], speed["b"], speed["ratio"]) == pytest.approx((1400, 1700, 1700 / 1400))
    assert by_name["dpo", "grad_norm"]["difference"] == pytest.approx(0.3)
    assert found["unit"] == "rows" and found["params"] == {}


def test_over_seeds_that_are_the_same_differences_are_paired(tmp_path: Path) -> None:
    skills = {0: (0.50, 0.60), 1: (0.54, 0.62), 2: (0.47, 0.58)}
    for seed, (before, after) in skills.items():
        write_experiment(tmp_path / f"a{seed}", before, seed, draws=seed)
        write_experiment(tmp_path / f"b{seed}", after, seed, beta=0.1, draws=seed)
    a, b = (",".join(str(tmp_path / f"{side}{seed}") for seed in order) for side, order in (("a", "012"), ("b", "201")))
    left, right, unit = read_sides(a, b)
    assert unit is Unit.SAME_SEEDS
    assert [one.name[-1] for one in right.experiments] == ["0", "1", "2"]
    found = compared(a, b)
    loss = found[("dpo", "eval_loss")]
    assert loss.interval == pytest.approx(paired_t([0.5, 0.46, 0.53], [0.4, 0.38, 0.42]))
    assert loss.verdict == "differs"  # DPO's loss is another one with each beta
    assert found[("dpo", "eval_rewards/accuracies")].verdict == "better"
    values = [[side.values("evaluate_dpo", "exact_match") for side in (left, right)]]
    assert found[("evaluate_dpo", "exact_match")].interval == pytest.approx(paired_t(*values[0]))
    speed = found[("dpo", "tokens_per_second")].ratio
    logs = [math.log((1 + after) / (1 + before)) for before, after in skills.values()]
    assert speed is not None and speed.low > 1
    assert found[("dpo", "tokens_per_second")].verdict == "better"
    assert speed.difference == pytest.approx(math.exp(math.fsum(logs) / 3))
    assert compare(*read_sides(a, b)).params == {"dpo.beta": (0.5, 0.1)}


def test_over_other_seeds_nothing_is_paired(tmp_path: Path) -> None:
    a = ",".join(str(write_experiment(tmp_path / f"a{seed}", 0.5 + seed / 100, seed)) for seed in (0, 1))
    b = ",".join(str(write_experiment(tmp_path / f"b{seed}", 0.6 + seed / 50, seed)) for seed in (1, 2, 3))
    found = compared(a, b)[("dpo", "grad_norm")]
    assert found.interval == pytest.approx(welch_t([0.5, 0.51], [0.62, 0.64, 0.66]))


def test_one_run_against_several_has_no_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = ",".join(str(write_experiment(tmp_path / f"b{seed}", 0.6, seed, draws=seed)) for seed in (1, 2))
    text = printed(capsys, write_experiment(tmp_path / "a", 0.4), several)
    assert "One side is a single run" in text and "no interval" in text


def test_a_side_holds_repetitions_only(tmp_path: Path) -> None:
    first = write_experiment(tmp_path / "first", 0.5)
    other = write_experiment(tmp_path / "other", 0.5, seed=1, beta=0.05)
    again = write_experiment(tmp_path / "again", 0.5)
    with pytest.raises(UserError, match=r"differ in dpo\.beta; several experiments on one side are repetitions"):
        read_sides(f"{first},{other}", str(first))
    with pytest.raises(UserError, match="have the same seeds"):
        read_sides(f"{first},{again}", str(first))


def test_without_results_metrics_stand_alone_and_that_is_said(tmp_path: Path) -> None:
    a, b = write_experiment(tmp_path / "a", 0.4), write_experiment(tmp_path / "b", 0.7, results=False)
    found = compare(*read_sides(str(a), str(b)))
    assert {one.verdict for one in found.differences if one.stage == "evaluate_dpo" and one.a != one.b} == {
        "no interval"
    }
    assert any("evaluate_dpo stands without intervals" in note and "evaluate_dpo.jsonl" in note for note in found.notes)


def test_results_of_another_run_are_not_believed(tmp_path: Path) -> None:
    a, b = write_experiment(tmp_path / "a", 0.4), write_experiment(tmp_path / "b", 0.7)
    metrics = json.loads((b / "metrics/evaluate_dpo.json").read_text()) | {"exact_match": 0.9}
    (b / "metrics/evaluate_dpo.json").write_text(json.dumps(metrics))
    found = compare(*read_sides(str(a), str(b)))
    assert any(
        "in B, the results give exact_match 0." in note and "the metrics say 0.9" in note for note in found.notes
    )
    by_name = {(one.stage, one.metric): one for one in found.differences}
    assert by_name["evaluate_dpo", "exact_match"].interval is None


def test_rows_that_one_side_alone_has_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    a = write_experiment(tmp_path / "a", 0.4)
    some = write_experiment(tmp_path / "some", 0.7, first_row=50)
    none = write_experiment(tmp_path / "none", 0.7, first_row=1000)
    found = compare(*read_sides(str(a), str(some)))
    match = next(one for one in found.differences if one.metric == "exact_match")
    assert match.num_rows == 150 and any("over the 150 rows that both have" in note for note in found.notes)
    found = compare(*read_sides(str(a), str(none)))
    match = next(one for one in found.differences if one.metric == "exact_match")
    assert match.interval is not None and any("nothing is paired" in note for note in found.notes)


def test_few_rows_have_no_interval(tmp_path: Path) -> None:
    a, b = (write_experiment(tmp_path / name, skill, num_rows=8) for name, skill in (("a", 0.2), ("b", 0.9)))
    found = compare(*read_sides(str(a), str(b)))
    assert any("8 rows are too few" in note for note in found.notes)


@pytest.mark.parametrize(
    ("stage", "metric", "way", "chief"),
    [
        ("evaluate_dpo", "exact_match", 1, True),
        ("evaluate_dpo", "pass_at_16", 1, True),
        ("evaluate_dpo", "kl_to_sft", 0, True),
        ("evaluate_dpo", "num_prompts", 0, False),
        ("sft", "eval_loss", -1, True),
        ("dpo", "eval_loss", 0, True),
        ("grpo", "eval_loss", 0, False),
        ("reward", "eval_calibration_error", -1, True),
        ("sft", "peak_memory_mib", -1, False),
        ("sft", "grad_norm", 0, False),
    ],
)
def test_which_way_is_better(stage: str, metric: str, way: int, chief: bool) -> None:
    assert (direction(stage, metric), is_chief(stage, metric)) == (way, chief)


def test_verdicts() -> None:
    def verdict(a: float | None, b: float | None, *ends: float) -> str:
        interval = Interval(b - a, *ends) if ends and a is not None and b is not None else None
        return Difference("sft", "eval_loss", a, b, interval).verdict

    assert verdict(1, 2, 0.5, 1.5) == "worse"
    assert verdict(2, 1, -1.5, -0.5) == "better"
    assert verdict(1, 2, 0.0, 1.5) == "within noise"
    assert verdict(1, 1, 0.0, 0.0) == "same"
    assert verdict(1, 1, -0.1, 0.1) == "within noise"
    assert verdict(1, 1) == "same"
    assert verdict(1, 2) == "no interval"
    assert verdict(1, None) == "only in A"
    assert verdict(None, 1) == "only in B"


LOCK = """
stages:
  prepare:
    cmd: python scripts/prepare.py
    deps: [{path: scripts/prepare.py, md5: a1}]
    params: {params.yaml: {prepare: {seed: 0}}}
    outs: [{path: models/base, md5: b1}]
  sft:
    cmd: python scripts/sft.py
    deps: [{path: models/base, md5: b1}, {path: scripts/sft.py, md5: c1}, {path: data/own, md5: d1}]
    params: {params.yaml: {sft: {learning_rate: 1e-5, packing: no, betas: [0.9, 1e-3]}}}
    outs: [{path: models/sft, md5: e1}]
"""


def state(lock: str, **params: Any) -> Experiment:
    return Experiment("x", None, Path(), params, yaml.safe_load(lock), {}, {})


def test_inputs_that_differ_are_told_without_what_follows_from_them() -> None:
    assert changed_inputs(state(LOCK), state(LOCK)) == []
    other_code = LOCK.replace("a1", "a2").replace("b1", "b2").replace("e1", "e2")
    assert changed_inputs(state(LOCK), state(other_code)) == ["code of prepare: scripts/prepare.py"]
    assert changed_inputs(state(LOCK), state(LOCK.replace("d1", "d2"))) == ["data/own, which sft reads"]
    (line,) = changed_inputs(state(LOCK), state(LOCK.replace("b1", "b2")))
    assert line.startswith("models/base, though prepare was told the same")
    assert changed_inputs(state(LOCK), state(LOCK.partition("  sft:")[0])) == ["sft has only run in x"]
    assert changed_inputs(state(LOCK), state("{}")) == [
        "there is no dvc.lock in x: what code and data it came from is not known"
    ]


def test_params_that_have_not_run_yet_are_told() -> None:
    """dvc.lock is read by YAML 1.1, where 1e-5 is text and `no` false."""
    same: dict[str, Any] = {"learning_rate": 1e-5, "packing": "no", "betas": [0.9, 1e-3]}
    assert not_yet_run(state(LOCK, prepare={"seed": 0}, sft=same)) == {}
    moved = not_yet_run(state(LOCK, prepare={"seed": 1}, sft=same))
    assert moved == {"prepare.seed": (0, 1)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-such-thing"], "no-such-thing"),
        (["a", "b", "c"], "unrecognized arguments: c; usage: posttrain compare"),
        (["--formt", "md"], "--formt; did you mean --format?"),
        (["x-*", "y"], "fits no experiment"),
    ],
)
def test_mistakes(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(write_experiment(tmp_path, 0.5))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert main(["compare", *words]) == 2
    assert message in capsys.readouterr().err
