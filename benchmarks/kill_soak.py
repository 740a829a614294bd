"""Kills training runs of all five methods many times (see tests/kills.py), starts each again until it is done, and
tells how many ended with the bytes and numbers of an undisturbed one. Exit code 1 where one did not."""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from kill_runs import VARIANTS, Campaign, run_of, write_material
from kills import Server

KINDS = ("rewards", "data", "checkpoint", "removal", "model", "time")


def row(cells: list[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=500, help="in all")
    parser.add_argument("--methods", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    arguments = parser.parse_args()
    names = [(method, variant) for method in arguments.methods for variant in VARIANTS[method]]
    print(row(["method", "variant", "kills", *KINDS, "runs ended", "equal"]), flush=True)
    print(row(["---"] * (5 + len(KINDS))), flush=True)
    different, all_kills = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        material = Path(folder)
        server = Server(write_material(material))
        for place, (method, variant) in enumerate(names):
            run = run_of(method, variant, material)
            campaign = Campaign(server, run, material / f"{place}", arguments.seed * 1000 + place)
            wanted = arguments.kills * (place + 1) // len(names) - arguments.kills * place // len(names)
            unequal = 0
            while len(campaign.where) < wanted:
                try:
                    campaign.kill(wanted - len(campaign.where))
                except AssertionError as error:
                    unequal += 1
                    campaign.runs += 1
                    print(error, file=sys.stderr, flush=True)
            where = Counter(one.partition(" ")[0] for one in campaign.where)
            counts = [where[kind] for kind in KINDS]
            print(row([method, variant, wanted, *counts, campaign.runs, campaign.runs - unequal]), flush=True)
            different += unequal
            all_kills += len(campaign.where)
        server.close()
    print(f"\n{all_kills} kills, {different} runs that ended otherwise")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
