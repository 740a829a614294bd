"""The card (README.md) of a finished model: what was trained on what, what came out, and how to load it.

It says what follows from parameters, data, code and versions, and nothing of the machine or the hour.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from posttrain.citations import CITATIONS
from posttrain.config import CommonConfig, PolicyConfig
from posttrain.config.common import RunFlags
from posttrain.config.fields import flags_of
from posttrain.config.flag_words import default_of
from posttrain.config.training import OptimisationFlags, PrecisionFlags, TrainingFlags
from posttrain.hub import is_on_hub
from posttrain.hub_access import BUILDERS
from posttrain.packages import version_of

METHODS = {
    "sft": "supervised fine-tuning (SFT)",
    "reward": "reward modelling (Bradley-Terry)",
    "dpo": "direct preference optimization (DPO)",
    "grpo": "group relative policy optimization (GRPO)",
    "rloo": "REINFORCE leave-one-out (RLOO)",
}
# What a reader looks for first, of the many numbers that a method logs.
METRICS = {
    "sft": ["loss", "mean_token_accuracy", "entropy"],
    "reward": ["loss", "accuracy", "margin", "brier_score", "calibration_error"],
    "dpo": ["loss", "rewards/accuracies", "rewards/margins", "mean_token_accuracy"],
    "grpo": ["loss", "reward", "reward_std", "kl", "entropy", "completions/mean_length", "completions/clipped_ratio"],
}
METRICS["rloo"] = METRICS["grpo"]
# Flags that are said elsewhere in the card, name servers and files, or may hold more than a setting.
UNTOLD = {
    *("model_name_or_path", "model_init_kwargs", "dataset_name", "datasets", "judge_base_url", "judge_parameters"),
    *("reward_workers", "reward_timeout", "rollout_batch_size", "log_completions", "num_completions_to_print"),
}
PACKAGES = ("posttrain", "torch", "transformers", "accelerate", "datasets", "tokenizers")


def write_card(
    folder: Path,
    config: CommonConfig,
    history: Sequence[Mapping[str, float]],
    num_steps: int,
    counts: Mapping[str, int],
    repository: str | None = None,
    hashes: Sequence[tuple[str, str]] = (),
) -> None:
    """Write README.md beside a model.

    Args:
        folder: With the model's other files in it.
        config: Of the run.
        history: The logged lines.
        num_steps: Optimizer steps that were taken.
        counts: Of the training rows, as they were prepared; may be empty.
        repository: Where on the hub the model goes, if it does.
        hashes: Of what it was made from, and their names.
    """
    parts = [
        _metadata(config),
        f"# {_title(config, repository)}",
        _summary(config, num_steps, counts),
        "## How to load it",
        f"```python\n{loading_code(config, _has_template(folder), repository)}\n```",
        *_results(config, history),
        *_settings(config),
        *_provenance(config, hashes),
        "## Versions",
        _versions(config),
        "## Citation",
        f"```bibtex\n{CITATIONS[config.method]}\n```",
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _metadata(config: CommonConfig) -> str:
    """The block that the hub reads; keys that are not known are left out."""
    base, datasets = base_on_hub(str(config.model_name_or_path)), [name for name, is_there in _data(config) if is_there]
    content: dict[str, Any] = {}
    if base:
        content["base_model"] = base
        content["base_model_relation"] = "adapter" if config.use_peft else "finetune"
    if datasets:
        content["datasets"] = datasets
    content["library_name"] = "peft" if config.use_peft else "transformers"
    content["pipeline_tag"] = "text-classification" if config.method == "reward" else "text-generation"
    content["tags"] = ["posttrain", config.method, *(["lora"] if config.use_peft else [])]
    return f"---\n{yaml.safe_dump(content, sort_keys=False)}---"


def base_on_hub(name: str) -> str | None:
    """The hub's name of the model that a run starts from; of a local folder, what its own card says."""
    if is_on_hub(name):
        return name
    base = _metadata_of(Path(name).expanduser() / "README.md").get("base_model")
    return base if isinstance(base, str) else None


def is_card(path: Path) -> bool:
    """Whether a README.md was written by `write_card`."""
    tags = _metadata_of(path).get("tags")
    return isinstance(tags, list) and "posttrain" in tags


def _metadata_of(path: Path) -> dict[Any, Any]:
    """What the hub would read in a README.md, which may be anything."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    block = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        content = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def _data(config: CommonConfig) -> list[tuple[str, bool]]:
    """The data sets, and whether they are the hub's."""
    if config.dataset_name:
        return [(config.dataset_name, is_on_hub(config.dataset_name))]
    found = []
    for source in config.datasets:
        if source.path in BUILDERS:
            files = source.data_files.values() if isinstance(source.data_files, dict) else [source.data_files or []]
            found += [(str(name), False) for names in files for name in ([names] if isinstance(names, str) else names)]
        else:
            found.append((source.path, is_on_hub(source.path)))
    return list(dict.fromkeys(found))


def _title(config: CommonConfig, repository: str | None) -> str:
    if repository:
        return repository.rpartition("/")[2]
    return f"{PurePath(str(config.model_name_or_path)).name}, trained with {config.method.upper()}"


def _link(name: str, is_there: bool, prefix: str = "") -> str:
    """A name of the hub with its page; of a path no more than what tells nothing of the machine."""
    if is_there:
        return f"[{name}](https://huggingface.co/{prefix}{name})"
    return f"`{shown_path(name)}` (local)"


def shown_path(text: str) -> str:
    """A path within the project as it stands, of any other its last part."""
    path = PurePath(text)
    return path.name if path.is_absolute() or text.startswith("~") or ".." in path.parts else path.as_posix()


def _summary(config: CommonConfig, num_steps: int, counts: Mapping[str, int]) -> str:
    what = f"A LoRA adapter (rank {config.lora_r}) for" if config.use_peft else "A version of"
    read = [f"{counts[name]:,} {name}" for name in ("rows", "tokens") if name in counts]
    base = str(config.model_name_or_path)
    lines = [
        f"{what} {_link(base, is_on_hub(base))}, trained by {METHODS[config.method]} with posttrain on "
        f"{' and '.join(_link(name, is_there, 'datasets/') for name, is_there in _data(config))}"
        + (f" ({', '.join(read)})" if read else "")
        + f" in {num_steps:,} step{'' if num_steps == 1 else 's'}."
    ]
    if config.method == "reward":
        lines.append("It gives a text one score; the higher, the better the answer.")
    rewards = config.reward_sources() if isinstance(config, PolicyConfig) else []
    if rewards:
        lines.append(f"Rewards: {', '.join(f'`{_reward(name)}`' for name in rewards)}.")
    return "\n".join(lines)


def _reward(source: str) -> str:
    """`path/to/rewards.py:function`, without the path if it tells of the machine."""
    path, colon, name = source.rpartition(":")
    return f"{shown_path(path)}:{name}" if colon and path.endswith(".py") else shown_path(source)


def _has_template(folder: Path) -> bool:
    settings = folder / "tokenizer_config.json"
    in_settings = settings.is_file() and '"chat_template"' in settings.read_text(encoding="utf-8")
    return in_settings or (folder / "chat_template.jinja").is_file()


def loading_code(config: CommonConfig, has_template: bool, repository: str | None) -> str:
    """Lines of Python that load the model and use it once.

    Args:
        config: Of the run.
        has_template: Whether the tokenizer has a chat template.
        repository: Of the hub; None: the folder that the lines are run in.
    """
    kind = "SequenceClassification" if config.method == "reward" else "CausalLM"
    name = f"AutoPeftModelFor{kind}" if config.use_peft else f"AutoModelFor{kind}"
    lines = [f"from transformers import {name}, AutoTokenizer"]
    if config.use_peft:
        lines = [f"from peft import {name}", "from transformers import AutoTokenizer"]
    where = f'path = "{repository}"' if repository else 'path = "."  # the folder of this file'
    labels = ", num_labels=1" if config.use_peft and config.method == "reward" else ""
    lines += ["", where, "tokenizer = AutoTokenizer.from_pretrained(path)"]
    lines += [f"model = {name}.from_pretrained(path{labels})"]
    question = '{"role": "user", "content": "What is 2 + 3?"}'
    if config.method == "reward":
        text = '"What is 2 + 3? 5"'
        if has_template:
            lines += [f'chat = [{question}, {{"role": "assistant", "content": "5"}}]']
            text = "tokenizer.apply_chat_template(chat, tokenize=False)"
        lines += [f'inputs = tokenizer({text}, add_special_tokens=False, return_tensors="pt")']
        return "\n".join([*lines, "print(model(**inputs).logits[0, 0].item())"])
    if has_template:
        lines += [
            "inputs = tokenizer.apply_chat_template(",
            f'    [{question}], add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
    else:
        lines += ['inputs = tokenizer("What is 2 + 3?", return_tensors="pt")']
    lines += ["output = model.generate(**inputs, max_new_tokens=64)"]
    lines += ['print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))']
    return "\n".join(lines)


def _results(config: CommonConfig, history: Sequence[Mapping[str, float]]) -> Iterator[str]:
    # Not every line has every metric: those of a generation are logged at its first step.
    trained, evaluated = (
        {k: v for line in history if key in line for k, v in line.items()} for key in ("loss", "eval_loss")
    )
    own = sorted(name for name in trained if re.fullmatch(r"rewards/[^/]+/mean", name))
    known = trained.keys() | {name.removeprefix("eval_") for name in evaluated}
    names = [name for name in [*METRICS[config.method], *own] if name in known]
    if not names:
        return
    columns = [("training", trained, "")] + ([("evaluation", evaluated, "eval_")] if evaluated else [])
    rows = [f"| last value of | {' | '.join(title for title, _, _ in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        values = [f"{line[prefix + name]:.4g}" if prefix + name in line else "" for _, line, prefix in columns]
        rows.append(f"| {name} | {' | '.join(values)} |")
    yield "## Results"
    yield "\n".join(rows)


def _settings(config: CommonConfig) -> Iterator[str]:
    """The flags that the run's result depends on and that are not at their defaults."""
    told = dict(_changed(config))
    if told:
        yield "## Settings that are not the defaults"
        yield f"```yaml\n{yaml.safe_dump(told, sort_keys=False, allow_unicode=True)}```"


def _changed(config: CommonConfig) -> Iterator[tuple[str, Any]]:
    elsewhere = flags_of(TrainingFlags).keys() - flags_of(OptimisationFlags).keys() - flags_of(PrecisionFlags).keys()
    for name, field in flags_of(type(config)).items():
        value = getattr(config, name)
        factory: Any = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        is_told = name not in elsewhere | flags_of(RunFlags).keys() | UNTOLD and not name.startswith("vllm_server")
        if is_told and value not in (None, default, field.metadata.get("theirs")):
            yield name, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _reward(value) if "/" in value else value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _provenance(config: CommonConfig, hashes: Sequence[tuple[str, str]]) -> Iterator[str]:
    """What the model was made from, as far as it is anybody's: nothing of the machine, the hour or the state of git, so
    that the same training gives the same card."""
    if hashes:
        seed = default_of(flags_of(type(config))["seed"]) if config.seed is None else config.seed
        rows = ["| made from | sha256 |", "|---|---|", *(f"| {name} | `{sha256}` |" for name, sha256 in hashes)]
        yield "## Provenance"
        yield f"The same of these, of the settings and of the versions, with seed {seed}, give this model again."
        yield "\n".join(rows)


def _versions(config: CommonConfig) -> str:
    packages = [*PACKAGES, *(["peft"] if config.use_peft else [])]
    return "\n".join(f"- {name} {version_of(name)}" for name in packages)
