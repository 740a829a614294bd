"""A process that runs commands one after the other, for tests that need a hub: huggingface_hub reads its address when
it is imported, which is once and here. One JSON line a command comes in, one with the exit code and all output goes
out."""

import json
import os
import sys
import tempfile
import traceback
from typing import Any


def run(words: list[str]) -> int:
    from posttrain.cli import main

    try:
        return main(words)
    except SystemExit as error:
        return int(error.code or 0)
    except Exception:
        traceback.print_exc()
        return 1


def set_offline(value: bool) -> None:
    """For the libraries that have read the variable already."""
    if "huggingface_hub.constants" in sys.modules:
        sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE = value
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = value


def serve(answers: Any) -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        before = dict(os.environ)
        os.environ.update(asked["environment"])
        set_offline("HF_HUB_OFFLINE" in os.environ)
        os.chdir(asked["folder"])
        sys.argv = ["posttrain", *asked["words"]]
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            code = run(asked["words"])
            if "wandb" in sys.modules:  # otherwise it writes the rest of its files when the process ends
                sys.modules["wandb"].finish()
            sys.stdout.flush()
            sys.stderr.flush()
            file.seek(0)
            output = file.read().decode(errors="replace")
        is_offline = "HF_HUB_OFFLINE" in os.environ  # a run that finds no network stays with it
        os.environ.clear()
        os.environ.update(before)
        answers.write(json.dumps({"code": code, "output": output, "offline": is_offline}) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(os.fdopen(os.dup(1), "w"))
