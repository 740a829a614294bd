"""Measures whole training steps of posttrain and of its peer, trl, on the same rows, model and flags.

The peer lives in an environment of its own (.venv-peer, made on the first run); both run the same number of steps in
turn, several times, each time in a fresh process with empty caches and all cores, and a callback of transformers times
the steps on both sides. Prints a table, and writes it with all the numbers to work/bench/.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEER_PACKAGES = ["trl==1.16.0", "torch==2.13.0", "transformers==5.23.0", "peft"]
BATCHES = {"sft": 8, "reward": 8, "dpo": 8, "grpo": 32, "rloo": 32}  # rows, pairs or completions a step
ROWS = {"sft": "sft", "reward": "pairs", "dpo": "pairs", "grpo": "prompts", "rloo": "prompts"}  # of the material
LEARNING_RATES = {"sft": "1e-3", "reward": "1e-4", "dpo": "1e-4", "grpo": "1e-5", "rloo": "1e-5"}
SAMPLING = {"grpo", "rloo"}  # what they train on is drawn, and differs between the sides
MEBIBYTE = 2**20


def flags_of(method: str, material: Path, output: Path, steps: int) -> list[str]:
    """The flags of a run, the same for both sides: float32, the rows in their order, nothing but training."""
    given = {
        "model_name_or_path": material / ("reward_model" if method == "reward" else "model"),
        "dataset_name": material / ROWS[method],
        "output_dir": output,
        "max_steps": steps,
        "per_device_train_batch_size": BATCHES[method],
        "learning_rate": LEARNING_RATES[method],
        "lr_scheduler_type": "constant",
        "dtype": "float32",
        "bf16": "false",
        "gradient_checkpointing": "false",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": "true",
        "use_cpu": "true",
    }
    if method in SAMPLING:
        given |= {
            "reward_funcs": "bench_reward.share_of_thirds",
            "num_generations": 8,
            "max_completion_length": 128,
            "shuffle_dataset": "false",
        }
    else:
        given |= {"max_length": 1024, "train_sampling_strategy": "sequential"}
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def run_once(python: Path, runner: str, method: str, material: Path, steps: int) -> dict:
    """Train in a fresh process with empty caches, and return what the recorder wrote."""
    with tempfile.TemporaryDirectory() as scratch:
        record = Path(scratch) / "record.json"
        environment = os.environ | {
            "OMP_NUM_THREADS": str(os.cpu_count()),  # accelerate's launcher would give the peer one
            "HF_HOME": f"{scratch}/huggingface",
            "POSTTRAIN_CACHE": f"{scratch}/posttrain",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(HERE),  # for the reward
        }
        flags = flags_of(method, material, Path(scratch) / "output", steps)
        command = [str(python), str(HERE / runner), method, str(record), *flags]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=scratch)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\nfailed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return json.loads(record.read_text(encoding="utf-8"))


def summary(method: str, runs: list[dict[str, dict]], tokens: list[int], skip: int) -> dict:
    """Put the paired runs of a method together: medians over runs, ratios from runs of the same pair.

    Args:
        runs: One entry a pair, `{"own": record, "peer": record}`.
        tokens: Tokens of each row, in order.
        skip: Steps at the beginning that are left out of the times.
    """
    sides = {}
    for side in ("own", "peer"):
        records = [pair[side] for pair in runs]
        steps = len(records[0]["step_seconds"])
        timed_tokens = (
            records[0]["num_tokens"][-1] - records[0]["num_tokens"][skip - 1]
            if method in SAMPLING
            else sum(tokens[skip * BATCHES[method] : steps * BATCHES[method]])
        )
        mean_seconds = [statistics.mean(record["step_seconds"][skip:]) for record in records]
        sides[side] = {
            "seconds_a_step": statistics.median(mean_seconds),
            "median_step_seconds": statistics.median(s for record in records for s in record["step_seconds"][skip:]),
            "tokens_per_second": timed_tokens / (statistics.median(mean_seconds) * (steps - skip)),
            "peak_memory_mebibytes": statistics.median(r["peak_memory_bytes"] for r in records) / MEBIBYTE,
            "memory_before_mebibytes": statistics.median(r["memory_before_bytes"] for r in records) / MEBIBYTE,
            "start_seconds": statistics.median(r["start_seconds"] for r in records),
            "losses": records[0]["losses"],
            "grad_norms": records[0]["grad_norms"],
        }
    pairs = [(sum(pair["peer"]["step_seconds"][skip:]), sum(pair["own"]["step_seconds"][skip:])) for pair in runs]
    memory = [(pair["own"]["peak_memory_bytes"], pair["peer"]["peak_memory_bytes"]) for pair in runs]
    return {
        "method": method,
        "sides": sides,
        "speedup": statistics.median(peer / own for peer, own in pairs),
        "peak_memory_ratio": statistics.median(own / peer for own, peer in memory),
        "largest_relative_loss_difference": None
        if method in SAMPLING
        else largest_difference(sides["own"]["losses"], sides["peer"]["losses"]),
    }


def largest_difference(ours: list[float], theirs: list[float]) -> float:
    """The largest of |a − b| / |b| along two curves."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def table(results: list[dict]) -> str:
    """The results as a markdown table."""
    methods = [result["method"] for result in results]
    heads = [f"{method.upper()} {side}" for method in methods for side in ("posttrain", "trl")]
    lines = [f"| | {' | '.join(heads)} |", f"|---{'|---' * len(heads)}|"]
    rows = [
        ("seconds a step", "seconds_a_step", ".3f"),
        ("tokens a second", "tokens_per_second", ",.0f"),
        ("peak memory of the process, MiB", "peak_memory_mebibytes", ",.0f"),
        ("… of it before the first step, MiB", "memory_before_mebibytes", ",.0f"),
        ("seconds from start to first step", "start_seconds", ".1f"),
    ]
    by_method = {result["method"]: result for result in results}
    for title, key, form in rows:
        cells = [format(by_method[method]["sides"][side][key], form) for method in methods for side in ("own", "peer")]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    for result in results:
        lines.append("")
        difference = result["largest_relative_loss_difference"]
        losses = "" if difference is None else f", losses within {difference:.1e} relative of each other"
        lines.append(
            f"{result['method'].upper()}: {result['speedup']:.2f}× as fast, {result['peak_memory_ratio']:.2f}× the "
            f"peak memory{losses}"
        )
    return "\n".join(lines)


def peer_python(given: Path | None) -> Path:
    """The peer's interpreter; its environment is made if there is none."""
    python = given or ROOT / ".venv-peer/bin/python"
    if not python.exists():
        print(f"posttrain: making .venv-peer with {', '.join(PEER_PACKAGES)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", ROOT / ".venv-peer"], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # The libraries that both sides share have the same versions on both.
        subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", *PEER_PACKAGES], check=True)
    return python


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("POSTTRAIN_DATA"),
        help="folder with gsm8k_train.jsonl and hh_harmless_test.jsonl.gz; unset: $POSTTRAIN_DATA",
    )
    parser.add_argument("--methods", nargs="+", choices=list(LEARNING_RATES), default=list(LEARNING_RATES))
    parser.add_argument("--steps", type=int, default=12, help="steps a run")
    parser.add_argument("--skip", type=int, default=2, help="first steps left out of the times")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side, in turn")
    parser.add_argument("--peer_python", type=Path, help="an environment with trl, in place of .venv-peer")
    parser.add_argument("--to", type=Path, default=ROOT / "work/bench", help="folder of the results")
    args = parser.parse_args()
    if args.data is None:
        parser.error(
            "no data: name a folder with gsm8k_train.jsonl and hh_harmless_test.jsonl.gz by --data or POSTTRAIN_DATA"
        )
    missing = [name for name in ("gsm8k_train.jsonl", "hh_harmless_test.jsonl.gz") if not (args.data / name).is_file()]
    if missing:
        parser.error(f"{args.data} holds no {' and no '.join(missing)}: name the folder with --data or POSTTRAIN_DATA")
    if not 0 < args.skip < args.steps:
        parser.error("--skip must be at least 1, and less than --steps")
    return args


def main() -> None:
    """Measure, print and store."""
    args = parse_arguments()
    material = (args.to / "material").resolve()
    shutil.rmtree(material, ignore_errors=True)
    make = [
        sys.executable,
        HERE / "material.py",
        "--data",
        args.data,
        "--to",
        material,
        "--rows",
        str(args.steps * 8),
    ]
    subprocess.run(make, check=True)
    sizes = json.loads((material / "tokens.json").read_text(encoding="utf-8"))
    sides = {"own": (Path(sys.executable), "own_runner.py"), "peer": (peer_python(args.peer_python), "peer_runner.py")}
    results = []
    for method in args.methods:
        runs: list[dict[str, dict]] = []
        for number in range(args.pairs):
            order = ["own", "peer"] if number % 2 == 0 else ["peer", "own"]
            runs.append({side: run_once(*sides[side], method, material, args.steps) for side in order})
            print(f"posttrain: {method} pair {number + 1} of {args.pairs} measured", flush=True)
        results.append(summary(method, runs, sizes[ROWS[method]], args.skip))
    head = (
        f"{sizes['parameters'] / 1e6:.1f}M-parameter Qwen2, float32, {os.cpu_count()} cores "
        f"({platform.machine()}), steps {args.skip + 1} to {args.steps}, medians of {args.pairs} pairs of runs"
    )
    text = f"{head}\n\n{table(results)}\n"
    (args.to / "results.json").write_text(json.dumps({"setting": head, "results": results}, indent=1), encoding="utf-8")
    (args.to / "results.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
