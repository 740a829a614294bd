"""docs/flags.md, made from the flags: `python -m posttrain.config.flag_table` writes it."""

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

from posttrain.config.common import CommonConfig, DataFlags, DatasetSource
from posttrain.config.effects import refused, without_effect
from posttrain.config.fields import flags_of
from posttrain.config.flag_words import default_of, kind_of, written
from posttrain.config.methods import METHODS
from posttrain.config.parse import FileOption, LaunchOptions
from posttrain.config.renamed import refused_names

# Defaults of TRL 1.16.0 that are other ones here; a name may be of one method only.
THEIR_DEFAULTS = {"gradient_checkpointing": "true", "reward.lora_task_type": "CAUSAL_LM"}
# Flags of posttrain alone.
OWN = {
    *("metrics_file", "plots_file", "provenance_file", "record_steps", "work_dir", "cache_dir", "config", "recompute"),
    "dpo.ref_model_name_or_path",
    *("reward_model_revision", "reward_model_dtype", "soft_punish_cache", "reward_workers", "reward_timeout"),
    *("max_reward_failures", "judge_base_url", "judge_rubric", "judge_parameters", "judge_concurrency"),
    *("judge_timeout", "judge_retries", "max_prompt_tokens", "long_prompts", "rollout_batch_size"),
    *("dynamic_sampling", "max_resampling_rounds", "kl_estimator", "eval_temperature", "eval_top_p", "eval_top_k"),
    *("eval_min_p", "eval_repetition_penalty", "eval_max_completion_length", "max_nonfinite_steps"),
    "vllm_weights_dir",
}
OWN_OF_MIXTURES = {"seed"}
FOR_ALL = "for every method; TRL has it for {}"
DIFFERS = {
    "bf16": "unset: on where the GPU has it; without hardware for it a warning, and float32",
    "fp16": "without hardware for it a warning, and float32",
    "tf32": "without hardware for it a warning, and float32",
    "gradient_checkpointing": "off on a CPU, where time is short and memory is not",
    "activation_checkpointing": "taken with older transformers, too",
    "activation_checkpointing_kwargs": "taken with older transformers, too",
    "torch_compile": "its layers, once for rows of any length; sampling is not compiled",
    "neftune_noise_alpha": "scaled by the length of each sequence, not of the padded row",
    "include_num_input_tokens_seen": "all and non_padding count the same: there is no padding",
    "do_eval": "evaluates after the last step where eval_strategy is no",
    "dataloader_pin_memory": "unset: on where there is a GPU",
    "ddp_find_unused_parameters": "unset: off, as every parameter takes part",
    "ddp_backend": "of no account in one process",
    "fsdp": "refused in one process",
    "accelerator_config": "without dispatch_batches: each process reads its own rows",
    "lora_target_modules": "checked before weights load; a single word may be a name (TRL takes it for an expression)",
    "lora_target_parameters": "names are checked before weights load",
    "lora_modules_to_save": "names are checked before weights load; the score of a reward model is among them unasked",
    "lora_dropout": "unset: 0 where there are lora_target_parameters, for which peft has none",
    "activation_offloading": FOR_ALL.format("sft, dpo and reward"),
    "lora_task_type": "SEQ_CLS is for reward, where it is the default",
    "reward.lora_task_type": "the score head is kept",
    "load_in_4bit": "computes in bfloat16 where the GPU has it and dtype is unset; without a GPU refused",
    "load_in_8bit": "without a GPU refused",
    "eos_token": FOR_ALL.format("sft and reward"),
    "pad_token": FOR_ALL.format("sft, dpo and reward"),
    "chat_template_path": FOR_ALL.format("sft and reward"),
    "dataset_num_proc": "unset: several where rows are many; the same tokens whatever the number; for all methods",
    "test_split_size": "drawn by the seed, the same in every process; of dataset_name as well",
    "dataset_name": "a file or a folder, too",
    "reward_model_name_or_path": "an adapter, TASK:MODEL or judge:MODEL, too",
    "reward_funcs": "path/to/file.py:function, judge:MODEL and TASK:MODEL, too",
    "num_completions_to_print": "unset: 4, not all",
    "vllm_mode": "the server is vLLM's own",
    "vllm_server_timeout": "also how long a lost server is waited for",
    "dataset_kwargs": "skip_prepare_dataset alone, which rows with input_ids do not need",
    "packing_strategy": "wrapped: documents do not see each other",
    "assistant_only_loss": "with any chat template",
    "log_completions": "parquet files beside the checkpoints, and text on the terminal",
    "project": "of W&B and MLflow, too",
    "trackio_static_space_id": "unset: none is made",
    "push_to_hub": "the files of the model and its card; no tracker files and no training_args.bin",
    "hub_token": "reading finds it, too; it is kept in the environment and written nowhere",
    "hub_revision": "made if it is not there",
}
LAUNCHING = "as accelerate"
HEAD = """# Flags

Every flag of every method, made from the code (`make docs`). Beside each stands how it compares with TRL 1.16.0: **as
TRL**: the same name, meaning and default; **differs**: how; **no effect**: accepted, and needless here (a line at the
start of a run says so); **refused**: a message says why, and what to use; **own**: posttrain alone has it. Flags of a
method overrule the common ones of the same name.

On the command line dashes and underscores are the same. A switch stands bare (`--packing`), as `--no_packing`, or with
a value (`--packing false`). A list is several words (`--loss_type sigmoid sft`), JSON is `'{"a": 1}'` or `a=1,b=2`,
and `none` unsets what may be unset. The same names are the keys of a YAML file (`--config`) and of the sections of
`params.yaml`.
"""


def flag_table() -> str:
    """The text of docs/flags.md."""
    lines = [HEAD, "## All methods", ""]
    for base in reversed(CommonConfig.__mro__):
        lines += _section(base, METHODS)
        if base is DataFlags:
            lines += ["Of each of `datasets`:", ""]
            of_one = flags_of(DatasetSource).items()
            lines += _table([(name, one, "own" if name in OWN_OF_MIXTURES else "as TRL") for name, one in of_one], "")
    for title, methods, bases in _groups_of_methods():
        lines += [f"## {title}", ""]
        for base in bases:
            lines += _section(base, methods)
    lines += ["## Launching, and files of flags", ""]
    lines += ["Handed to `accelerate launch`; they may stand in a file beside the flags, as may `env:`, a mapping.", ""]
    launch = flags_of(LaunchOptions) | flags_of(FileOption)
    lines += _table([(name, field, "own" if name in OWN else LAUNCHING) for name, field in launch.items()])
    lines += ["## Refused names", "", "Of older versions, or of what these commands do not do.", ""]
    lines += ["| name | |", "|---|---|"]
    lines += [f"| `--{name}` | {_cell(reason)} |" for name, reason in sorted(refused_names().items())]
    return "\n".join(lines) + "\n"


def _groups_of_methods() -> list[tuple[str, dict[str, type[CommonConfig]], list[type]]]:
    """Classes of flags that are not common, by the methods that have them: title, methods, classes."""
    groups: dict[tuple[str, ...], list[type]] = {}
    for cls in METHODS.values():
        for base in cls.__mro__:
            if base in CommonConfig.__mro__ or not inspect.get_annotations(base):
                continue
            users = tuple(name for name, other in METHODS.items() if base in other.__mro__)
            if base not in groups.setdefault(users, []):
                groups[users].append(base)
    ordered = sorted(groups, key=lambda users: (min(list(METHODS).index(name) for name in users), -len(users)))
    return [(" and ".join(users), {name: METHODS[name] for name in users}, groups[users]) for users in ordered]


def _section(base: type, methods: dict[str, type[CommonConfig]]) -> list[str]:
    """Heading and table of a class of flags; nothing where it has none, or all of its flags are overruled."""
    rows = []
    for name in inspect.get_annotations(base):
        users = [cls for cls in methods.values() if name in flags_of(cls) and _definer(cls, name) is base]
        if users:
            rows.append((name, flags_of(users[0])[name], _status(name, users)))
    title = (base.__doc__ or "").partition("\n")[0]
    return [f"### {title}", "", *_table(rows)] if rows else []


def _definer(cls: type, name: str) -> type:
    return next(base for base in cls.__mro__ if name in inspect.get_annotations(base))


def _status(name: str, users: list[type[CommonConfig]]) -> str:
    """How a flag compares with TRL's, for the methods that take this definition of it."""
    remarks: dict[str, list[str]] = {}
    for cls in users:
        remarks.setdefault(_status_of(name, cls), []).append(cls.method)
    if len(remarks) == 1:
        return next(iter(remarks))
    return "; ".join(f"{', '.join(methods)}: {remark}" for remark, methods in remarks.items())


def _status_of(name: str, cls: type[CommonConfig]) -> str:
    known = f"{cls.method}.{name}"
    if name in OWN or known in OWN:
        return "own"
    if name in refused(cls):
        return f"refused: {refused(cls)[name]}"
    difference = DIFFERS.get(known, DIFFERS.get(name))
    if name in without_effect(cls):
        return f"no effect: {without_effect(cls)[name]}"
    theirs = THEIR_DEFAULTS.get(known, THEIR_DEFAULTS.get(name))
    if theirs is not None:
        return f"differs: TRL's default is {theirs}; here {difference}"
    return f"differs: {difference}" if difference else "as TRL"


def _table(rows: list[tuple[str, dataclasses.Field[Any], str]], dashes: str = "--") -> list[str]:
    lines = ["| flag | value | default | meaning | here |", "|---|---|---|---|---|"]
    for name, field, status in rows:
        meaning, choices = field.metadata["help"], field.metadata["choices"]
        if choices and not all(choice in meaning for choice in choices):
            meaning += f" One of: {', '.join(choices)}."
        default = written(default_of(field))
        cells = [f"`{dashes}{name}`", kind_of(field), f"`{default}`" if default else "", _cell(meaning), _cell(status)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/flags.md")
    target.write_text(flag_table(), encoding="utf-8")
