"""The splits of data sets, named as metrics call them."""

from collections.abc import Sequence
from pathlib import Path

from posttrain.data.splits import WantedSplit, open_named
from posttrain.errors import UserError
from posttrain.experiment.gates.data_checks import Part
from posttrain.experiment.gates.texts import read_texts


def read_parts(sets: Sequence[str], splits: Sequence[str], where: str) -> list[Part]:
    """Read splits of data sets.

    Args:
        sets: folders or data sets of the hub.
        splits: of each of them.
        where: the key that names the sets, for messages.

    Returns:
        a part a set and split, named after both: "sft_train" of data/embedded/sft.

    Raises:
        UserError: there is no set or split, two sets have one name, or rows cannot be read.
    """
    if not sets:
        raise UserError(f"{where} is empty; name the data sets that are trained on, such as [data/embedded/sft]")
    names = [Path(name).name for name in sets]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise UserError(f"{where}: two sets are called {twice}, and so would their metrics; rename one of the folders")
    parts = []
    for name, path in zip(names, sets, strict=True):
        for split in splits:
            source = open_named(path, None, WantedSplit(split, flag=where), where=where)
            assert source is not None  # a required split is there or an error
            title = f"{name}_{split}"
            parts.append(Part(title, read_texts(source, title)))
    return parts
