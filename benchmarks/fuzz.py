"""Fuzz the readers of data, templates, flags and YAML for as long as is asked, and print what was found.

    python benchmarks/fuzz.py --seconds 3600

Every round takes one target (tests/fuzzing.py) with a seed of its own; a failure is shown with the smallest input that
shows it, and the round after it goes on. Exit code 1 where something was found.
"""

import argparse
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fuzzing import BINARY_TARGETS, TARGETS

EXAMPLES = 500  # a round


def run_round(name: str, number: int, counts: Counter[str]) -> str | None:
    """One round of a target; the report of what it found."""
    strategy, target = {**TARGETS, **BINARY_TARGETS}[name]

    @seed(number)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one_round(value: object) -> None:
        counts[name] += 1
        target(value)

    try:
        one_round()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{name}, seed {number}\n{''.join(traceback.format_exception(error, limit=-6))}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--targets", nargs="*", default=[*TARGETS, *BINARY_TARGETS])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    found: dict[str, str] = {}
    start, number = time.monotonic(), arguments.first_seed
    while time.monotonic() - start < arguments.seconds:
        for name in arguments.targets:
            report = run_round(name, number, counts)
            if report is not None:
                last = report.strip().splitlines()[-1]
                if last not in found:
                    print(report, flush=True)
                found.setdefault(last, report)
        number += 1
        print(f"{time.monotonic() - start:.0f} s, {dict(counts)}, {len(found)} finds", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
