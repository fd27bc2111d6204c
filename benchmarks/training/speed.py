r"""How fast our script trains, beside a plain loop, diffusers' script and torchcfm's example.

    pip install --no-deps torchcfm
    OMP_NUM_THREADS=1 python -m benchmarks.training.speed --dataset_name ylecun/mnist \
        --train_unconditional train_unconditional.py

All train the same U-Net from the same weights, on the same RGB images without labels (diffusers'
script knows no other), batch by batch in one process: they take turns of a few steps, in a new
order every round. A figure is the ratio of a training's time to that of the plain loop in the same
round. `train_unconditional.py` is diffusers' (examples/unconditional_image_generation); without
it, or without torchcfm, these rows say so.

A second table says where the time goes, a third what changes if the plain loop is run otherwise:
these are the grounds of our script's defaults. Laps go to `train_speed.csv` as they are run, the
tables to `train_speed.md`.
"""

import copy
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from accelerate import Accelerator
from datasets import Dataset, concatenate_datasets
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data._utils.fetch import _MapDatasetFetcher
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from benchmarks.training import speed_loops as loops
from benchmarks.training import speed_peers as peers
from benchmarks.training.speed_relay import Lap, Places, race
from benchmarks.training.speed_report import recorded, report
from fm_diffusers.training import progress
from fm_diffusers.training.data import load_images, open_rows
from fm_diffusers.training.networks import NetworkArguments, make_unet

#: What the plain loop is run with otherwise.
VARIANTS: dict[str, dict[str, bool]] = {
    "optimizer: a loop over the parameters": {"fused": False},
    "moving average: a loop over the parameters": {"foreach": False},
    "channels_last": {"channels_last": True},
    "bf16": {"bf16": True},
    "bf16, channels_last": {"bf16": True, "channels_last": True},
    "compiled": {"compile": True},
    "bf16, compiled": {"bf16": True, "compile": True},
}
BARE = "plain PyTorch"


@dataclass
class SpeedArguments(NetworkArguments):
    """Command line."""

    dataset_name: str = "digits"
    resolution: int = 28
    block_out_channels: list[int] = field(default_factory=lambda: [32, 64, 64])
    train_unconditional: str | None = field(
        default=None, metadata={"help": "The file of diffusers' script."}
    )
    train_batch_size: int = 128
    steps: int = field(default=10, metadata={"help": "Steps of a turn."})
    rounds: int = field(default=10, metadata={"help": "Turns of every training."})
    variants: list[str] = field(
        default_factory=lambda: [name for name in VARIANTS if "compiled" not in name],
        metadata={"help": f"Of the plain loop, of {[*VARIANTS]}; compiling takes minutes."},
    )
    variant_rounds: int = 6
    seed: int = 0
    output_dir: str = "benchmarks/results"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone != "unet":
            raise ValueError(f"--backbone must be unet, which diffusers trains: {self.backbone!r}")
        if unknown := [name for name in self.variants if name not in VARIANTS]:
            raise ValueError(f"--variants must be of {[*VARIANTS]}, got {unknown}")


def places(script: ModuleType) -> Places:
    """Return what is timed of all trainings, given our script as a module."""
    return {
        "network": [(UNet2DModel, "forward")],
        "backward": [(Tensor, "backward")],
        "loss": [(loops, "flow_matching")]
        + [(script, name) for name in ("scaled", "coupled_noise", "flow_loss")],
        "data": [(loops, "fetch"), (_MapDatasetFetcher, "fetch")],
        "clipping": [(nn.utils, "clip_grad_norm_")],
        "optimizer": [(torch.optim.AdamW, "step"), (torch.optim.Adam, "step")],
        "moving average": [(EMAModel, "step"), (peers, "average")],
        "learning rate": [(LRScheduler, "step")],
        "seeding": [(progress, "set_seed")],
        "logging": [(script, "log_loss"), (Accelerator, "log")]
        + [(tqdm, name) for name in ("update", "set_postfix")],
    }


def trainings(
    args: SpeedArguments, script: ModuleType, images: Tensor, folder: str
) -> tuple[dict[str, Callable[[nn.Module], None]], dict[str, str]]:
    """Return the trainings by name, and why others are missing."""
    found = {
        BARE: partial(loops.bare, args, images),
        "examples/train_mnist.py": partial(loops.ours, args, script, f"{folder}/ours"),
    }
    missing = {}
    if args.train_unconditional is None:
        missing["diffusers' script"] = "--train_unconditional FILE is not given"
    else:
        theirs = peers.load_diffusers_script(args.train_unconditional)
        rows = enough(open_rows(args.dataset_name, None, "train", False), args)
        found["diffusers' script"] = partial(
            peers.diffusers_script, args, theirs, rows, f"{folder}/diffusers"
        )
    if importlib.util.find_spec("torchcfm") is None:
        missing["torchcfm's loop"] = "not installed: pip install --no-deps torchcfm"
    else:
        found["torchcfm's loop"] = partial(peers.torchcfm, args, images.cpu())
    return found, missing


def enough(rows: Dataset, args: SpeedArguments) -> Dataset:
    """Return rows for a single epoch of full batches as long as all turns, repeating them."""
    needed = args.train_batch_size * (args.steps * (args.rounds + 1) + 2)
    return concatenate_datasets([rows] * -(-needed // len(rows))).select(range(needed))


def laps(
    args: SpeedArguments, runs: dict[str, Callable], rounds: int, watched: Places
) -> Iterator[Lap]:
    """Race trainings of the same network from the same weights."""
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = make_unet(args, (3, args.resolution, args.resolution), 0).to(device)
    entries = {name: (run, copy.deepcopy(network)) for name, run in runs.items()}
    return race(entries, rounds, args.steps, watched, args.seed)


def main(args: SpeedArguments) -> tuple[list[Lap], list[Lap]]:
    """Measure, write `train_speed.csv` and `train_speed.md` and return the laps of both races."""
    data = load_images(
        args.dataset_name, label_column=None, image_mode="RGB", resolution=args.resolution
    )
    images = data.images.cuda() if torch.cuda.is_available() else data.images
    script = loops.load_script(loops.OURS)
    variants = {BARE: {}} | {name: VARIANTS[name] for name in args.variants}
    switched = {
        name: partial(loops.bare, args, images, **switches) for name, switches in variants.items()
    }
    path = Path(args.output_dir, "train_speed.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        found, missing = trainings(args, script, images, folder)
        with path.open("w", newline="") as file:
            first = recorded(laps(args, found, args.rounds, places(script)), "trainings", file)
            second = recorded(laps(args, switched, args.variant_rounds, {}), "variants", file)
    text = report(args, first, second, missing, BARE)
    path.with_suffix(".md").write_text(text)
    print(text)
    return first, second


if __name__ == "__main__":
    main(HfArgumentParser(SpeedArguments).parse_args_into_dataclasses()[0])
