"""Data sets of the hub, from a small one on loopback: what is loaded and streamed, and what is said of mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from helpers_data import write_jsonl
from hub_server import Hub, running_hub

# The libraries read where the hub is when they are imported, so a process of its own asks it; all questions in one go.
QUESTIONS = """
import json, os, sys, time
from pathlib import Path
from posttrain.config import DatasetSource, SFTConfig
from posttrain.data.splits import open_source
from posttrain.errors import UserError
answers = []
for flags in json.load(sys.stdin):
    role, began = flags.pop("role", "train"), time.monotonic()
    flags["datasets"] = [DatasetSource(**one) for one in flags.pop("datasets", [])]
    try:
        source = open_source(SFTConfig(model_name_or_path="model", explicit=frozenset(flags), **flags), role)
        rows = source and [row.columns["n"] for row in source.rows()]
        answers.append({"rows": rows, "later": source and [row.columns["n"] for row in source.rows(2)]})
        answers[-1]["digest"] = source and source.digest()
    except UserError as error:
        answers.append({"error": str(error), "page": error.page})
    answers[-1]["seconds"] = time.monotonic() - began
    answers[-1]["tables"] = len([*Path(os.environ["HF_HOME"]).rglob("*.arrow")])
print("ANSWERS" + json.dumps(answers))
"""
STREAMED = {"dataset_streaming": True, "max_steps": 3}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"dataset_name": "org/two"}, "several configurations; give one of them: one, two (--dataset_config)"),
    (
        {"dataset_name": "org/two", "dataset_config": "three"},
        "it has no configuration 'three'; give one of them: one, two (--dataset_config)",
    ),
    (
        {"dataset_name": "org/rows", "dataset_train_split": "dev"},
        "no split 'dev'; found train, test (--dataset_train_split)",
    ),
    ({"dataset_name": "org/none"}, "--dataset_name org/none: there is no such file or folder here"),
    ({"dataset_name": "a_folder"}, "--dataset_name a_folder: there is no such file or folder here"),
    ({"dataset_name": "org/gated"}, "--dataset_name org/gated: its authors grant access on request"),
    ({"dataset_name": "org/script"}, "hf download org/script --repo-type dataset --revision refs/convert/parquet"),
    ({"dataset_name": "org/empty"}, "holds no data files"),
    (
        {"datasets": [{"path": "org/rows"}, {"path": "org/rows", "split": "dev"}]},
        "no split 'dev'; found train, test (datasets[1].split)",
    ),
    ({"datasets": [{"path": "org/rows"}, {"path": "org/none"}]}, "datasets[1].path org/none: there is no such"),
]


def publish(hub: Hub, tmp_path: Path) -> None:
    def new(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    rows = new("rows")
    write_jsonl(rows / "train.jsonl", [{"n": number} for number in range(5)])
    write_jsonl(rows / "test.jsonl", [{"n": 9}])
    hub.add("datasets/org/rows", rows)
    hub.add("datasets/org/gated", rows, gated=True)
    shards = new("shards")
    for shard in range(2):
        table = datasets.Dataset.from_list([{"n": 3 * shard + number} for number in range(3)])
        table.to_parquet(shards / "data" / f"train-{shard:05d}-of-00002.parquet")
    hub.add("datasets/org/shards", shards)
    two = new("two")
    for number, name in enumerate(("one", "two"), start=1):
        write_jsonl(two / f"{name}.jsonl", [{"n": number}])
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("one", "two"))
    (two / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    hub.add("datasets/org/two", two)
    (new("script") / "script.py").write_text("raise SystemExit")
    hub.add("datasets/org/script", tmp_path / "script")
    (new("empty") / "notes.xyz").write_text("none")
    hub.add("datasets/org/empty", tmp_path / "empty")


def ask(hub: Hub, home: Path, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home)}
    result = subprocess.run(
        [sys.executable, "-c", QUESTIONS],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return list(json.loads(result.stdout.partition("ANSWERS")[2]))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


def test_rows_of_the_hub(home: Path) -> None:
    names: list[tuple[dict[str, Any], list[int]]] = [
        ({"dataset_name": "org/rows"}, [0, 1, 2, 3, 4]),
        ({"dataset_name": "org/shards"}, [0, 1, 2, 3, 4, 5]),
        ({"dataset_name": "org/two", "dataset_config": "two"}, [2]),
        ({"datasets": [{"path": "org/rows", "data_files": "test.jsonl"}, {"path": "org/two", "name": "one"}]}, [9, 1]),
        ({"dataset_name": "org/rows", "role": "test"}, [9]),
        ({"dataset_name": "org/shards", "role": "test"}, []),
    ]
    questions = [flags for flags, _ in names] + [flags for flags, _ in MISTAKES]
    with running_hub() as hub:
        publish(hub, home)
        answers = ask(hub, home / "asked", [flags | STREAMED for flags in questions] + questions)
        hub.is_gone = True
        offline = ask(hub, home / "offline", [{"dataset_name": "org/rows"}, {"dataset_name": "a_folder"}])
    streamed, loaded = answers[: len(questions)], answers[len(questions) :]
    assert streamed[-1]["tables"] == 0 < loaded[-1]["tables"]  # of streamed rows nothing is kept
    for answers in (streamed, loaded):
        for (_, expected), answer in zip(names, answers, strict=False):
            assert (answer["rows"] or [], answer["later"] or []) == (expected, expected[2:])
        for (_, expected_text), answer in zip(MISTAKES, answers[len(names) :], strict=True):
            assert expected_text in answer["error"]
            assert answer["page"].startswith("troubleshooting.md#") and answer["seconds"] < 5
    assert len({answer["digest"] for answer in streamed[:5]}) == 5
    for answer in offline:
        assert "cannot be reached" in answer["error"] and answer["seconds"] < 20
