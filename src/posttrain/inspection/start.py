"""Commands to start with: a fine-tuning before anything else for a base model, a test of 20 steps, the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config import METHODS
from posttrain.config.fields import flags_of
from posttrain.inspection.model import Model
from posttrain.inspection.options import as_words

SMALL_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
_SUFFIX = {"sft": "SFT", "reward": "Reward", "dpo": "DPO", "grpo": "GRPO", "rloo": "RLOO"}
_ADAPTER_RATE = 10  # adapters learn with ten times the rate of all weights, as in TRL's manual
_TINY = 50_000_000  # parameters; any batch fits
_OF_TOKENIZER = ("pad_token", "chat_template_path")  # advice that holds for the first fine-tuning too
_MANY_ROWS = 200  # enough to hold some back

Flags = dict[str, list[str]]  # name → the words behind it


@dataclass(frozen=True)
class Start:
    """A command.

    Args:
        why: what it is for.
        words: `posttrain`, the method and flags.
    """

    why: str
    words: list[str]


@dataclass(frozen=True)
class Facts:
    """What the commands depend on.

    Args:
        method: to start with.
        given: the user's flags, without the model.
        advised: flags that findings say to type; they win over the given ones.
        model: where one is named.
        columns: of the data.
        num_rows: that were read.
        has_test_split: the data comes with rows to evaluate on.
    """

    method: str
    given: Mapping[str, list[str]]
    advised: Mapping[str, list[str]]
    model: Model | None
    columns: Sequence[str]
    num_rows: int
    has_test_split: bool


def starts(facts: Facts) -> list[Start]:
    """The commands, in the order in which they are run.

    Args:
        facts: about data and model.
    """
    model = facts.model.name if facts.model else SMALL_MODEL
    steps = []
    then = ""
    if facts.model and facts.model.base and facts.method != "sft":
        tuned = _output(model, "sft")
        own: Flags = {"dataset_name": ["conversations.jsonl"]} | _memory(facts.model, "sft")
        own |= {name: facts.advised[name] for name in _OF_TOKENIZER if name in facts.advised}
        why = (
            f"{Path(model).name} seems to be a base model ({facts.model.base}): fine-tune it first, on conversations "
            "(another file, which you need for this)"
        )
        steps.append(Start(why, _words("sft", model, own, tuned)))
        model, then = tuned, "after that, on these rows: "
    flags = _flags(facts, facts.model)
    output = facts.given.get("output_dir", [_output(model, facts.method)])[0]
    trial = {"max_steps": ["20"], "logging_steps": ["1"]}
    if facts.model and facts.model.is_large:
        trial_flags = _flags(facts, None) | trial
        steps.append(
            Start(
                f"{then}20 steps of a small model, to see that everything runs",
                _words(facts.method, SMALL_MODEL, trial_flags, f"{_output(SMALL_MODEL, facts.method)}-try"),
            )
        )
    else:
        why = f"{then}20 steps, to see that everything runs and fits"
        steps.append(Start(why, _words(facts.method, model, flags | trial, f"{output}-try")))
    run = {**flags, **{name: words for name, words in _evaluation(facts).items() if name not in flags}}
    steps.append(Start("the run", _words(facts.method, model, run, output)))
    return steps


def _words(method: str, model: str, flags: Mapping[str, list[str]], output: str) -> list[str]:
    own = {name: words for name, words in flags.items() if name not in ("model_name_or_path", "output_dir")}
    whole = {"model_name_or_path": [model], **own, "output_dir": [output]}
    return ["posttrain", method, *as_words(whole)]


def _flags(facts: Facts, model: Model | None) -> Flags:
    """The user's flags, and what data and model ask for where the user says nothing."""
    advised = facts.advised if model is facts.model else {}
    own = {**_rewards(facts), **_memory(model, facts.method)}
    if _is_streamed(facts):
        own["max_steps"] = ["1000"]  # an epoch has no length
    further = {name: words for name, words in own.items() if not {name, f"no_{name}"} & facts.given.keys()}
    return {**facts.given, **further, **advised}  # what is advised has seen what is given


def _rewards(facts: Facts) -> Flags:
    named = {"reward_funcs", "reward_model_name_or_path", "config"} & facts.given.keys()
    if facts.method not in ("grpo", "rloo") or named:
        return {}
    if "solution" in facts.columns:
        return {"reward_funcs": ["accuracy_reward"]}
    return {"reward_model_name_or_path": [_output(facts.model.name if facts.model else SMALL_MODEL, "reward")]}


def _memory(model: Model | None, method: str) -> Flags:
    """Batches of a size that most models have room for, and adapters where memory is short."""
    if model is not None and model.num_parameters is not None and model.num_parameters < _TINY:
        return {}
    if method in ("grpo", "rloo"):  # counted in completions: 4 prompts with 8 each
        flags = {"per_device_train_batch_size": ["8"], "gradient_accumulation_steps": ["4"], "num_generations": ["8"]}
    else:
        flags = {"per_device_train_batch_size": ["2"], "gradient_accumulation_steps": ["8"]}
    if model is None or model.fits(method):
        return flags
    default: Any = flags_of(METHODS[method])["learning_rate"].default
    rate = default * _ADAPTER_RATE
    flags |= {"use_peft": [], "learning_rate": [f"{rate:.0e}".replace("e-0", "e-")]}
    if not model.fits_with_adapters(4):
        flags |= {"dtype": ["bfloat16"]}
    if not model.fits_with_adapters(2) and model.where == "the GPU":
        flags |= {"load_in_4bit": []}
    return flags


def _evaluation(facts: Facts) -> Flags:
    if facts.method in ("grpo", "rloo") or {"eval_strategy", "config", "test_split_size"} & facts.given.keys():
        return {}
    steps = {"eval_strategy": ["steps"], "eval_steps": ["50"]}
    if facts.has_test_split:
        return steps
    if _is_streamed(facts):
        return {"test_split_size": ["200"], **steps}
    return {"test_split_size": ["0.05"], **steps} if facts.num_rows >= _MANY_ROWS else {}


def _is_streamed(facts: Facts) -> bool:
    return bool({"dataset_streaming", "streaming"} & facts.given.keys())


def _output(model: str, method: str) -> str:
    return f"{Path(model).name}-{_SUFFIX[method]}"
