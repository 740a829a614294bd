"""The embedded task: problems checked by hand, slips that end wrong, files with the same bytes everywhere."""

import hashlib
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from posttrain.embedded import task
from posttrain.embedded.problems import LARGEST, OPERATIONS, Draws, Problem, Step, draw_problem
from posttrain.embedded.slips import draw_slip
from posttrain.embedded.weights import count_parameters, draw_weights
from posttrain.grading import final_answer

SIZES = {(name, split): 40 if split == "train" else 12 for name in task.SETS for split in task.SPLITS}
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


def make(root: Path, seed: int = 0) -> dict[str, str]:
    """Write the task, small, and return the hash of each file."""
    problems = task.draw_sets(seed, SIZES)
    task.write_data(problems, seed, 0.7, root / "data")
    task.write_base_model(task.tokenizer_texts(problems["sft", "train"]), 300, SHAPE, seed, root / "base")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("embedded")
    make(root)
    return root


def drawn(number: int = 300) -> list[Problem]:
    draws = Draws("test")
    return [draw_problem(draws) for _ in range(number)]


def test_every_equation_of_a_solution_holds_and_the_last_is_the_answer() -> None:
    for problem in drawn():
        assert len(problem.steps) in (2, 3)
        results = []
        for left, operation, right, result in EQUATION.findall(problem.solution):
            assert OPERATIONS[operation](int(left), int(right)) == int(result)
            assert operation != "/" or int(left) % int(right) == 0
            assert 1 <= int(result) <= LARGEST
            results.append(int(result))
        assert len(results) == len(problem.steps)
        assert final_answer(problem.solution) == results[-1] == problem.answer


def test_each_step_starts_from_the_result_of_the_one_before() -> None:
    for problem in drawn():
        for before, after in itertools.pairwise(problem.steps):
            assert after.left == before.result


def test_the_numbers_of_the_first_step_stand_in_the_question() -> None:
    for problem in drawn():
        numbers = {int(word) for word in re.findall(r"\d+", problem.question)}
        assert {problem.steps[0].left, problem.steps[0].right} <= numbers


def test_a_solution_by_hand() -> None:
    problem = Problem("", "pens", (Step("Ann has", 3, "*", 4), Step("Ann keeps", 12, "-", 5)))
    assert problem.solution == "Ann has 3*4=12 pens.\nAnn keeps 12-5=7 pens.\n#### 7"
    assert problem.key == "3*4=12; 12-5=7"


def test_a_slip_ends_wrong_and_looks_like_a_solution() -> None:
    draws = Draws("slips")
    kinds = set()
    line = re.compile(r"(\w+ )+\d+[-+*/]\d+=\d+ \w+\.")
    for problem in drawn():
        slip = draw_slip(problem, draws)
        *lines, last = slip.split("\n")
        kinds.add(len(lines) - len(problem.steps) if lines else None)
        assert all(line.fullmatch(text) for text in lines)
        assert re.fullmatch(r"#### \d+", last)
        assert final_answer(slip) != problem.answer
        assert not lines or final_answer(slip) == int(EQUATION.findall(slip)[-1][3])
    assert kinds == {0, -1, None}  # the last step goes wrong, or is left out; a guess


def test_sets_and_splits_share_no_problem(made: Path) -> None:
    questions = []
    for name, split in SIZES:
        rows = [json.loads(line) for line in (made / f"data/{name}/{split}.jsonl").read_text().splitlines()]
        assert len(rows) == SIZES[name, split]
        questions += [(row.get("prompt") or row["messages"])[0]["content"] for row in rows]
    assert len(set(questions)) == len(questions) == sum(SIZES.values())


def test_someone_in_a_hurry_wrote_the_solutions_about_half_of_the_items() -> None:
    problems = task.draw_sets(0, {place: 300 for place in SIZES})["sft", "train"]
    rows = list(task.rows("sft", "train", problems, 0, terse_share=0.7))
    texts = [row["messages"][1]["content"] for row in rows]
    terse = [text.startswith("####") for text in texts]
    hurried = [problem.items in task.HURRIED for problem in problems]
    assert 0.4 < sum(hurried) / len(hurried) < 0.6
    assert not any(short and not fast for short, fast in zip(terse, hurried, strict=True))
    assert 0.6 < sum(terse) / sum(hurried) < 0.8
    assert all(final_answer(text) == problem.answer for text, problem in zip(texts, problems, strict=True))


def test_a_problem_that_stands_twice_is_noticed() -> None:
    problems = task.draw_sets(0, SIZES)
    task.check_disjoint(problems)
    problems["preference", "train"].append(problems["prompts", "test"][3])
    with pytest.raises(
        AssertionError, match=r"stands in \('prompts', 'test'\) and in \('preference', 'train'\)|and in"
    ):
        task.check_disjoint(problems)


def test_more_training_problems_leave_the_held_out_ones_as_they_are() -> None:
    small = task.draw_sets(0, SIZES)
    large = task.draw_sets(0, {place: number * (3 if place[1] == "train" else 1) for place, number in SIZES.items()})
    for place in SIZES:
        assert place[1] == "train" or small[place] == large[place]


def test_rows_have_the_columns_of_their_method(made: Path) -> None:
    def first(name: str) -> dict:
        return json.loads((made / f"data/{name}/test.jsonl").read_text().splitlines()[0])

    assert [message["role"] for message in first("sft")["messages"]] == ["user", "assistant"]
    pair = first("preference")
    assert [message["role"] for side in ("prompt", "chosen", "rejected") for message in pair[side]] == [
        "user",
        "assistant",
        "assistant",
    ]
    row = first("prompts")
    assert list(row) == ["prompt", "solution"]
    assert int(row["solution"]) > 0


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(made: Path, tmp_path: Path) -> None:
    first = {
        path.relative_to(made).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in made.rglob("*")
        if path.is_file()
    }
    assert make(tmp_path / "again") == first
    other = make(tmp_path / "other", seed=1)
    assert first.keys() == other.keys()
    for name in ("data/sft/train.jsonl", "data/prompts/test.jsonl", "base/model.safetensors"):
        assert first[name] != other[name]


def test_weights_are_the_ones_that_every_machine_draws() -> None:
    weights = draw_weights({**SHAPE, "vocab_size": 300}, seed=0)
    name = "model.layers.0.mlp.up_proj.weight"
    stream = hashlib.shake_256(f"0/{name}".encode()).digest(4)
    assert weights[name].dtype == np.float32
    assert weights[name][0, 0] == (sum(stream) - 510) / 4096  # exact: a small integer over a power of two
    assert sum(weight.size for weight in weights.values()) == count_parameters({**SHAPE, "vocab_size": 300})
    assert weights["model.embed_tokens.weight"].std() == pytest.approx(148 / 4096, rel=0.05)


def test_transformers_loads_the_model_and_its_weights_as_written(made: Path) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(made / "base", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.config.tie_word_embeddings
    for name, written in load_file(made / "base/model.safetensors").items():
        np.testing.assert_array_equal(model.get_parameter(name).detach().numpy(), written)


def test_the_tokenizer_has_a_token_a_digit_and_ends_turns(made: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made / "base")
    assert tokenizer.eos_token_id not in (None, tokenizer.pad_token_id)
    assert tokenizer.tokenize("1234+56") == ["1", "2", "3", "4", "+", "5", "6"]
    text = "Zoë paid 12€\n— twice"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text  # bytes of any text, no unknown token


def test_the_template_marks_what_the_assistant_writes(made: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made / "base")
    messages = [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "#### 5"}]
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, tokenize=True)
    marked = [i for i, mask in zip(out["input_ids"], out["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(marked) == "#### 5<|im_end|>"
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    start = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert whole == start + "#### 5<|im_end|>\n"
