"""Broken YAML: files of flags, files of parameters with a section a stage, and files of accelerate.

Where a file of flags is broken, one of parameters is by the same text under `sft:`, and both are read by one function.
"""

from __future__ import annotations

NEEDED = "model_name_or_path: m\ndataset_name: d\n"


def bomb(levels: int, width: int) -> str:
    """Aliases of aliases: some hundred bytes that stand for width ** levels values."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


# title → content of the file given by --config, what the message says
FLAGS: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", ["the file is empty"]),
    "blank": (b"\n\n   \n", ["the file is empty"]),
    "comments alone": (b"# nothing\n", ["the file is empty"]),
    "a list": (b"- learning_rate: 1\n", ["holds a list"]),
    "a text": (b"learning_rate\n", ["holds a str"]),
    "a number": (b"1e-5\n", ["holds a float"]),
    "null": (b"null\n", ["the file is empty"]),
    "JSON cut off": (b'{"learning_rate": ', ["line 1", "not YAML"]),
    "a billion laughs": (bomb(12, 10).encode(), ["aliases"]),
    "laughs as deep as many": (bomb(60, 2).encode(), ["aliases"]),
    "laughs in a merge": (b"a: &a {b: 1}\nc: {<<: [" + b", ".join([b"*a"] * 40_000) + b"]}\n", ["aliases"]),
    "a value that holds itself": (b"lr_scheduler_kwargs: &a {a: *a}\n", ["line 1", "holds itself"]),
    "a list that holds itself": (b"report_to: &a [*a]\n", ["holds itself"]),
    "an alias of nothing": (b"seed: *nothing\n", ["line 1", "not YAML", "nothing"]),
    "tabs": (b"learning_rate: 1\n\tseed: 2\n", ["line 2", "not YAML"]),
    "a tab inside a mapping": (b"lr_scheduler_kwargs:\n\tnum_cycles: 2\n", ["line 2", "not YAML"]),
    "a key twice": (b"seed: 1\nlearning_rate: 1\nseed: 2\n", ["line 3", "seed already stands in line 1"]),
    "a key twice inside": (b"lr_scheduler_kwargs:\n  a: 1\n  a: 2\n", ["line 3", "a already stands in line 2"]),
    "a key twice, once quoted": (b'seed: 1\n"seed": 2\n', ["seed already stands"]),
    "a Python object": (b"seed: !!python/object:os.system {}\n", ["line 1", "not YAML"]),
    "a Python call": (b"seed: !!python/object/apply:os.system ['touch x']\n", ["line 1", "not YAML"]),
    "a Python name": (b"seed: !!python/name:os.system\n", ["line 1", "not YAML"]),
    "a Python tuple": (b"loss_weights: !!python/tuple [1]\n", ["line 1", "not YAML"]),
    "an own tag": (b"seed: !seed 1\n", ["line 1", "not YAML"]),
    "a tag that is not so": (b"seed: !!int one\n", ["a value is not what its tag says"]),
    "a float's tag that is not so": (b"learning_rate: !!float fast\n", ["a value is not what its tag says"]),
    "a switch's tag that is not so": (b"packing: !!bool maybe\n", ["a value is not what its tag says"]),
    "broken base64": (b"run_name: !!binary '%%%'\n", ["run_name"]),
    "bytes": (b"run_name: !!binary aGVsbG8=\n", ["run_name", "is not text"]),
    "a set": (b"report_to: !!set {wandb}\n", ["report_to"]),
    "two documents": (b"seed: 1\n---\nseed: 2\n", ["line 2", "not YAML"]),
    "NUL": (b"seed: 1\0\n", ["not YAML"]),
    "a bell": (b"run_name: \x07\n", ["not YAML"]),
    "Latin 1": ("run_name: café\n".encode("latin-1"), ["not UTF-8"]),
    "UTF-16": ("seed: 1\n".encode("utf-16"), ["not UTF-8"]),
    "UTF-16 without a mark": ("seed: 1\n".encode("utf-16-le"), ["not YAML"]),
    "UTF-32": ("seed: 1\n".encode("utf-32"), ["not UTF-8"]),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), ["not UTF-8"]),
    "10 MB": (b"# " + b"x" * 10_000_000 + b"\nseed: 1\n", ["larger than 256 KiB"]),
    "nested very deep": (b"lr_scheduler_kwargs: " + b"[" * 3_000 + b"]" * 3_000 + b"\n", ["nested too deep"]),
    "mappings nested very deep": (
        b"lr_scheduler_kwargs: " + b"{a: " * 3_000 + b"1" + b"}" * 3_000,
        ["nested too deep"],
    ),
    "a number as a key": (b"1: 2\n", ["no such key"]),
    "null as a key": (b"~: 2\n", ["no such key"]),
    "a switch as a key": (b"true: 2\n", ["no such key"]),
    "a list as a key": (b"? [a]\n: 1\n", ["line 1", "not YAML"]),
    "a mapping as a key": (b"? {a: 1}\n: 1\n", ["line 1", "not YAML"]),
    "an unclosed quote": (b'run_name: "a\nseed: 1\n', ["not YAML"]),
    "an unclosed bracket": (b"report_to: [wandb\nseed: 1\n", ["not YAML"]),
    "a wrong indentation": (b"seed: 1\n  packing: true\n", ["line 2", "not YAML"]),
    "two colons": (b"seed: 1: 2\n", ["line 1", "not YAML"]),
    "a percent sign": (b"%seed: 1\n", ["not YAML"]),
    "an at sign": (b"run_name: @me\n", ["line 1", "not YAML"]),
    "a misspelt key": (b"learnig_rate: 1\n", ["learnig_rate", "did you mean learning_rate"]),
    "a key with dashes": (b"--seed: 1\n", ["--seed", "no such key"]),
    "a section": (b"sft:\n  seed: 1\n", ["sft", "no such key"]),
    "a key of another method": (b"num_generations: 8\n", ["num_generations is not for sft"]),
    "a list for a number": (b"seed: [1]\n", ["seed: [1] is not a whole number"]),
    "a mapping for a number": (b"learning_rate: {a: 1}\n", ["learning_rate", "is not a number"]),
    "a list for a mapping": (b"lr_scheduler_kwargs: [1]\n", ["lr_scheduler_kwargs", "is not a mapping"]),
    "a mapping for a list": (b"datasets: {path: a}\n", ["datasets"]),
    "a list of lists": (b"datasets: [[a]]\n", ["datasets[0]", "not a mapping"]),
    "a number for a text": (b"run_name: 1\n", ["run_name: 1 is not text"]),
    "a switch for a number": (b"seed: true\n", ["seed: True is not a whole number"]),
    "a switch for a text": (b"run_name: true\n", ["run_name: True is not text"]),
    "a text for a switch": (b"packing: maybe\n", ["packing: 'maybe' is not true or false"]),
    "null for a number": (b"seed:\n", ["seed: None is not a whole number"]),
    "a date for a number": (b"seed: 2026-01-01\n", ["seed: '2026-01-01' is not a whole number"]),
    "sexagesimals": (b"max_steps: 1:30\n", ["max_steps: '1:30' is not a whole number"]),
    "an underscore in a number": (b"max_steps: 1_000\n", ["max_steps: '1_000' is not a whole number"]),
    "a share for a whole number": (b"max_steps: 1.5\n", ["max_steps: 1.5 is not a whole number"]),
    "a number of 10,000 digits": (b"seed: " + b"9" * 10_000 + b"\n", ["line 1", "10,000 digits"]),
    "a hexadecimal of 10,000 digits": (b"seed: 0x" + b"f" * 10_000 + b"\n", ["line 1", "digits"]),
    "infinity": (b"learning_rate: .inf\n", ["learning_rate: inf is not a number"]),
    "no number": (b"learning_rate: .nan\n", ["learning_rate: nan is not a number"]),
    "a number below": (b"learning_rate: -1e-5\n", ["learning_rate", "too small"]),
    "an empty text": (b"run_name: ''\n", ["run_name", "empty"]),
    "NUL in a text": (b'run_name: "a\\0b"\n', ["run_name", "NUL"]),
    "half of a pair": (b'run_name: "\\ud800"\n', ["run_name"]),
    "variables in a list": (b"env: [A, B]\n", ["env"]),
    "variables in a text": (b"env: A=1\n", ["env"]),
    "a variable of a list": (b"env: {A: [1]}\n", ["env"]),
    "a variable with an equals sign": (b"env: {A=B: 1}\n", ["env", "A=B"]),
    "a variable without a name": (b"env: {'': 1}\n", ["env"]),
    "a variable with NUL": (b'env: {A: "a\\0b"}\n', ["env"]),
    "a config in a config": (b"config: other.yaml\n", ["config", "no such key"]),
}

# title → content of params.yaml, what the message says
PARAMS: dict[str, tuple[bytes, list[str]]] = {
    "no section": (b"dpo: {seed: 1}\n", ["there is no section sft"]),
    "a section of a misspelt name": (b"stf: {seed: 1}\n", ["there is no section sft", "stf"]),
    "an empty section": (b"sft:\n", ["sft holds no keys"]),
    "a list for a section": (b"sft: [seed]\n", ["sft holds no keys"]),
    "a text for a section": (b"sft: seed\n", ["sft holds no keys"]),
    "a number as a section": (b"1: {seed: 1}\n", ["there is no section sft"]),
    "a section twice": (b"sft: {seed: 1}\nsft: {seed: 2}\n", ["sft already stands in line 1"]),
    "a key twice in a section": (b"sft:\n  seed: 1\n  seed: 2\n", ["line 3", "seed already stands in line 2"]),
    "a misspelt key in a section": (b"sft: {sede: 1}\n", ["sft.sede", "seed"]),
    "a wrong value in a section": (b"sft: {seed: a}\n", ["sft.seed: 'a' is not a whole number"]),
    "a bomb beside the section": (b"sft: {seed: 1}\n" + bomb(12, 10).encode(), ["aliases"]),
    "a token in a section": (b"sft: {hub_token: hf_x}\n", ["sft.hub_token"]),
    "a secret deep in a section": (
        b"sft: {model_name_or_path: m, dataset_name: d, model_init_kwargs: {token: hf_x}}\n",
        ["model_init_kwargs: token"],
    ),
    "nothing but a section's keys": (b"seed: 1\n", ["there is no section sft"]),
    "no model in a section": (b"sft: {seed: 1}\n", ["model_name_or_path is missing"]),
}

# title → content of a file for --accelerate_config, what the message says
ACCELERATE: dict[str, tuple[bytes, list[str]]] = {
    "an empty file of accelerate": (b"", ["the file is empty"]),
    "a list of accelerate": (b"- a\n", ["holds a list"]),
    "a Python object of accelerate": (b"a: !!python/object:os.system {}\n", ["not YAML"]),
    "a bomb of accelerate": (bomb(12, 10).encode(), ["aliases"]),
    "processes in words": (b"distributed_type: MULTI_GPU\nnum_processes: two\n", ["num_processes", "two"]),
    "no processes at all": (b"distributed_type: MULTI_GPU\nnum_processes: 0\n", ["num_processes"]),
    "machines in a list": (b"distributed_type: MULTI_GPU\nnum_machines: [1]\n", ["num_machines"]),
    "an unknown kind": (b"distributed_type: MULTI_TPV\nnum_processes: 1\n", ["distributed_type", "MULTI_TPV"]),
    "flags of posttrain": (b"learning_rate: 1\nseed: 2\n", ["learning_rate"]),
    "a file cut off": (b"distributed_type: MULTI_GPU\nnum_proc", ["not YAML"]),
    "a file of bytes": (b"\x80\x02}q\x00.", ["not UTF-8"]),
}

# title → kind of the file, content, what the message says
CASES = {
    f"{kind}: {title}": (kind, *case)
    for kind, cases in (("flags", FLAGS), ("params", PARAMS), ("accelerate", ACCELERATE))
    for title, case in cases.items()
}
