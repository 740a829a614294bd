"""Token counts of the parity kit, and what importing the data package costs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import SFTConfig
from posttrain.data.prepare import prepare
from posttrain.data.tokenizer import load_tokenizer

KIT = Path(os.environ.get("POSTTRAIN_PARITY", Path(__file__).resolve().parents[2] / "shared" / "parity"))
RUNS: list[dict[str, Any]] = json.loads((KIT / "sft.json").read_text())["runs"] if (KIT / "sft.json").is_file() else []
DATA_FLAGS = ("max_length", "packing", "packing_strategy", "completion_only_loss", "assistant_only_loss")


@pytest.mark.skipif(not RUNS, reason="no parity kit")
@pytest.mark.parametrize("run", RUNS, ids=[run["title"] for run in RUNS])
def test_tokens_of_the_kit(tmp_path: Path, run: dict[str, Any]) -> None:
    flags = {name: value for name, value in run["flags"].items() if name in DATA_FLAGS}
    config = SFTConfig(
        model_name_or_path=str(KIT / "model"), dataset_name=str(KIT / run["data"]), cache_dir=str(tmp_path), **flags
    )
    data = prepare(config, load_tokenizer(config), "sft", "train")
    assert data is not None
    assert data.counts["tokens"] == run["steps"][0]["num_tokens"]


def test_data_needs_no_torch_and_no_transformers_to_be_imported() -> None:
    imports = "import sys, posttrain.data.prepare, posttrain.data.tokenizer"
    code = f"{imports}; print({{'torch', 'transformers', 'datasets'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
