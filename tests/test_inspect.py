"""`posttrain inspect`: formats, the example with its trained tokens, lengths, what a limit takes, findings."""

import json
from pathlib import Path

import pytest
from helpers_data import MARKED_TEMPLATE, bot, make_tokenizer, user, write_jsonl
from helpers_inspect import USER_AND_BOT, commands_of, example_of, inspect, write_model_folder
from tiny import write_base, write_preference, write_prompts, write_sft
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from posttrain.config import parse_command_line
from posttrain.data.prepare import prepare
from posttrain.data.tokenizer import load_tokenizer
from posttrain.inspection.display import Ink
from posttrain.inspection.example import Segment, show_segment

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of the embedded task, byte-level BPE with a template that marks the assistant."""
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token a character, and <|user|>, <|bot|>, <|end|>: lengths can be counted by hand."""
    return write_model_folder(tmp_path_factory.mktemp("models") / "letters-it")


@pytest.mark.parametrize(
    ("method", "more"),
    [("sft", []), ("sft", ["--assistant_only_loss"]), ("dpo", []), ("dpo", ["--max_length", "45"])],
)
def test_marked_tokens_are_those_that_training_trains_on(
    method: str, more: list[str], base: Path, tmp_path: Path, capsys: Capture
) -> None:
    rows = (write_sft if method == "sft" else write_preference)(tmp_path / "rows.jsonl", 3)
    words = ["--model_name_or_path", str(base), "--dataset_name", str(rows), *more]
    config, _ = parse_command_line(method, words)
    tokenizer = load_tokenizer(config)
    prepared = prepare(config, tokenizer, config.data_kind, "train")
    assert prepared is not None
    row = prepared.dataset[0]
    sides = {"row": ("input_ids", "loss_mask")} if method == "sft" else {}
    sides |= {side: (f"{side}_ids", f"{side}_mask") for side in ("chosen", "rejected") if f"{side}_ids" in row}

    found = example_of(inspect(capsys, *words))
    for label, (ids, mask) in sides.items():
        trained = [token for token, is_trained in zip(row[ids], row[mask], strict=True) if is_trained]
        assert found.pop(label) == (tokenizer.decode(row[ids]), tokenizer.decode(trained))
    if method == "dpo":
        assert found.pop("prompt") == (tokenizer.decode(row["prompt_ids"]), "")
    assert found == {}


def test_prompts_and_scores_are_marked_where_the_model_writes_and_is_read(
    base: Path, tmp_path: Path, capsys: Capture
) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 2)
    found = example_of(inspect(capsys, prompts, "--model_name_or_path", base))
    assert found["prompt"][0].endswith("How many?<|im_end|>\n<|im_start|>assistant\n")
    pairs = write_preference(tmp_path / "pairs.jsonl", 2)
    found = example_of(inspect(capsys, pairs, "--model_name_or_path", base, "--method", "reward"))
    assert found["chosen"] == ("1\n#### 1<|im_end|>\n", "\n")  # the last token, whatever it is
    assert found["rejected"] == ("2\n#### 2<|im_end|>\n", "\n")
    assert found["prompt"][0].endswith("1 + 0 = ")  # what both sides have in common is computed once


def test_formats_and_places_of_the_rows_that_do_not_fit(tmp_path: Path, capsys: Capture) -> None:
    rows = [{"prompt": "2+2=", "completion": "4", "note": n} for n in range(4)]
    rows[1]["completion"] = ""
    rows[3]["completion"] = 4
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    report = inspect(capsys, path)
    assert report.code == 0  # as prompts, all of them do
    methods = "\n".join(report.sections["Methods"])
    assert "! sft          2 of 4 rows cannot be used" in methods
    assert f"empty completion in 'completion' ({path} line 2)" in " ".join(methods.split())
    assert f"wrong type in 'completion' ({path} line 4): needs text or a list" in " ".join(methods.split())
    assert "✗ reward, dpo  needs chosen and rejected" in methods
    assert "✓ grpo, rloo   prompt; the rewards get completion, note" in methods
    assert inspect(capsys, path, "--method", "sft").code == 1
    assert [line.split(maxsplit=1)[1] for line in report.sections["Columns"]] == [
        "text",
        "text or number  1 empty",
        "number",
    ]


def test_columns_that_others_call_differently(tmp_path: Path, capsys: Capture) -> None:
    report = inspect(capsys, write_jsonl(tmp_path / "gsm8k.jsonl", [{"question": "2+2?", "answer": "4", "id": 1}]))
    assert report.code == 1
    text = " ".join(report.text.split())
    assert "rename what other data sets call differently: question → prompt, answer → completion" in text
    report = inspect(capsys, write_jsonl(tmp_path / "r.jsonl", [{"prompt": "?", "chosen": "a", "loser": "b"}]))
    assert report.code == 0  # as prompts
    report = inspect(capsys, tmp_path / "r.jsonl", "--method", "dpo")
    assert "differently: loser → rejected" in report.text


def test_columns_repetitions_and_how_much_was_read(tmp_path: Path, capsys: Capture) -> None:
    rows = [{"messages": USER_AND_BOT, "n": n, "s": None} for n in (1, 2, 1, 1)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    report = inspect(capsys, path)
    assert f"{path}  all 4 rows" in report.text
    assert report.sections["Columns"] == [
        "  messages  messages of user, assistant",
        "  n         number",
        "  s         nothing                      4 without a value",
    ]
    [repetitions] = [" ".join(" ".join(report.sections["Repetitions"]).split())]
    assert repetitions == f"! 2 of 4 rows are all of an earlier one (50.0%); first: {path} line 3 = {path} line 1"
    assert "  the first 3 rows; --num_rows none reads all" in inspect(capsys, path, "--num_rows", "3").text


def test_lengths_and_cuts_are_what_is_counted_by_hand(letters: Path, tmp_path: Path, capsys: Capture) -> None:
    # <|user|>, the question, <|end|>, line end, <|bot|>, the answer, <|end|>, line end: 6 + 2 + 4·k tokens.
    answers = [1, 2, 3, 4, 10]
    rows = [{"messages": [user("hi"), bot("word" * k)]} for k in answers]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    report = inspect(capsys, path, "--model_name_or_path", letters, "--max_length", "20", "--assistant_only_loss")
    lines = [line.split() for line in report.sections["Lengths"]]
    assert ["row", "12", "20", "48", "48", "48"] in lines
    assert ["of", "it", "trained", "on", "5", "13", "41", "41", "41"] in lines  # 4·k and <|end|>
    bars = {tuple(line[:3]): line[-1] for line in lines if line[1] == "to"}
    assert bars == {("9", "to", "16"): "2", ("17", "to", "32"): "2", ("33", "to", "64"): "1"}
    text = " ".join(" ".join(report.sections["Lengths"]).split())
    assert "max_length 1024 (default) takes nothing away" in text
    # 24 and 48 tokens lose 4 and 28 of 12 + 16 + 20 + 24 + 48.
    assert "! max_length 20 (given) cuts 2 of 5 rows (40.0%), which lose 32 tokens (26.7% of all)" in text
    assert "→ --max_length 64 keeps all rows whole" in text


def test_what_a_limit_leaves_out_is_counted_as_training_does(letters: Path, tmp_path: Path, capsys: Capture) -> None:
    pairs = [{"prompt": "p" * n, "chosen": "a" * n, "rejected": "b"} for n in (1, 5, 9)]
    path = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    for method, told in (
        ("reward", "leaves 2 of 3 rows out (66.7%)"),  # 11 and 19 tokens are more than 8
        ("dpo", "cuts 1 of 3 rows (33.3%), which lose 3 tokens (5.6% of all) and leaves 1 of 3 rows out"),
    ):
        words = ["--model_name_or_path", letters, "--method", method, "--max_length", "8"]
        assert f"max_length 8 (given) {told}" in " ".join(inspect(capsys, path, *words).text.split())


@pytest.mark.parametrize(
    ("tokenizer", "rows", "finding"),
    [
        ({"template": None}, USER_AND_BOT, "✗ no chat template: 3 rows are conversations"),
        ({"eos": "<eos>"}, USER_AND_BOT, "sequences end with '\\n': give --eos_token '<|end|>'"),
        ({}, USER_AND_BOT, "✓ every sequence has the EOS token '<|end|>'"),
        ({}, USER_AND_BOT, "✓ --assistant_only_loss is possible: the template's own behaviour shows"),
        ({"template": MARKED_TEMPLATE}, USER_AND_BOT, "{% generation %} marks the assistant's part"),
        ({"template": "{{ messages | map(attribute='content') | join | list | sort | join }}"}, USER_AND_BOT,
         "! assistant_only_loss is not possible in 3 of 3 rows"),
        ({"template": "<bos><bos>" + MARKED_TEMPLATE}, USER_AND_BOT, "✗ 3 rows begin with '<bos>' twice"),
        ({"adds_bos": True}, USER_AND_BOT, "! 3 rows do not begin with '<bos>', with which this tokenizer begins"),
        ({"template": MARKED_TEMPLATE.replace("%}<|bot|>{% e", "%}<|bot|>think{% e")}, USER_AND_BOT,
         "! the chat template is not prefix-stable: in 3 of 3 rows"),
    ],
)  # fmt: skip
def test_findings_about_template_and_special_tokens(
    tokenizer: dict, rows: list, finding: str, tmp_path: Path, capsys: Capture
) -> None:
    model = write_model_folder(tmp_path / "model", **tokenizer)
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": rows, "n": n} for n in range(3)])
    report = inspect(capsys, path, "--model_name_or_path", model)
    assert finding in " ".join(" ".join(report.sections["Findings"]).split())
    assert report.code == (1 if tokenizer == {"template": None} else 0)


def test_rewards_that_the_user_names_find_their_columns_or_not(letters: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "2+2="}, {"prompt": "x" * 600}])
    words = [rows, "--model_name_or_path", letters, "--num_rows"]
    report = inspect(capsys, *words, "1", "--reward_funcs", "accuracy_reward")
    assert report.code == 1
    assert "the reward accuracy_reward needs the column solution" in " ".join(report.text.split())
    report = inspect(capsys, *words, "1", "--reward_funcs", "think_format_reward")
    assert report.code == 0
    assert "✓ the columns have what think_format_reward needs" in report.text
    report = inspect(capsys, *words, "2", "--reward_funcs", "think_format_reward")
    assert report.code == 1
    assert "1 prompts are longer than 512 tokens" in report.text  # 1024 positions, 512 for the completion


def test_rows_without_an_answer_are_told(letters: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"messages": [user("?")]}, {"messages": USER_AND_BOT}])
    report = inspect(capsys, rows, "--model_name_or_path", letters)
    assert "with --assistant_only_loss 1 of 2 rows would have nothing to train on" in report.text
    report = inspect(capsys, rows, "--model_name_or_path", letters, "--assistant_only_loss")
    assert "1 rows have no token to train on and are left out" in report.text
    assert inspect(capsys, write_jsonl(tmp_path / "empty.jsonl", [{}])).code == 1


def test_pad_that_is_eos_is_a_finding(tmp_path: Path, capsys: Capture) -> None:
    """Training refuses it; what else there is to know is told, and the commands name the token for padding."""
    model = write_model_folder(tmp_path / "model")
    made = make_tokenizer()
    made.pad_token = made.eos_token
    made.save_pretrained(model)
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "2+2?", "chosen": "4", "rejected": "5"}])
    report = inspect(capsys, path, "--model_name_or_path", model)
    assert report.code == 1
    assert "✗ eos_token and pad_token" in report.text and "Lengths" in report.sections
    first, trial, run = commands_of(report)
    assert first.startswith("posttrain sft ") and "conversations.jsonl" in first
    assert "after that, on these rows: 20 steps" in report.text
    for command in (trial, run):
        assert command.startswith("posttrain dpo ") and str(path) in command
    assert all("--pad_token '<pad>'" in command for command in (first, trial, run))


def test_colours_are_asked_for_or_not(
    base: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_sft(tmp_path / "rows.jsonl", 1)
    words = [rows, "--model_name_or_path", base, "--assistant_only_loss"]
    always = inspect(capsys, *words, "--color", "always").text
    assert "\x1b[36m<|im_start|>\x1b[0m" in always
    assert "\x1b[1;32m<|im_end|>\x1b[0m" in always
    assert "[[" not in always
    assert "\x1b" not in inspect(capsys, *words).text  # no terminal
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[36m" in inspect(capsys, *words).text
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in inspect(capsys, *words).text


def test_a_space_at_the_border_of_what_is_trained_is_kept() -> None:
    backend = Tokenizer(models.WordLevel({"▁hi": 0, "▁you": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert tokenizer.decode([1]) == "you"  # as Llama's does
    [line] = show_segment(tokenizer, Segment("row", [0, 1, 1], [0, 1, 0]), Ink(False))
    assert line.split(maxsplit=1)[1] == "hi[[ you]] you"


def test_text_of_the_data_cannot_write_to_the_terminal_and_fits_it(
    letters: Path, tmp_path: Path, capsys: Capture
) -> None:
    rows = [{"prompt": "a\x1b[31mred\tb\r\n" + "x" * 300, "completion": "日本" * 90 + "\n" * 40}]
    report = inspect(capsys, write_jsonl(tmp_path / "r.jsonl", rows), "--model_name_or_path", letters)
    assert "\x1b" not in report.text
    assert "a\\x1b[31mred\\tb\\r⏎" in report.text
    assert "more lines …" in report.text
    lines = [line for line in report.text.splitlines() if str(tmp_path) not in line]
    assert max(len(line) + sum(character in "日本" for character in line) for line in lines) <= 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "dataset_name is missing"),
        (["{rows}", "--max_lenght", "5"], "--max_lenght: no such flag; did you mean max_length?"),
        (["{rows}", "--max_length", "x"], "--max_length: 'x' is not a whole number or none"),
        (["{rows}", "--packing", "--max_length", "none"], "packing fills rows of max_length tokens"),
        (["{rows}", "--method", "ppo"], "--method: 'ppo' is not one of sft, reward, dpo, grpo, rloo"),
        (["{rows}", "more.jsonl"], "--dataset_name takes one word, not 2"),
        (["{rows}", "--model_name_or_path", "./none"], "./none does not exist"),
        (["no-rows.jsonl"], "no-rows.jsonl: no such file"),
        (["org/rows"], "org/rows"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str, tmp_path: Path, capsys: Capture) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "abc"}])
    report = inspect(capsys, *[word.format(rows=rows) for word in words])
    assert report.code == 2
    assert message in report.error
    assert "Traceback" not in report.error


def test_a_file_of_flags_names_data_model_and_method(letters: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"messages": USER_AND_BOT}])
    config = tmp_path / "sft.yaml"
    config.write_text(f"model_name_or_path: {letters}\ndataset_name: {rows}\npacking: true\nmax_length: 9\n")
    report = inspect(capsys, "--config", config)
    assert report.code == 0
    assert "dpo          " in report.text and "packing is not for dpo, but for sft" in " ".join(report.text.split())
    assert "max_length 9 (given) cuts 1 of 1 rows" in report.text
    assert json.loads(rows.read_text()) == {"messages": USER_AND_BOT}
