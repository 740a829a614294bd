"""Makes what both sides train on: rows of the real data, and random Qwen2 models of 4 million parameters for them."""

import argparse
import gzip
import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

VOCABULARY = 4096
MAX_LENGTH = 1024  # tokens; the default of both sides
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read(path: Path, count: int | None = None) -> list[dict]:
    """The first lines of a JSONL file, or all of them."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in itertools.islice(file, count)]


def conversation(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def sft_rows(folder: Path, count: int) -> list[dict]:
    """GSM8K's first training questions as conversations."""
    rows = read(folder / "gsm8k_train.jsonl", count)
    return [{"messages": conversation(row["question"], row["answer"])} for row in rows]


def pair_rows(folder: Path, count: int | None = None) -> list[dict]:
    """hh-rlhf's first pairs as they are: two whole dialogues with a common beginning."""
    return read(folder / "hh_harmless_test.jsonl.gz", count)


def solution_pairs(folder: Path) -> list[dict]:
    """A right and a wrong solution of a question, by whichever models; every right one with one wrong one."""
    pairs = []
    for row in read(folder / "gsm8k_model_solutions.jsonl"):
        solutions = [value for value in row.values() if isinstance(value, dict)]
        right = [s["solution"] for s in solutions if s["is_correct"]]
        wrong = [s["solution"] for s in solutions if not s["is_correct"]]
        for chosen, rejected in zip(right, wrong, strict=False):
            turns = {"chosen": chosen, "rejected": rejected}
            pair = {name: conversation(row["question"], text)[1:] for name, text in turns.items()}
            pairs.append({"prompt": conversation(row["question"], "")[:1], **pair})
    return pairs


def prompt_rows(folder: Path, count: int) -> list[dict]:
    """GSM8K's first training questions, to be answered."""
    return [{"prompt": row["messages"][:1]} for row in sft_rows(folder, count)]


def texts_of(row: dict) -> list[str]:
    """The texts of a row whose tokens are trained on or scored, each counted whole."""
    if "messages" in row:
        return ["".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in row["messages"])]
    if "prompt" in row:
        return texts_of({"messages": row["prompt"]})
    return [row["chosen"] + "<|im_end|>", row["rejected"] + "<|im_end|>"]


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the texts, with ChatML's marks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        # transformers adds Qwen2's <|endoftext|> to any tokenizer of such a model that lacks it.
        special_tokens=["<|im_start|>", "<|im_end|>", "<|pad|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


SIZES = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH * 2,
}
# Qwen2s with a vocabulary of 4,096, embeddings and head tied: 0.5, 4.2, 27 and 100 million parameters.
MODELS: dict[str, dict[str, int]] = {
    "0.5M": {"hidden_size": 64, "intermediate_size": 192},
    "4M": SIZES,
    "27M": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "100M": {
        "hidden_size": 768,
        "intermediate_size": 2816,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
}


def make_model(
    tokenizer: PreTrainedTokenizerFast, cls: type[PreTrainedModel] = Qwen2ForCausalLM, **sizes: int
) -> PreTrainedModel:
    """A random Qwen2 with the output layer of its class, of 4.2 million parameters unless told other sizes."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        num_labels=1,
        **(SIZES | sizes),
    )
    return cls(config)


def main() -> None:
    """Write the models, the rows of sft/, pairs/ and prompts/, and tokens.json (of each row) into a folder."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--rows", type=int, required=True)
    args = parser.parse_args()
    # The tokenizer learns from more rows than a short run trains on.
    rows = {"sft": sft_rows(args.data, 2000), "pairs": pair_rows(args.data, 2000)}
    rows["prompts"] = prompt_rows(args.data, 2000)
    tokenizer = make_tokenizer(text for part in rows.values() for row in part for text in texts_of(row))
    for name, cls in {"model": Qwen2ForCausalLM, "reward_model": Qwen2ForSequenceClassification}.items():
        tokenizer.save_pretrained(args.to / name)
        model = make_model(tokenizer, cls)
        model.save_pretrained(args.to / name)
    tokens = {}
    for method, part in rows.items():
        (args.to / method).mkdir(parents=True, exist_ok=True)
        used = part[: args.rows]
        lines = "".join(json.dumps(row) + "\n" for row in used)
        (args.to / method / "train.jsonl").write_text(lines, encoding="utf-8")
        tokens[method] = [sum(min(len(tokenizer.encode(t)), MAX_LENGTH) for t in texts_of(row)) for row in used]
    tokens["parameters"] = model.num_parameters()
    (args.to / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")


if __name__ == "__main__":
    main()
