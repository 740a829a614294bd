"""What grows with the size of a run, and must not: memory and open files, over millions of rows, hundreds of thousands
of completions, and tens of thousands of steps. Runs commands with a tiny model and looks at them from outside."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tiny import write_base, write_sft

REWARD = """
def share_of_one(completion_ids, **columns):
    return [sum(token % 3 == 0 for token in ids) / len(ids) for ids in completion_ids]
"""
COMMON = ["--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true", "--learning_rate", "1e-4"]
SHARES = (0.25, 0.5, 0.75, 0.95)


@dataclasses.dataclass(frozen=True)
class Moment:
    """A command at a moment: seconds since its start, MiB that its processes hold for themselves and in all (with the
    pages of files that they have mapped), and open files."""

    seconds: float
    own: float
    resident: float
    files: int


def tree(root: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found = [root]
    for process in found:
        found += parents.get(process, [])
    return found


def look(root: int, began: float) -> Moment | None:
    """A process and all below it, now; None if it has ended."""
    own = resident = files = 0
    for process in tree(root):
        try:
            status = Path(f"/proc/{process}/status").read_text()
            files += len(os.listdir(f"/proc/{process}/fd"))
        except OSError:
            continue
        sizes = {line.split()[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith("Rss")}
        own += sizes.get("RssAnon:", 0)
        resident += sum(sizes.values())
    return Moment(time.monotonic() - began, own / 1024, resident / 1024, files) if resident else None


def run(words: list[str], folder: Path, every: float = 1.0) -> list[Moment]:
    """Runs `posttrain WORDS` and looks at it again and again, after so many seconds each."""
    began = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "POSTTRAIN_CACHE": str(folder / "cache")}
    with open(folder / "log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "posttrain.cli", *words], cwd=folder, env=environment, stdout=log, stderr=log
        )
        moments = []
        while process.poll() is None:
            moments.append(look(process.pid, began))
            time.sleep(every)
    if process.returncode:
        raise SystemExit((folder / "log").read_text(encoding="utf-8")[-3000:])
    return [moment for moment in moments if moment is not None]


def size_of(folder: Path) -> float:
    """MiB of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def write_pairs(path: Path, count: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            a, b = i % 1009, (7 * i) % 13
            row = {"prompt": f"{a} + {b} = ", "chosen": str(a + b), "rejected": str(a + b + 1)}
            file.write(json.dumps(row) + "\n")


def preferences(folder: Path, counts: list[int]) -> None:
    """DPO on files of so many pairs."""
    print("| pairs | file, MiB | way | s to the end | own memory, MiB | with mapped files, MiB | cache, MiB |")
    print("|---|---|---|---|---|---|---|")
    for count in counts:
        write_pairs(folder / "pairs.jsonl", count)
        for way, words in (("mapped", []), ("mapped, second run", []), ("streamed", ["--dataset_streaming"])):
            data = ["--dataset_name", "pairs.jsonl", "--model_name_or_path", "base", "--max_steps", "5"]
            out = ["--output_dir", f"out-{way}-{count}", "--per_device_train_batch_size", "8"]
            moments = run(["dpo", *data, *out, *COMMON, *words], folder, every=0.2)
            own, resident = (max(getattr(moment, name) for moment in moments) for name in ("own", "resident"))
            print(
                f"| {count:,} | {size_of_file(folder / 'pairs.jsonl'):.0f} | {way} | {moments[-1].seconds:.0f} | "
                f"{own:.0f} | {resident:.0f} | {size_of(folder / 'cache'):.0f} |",
                flush=True,
            )
        (folder / "pairs.jsonl").unlink()


def size_of_file(path: Path) -> float:
    return path.stat().st_size / 2**20


def show_growth(name: str, moments: list[Moment]) -> None:
    """How much is held after each quarter of a run."""
    at = [moments[int(share * (len(moments) - 1))] for share in SHARES]
    cells = [f"{moment.own:.0f} MiB, {moment.files} files" for moment in at]
    print(f"| {name} | {moments[-1].seconds:.0f} | {' | '.join(cells)} |", flush=True)


def rollouts(folder: Path, prompts: int) -> None:
    """GRPO over so many prompts × 8 completions of 1 to 4 tokens, all different."""
    with open(folder / "prompts.jsonl", "w", encoding="utf-8") as file:
        for i in range(prompts):
            file.write(json.dumps({"prompt": f"{i} + {i % 7} ="}) + "\n")
    steps = prompts // 128
    words = ["--dataset_name", "prompts.jsonl", "--model_name_or_path", "base", "--output_dir", "out-rollouts"]
    words += ["--num_generations", "8", "--max_completion_length", "4", "--per_device_train_batch_size", "1024"]
    words += ["--max_steps", str(steps), "--reward_funcs", "reward.py:share_of_one", "--logging_steps", "50"]
    show_growth(f"GRPO, {prompts:,} prompts × 8 completions", run(["grpo", *words, *COMMON], folder))


def steps(folder: Path, method: str, number: int) -> None:
    """So many small steps, with checkpoints and evaluation."""
    write_sft(folder / "sft.jsonl", 64)
    (folder / "questions.jsonl").write_text('{"prompt": "1 + 1 ="}\n{"prompt": "2 + 3 ="}\n' * 32, encoding="utf-8")
    data = "sft.jsonl" if method == "sft" else "questions.jsonl"
    words = ["--dataset_name", data, "--model_name_or_path", "base", "--output_dir", f"out-{method}"]
    words += ["--max_steps", str(number), "--per_device_train_batch_size", "8", "--logging_steps", "100"]
    words += ["--eval_strategy", "steps", "--eval_steps", str(number // 20), "--test_split_size", "8"]
    if method == "grpo":
        words += ["--num_generations", "4", "--max_completion_length", "8", "--log_completions"]
        words += ["--reward_funcs", "reward.py:share_of_one", "--beta", "0.1", "--num_completions_to_print", "0"]
    saving = ["--save_strategy", "steps", "--save_steps", str(number // 20), "--save_total_limit", "2"]
    show_growth(f"{method.upper()}, {number:,} steps", run([method, *words, *COMMON[2:], *saving], folder))


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("parts", nargs="+", choices=["preferences", "rollouts", "sft", "grpo"])
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers")
    parser.add_argument("--folder", type=Path, help="to work in; unset: a temporary one")
    arguments = parser.parse_args()
    many: Callable[[int], int] = lambda number: int(number * arguments.scale)  # noqa: E731
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_base(folder / "base")
        (folder / "reward.py").write_text(REWARD, encoding="utf-8")
        if "preferences" in arguments.parts:
            preferences(folder, [many(200_000), many(2_000_000)])
        if {"rollouts", "sft", "grpo"} & set(arguments.parts):
            print("\n| run | s | after a quarter | after a half | after three quarters | shortly before the end |")
            print("|---|---|---|---|---|---|", flush=True)
        if "rollouts" in arguments.parts:
            rollouts(folder, many(100_000))
        if "sft" in arguments.parts:
            steps(folder, "sft", many(20_000))
        if "grpo" in arguments.parts:
            steps(folder, "grpo", many(2_000))


if __name__ == "__main__":
    main()
