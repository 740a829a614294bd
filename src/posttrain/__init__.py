"""posttrain: post-training of language models as a reproducible experiment."""

__version__ = "0.1.0"
