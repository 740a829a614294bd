"""What holds for every test: no network, no files outside pytest's own folder, no draws that differ between runs."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

# Until all tests are collected, and with them the libraries: see posttrain.loading.
gc.disable()
# A shell that starts this in the background has Ctrl-C ignored, here and in all that is started from here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Set before transformers, datasets or tokenizers are imported anywhere: they read these once.
_SCRATCH = Path(tempfile.mkdtemp(prefix="posttrain-tests-"))
atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)
os.environ["HF_HOME"] = str(_SCRATCH / "huggingface")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["POSTTRAIN_CACHE"] = str(_SCRATCH / "posttrain")
os.environ["DVC_NO_ANALYTICS"] = "1"
os.environ["TRACKIO_DIR"] = str(_SCRATCH / "trackio")
# Models this small run fastest on one core, whatever else the machine does.
os.environ["OMP_NUM_THREADS"] = "1"

from hub_session import _worker, command, hub  # noqa: E402, F401 (fixtures, for as long as the session lasts)

REPOSITORY = Path(__file__).resolve().parent.parent
# Files that take more than 10 s, the longest first. They are begun first, so that no process is left with one of them
# while the others have nothing more to do; pytest-xdist by itself begins with the files that have the most tests.
LONG = (
    *("test_kills", "test_distributed", "test_parity", "test_sweep", "test_killed_pipeline", "test_stop", "test_hosts"),
    *("test_vllm_training", "test_hub", "test_stop_processes", "test_repro_check", "test_manual", "test_training"),
    *("test_waiting", "test_rewards_judge", "test_compiled", "test_policy_training", "test_documents_run"),
    *("test_report", "test_rewards_bounds", "test_corpus_data", "test_launch", "test_scaling", "test_trainer_flags"),
    *("test_rollout_engine", "test_recipes_planned", "test_finite", "test_data_hub", "test_resume", "test_smoke"),
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a fifth of the time tests wait, for signals, timers and other processes."""
    from posttrain.machine import num_cores

    return num_cores() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders whole files; those that are not long stay as they are."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_collection_finish() -> None:
    """Training looks for garbage again and again, which among all that libraries have made takes 0.3 s each time."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What a file has loaded stays, too: a compiler alone makes each later search for garbage 0.1 s longer."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports go from process to process as UTF-8, which has no half characters; some tests are about these."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root folder of the checkout that the tests stand in."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state, so that a test gives the same alone and among others."""
    import random

    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
