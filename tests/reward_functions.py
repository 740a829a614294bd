"""Reward functions as users write them, good and bad; the tests of rewards name them by file and name."""

import asyncio
import os
import random
import subprocess
import sys
import time

import numpy as np

calls = 0


def length(completions, **kwargs):
    return [len(text) for text in completions]


def everything(**kwargs):
    assert sorted(kwargs) == ["completion_ids", "completions", "prompts", "tag"], sorted(kwargs)
    return [float(tag) for tag in kwargs["tag"]]


def some(completions, tag, weight=2.0, *, prompts):
    assert prompts[0] == [{"role": "user", "content": "hi"}] and completions[0][0]["role"] == "assistant"
    return np.array([weight * one for one in tag], dtype=np.float32)


def some_opinions(completions):
    return tuple(None if text == "pass" else True for text in completions)


async def later(completions):
    await asyncio.sleep(0.2)
    return [len(text) / 2 for text in completions]


class Scorer:
    async def __call__(self, completions, **kwargs):
        return [7 for _ in completions]


scorer = Scorer()


def counting(completions):
    global calls
    calls += 1
    return [calls + random.random() for _ in completions]


def divide(completions, tag):
    return [1 / one for one in tag]


def hang(completions):
    if "hang" in completions:
        time.sleep(60)
    return [1.0 for _ in completions]


def stop(completions):
    if "stop" in completions:
        os._exit(3)
    return [1.0 for _ in completions]


def together(completions):
    if len(completions) > 1:
        raise RuntimeError("too many")
    return [1.0]


def odd(completions):
    return [float("nan"), float("inf"), 1e39, "1.0", [1], None, -2][: len(completions)]


def one_too_few(completions):
    return [0.0] * (len(completions) - 1)


def no_list(completions):
    return 1.0


def torch_is_here(completions):
    return ["torch" in sys.modules for _ in completions]


def child(completions):
    process = subprocess.Popen(["sleep", "60"])
    with open(completions[0], "w") as file:
        file.write(f"{os.getpid()} {process.pid}")
    time.sleep(60)
