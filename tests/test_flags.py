"""Flags against TRL's, the page about them, and what becomes of each: what it says holds."""

import dataclasses
import json
import os
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import METHODS, CommonConfig, help_page, parse_command_line, remark
from posttrain.config.common import LORA_FLAGS
from posttrain.config.effects import refused, without_effect
from posttrain.config.fields import flags_of, is_bool, members
from posttrain.config.flag_table import DIFFERS, OWN, THEIR_DEFAULTS, flag_table
from posttrain.config.flag_words import default_of
from posttrain.config.parse import LaunchOptions
from posttrain.config.renamed import refused_names
from posttrain.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
# TRL's flags: of all its commands, and of each, with their defaults.
PEER: dict[str, dict[str, Any]] = json.loads((ROOT / "tests/peer_flags.json").read_text(encoding="utf-8"))
# A file with their help and types, too, where there is one.
REFERENCE = os.environ.get("POSTTRAIN_REFERENCE")
NEEDED = {"model_name_or_path": "org/model", "dataset_name": "org/rows"}
POLICIES = {"grpo", "rloo"}


def needed(method: str) -> dict[str, Any]:
    return NEEDED | ({"reward_funcs": "accuracy_reward"} if method in POLICIES else {})


def parse(method: str, *words: str) -> CommonConfig:
    given = {word.removeprefix("--").partition("=")[0] for word in words}
    rest = [part for name, value in needed(method).items() if name not in given for part in (f"--{name}", value)]
    return parse_command_line(method, [*words, *rest])[0]


def test_the_page_is_made_from_the_flags() -> None:
    assert (ROOT / "docs/flags.md").read_text(encoding="utf-8") == flag_table(), "`make docs` writes it"


@pytest.mark.parametrize("method", METHODS)
def test_every_flag_of_trl_has_a_row_and_its_default_or_a_reason(method: str) -> None:
    """Names that are refused altogether count: they have a row of their own. Names of TRL's single methods that are
    not there have none, so there must be none of those."""
    ours, page = flags_of(METHODS[method]), (ROOT / "docs/flags.md").read_text(encoding="utf-8")
    for name, theirs in (PEER["all"] | PEER[method]).items():
        assert f"| `--{name}` |" in page
        if name not in ours:
            assert name in refused_names()
        elif f"{method}.{name}" not in THEIR_DEFAULTS and name not in THEIR_DEFAULTS:
            assert default_of(ours[name]) == theirs, name
        else:
            assert default_of(ours[name]) != theirs
            assert DIFFERS.get(f"{method}.{name}", DIFFERS.get(name))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_called_posttrains_own_is_what_trl_lacks(method: str) -> None:
    own = {name for name in flags_of(METHODS[method]) if name in OWN or f"{method}.{name}" in OWN}
    of_any = {name for flags in PEER.values() if isinstance(flags, dict) for name in flags}
    of_this = PEER["all"] | PEER[method]
    assert own.isdisjoint(of_this)
    # What TRL has for other methods only is a difference, which the page tells.
    more = set(flags_of(METHODS[method])) - set(of_this) - own
    assert more <= of_any
    assert more <= DIFFERS.keys() | without_effect(METHODS[method]).keys() | refused(METHODS[method]).keys(), more


def test_the_list_of_trls_flags_is_the_reference_one() -> None:
    if REFERENCE is None:
        pytest.skip("POSTTRAIN_REFERENCE names no reference list")
    reference = json.loads(Path(REFERENCE).read_text(encoding="utf-8"))
    shared = reference["model"] | reference["script"] | reference["mixture"]
    common = {name: fact["default"] for name, fact in shared.items()}
    assert common == {name: PEER["all"][name] for name in common}
    assert set(PEER["all"]) == set(common) | set(reference["transformers_training_arguments"])
    for method in METHODS:
        own = {name: fact["default"] for name, fact in reference[method].items()}
        own |= {
            name: fact["default"] for name, fact in reference.get(f"script_{method}", {}).items() if name not in common
        }
        assert PEER[method] == own
        types_match(method, reference)


def types_match(method: str, reference: dict[str, Any]) -> None:
    """A flag takes what TRL's takes; a mapping may come as its JSON text, which any reader here takes."""
    ours = flags_of(METHODS[method])
    for section in ("model", "script", method):
        for name, fact in reference[section].items():
            kind = ours[name].type
            kinds = kind.__args__ if isinstance(kind, types.UnionType) else (kind,)
            text = {"dict" if str(one).startswith("dict") else getattr(one, "__name__", "") for one in kinds}
            text |= {str(one) for one in kinds}
            wanted = {word.split("[")[0] if word.startswith("dict") else word for word in fact["type"].split(" | ")}
            wanted = {"list[float]" if word == "tuple[float, float]" else word for word in wanted}
            assert wanted - {"None", "str"} <= text, (name, wanted, text)


# A value other than the default for flags whose kind does not tell one.
SAMPLES = {
    "num_generations": "4",
    "per_device_train_batch_size": "16",
    "accelerator_config": '{"split_batches": false}',
    "dataset_kwargs": "skip_prepare_dataset=true",
    "delta": "2",
    "datasets": '[{"path": "org/rows"}]',
    "gradient_checkpointing_kwargs": "use_reentrant=false",
    "activation_checkpointing_kwargs": "use_reentrant=false",
    "judge_base_url": "http://127.0.0.1:8000/v1",
    "lr_scheduler_type": "cosine",
    "optim": "sgd",
    "optim_args": "a=1",
    "resume_from_checkpoint": "work/checkpoint-1",
    "reward_clip_range": "-1 1",
    "reward_weights": "0.5",
    "loss_weights": "0.5",
    "test_split_size": "0.1",
    "truncation_mode": "keep_end",
}
# What else a flag cannot do without.
WITH = {
    "bnb_4bit_quant_storage": "--load_in_4bit --use_peft",
    "bnb_4bit_quant_type": "--load_in_4bit --use_peft",
    "use_bnb_nested_quant": "--load_in_4bit --use_peft",
    "load_in_4bit": "--use_peft",
    "load_in_8bit": "--use_peft",
    "dataloader_multiprocessing_context": "--dataloader_num_workers 1",
    "dataloader_persistent_workers": "--dataloader_num_workers 1",
    "dataloader_prefetch_factor": "--dataloader_num_workers 1",
    "dataset_streaming": "--max_steps 5",
    "streaming": "--max_steps 5",
    "load_best_model_at_end": "--eval_strategy steps --eval_steps 500",
    "log_unique_prompts": "--log_completions",
    "num_completions_to_print": "--log_completions",
    "long_prompts": "--max_prompt_tokens 10",
    "loss_type": "--label_smoothing 0.1",
    "optim_target_modules": "--optim apollo_adamw",
    "optim_args": "--optim apollo_adamw --optim_target_modules all-linear",
    "sync_ref_model": "--beta 0.1",
    "kl_estimator": "--beta 0.1",
    "reward_model_name_or_path": "",
    "datasets": "",
}
WITH |= {name: "--use_peft" for name in LORA_FLAGS}
# A choice that needs nothing else; empty: the default.
CHOICES = {"loss_type": "hinge", "save_strategy": "epoch", "kl_estimator": "k3", "lora_task_type": ""}
JUDGED = {name for name in flags_of(METHODS["grpo"]) if name.startswith("judge_")}


def sample(name: str, field: dataclasses.Field[Any]) -> list[str]:
    """Words for a value that is not the default."""
    if name in SAMPLES:
        return SAMPLES[name].split() if name == "reward_clip_range" else [SAMPLES[name]]
    choices = field.metadata["choices"]
    if choices:
        other = next(one for one in choices if one not in (default_of(field), "none", "no"))
        wanted = CHOICES.get(name, other)
        return [(wanted if wanted in choices else other) if wanted else default_of(field)]
    kind = next((one for one in members(field) if one is not bool), bool)
    origin = typing.get_origin(kind) or kind
    if origin is dict:
        return ['{"a": 1}']
    if origin is int:
        return [str((default_of(field) or 0) + 1 if isinstance(default_of(field), int) else 8)]
    if origin is float:
        default = default_of(field) or 0.25
        return [str(default + 1 if default >= 2 else min((default + 1) / 2, field.metadata["high"] or 9))]
    return ["org/name"]


@pytest.mark.parametrize("method", METHODS)
def test_every_flag_can_be_given_in_all_its_forms(method: str) -> None:
    """With a value; switches bare, as --no_NAME and with true or false; and refused ones are refused."""
    cls = METHODS[method]
    for name, field in flags_of(cls).items():
        if name == "eval_strategy" or name in JUDGED or name == "average_tokens_across_devices":
            continue  # held by other tests: they lean on one another
        without = {"datasets": ["dataset_name"], "reward_model_name_or_path": []}.get(name, [])
        more = [word for word in WITH.get(name, "").split()]
        more = more if name != "loss_type" or method == "dpo" else []
        if name in ("sync_ref_model", "kl_estimator") and method not in POLICIES:
            more = []
        others = {key: value for key, value in needed(method).items() if key not in {name, *without}}
        needs = [part for key, value in others.items() for part in (f"--{key}", value)]
        forms = forms_of(name, field)
        for words, expected in forms:
            if name in refused(cls) and words[-1] not in ("false", f"--no_{name}"):
                with pytest.raises(UserError, match=name):
                    parse_command_line(method, [*words, *more, *needs])
            else:
                config = parse_command_line(method, [*words, *more, *needs])[0]
                assert expected is None or getattr(config, name) is expected, words


def forms_of(name: str, field: dataclasses.Field[Any]) -> list[tuple[list[str], bool | None]]:
    """Words, and the value that they make of a switch."""
    value = [([f"--{name}", *sample(name, field)], None)] if members(field) != (bool,) else []
    if not is_bool(field):
        return value
    old = {"activation_checkpointing": None}
    on, off = (old[name], old[name]) if name in old else (True, False)
    bare = [([f"--{name}"], on), ([f"--no_{name}"], off), ([f"--{name}", "true"], on), ([f"--{name}", "false"], off)]
    return value if field.metadata["choices"] else [*bare, *value]


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--report_to tensorboard", "report_to", "tensorboard"),
        ("--report_to wandb", "report_to", "wandb"),
        ("--report_to trackio", "report_to", "trackio"),
        ("--report_to mlflow", "report_to", "mlflow"),
        ("--report_to none", "report_to", "none"),
        ("--dataset_config main", "dataset_config", "main"),
        ("--temperature 0.7", "temperature", 0.7),
        ("--top_p 0.9", "top_p", 0.9),
        ("--scale_rewards batch", "scale_rewards", "batch"),
        ("--scale_rewards false", "scale_rewards", "none"),
        ("--scale_rewards True", "scale_rewards", "group"),
        ("--shuffle_dataset none", "shuffle_dataset", None),
    ],
)
def test_flags_of_the_manual(words: str, name: str, value: object) -> None:
    assert getattr(parse("grpo", *words.split()), name) == value


def test_what_has_no_effect_is_neither_handed_on_nor_passed_over_in_silence() -> None:
    words = "--fp16_full_eval --no_remove_unused_columns --skip_memory_metrics false --padding_free --max_steps 3"
    config = parse("dpo", *words.split())
    assert not {"fp16_full_eval", "remove_unused_columns", "skip_memory_metrics"} & set(config.training_arguments())
    assert remark(config) == (
        "Without effect here: fp16_full_eval (evaluation takes the precision of training); skip_memory_metrics "
        "(peak_memory_mib is logged at no cost); remove_unused_columns (each method picks its columns, and rewards get "
        "all of them); padding_free (batches never hold padding)"
    )
    assert remark(parse("sft", "--dataloader_num_workers", "2")) is None
    assert remark(parse("sft", "--dataset_num_proc", "4")) is None
    assert "without a GPU: does nothing" in " ".join(help_page("sft").split())
    assert "batches are sampled" in str(remark(parse("grpo", "--dataloader_num_workers", "2")))
    assert "vllm_mode (it is for vLLM" in str(remark(parse("grpo", "--vllm_mode", "server")))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_fits_the_terminal_and_names_every_flag_once(
    method: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = help_page(method).splitlines()
    assert max(map(len, lines)) <= columns
    named = [line.split()[0].removeprefix("--") for line in lines if line.startswith("  --")]
    tail = lines[lines.index("Known, but without effect here or (*) refused:") + 1 :]
    named += [word.removesuffix("*") for line in tail for word in line.split()]
    assert sorted(named) == sorted({**flags_of(METHODS[method]), **flags_of(LaunchOptions), "config": None})
    first = lines[lines.index("What people set first:") :]
    assert first.index("") < (40 if columns >= 80 else 50)
