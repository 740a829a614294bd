"""Answers and log-probs of an evaluation, against what transformers' own `generate` and `forward` give."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.batch import pack
from posttrain.errors import UserError
from posttrain.experiment import evaluation_models as models
from posttrain.experiment.evaluation_data import read_pairs
from tests.tiny import run, write_base, write_preference, write_sft

QUESTIONS = [
    "2 + 3?",
    "Ada has 5 apples and buys some and 7 more. How many?",
    "1?",
    "Ben has 12. Half of it?",
    "7 - 7?",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt a little: a random one would write the same token for ever."""
    root = tmp_path_factory.mktemp("evaluation")
    write_base(root / "base")
    run("sft", root / "base", write_sft(root / "sft.jsonl", 40), root / "sft", "--max_steps", "40", "--seed", "0")
    return root / "sft"


@pytest.fixture(scope="module")
def policy(folder: Path) -> models.Policy:
    return models.load_policy(folder, "float32")


@pytest.fixture(scope="module")
def prompts(policy: models.Policy) -> list[np.ndarray]:
    return models.prompt_tokens(policy.tokenizer, [[{"role": "user", "content": text}] for text in QUESTIONS])


@torch.no_grad()
def plain_logprobs(folder: Path, prompt: np.ndarray, completion: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """One sequence at a time through a model of its own that nothing of this project has touched."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.from_numpy(np.concatenate([prompt, completion]))
    table = (model(ids[None]).logits[0] / temperature).log_softmax(-1)
    return table[len(prompt) - 1 : -1].gather(1, ids[len(prompt) :, None])[:, 0].numpy()


def plain_answer(folder: Path, prompt: np.ndarray, end_id: int, max_new_tokens: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.from_numpy(prompt)[None]
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end_id
    )
    return output[0, len(prompt) :].tolist()


def test_prompts_end_where_the_assistant_begins(policy: models.Policy, prompts: list[np.ndarray]) -> None:
    text = policy.tokenizer.decode(prompts[0])
    assert text == "<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n"


def test_greedy_answers_are_those_of_transformers(
    folder: Path, policy: models.Policy, prompts: list[np.ndarray]
) -> None:
    # A token that is written sooner here and later there takes the place of the one that ends a turn.
    written = [plain_answer(folder, prompt, policy.end_ids[0], 12) for prompt in prompts]
    places = {token: {[*row, token].index(token) for row in written} for row in written for token in row}
    end_id = max(places, key=lambda token: len(places[token]))
    expected = [plain_answer(folder, prompt, end_id, 12) for prompt in prompts]
    assert len({len(ids) for ids in expected}) > 1
    ending = dataclasses.replace(policy, end_ids=(end_id,))
    for batch_size in (2, 100):
        answers = models.generate_answers(ending, prompts, models.Generation(12), batch_size, "answers")
        assert [own[0].token_ids.tolist() for own in answers] == expected
        assert [own[0].ended for own in answers] == [ids[-1] == end_id for ids in expected]
        assert [own[0].text for own in answers] == policy.tokenizer.batch_decode(expected, skip_special_tokens=True)


def test_logprobs_in_packed_batches_are_those_of_a_plain_forward_pass(
    folder: Path, policy: models.Policy, prompts: list[np.ndarray]
) -> None:
    texts = ["5", "2 + 3 = 5\n#### 5", "", "no", "#### 0"]
    first, second = (models.answer_tokens(policy.tokenizer, side) for side in (texts, texts[::-1]))
    assert first[2].tolist() == [policy.tokenizer.eos_token_id]
    both = list(zip(first, second, strict=True))
    for temperature in (1.0, 0.7):
        for num_tokens in (1, 80, 10_000):
            found = models.completion_logprobs(policy, prompts, both, num_tokens, "pairs", temperature)
            for prompt, completions, logprobs in zip(prompts, both, found, strict=True):
                for completion, own in zip(completions, logprobs, strict=True):
                    expected = plain_logprobs(folder, prompt, completion, temperature)
                    np.testing.assert_allclose(own, expected, atol=1e-5)


def test_equal_completions_of_a_prompt_are_scored_once_and_told_each_time(
    policy: models.Policy, prompts: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = models.answer_tokens(policy.tokenizer, ["5", "2 + 3"])
    packed = []
    monkeypatch.setattr(
        models, "pack", lambda ids, *rest, **named: packed.append(len(ids)) or pack(ids, *rest, **named)
    )
    one, other = models.completion_logprobs(policy, prompts[:2], [[first, second, first, first], [first]], 1000, "x")
    assert packed == [3 + 2]  # each prompt and what is different after it
    assert [len(row) for row in one] == [len(first), len(second), len(first), len(first)]
    np.testing.assert_array_equal(one[0], one[2])
    assert not np.array_equal(one[0], other[0])


def test_margin_of_a_pair_is_the_difference_of_two_plain_sums(
    folder: Path, policy: models.Policy, tmp_path: Path
) -> None:
    pairs = read_pairs(str(write_preference(tmp_path / "pairs.jsonl", 3)))
    pairs.append(pairs[0] | {"rejected": pairs[0]["chosen"]})  # nothing to tell them apart
    pairs.append(pairs[0] | {"rejected": [{"role": "assistant", "content": ""}]})
    margins = models.pair_margins(policy, pairs, 100, "pairs")
    for pair, margin in zip(pairs, margins, strict=True):
        text = f"<|im_start|>user\n{pair['prompt'][0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        sums = []
        for side in ("chosen", "rejected"):
            prompt, answer = (
                np.array(policy.tokenizer(words)["input_ids"])
                for words in (text, pair[side][0]["content"] + "<|im_end|>")
            )
            sums.append(plain_logprobs(folder, prompt, answer).sum())
        assert margin == pytest.approx(sums[0] - sums[1], abs=1e-4)


def test_samples_hold_their_logprobs_and_differ(folder: Path, policy: models.Policy, prompts: list[np.ndarray]) -> None:
    how = models.Generation(10, num_completions=3, temperature=0.8, seed=1)
    samples = models.generate_answers(policy, prompts, how, 7, "samples")
    assert [len(own) for own in samples] == [3] * len(prompts)
    assert len({tuple(answer.token_ids) for own in samples for answer in own}) == 3 * len(prompts)
    for prompt, own in zip(prompts, samples, strict=True):
        for answer in own:
            np.testing.assert_allclose(
                answer.logprobs, plain_logprobs(folder, prompt, answer.token_ids, 0.8), atol=1e-4
            )


def test_a_prompts_samples_depend_on_the_seed_and_on_nothing_beside_it(
    policy: models.Policy, prompts: list[np.ndarray]
) -> None:
    def tokens(seed: int, number: int, batch_size: int) -> list[list[int]]:
        how = models.Generation(6, num_completions=2, temperature=1.0, seed=seed)
        samples = models.generate_answers(policy, prompts[:number], how, batch_size, "samples")
        return [answer.token_ids.tolist() for own in samples for answer in own]

    whole = tokens(0, 5, 100)
    assert tokens(0, 5, 100) == whole
    assert tokens(0, 3, 100) == whole[:6]
    assert tokens(0, 5, 2) == whole
    assert tokens(1, 5, 100) != whole


def test_batches_hold_each_item_once_the_longest_first() -> None:
    assert list(models.batches_by_length([3, 9, 5, 9, 1], 2)) == [[1, 3], [2, 0], [4]]


def test_batches_hold_so_many_tokens_and_a_longer_item_alone() -> None:
    assert list(models.batches_by_tokens([3, 9, 5, 9, 1, 20], 10)) == [[5], [1], [3], [2, 0, 4]]
    assert list(models.batches_by_tokens([5, 5, 6], 11)) == [[2, 0], [1]]


def test_all_tokens_that_end_a_turn_count(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(tmp_path / "two")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "two" / name).write_bytes((folder / name).read_bytes())
    assert models.load_policy(tmp_path / "two", "float32").end_ids == (2, 7)


def test_a_tokenizer_without_a_chat_template_is_told_before_weights_load(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(UserError, match="no chat template"):
        models.load_policy(tmp_path, "float32")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_evaluated_as_its_base_with_it(folder: Path, tmp_path: Path, prompts: list[np.ndarray]) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "lora")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "lora" / name).write_bytes((folder / name).read_bytes())
    policy = models.load_policy(tmp_path / "lora", "float32")
    completion = np.array([5, 6, 7])
    found = models.completion_logprobs(policy, prompts[:1], [[completion]], 1, "adapter")[0][0]
    ids = torch.from_numpy(np.concatenate([prompts[0], completion]))
    with torch.no_grad():
        table = adapted.eval()(ids[None]).logits[0].log_softmax(-1)
    expected = table[len(prompts[0]) - 1 : -1].gather(1, ids[-3:, None])[:, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(found, plain_logprobs(folder, prompts[0], completion), atol=1e-3)


def test_chat_templates_are_kept_within_limits_and_to_one_date(policy: models.Policy) -> None:
    said = [[{"role": "user", "content": "2 + 3?"}]]
    tokenizer = copy.copy(policy.tokenizer)
    tokenizer.chat_template = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert models.conversation_texts(tokenizer, said, add_generation_prompt=True) == ["20242 + 3?"]
    tokenizer.chat_template = "{% for m in messages %}{{ m.content * 1000000 }}{% endfor %}"
    with pytest.raises(UserError, match="goes beyond its limits: it makes 6,000,000 characters"):
        models.prompt_tokens(tokenizer, said)
    tokenizer.chat_template = "{{ raise_exception('not me') }}"
    with pytest.raises(UserError, match="the chat template cannot render it: not me"):
        models.prompt_tokens(tokenizer, said)
