"""What is trained while it is killed, and what must come out of it all the same."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

from kills import REWARDS, Done, Kill, Server
from tiny import write_base, write_preference, write_prompts, write_sft

from posttrain.provenance import deterministic

# A run of 9 steps, where a log line, a checkpoint and an epoch end at different steps each, and so do generations.
COMMON = {
    "output_dir": "out",
    "cache_dir": "cache",
    "metrics_file": "metrics/run.json",
    "plots_file": "plots/run.csv",
    "max_steps": 9,
    "logging_steps": 3,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 2,
    "report_to": "none",
    "disable_tqdm": "true",
}
ROWS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
COMPLETIONS = {
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 8,
    "reward_funcs": ["rewards.py:share_of_some", "rewards.py:length"],
    "reward_workers": 0,
}
LORA = {"use_peft": True, "lora_dropout": 0.1}
SYNC = {"sync_ref_model": True, "ref_model_sync_steps": 3, "beta": 0.2}
EVALUATION = {"eval_strategy": "steps", "eval_steps": 4, "test_split_size": 4}
WORK = {"work_dir": "work"}
STREAM = {"dataset_streaming": True}
DYNAMIC = {"dynamic_sampling": True, "steps_per_generation": 4, "num_iterations": 2, "gradient_accumulation_steps": 2}
ADAPTIVE = {"use_adaptive_entropy": True, "entropy_target": 9, "entropy_coef": 0.1, "top_entropy_quantile": 0.5}
SHOWN = {"log_completions": True, "num_completions_to_print": 0}
BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "test_split_size": 4}
EPOCHS = {"max_steps": -1, "num_train_epochs": 3, "dataset_train_split": "train[:11]"}
AT_THE_END = {"logging_strategy": "epoch", "save_strategy": "epoch", "eval_strategy": "epoch", "test_split_size": 2}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {
        "packing": ROWS | {"packing": True, "max_length": 64, "shuffle_dataset": True} | WORK | EVALUATION,
        "adapter, best at the end": ROWS | LORA | BEST | {"train_sampling_strategy": "group_by_length"},
        "streaming, noise": ROWS | STREAM | {"neftune_noise_alpha": 5},
        "two processes": ROWS | {"processes": 2},
    },
    "reward": {
        "epochs": ROWS | EPOCHS,
        "epochs, logged and saved at their ends": ROWS | EPOCHS | BEST | AT_THE_END,
        "adapter, evaluation": ROWS | LORA | EVALUATION | WORK,
        "streaming": ROWS | STREAM,
    },
    "dpo": {
        "moving reference": ROWS | SYNC | {"disable_dropout": False},
        "stored reference": ROWS | {"precompute_ref_log_probs": True, "loss_type": ["sigmoid", "sft"]} | WORK,
        "adapter": ROWS | LORA | EVALUATION,
        "streaming, two processes": ROWS | STREAM | {"processes": 2},
    },
    "grpo": {
        "dynamic sampling": COMPLETIONS | DYNAMIC | SHOWN | WORK,
        "moving reference, adaptive": COMPLETIONS | SYNC | ADAPTIVE,
        "adapter, evaluation": COMPLETIONS | LORA | {"beta": 0.1, "steps_per_generation": 4} | EVALUATION,
        "two processes": COMPLETIONS | {"processes": 2, "steps_per_generation": 3},
    },
    "rloo": {
        "moving reference": COMPLETIONS | SYNC | {"steps_per_generation": 2, "num_iterations": 2} | SHOWN,
        "adapter": COMPLETIONS | LORA | {"beta": 0.1} | WORK,
        "streaming, workers": COMPLETIONS | STREAM | {"reward_workers": 1, "steps_per_generation": 3},
    },
}
TIMINGS = ("tokens_per_second", "step_time", "peak_memory", "runtime", "per_second")


@dataclasses.dataclass(frozen=True)
class Run:
    """A command that is run again and again.

    Args:
        words: after `posttrain`.
        processes: it runs in.
    """

    words: list[str]
    processes: int


def write_material(folder: Path) -> Path:
    """A model and rows for all methods; returns the model."""
    write_sft(folder / "sft.jsonl", 30)
    write_preference(folder / "reward.jsonl", 30)
    write_preference(folder / "dpo.jsonl", 30)
    for method in ("grpo", "rloo"):
        write_prompts(folder / f"{method}.jsonl", 30)
    return write_base(folder / "base")


def run_of(method: str, variant: str, material: Path) -> Run:
    """The command of a variant, as it is run in a folder of its own."""
    flags = dict(VARIANTS[method][variant])
    processes = flags.pop("processes", 1)
    flags = {"model_name_or_path": material / "base", "dataset_name": material / f"{method}.jsonl"} | COMMON | flags
    words = [method]
    for name, value in flags.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return Run([word for word in words if word != "True"], processes)


def start(server: Server, run: Run, folder: Path, kill: Kill | None = None) -> Done:
    """One attempt, in a folder that earlier ones have left something in."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    return server.run(run.words, folder, run.processes, kill)


# -- what must be equal


def results(folder: Path) -> dict[str, Any]:
    """All that a finished run leaves, without its timings: the model folder, metrics, the curve, completions that were
    sampled, and the steps of the checkpoints that are kept."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        top, _, rest = name.partition("/")
        if top == "out" and not rest.startswith(("checkpoint-", "run.json", "provenance.json", ".lock")):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        if "completions_" in name:
            found[f"completions/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    found["history"] = json.loads((folder / "out/trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    metrics = json.loads((folder / "metrics/run.json").read_text(encoding="utf-8"))
    found["metrics"] = {k: v for k, v in metrics.items() if not any(word in k for word in TIMINGS)}
    about = json.loads((folder / "out/provenance.json").read_text(encoding="utf-8"))
    found["provenance"] = deterministic(about) | {"metrics": None}  # which are compared above
    with open(folder / "plots/run.csv", newline="", encoding="utf-8") as file:
        found["plots"] = list(csv.DictReader(file))
    found["checkpoints"] = sorted(path.name for path in folder.rglob("checkpoint-*"))
    return found


# -- what must hold right after a kill


def check_left(folder: Path) -> None:
    """Checkpoints under their own name are whole, and a model folder is whole or known not to be."""
    for checkpoint in folder.rglob("checkpoint-*"):
        if checkpoint.parent.name != "data":
            assert not wrong_with(checkpoint), f"{checkpoint}: {wrong_with(checkpoint)}"
    if list((folder / "out").glob("*.safetensors")):
        assert (folder / "out/manifest.json").is_file(), "a model folder of which nobody can say whether it is whole"


def wrong_with(folder: Path) -> list[str]:
    """Files that are not as the manifest says, or that it does not name."""
    if not (folder / "manifest.json").is_file():
        return ["manifest.json"]
    expected = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name in ("manifest.json", "README.md", "provenance.json"):  # a card may be edited
        files.pop(name, None)
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    return sorted(name for name in hashes.keys() | expected if hashes.get(name) != expected.get(name, {}).get("sha256"))


def strange(folder: Path) -> list[str]:
    """What a finished run should have taken away."""
    patterns = (".saving*", ".removing*", "damaged-*", ".*.saving", "*.part", "*.tmp")
    return sorted(str(path.relative_to(folder)) for pattern in patterns for path in folder.rglob(pattern))


# -- kills


@dataclasses.dataclass
class Campaign:
    """Kills of one command.

    Args:
        server: that runs it.
        run: the command.
        folder: of this campaign.
        seed: of the kills.

    Attributes:
        where: what each kill that hit was before, or "time".
        runs: how many were brought to their end.
    """

    server: Server
    run: Run
    folder: Path
    seed: int
    where: list[str] = dataclasses.field(default_factory=list)
    runs: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._whole = start(self.server, self.run, self.folder / "whole")
        assert self._whole.code == 0 and not self._whole.left_behind, self._whole.output
        self._expected = results(self.folder / "whole")
        self._kinds: dict[tuple[str, str], int] = {}
        for event in self._whole.events:
            rank, kind, _ = event.split(" ", 2)
            self._kinds[rank, kind] = self._kinds.get((rank, kind), 0) + 1

    def kill(self, number: int, at_most: int = 7) -> None:
        """Kills runs so many times, each at most so often, and brings all of them to their end."""
        while number > 0:
            folder = self.folder / f"run-{self.runs}"
            for left in range(min(number, at_most), -1, -1):
                done = start(self.server, self.run, folder, self._draw(folder, left) if left else None)
                if done.code == 0:
                    break
                self._after_kill(done, folder)
                number -= 1
            self._at_the_end(folder)

    def _draw(self, folder: Path, left: int) -> Kill:
        """A moment of what is still to come, so that the kills that are left spread over it: as often by the clock as
        in each place where files change. The last one falls when the finished model is written."""
        saved = [int(path.name.split("-")[1]) for path in folder.rglob("checkpoint-*")]
        share = self._rng.random() * (1 - max(saved, default=0) / 10) * min(1, 2 / left)
        kinds = [("", ""), *self._kinds]
        if (folder / "cache").is_dir():
            kinds = [key for key in kinds if key[1] != "data"]
        if left > 2:  # these come late in a run, which then has little left to do
            kinds = [key for key in kinds if key[1] not in ("removal", "model")]
        rank, kind = self._rng.choice(kinds) if left > 1 else ("0", "model")
        if not kind:
            return Kill(seconds=0.05 + share * self._whole.seconds)
        if kind == "model":
            share = self._rng.uniform(0.5 if left == 1 else 0, 1)
        number = 1 + int(share * self._kinds[rank, kind])
        return Kill(kind=kind, number=number, rank=int(rank), torn=self._rng.choice([1.0, self._rng.random()]))

    def _after_kill(self, done: Done, folder: Path) -> None:
        assert done.code == -9, done.output
        assert not done.left_behind, f"{done.left_behind} processes are left behind; {done.output}"
        self.where.append(done.events[0].split(" ", 1)[1] if done.events else "time")
        check_left(folder)

    def _at_the_end(self, folder: Path) -> None:
        told = f"after kills at {self.where}, in {folder}"
        found = results(folder)
        different = [name for name in self._expected.keys() | found if found.get(name) != self._expected.get(name)]
        assert not different, f"{sorted(different)} differ {told}"
        assert not strange(folder), f"{strange(folder)} are left {told}"
        if not self.runs:
            again = start(self.server, self.run, folder)
            assert again.code == 0 and results(folder) == self._expected, f"a finished run, run again: {again.output}"
        shutil.rmtree(folder)
        self.runs += 1
