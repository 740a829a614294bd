"""Sampling completions: the engine beside transformers' `generate`, in turn, in one process, with random prompts and
the random model of 4.2 million parameters. Tokens counted are those of the completions, up to their ends."""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from material import VOCABULARY, make_model, make_tokenizer
from transformers import GenerationConfig, Qwen2ForCausalLM

from posttrain.rollout.engine import Completions, Engine, Sampling, uniforms
from posttrain.scoring import Scorer


def peer(model: Qwen2ForCausalLM, prompts: list[np.ndarray], num_completions: int, sampling: Sampling) -> int:
    """Samples with transformers, prompts padded on the left; returns the number of tokens."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt)
        mask[row, width - len(prompt) :] = 1
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=list(sampling.eos_token_ids) or None,
        pad_token_id=2,
    )
    rows, masks = ids.repeat_interleave(num_completions, 0), mask.repeat_interleave(num_completions, 0)
    tokens = model.generate(rows, attention_mask=masks, generation_config=config)[:, width:].numpy()
    is_end = np.isin(tokens, sampling.eos_token_ids)
    return int(np.where(is_end.any(1), is_end.argmax(1) + 1, tokens.shape[1]).sum())


def count(completions: Completions) -> int:
    """Tokens of all completions."""
    return sum(len(ids) for ids in completions.token_ids)


def timed(run: Callable[[], int]) -> tuple[float, int]:
    """Seconds that a run takes, and the tokens that it makes."""
    start = time.perf_counter()
    tokens = run()
    return time.perf_counter() - start, tokens


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--prompt_tokens", type=int, nargs=2, default=(60, 180), help="shortest and longest prompt")
    parser.add_argument("--completions", type=int, default=8, help="of each prompt")
    parser.add_argument("--tokens", type=int, default=128, help="of each completion, at most")
    parser.add_argument("--ends", type=int, default=0, help="token ids, of 4096, that end a completion")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--by_modules", action="store_true", help="every step through the model's own modules")
    args = parser.parse_args()
    draw = np.random.default_rng(0)
    prompts = [draw.integers(4, VOCABULARY, n) for n in draw.integers(*args.prompt_tokens, args.prompts)]
    sampling = Sampling(args.tokens, tuple(range(100, 100 + args.ends)))
    tokenizer = make_tokenizer(["a text"])
    own, other = make_model(tokenizer).eval(), make_model(tokenizer).eval()
    other.generation_config = GenerationConfig()
    engine = Engine(own, Scorer(own))
    engine.writes_out = not args.by_modules
    seeds = iter(range(args.repeats + 1))
    ids = range(args.prompts * args.completions)
    torch.manual_seed(0)

    def engine_run() -> int:
        numbers = uniforms(next(seeds), ids, args.tokens)
        return count(engine.generate(own, prompts, args.completions, sampling, numbers))

    def peer_run() -> int:
        return peer(other, prompts, args.completions, sampling)

    speeds = []
    for repeat in range(args.repeats + 1):
        (own_time, own_tokens), (peer_time, peer_tokens) = timed(engine_run), timed(peer_run)
        if repeat:  # the first one warms up
            speeds.append((own_tokens / own_time, peer_tokens / peer_time, own_tokens, peer_tokens))
    ours, theirs, own_counts, peer_counts = zip(*speeds, strict=True)
    print(f"{torch.get_num_threads()} threads, {args.prompts} prompts of {[len(p) for p in prompts]} tokens")
    print(f"engine: {statistics.median(ours):,.0f} tok/s ({statistics.mean(own_counts):,.0f} tokens a run)")
    print(f"generate: {statistics.median(theirs):,.0f} tok/s ({statistics.mean(peer_counts):,.0f} tokens a run)")
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"ratio pair by pair: {ratios[0]:.2f} to {ratios[-1]:.2f}, median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
