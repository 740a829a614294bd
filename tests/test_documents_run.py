"""The commands and scripts of the documents that are marked `<!-- run -->` are run, in the order in which they stand,
on small data and models under the names that the documents give them."""

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from documents import DOCUMENTS, ROOT, blocks, text_of, words_of

from posttrain.cli import main
from posttrain.config import METHODS
from posttrain.embedded import task

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MARKED = [name for name in DOCUMENTS if any(block.mark == "run" for block in blocks(name))]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a person has after `make train-reward`, with small data and untrained models."""
    folder = tmp_path_factory.mktemp("workspace")
    problems = task.draw_sets(0, {(name, split): 96 for name in task.SETS for split in task.SPLITS})
    task.write_data(problems, 0, 0.7, folder / "data/embedded")
    task.write_base_model(task.tokenizer_texts(problems["sft", "train"]), 320, SIZES, 0, folder / "models/base")
    shutil.copytree(folder / "models/base", folder / "models/sft")
    ends = {"eos_token_id": list(range(3, 60))}  # completions are a few tokens long, as those of a trained one
    (folder / "models/sft/generation_config.json").write_text(json.dumps(ends), encoding="utf-8")
    data = ["--dataset_name", str(folder / "data/embedded/preference"), "--max_steps", "1", "--save_strategy", "no"]
    model = ["--model_name_or_path", str(folder / "models/sft"), "--output_dir", str(folder / "models/reward")]
    assert main(["reward", *data, *model]) == 0
    (folder / "accelerate_configs").symlink_to(ROOT / "accelerate_configs")
    return folder


@pytest.mark.parametrize("document", MARKED)
def test_marked_blocks_run(
    document: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    folders, printed = [], ""
    for block in blocks(document):
        if block.mark == "output":
            for part in block.text.split("…\n"):
                assert " ".join(part.split()) in " ".join(printed.split()), block.place
        if block.mark.startswith("file "):
            Path(block.mark.removeprefix("file ")).write_text(block.text, encoding="utf-8")
        if block.mark != "run":
            continue
        if block.language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for something by its old name
                exec(compile(block.text, block.place, "exec"), {})
            continue
        for command in block.commands():
            program, *words = words_of(command)
            assert program == "posttrain", f"{block.place}: only posttrain is run here"
            assert main(words) == 0, f"{block.place}: {command}"
            printed = capsys.readouterr().out
            if words[0] in METHODS and "--output_dir" in words:
                folders.append(workspace / words[words.index("--output_dir") + 1])
    assert all((folder / "trainer_state.json").is_file() for folder in folders)
    if Path(document).stem in METHODS:
        check_metrics(document, json.loads((folders[0] / "trainer_state.json").read_text(encoding="utf-8")))


def check_metrics(document: str, state: dict[str, Any]) -> None:
    """What a page says to watch is logged by the run that it shows."""
    logged = {name for line in state["log_history"] for name in line}
    for name in watched(document):
        name = name.replace("NAME", "accuracy_reward")
        # Some runs on these pages have no evaluation; its names are those of training.
        assert name in logged or name.removeprefix("eval_") in logged, f"{document}: nothing logs {name}"


def watched(document: str) -> list[str]:
    section = text_of(document).partition("## What to watch")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| ([^|]*) \|", section, flags=re.MULTILINE)
    return [name for cell in cells if "(with " not in cell for name in re.findall(r"`([^`]+)`", cell)]


def test_every_page_names_metrics_to_watch() -> None:
    assert all(len(watched(f"docs/{method}.md")) >= 4 for method in METHODS)
