"""How far plans are off: each stage of the embedded experiment, and each method on real rows with a model of 4.2M
parameters, planned by formula, planned with a probe, and then run for some steps.

    .venv/bin/python benchmarks/plan_accuracy.py --data DATA [--folder FOLDER] [--cases dpo bench-dpo]

DATA holds GSM8K's `gsm8k_train.jsonl` and hh-rlhf's `hh_harmless_test.jsonl.gz`. What is made once (data, models) stays
in FOLDER. One thread; every command in a process of its own, one after the other.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = {  # method → flags on top of params.yaml
    "sft": {"max_steps": 60, "warmup_steps": 6, "eval_steps": 30},
    "reward": {"max_steps": 40, "warmup_steps": 4, "eval_steps": 20},
    "dpo": {"max_steps": 40, "warmup_steps": 4, "eval_steps": 20},
    "grpo": {"max_steps": 30, "eval_steps": 15},
    "rloo": {"max_steps": 30, "eval_steps": 15},
}
_ROLLOUTS = {"num_generations": 8, "max_completion_length": 128, "per_device_train_batch_size": 32, "max_steps": 12}
MATERIAL = {  # method → folder of rows, flags
    "sft": ("sft", {"max_steps": 40}),
    "reward": ("pairs", {"max_steps": 40}),
    "dpo": ("pairs", {"max_steps": 40}),
    "grpo": ("prompts", _ROLLOUTS | {"reward_funcs": "get_soft_overlong_punishment"}),
    "rloo": ("prompts", _ROLLOUTS | {"beta": 0.05}),
}
CASES = [*STAGES, *(f"bench-{method}" for method in MATERIAL)]


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--cases", nargs="*", default=CASES, choices=CASES)
    args = parser.parse_args()
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="posttrain-accuracy-"))).absolute()
    make_material(folder, args.data.absolute())
    found = folder / "accuracy.json"
    results = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else {}
    for case in args.cases:
        results[case] = measure(case, folder)
        found.write_text(json.dumps(results, indent=1), encoding="utf-8")
        print(f"{case}: {json.dumps(results[case])}", file=sys.stderr, flush=True)
    print("\n".join(table({case: results[case] for case in CASES if case in results})))


def make_material(folder: Path, data: Path) -> None:
    """The embedded data with an SFT and a reward model as in params.yaml, and real rows with a random model."""
    emb, bench = folder / "embedded", folder / "bench"
    if not (emb / "models/reward").is_dir():
        subprocess.run(["git", "clone", "-q", str(ROOT), str(emb)], check=True)
        brief = "--save_strategy no --eval_strategy no".split()
        call(["scripts/prepare.py"], emb, folder)
        call(["scripts/sft.py", *brief], emb, folder)
        call(["scripts/reward.py", *brief], emb, folder)
    if not (bench / "tokens.json").is_file():
        call(
            [str(ROOT / "benchmarks/material.py"), "--data", str(data), "--to", str(bench), "--rows", "600"],
            ROOT,
            folder,
        )


def call(words: list[str], where: Path, folder: Path) -> str:
    """Run python; returns what it wrote to stdout."""
    own = {"OMP_NUM_THREADS": "1", "POSTTRAIN_CACHE": str(folder / "cache")}
    paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | own | {"PYTHONPATH": paths}
    done = subprocess.run([sys.executable, *words], cwd=where, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def measure(case: str, folder: Path) -> dict[str, float]:
    """Plan a case twice and run it once."""
    method, where = case.removeprefix("bench-"), folder / "embedded"
    with tempfile.TemporaryDirectory(prefix="posttrain-run-") as temporary:
        if case in STAGES:
            places = {"output_dir": f"{temporary}/model", "work_dir": f"{temporary}/work"}
            places |= {"metrics_file": f"{temporary}/m.json", "plots_file": f"{temporary}/p.csv"}
            words = as_words(STAGES[method] | places | {"report_to": "none"})
            planned, command = ["--params", "params.yaml"], [f"scripts/{method}.py", *words]
        else:
            rows, flags = MATERIAL[method]
            bench = folder / "bench"
            named = {"model_name_or_path": bench / "model", "dataset_name": bench / rows, "logging_steps": 5}
            if method == "rloo":
                named["reward_model_name_or_path"] = bench / "reward_model"
            words = as_words({**named, **flags, "output_dir": f"{temporary}/model", "disable_tqdm": "true"})
            planned, command = [], ["-m", "posttrain.cli", method, *words]
        plan = ["-m", "posttrain.cli", "plan", method, *planned, *words, "--format", "json"]
        formula, probed = (json.loads(call([*plan, *more], where, folder)) for more in ([], ["--probe"]))
        call(command, where, folder)
        [file] = Path(temporary).rglob("plan.json")
        outcome = json.loads(file.read_text(encoding="utf-8"))["outcome"]
    return {
        "formula_mib": formula["peak"] / 2**20,
        "probe_mib": probed["peak"] / 2**20,
        "actual_mib": outcome["peak_memory_mib"],
        "formula_s": formula["time"]["step"],
        "probe_s": probed["time"]["step"],
        "actual_s": outcome["seconds_a_step"],
        "probe_cpu": probed["time"]["step"] * sum(probed["probe"]["of_processor"]) / sum(probed["probe"]["seconds"]),
        "actual_cpu": outcome["processor_seconds_a_step"],
    }


def as_words(flags: dict[str, object]) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def table(results: dict[str, dict[str, float]]) -> list[str]:
    """Markdown: predicted, and by how much it was off what it took."""
    lines = [
        "| run | MiB | formula | probe | s a step | formula | probe | s of the processor | probe |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, one in results.items():
        cells = [case]
        for unit, form in (("mib", ",.0f"), ("s", ".3f"), ("cpu", ".3f")):
            actual = one[f"actual_{unit}"]
            cells.append(f"{actual:{form}}")
            for way in ("formula", "probe") if unit != "cpu" else ("probe",):
                off = f"{(one[f'{way}_{unit}'] / actual - 1) * 100:+.0f}%".replace("-", "−")
                cells.append(f"{one[f'{way}_{unit}']:{form}} ({off})")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
