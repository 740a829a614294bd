"""What is compared: cells, each a method, what of the model is trained, a precision, rows and a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.material import (
    MODELS,
    make_model,
    make_tokenizer,
    pair_rows,
    prompt_rows,
    sft_rows,
    solution_pairs,
    texts_of,
)

METHODS = ("sft", "packed", "reward", "dpo", "grpo", "rloo")
TUNINGS = ("full", "lora")
PRECISIONS = ("float32", "bf16")
DATA_SETS = ("gsm8k", "hh")
SIZES = ("4M", "27M")
SAMPLING = ("grpo", "rloo")  # what they train on is drawn, and differs between the sides
FILES = ("gsm8k_train.jsonl", "gsm8k_model_solutions.jsonl", "hh_harmless_test.jsonl.gz")
NAMES = {"sft": "SFT", "packed": "SFT, packed", "reward": "reward", "dpo": "DPO", "grpo": "GRPO", "rloo": "RLOO"}
NAMES |= {"gsm8k": "GSM8K", "hh": "hh-rlhf", "lora": "LoRA"}

_KINDS = {"sft": "texts", "packed": "texts", "reward": "pairs", "dpo": "pairs", "grpo": "prompts", "rloo": "prompts"}
# Rows, packed rows of 1,024 tokens, pairs or completions a step.
BATCHES = {"sft": 8, "packed": 2, "reward": 8, "dpo": 8, "grpo": 32, "rloo": 32}
_LEARNING_RATES = {"reward": "1e-4", "dpo": "1e-4", "grpo": "1e-5", "rloo": "1e-5"}
_OF_LARGER = ("sft", "dpo", "grpo")  # methods of the default set
_NUM_ROWS = 256
_LEARNT_FROM = 2000  # rows of each data set that the tokenizer learns from


@dataclass(frozen=True)
class Cell:
    """A run that both sides do.

    Args:
        method: of METHODS; packed is SFT with rows of several documents.
        tuning: full, or lora (rank 16 on the layers that peft chooses, which are those of queries and values).
        precision: of products; weights are float32.
        data: whose rows.
        size: of the model, a key of MODELS.
    """

    method: str
    tuning: str
    precision: str
    data: str
    size: str

    @property
    def name(self) -> str:
        return "-".join((self.method, self.tuning, self.precision, self.data, self.size))

    @property
    def words(self) -> str:
        """For people."""
        return ", ".join(NAMES.get(word, word) for word in self.name.split("-"))

    @property
    def command(self) -> str:
        """The method as both sides call it."""
        return "sft" if self.method == "packed" else self.method

    @property
    def samples(self) -> bool:
        return self.method in SAMPLING

    def flags(self, material: Path, output: Path) -> list[str]:
        """The words after the method, the same for both sides.

        Args:
            material: folder that `write_material` has filled.
            output: folder of the run.
        """
        given: dict[str, Any] = {
            "model_name_or_path": material / (f"{self.size}-reward" if self.method == "reward" else self.size),
            "dataset_name": material / f"{_KINDS[self.method]}-{self.data}",
            "output_dir": output,
            "max_steps": 1000,  # the measurement ends it
            "per_device_train_batch_size": BATCHES[self.method],
            "learning_rate": _LEARNING_RATES.get(self.method, "1e-3"),
            "lr_scheduler_type": "constant",
            "dtype": "float32",
            "bf16": "true" if self.precision == "bf16" else "false",
            "gradient_checkpointing": "false",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": "true",
            "use_cpu": "true",
        }
        if self.tuning == "lora":
            # Without dropout, which both sides draw differently, so that losses can be compared.
            given |= {"use_peft": "true", "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0}
            if self.method == "reward":
                given |= {"lora_task_type": "SEQ_CLS"}
        if self.samples:
            given |= {
                "reward_funcs": "benchmarks.bench_reward.share_of_thirds",
                "num_generations": 8,
                "max_completion_length": 128,
                "shuffle_dataset": "false",
                "beta": 0.05 if self.method == "rloo" else 0,
            }
        else:
            given |= {"max_length": 1024, "train_sampling_strategy": "sequential"}
        if self.method == "packed":
            given |= {"packing": "true"}
        return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def chosen(
    methods: Sequence[str] | None,
    tunings: Sequence[str] | None,
    precisions: Sequence[str] | None,
    data_sets: Sequence[str] | None,
    sizes: Sequence[str] | None,
    everything: bool = False,
) -> list[Cell]:
    """The cells to be measured, in the order of the table.

    Args:
        methods, tunings, precisions, data_sets, sizes: values to take; None: those of the default set, which has pairs
            from hh-rlhf and other rows from GSM8K, and of the larger model full training by sft, dpo and grpo alone.
        everything: None stands for all values.
    """

    def cells() -> Iterator[Cell]:
        for size in sizes or SIZES:
            for method in methods or (METHODS if everything or size == SIZES[0] else _OF_LARGER):
                own_data = ("hh",) if _KINDS[method] == "pairs" else ("gsm8k",)
                own_tunings = TUNINGS if size == SIZES[0] else ("full",)
                for data in data_sets or (DATA_SETS if everything else own_data):
                    for tuning in tunings or (TUNINGS if everything else own_tunings):
                        for precision in precisions or PRECISIONS:
                            yield Cell(method, tuning, precision, data, size)

    return list(cells())


def write_material(folder: Path, data: Path, sizes: Sequence[str] = SIZES) -> None:
    """Rows of each kind and data set, and random models with a tokenizer of these texts.

    Args:
        folder: to write to.
        data: folder of FILES.
        sizes: of models.
    """
    import transformers

    pairs = [row for row in pair_rows(data, _LEARNT_FROM) if row["chosen"] != row["rejected"]]
    texts = sft_rows(data, _LEARNT_FROM)
    rows = {
        "texts-gsm8k": texts,
        "texts-hh": [{"text": row["chosen"]} for row in pairs],
        "pairs-gsm8k": solution_pairs(data),
        "pairs-hh": pairs,
        "prompts-gsm8k": prompt_rows(data, _LEARNT_FROM),
        "prompts-hh": [{"prompt": _before_the_answer(row["chosen"])} for row in pairs],
    }
    for name, some in rows.items():
        (folder / name).mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in some[:_NUM_ROWS])
        (folder / name / "train.jsonl").write_text(lines, encoding="utf-8")
    tokenizer = make_tokenizer(text for row in (*texts, *pairs) for text in texts_of(row))
    classes = {"": transformers.Qwen2ForCausalLM, "-reward": transformers.Qwen2ForSequenceClassification}
    for size in sizes:
        for suffix, cls in classes.items():
            tokenizer.save_pretrained(folder / (size + suffix))
            make_model(tokenizer, cls, **MODELS[size]).save_pretrained(folder / (size + suffix))


def _before_the_answer(dialogue: str) -> str:
    """A dialogue up to its last answer."""
    mark = "\n\nAssistant:"
    return dialogue[: dialogue.rindex(mark) + len(mark)]
