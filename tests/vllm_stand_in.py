"""A server that speaks the part of vLLM's HTTP interface that posttrain uses, with posttrain's own engine behind it:
its weights are those of the folder that it was sent last, its log-probs exact.

`python vllm_stand_in.py` reads orders from stdin, a line of JSON a server: `model`, a folder; `port`; `lives`, how many
requests for a completion each of its processes answers before it is killed by SIGKILL in the middle of the next (0: it
lives on); `pause`, seconds until the next process is there; `deaf`: it says that it has taken weights, and has not.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from transformers import AutoModelForCausalLM

from posttrain.rollout.engine import Engine, uniforms
from posttrain.rollout.sampling import Sampling
from posttrain.scoring import Scorer
from posttrain.stop import end_with_parent


def make_app(name: str, life: int, deaf: bool) -> FastAPI:
    app, state = FastAPI(), {"version": "default", "answered": 0}

    def read(folder: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    model = read(name)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    engine = Engine(model, Scorer(model))

    def failed(text: str) -> JSONResponse:
        return JSONResponse({"error": {"message": text}}, 500)

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": "0.32.0+stand.in"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"data": [{"id": name, "root": name, "max_model_len": 128}]}

    @app.get("/weight_info")
    async def weight_info() -> dict[str, str]:
        return {"weight_version": state["version"]}

    @app.post("/update_weight_version")
    async def update_weight_version(body: dict[str, str]) -> dict[str, bool]:
        state["version"] = body["new_version"]
        return {"success": True}

    @app.post("/reset_prefix_cache")
    async def reset_prefix_cache() -> dict[str, bool]:
        return {"success": True}

    @app.post("/collective_rpc")
    async def collective_rpc(body: dict[str, Any]) -> Any:
        assert body["method"] == "reload_weights"
        loaded = read(body["kwargs"]["weights_path"]).state_dict()
        if {key: value.shape for key, value in loaded.items()} != shapes:
            return failed("Worker failed with error 'shapes differ'")
        if not deaf:
            model.load_state_dict(loaded)
        return {"results": [None]}

    @app.post("/inference/v1/generate")
    async def generate(body: dict[str, Any]) -> Any:
        if state["answered"] == life > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        state["answered"] += 1
        asked, prompt = body["sampling_params"], np.array(body["token_ids"])
        if prompt.max() >= model.config.vocab_size:
            return JSONResponse({"error": {"message": f"Token id {prompt.max()} is out of vocabulary"}}, 400)
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        sampling = Sampling(
            asked["max_tokens"], tuple(asked["stop_token_ids"]), **{one: asked[one] for one in names if one in asked}
        )
        numbers = uniforms(asked["seed"], [0], sampling.max_new_tokens)
        made = engine.generate(model, [prompt], 1, sampling, numbers)
        ids, logprobs = made.token_ids[0].tolist(), made.logprobs[0].tolist()
        choice = {
            "finish_reason": "stop" if made.ended[0] else "length",
            "token_ids": ids,
            "logprobs": {"content": [{"logprob": value} for value in logprobs]},
            "weight_versions": [{"version": state["version"], "start": 0, "end": len(ids)}],
        }
        return {"choices": [choice]}

    return app


def live(order: dict[str, Any]) -> None:
    """A server's processes, one after the other."""
    for number, life in enumerate(order["lives"]):
        time.sleep(order["pause"] if number else 0)
        child = os.fork()
        if child == 0:
            end_with_parent(signal.SIGKILL)
            torch.set_num_threads(1)
            app = make_app(order["model"], life, order["deaf"])
            uvicorn.run(app, host="127.0.0.1", port=order["port"], log_level="error")
            os._exit(0)
        os.waitpid(child, 0)


def main() -> None:
    for line in sys.stdin:
        if os.fork() == 0:  # what is imported is there at once
            end_with_parent(signal.SIGKILL)
            live(json.loads(line))
            os._exit(0)


if __name__ == "__main__":
    main()
