"""What SECURITY.md promises of the code: how files are read, what runs, what listens, who may read what is written."""

import ast
import json
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tiny
import yaml
from helpers_rewards import batch_of

from posttrain.cli import main
from posttrain.config.yaml_files import Loader
from posttrain.errors import UserError
from posttrain.rollout.completions import show_completions
from posttrain.rollout.rewards.rubric import Rubric

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [path for folder in ("src", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
# Each of these runs what it reads, or trusts what it should not.
NEVER = {
    *("pickle.load", "pickle.loads", "dill.load", "joblib.load", "marshal.loads", "shelve.open", "eval", "exec"),
    *("yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "tempfile.mktemp"),
    *("jinja2.Template", "Template", "Environment", "torch.hub.load", "pd.read_pickle"),
}

# What looks like one of these, and is not.
HARMLESS = {
    "src/posttrain/data/parallel.py: pickle.loads": "rows that the process's own parent has packed for it",
    "src/posttrain/meeting.py: bind": "asks whether an address is this machine's, and listens at none",
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call, str]]:
    """The calls in a file: name, call, place."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node, f"{path.relative_to(ROOT)}:{node.lineno}"


def given(call: ast.Call, name: str) -> str | None:
    """An argument by name, as it is written."""
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name), None)


def unsafe(path: Path) -> list[str]:
    """Calls that read as code what is data, or that open a door."""
    found = []
    for name, call, place in calls(path):
        last = name.rpartition(".")[2]
        if any(f"{path.relative_to(ROOT)}: {one}" in HARMLESS for one in (name, last)):
            continue
        if name in NEVER:
            found.append(f"{place}: {name}")
        if name == "jinja2.Environment" and given(call, "autoescape") != "True":
            found.append(f"{place}: jinja2.Environment without autoescape=True")
        if name == "torch.load" and given(call, "weights_only") != "True":
            found.append(f"{place}: torch.load without weights_only=True")
        if name == "yaml.load" and not (len(call.args) == 2 and ast.unparse(call.args[1]) in ("Loader", "FastLoader")):
            found.append(f"{place}: yaml.load without the safe loader")
        if given(call, "trust_remote_code") == "True" or given(call, "shell") == "True":
            found.append(f"{place}: {ast.unparse(call)}")
        if given(call, "allow_pickle") == "True" or given(call, "verify") == "False":
            found.append(f"{place}: {ast.unparse(call)}")
        if given(call, "use_safetensors") == "False" or given(call, "safe_serialization") == "False":
            found.append(f"{place}: {ast.unparse(call)}")
        if last in ("bind", "create_server", "HTTPServer", "start_server", "listen") and "127.0.0.1" not in ast.unparse(
            call
        ):
            found.append(f"{place}: {ast.unparse(call)} is not on loopback")
    return found


def test_nothing_that_is_read_runs_and_what_listens_does_so_on_loopback() -> None:
    assert len(SOURCES) > 100
    assert [found for path in SOURCES for found in unsafe(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, yaml.Loader)",
        "f(trust_remote_code=True)",
        "run(words, shell=True)",
        "server.bind(('0.0.0.0', 80))",
        "ThreadingHTTPServer.HTTPServer(('', 80), Handler)",
        "np.load(path, allow_pickle=True)",
        "jinja2.Template(text)",
        "jinja2.Environment()",
    ],
)
def test_the_search_finds_what_it_looks_for(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_security.ROOT", tmp_path)
    path = tmp_path / "a.py"
    path.write_text(line, encoding="utf-8")
    assert len(unsafe(path)) == 1


def test_the_tests_that_the_page_names_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8")))
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert len(named) > 3 and not [name for name in named if f"def {name}(" not in tests]


def test_the_loader_of_yaml_is_a_safe_one() -> None:
    assert issubclass(Loader, yaml.SafeLoader)
    for tag in ("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!python/module:os"):
        with pytest.raises(yaml.YAMLError):
            yaml.load(tag, Loader)


def test_html_is_written_by_templates_that_escape_alone() -> None:
    """No code puts tags around text of models; tests/test_report.py holds the report's templates to it."""
    written = re.compile(r"[\"']\s*<(?:html|script|body|table|div)\b", re.IGNORECASE)
    assert [str(path) for path in SOURCES if written.search(path.read_text(encoding="utf-8"))] == []
    templates = sorted((ROOT / "src").rglob("*.j2"))
    found = {one for path in templates for one in re.findall(r"(\S+)\|\s*safe\b", path.read_text(encoding="utf-8"))}
    ours = {"style", "script", "one.json"}  # files of the package, and JSON whose < are written \u003c
    assert ours <= found and all(one in ours or "<wbr>" in one for one in found)


CODE = "from pathlib import Path\nPath({mark!r}).touch()\nclass Mine: pass\n"


@pytest.mark.parametrize("flag", ["--model_name_or_path", "--reward_model_name_or_path"])
def test_code_that_comes_with_a_model_does_not_run(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, data = tiny.write_base(tmp_path / "model"), tiny.write_prompts(tmp_path / "rows.jsonl")
    hostile, mark = tiny.write_base(tmp_path / "hostile", seed=2), tmp_path / "it-ran"
    own = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine", "AutoTokenizer": ["mine.Mine", "mine.Mine"]}
    edit(hostile / "config.json", model_type="mine", auto_map=own | {"AutoModelForSequenceClassification": "mine.Mine"})
    edit(hostile / "tokenizer_config.json", tokenizer_class="Mine", auto_map=own)
    (hostile / "mine.py").write_text(CODE.format(mark=str(mark)), encoding="utf-8")
    names = {"--model_name_or_path": str(base), "--reward_funcs": "accuracy_reward"} | {flag: str(hostile)}
    words = [word for name, value in names.items() for word in (name, value)]
    code = main(["grpo", *words, "--dataset_name", str(data), "--output_dir", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert not mark.exists()
    assert code == 2 and "Traceback" not in said, said


def test_code_that_comes_with_a_tokenizer_does_not_run(tmp_path: Path) -> None:
    """Of a type of model that is known, whose tokenizer is made without the code."""
    base, mark = tiny.write_base(tmp_path / "model"), tmp_path / "it-ran"
    edit(base / "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", "mine.Mine"]})
    (base / "mine.py").write_text(CODE.format(mark=str(mark)), encoding="utf-8")
    main(["inspect", str(tiny.write_prompts(tmp_path / "rows.jsonl")), "--model_name_or_path", str(base)])
    assert not mark.exists()


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


LISTENS = """
import os
from pathlib import Path

def listening():
    fds = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    own = {os.readlink(fd) for fd in fds if fd.is_symlink()}
    tables = [Path("/proc/self/net", name).read_text().splitlines() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table]
    return sorted(line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in own)

def score(completions, **columns):
    Path(OUT).write_text(" ".join(listening()))
    return [float(len(one[0]["content"])) for one in completions]
"""


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="only Linux lists the ports of a process")
def test_a_training_process_listens_nowhere(tmp_path: Path) -> None:
    base, data = tiny.write_base(tmp_path / "model"), tiny.write_prompts(tmp_path / "rows.jsonl")
    code = LISTENS.replace("OUT", repr(str(tmp_path / "found")))
    names: dict[str, Any] = {}
    exec(code, names)
    before = names["listening"]()  # servers of other tests
    with socket.create_server(("127.0.0.1", 0)):
        assert len(names["listening"]()) == len(before) + 1
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    tiny.run_policy(
        "grpo", base, data, tmp_path / "out", "--reward_funcs", f"{tmp_path / 'mine.py'}:score", "--max_steps", "1"
    )
    assert (tmp_path / "found").read_text().split() == before


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_what_runs_write_has_the_permissions_that_the_user_wants(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        base, data = tiny.write_base(tmp_path / "model"), tiny.write_prompts(tmp_path / "rows.jsonl")
        words = ["--report_to", "tensorboard", "--save_strategy", "steps", "--save_steps", "1", "--max_steps", "2"]
        words += ["--metrics_file", str(tmp_path / "m/m.json"), "--plots_file", str(tmp_path / "p.csv")]
        words += ["--work_dir", str(tmp_path / "work"), "--log_completions", "--num_completions_to_print", "0"]
        tiny.run_policy("grpo", base, data, tmp_path / "out", *words, "--use_peft")
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in tmp_path.rglob("*")}
    assert len(modes) > 40
    odd = {path: oct(mode) for path, mode in modes.items() if mode != (0o777 if path.is_dir() else 0o666) & ~mask}
    assert odd == {}


def test_text_of_a_model_is_no_template(tmp_path: Path) -> None:
    [question] = Rubric(None).render(batch_of(["{{ 7 * 7 }}{% for x in y %}"], ["{{ prompt.__class__ }}"]))
    assert "{{ 7 * 7 }}{% for x in y %}" in question and "{{ prompt.__class__ }}" in question


@pytest.mark.parametrize(
    "text",
    [
        "{{ completion.__class__.__mro__ }}",
        "{{ ''.__class__.__subclasses__() }}",
        "{% for i in range(10**7) %}{% endfor %}",
    ],
)
def test_a_rubric_runs_in_a_sandbox(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rubric.jinja"
    path.write_text("{{ completion }}" + text, encoding="utf-8")
    with pytest.raises(UserError, match=r"judge_rubric: .* fails at data.jsonl:1"):
        Rubric(str(path)).render(batch_of(["a"]))


def test_text_of_a_model_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"step": 1, "row": 0, "prompt": "\x1b[2J", "completion": "a\n\x1b]0;title\x07\r\u202eb", "advantage": 0.0}
    show_completions(pa.Table.from_pylist([row | {"num_tokens": 3, "r": 1.0}]), ["r"], 1, False)
    said = capsys.readouterr().err
    assert "\\x1b[2J" in said and "\\x1b]0;title\\x07\\r\\u202eb" in said
    assert not set(said) & set("\x1b\x07\r\u202e")
