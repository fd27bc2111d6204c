r"""Where images come from: the Hub, a folder, a file, what `save_to_disk` wrote, scikit-learn."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fm_diffusers.training.faults import line
from fm_diffusers.training.finished import find_outcome

if TYPE_CHECKING:
    import datasets

#: By these files `save_to_disk` is told: of a `DatasetDict`, of a `Dataset`.
SAVED = ("dataset_dict.json", "state.json")


def open_rows(
    name: str, config: str | None, split: str, streaming: bool
) -> "datasets.Dataset | datasets.IterableDataset":
    """Return the rows of a data set."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    if name == "digits":
        return digits(split).to_iterable_dataset() if streaming else digits(split)
    folder = Path(name)
    if any((folder / file).is_file() for file in SAVED):
        rows = open_saved(folder, config, split)
        return rows.to_iterable_dataset() if streaming else rows
    if folder.is_dir():
        check_folder(folder)
    try:
        if folder.is_file():
            return load_dataset(
                "parquet", data_files={split: name}, split=split, streaming=streaming
            )
        return load_dataset(name, config, split=split, streaming=streaming)
    except (ConnectionError, FileNotFoundError, ValueError, DatasetsError) as error:
        told = str(error.__cause__ or error).splitlines()[0]
        if folder.is_dir():
            below = sorted(path.name for path in folder.iterdir() if path.is_dir())
            hint = f"; below it are {', '.join(below[:10])}, is it one of them?" if below else ""
            raise ValueError(
                f"--dataset_name {name!r} cannot be read as one data set of images ({told}){hint}"
            ) from error
        if folder.is_file():
            raise ValueError(
                f"--dataset_name {name!r} is no parquet file that holds rows ({told}): name one, "
                "or a folder of images"
            ) from error
        if isinstance(error, ConnectionError | FileNotFoundError):  # the data set is not found
            raise unknown(name) from error
        raise


def unknown(name: str) -> ValueError:
    """Return the error of a name that stands for nothing."""
    return ValueError(
        f"--dataset_name {name!r} is neither a local folder nor a data set that the Hub gives "
        "(check the spelling, the connection, HF_HUB_OFFLINE, and `hf auth login` for private "
        "ones); `digits` needs no network"
    )


def open_saved(folder: Path, config: str | None, split: str) -> "datasets.Dataset":
    """Return a split of what `save_to_disk` has written."""
    from datasets import DatasetDict, load_from_disk

    if config is not None:
        raise ValueError(
            f"--dataset_config_name {config} is for data sets of several configurations, and "
            f"{folder} holds a single one, written by save_to_disk: drop it"
        )
    try:
        saved = load_from_disk(folder)
    except (ValueError, IndexError, OSError) as error:  # the second is of a table without rows
        raise ValueError(
            f"{folder}, which save_to_disk wrote, is damaged or has no rows ({line(error)}): save "
            "it again"
        ) from error
    whole = saved if isinstance(saved, DatasetDict) else {str(saved.split or "train"): saved}
    if split not in whole:
        raise ValueError(
            f"{folder} has no split {split!r}, it was saved with {', '.join(whole)}: choose with "
            "--dataset_split, or --validation_split"
        )
    return whole[split]


def check_folder(folder: Path) -> None:
    """Raise a `ValueError` for a folder of nothing, of several data sets, or of a model."""
    if outcome := find_outcome(folder):
        raise ValueError(
            f"--dataset_name {str(folder)!r} holds {outcome}, no data set: name a folder of images"
        )
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if not any(path.is_file() for path in folder.rglob("*")):
        raise ValueError(
            f"--dataset_name {str(folder)!r} is a folder without files: name one of images (in "
            "class folders, or with a metadata.jsonl), of parquet files, or of save_to_disk"
        )
    below = [path.name for path in inside if any((path / file).is_file() for file in SAVED)]
    if below or len(set((schemas := dict(schemas_below(inside))).values())) > 1:
        below = below or [*schemas]
        raise ValueError(
            f"--dataset_name {str(folder)!r} is one level too high, it holds the data sets "
            f"{', '.join(sorted(below))}: name {str(folder / min(below))!r} for example"
        )


def schemas_below(folders: list[Path]) -> Iterator[tuple[str, str]]:
    """Yield the names of folders with parquet files, and what the columns of the first are."""
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import read_schema

    for folder in sorted(folders):
        for file in sorted(folder.rglob("*.parquet"))[:1]:
            try:
                schema = read_schema(file)
            except ArrowInvalid:  # whoever reads it will say so
                continue
            features = (schema.metadata or {}).get(b"huggingface", b"").decode()
            yield folder.name, features or str(schema.remove_metadata())


def digits(split: str) -> "datasets.Dataset":
    """Return the 8x8 digits of scikit-learn, 16 grey levels spread over 0 to 255."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Feature
    from sklearn.datasets import load_digits

    if split != "train":
        raise ValueError(f"`digits` has the split 'train' only, got {split!r}")
    found = load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)
    features = Features(image=Feature(), label=ClassLabel(names=[*map(str, range(10))]))
    columns = {"image": [Image.fromarray(image) for image in pixels], "label": found.target}
    return Dataset.from_dict(columns, features=features)
