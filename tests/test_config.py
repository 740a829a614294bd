"""Flags: the names, types and defaults that users know; what parses to what; and every way to be told of a mistake."""

import dataclasses
from pathlib import Path

import pytest
import transformers
from helpers_flags import message, parse
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from posttrain.config import DPOConfig, parse_command_line
from posttrain.config.fields import flags_of
from posttrain.config.renamed import refusal
from posttrain.config.training import OPTIMIZERS, SCHEDULERS, TrainingFlags
from posttrain.errors import UserError

THEIR_FIELDS = {field.name: field for field in dataclasses.fields(transformers.TrainingArguments)}

REFUSED_ARGUMENTS = {"parallelism_config", "do_predict"}


def test_every_training_argument_is_a_flag_or_is_refused_with_a_reason() -> None:
    missing = set(THEIR_FIELDS) - set(flags_of(TrainingFlags))
    assert missing == REFUSED_ARGUMENTS
    for name in missing:
        assert message("sft", f"--{name}", "x") == f"--{name} {refusal(name)}"


def test_every_training_flag_exists_in_transformers_with_the_default_that_help_shows() -> None:
    unknown = set(flags_of(TrainingFlags)) - set(THEIR_FIELDS)
    assert unknown <= {"activation_checkpointing", "activation_checkpointing_kwargs"}  # new in transformers 5.23
    for name, field in flags_of(TrainingFlags).items():
        if "theirs" in field.metadata and name in THEIR_FIELDS:
            theirs = THEIR_FIELDS[name]
            default = theirs.default if theirs.default_factory is dataclasses.MISSING else theirs.default_factory()
            assert field.metadata["theirs"] == default, name


def test_choices_are_those_of_transformers() -> None:
    assert set(SCHEDULERS) == {item.value for item in SchedulerType}
    assert set(OPTIMIZERS) == {item.value for item in OptimizerNames}


def test_only_what_was_set_is_handed_to_transformers() -> None:
    config = parse("dpo", "--max_steps", "3", "--weight_decay", "0.1", "--beta", "0.2")
    assert config.explicit == {"model_name_or_path", "dataset_name", "max_steps", "weight_decay", "beta"}
    assert config.training_arguments() == {
        "learning_rate": 1e-6, "logging_steps": 10, "output_dir": "trainer_output", "max_steps": 3, "weight_decay": 0.1,
    }  # fmt: skip
    assert config.training_arguments(learning_rate=1.0, seed=7)["learning_rate"] == 1.0


def test_transformers_takes_the_arguments_without_a_warning(tmp_path: Path) -> None:
    words = "--gradient_checkpointing --gradient_checkpointing_kwargs use_reentrant=false --report_to none --fp16 false"
    words += " --lr_scheduler_type cosine --lr_scheduler_kwargs num_cycles=2 --warmup_steps 0.1 --eval_strategy steps"
    words += " --eval_steps 100 --include_num_input_tokens_seen --debug underflow_overflow --no_remove_unused_columns"
    config = parse("sft", "--output_dir", str(tmp_path), *words.split())
    arguments = transformers.TrainingArguments(**config.training_arguments(use_cpu=True))
    assert arguments.gradient_checkpointing is True
    assert arguments.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert arguments.lr_scheduler_kwargs == {"num_cycles": 2}
    assert (arguments.warmup_steps, arguments.eval_steps) == (0.1, 100)


@pytest.mark.parametrize(
    ("installed", "name"),
    [
        ("5.17.0", "gradient_checkpointing"),
        ("5.23.0.dev0", "activation_checkpointing"),
        ("6.0", "activation_checkpointing"),
    ],
)
def test_gradient_checkpointing_is_handed_over_in_the_installed_name(
    installed: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.config.rules.version", lambda package: installed)
    handed = parse("sft", "--gradient_checkpointing").training_arguments()
    assert {key: value for key, value in handed.items() if "checkpointing" in key} == {name: True}


def test_the_two_names_of_gradient_checkpointing_are_one() -> None:
    config = parse("sft", "--activation_checkpointing", "--activation_checkpointing_kwargs", '{"use_reentrant": true}')
    assert (config.gradient_checkpointing, config.gradient_checkpointing_kwargs) == (True, {"use_reentrant": True})
    assert dataclasses.replace(config, gradient_checkpointing=False).gradient_checkpointing is False
    assert "two names of one thing" in message("sft", "--activation_checkpointing", "--no_gradient_checkpointing")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--learning_rate 2.0e-5", "learning_rate", 2e-5),
        ("--learning-rate 1e-4", "learning_rate", 1e-4),
        ("--learning_rate=1", "learning_rate", 1.0),
        ("--learning_rate 1 --learning_rate 2", "learning_rate", 2.0),
        ("--max_steps -1", "max_steps", -1),
        ("--max_length none", "max_length", None),
        ("--packing", "packing", True),
        ("--packing --max_length 8", "packing", True),
        ("--no_packing", "packing", False),
        ("--no-packing", "packing", False),
        ("--packing false", "packing", False),
        ("--packing --no_packing", "packing", False),
        ("--no_packing --packing", "packing", True),
        ("--bf16", "bf16", True),
        ("--bf16 False", "bf16", False),
        ("--tf32 yes", "tf32", True),
        ("--tf32 0", "tf32", False),
        ("--eos_token <|im_end|>", "eos_token", "<|im_end|>"),
        ("--eos_token=--x", "eos_token", "--x"),
        ("--eos_token null", "eos_token", None),
        ("--report_to none", "report_to", "none"),
        ("--report_to tensorboard wandb", "report_to", ["tensorboard", "wandb"]),
        ("--lora_target_modules q_proj --use_peft", "lora_target_modules", ["q_proj"]),
        ('--lora_target_modules ["a","b"] --use_peft', "lora_target_modules", ["a", "b"]),
        ("--pad_to_multiple_of 8", "pad_to_multiple_of", 8),
        ("--pad_to_multiple_of auto", "pad_to_multiple_of", "auto"),
        ("--resume_from_checkpoint", "resume_from_checkpoint", True),
        ("--resume_from_checkpoint x/checkpoint-3", "resume_from_checkpoint", "x/checkpoint-3"),
        ("--include_num_input_tokens_seen no", "include_num_input_tokens_seen", "no"),
        ("--deepspeed ds.json", "deepspeed", "ds.json"),
        ('--deepspeed {"a":{"b":1}}', "deepspeed", {"a": {"b": 1}}),
        ("--model_init_kwargs a=1,b=x,c=true,d=1e-4", "model_init_kwargs", {"a": 1, "b": "x", "c": True, "d": 1e-4}),
        ("--optim_args rank=64,update=2", "optim_args", "rank=64,update=2"),
    ],
)
def test_words_become_values(words: str, name: str, value: object) -> None:
    parsed = getattr(parse("sft", *words.split()), name)
    assert parsed == value
    assert type(parsed) is type(value)


def test_several_losses_with_weights() -> None:
    config = parse("dpo", "--loss_type", "sigmoid", "bco_pair", "sft", "--loss_weights", "0.8", "0.2", "1")
    assert isinstance(config, DPOConfig)
    assert (config.loss_type, config.loss_weights) == (["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0])


@pytest.mark.parametrize(
    ("method", "words", "expected"),
    [
        ("sft", "--num_train_epoch 1", "--num_train_epoch: no such flag; did you mean --num_train_epochs?"),
        ("sft", "--no_remove_unused_colums", "did you mean --no_remove_unused_columns?"),
        ("sft", "--qqqq 1", "--qqqq: no such flag; posttrain sft --help lists all"),
        ("sft", "--beta 1", "--beta is not for sft, but for dpo"),
        ("dpo", "--max_seq_length 8", "--max_seq_length is now called max_length"),
        ("dpo", "--rpo_alpha 1", "use --loss_type sigmoid sft --loss_weights 1.0 ALPHA"),
        ("sft", "--learning_rate fast", "--learning_rate: 'fast' is not a number"),
        ("sft", "--learning_rate nan", "--learning_rate: 'nan' is not a number"),
        ("sft", "--max_length 1.5", "--max_length: '1.5' is not a whole number or none"),
        ("sft", "--max_steps none", "--max_steps: 'none' is not a whole number"),
        ("sft", "--max_length 0", "--max_length: 0 is too small; it must be at least 1"),
        ("sft", "--lora_dropout 2 --use_peft", "--lora_dropout: 2.0 is too large; it must be at most 1"),
        ("sft", "--packing maybe", "--packing: 'maybe' is not true or false"),
        ("sft", "--no_packing true", "--no_packing takes no value; write --packing true or --packing false"),
        ("sft", "--no_packing=true", "--no_packing takes no value; write --packing true or --packing false"),
        ("sft", "--no_max_length", "--no_max_length: no such flag; did you mean --max_length?"),
        ("sft", "--learning_rate", "--learning_rate: a value is missing"),
        ("sft", "--learning_rate 1 2", "--learning_rate: takes one value, not 2 (1 2)"),
        ("sft", "--model_init_kwargs {x", "--model_init_kwargs: '{x' is not JSON"),
        ("sft", "--model_init_kwargs x", "--model_init_kwargs: 'x' is not a mapping"),
        ("sft", "--lr_scheduler_type cosin", "'cosin' is not one of linear, cosine, "),
        ("sft", "--lr_scheduler_type cosin", "did you mean cosine?"),
        ("sft", "--packing_strategy best", "'best' is not one of bfd, bfd_split, wrapped"),
        ("sft", "--truncation_mode middle", "'middle' is not one of keep_start, keep_end"),
        ("dpo", "--loss_type sigmoid kto", "--loss_type: 'kto' is not one of sigmoid, "),
        ("dpo", "--f_divergence_type js", "--f_divergence_type: 'js' is not one of"),
        ("dpo", "--loss_weights 1 x", "--loss_weights: ['1', 'x'] is not a list of numbers or none"),
        ("dpo", "--loss_type exo_pair", "loss_type exo_pair needs label_smoothing above 0, such as 0.001"),
        ("dpo", "--loss_type robust --label_smoothing 0.5", "loss_type robust needs label_smoothing below 0.5"),
        ("dpo", "--loss_type sft hinge --loss_weights 1", "loss_weights has 1 numbers for 2 losses"),
        ("dpo", "--loss_type nca_pair --f_divergence_type forward_kl", "nca_pair takes no f_divergence_type"),
        ("dpo", "--loss_type aot --use_weighting", "leave one of them out"),
        ("dpo", "--beta 0", "beta is 0"),
        ("dpo", "--sync_ref_model --precompute_ref_log_probs", "leave one out"),
        ("dpo", "--use_peft --sync_ref_model --ref_model_name_or_path a/b", "trains adapters beside them"),
        ("grpo", "--use_peft --sync_ref_model --beta 1 --reward_funcs accuracy_reward", "trains adapters beside them"),
        ("sft", '--model_init_kwargs {"token":"hf_x"}', "model_init_kwargs: token holds a key, which would be written"),
        ("sft", '--model_init_kwargs {"a":{"api_key":"k"}}', "model_init_kwargs: a: api_key holds a key, which"),
        ("sft", "--lora_r 8 --use_dora", "lora_r, use_dora without use_peft would do nothing; add use_peft"),
        ("sft", "--load_in_4bit", "add use_peft"),
        ("sft", "--load_in_4bit --load_in_8bit --use_peft", "load_in_4bit and load_in_8bit exclude each other"),
        ("sft", "--fp16 --bf16", "fp16 and bf16 exclude each other"),
        ("sft", "--fp16 --dtype float16", "fp16 scales the gradients of weights in float32"),
        ("sft", "--torch_compile --recompute elementwise", "recompute elementwise keeps products"),
        ("sft", "--packing --max_length none", "packing fills rows of max_length tokens"),
        ("sft", "--load_best_model_at_end", "load_best_model_at_end needs evaluations; set eval_strategy"),
        ("sft", "--load_best_model_at_end --eval_strategy epoch", "needs save_strategy epoch (as eval"),
        ("sft", "--load_best_model_at_end --eval_strategy steps --eval_steps 300", "save_steps (500) to be a multiple"),
        ("sft", "--logging_steps 2.5", "logging_steps is 2.5; it must be a share below 1 or a whole number of steps"),
        ("sft", "--logging_steps 0", "logging_steps is 0"),
        ("sft", "--gradient_checkpointing_kwargs reentrant=true", "reentrant is not one of debug, "),
        ("sft", "--torch_compile_mode fast", "'fast' is not one of default, reduce-overhead, "),
        ("sft", "--save_strategy best --eval_strategy steps", "give metric_for_best_model, such as loss"),
        ("sft", "--save_strategy best --metric_for_best_model loss", "save_strategy best needs evaluations"),
        ("sft", "--dataloader_persistent_workers", "needs dataloader_num_workers above 0"),
        ("sft", "--optim galore_adamw", "give optim_target_modules, such as all-linear"),
        ("sft", "--optim_target_modules attn", "is for GaLore and APOLLO"),
        ("sft", "--optim_args rank", "optim_args is 'rank'; it must be of the form rank=64,scale=0.5"),
        ("sft", "--use_peft --bnb_4bit_quant_type fp4", "bnb_4bit_quant_type without load_in_4bit would do nothing"),
        ("sft", "--use_peft --lora_task_type SEQ_CLS", "lora_task_type SEQ_CLS is for models with a score"),
        ("sft", "--lr_scheduler_type greedy", "follows evaluations; set eval_strategy"),
        ("sft", "--dataloader_prefetch_factor 2", "needs dataloader_num_workers above 0"),
        ("sft", "--dataset_streaming", "dataset_streaming needs max_steps"),
        ("sft", "--test_split_size 1.5", "test_split_size is 1.5"),
        ("sft", "--label_smoothing_factor 0.1", "label_smoothing_factor is not available"),
        ("sft", '--datasets [{"path":"a/b"}]', "dataset_name and datasets both name the rows"),
    ],
)  # fmt: skip
def test_mistakes_are_named(method: str, words: str, expected: str) -> None:
    assert expected in message(method, *words.split())


@pytest.mark.parametrize("name", ["lora_r", "lora_dropout"])
def test_adapter_settings_may_stand_beside_a_switched_off_adapter(name: str) -> None:
    assert parse("sft", f"--{name}", "1", "--use_peft", "false").use_peft is False


def test_stray_words_and_missing_names() -> None:
    with pytest.raises(UserError, match="'rows' stands alone; a flag begins with two dashes"):
        parse_command_line("sft", ["rows"])
    with pytest.raises(UserError, match="model_name_or_path is missing: a model folder or a hub id"):
        parse_command_line("sft", ["--dataset_name", "org/rows"])
    with pytest.raises(UserError, match="dataset_name is missing: a file, a folder or a hub id"):
        parse_command_line("sft", ["--model_name_or_path", "org/model"])
