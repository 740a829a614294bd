"""The same command goes on with its own run, and ends as if nothing had happened; another command is refused.

tests/test_kills.py does the same with killed processes, at all moments, for all methods.
"""

import json
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny import curve, run, write_base, write_sft

from posttrain.checkpoints import only_run_in, saving_folder, what_is_wrong
from posttrain.cli import main

WORDS = ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "3"]
GEOMETRY = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and 16 rows: 4 steps an epoch."""
    folder = tmp_path_factory.mktemp("material")
    return write_base(folder / "base"), write_sft(folder / "rows.jsonl")


@pytest.fixture(scope="module")
def whole(material: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended, with checkpoints 2, 4 and 6."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run("sft", *material, out, *WORDS, *GEOMETRY)
    return out


def cut_off(whole: Path, out: Path, *lost: int) -> Path:
    """A copy of the run that was killed before it wrote some of its checkpoints, and its model."""
    shutil.copytree(whole, out)
    for step in lost:
        shutil.rmtree(out / f"checkpoint-{step}")
    for name in ("manifest.json", "model.safetensors", "trainer_state.json"):
        (out / name).unlink()
    return out


def assert_same(one: Path, other: Path) -> None:
    """All files of two models; their manifests hold the hashes of the weights and of all that was logged."""
    assert (one / "manifest.json").read_text() == (other / "manifest.json").read_text()
    assert what_is_wrong(one) is None and what_is_wrong(other) is None


def fails(material: tuple[Path, Path], out: Path, *words: str) -> None:
    with pytest.raises(AssertionError):
        run("sft", *material, out, *words)


def test_a_run_that_was_cut_off_goes_on_between_two_log_lines(
    material: tuple[Path, Path], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = cut_off(whole, tmp_path / "out", 4, 6)
    state = run("sft", *material, out, *WORDS, *GEOMETRY)
    assert f"Going on from {out}/checkpoint-2." in capsys.readouterr().err
    assert [line["step"] for line in state["log_history"]] == [3, 6, 6]
    assert_same(out, whole)
    assert sorted(path.name for path in out.glob("*checkpoint*")) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_a_damaged_checkpoint_is_passed_over(
    material: tuple[Path, Path], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = cut_off(whole, tmp_path / "out", 6)
    optimizer = out / "checkpoint-4" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    run("sft", *material, out, *WORDS, *GEOMETRY)
    told = capsys.readouterr().err
    assert "checkpoint-4 is damaged: optimizer.pt has " in told and f"Going on from {out}/checkpoint-2." in told
    assert (out / "damaged-checkpoint-4").is_dir()
    assert_same(out, whole)


def test_an_ended_run_writes_its_model_again_without_training(
    material: tuple[Path, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = cut_off(whole, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("posttrain.trainer.PostTrainer.training_step", None)
        run("sft", *material, out, *WORDS, *GEOMETRY)
    assert_same(out, whole)


def test_other_parameters_are_refused_before_anything_is_loaded(
    material: tuple[Path, Path], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    unfinished, other = cut_off(whole, tmp_path / "out", 6), [*WORDS, *GEOMETRY, "--learning_rate", "0.02"]
    fails(material, unfinished, *other)
    told = capsys.readouterr().err
    assert "holds an unfinished run, at checkpoint-4, with other parameters: learning_rate 0.01 → 0.02. Take" in told
    assert "--resume_from_checkpoint true goes on" in told and "Loading weights" not in told
    fails(material, whole, *other, "--no_shuffle_dataset", "--max_length", "none")
    assert "holds a finished run with other parameters: learning_rate 0.01 → 0.02; max_length 1024 → unset." in (
        capsys.readouterr().err
    )
    (unfinished / "run.json").unlink()
    fails(material, unfinished, *WORDS, *GEOMETRY)
    assert "holds checkpoint-4 of a run that is not known here" in capsys.readouterr().err


def test_where_results_go_and_what_watches_makes_no_other_run(
    material: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    out = cut_off(whole, tmp_path / "moved", 4, 6)
    model, data = shutil.copytree(material[0], tmp_path / "base"), shutil.copy(material[1], tmp_path / "rows.jsonl")
    run("sft", model, data, out, *WORDS, *GEOMETRY, "--save_total_limit", "1", "--save_steps", "3")
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-6"]


@pytest.mark.parametrize("what", ["rows", "weights", "config"])
def test_other_rows_and_other_weights_are_another_run(
    what: str, material: tuple[Path, Path], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model, data = material
    if what == "rows":
        data = write_sft(tmp_path / "rows.jsonl", 17)
    elif what == "weights":
        model = write_base(tmp_path / "base", seed=2)
    else:
        model = shutil.copytree(model, tmp_path / "base")
        about = json_of(model / "config.json")
        (model / "config.json").write_text(json.dumps(about | {"rms_norm_eps": 1e-3}))
    fails((model, data), cut_off(whole, tmp_path / "out"), *WORDS, *GEOMETRY)
    told = {"rows": "the rows", "weights": "the weights it starts from", "config": "config.json or generation"}[what]
    assert f"with other parameters: {told}" in capsys.readouterr().err


def test_the_user_may_go_on_with_other_parameters_start_anew_or_name_a_checkpoint(
    material: tuple[Path, Path], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = [*WORDS, *GEOMETRY, "--learning_rate", "0.02", "--resume_from_checkpoint"]
    out = cut_off(whole, tmp_path / "true", 4, 6)
    run("sft", *material, out, *other, "true")
    told = capsys.readouterr().err
    assert "learning_rate 0.01 → 0.02" in told and "Going on from" in told
    assert "learning_rate as it stands in the checkpoint" in told

    out = shutil.copytree(whole, tmp_path / "false")
    run("sft", *material, out, *WORDS, *GEOMETRY, "--resume_from_checkpoint", "false")
    told = capsys.readouterr().err
    assert "3 checkpoint(s) of an earlier run are removed" in told and "Going on from" not in told
    assert_same(out, whole)

    run("sft", *material, tmp_path / "path", *WORDS, *GEOMETRY, "--resume_from_checkpoint", f"{whole}/checkpoint-4")
    assert_same(tmp_path / "path", whole)

    fails(material, tmp_path / "empty", *WORDS, *GEOMETRY, "--resume_from_checkpoint", "true")
    assert "holds no checkpoint; leave it out" in capsys.readouterr().err


def test_two_runs_do_not_train_in_one_folder(
    material: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with only_run_in(tmp_path / "out"):
        fails(material, tmp_path / "out", *WORDS)
    told = capsys.readouterr().err
    assert f"another run is at work in {tmp_path}/out" in told and "Loading weights" not in told


@pytest.mark.parametrize("strategy", ["logging", "eval"])
def test_what_belongs_to_the_end_of_an_epoch_is_in_its_checkpoint(
    strategy: str, material: tuple[Path, Path], tmp_path: Path
) -> None:
    """A step's checkpoint at the end of an epoch comes after the epoch's log line and evaluation: whoever goes on from
    it begins with the next epoch."""
    words = ["--max_steps", "8", "--save_strategy", "steps", "--save_steps", "2", *GEOMETRY, "--eval_on_start"]
    words += ["--test_split_size", "2", "--dataset_train_split", "train[:15]"]
    words += {
        "logging": ["--logging_strategy", "epoch"],
        "eval": ["--eval_strategy", "epoch", "--logging_steps", "3"],
    }[strategy]
    words += ["--eval_strategy", "no"] * (strategy == "logging")
    words = [word for word in words if word != "--eval_on_start" or strategy == "eval"]
    out = tmp_path / "whole"
    state = run("sft", *material, out, *words)
    epochs = [line["step"] for line in state["log_history"] if ("eval_loss" if strategy == "eval" else "loss") in line]
    assert epochs == ([0, 4, 8] if strategy == "eval" else [4, 8])
    for step in (4, 8):
        again = cut_off(out, tmp_path / f"from-{step}", *[other for other in (2, 4, 6, 8) if other > step])
        run("sft", *material, again, *words)
        assert_same(again, out)


def test_checkpoints_of_models_alone_cannot_go_on(
    material: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [*WORDS, *GEOMETRY, "--save_only_model"]
    run("sft", *material, tmp_path / "whole", *words)
    out = cut_off(tmp_path / "whole", tmp_path / "out", 6)
    run("sft", *material, out, *words)
    told = capsys.readouterr().err
    assert "hold models alone (--save_only_model): training starts anew" in told and "Going on" not in told
    assert_same(out, tmp_path / "whole")


def test_the_best_checkpoint_is_found_where_the_run_was_moved_to(
    material: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [*WORDS, *GEOMETRY, "--eval_strategy", "steps", "--eval_steps", "2", "--test_split_size", "4"]
    words += ["--load_best_model_at_end", "--greater_is_better", "true"]  # the worst: the first
    run("sft", *material, tmp_path / "whole", *words)
    moved = cut_off(tmp_path / "whole", tmp_path / "moved", 6)
    shutil.move(tmp_path / "whole", tmp_path / "elsewhere")
    run("sft", *material, moved, *words)
    assert_same(moved, tmp_path / "elsewhere")
    first = (moved / "checkpoint-2" / "model.safetensors").read_bytes()
    assert (moved / "model.safetensors").read_bytes() == first
    lost = cut_off(moved, tmp_path / "lost", 2, 6)
    shutil.rmtree(moved)
    fails(material, lost, *words)
    assert "the best checkpoint so far" in capsys.readouterr().err


def test_a_disk_that_is_full_stops_the_run_with_its_last_checkpoint_whole(
    material: tuple[Path, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Real errors of the operating system: from the second checkpoint on no file may have more than 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def full_at_four(run: Path, step: int) -> Path:
        if step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        return saving_folder(run, step)

    try:
        with monkeypatch.context() as patch, pytest.raises(AssertionError):
            patch.setattr("posttrain.checkpoint_trainer.saving_folder", full_at_four)
            run("sft", *material, tmp_path / "out", *WORDS, *GEOMETRY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    told = capsys.readouterr().err
    assert (
        "posttrain: error: checkpoint-4 cannot be written: " in told and "Make room" in told and "goes on from" in told
    )
    assert [path.name for path in (tmp_path / "out").glob("*checkpoint*")] == ["checkpoint-2"]
    run("sft", *material, tmp_path / "out", *WORDS, *GEOMETRY)
    assert_same(tmp_path / "out", whole)


def test_each_combination_has_a_folder_of_its_own_in_a_work_dir(
    material: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A changed parameter starts afresh; the first one's run is found again."""
    words = [*WORDS, *GEOMETRY, "--work_dir", str(tmp_path / "work")]
    first = run("sft", *material, tmp_path / "out", *words)
    run("sft", *material, tmp_path / "out", *words, "--learning_rate", "0.02")
    assert "Going on from" not in capsys.readouterr().err
    folders = [path.parent for path in (tmp_path / "work").glob("*/run.json")]
    assert len(folders) == 2
    metrics = tmp_path / "metrics.json"
    again = run("sft", *material, tmp_path / "out", *words, "--metrics_file", str(metrics))
    assert "Going on from" in capsys.readouterr().err
    assert curve(again, "loss") == curve(first, "loss")
    told: dict[str, Any] = json.loads(metrics.read_text())
    assert told["train_loss"] == first["log_history"][-1]["train_loss"]
    assert told["tokens_per_second"] > 0 and told["train_runtime"] > 0


def test_the_model_of_a_killed_saving_is_not_taken_for_a_model(
    material: tuple[Path, Path], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    broken = shutil.copytree(whole, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x01\x02\x03")
    words = ["--model_name_or_path", str(broken), "--dataset_name", str(material[1]), "--max_steps", "1"]
    assert main(["sft", *words, "--output_dir", str(tmp_path / "out"), "--report_to", "none"]) == 2
    told = capsys.readouterr().err
    assert "broken is not whole: model.safetensors is not as it was written" in told


def test_a_way_that_is_left_is_not_found_again(
    material: tuple[Path, Path], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """From an earlier checkpoint with noise on the embeddings, cut off, and again: from its own checkpoint."""
    out, other = shutil.copytree(whole, tmp_path / "out"), [*WORDS, *GEOMETRY, "--neftune_noise_alpha", "9"]
    expected = run("sft", *material, out, *other, "--resume_from_checkpoint", str(out / "checkpoint-2"))
    assert "2 later checkpoint(s) are kept as later-" in capsys.readouterr().err
    assert sorted(path.name for path in out.glob("later-*")) == ["later-checkpoint-4", "later-checkpoint-6"]
    shutil.rmtree(out / "checkpoint-6")
    again = run("sft", *material, out, *other)
    assert f"Going on from {out}/checkpoint-4." in capsys.readouterr().err
    assert curve(again, "loss") == curve(expected, "loss") != curve(json_of(whole / "trainer_state.json"), "loss")


def json_of(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
