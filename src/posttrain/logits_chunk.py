"""What is computed of a chunk of logits that stays in the caches: statistics of its targets, and its gradient."""

from __future__ import annotations

import torch


def chunk_statistics(z: torch.Tensor, targets: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """The columns of `TokenStatistics` of each target.

    With z shifted by its maximum, e = exp(z) and s = Σe: log p_t = z_t - log s, H = log s - Σ e·z / s,
    log Σ p² = log Σ e² - 2 log s.

    Args:
        z: (n, V) float32 logits, overwritten.
        targets: (n,).
        p: (n, V) float32, where the probabilities are written.

    Returns:
        (n, 5) float32.
    """
    mean_logit = z.mean(-1)
    z.sub_(z.amax(-1, keepdim=True))
    own = z.gather(1, targets[:, None])[:, 0]
    is_argmax = _is_argmax(z, targets, own).float()
    e = torch.exp(z, out=p)
    total = e.sum(-1)
    log_total = total.log()
    entropy = log_total - z.mul_(e).sum(-1) / total
    log_collision = 2 * (torch.linalg.vector_norm(e, dim=-1).log() - log_total)
    e.div_(total[:, None])
    return torch.stack([own - log_total, entropy, is_argmax, mean_logit, log_collision], dim=1)


def _is_argmax(z: torch.Tensor, targets: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Whether each target is the first of the largest of its row.

    Args:
        z: (n, V) less the maximum of each row.
        targets: (n,).
        own: (n,) z of the targets.
    """
    if z.device.type != "cpu":
        return z.argmax(-1) == targets
    # A CPU looks for the place of a maximum number by number, ten times as long as for the maximum: only in ties.
    found = own == 0
    rows = found.nonzero()[:, 0]
    tied = rows[z[rows].eq_(0).sum(-1) > 1]
    found[tied] = z[tied].argmax(-1) == targets[tied]
    return found


def write_gradient(
    p: torch.Tensor,
    targets: torch.Tensor,
    entropy: torch.Tensor,
    gradient: torch.Tensor,
    temperature: float,
    with_entropy: bool,
    out: torch.Tensor,
) -> None:
    """Writes the gradient of logits: d log p_t / dz = onehot(t) - p, dH/dz = -p * (log p + H).

    Args:
        p: (n, V) float32 probabilities.
        targets: (n,).
        entropy: (n,) float32.
        gradient: (n, 2 or more) float32, with respect to log-prob and entropy.
        temperature: that the logits were divided by.
        with_entropy: whether the second column counts.
        out: (n, V) float32, where it is written.
    """
    torch.mul(p, -gradient[:, :1], out=out)
    if with_entropy:
        out -= (torch.special.xlogy(p, p) + p * entropy[:, None]) * gradient[:, 1:2]
    out.scatter_add_(1, targets[:, None], gradient[:, :1])
    if temperature != 1.0:
        out.div_(temperature)
