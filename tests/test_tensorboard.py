"""TensorBoard gets texts to read and the flags beside the curves, once, and runs have names that a person can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import metadata
from tiny import run, run_policy, write_base, write_preference, write_prompts, write_sft

from posttrain.experiment.tensorboard_view import link_runs
from posttrain.tensorboard_run import text_of_completion


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


def events_of(run_folder: Path) -> EventAccumulator:
    (folder,) = (run_folder / "runs").iterdir()
    sizes = {"tensors": 0, "scalars": 0}  # all of them
    return EventAccumulator(str(folder), size_guidance=sizes).Reload()


def texts(events: EventAccumulator, tag: str) -> list[tuple[int, str]]:
    found = events.Tensors(f"{tag}/text_summary")
    return [(one.step, one.tensor_proto.string_val[0].decode()) for one in found]


def session(events: EventAccumulator) -> dict[str, Any]:
    """The flags that the tab of hyper-parameters shows."""
    content = events.PluginTagToContent(metadata.PLUGIN_NAME)[metadata.SESSION_START_INFO_TAG]
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def times_written(run_folder: Path, tag: str) -> int:
    """How often a tag stands in the files of a run."""
    files = (run_folder / "runs").glob("*/events.out.tfevents.*")
    events = [event for file in files for event in EventFileLoader(str(file)).Load()]
    return sum(value.tag == tag for event in events for value in event.summary.value)


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_rows_stand_there_as_the_model_sees_them(method: str, base: Path, tmp_path: Path) -> None:
    data = (write_sft if method == "sft" else write_preference)(tmp_path / "rows.jsonl")
    run(method, base, data, tmp_path / "out", "--report_to", "tensorboard", "--max_steps", "1")
    events = events_of(tmp_path / "out")
    ((step, text),) = texts(events, "rows/0")
    assert step == 0 and "<|im_start|>user" in text.replace("[[", "") and "apples" in text
    assert ("chosen" in text and "rejected" in text) == (method != "sft")
    assert len([tag for tag in events.Tags()["tensors"] if tag.startswith("rows/")]) == 3


def test_what_is_trained_on_is_marked(base: Path, tmp_path: Path) -> None:
    data = write_sft(tmp_path / "rows.jsonl")
    words = ("--assistant_only_loss", "true", "--report_to", "tensorboard", "--max_steps", "1")
    run("sft", base, data, tmp_path / "out", *words)
    ((_, text),) = texts(events_of(tmp_path / "out"), "rows/0")
    inside = text.partition("[[")[2].partition("]]")[0]
    assert "####" in inside and "apples" not in inside


def test_completions_stand_at_every_logged_step_with_their_rewards(base: Path, tmp_path: Path) -> None:
    data = write_prompts(tmp_path / "rows.jsonl")
    words = ("--log_completions", "true", "--num_completions_to_print", "0", "--report_to", "tensorboard")
    run_policy("grpo", base, data, tmp_path / "out", *words, "--max_steps", "2")
    found = texts(events_of(tmp_path / "out"), "completions")
    assert [step for step, _ in found] == [1, 2]
    for _, text in found:
        assert text.count("share_of_one") == text.count("advantage") == 8
        assert "apples" in text


def test_the_flags_that_were_set_are_hyper_parameters(base: Path, tmp_path: Path) -> None:
    data = write_preference(tmp_path / "rows.jsonl")
    words = ("--beta", "0.25", "--loss_type", "sigmoid", "sft", "--report_to", "tensorboard", "--max_steps", "1")
    run("dpo", base, data, tmp_path / "out", *words)
    events = events_of(tmp_path / "out")
    flags = session(events)
    assert flags["method"] == "dpo" and flags["beta"] == 0.25 and flags["loss_type"] == '["sigmoid", "sft"]'
    assert flags["model_name_or_path"] == str(base) and flags["learning_rate"] == 1e-2
    assert not {"output_dir", "cache_dir", "report_to", "hub_token", "lora_r"} & flags.keys()
    # And no list of all names: TensorBoard would take that of one run for all runs.
    wanted = {metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG}
    assert set(events.PluginTagToContent(metadata.PLUGIN_NAME)) == wanted


def test_a_run_that_goes_on_is_one_run_and_says_things_once(base: Path, tmp_path: Path) -> None:
    data = write_sft(tmp_path / "rows.jsonl")
    same = ("--report_to", "tensorboard", "--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1")
    run("sft", base, data, tmp_path / "out", *same, "--max_steps", "4")
    whole = {one.step: one.value for one in events_of(tmp_path / "out").Scalars("train/loss")}
    go_on = ("--resume_from_checkpoint", str(tmp_path / "out/checkpoint-2"))
    run("sft", base, data, tmp_path / "out", *same, "--max_steps", "4", *go_on)
    events = events_of(tmp_path / "out")
    assert [one.step for one in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert {one.step: one.value for one in events.Scalars("train/loss")} == whole
    assert times_written(tmp_path / "out", "rows/0/text_summary") == 1
    assert times_written(tmp_path / "out", metadata.SESSION_START_INFO_TAG) == 1


def test_it_changes_nothing_that_is_trained(base: Path, tmp_path: Path) -> None:
    data = write_prompts(tmp_path / "rows.jsonl")
    words = ("--log_completions", "true", "--num_completions_to_print", "0", "--max_steps", "2")
    for tracker in ("none", "tensorboard"):
        run_policy("rloo", base, data, tmp_path / tracker / "out", *words, "--report_to", tracker)
    one, other = ((tmp_path / name / "out/model.safetensors").read_bytes() for name in ("none", "tensorboard"))
    assert one == other


def test_texts_of_models_are_no_markup() -> None:
    row = {"step": 3, "row": 1, "prompt": "# no heading", "completion": "```\n| a |", "ended": True, "own": None}
    text = text_of_completion(row)
    assert "    # no heading" in text and "    ```\n    | a |" in text and "own none" in text


def write_run(work: Path, stage: str, fingerprint: str, flags: dict[str, Any]) -> Path:
    folder = work / stage / fingerprint
    (folder / "runs/Jan01").mkdir(parents=True)
    (folder / "checkpoint-1").mkdir()
    (folder / "run.json").write_text(json.dumps({"flags": flags}))
    return folder / "runs/Jan01"


def test_runs_are_named_by_stage_and_by_what_differs(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    work, view = tmp_path / "work", tmp_path / "view"
    same = {"learning_rate": 1e-4, "output_dir": "x"}
    for name, beta in (("aaaaaaaaaaaa", 0.5), ("bbbbbbbbbbbb", 0.05)):
        with SummaryWriter(str(write_run(work, "dpo", name, same | {"beta": beta, "output_dir": name}))) as writer:
            writer.add_scalar("train/loss", beta, 1)
    with SummaryWriter(str(write_run(work, "sft", "cccccccccccc", same))) as writer:
        writer.add_scalar("train/loss", 3.0, 1)
    write_run(work, "grpo", "dddddddddddd", same)  # no event yet
    names = link_runs(work, view)
    assert names == ["dpo/beta=0.05 bbbbbb", "dpo/beta=0.5 aaaaaa", "sft/cccccc"]
    assert link_runs(work, view) == names
    assert runs_that_tensorboard_sees(view) == set(names)
    with SummaryWriter(str(work / "grpo/dddddddddddd/runs/Jan01")) as writer:
        writer.add_scalar("train/loss", 1.0, 1)
    assert "grpo/dddddd" in link_runs(work, view)
    assert (view / "grpo/dddddd").is_dir()


def runs_that_tensorboard_sees(view: Path) -> set[str]:
    """By the reader that TensorBoard falls back to where its fast one does not run."""
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(view)).Reload()
    return set(multiplexer.Runs())
