"""Sampling completions: a vLLM server beside posttrain's own engine, in turn, with the weights of one model folder and
prompts of one file. The server is started as docs/vllm.md says; this sends it the weights, as a run does."""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rollouts import count, timed
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.rollout.engine import Engine, Sampling, uniforms
from posttrain.rollout.vllm_client import VLLMClient
from posttrain.rollout.vllm_engine import VLLMEngine
from posttrain.rollout.vllm_server import VLLMServer
from posttrain.scoring import Scorer


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("model", help="folder")
    parser.add_argument("data", help="JSONL with prompts")
    parser.add_argument("--address", default="http://127.0.0.1:8000")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--completions", type=int, default=8, help="of each prompt")
    parser.add_argument("--tokens", type=int, default=80, help="of each completion, at most")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    lines = Path(args.data).read_text(encoding="utf-8").splitlines()[: args.prompts]
    texts = [json.loads(line)["prompt"] for line in lines]
    prompts = [
        np.array(tokenizer.encode(text) if isinstance(text, str) else ids_of(tokenizer, text), dtype=np.int64)
        for text in texts
    ]
    sampling = Sampling(args.tokens, (tokenizer.eos_token_id,))
    server = VLLMServer(VLLMClient(args.address, 60.0), rank=0)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        start = time.perf_counter()
        server.load(Path(folder), "benchmark")
        print(f"weights: {time.perf_counter() - start:.2f} s to load")
    own, served = Engine(model, Scorer(model)), VLLMEngine(server)
    speeds = []
    for repeat in range(args.repeats + 1):
        numbers = uniforms(repeat, range(args.prompts * args.completions), args.tokens)
        (own_time, own_tokens), (served_time, served_tokens) = (
            timed(
                lambda engine=engine, numbers=numbers: count(
                    engine.generate(model, prompts, args.completions, sampling, numbers)
                )
            )
            for engine in (own, served)
        )
        if repeat:  # the first one warms up
            speeds.append((own_tokens / own_time, served_tokens / served_time))
    ours, theirs = (statistics.median(column) for column in zip(*speeds, strict=True))
    print(f"{torch.get_num_threads()} threads here, {args.prompts} prompts, {args.completions} completions of each")
    print(f"posttrain's engine: {ours:,.0f} tok/s; vLLM: {theirs:,.0f} tok/s")


def ids_of(tokenizer: AutoTokenizer, messages: list[dict[str, str]]) -> list[int]:
    """Of a conversation."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(text, add_special_tokens=False))


if __name__ == "__main__":
    main()
