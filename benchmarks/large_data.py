"""Rows by the million: how fast they are prepared, what that takes of memory and disk, and how long a second start is.

Rows are put together from sentences of GSM8K and of hh-rlhf, by a seed: as many words as theirs, in lengths that vary
more, and no two alike. Then the commands that a person would type run in turn, each in a process of its own, and beside
them somebody looks at their memory (anonymous pages of all processes; what is mapped from disk is not theirs alone)
and at the files of the cache.
"""

import argparse
import gzip
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from material import make_model, make_tokenizer, texts_of

SEED = 7
_LOOK = 0.05  # seconds between two looks at a running command
_CHUNK = 20_000  # rows of a row group of Parquet


def sentences(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Sentences of GSM8K's questions, lines of its answers, and turns of hh-rlhf."""
    with open(folder / "gsm8k_train.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    questions = [one for row in rows for one in re.split(r"(?<=[.?!]) ", row["question"]) if one]
    answers = [one for row in rows for one in row["answer"].split("\n") if one]
    with gzip.open(folder / "hh_harmless_test.jsonl.gz", "rt", encoding="utf-8") as file:
        dialogues = [json.loads(line)["chosen"] for line in file]
    turns = [turn.strip() for one in dialogues for turn in re.split(r"\n\n(?:Human|Assistant):", one) if turn.strip()]
    return questions, answers, turns


def rows(kind: str, number: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of a kind: the same ones for the same number.

    Args:
        kind: sft, preference or prompts.
        number: of rows.
        folder: with the real data.
    """
    questions, answers, turns = sentences(folder)
    rng = random.Random(SEED)

    def some(of: list[str], mean: float, between: str) -> str:
        return between.join(rng.choices(of, k=1 + int(rng.expovariate(1 / mean))))

    for index in range(number):
        if kind == "preference":
            turns_before = 2 * (1 + int(rng.expovariate(1)))
            said = zip(("Human", "Assistant") * turns_before, rng.choices(turns, k=turns_before), strict=False)
            dialogue = "".join(f"\n\n{who}: {turn}" for who, turn in said)
            prompt = f"{dialogue}\n\nHuman: {rng.choice(turns)}\n\nAssistant:"
            yield {"chosen": f"{prompt} {index} {rng.choice(turns)}", "rejected": f"{prompt} {some(turns, 0.3, ' ')}"}
            continue
        question = some(questions, 2.5, " ")
        if kind == "prompts":
            yield {"prompt": [{"role": "user", "content": question}], "solution": str(index)}
            continue
        answer = f"{some(answers, 2.5, chr(10))}\n#### {index}"
        yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, made: Iterator[dict[str, Any]]) -> None:
    """Rows as JSON lines, or as Parquet."""
    if path.suffix == ".jsonl":
        with open(path, "w", encoding="utf-8") as file:
            for row in made:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return
    import pyarrow
    import pyarrow.parquet

    writer = None
    while chunk := list(itertools.islice(made, _CHUNK)):
        table = pyarrow.Table.from_pylist(chunk)
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def memory_of(process: int) -> tuple[int, int]:
    """Bytes of anonymous memory of a process and all that it has started: of all of them, and of the largest."""
    pending, sizes = [process], [0]
    while pending:
        one = pending.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text()
            for task in os.listdir(f"/proc/{one}/task"):
                pending += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
        except OSError:  # it has ended
            continue
        found = re.search(r"RssAnon:\s+(\d+)", status)
        sizes.append(int(found[1]) * 1024 if found else 0)
    return sum(sizes), max(sizes)


def watched(name: str, words: list[str], folder: Path, seconds: float) -> dict[str, Any]:
    """Run a command; tell what it took.

    Args:
        name: of the measurement.
        words: of the command.
        folder: for its output, and with the cache.
        seconds: after which it is asked to end; the next one goes on.

    Returns:
        Seconds in all and, where rows were prepared, until each file of the cache was there; rows that have been
        tokenised; peak memory of all processes together and of the largest, in MiB; size of the cache.
    """
    cache, log = folder / "cache" / "tokenised", folder / f"{name}.log"
    start, peak, largest = time.monotonic(), 0, 0
    known, seen, rows_read = set(cache.glob("*")), {}, 0
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "POSTTRAIN_CACHE": str(folder / "cache")}
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, env=environment)
        while process.poll() is None:
            total, one = memory_of(process.pid)
            peak, largest = max(peak, total), max(largest, one)
            for path in [path for path in cache.glob("*") if path not in known] + [*cache.glob("*.part/*.arrow")]:
                seen.setdefault(path.suffix[1:] if path.suffix in (".part", ".lock") else path.stem, passed(start))
            for journal in cache.glob("*.part/journal.json"):
                rows_read = rows_of(journal) or rows_read
            if passed(start) > seconds:
                process.send_signal(signal.SIGTERM)
                process.wait()
            time.sleep(_LOOK)
    found: dict[str, Any] = {"name": name, "seconds": passed(start)}
    if process.returncode not in (0, 128 + signal.SIGTERM):
        print(log.read_text()[-3000:], file=sys.stderr)
        raise SystemExit(f"{' '.join(words)}: {process.returncode}")
    ends = {"part": "begun", "documents": "tokenising", "rows": "writing_rows"}
    found |= {ends.get(what, "prepared"): at for what, at in seen.items() if what != "lock"}
    found |= {"rows_tokenised": rows_read, "peak_mib": peak >> 20, "largest_process_mib": largest >> 20}
    return found | {"cache_mib": sum(path.stat().st_size for path in cache.glob("*/*") if path.is_file()) >> 20}


def passed(start: float) -> float:
    return round(time.monotonic() - start, 1)


def rows_of(journal: Path) -> int | None:
    """Rows that have been tokenised, by the note of the process that does it."""
    try:
        return int(json.loads(journal.read_text())["counts"]["rows_read"])
    except (OSError, ValueError):
        return None


def commands(args: argparse.Namespace, data: Path, flags: list[str]) -> dict[str, list[str]]:
    """What can be run, by name."""
    method = {"sft": "sft", "preference": "dpo", "prompts": "grpo"}[args.kind]
    common = [method, "--model_name_or_path", str(args.to / "base"), "--dataset_name", str(data), "--max_steps", "3"]
    common += ["--per_device_train_batch_size", "4", "--save_strategy", "no", "--report_to", "none", "--logging_steps"]
    common += ["1", "--output_dir", str(args.to / "out"), *flags]
    if method == "grpo":
        common += ["--reward_funcs", "accuracy_reward", "--max_completion_length", "16", "--num_generations", "4"]
    posttrain = [sys.executable, "-m", "posttrain.cli"]
    train = [*posttrain, *common]
    return {
        "plan": [*posttrain, "plan", *common],
        "train": train,
        "two": [*train, "--num_processes", "2"],
        "stream": [*train, "--dataset_streaming"],
    }


def main() -> None:
    """Make the rows, and run the commands that are asked for."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="folder with the GSM8K and hh-rlhf files")
    parser.add_argument("--to", type=Path, default=Path("work/large"))
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--kind", choices=("sft", "preference", "prompts"), default="sft")
    parser.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl")
    parser.add_argument("--run", nargs="*", default=["plan", "train", "train"], help="plan, train, two, stream")
    parser.add_argument("--seconds", type=float, default=1e9, help="of a command, which is then ended and gone on from")
    parser.add_argument("--keep", action="store_true", help="keep rows and cache")
    args, flags = parser.parse_known_args()
    args.to.mkdir(parents=True, exist_ok=True)
    data, base = args.to / f"{args.kind}-{args.rows}.{args.format}", args.to / "base"
    if not data.is_file():
        start = time.monotonic()
        write(args.to / f".{data.name}", rows(args.kind, args.rows, args.data))
        (args.to / f".{data.name}").rename(data)
        print(f"{data.name}: {data.stat().st_size / 2**20:,.0f} MiB, made in {passed(start)} s", flush=True)
    if not base.is_dir():
        tokenizer = make_tokenizer(text for row in rows("sft", 20_000, args.data) for text in texts_of(row))
        tokenizer.save_pretrained(base)
        make_model(tokenizer).save_pretrained(base)
    runs = commands(args, data, flags)
    for name in args.run:
        shutil.rmtree(args.to / "out", ignore_errors=True)
        print(json.dumps(watched(name, runs[name], args.to, args.seconds)), flush=True)
    if not args.keep:
        shutil.rmtree(args.to)


if __name__ == "__main__":
    main()
