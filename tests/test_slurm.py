"""The batch script, with stand-ins for Slurm's programs: what it starts, and when the job is queued again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts/train.sbatch"
# Runs the task of each node, one after the other, and ends as the worst of them.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
worst=0
for node in 0 1; do
    SLURM_NODEID=$node SLURM_NNODES=2 "$@"
    code=$?
    [ $code -gt $worst ] && worst=$code
done
exit $worst
"""
SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
"show hostnames") printf '%s\\n' node7 node8 ;;
"show job") echo "JobId=31234 JobState=$STATE PreemptTime=$PREEMPTED" ;;
requeue*) echo "requeued $2" ;;
esac
"""
POSTTRAIN = """#!/usr/bin/env bash
printf '<%s>' "$@"
echo
[ "$WAITS" = no ] || sleep 1
exit "$CODE"
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("posttrain", POSTTRAIN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def job(programs: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    """The script, as Slurm runs it."""
    given = {"SLURM_JOB_ID": "31234", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2", "WAITS": "no"}
    given |= {"SLURM_GPUS_ON_NODE": "8", "STATE": "RUNNING", "PREEMPTED": "None", "CODE": "0"} | variables
    return subprocess.Popen(
        ["bash", str(SCRIPT), *words],
        env=os.environ | given | {"PATH": f"{programs}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_command_for_each_node(programs: Path) -> None:
    done = job(programs, "sft", "--config", "a b.yaml")
    said, _ = done.communicate()
    meeting = "<--num_processes><16><--main_process_ip><node7><--main_process_port><21234>"
    assert said.splitlines() == [
        f"<sft><--config><a b.yaml><--num_machines><2><--machine_rank><{rank}>{meeting}" for rank in (0, 1)
    ]
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("variables", "again"),
    [
        ({"CODE": "138"}, True),  # its time was nearly over
        ({"CODE": "143", "PREEMPTED": "2026-01-01T00:00:00"}, True),
        ({"CODE": "143"}, False),  # somebody has told it to end
        ({"CODE": "143", "PREEMPTED": "2026-01-01T00:00:00", "STATE": "CANCELLED"}, False),
        ({"CODE": "1"}, False),
        ({"CODE": "2"}, False),
        ({}, False),
    ],
)
def test_when_the_job_is_queued_again(variables: dict[str, str], again: bool, programs: Path) -> None:
    done = job(programs, "sft", **variables)
    said, _ = done.communicate()
    assert ("requeued 31234" in said) == again
    assert done.returncode == int(variables.get("CODE", 0))


def test_the_script_outlives_the_signals_that_end_its_run(programs: Path) -> None:
    done = job(programs, "sft", WAITS="yes", CODE="138")
    assert done.stdout is not None and "machine_rank" in done.stdout.readline()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        done.send_signal(number)
        time.sleep(0.1)
    said, _ = done.communicate()
    assert "requeued 31234" in said and done.returncode == 138


def test_a_job_without_a_command_says_what_is_missing(programs: Path) -> None:
    done = job(programs)
    assert "usage: sbatch" in done.communicate()[1] and done.returncode == 2
