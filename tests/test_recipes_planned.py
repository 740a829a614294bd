"""Every recipe is planned for the machine that it names, with its model's shape and long rows for the hub's."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from planned_models import QWEN2_05B, activations_counted_once, write_config
from test_recipes import NAMED
from tiny import write_rows

from posttrain.config import load_yaml
from posttrain.experiment.params import stage_config
from posttrain.planning import plan
from posttrain.planning.report import Plan

SHAPES: dict[str | None, dict[str, Any]] = {
    "Qwen/Qwen2-0.5B": QWEN2_05B,
    "Qwen/Qwen2-0.5B-Instruct": QWEN2_05B,
    "Qwen/Qwen2.5-0.5B": QWEN2_05B,
    "Qwen/Qwen2.5-0.5B-Instruct": QWEN2_05B,
    "Qwen/Qwen2.5-7B": QWEN2_05B
    | {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    | {"num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "Qwen/Qwen3-8B-Base": {
        **{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "head_dim": 128},
        **{"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "max_position_embeddings": 32768, "tie_word_embeddings": False},
    },
    None: QWEN2_05B
    | {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
    | {"num_attention_heads": 4, "num_key_value_heads": 2},
}
NUM_PARAMETERS = {"Qwen/Qwen2.5-7B": 7_615_616_512, "Qwen/Qwen3-8B-Base": 8_190_735_360, None: 4_198_656}
QUESTION, ANSWER = "12 and 34 and 56? " * 20, "78 and 90, #### 1 " * 60  # of some 1,000 tokens together


@pytest.fixture(scope="module", autouse=True)
def counted_once() -> Iterator[None]:
    with activations_counted_once():
        yield


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of each set, and a folder with a config for each base model."""
    here = tmp_path_factory.mktemp("stand-ins")
    user, good, bad = (
        [{"role": role, "content": text}]
        for role, text in (("user", QUESTION), ("assistant", ANSWER), ("assistant", ANSWER[:-40]))
    )
    rows = {
        "sft": {"messages": [*user, *good]},
        "preference": {"prompt": user, "chosen": good, "rejected": bad},
        "prompts": {"prompt": user, "solution": "#### 1"},
    }
    for name, row in rows.items():
        for split, count in (("train", 64), ("validation", 4)):
            (here / name).mkdir(exist_ok=True)
            write_rows(here / name / f"{split}.jsonl", [row] * count)
    for number, (name, shape) in enumerate(SHAPES.items()):
        write_config(here / f"model-{number}", shape)
        (here / f"model-{number}/name").write_text(json.dumps(name))
    return here


@functools.cache
def content(path: Path) -> dict[str, Any]:
    return load_yaml(path)


def planned(path: Path, method: str, stand_ins: Path) -> Plan:
    base = content(path)["prepare"]["base_model"]
    model = stand_ins / f"model-{list(SHAPES).index(base)}"
    kind = {"sft": "sft", "reward": "preference", "dpo": "preference"}.get(method, "prompts")
    words = (
        f"--params {path} --model_name_or_path {model} --dataset_name {stand_ins / kind} --cache_dir {stand_ins}/cache"
    )
    section = content(path)[method]
    if "reward_model_name_or_path" in section:
        words += f" --reward_model_name_or_path {model}"
    config, launch = stage_config(method, words.split())
    if launch.accelerate_config in ("fsdp2", "zero3"):
        launch.num_processes = 8
        return plan(config, launch, gpu="a100-80gb")
    return plan(config, launch, gpu=None if launch.accelerate_config == "cpu" else "rtx4090")


@pytest.mark.parametrize("path", NAMED)
@pytest.mark.parametrize("method", ["sft", "dpo", "rloo"])  # rloo holds the most models, dpo the longest rows
def test_it_fits_the_machine_that_it_names(path: Path, method: str, stand_ins: Path) -> None:
    found = planned(path, method, stand_ins)
    base = content(path)["prepare"]["base_model"]
    if method == "sft":
        assert found.num_parameters == NUM_PARAMETERS.get(base, 494_032_768)
    assert found.fits, f"{found.peak / 2**30:.1f} GiB"
    assert found.steps.number >= 1
