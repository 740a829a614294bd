"""SFT on GSM8K; DPO and a reward model on pairs of model solutions, DPO on hh-rlhf; GRPO and RLOO on GSM8K's questions:
from the command line, with a small model.

Writes the rows and a random model of 4 million parameters into a folder, runs the commands there and prints curves.
It shows that real rows go through; what such a small model learns is little.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from material import conversation, make_model, make_tokenizer, pair_rows, read, solution_pairs, texts_of

HELD_OUT = 200


def write(folder: Path, train: list[dict], test: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


HELD_OUT_NAMES = {
    "sft": ["eval_loss"],
    "dpo": ["eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"],
    "reward": ["eval_loss", "eval_accuracy", "eval_margin", "eval_calibration_error"],
}
SAMPLED_NAMES = [
    "reward",
    "rewards/accuracy_reward/mean",
    "rewards/says_a_number/mean",
    "completions/mean_length",
    "kl",
]


def train(method: str, model: Path, data: Path, out: Path, *flags: str) -> None:
    """Runs a command and prints its curve: what was held out, or what was sampled."""
    common = {"model_name_or_path": model, "dataset_name": data, "output_dir": out, "save_strategy": "no", "seed": 42}
    common |= {"logging_steps": 10, "disable_tqdm": "true"}
    if method in HELD_OUT_NAMES:
        common |= {"eval_strategy": "steps", "eval_on_start": "true"}
    words = [word for name, value in common.items() for word in (f"--{name}", str(value))]
    print(f"\nposttrain {method} {' '.join([*words, *flags])}", flush=True)
    log = (out.parent / f"{out.name}.log").open("w", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "posttrain.cli", method, *words, *flags], check=True, stdout=log, stderr=log)
    names = HELD_OUT_NAMES.get(method, SAMPLED_NAMES)
    lines = json.loads((out / "trainer_state.json").read_text())["log_history"]
    lines = [line for line in lines if names[0] in line]
    names = [name for name in names if name in lines[0]]
    print("step " + " ".join(names))
    for line in lines:
        print(f"{line['step']:>4} " + " ".join(f"{line[name]:.4f}" for name in names), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="folder with the GSM8K and hh-rlhf files")
    parser.add_argument("--to", type=Path, default=Path("work/real"))
    parser.add_argument("--without_dpo", action="store_true", help="leave DPO's two runs out")
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)

    gsm8k = [{"messages": conversation(r["question"], r["answer"])} for r in read(args.data / "gsm8k_train.jsonl")]
    test = [{"messages": conversation(r["question"], r["answer"])} for r in read(args.data / "gsm8k_test.jsonl")]
    questions = [{"prompt": row["messages"][:1], "answer": row["messages"][1]["content"]} for row in gsm8k]
    pairs = solution_pairs(args.data)
    # As it stands, but for the pairs whose dialogues are the same: those teach nothing, and are refused.
    hh = [row for row in pair_rows(args.data) if row["chosen"] != row["rejected"]]
    write(args.to / "gsm8k", gsm8k, test[:HELD_OUT])
    write(args.to / "questions", questions, questions[:HELD_OUT])
    write(args.to / "solutions", pairs[HELD_OUT:], pairs[:HELD_OUT])
    write(args.to / "hh", hh[HELD_OUT:], hh[:HELD_OUT])
    print(f"rows: gsm8k {len(gsm8k)}, pairs of solutions {len(pairs)}, hh {len(hh)}; {HELD_OUT} held out of each")

    base = args.to / "base"
    tokenizer = make_tokenizer(text for row in (*gsm8k, *hh) for text in texts_of(row))
    tokenizer.save_pretrained(base)
    make_model(tokenizer).save_pretrained(base)

    sft = args.to / "gsm8k-sft"
    train("sft", base, args.to / "gsm8k", sft, *"--learning_rate 1e-3 --max_steps 300 --eval_steps 60".split())
    dpo = "--learning_rate 2e-5 --max_steps 200 --eval_steps 40 --precompute_ref_log_probs".split()
    if not args.without_dpo:
        train("dpo", sft, args.to / "solutions", args.to / "solutions-dpo", *dpo)
        train("dpo", sft, args.to / "hh", args.to / "hh-dpo", *dpo)
    reward = args.to / "solutions-reward"
    train("reward", sft, args.to / "solutions", reward, *"--learning_rate 1e-4 --max_steps 200 --eval_steps 40".split())

    sampling = "--per_device_train_batch_size 64 --num_generations 8 --max_completion_length 128 --max_steps 50".split()
    own = Path(__file__).resolve().parent / "bench_reward.py"
    functions = ["--reward_funcs", "accuracy_reward", f"{own}:says_a_number", "--learning_rate", "1e-4"]
    train("grpo", sft, args.to / "questions", args.to / "questions-grpo", *sampling, *functions)
    model = ["--reward_model_name_or_path", str(reward), "--learning_rate", "1e-4"]
    train("rloo", sft, args.to / "questions", args.to / "questions-rloo", *sampling, *model)


if __name__ == "__main__":
    main()
