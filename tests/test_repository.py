"""What the repository promises about itself: its layers, its stage graph, its commands and the files it ships."""

import ast
import configparser
import functools
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path, PurePath

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import LONG
from repositories import dvc, write_repository

from posttrain.config.yaml_files import FastLoader
from posttrain.experiment.closure import import_closure, imported_modules

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"

# Who may import whom: a part imports from its own row and from the rows below it, and from nothing above.
LAYERS = [
    {"cli"},
    {
        "launch",
        "processes",
        "meeting",
        "heartbeat",
        "experiment",
        "inspection",
        "planning",
        "environment",
        "completion",
    },
    {
        *("training", "trainer", "sharded_trainer", "shares", "trainer_flags", "arguments", "finite", "watch"),
        *(
            "checkpoint_trainer",
            "counts",
            "log_line",
            "stop_training",
            "publish",
            "model_card",
            "citations",
            "provenance",
        ),
        *("file_hashes", "log_line", "step_record", "planned", "tensorboard_run", "one_run", "finished"),
    },
    {"methods"},
    {"data", "losses", "rollout", "models", "scoring", "reference", "reward_model", "reward_scoring", "grading"}
    | {"adapters", "quantisation", "positions", "model_check", "loaded_model", "recompute", "offloading"}
    | {"compiled", "compiled_head"},
    {"batch", "attention", "shared_prefix", "decoding", "logprobs", "sharding", "cache", "checkpoints", "disk", "runs"}
    | {"recurring_sizes", "left_locks", "logits_chunk", "norms"}
    | {"hub", "hub_access", "trackers", "config", "machine", "out_of_memory", "errors", "stop", "wording", "terminal"}
    | {
        "memory_limit",
        "strict_json",
        "embedded",
        "gpu_slots",
        "checkout",
        "left_locks",
        "waiting",
        "loading",
        "heap",
        "packages",
    },
]


@functools.cache
def stages() -> dict[str, dict]:
    """The stages of dvc.yaml; one with a matrix stands for all of its items."""
    return yaml.load((ROOT / "dvc.yaml").read_text(encoding="utf-8"), FastLoader)["stages"]


@functools.cache
def params() -> dict[str, dict]:
    """The sections of params.yaml."""
    return yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"), FastLoader)


def names_of(entries: list) -> list[str]:
    """Paths of a `deps`, `outs`, `metrics` or `plots` list, with or without settings of their own."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def resolved(stage: dict, entries: list, content: dict[str, dict] | None = None) -> list[str]:
    """Paths of a list, but for source files, with parameters put in (those of params.yaml, or of another such file);
    those of a matrix for each of its items."""
    found = []
    for item in stage.get("matrix", {"model": [""]})["model"]:
        values = (content or params()) | {"item": {"model": item}}
        paths = [path for path in names_of(entries) if not path.endswith(".py")]
        found += [re.sub(r"\$\{(\w+)\.(\w+)\}", r"{\1[\2]}", path).format_map(values) for path in paths]
    return found


def made_by_stages(content: dict[str, dict] | None = None) -> set[str]:
    """All that the stages write, with the parameters of params.yaml or of another such file."""
    kinds = ("outs", "metrics", "plots")
    return {
        path
        for stage in stages().values()
        for path in resolved(stage, [entry for kind in kinds for entry in stage.get(kind, [])], content)
    }


@pytest.mark.parametrize("name", stages())
def test_stage_depends_on_what_its_script_imports(name: str) -> None:
    stage = stages()[name]
    script = ROOT / stage["cmd"].split()[1]
    imported = {path.relative_to(ROOT).as_posix() for path in import_closure(script, SOURCE)}
    listed = {path for path in names_of(stage["deps"]) if path.endswith(".py")}
    assert listed == imported, "`make deps` writes what is missing and takes out what is too much"


@pytest.mark.parametrize("name", stages())
def test_stage_is_one_that_the_run_cache_and_other_machines_can_serve(name: str) -> None:
    stage = stages()[name]
    assert re.fullmatch(r"python scripts/\w+\.py( \$\{item\.\w+\})?", stage["cmd"])  # no paths, no devices
    assert all(isinstance(entry, str) for entry in stage["outs"])  # `persist` and `cache: false` switch it off
    for entry in [*stage.get("metrics", []), *stage.get("plots", [])]:
        assert list(entry.values()) == [{"cache": False}]  # these stand in git


@pytest.mark.parametrize("name", stages())
def test_what_a_stage_reads_another_one_makes(name: str) -> None:
    made = made_by_stages()
    read = set(resolved(stages()[name], stages()[name]["deps"]))
    if name == "prepare":
        read.remove("raw")  # which people fill, and git and DVC keep
    # A file of a folder that a stage makes is made by it.
    assert all(any(PurePath(path).is_relative_to(other) for other in made) for path in read)


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "grpo", "rloo"])
def test_a_stage_that_trains_depends_on_what_its_parameters_name(name: str) -> None:
    deps = stages()[name]["deps"]
    keys = [key for key in ("dataset_name", "model_name_or_path", "reward_model_name_or_path") if key in params()[name]]
    assert len(keys) >= 2
    assert {f"${{{name}.{key}}}" for key in keys} <= set(deps)


@pytest.mark.parametrize("name", stages())
def test_stage_follows_its_own_parameters_only(name: str) -> None:
    keys = stages()[name]["params"]
    assert all(isinstance(key, str) for key in keys)  # never a whole file
    assert name in keys
    assert set(keys) <= set(params())


def test_imports_point_one_way() -> None:
    level = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    upward = []
    for path in sorted((SOURCE / "posttrain").rglob("*.py")):
        part = path.relative_to(SOURCE / "posttrain").parts[0].removesuffix(".py")
        if part in {"__init__", "embedded"}:
            continue
        assert part in level, f"{part} has no place in LAYERS"
        for module in imported_modules(path, SOURCE):
            other = [*module.split("."), "errors"][1]
            if other not in level or level[other] < level[part]:
                upward.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not upward


def test_parts_of_one_layer_do_not_import_each_other_in_a_circle() -> None:
    needs: dict[str, set[str]] = {}
    for path in (SOURCE / "posttrain").rglob("*.py"):
        part = path.relative_to(SOURCE / "posttrain").parts[0].removesuffix(".py")
        others = {module.split(".")[1] for module in imported_modules(path, SOURCE) if "." in module}
        needs.setdefault(part, set()).update(others - {part})
    while free := [part for part, others in needs.items() if not others & needs.keys()]:
        for part in free:
            del needs[part]
    assert not needs


def test_losses_see_only_tensors_and_the_batch() -> None:
    for path in (SOURCE / "posttrain/losses").rglob("*.py"):
        ours = {module for module in imported_modules(path, SOURCE) if not module.startswith("posttrain.losses")}
        assert ours <= {"posttrain.batch"}
        assert third_party(path) <= {"torch"}


def test_the_embedded_task_needs_nothing_of_the_core() -> None:
    for path in (SOURCE / "posttrain/embedded").rglob("*.py"):
        assert all(module.startswith("posttrain.embedded") for module in imported_modules(path, SOURCE))


@functools.cache
def third_party(path: Path) -> set[str]:
    """The top-level packages that a file imports from outside of the standard library and of this project."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found - sys.stdlib_module_names - {"posttrain"}


def test_the_peer_is_imported_nowhere_but_in_its_own_environment() -> None:
    peers = [
        path.relative_to(ROOT).as_posix()
        for folder in ("src", "scripts", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if "trl" in third_party(path)
    ]
    assert peers in ([], ["benchmarks/comparison/peer_run.py"])


def test_dependencies_are_what_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=\[;]", requirement)[0] for requirement in project["dependencies"]}
    extras = {name: needs for name, needs in project["optional-dependencies"].items() if name != "dev"}
    optional = {re.split(r"[<>=\[;]", requirement)[0] for needs in extras.values() for requirement in needs}
    files = [path for folder in ("src", "scripts") for path in (ROOT / folder).rglob("*.py")]
    imported = {{"yaml": "pyyaml"}.get(name, name.replace("_", "-")) for path in files for name in third_party(path)}
    behind = {"accelerate", "dvc", "jinja2", "tensorboard"}  # transformers' Trainer, chat templates, make's commands
    assert imported - declared - optional == set()
    assert declared - imported - behind == set()


def test_constraints_pin_every_declared_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {re.split(r"[<>=\[;]", requirement)[0].lower() for requirement in wanted} <= set(pins)
    assert pins["torch"] == "2.13.0"  # without +cpu, which plain PyPI does not have


def test_files_of_ones_own_belong_to_the_stage_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise DVC would not bring them into the copies that queued experiments run in."""
    write_repository(tmp_path)
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "raw/mine").mkdir(parents=True)
    (tmp_path / "raw/mine/rows.jsonl").write_text("{}")
    dvc(tmp_path, "add", "-q", "raw/mine")
    dvc(tmp_path, "dag", "--dot")
    assert '"raw/mine.dvc" -> "prepare"' in capsys.readouterr().out


def test_metrics_and_curves_of_all_stages_stand_in_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    listed = subprocess.run(
        ["git", "ls-files", "metrics", "plots"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    entries = [(stage, stage.get(kind, [])) for stage in stages().values() for kind in ("metrics", "plots")]
    assert set(listed.stdout.split()) == {path for stage, some in entries for path in resolved(stage, some)}


def test_files_of_tests_that_are_begun_first_are_there() -> None:
    assert all(list((ROOT / "tests").rglob(f"{name}.py")) for name in LONG)


def test_dvc_keeps_quiet() -> None:
    config = configparser.ConfigParser()
    config.read_string(re.sub(r"^\s+", "", (ROOT / ".dvc/config").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert config["core"]["analytics"] == "false"
    assert "__pycache__" in (ROOT / ".dvcignore").read_text(encoding="utf-8").splitlines()


ACCELERATE_CONFIGS = {
    "single_gpu": ("NO", 1, {}),
    "cpu": ("NO", 1, {"use_cpu": True}),
    "multi_gpu": ("MULTI_GPU", 8, {}),
    "multi_node": ("MULTI_GPU", 16, {"num_machines": 2}),
    "fsdp1": ("FSDP", 8, {"fsdp_config.fsdp_version": 1}),
    "fsdp2": ("FSDP", 8, {"fsdp_config.fsdp_version": 2}),
    "zero1": ("DEEPSPEED", 8, {"deepspeed_config.zero_stage": 1}),
    "zero2": ("DEEPSPEED", 8, {"deepspeed_config.zero_stage": 2}),
    "zero3": ("DEEPSPEED", 8, {"deepspeed_config.zero_stage": 3}),
}


def test_every_accelerate_config_is_tested() -> None:
    assert {path.stem for path in (ROOT / "accelerate_configs").iterdir()} == set(ACCELERATE_CONFIGS)


@pytest.mark.parametrize("name", ACCELERATE_CONFIGS)
def test_accelerate_config_says_what_its_name_says(name: str) -> None:
    distributed_type, num_processes, details = ACCELERATE_CONFIGS[name]
    config = load_config_from_file(str(ROOT / f"accelerate_configs/{name}.yaml"))  # refuses unknown keys
    assert config.distributed_type.value == distributed_type
    assert config.num_processes == num_processes
    assert config.mixed_precision == "no"  # the precision is a flag of training, not of the launcher
    for path, value in details.items():
        section, _, key = path.rpartition(".")
        found = getattr(config, section)[key] if section else getattr(config, key)
        assert found == value
