"""What the files of a model folder say before anything heavy is imported: config, index, and headers of weights.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header, JSON that gives each
tensor's type, shape and place (https://huggingface.co/docs/safetensors). No weight is read.
"""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from posttrain.errors import UserError

PAGE = "troubleshooting.md#model-loading"
_LONGEST_HEADER = 100_000_000  # as safetensors has it
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "C64": 64, "F16": 16, "BF16": 16, "I16": 16}
_BITS |= {"U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
_OTHER_KINDS = ("ForMaskedLM", "ForQuestionAnswering", "ForTokenClassification", "ForImageClassification")
_CONVERT = (
    "convert them once: python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{folder}')"
    ".save_pretrained('{folder}-safe')\", copy the tokenizer's files there, and name that folder"
)

Shapes = dict[str, tuple[str, tuple[int, ...]]]


def check_config_file(what: str, folder: Path) -> None:
    """Check that a folder's config.json describes a model that writes text from left to right.

    Args:
        what: the flag and its value, with which messages begin.
        folder: of a model.

    Raises:
        UserError: it does not.
    """
    about = read_object(what, folder / "config.json")
    kind = about.get("model_type")
    own = about.get("auto_map")  # code that comes with the model, and says what it is where it may run
    if (not isinstance(kind, str) or not kind) and not (isinstance(own, dict) and "AutoConfig" in own):
        _refuse(f"{what}: its config.json names no model_type, so nobody knows which model it is; copy the original")
    if about.get("is_encoder_decoder"):
        _refuse(f"{what}: a model of the type {kind} has an encoder and a decoder; take one that is a decoder alone")
    kinds = about.get("architectures")
    names = [str(one) for one in kinds] if isinstance(kinds, list) else []
    if names and all(name.endswith(_OTHER_KINDS) for name in names):
        _refuse(f"{what}: {', '.join(names)} does not write text from left to right; take a causal language model")


def check_generation_file(what: str, folder: Path) -> None:
    """Check a folder's generation_config.json, where it has one: transformers would pass over a broken one.

    Args:
        what: the flag and its value.
        folder: of a model.

    Raises:
        UserError: it cannot be read, or a token's id is none.
    """
    file = folder / "generation_config.json"
    if not file.exists():
        return
    about = read_object(what, file)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = about.get(name)
        ids = value if isinstance(value, list) else [value]
        if not all(one is None or (isinstance(one, int) and not isinstance(one, bool)) for one in ids):
            _refuse(f"{what}: {name} in its {file.name} is {value!r}, which is no id of a token; write its number")


def read_object(what: str, file: Path) -> dict[str, Any]:
    """The mapping that a JSON file of a model folder holds.

    Args:
        what: the flag and its value.
        file: in the folder.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        _refuse(f"{what}: its {file.name} cannot be read ({error.strerror}); copy or download it again")
    except (ValueError, RecursionError) as error:
        _refuse(f"{what}: its {file.name} is not JSON ({str(error)[:100]}); copy or download it again")
    if not isinstance(content, dict):
        _refuse(f"{what}: its {file.name} holds a {type(content).__name__}, not a mapping; copy or download it again")
    return content


def shapes_of(what: str, folder: Path, stem: str = "model") -> Shapes:
    """The type and shape of each tensor in the weights of a folder.

    Args:
        what: the flag and its value.
        folder: of a model or an adapter.
        stem: of the file's name: "model" or "adapter_model".

    Raises:
        UserError: a file is missing or not whole, or the weights are pickled.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        return read_header(what, single)
    if not index.is_file():
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))
        if pickled:
            _refuse(
                f"{what}: its weights are pickled ({pickled[0]}), and a pickle can run any code when it is read; "
                "if you trust it, " + _CONVERT.format(folder=folder)
            )
        found = sorted(file.name for file in folder.glob("*.safetensors"))
        more = f"it holds {', '.join(found[:3])}, and " if found else ""
        _refuse(f"{what}: {more}no {single.name} or {index.name}, so it holds no weights that can be loaded")
    return _shapes_of_shards(what, folder, index)


def _shapes_of_shards(what: str, folder: Path, index: Path) -> Shapes:
    places = read_object(what, index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        _refuse(f"{what}: its {index.name} does not say which tensor is in which file; copy or download it again")
    shapes: Shapes = {}
    inside: dict[str, Shapes] = {}
    for place in sorted(set(places.values())):
        if Path(place).name != place:
            _refuse(f"{what}: its {index.name} names {place!r}, which is no file of this folder")
        if not (folder / place).is_file():
            _refuse(f"{what}: {place} is missing, which its {index.name} names; copy or download it again")
        inside[place] = read_header(what, folder / place)
        shapes |= inside[place]
    astray = next((name for name, place in places.items() if name not in inside[place]), None)
    if astray is not None:
        _refuse(f"{what}: {astray} is not in {places[astray]}, where its {index.name} has it; copy both files again")
    return shapes


def read_header(what: str, file: Path) -> Shapes:
    """The tensors of a safetensors file, without reading one.

    Args:
        what: the flag and its value.
        file: of weights.

    Raises:
        UserError: it is no such file, or not whole.
    """

    def broken(why: str) -> NoReturn:
        _refuse(f"{what}: a file of its weights is not whole ({file.name}: {why}); copy or download it again")

    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8:
                broken(f"it has {size} bytes")
            if length > _LONGEST_HEADER or 8 + length > size:
                start = "it is a pointer of Git LFS" if length == int.from_bytes(b"version ", "little") else "no header"
                broken(start)
            header = json.loads(stream.read(length).decode("utf-8"))
    except OSError as error:
        broken(str(error.strerror))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        broken("its header is not JSON")
    if not isinstance(header, dict):
        broken("its header is no mapping")
    header.pop("__metadata__", None)
    shapes: Shapes = {}
    end = 0
    for name, about in header.items():
        try:
            kind, shape = str(about["dtype"]), tuple(int(one) for one in about["shape"])
            first, after = (int(place) for place in about["data_offsets"])
        except (TypeError, KeyError, ValueError):
            broken(f"nothing is said of {name}")
        bits = _BITS.get(kind, 0) * math.prod(shape)
        if min((0, *shape)) < 0 or first > after or (bits and 8 * (after - first) != bits):
            broken(f"{name} has {after - first:,} bytes, which are no {kind} of the shape {list(shape)}")
        shapes[name], end = (kind, shape), max(end, after)
    if end != size - 8 - length:
        broken(f"{size - 8 - length:,} bytes of weights in place of {end:,}")
    return shapes


def check_adapter_files(what: str, folder: Path) -> str | None:
    """Check the files of an adapter.

    Args:
        what: the flag and its value.
        folder: with an adapter_config.json.

    Returns:
        The base that it names.

    Raises:
        UserError: its config or weights are broken, pickled, of another rank than the config says.
    """
    about = read_object(what, folder / "adapter_config.json")
    base, rank = about.get("base_model_name_or_path"), about.get("r")
    if not isinstance(about.get("peft_type"), str):
        _refuse(f"{what}: its adapter_config.json names no peft_type, so nobody knows what kind of adapter it is")
    shapes = shapes_of(what, folder, "adapter_model")
    # A matrix of a parameter that holds several experts (target_parameters) has r rows for each of them.
    if isinstance(rank, int) and not about.get("rank_pattern") and not about.get("target_parameters"):
        for name, (_, shape) in shapes.items():
            if name.endswith("lora_A.weight") and len(shape) == 2 and shape[0] != rank:
                _refuse(f"{what}: {name} has rank {shape[0]}, and its adapter_config.json says r is {rank}; copy both")
    return base if isinstance(base, str) and base else None


def _refuse(message: str) -> NoReturn:
    raise UserError(message, PAGE)
