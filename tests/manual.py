"""The commands of TRL's manual, and stand-ins for the models and data sets that they name: tiny models, few rows, with
the columns, special tokens and labels of the real ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from hub_server import Hub
from tiny import sums, write_base, write_rows
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

SFT = (
    "sft --model_name_or_path Qwen/Qwen2-0.5B --dataset_name trl-lib/Capybara --learning_rate 2.0e-5 "
    "--num_train_epochs 1 --packing --per_device_train_batch_size 2 --gradient_accumulation_steps 8 "
    "--eos_token <|im_end|> --eval_strategy steps --eval_steps 100 --output_dir Qwen2-0.5B-SFT --push_to_hub"
)
DPO = (
    "dpo --dataset_name trl-lib/ultrafeedback_binarized --model_name_or_path Qwen/Qwen2-0.5B-Instruct "
    "--learning_rate 5.0e-7 --num_train_epochs 1 --per_device_train_batch_size 2 --max_steps 1000 "
    "--gradient_accumulation_steps 8 --eval_strategy steps --eval_steps 50 --output_dir Qwen2-0.5B-DPO "
    "--no_remove_unused_columns"
)
GRPO = (
    "grpo --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name trl-lib/DeepMath-103K --reward_funcs accuracy_reward "
    "--output_dir Qwen2-0.5B-GRPO --push_to_hub"
)
RLOO = (
    "rloo --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name trl-lib/tldr "
    "--reward_model_name_or_path sentiment-analysis:nlptown/bert-base-multilingual-uncased-sentiment "
    "--output_dir Qwen2-0.5B-RLOO --push_to_hub"
)
REWARD = (
    "reward --model_name_or_path Qwen/Qwen2-0.5B-Instruct --dataset_name trl-lib/ultrafeedback_binarized "
    "--output_dir Qwen2-0.5B-Reward --per_device_train_batch_size 8 --num_train_epochs 1 --learning_rate 1.0e-5 "
    "--eval_strategy steps --eval_steps 50 --max_length 2048"
)
LORA = "--use_peft --lora_r 32 --lora_alpha 16"
COMMANDS = {
    "1 sft": SFT,
    "2 sft, LoRA": SFT.replace("2.0e-5", "2.0e-4") + f" {LORA}",
    "3 dpo": DPO,
    "4 dpo, LoRA": DPO.replace("5.0e-7", "5.0e-6") + f" {LORA}",
    "5 grpo": GRPO,
    "6 rloo": RLOO,
    "7 reward": REWARD,
    "8 reward, LoRA": REWARD.replace("1.0e-5", "1.0e-4")
    + f" {LORA}".replace("--use_peft", "--use_peft --lora_task_type SEQ_CLS"),
}
# What is typed after a command so that it ends soon: 1,000 steps of DPO, and completions of up to 512 tokens over three
# epochs. The others run as they stand.
SHORTER = {"dpo": "--max_steps 2", "grpo": "--max_steps 2 --max_completion_length 8"}
SHORTER["rloo"] = SHORTER["grpo"]


def words_of(name: str) -> list[str]:
    """A command's words, with those that shorten it."""
    command = COMMANDS[name]
    return f"{command} {SHORTER.get(command.split()[0], '')}".split()


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def capybara(question: str, right: str, wrong: str) -> dict[str, Any]:
    messages = [turn("user", question), turn("assistant", right), turn("user", "Sure?"), turn("assistant", "Yes.")]
    return {"source": "Airoboros", "messages": messages, "num_turns": 2}


def ultrafeedback(question: str, right: str, wrong: str) -> dict[str, Any]:
    chosen, rejected = ([turn("user", question), turn("assistant", answer)] for answer in (right, wrong))
    return {"chosen": chosen, "rejected": rejected, "score_chosen": 8.5, "score_rejected": 2.0}


def deepmath(question: str, right: str, wrong: str) -> dict[str, Any]:
    return {"prompt": [turn("user", question)], "solution": right.rpartition("#### ")[2]}


def tldr(question: str, right: str, wrong: str) -> dict[str, Any]:
    return {"prompt": f"SUBREDDIT: r/sums\n\nPOST: {question}\n\nTL;DR:", "completion": f" {right}"}


DATA = {"Capybara": capybara, "ultrafeedback_binarized": ultrafeedback, "DeepMath-103K": deepmath, "tldr": tldr}


def write_manual(folder: Path) -> dict[str, Path]:
    """Folders by the hub's names of what they stand for."""
    found = {}
    for name, row in DATA.items():
        found[f"trl-lib/{name}"] = folder / name
        (folder / name).mkdir(parents=True)
        for split, count in (("train", 16), ("test", 4)):
            write_rows(folder / name / f"{split}.jsonl", [row(*texts) for texts in sums(count)])
    instruct = found["Qwen/Qwen2-0.5B-Instruct"] = write_base(folder / "Qwen2-0.5B-Instruct")
    for name in ("Qwen2-0.5B", "Qwen2.5-0.5B"):
        found[f"Qwen/{name}"] = shutil.copytree(instruct, folder / name)
        # Of base models, the end of a text is the padding too.
        settings = folder / name / "tokenizer_config.json"
        content = json.loads(settings.read_text()) | {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        settings.write_text(json.dumps(content))
    classifier = "nlptown/bert-base-multilingual-uncased-sentiment"
    found[classifier] = write_sentiment(folder / "sentiment")
    return found


def write_sentiment(folder: Path) -> Path:
    """A BERT with five labels."""
    vocabulary = {text: i for i, text in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special).save_pretrained(folder)
    labels = {i: f"{i + 1} star{'s' if i else ''}" for i in range(5)}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertForSequenceClassification(
        BertConfig(vocab_size=len(vocabulary), num_labels=5, id2label=labels, **sizes)
    ).save_pretrained(folder)
    return folder


def write_manual_hub(hub: Hub, folder: Path) -> None:
    """All of it on a hub."""
    for name, where in write_manual(folder).items():
        hub.add(f"{'datasets' if name.startswith('trl-lib/') else 'models'}/{name}", where)
