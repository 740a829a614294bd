"""The task that comes with the repository: problems, slips, tokenizer and base model, all made from one seed."""
