r"""How others train: diffusers' script and torchcfm's example, as functions of the network.

- `diffusers_script`: all of `train_unconditional.py`, with its moving average. It runs unchanged;
  what it looks up is replaced: the network, the rows, and torchvision by `torchvision()`.
- `torchcfm`: the loss of its `ConditionalFlowMatcher` in a loop like that of its image examples:
  an image at a time from the data set, Adam, clipping, moving average over the state dict.
"""

import copy
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.training.speed_loops import ENDLESS, load_script

if TYPE_CHECKING:
    import datasets


# --- diffusers' script ---------------------------------------------------------------------------


def resize(image: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    """Return an image whose shorter side is `side`; itself if that is so already."""
    shorter = min(image.size)
    if shorter == side:
        return image
    return image.resize([round(length * side / shorter) for length in image.size], resample)


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """Return the square in the middle."""
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def random_crop(image: Image.Image, side: int) -> Image.Image:
    """Return a square somewhere; the image itself if it is one."""
    if image.size == (side, side):
        return image
    left, top = (int(torch.randint(length - side + 1, ())) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def mirror(image: Image.Image, share: float = 0.5) -> Image.Image:
    """Return the image mirrored, or not."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(()) < share else image


def to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels of an RGB image in [0, 1], of shape (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


def compose(transforms: list[Callable]) -> Callable:
    """Return one transform for several."""

    def transform(x: Any) -> Any:
        for one in transforms:
            x = one(x)
        return x

    return transform


def not_needed(image: Image.Image) -> Tensor:
    """Stand for a transform that diffusers' script builds and calls only under other flags."""
    raise NotImplementedError("the stand-in for torchvision has no transform for 16 or 32 bits")


def torchvision() -> dict[str, ModuleType]:
    """Return a stand-in for the part of torchvision that diffusers' script uses, as modules.

    It does less than the original, which checks its input, so the script is timed generously.
    """
    package, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    package.transforms = transforms
    vars(transforms).update(
        Compose=compose,
        InterpolationMode=SimpleNamespace(BILINEAR=Image.Resampling.BILINEAR),
        Resize=lambda side, interpolation: lambda image: resize(image, side, interpolation),
        CenterCrop=lambda side: lambda image: center_crop(image, side),
        RandomCrop=lambda side: lambda image: random_crop(image, side),
        RandomHorizontalFlip=lambda: mirror,
        Lambda=lambda function: function,
        ToTensor=lambda: to_tensor,
        Normalize=lambda mean, std: lambda x: (x - mean[0]) / std[0],
        PILToTensor=lambda: not_needed,
        ConvertImageDtype=lambda dtype: not_needed,
    )
    return {"torchvision": package, "torchvision.transforms": transforms}


def load_diffusers_script(file: str) -> ModuleType:
    """Return `train_unconditional.py` as a module, without torchvision."""
    sys.modules.update(torchvision())
    try:
        return load_script(file)
    finally:
        for name in torchvision():
            del sys.modules[name]


def diffusers_script(
    args: Any, script: ModuleType, rows: "datasets.Dataset", folder: str, network: nn.Module
) -> None:
    """Train by diffusers' script, up to the end of its first epoch.

    Args:
        args: with `resolution` and `train_batch_size`.
        script: of `load_diffusers_script`.
        rows: with a column `image`; at least as many as are wanted.
        folder: for what it writes.
        network: to train.
    """
    script.load_dataset = lambda *which, **how: rows
    script.UNet2DModel = SimpleNamespace(load_config=dict, from_config=lambda config: network)
    words = {
        "dataset_name": "rows",
        "model_config_name_or_path": "",
        "resolution": args.resolution,
        "train_batch_size": args.train_batch_size,
        "num_epochs": 1,
        "checkpointing_steps": ENDLESS,
        "mixed_precision": "no",
        "output_dir": folder,
    }
    command = [f"--{name}={value}" for name, value in words.items()]
    with mock.patch("sys.argv", [script.__file__, "--use_ema", *command]):
        arguments = script.parse_args()
    script.main(arguments)


# --- torchcfm ------------------------------------------------------------------------------------


class Pictures(Dataset):
    """Images one by one, each by way of Pillow, as torchvision's data sets are read."""

    def __init__(self, images: Tensor) -> None:
        self.arrays = images.permute(0, 2, 3, 1).numpy()

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> Tensor:
        return (to_tensor(Image.fromarray(self.arrays[index])) - 0.5) / 0.5


@torch.no_grad()
def average(source: nn.Module, target: nn.Module, decay: float) -> None:
    """Move the target's state towards the source's, one tensor after the other."""
    state = source.state_dict()
    for name, value in target.state_dict().items():
        value.copy_(decay * value + (1 - decay) * state[name])


def torchcfm(args: Any, images: Tensor, network: nn.Module) -> None:
    """Train as torchcfm's image examples do.

    Args:
        args: with `train_batch_size`.
        images: uint8 `(n, 3, H, W)`.
        network: to train.
    """
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    flow, averaged = ConditionalFlowMatcher(sigma=0.0), copy.deepcopy(network)
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.train().parameters(), lr=2e-4)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 5000) / 5000)
    loader = DataLoader(Pictures(images), args.train_batch_size, shuffle=True, drop_last=True)
    while True:
        for batch in loader:
            optimizer.zero_grad()
            z = batch.to(device)
            t, x_t, u_t = flow.sample_location_and_conditional_flow(torch.randn_like(z), z)
            output = network(x_t, 1000 * (1 - t), return_dict=False)[0]
            loss = torch.mean((output - u_t) ** 2)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            rate.step()
            average(network, averaged, 0.9999)
