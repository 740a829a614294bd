"""What is counted between two log lines."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch

from posttrain.losses import Loss


@dataclass
class Counts:
    """What has been counted since the last line: sums and weights, and for (name, sign) the largest sign * value."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, float | torch.Tensor] = field(default_factory=lambda: defaultdict(float))
    largest: dict[tuple[str, float], torch.Tensor] = field(default_factory=dict)

    def add(self, loss: Loss) -> None:
        for name, (total, weight) in loss.metrics.items():
            total = total.detach().float()
            self.sums[name] = self.sums[name] + total if name in self.sums else total
            self.weights[name] = self.weights[name] + weight  # not in place: copies share it
        for sign, values in ((-1.0, loss.minima), (1.0, loss.maxima)):
            for name, value in values.items():
                key, value = (name, sign), sign * value.detach().float()
                self.largest[key] = torch.maximum(self.largest[key], value) if key in self.largest else value

    def __copy__(self) -> Counts:
        return Counts(dict(self.sums), defaultdict(float, self.weights), dict(self.largest))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers, on the CPU."""
        on_cpu = {name: value.cpu() if torch.is_tensor(value) else value for name, value in self.weights.items()}
        largest = [[name, sign, value.cpu()] for (name, sign), value in self.largest.items()]
        return {"sums": {name: total.cpu() for name, total in self.sums.items()}, "weights": on_cpu, "largest": largest}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Goes on where `state_dict` was called."""
        self.sums = {name: total.to(device) for name, total in state["sums"].items()}
        weights = {name: one.to(device) if torch.is_tensor(one) else one for name, one in state["weights"].items()}
        self.weights = defaultdict(float, weights)
        self.largest = {(name, sign): value.to(device) for name, sign, value in state["largest"]}
