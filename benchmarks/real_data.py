"""SFT on GSM8K, then DPO on pairs of model solutions and on hh-rlhf, from the command line, with a small model.

Writes the rows and a random model of 4 million parameters into a folder, runs the three commands there and prints what
was held out before, during and after. It shows that real rows go through; what such a small model learns is little.
"""

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path

from material import make_model, make_tokenizer, texts_of

HELD_OUT = 200


def read(path: Path) -> list[dict]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def conversation(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


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


def write(folder: Path, train: list[dict], test: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train(method: str, model: Path, data: Path, out: Path, *flags: str) -> None:
    """Runs a command and prints its held-out curve."""
    common = {"model_name_or_path": model, "dataset_name": data, "output_dir": out, "save_strategy": "no", "seed": 42}
    common |= {"eval_strategy": "steps", "eval_on_start": "true", "logging_steps": 10, "disable_tqdm": "true"}
    words = [word for name, value in common.items() for word in (f"--{name}", str(value))]
    print(f"\nposttrain {method} {' '.join([*words, *flags])}", flush=True)
    log = (out.parent / f"{out.name}.log").open("w", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "posttrain.cli", method, *words, *flags], check=True, stdout=log, stderr=log)
    names = ["eval_loss"] + ["eval_rewards/accuracies", "eval_rewards/margins"] * (method == "dpo")
    print("step " + " ".join(names))
    for line in json.loads((out / "trainer_state.json").read_text())["log_history"]:
        if "eval_loss" in line:
            print(f"{line['step']:>4} " + " ".join(f"{line[name]:.4f}" for name in names), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="folder with the GSM8K and hh-rlhf files")
    parser.add_argument("--to", type=Path, default=Path("work/real"))
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)

    gsm8k = [{"messages": conversation(r["question"], r["answer"])} for r in read(args.data / "gsm8k_train.jsonl")]
    test = [{"messages": conversation(r["question"], r["answer"])} for r in read(args.data / "gsm8k_test.jsonl")]
    pairs = solution_pairs(args.data)
    # As it stands, but for the pairs whose dialogues are the same: those teach nothing, and are refused.
    hh = [row for row in read(args.data / "hh_harmless_test.jsonl.gz") if row["chosen"] != row["rejected"]]
    write(args.to / "gsm8k", gsm8k, test[:HELD_OUT])
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
    train("dpo", sft, args.to / "solutions", args.to / "solutions-dpo", *dpo)
    train("dpo", sft, args.to / "hh", args.to / "hh-dpo", *dpo)


if __name__ == "__main__":
    main()
