"""Completions: sampled from the policy, scored, and made into batches."""
