"""What benchmarks/equivalence.py runs: the ways to cut a step of eight rows, the methods, and options beside them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from posttrain.cli import main
from posttrain.config.methods import DPO_LOSSES
from posttrain.config.policy import GRPO_LOSSES
from posttrain.embedded import task

ROWS = 8  # of a step: documents, pairs or completions


@dataclass(frozen=True)
class Cut:
    """How the rows of a step are handed out.

    Args:
        title: as the page names it.
        way: name of an accelerate configuration, for two processes; None: one process.
        rows: of a process in a micro-batch.
    """

    title: str
    way: str | None
    rows: int

    @property
    def words(self) -> list[str]:
        accumulated = ROWS // (self.rows * (1 if self.way is None else 2))
        return f"--per_device_train_batch_size {self.rows} --gradient_accumulation_steps {accumulated}".split()


WHOLE = Cut("1 × 8", None, 8)
DDP = Cut("2 processes × 4, DDP", "multi_gpu", 4)
CUTS = [
    WHOLE,
    Cut("8 accumulated × 1", None, 1),
    Cut("2 accumulated × 4", None, 4),
    DDP,
    Cut("2 processes × 4, FSDP1", "fsdp1", 4),
    Cut("2 processes × 4, FSDP2", "fsdp2", 4),
    Cut("2 processes × 4, ZeRO-1", "zero1", 4),
    Cut("2 processes × 4, ZeRO-2", "zero2", 4),
    Cut("2 processes × 4, ZeRO-3", "zero3", 4),
]


@dataclass(frozen=True)
class Case:
    """A run, but for how its steps are cut.

    Args:
        title: as the page names it.
        method: of posttrain.
        flags: of its own.
        steps: of the optimizer.
        why: of one that depends on the cut, the reason.
    """

    title: str
    method: str
    flags: str = ""
    steps: int = 20
    why: str = ""


_LORA_ALONE = "--use_peft --lora_r 8 --lora_dropout 0"
_LORA = f"{_LORA_ALONE} --learning_rate 1e-2"
_REFERENCE = "--beta 0.1"
_TWO_STEPS = "--generation_batch_size 16"  # the second is off-policy

METHODS = [
    Case("SFT", "sft"),
    Case("SFT, packed", "sft", "--packing --max_length 256"),
    Case("reward", "reward"),
    Case("reward, LoRA", "reward", f"{_LORA_ALONE} --learning_rate 3e-3"),  # at 1e-2 rewards of 30 amplify rounding
    Case("DPO", "dpo"),
    Case("DPO, LoRA", "dpo", _LORA),
    Case("GRPO", "grpo", f"{_TWO_STEPS} {_REFERENCE}"),
    Case("GRPO, LoRA", "grpo", _LORA),
    Case("RLOO", "rloo"),
    Case("RLOO, LoRA", "rloo", _LORA),
]

_SHORT = 6  # steps
_OFF = f"{_TWO_STEPS} --num_iterations 2"
# method → flags, each on its own beside the method's defaults
_OPTIONS: dict[str, list[str]] = {
    "sft": [
        "--loss_type dft",
        "--packing --packing_strategy wrapped --max_length 64",
        "--train_sampling_strategy group_by_length",
        "--dataset_streaming",
        "--max_grad_norm 0.1",
        "--gradient_checkpointing",
        "--attn_implementation eager",
        "--include_num_input_tokens_seen all",
        "--eval_strategy steps --eval_steps 3 --test_split_size 11",
        "--optim adafactor",
    ],
    "reward": [
        "--center_rewards_coefficient 0.01",
        "--eval_strategy steps --eval_steps 3 --test_split_size 11",
    ],
    "dpo": [
        *(f"--loss_type {name} --label_smoothing 0.1" for name in DPO_LOSSES if name not in ("aot", "aot_unpaired")),
        "--loss_type sigmoid sft --loss_weights 1 0.5",
        "--f_divergence_type forward_kl",
        "--f_divergence_type js_divergence",
        "--f_divergence_type alpha_divergence",
        "--ld_alpha 0.5",
        "--use_weighting",
        "--precompute_ref_log_probs",
        "--sync_ref_model --ref_model_sync_steps 2",
        "--eval_strategy steps --eval_steps 3 --test_split_size 11",
    ],
    "grpo": [
        *(f"--loss_type {name} {_OFF}" for name in GRPO_LOSSES if name != "vespo"),
        f"--loss_type vespo --learning_rate 3e-4 {_OFF}",  # multiplies rounding of sums over completions
        f"--importance_sampling_level sequence {_OFF}",
        f"--beta 0.1 --kl_estimator k1 {_OFF}",
        f"--delta 1.5 {_OFF}",
        f"--off_policy_mask_threshold 0.01 {_OFF}",
        "--top_entropy_quantile 0.5",
        "--entropy_coef 0.01",
        "--use_adaptive_entropy --entropy_target 2",
        "--dynamic_sampling",
        "--mask_truncated_completions",
        "--scale_rewards batch",
        "--multi_objective_aggregation normalize_then_sum",
        "--beta 0.1 --sync_ref_model --ref_model_sync_steps 2",
        "--top_k 5 --repetition_penalty 1.2",
        "--num_generations 8",
        "--eval_strategy steps --eval_steps 3 --test_split_size 5",
    ],
    "rloo": [
        "--normalize_advantages",
        "--reward_clip_range 0 0.5",
        f"--kl_estimator k3 {_OFF}",
        "--num_generations 8",
    ],
}
OPTIONS = [Case(flags, method, flags, _SHORT) for method, several in _OPTIONS.items() for flags in several]

_DROPOUT = "--use_peft --lora_dropout 0.05"
_NOISE = "--neftune_noise_alpha 5"
_EXPERTS = "--router_aux_loss_coef 0.01"
_DRAWN = "random numbers are drawn for each forward pass"
_ROUNDED = "half precision rounds at 2⁻⁸, and what is added up otherwise is rounded otherwise"
_SORTED = "the loss compares all pairs of a forward pass with each other, sorted"
_ROUTER = "the routers' balance is that of the tokens of a forward pass, which are other ones"
UNEQUAL = [
    Case(_DROPOUT, "sft", f"{_DROPOUT} --learning_rate 1e-2", _SHORT, _DRAWN),
    Case(_NOISE, "sft", _NOISE, _SHORT, _DRAWN),
    Case("--loss_type aot", "dpo", "--loss_type aot", _SHORT, _SORTED),
    Case(_EXPERTS, "sft", f"--model_name_or_path {{moe}} {_EXPERTS}", _SHORT, _ROUTER),
    Case("--bf16", "sft", "--bf16", _SHORT, _ROUNDED),
    Case("--bf16", "dpo", "--bf16", _SHORT, _ROUNDED),
]

_SETS = {"sft": "sft", "reward": "preference", "dpo": "preference", "grpo": "prompts", "rloo": "prompts"}
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Differs from completion to completion, and not every completion of a prompt gets another one.
_REWARD = """
def digits(completions, **columns):
    texts = [completion[0]["content"] for completion in completions]
    return [sum(character.isdigit() for character in text) / (1 + len(text)) for text in texts]
"""
# An epoch ends within the run, with rows that do not suffice for a step.
_NUM_ROWS = 99


def write_material(folder: Path) -> None:
    """Rows and models: the embedded task in small, a model that has learnt to answer, and one with experts.

    Args:
        folder: where they go.
    """
    sizes = {(name, split): _NUM_ROWS if split == "train" else 8 for name in task.SETS for split in task.SPLITS}
    problems = task.draw_sets(0, sizes)
    task.write_data(problems, 0, 0.7, folder / "data")
    task.write_base_model(task.tokenizer_texts(problems["sft", "train"]), 512, _SIZES, 0, folder / "base")
    (folder / "reward.py").write_text(_REWARD, encoding="utf-8")
    _write_experts(folder)
    learnt = f"--num_train_epochs 12 --learning_rate 3e-3 --per_device_train_batch_size 16 --output_dir {folder}/start"
    assert (
        main(["sft", *f"--model_name_or_path {folder}/base --dataset_name {folder}/data/sft {learnt}".split(), *_QUIET])
        == 0
    )


def _write_experts(folder: Path) -> None:
    shutil.copytree(folder / "base", folder / "moe")
    (folder / "moe/model.safetensors").unlink()
    shape = json.loads((folder / "base/config.json").read_text(encoding="utf-8"))
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    }
    torch.manual_seed(0)
    Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**{name: shape[name] for name in (*_SIZES, "vocab_size")}, **experts)
    ).save_pretrained(folder / "moe")


_QUIET = "--save_strategy no --report_to none --disable_tqdm true".split()


def words_of(case: Case, cut: Cut, material: Path, out: Path) -> list[str]:
    """The command of a run, behind `posttrain`.

    Args:
        case: what is run.
        cut: how its steps are cut.
        material: where `write_material` wrote.
        out: folder of the run.
    """
    defaults = {
        "model_name_or_path": f"{material}/start",
        "dataset_name": f"{material}/data/{_SETS[case.method]}",
        "learning_rate": "1e-3",
        "max_steps": str(case.steps),
        "output_dir": f"{out}/model",
        "record_steps": f"{out}/steps.jsonl",
        "cache_dir": f"{material}/cache",
        "logging_steps": "1",
    }
    if case.method == "sft":
        defaults["assistant_only_loss"] = "true"
    if case.method in ("grpo", "rloo"):
        defaults |= {"reward_funcs": f"{material}/reward.py:digits", "reward_workers": "0", "num_generations": "4"}
        defaults |= {"max_completion_length": "16"}
    own = case.flags.format(moe=f"{material}/moe").split()
    flags = [word for name, value in defaults.items() if f"--{name}" not in own for word in (f"--{name}", value)]
    return [case.method, *flags, *own, *cut.words, *_QUIET]


def can_run(cut: Cut) -> bool:
    """Whether what a cut needs is installed."""
    return not (cut.way or "").startswith("zero") or importlib.util.find_spec("deepspeed") is not None
