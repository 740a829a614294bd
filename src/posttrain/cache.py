"""Where things are kept that can be computed again: tokenised data, reference log-probs."""

import os
from pathlib import Path


def cache_root(cache_dir: str | None) -> Path:
    """`cache_dir` where one is given, else $POSTTRAIN_CACHE, else ~/.cache/posttrain."""
    return Path(cache_dir or os.environ.get("POSTTRAIN_CACHE") or Path.home() / ".cache" / "posttrain")
