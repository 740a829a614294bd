"""Trackers (`--report_to`): whether they are there, where their files go, and that nothing is reported unasked."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from posttrain.config import CommonConfig
from posttrain.config.fields import suggestion
from posttrain.errors import UserError, install
from posttrain.hub import hide_token
from posttrain.wording import first_line

PAGE = "troubleshooting.md#trackers"
# Their names in `--report_to`, and the packages that they need.
PACKAGES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
    "azure_ml": "azureml",
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet_ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "flyte": "flytekit",
    "kubeflow": "kubeflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
}
EXTRAS = ("wandb", "trackio", "mlflow")  # of this project
# What libraries send to their makers on their own account, unless told not to.
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "VLLM_NO_USAGE_STATS": "1",
}


def be_quiet() -> None:
    """Switch off what libraries send to their makers, before they are imported; the user's own word counts first."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def check_trackers(config: CommonConfig) -> None:
    """Find the trackers of a run before anything loads, and tell them where to write.

    Args:
        config: Of the run.

    Raises:
        UserError: A tracker is unknown or not installed, or W&B has no account to report to.
    """
    names = list(_names(config))
    for name in names:
        if name not in PACKAGES:
            known = ", ".join([*list(PACKAGES)[:4], "all", "none"])
            raise UserError(f"--report_to {name}: no such tracker ({known}){suggestion(name, PACKAGES)}", PAGE)
        if importlib.util.find_spec(PACKAGES[name]) is None:
            command = install(name) if name in EXTRAS else f"pip install {PACKAGES[name]}"
            raise UserError(f"--report_to {name}: the package {PACKAGES[name]} is not installed: {command}", PAGE)
    folder = Path(config.work_dir or config.output_dir).absolute()
    if "wandb" in names:
        # Its own default is the current folder. W&B makes the folder `wandb` in it, if it is there.
        if "WANDB_DIR" not in os.environ:
            folder.mkdir(parents=True, exist_ok=True)
            os.environ["WANDB_DIR"] = str(folder)
        _set_project("WANDB_PROJECT", config)
        _log_in_to_wandb()
    if "mlflow" in names:
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        _set_project("MLFLOW_EXPERIMENT_NAME", config)


@contextlib.contextmanager
def tracker_errors() -> Iterator[None]:
    """A tracker's own error, such as a server that does not answer, becomes a message that names it."""
    try:
        yield
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        name = next((name for name, needed in PACKAGES.items() if needed == package), None)
        if name is None:
            raise
        raise UserError(
            f"--report_to {name} has failed: {hide_token(first_line(error))}; check its server and your account there, "
            "or name another tracker",
            PAGE,
        ) from error


def _names(config: CommonConfig) -> Iterator[str]:
    given = config.report_to
    names = [given] if isinstance(given, str) else list(given or ())
    if names == ["all"]:
        names = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package) is not None]
    yield from (name for name in names if name != "none" or len(names) > 1)


def _set_project(variable: str, config: CommonConfig) -> None:
    """transformers hands `project` to Trackio only."""
    if config.project is not None:
        os.environ.setdefault(variable, config.project)


def _log_in_to_wandb() -> None:
    """Now, and not after the weights have been loaded; in a terminal W&B asks for the key."""
    if os.environ.get("WANDB_MODE", "online") != "online" or os.environ.get("WANDB_DISABLED"):
        return
    import wandb

    try:
        is_in = wandb.login()
    except (wandb.errors.Error, ValueError):
        is_in = False
    if not is_in:
        raise UserError(
            "--report_to wandb: no account is known; run `wandb login` or set WANDB_API_KEY, or keep the run here for "
            "`wandb sync` with WANDB_MODE=offline",
            PAGE,
        )
