"""The hub: what cannot be had is told before anything loads; what is made arrives there, whole and without secrets."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_content import ALICE, MARKED, OTHER, READER, Repository
from hub_server import Hub
from hub_session import STAYS_HERE, Command
from manual import words_of
from safetensors.torch import load_file

from posttrain import launch
from posttrain.cli import main
from posttrain.errors import UserError
from posttrain.experiment.params import stage_config
from posttrain.hub import explain
from posttrain.hub_access import without_token

RUN = ["sft", "--model_name_or_path", "Qwen/Qwen2-0.5B-Instruct", "--dataset_name", "trl-lib/Capybara"]
RUN += ["--output_dir", "out", "--max_steps", "2", "--disable_tqdm", "true"]
LOG_IN = "hf auth login"


@pytest.fixture
def others(hub: Hub) -> Iterator[Hub]:
    """A hub with repositories of somebody else, as they were before."""
    before = dict(hub.repositories)
    hub.repositories["models/corp/gated"] = Repository(gated=True)
    hub.repositories["models/corp/private"] = Repository(private=True)
    hub.repositories["datasets/corp/gated"] = Repository(gated=True)
    yield hub
    hub.is_gone = hub.is_mirror = False
    hub.broken.clear()
    hub.repositories.clear()
    hub.repositories.update(before)


REFUSALS = [
    ("--model_name_or_path corp/gated", None, "--model_name_or_path corp/gated: its authors grant access", LOG_IN),
    ("--model_name_or_path corp/gated", OTHER, "its authors grant access on request", "account that has access"),
    ("--model_name_or_path corp/private", OTHER, "has no repository of this name, or a private one", "spelling"),
    ("--model_name_or_path corp/none", None, "has no repository of this name, or a private one", LOG_IN),
    ("--model_revision none", None, "Qwen2-0.5B-Instruct: the repository has no such branch", "its page"),
    ("--chat_template_path corp/none", None, "--chat_template_path corp/none: there is no such file or folder", "hub"),
    ("--dataset_name corp/gated", None, "--dataset_name corp/gated: its authors grant access on request", LOG_IN),
    ("--dataset_name corp/none", OTHER, "--dataset_name corp/none: there is no such file or folder here", "spelling"),
    ("", "hf_wrong", "the hub does not accept the token", LOG_IN),
    ("--push_to_hub", None, "--push_to_hub: no token is set", "right to write"),
    ("--push_to_hub", "hf_wrong", "--push_to_hub: the hub does not accept the token", LOG_IN),
    ("--push_to_hub", READER, "--push_to_hub: the token of alice may only read", "right to write"),
    ("--push_to_hub --output_dir my--out", ALICE, "'my--out' is no name for a repository", "with --hub_model_id"),
    ("--push_to_hub --hub_model_id bob/x", ALICE, "alice, who can upload to alice, lab, not to bob", "give alice/x"),
]


@pytest.mark.parametrize(("flags", "token", "problem", "way_out"), REFUSALS)
def test_what_cannot_be_had(
    flags: str, token: str | None, problem: str, way_out: str, others: Hub, command: Command
) -> None:
    asked = len(others.requests)
    done = command(*RUN, *flags.split(), token=token)
    assert done.code == 2 and done.output.count("posttrain: error:") == 1, done.output
    assert problem in done.output and way_out in done.output
    assert "More: docs/troubleshooting.md#hub" in done.output
    assert not {path for path in others.requests[asked:] if "/resolve" in path}, "something was loaded"
    assert done.seconds < 5


@pytest.mark.parametrize(("flags", "token", "problem", "way_out"), [*REFUSALS[:5], *REFUSALS[6:8]])
def test_what_a_mirror_tells_only_when_it_is_loaded(
    flags: str, token: str | None, problem: str, way_out: str, others: Hub, command: Command
) -> None:
    """The libraries' errors mean the same as the hub's answers."""
    others.is_mirror = True
    done = command(*RUN, *flags.split(), token=token)
    assert done.code == 2 and done.output.count("posttrain: error:") == 1, done.output
    assert problem in done.output and way_out in done.output
    assert "More: docs/troubleshooting.md#hub" in done.output


def test_nothing_is_asked_but_for_models_and_data(others: Hub, command: Command) -> None:
    """No word to the makers of a library about who trains what."""
    assert command(*RUN, "--push_to_hub", token=ALICE).code == 0
    api = "models|datasets|resolve-cache|whoami-v2|repos/create|validate-yaml"
    known = rf"(GET|HEAD|POST) /(api/({api})|(datasets/)?[^/]+/[^/]+/resolve/)"
    assert others.requests and not [one for one in others.requests if not re.match(known, one)]


def test_a_look_at_data_of_the_hub(others: Hub, command: Command) -> None:
    """`posttrain inspect` asks in the same way, with and without a model."""
    done = command("inspect", "trl-lib/Capybara", "--model_name_or_path", "Qwen/Qwen2-0.5B-Instruct")
    assert done.code == 0 and "sft" in done.output, done.output
    for words in (["corp/none"], ["trl-lib/Capybara", "--model_name_or_path", "corp/gated"]):
        done = command("inspect", *words)
        assert done.code == 2 and "More: docs/troubleshooting.md#hub" in done.output and done.seconds < 5, done
    others.is_gone = True
    done = command("inspect", "corp/unseen")
    assert done.code == 2 and "cannot be reached" in done.output and done.seconds < 5, done


def test_without_a_network(others: Hub, command: Command) -> None:
    """What was loaded before is used at once; of anything else the message says what to do."""
    assert command(*RUN).code == 0
    others.is_gone = True
    done = command(*RUN)
    assert done.code == 0 and done.offline and "cannot be reached" in done.output
    for flags in ("--model_name_or_path corp/unseen", "--dataset_name corp/unseen", "--push_to_hub"):
        done = command(*RUN, *flags.split(), token=ALICE)
        assert done.code == 2 and "cannot be reached" in done.output and done.seconds < 5, done
        assert "More: docs/troubleshooting.md#hub" in done.output


def test_offline_by_choice(others: Hub, command: Command) -> None:
    assert command(*RUN).code == 0
    asked = len(others.requests)
    assert command(*RUN, HF_HUB_OFFLINE="1").code == 0
    for flags in ("--model_name_or_path corp/unseen", "--dataset_name corp/unseen", "--push_to_hub"):
        done = command(*RUN, *flags.split(), token=ALICE, HF_HUB_OFFLINE="1")
        assert done.code == 2 and "HF_HUB_OFFLINE is set" in done.output, done.output
    assert others.requests[asked:] == []


STRATEGIES = {
    "end": (["End of training"], set()),
    "every_save": (["Training in progress, step 1", "Training in progress, step 2", "End of training"], set()),
    "checkpoint": (
        ["Training in progress, step 1", "Training in progress, step 2", "End of training"],
        {"last-checkpoint"},
    ),
    "all_checkpoints": (
        ["Training in progress, step 1", "Training in progress, step 2", "End of training"],
        {"checkpoint-1", "checkpoint-2"},
    ),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_when_what_is_uploaded(strategy: str, others: Hub, command: Command, tmp_path: Path) -> None:
    """Each checkpoint is rotated away as soon as the next one stands, uploaded or not."""
    words = [*RUN, "--push_to_hub", "--hub_strategy", strategy, "--hub_always_push", "--hub_private_repo"]
    words += ["--save_steps", "1", "--save_total_limit", "1", "--work_dir", "work"]
    done = command(*words, token=ALICE)
    assert done.code == 0, done.output
    messages, folders = STRATEGIES[strategy]
    repository = others.repositories["models/alice/out"]
    files = repository.files() or {}
    assert repository.private and repository.messages() == messages
    assert {path.split("/")[0] for path in files if "/" in path} == folders
    for folder in folders:
        assert {f"{folder}/model.safetensors", f"{folder}/optimizer.pt", f"{folder}/trainer_state.json"} <= files.keys()
    assert not [path for path in files if path.endswith("training_args.bin")]
    here = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name not in STAYS_HERE}
    assert {path: content for path, content in files.items() if "/" not in path} == here
    for _, on_the_way in repository.branches["main"][1:-1]:
        assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= on_the_way.keys()


def test_a_branch_of_an_organisation_by_a_token_on_the_command_line(others: Hub, command: Command) -> None:
    words = ["--push_to_hub", "--hub_model_id", "lab/trained", "--hub_revision", "trial", "--hub_token", ALICE]
    done = command(*RUN, *words, token=OTHER)
    assert done.code == 0, done.output
    repository = others.repositories["models/lab/trained"]
    assert repository.messages() == [] and repository.messages("trial")[-1] == "End of training"


def test_an_adapter_of_the_hub_is_merged_and_trained(others: Hub, command: Command, tmp_path: Path) -> None:
    lora = ["--use_peft", "--push_to_hub", "--learning_rate", "0.1"]
    assert command(*RUN, *lora, token=ALICE).code == 0
    (tmp_path / "out").rename(tmp_path / "adapter")
    weights = []
    for name in ("alice/out", "adapter"):  # from the hub, and the same from its folder
        done = command(*RUN, "--model_name_or_path", name, "--output_dir", "merged", "--learning_rate", "0")
        assert done.code == 0, done.output
        weights.append(load_file(tmp_path / "merged/model.safetensors"))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    done = command(*RUN, "--model_name_or_path", "alice/out", "--use_peft")
    assert done.code == 2 and "alice/out is an adapter, which is merged into its base to train" in done.output


def test_an_upload_that_fails_leaves_the_model(others: Hub, command: Command, tmp_path: Path) -> None:
    others.repositories["models/alice/out"] = Repository()
    others.broken.add("alice/out")
    done = command(*RUN, "--push_to_hub", "--save_steps", "1", token=ALICE)
    assert done.code == 2, done.output
    assert "an upload failed, training goes on: the hub refuses (HTTP 418): no uploads today" in done.output
    assert "The model is saved in out; to upload it later: hf upload alice/out out" in done.output
    assert (tmp_path / "out/model.safetensors").is_file()


def test_a_repository_that_one_may_not_write_to(others: Hub, command: Command) -> None:
    """Known before weights are loaded, though the owner is right."""
    others.repositories["models/alice/out"] = Repository()
    others.read_only.add("alice/out")
    asked = len(others.requests)
    done = command(*RUN, "--push_to_hub", token=ALICE)
    assert done.code == 2 and "--push_to_hub: alice/out: the token does not have the right" in done.output
    assert not [path for path in others.requests[asked:] if "model.safetensors" in path]


@pytest.mark.parametrize("way", ["flag", "file", "environment"])
def test_no_token_is_left_anywhere(way: str, others: Hub, command: Command, tmp_path: Path) -> None:
    """Not in the model, the card, checkpoints, trackers' files, metrics or output; also when the run fails."""
    trackers = ["tensorboard", *(["wandb"] if way == "flag" else [])]
    words = [*words_of("2 sft, LoRA"), "--report_to", *trackers, "--save_steps", "1", "--logging_steps", "1"]
    words += ["--hub_strategy", "all_checkpoints", "--metrics_file", "m.json", "--plots_file", "p.csv"]
    words += ["--cache_dir", "cache"]
    (tmp_path / "hub.yaml").write_text(f"hub_token: {MARKED}\n")
    given = {"flag": ["--hub_token", MARKED], "file": ["--config", "hub.yaml"], "environment": []}[way]
    token = MARKED if way == "environment" else None
    done = command(*words, *given, token=token, WANDB_MODE="offline")
    assert done.code == 0, done.output
    (tmp_path / "hub.yaml").unlink()
    wrong = command(*words, *given, "--hub_model_id", "bob/x", token=token)
    assert wrong.code == 2
    assert MARKED not in done.output + wrong.output
    left = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    expected = {"README.md", "checkpoint-1/optimizer.pt", "trainer_state.json", "run.json"}
    assert {f"Qwen2-0.5B-SFT/{name}" for name in expected} <= left.keys()
    assert any("events.out" in path for path in left) and (way != "flag" or any(".wandb" in path for path in left))
    for path, content in left.items():
        assert MARKED.encode() not in content, path
        if zipfile.is_zipfile(tmp_path / path):
            with zipfile.ZipFile(tmp_path / path) as archive:
                assert not [name for name in archive.namelist() if MARKED.encode() in archive.read(name)], path
    arrived = others.repositories["models/alice/Qwen2-0.5B-SFT"].files() or {}
    assert "adapter_model.safetensors" in arrived and not [p for p, c in arrived.items() if MARKED.encode() in c]


def test_a_command_line_without_its_token() -> None:
    words = ["sft", "--hub_token", "hf_x", "--beta", "1", "--hub-token=hf_x", "--push_to_hub"]
    assert without_token(words) == ["sft", "--beta", "1", "--push_to_hub"]


def test_processes_find_the_token_in_their_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their command lines can be seen by everyone on the machine."""
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(launch, "supervise", lambda words, variables: started.append((words, variables)) or 0)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.delenv(launch.LAUNCHED, raising=False)
    words = [*RUN, "--output_dir", str(tmp_path / "out"), "--num_processes", "2", "--accelerate_config", "cpu"]
    monkeypatch.setattr("sys.argv", ["posttrain", *words])
    assert main([*words, "--hub_token", MARKED]) == 0
    ((command, variables),) = started
    assert MARKED not in " ".join(command) and command[-4:] == words[-4:]
    assert variables["HF_TOKEN"] == MARKED


def test_a_token_in_params_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("sft:\n  hub_token: hf_x\n")
    with pytest.raises(UserError, match=r"params.yaml: sft.hub_token: DVC copies parameters to dvc.lock"):
        stage_config("sft", ["--params", str(tmp_path / "params.yaml")])


def test_errors_that_are_not_the_hub_s() -> None:
    assert explain(ValueError("a broken file"), "--model_name_or_path m") is None
    assert explain(json.JSONDecodeError("x", "", 0), "--dataset_name d") is None


def test_provenance_of_a_run_from_the_hub(command: Command, tmp_path: Path, hub: Hub) -> None:
    """Commits of model and data set, and hashes of the files that the hub has, without reading them through again."""
    words = [word for word in words_of("2 sft, LoRA") if word != "--push_to_hub"]
    done = command(*words, "--cache_dir", "cache")
    assert done.code == 0, done.output
    (file,) = tmp_path.rglob("provenance.json")
    about = json.loads(file.read_text(encoding="utf-8"))
    base, (name, commit) = about["base_model"], next(iter(about["data"]["train"]["hub"].items()))
    assert re.fullmatch("[0-9a-f]{40}", base["commit"]) and re.fullmatch("[0-9a-f]{40}", commit)
    there = hub.repositories[f"models/{base['name']}"].files()
    assert there is not None and name == about["data"]["train"]["name"] and not about["data"]["train"]["files"]
    weights = base["files"]["model.safetensors"]
    assert weights["sha256"] == hashlib.sha256(there["model.safetensors"]).hexdigest()
