"""Where a model comes from: provenance.json, which stands beside every model and holds what would have to be the same
for it to be made again, and what was not asked for but may matter: machine, hour, state of git.

docs/trust.md lists its keys. What depends on parameters, data, code and versions alone is `deterministic`; the rest
differs from run to run, so the file is not in the manifest, and for a stage of DVC it lies beside the folder
(`provenance_file`), whose hash later stages depend on.
"""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.checkout import git, root_of, state_of
from posttrain.checkpoints import MANIFEST, PROVENANCE
from posttrain.config import CommonConfig
from posttrain.config.common import PATHS
from posttrain.config.fields import flags_of
from posttrain.config.flag_words import default_of
from posttrain.disk import write_text
from posttrain.file_hashes import Plain, base_model, digest_of_template, file_hashes
from posttrain.machine import cpu_model, machine_memory, num_cores
from posttrain.packages import installed, version_of
from posttrain.runs import code_digest, code_files, digest_of

if TYPE_CHECKING:
    from posttrain.data.prepare import PreparedData

FORMAT = 1
# Packages whose version may change a result; of all others the versions are kept, too, under `all_packages`.
PACKAGES = (
    *("torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors", "numpy", "pyarrow"),
    *("bitsandbytes", "deepspeed", "vllm", "flash-attn", "liger-kernel", "math-verify"),
)
# Logged values that differ from run to run on the same machine; they stay out of files that are hashed.
TIMINGS = ("tokens_per_second", "step_time", "peak_memory_mib", "runtime", "samples_per_second", "steps_per_second")
# Sections that a repetition has, too; of code, data, params and metrics a part.
_KEPT = (
    *("format", "method", "model", "base_model", "reference", "rewards", "tokenizer", "chat_template", "seeds"),
    *("packages", "processes", "steps"),
)


class Provenance:
    """What becomes provenance.json, gathered by the first process while a run goes on.

    Args:
        config: of the run.

    Attributes:
        about: what is known so far, as plain data.
    """

    def __init__(self, config: CommonConfig):
        self._config, every = config, flags(config)
        self.about: Plain = {
            "format": FORMAT,
            "method": config.method,
            "params": {"set": _set(config), "all": every},
            "seeds": {name: every.get(name) for name in ("seed", "data_seed", "full_determinism")},
            "started": _now(),
            "code": _code(),
            "directory": _directory(),
        }

    def loaded(
        self,
        about: Mapping[str, Any],
        tokenizer: Any,
        data: Mapping[str, PreparedData],
        made_from: Plain,
        num_processes: int,
    ) -> None:
        """Takes what the run begins with, as files and as what was made of them.

        Args:
            about: what it depends on; see `posttrain.runs`.
            tokenizer: with the template that rows were written in.
            data: rows by what they are for, "train" or "test".
            made_from: further sections, such as the reference model and the rewards.
            num_processes: that train.
        """
        from posttrain.data.prepare import tokenizer_digest

        config = self._config
        splits = {"train": config.dataset_train_split, "test": config.dataset_test_split}
        names = [config.dataset_name] if config.dataset_name else [source.path for source in config.datasets]
        self.about |= {
            "base_model": base_model(str(config.model_name_or_path), config.model_revision, config.model_init_kwargs)
            | {"weights_sha256": about["weights"], "config_sha256": about["config"]},
            "data": {
                part: {"name": " + ".join(names), "split": splits[part], "rows_fingerprint": rows.dataset._fingerprint}
                | rows.origin
                for part, rows in data.items()
            },
            "tokenizer": {"sha256": tokenizer_digest(tokenizer)},
            "chat_template": _chat_template(tokenizer, config.chat_template_path),
            "processes": num_processes,
            "hardware": _hardware(),
            "packages": {name: version_of(name) for name in ("posttrain", *PACKAGES) if version_of(name)},
            "all_packages": installed(),
        } | made_from
        self._counts = {part: rows.counts for part, rows in data.items()}

    def finished(
        self, folder: Path, num_steps: int, metrics: Mapping[str, float], resumed_from: str | None
    ) -> dict[str, Any]:
        """All of it.

        Args:
            folder: of the finished model, with its manifest.
            num_steps: optimizer steps of the whole run.
            metrics: of the run.
            resumed_from: the checkpoint that this process went on from, if it did.
        """
        for part, counts in self._counts.items():  # of a stream, known by now
            self.about["data"][part]["counts"] = dict(counts)
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        self.about |= {
            "model": {"files": files},
            "steps": num_steps,
            "resumed_from": None if resumed_from is None else Path(resumed_from).name,
            "metrics": dict(metrics),
            "ended": _now(),
        }
        plain: Plain = json.loads(json.dumps(self.about, default=str))
        return plain

    def hashes(self) -> list[tuple[str, str]]:
        """What the model's card tells of its origin: names that say nothing of this machine, and sha256. Of a part that
        has many files, one over all of them. Nothing that changes without the result: the code's digest is left out."""
        base, rows = self.about["base_model"], self.about["data"]
        found = list(_shown("base model", base["files"])) or [("base model: tensors", base["weights_sha256"])]
        for part, words in (("train", "training rows"), ("test", "evaluation rows")):
            about = rows.get(part, {"files": {}, "hub": {}})
            found += _shown(words, {Path(path).name: one for path, one in about["files"].items()})
            found += [(f"{words}: {name}", f"commit {commit}") for name, commit in about["hub"].items() if commit]
        found += [("tokenizer", self.about["tokenizer"]["sha256"])]
        template = self.about["chat_template"]["sha256"]
        found += [("chat template", template)] if template else []
        return list({sha256: (name, sha256) for name, sha256 in reversed(found)}.values())[::-1]


def write(folder: Path, beside: Path, config: CommonConfig, provenance: Plain) -> None:
    """Writes provenance.json to where `provenance_file` says, which is beside the other files of the model if unset.

    Args:
        folder: of the model; one of an earlier model in it goes.
        beside: where its files are written first.
        config: of the run.
        provenance: what is to be written.
    """
    text = json.dumps(provenance, indent=1, sort_keys=True) + "\n"
    if config.provenance_file is None:
        write_text(beside / PROVENANCE, text)
    else:
        (folder / PROVENANCE).unlink(missing_ok=True)
        write_text(Path(config.provenance_file), text)


def deterministic(provenance: Plain) -> Plain:
    """What follows from parameters, data, code and versions: the same from a run and from its repetition, on this
    machine or in another folder.

    Args:
        provenance: content of provenance.json.
    """
    flags = provenance["params"]["all"]
    code = provenance["code"]
    of_places = (*PATHS, "datasets")
    return {name: _without_folders(provenance[name]) for name in _KEPT if name in provenance} | {
        "code": {"version": code["version"], "sha256": code["sha256"]},
        "data": {
            part: _without_folders({name: value for name, value in about.items() if name != "name"})
            for part, about in provenance["data"].items()
        },
        "params": {name: value for name, value in flags.items() if name not in of_places},
        "metrics": {name: value for name, value in provenance["metrics"].items() if not is_timing(name)},
    }


def find(model: Path) -> Path | None:
    """The provenance.json of a model: in its folder, or beside it as models/NAME.provenance.json.

    Args:
        model: the folder.
    """
    places = (model / PROVENANCE, model.with_name(f"{model.name}.{PROVENANCE}"))
    return next((place for place in places if place.is_file()), None)


def is_timing(name: str) -> bool:
    """Whether a logged value is one of TIMINGS.

    Args:
        name: of the value, of training or evaluation.
    """
    return name.removeprefix("train_").removeprefix("eval_") in TIMINGS


def flags(config: CommonConfig) -> Plain:
    """The flags that have a value, transformers' own defaults among them."""
    fields, given = flags_of(type(config)), config.to_mapping()
    found = {name: default_of(fields[name]) if given[name] is None else given[name] for name in fields if name in given}
    return {name: value for name, value in found.items() if value is not None}


# -- parts


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _set(config: CommonConfig) -> Plain:
    """The flags that are not at their defaults."""
    fields = flags_of(type(config))
    return {name: value for name, value in flags(config).items() if value != default_of(fields[name])}


def _code() -> Plain:
    package = Path(__file__).resolve().parent
    is_tracked = git(package, "ls-files", "--error-unmatch", "__init__.py") is not None  # an installed one is ignored
    return {
        "version": version_of("posttrain"),
        "sha256": code_digest(),
        "files": dict(code_files()),
        "git": state_of(package) if is_tracked else None,
    }


def _directory() -> Plain:
    """The working directory, and its checkout where that is not the one of the code."""
    here, package = Path.cwd(), Path(__file__).resolve().parent
    is_other = root_of(here) != root_of(package)
    return {"path": str(here), "git": state_of(here) if is_other else None}


def _chat_template(tokenizer: Any, path: str | None) -> Plain:
    about: Plain = {"sha256": digest_of_template(tokenizer.chat_template)}
    if path is not None and Path(path).is_file():
        about["files"] = file_hashes([Path(path)])
    return about


def _hardware() -> Plain:
    import torch

    on_gpu = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if on_gpu else []
    driver = Path("/proc/driver/nvidia/version")
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": machine_memory(),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
        "cuda": torch.version.cuda or torch.version.hip if on_gpu else None,
        "driver": driver.read_text(encoding="utf-8").splitlines()[0] if on_gpu and driver.is_file() else None,
    }


def _shown(words: str, files: Mapping[str, Plain]) -> list[tuple[str, str]]:
    hashed = {name: one["sha256"] for name, one in files.items() if one["sha256"]}
    weights = {name: sha256 for name, sha256 in hashed.items() if name.endswith(".safetensors")} or hashed
    if len(weights) > 4:
        return [(f"{words}: {len(weights)} files", digest_of(sorted(weights.items())))]
    return [(f"{words}: {name}", sha256) for name, sha256 in sorted(weights.items())]


def _without_folders(about: Any) -> Any:
    """Plain data in which files go by their names, and folders by no name at all."""
    if not isinstance(about, dict):
        return about
    found = {name: _without_folders(value) for name, value in about.items() if name not in ("name", "sources")}
    return {Path(name).name if "/" in name else name: value for name, value in found.items()}
