"""What is measured: points, of which each series varies one thing around a stated one; and their models and rows."""

from __future__ import annotations

import dataclasses
import json
import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.material import MODELS, VOCABULARY, make_model

_MOST_POSITIONS = 16_384
_SPECIAL = ["<|end|>", "<|pad|>", "<|endoftext|>"]
_STEPS_OF_ROWS = 16  # optimizer steps that the rows suffice for; then the run begins another pass over them


@dataclass(frozen=True)
class Point:
    """A run to be measured.

    Args:
        series: that it belongs to.
        value: what the series varies, here.
        method: of posttrain.
        model: a key of MODELS.
        rows: documents (sft), pairs (dpo) or prompts (grpo) an optimizer step, over all processes.
        prompt: tokens of a prompt; 0 for sft.
        completion: tokens of a document, or of each completion.
        group: completions of a prompt (grpo).
        processes: that train; the cores are divided among them.
        cores: in all.
        launcher: the name of an accelerate configuration, where there are several processes.
    """

    series: str
    value: str
    method: str = "sft"
    model: str = "4M"
    rows: int = 8
    prompt: int = 0
    completion: int = 256
    group: int = 1
    processes: int = 1
    cores: int = 1
    launcher: str | None = None

    def flags(self, material: Path, output: Path) -> list[str]:
        """The words after `posttrain METHOD`."""
        given: dict[str, object] = {
            "model_name_or_path": material / "models" / self.model,
            "dataset_name": material / f"{self._rows_name}.jsonl",
            "output_dir": output,
            "cache_dir": material / "cache",
            "max_steps": 100_000,  # the measurement ends it
            "per_device_train_batch_size": self.rows * self.group // self.processes,
            "learning_rate": "1e-5",
            "lr_scheduler_type": "constant",
            "gradient_checkpointing": "false",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": "true",
        }
        if self.method == "grpo":
            given |= {
                "reward_funcs": "benchmarks.bench_reward.share_of_thirds",
                "num_generations": self.group,
                "max_completion_length": self.completion,
            }
        else:
            given |= {"max_length": _MOST_POSITIONS, "train_sampling_strategy": "sequential"}
        if self.processes > 1:
            given |= {"num_processes": self.processes, "accelerate_config": self.launcher}
        return [text for name, value in given.items() for text in (f"--{name}", str(value))]

    @property
    def _rows_name(self) -> str:
        return f"{self.method}-{self.prompt}-{self.completion}-{self.rows}"

    def write_rows(self, material: Path) -> None:
        """Rows of random tokens; of texts, each letter is one."""
        draw = np.random.default_rng(0)

        def text(count: int) -> str:
            return "".join(draw.choice(list(string.ascii_lowercase), count))

        def row() -> dict[str, object]:
            if self.method == "sft":
                ids = draw.integers(len(_SPECIAL), VOCABULARY, self.completion)
                ids[-1] = 0  # the end
                return {"input_ids": ids.tolist()}
            if self.method == "grpo":
                return {"prompt": text(self.prompt)}
            # The end token is added to each.
            sides = {side: text(self.completion - 1) for side in ("chosen", "rejected")}
            return {"prompt": text(self.prompt), **sides}

        lines = [json.dumps(row()) + "\n" for _ in range(self.rows * _STEPS_OF_ROWS)]
        (material / f"{self._rows_name}.jsonl").write_text("".join(lines), encoding="utf-8")


SFT = Point("", "")
DPO = Point("", "", method="dpo", prompt=256, completion=128)
GRPO = Point("", "", method="grpo", rows=1, prompt=256, completion=64, group=8)
TOKENS = 8192  # of a step, where the sequence length varies


def _varied(series: str, base: Point, **changes: list[object]) -> list[Point]:
    """A point for each value of the first keyword; others, of the same number of values, go along with it."""
    values = next(iter(changes.values()))
    rows = zip(*changes.values(), strict=True)
    return [
        dataclasses.replace(base, series=series, value=str(value), **dict(zip(changes, row, strict=True)))
        for value, row in zip(values, rows, strict=True)
    ]


def all_series(cores: int) -> dict[str, list[Point]]:
    """Every series by its name.

    Args:
        cores: that a run has.
    """
    lengths = [128, 256, 512, 1024, 2048, 4096, 8192]
    found = [
        *_varied("batch", SFT, rows=[1, 2, 4, 8, 16, 32]),
        *_varied("length", SFT, completion=lengths, rows=[TOKENS // length for length in lengths]),
        *_varied("size", SFT, model=list(MODELS)),
        *_varied("pairs", DPO, rows=[1, 2, 4, 8, 16]),
        *_varied("prompt", DPO, prompt=[16, 64, 256, 1024, 4096], rows=[4] * 5),
        *_varied("group", GRPO, group=[2, 4, 8, 16, 32, 64]),
    ]
    for model in ("4M", "27M"):
        base = dataclasses.replace(SFT, series=f"processes {model}", model=model)
        found.append(dataclasses.replace(base, value="1 process, 1 core"))
        found.append(dataclasses.replace(base, value="1 process, 2 cores", cores=2))
        for name, launcher in {"DDP": "multi_gpu", "FSDP2": "fsdp2"}.items():
            value = f"2 processes of 1 core, {name}"
            found.append(dataclasses.replace(base, value=value, cores=2, processes=2, launcher=launcher))
    series: dict[str, list[Point]] = {}
    for point in found:
        if not point.series.startswith("processes"):
            point = dataclasses.replace(point, cores=cores)
        series.setdefault(point.series, []).append(point)
    return series


SMALLEST = Point("batch", "2", model="0.5M", rows=2, completion=16)  # to see whether the measurement runs


def write_models(material: Path, names: list[str]) -> None:
    """Random models, with a tokenizer to which each letter is a token."""
    tokenizer = letters()
    for name in names:
        tokenizer.save_pretrained(material / "models" / name)
        sizes = MODELS[name] | {"max_position_embeddings": _MOST_POSITIONS}
        make_model(tokenizer, **sizes).save_pretrained(material / "models" / name)


def letters() -> PreTrainedTokenizerFast:
    """A tokenizer to which each letter is a token."""
    known = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    others = [f"<{index}>" for index in range(len(known), VOCABULARY)]  # in rows of ids alone
    plain = Tokenizer(models.BPE({name: index for index, name in enumerate([*known, *others])}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    marks = dict(zip(("eos_token", "pad_token", "unk_token"), _SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=plain, **marks)
