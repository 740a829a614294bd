"""What each process of a GRPO run holds in memory after loading, while it samples, and between two steps of training:
alone, and in two processes that share the weights in each of the ways there are. A random Qwen2 of 104 million
parameters in float32, on CPUs.

Every number is that of the process that holds the most, in MiB; in brackets, in sizes of the model (its weights in one
piece). `tensors` are the bytes of all tensors that Python knows of; `own` are the pages of memory that the process
shares with no other, the C library being told to give back at once what is freed (MALLOC_MMAP_THRESHOLD_).
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

SIZES = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "num_key_value_heads": 4,
    "vocab_size": 300,
}
WAYS = ("alone", "multi_gpu", "fsdp1", "fsdp2", "zero3")
MOMENTS = ("loaded", "sampling", "training")


def tensors() -> int:
    """Bytes of all tensors that Python knows of in this process, each memory counted once."""
    import torch

    found = {}
    for one in gc.get_objects():
        if issubclass(type(one), torch.Tensor) and not one.is_meta and one.layout == torch.strided:
            try:
                storage = one.untyped_storage()
                found[storage.data_ptr()] = max(storage.nbytes(), found.get(storage.data_ptr(), 0))
            except (RuntimeError, NotImplementedError):  # a wrapper around others, which are found as well
                continue
    return sum(found.values())


def observed(words: list[str], result: Path) -> int:
    """Runs a command of posttrain in this process, and writes down the most that was held at each moment."""
    import psutil
    from transformers import TrainerCallback

    from posttrain.cli import main
    from posttrain.methods.policy import PolicyMethod
    from posttrain.rollout.collect import Collector
    from posttrain.trainer import PostTrainer

    most: dict[str, dict[str, int]] = {}

    def look(moment: str) -> None:
        gc.collect()
        now = {"tensors": tensors(), "own": psutil.Process().memory_full_info().uss}
        before = most.get(moment, {})
        most[moment] = {name: max(value, before.get(name, 0)) for name, value in now.items()}

    class Look(TrainerCallback):
        def on_step_end(self, *args: object, **kwargs: object) -> None:
            look("training")

    init, generate, callbacks = PostTrainer.__init__, Collector._generate, PolicyMethod.callbacks

    def loaded(self: PostTrainer, *args: object, **kwargs: object) -> None:
        look("loaded")
        init(self, *args, **kwargs)

    def generated(self: Collector, *args: object) -> object:
        found = generate(self, *args)
        look("sampling")
        return found

    PostTrainer.__init__, Collector._generate = loaded, generated
    PolicyMethod.callbacks = lambda self: [*callbacks(self), Look()]
    code = main(words)
    Path(f"{result}.{os.environ.get('RANK', '0')}").write_text(json.dumps(most), encoding="utf-8")
    return code


def run(way: str, folder: Path, more: list[str]) -> dict[str, dict[str, int]]:
    """The most that any process of a run holds, by moment."""
    from tiny import run_policy

    from posttrain.config import LaunchOptions
    from posttrain.launch import launcher_command, launcher_environment

    words: list[str] = []
    out = folder / way
    batch = "8" if way == "alone" else "4"
    more = ["--per_device_train_batch_size", batch, "--max_completion_length", "16", "--max_steps", "3", *more]
    run_policy("grpo", folder / "base", folder / "prompts.jsonl", out, *more, starter=words.extend)
    script = [str(Path(__file__).resolve()), "--inside", str(folder / f"{way}.json"), json.dumps(words)]
    command, environment = [sys.executable, *script], os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    if way != "alone":
        options = LaunchOptions(num_processes=2, accelerate_config=way)
        command, environment = launcher_command(options, script), environment | launcher_environment(options)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    found = [json.loads(file.read_text()) for file in folder.glob(f"{way}.json.*")]
    return {
        moment: {name: max(one[moment][name] for one in found) for name in ("tensors", "own")} for moment in MOMENTS
    }


def main() -> int:
    if sys.argv[1:2] == ["--inside"]:
        return observed(json.loads(sys.argv[3]), Path(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[way for way in WAYS if way != "zero3"])
    parser.add_argument("words", nargs="*", help="of the command, behind --; such as -- --beta 0.04")
    asked = parser.parse_args()
    from tiny import sums, write_prompts

    from posttrain.embedded.tokenizer import train_tokenizer, write_tokenizer
    from posttrain.embedded.weights import count_parameters, write_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base").mkdir()
        write_tokenizer(train_tokenizer([text for row in sums(40) for text in row], 300), folder / "base")
        write_model(SIZES, 1, folder / "base")
        write_prompts(folder / "prompts.jsonl", 24)
        model = 4 * count_parameters(SIZES)
        print(f"the model: {model / 2**20:,.0f} MiB")
        print("| | " + " | ".join(f"{moment}: tensors | {moment}: own" for moment in MOMENTS) + " |")
        for way in asked.ways:
            held = run(way, folder, asked.words)
            cells = [
                f"{held[m][n] / 2**20:,.0f} ({held[m][n] / model:.2f})" for m in MOMENTS for n in ("tensors", "own")
            ]
            print(f"| {way} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
