"""What the documents tell a person to type or to write is understood: commands, flags, files and rows."""

import contextlib
import functools
import importlib
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from documents import DOCUMENTS, ROOT, Block, blocks, spans, text_of, words_of

from posttrain.config import METHODS, parse_command_line
from posttrain.config.fields import flags_of, is_bool
from posttrain.config.parse import FileOption, LaunchOptions
from posttrain.config.renamed import refusal
from posttrain.config.yaml_files import FastLoader, load_yaml
from posttrain.data.formats import parse_preference, parse_sft
from posttrain.data.prompts import parse_prompt
from posttrain.data.readers import read_rows
from posttrain.experiment.gates.command import CheckFlags
from posttrain.experiment.gates.command import parse as parse_check
from posttrain.experiment.own_task import read_own
from posttrain.experiment.params import stage_config
from posttrain.experiment.report import options as report_options
from posttrain.inspection.options import parse_request
from posttrain.planning.options import PlanFlags, parse_plan

# Programs whose own words are not looked at.
OTHER_PROGRAMS = {".", "accelerate", "cd", "git", "hf", "tensorboard"}
# In code spans, and no flags of posttrain: of other programs, in general, and a mistake that is told about.
OTHER_FLAGS = {"--help", "--version", "--flag", "--params", "--logdir", "--num_train_epoch"}
OTHER_FLAGS |= {"--all", "--format", "--jobs", "--stages", "--dry", "--output", "--kill"}
OTHER_FLAGS |= {"--atol", "--rtol", "--check", "--keep"}
OTHER_FLAGS |= {"--signal", "--requeue", "--label"}  # sbatch's and srun's
KIND_OF_PAGE = {
    "docs/sft.md": "sft",
    "docs/reward.md": "preference",
    "docs/dpo.md": "preference",
    "docs/grpo.md": "prompts",
    "docs/rloo.md": "prompts",
}
PARSERS = {
    "sft": lambda columns: parse_sft(columns, "text"),
    "preference": parse_preference,
    "prompts": parse_prompt,
}
CHECKED_LANGUAGES = {"sh", "python", "json", "jsonl", "yaml", "jinja"}


def all_blocks(*languages: str) -> list[Any]:
    found = [block for document in DOCUMENTS for block in blocks(document, *languages)]
    return [pytest.param(block, id=block.place) for block in found]


@pytest.mark.parametrize("block", all_blocks())
def test_every_block_is_of_a_language_that_is_checked(block: Block) -> None:
    assert block.language in CHECKED_LANGUAGES | {"text"}, "write ```text for what a person only reads"
    if block.language == "text":
        assert not re.search(r"^(posttrain|make|dvc) ", block.text, flags=re.MULTILINE), "commands stand in ```sh"


# -- commands


def shell_commands() -> list[Any]:
    found = [
        (block, command) for document in DOCUMENTS for block in blocks(document, "sh") for command in block.commands()
    ]
    found += [
        (Block(document, 0, "sh", span, ""), span)
        for document in DOCUMENTS
        for span in spans(document)
        if re.match(r"(make|posttrain|dvc|python) +[a-z-]", span) and not re.search(r"[…A-Z]{3,}(?!=)", span)
    ]
    return [pytest.param(block, command, id=f"{block.place} {command[:60]}") for block, command in found]


@pytest.mark.parametrize(("block", "command"), shell_commands())
def test_commands_are_understood(block: Block, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(command)
    if words[0] == "eval":
        words = words_of(words[1].removeprefix("$(").removesuffix(")"))
    if ">" in words:
        words = words[: words.index(">")]
    program, *words = words
    program = program.removeprefix(".venv/bin/")
    if program == "posttrain":
        monkeypatch.chdir(tmp_path)
        write_files_of(block.document, tmp_path)
        check_posttrain(words, tmp_path)
    elif program == "sbatch":
        monkeypatch.chdir(tmp_path)
        check_sbatch(words, tmp_path)
    elif program == "make":
        check_make(words)
    elif program == "python":
        monkeypatch.chdir(ROOT)
        check_python(words)
    elif program == "dvc":
        check_dvc(words)
    elif program == "pip":
        check_pip(words)
    else:
        assert program in OTHER_PROGRAMS, f"no check knows {program}"


def write_files_of(document: str, folder: Path) -> None:
    """The YAML files that a document shows, under the names in their first lines."""
    for block in blocks(document, "yaml"):
        name = re.match(r"# (\S+\.yaml)\b", block.text)
        if name:
            (folder / name[1]).write_text(block.text, encoding="utf-8")


def check_posttrain(words: list[str], folder: Path) -> None:
    from posttrain.config import COMMANDS

    if words and words[0] in COMMANDS:
        check_other_command(*words)
        return
    if words in ([], ["--help"], ["--version"]):
        return
    method, *flags = words
    assert method in METHODS
    if flags in ([], ["--help"]):
        return
    if "--config" in flags and not (folder / flags[flags.index("--config") + 1]).exists():
        minimal = "model_name_or_path: m\ndataset_name: d\n"
        (folder / flags[flags.index("--config") + 1]).write_text(minimal, encoding="utf-8")
    config, launch = parse_command_line(method, flags)
    assert config.model_name_or_path
    if launch.accelerate_config is not None and "/" not in launch.accelerate_config:
        assert (ROOT / "accelerate_configs" / f"{launch.accelerate_config}.yaml").is_file()


def check_sbatch(words: list[str], folder: Path) -> None:
    (script,) = (word for word in words if word.endswith(".sbatch"))
    assert (ROOT / script).is_file()
    check_posttrain(words[words.index(script) + 1 :], folder)


def check_other_command(name: str, *words: str) -> None:
    if name == "completion":
        assert set(words) <= {"bash", "zsh", "fish"}
    elif name == "env":
        assert not words
    elif name == "report":
        report_options.parse_request(words)
    elif name == "check":
        assert words == ("--help",) or parse_check(words)
    elif name == "plan":
        if not words:  # its name alone
            return
        request = parse_plan(words)
        for file in [after for word, after in pairwise(words) if word == "--config"]:
            reward = "reward_funcs: accuracy_reward\n" * (request.method in ("grpo", "rloo"))
            Path(file).write_text(f"model_name_or_path: m\ndataset_name: d\n{reward}", encoding="utf-8")
        with contextlib.chdir(ROOT if request.flags.params else "."):
            assert request.flags.outcomes or request.parse()[0].model_name_or_path
    elif name in ("compare", "sweep", "experiments"):
        if words:
            check_words_of_experiments(name, list(words))
    elif name in ("status", "verify", "repro-check"):
        usage = importlib.import_module(f"posttrain.experiment.{name.replace('-', '_')}").USAGE
        flags = {word for word in words if word.startswith("--")}
        own = {f"--{flag}" for cls in METHODS.values() for flag in flags_of(cls)} if name == "repro-check" else set()
        assert flags <= set(re.findall(r"--[\w-]+", usage)) | own
    else:
        assert name == "inspect"
        assert not words or parse_request(words).configs


def check_words_of_experiments(name: str, words: list[str]) -> None:
    from posttrain.experiment.comparison import parse as parse_comparison
    from posttrain.experiment.experiments_table import parse as parse_table
    from posttrain.experiment.sweep import parse as parse_sweep
    from posttrain.experiment.sweep.grid import check_stages, read_grid

    options = {"compare": parse_comparison, "sweep": parse_sweep, "experiments": parse_table}[name](words)
    if name == "sweep":
        assert read_grid(options.settings, ROOT)
        check_stages(options.stages, ROOT)


def check_make(words: list[str]) -> None:
    makefile = text_of("Makefile")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))
    assert {word for word in words if "=" not in word} <= targets
    variables = {word.partition("=")[0] for word in words if "=" in word}
    assert all(f"$({name})" in makefile or f"{name} ?=" in makefile for name in variables)
    for word in words:
        if word.startswith("SET="):
            check_words_of_experiments("sweep", word.removeprefix("SET=").split())


def check_python(words: list[str]) -> None:
    if words[0] == "-m" and not words[1].startswith("benchmarks."):
        file = ROOT / "src" / (words[1].replace(".", "/") + ".py")
        assert file.is_file()
        return
    if words[0] == "-m":
        words = [f"{words[1].replace('.', '/')}/__main__.py", *words[2:]]
    file, rest = ROOT / words[0], words[1:]
    assert file.is_file()
    if file.parent.name == "scripts" and file.stem in METHODS:
        stage_config(file.stem, rest)
        return
    source = file.read_text(encoding="utf-8")
    assert all(f'"{word}"' in source for word in rest if word.startswith("--"))


@functools.cache
def stages_and_params() -> tuple[dict[str, Any], dict[str, Any]]:
    return yaml.load(text_of("dvc.yaml"), FastLoader)["stages"], load_yaml(ROOT / "params.yaml")


def check_dvc(words: list[str]) -> None:
    from dvc.cli import parse_args

    arguments = parse_args(words)
    stages, params = stages_and_params()
    targets = getattr(arguments, "targets", None) or []
    for target in targets if words[0] != "add" else []:  # files of the reader's own
        assert target.partition("@")[0] in stages or (ROOT / target).exists()
    for setting in getattr(arguments, "set_param", None) or []:
        name, _, value = setting.partition("=")
        section, _, key = name.removeprefix("+").partition(".")
        own = params[section]
        for part in key.split("."):
            assert name.startswith("+") or part in own, "DVC changes keys that are there; + adds one"
            own = own.get(part) if isinstance(own, dict) else None
        if section in METHODS:
            parse_command_line(section, [f"--{key}", value], params[section], f"params.yaml: {section}")


def check_pip(words: list[str]) -> None:
    import tomllib

    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    for word in words:
        for named in re.findall(r"^\S*\[([\w,-]+)\]$", word):
            assert set(named.split(",")) <= set(extras)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_flags_in_the_text_exist(document: str) -> None:
    known = {
        name for cls in (*METHODS.values(), LaunchOptions, FileOption, CheckFlags, PlanFlags) for name in flags_of(cls)
    }
    known |= {f"no_{name}" for cls in METHODS.values() for name, field in flags_of(cls).items() if is_bool(field)}
    for span in spans(document):
        if span.split()[0] in ("dvc", "git", "make", "pip", "python", "vllm") or "/" in span.split()[0]:
            continue  # those have flags of their own
        for flag in re.findall(r"(?<![\w-])--[a-z]\w*\b(?!…)", span):
            name = flag.removeprefix("--")
            assert name in known or flag in OTHER_FLAGS or refusal(name), f"{document}: {flag}"


@pytest.mark.parametrize("block", all_blocks("sh"))
def test_what_can_run_here_is_run(block: Block) -> None:
    """Models and data of the pipeline are there in CI; only what takes several processes is left to other tests."""
    local = [command for command in block.commands() if "models/" in command and "data/embedded" in command]
    if block.mark != "run":
        assert all("--num_processes" in command for command in local), "put <!-- run --> above the block"


# -- files and rows


@pytest.mark.parametrize("block", all_blocks("json", "jsonl"))
def test_rows_are_understood(block: Block, tmp_path: Path) -> None:
    kind = block.mark.removeprefix("rows ") or KIND_OF_PAGE[block.document]
    file = tmp_path / f"rows.{block.language}l".replace("ll", "l")
    file.write_text(block.text, encoding="utf-8")
    rows = list(read_rows(file))
    assert rows
    for row in rows:
        PARSERS[kind](row.columns)


@pytest.mark.parametrize("block", all_blocks("yaml"))
def test_yaml_is_a_file_that_a_command_takes(block: Block, tmp_path: Path) -> None:
    kind, _, name = block.mark.partition(" ")
    file = tmp_path / "file.yaml"
    file.write_text(block.text, encoding="utf-8")
    if kind == "config":
        parse_command_line(name, ["--config", str(file)])
    elif kind == "params":
        shown = load_yaml(file)[name]
        if name == "prepare":
            read_own(shown, "params.yaml: prepare")
            return
        parse_command_line(name, [], load_yaml(ROOT / "params.yaml")[name] | shown, f"params.yaml: {name}")
    else:
        assert kind == "accelerate", (
            "say above the block what it is: <!-- config METHOD -->, params STAGE or accelerate"
        )
        from accelerate.commands.config.config_args import load_config_from_file

        load_config_from_file(str(file))


@pytest.mark.parametrize("block", all_blocks("python", "jinja"))
def test_code_can_be_compiled(block: Block) -> None:
    if block.language == "jinja":
        jinja2.Environment().parse(block.text)
    else:
        compile(block.text, block.place, "exec")
