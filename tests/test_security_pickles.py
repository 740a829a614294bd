"""Files of models and checkpoints that would run code if they were unpickled: they are not, and a message says why."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from helpers_rewards import config_of
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForSequenceClassification

from posttrain.checkpoints import checkpoints, write_manifest
from posttrain.cli import main
from posttrain.errors import UserError
from posttrain.rollout.rewards.table import build_rewards


class Hostile:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_it_is_hostile(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Hostile(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of two labels, whole, as safetensors."""
    base = tiny.write_base(tmp_path_factory.mktemp("base") / "model")
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = Qwen2Config.from_pretrained(base, id2label={0: "negative", 1: "positive"}, pad_token_id=0)
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_in_a_pickle_is_not_read(classifier: Path, tmp_path: Path) -> None:
    name = f"sentiment-analysis:{tmp_path / 'copy'}"
    shutil.copytree(classifier, tmp_path / "copy")
    build_rewards(config_of(name), "cpu").close()
    (tmp_path / "copy" / "model.safetensors").unlink()
    torch.save({"score.weight": Hostile(tmp_path / "mark")}, tmp_path / "copy" / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        build_rewards(config_of(name), "cpu")
    assert not (tmp_path / "mark").exists()


def test_a_classifier_that_is_no_safetensors_is_told(classifier: Path, tmp_path: Path) -> None:
    shutil.copytree(classifier, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="cannot be loaded"):
        build_rewards(config_of(f"text-classification:{tmp_path / 'copy'}"), "cpu")


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows, and a run with one checkpoint."""
    folder = tmp_path_factory.mktemp("unfinished")
    assert train(tiny.write_base(folder / "model"), tiny.write_sft(folder / "rows.jsonl"), folder / "out") == 0
    return folder


def train(base: Path, data: Path, out: Path, *words: str) -> int:
    codes: list[int] = []
    flags = ["--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "3", *words]
    tiny.run("sft", base, data, out, *flags, starter=lambda command: codes.append(main(command)))
    return codes[0]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "posttrain_state_0.pt"])
def test_a_hostile_checkpoint_runs_nothing(
    name: str, unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a manifest to fit, as somebody would make it who hands it on."""
    out = tmp_path / "out"
    shutil.copytree(unfinished / "out", out)
    (out / "manifest.json").unlink()
    first, last = checkpoints(out)
    shutil.rmtree(last)
    assert (first / name).exists(), sorted(path.name for path in first.iterdir())
    torch.save({"state": Hostile(tmp_path / "mark")}, first / name)
    (first / "manifest.json").unlink()
    write_manifest(first)
    code = train(unfinished / "model", unfinished / "rows.jsonl", out, "--resume_from_checkpoint", str(first))
    said = capsys.readouterr().err
    assert not (tmp_path / "mark").exists()
    assert code == 2 and "Traceback" not in said and "holds objects that are no tensors" in said, said
