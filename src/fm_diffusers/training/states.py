"""States in a checkpoint of what a script has registered: numbers, and nothing else."""

from pathlib import Path

import torch

from fm_diffusers.files import shortened


def check_states(folder: Path) -> None:
    """Raise a `ValueError` for the state of an object that is more than numbers.

    Accelerate unpickles these whatever they hold, and a pickle may be a program.
    """
    for file in sorted(folder.glob("custom_checkpoint_*.pkl")):
        try:
            torch.load(file, map_location="meta", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{file} holds more than numbers, and reading it may run code: go on from a "
                f"checkpoint of your own ({shortened(error, 120)})"
            ) from error
