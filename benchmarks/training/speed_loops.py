r"""Our script, and the plain loop that it is measured against, as functions of the network.

`bare` trains in plain PyTorch on a uint8 tensor of all images, with the loss, optimizer, clipping,
moving average and learning rates of our script, and with switches for what can be done otherwise.
`ours` is all of `examples/train_mnist.py`, unchanged, on a network that it is given.
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from fm_diffusers.training.networks import BACKBONES

OURS = Path(__file__).parents[2] / "examples" / "train_mnist.py"
ENDLESS = 10**6  # steps: no training reaches them


def load_script(file: str | Path) -> ModuleType:
    """Return a script as a module."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


# --- plain PyTorch -------------------------------------------------------------------------------


def fetch(images: Tensor, indices: Tensor) -> Tensor:
    """Return images of a tensor."""
    return images.index_select(0, indices)


def batches(images: Tensor, size: int) -> Iterator[Tensor]:
    """Yield full batches in random order, epoch after epoch."""
    while True:
        for indices in torch.randperm(len(images)).split(size)[: len(images) // size]:
            yield fetch(images, indices)


def flow_matching(network: nn.Module, z: Tensor) -> Tensor:
    r"""Return :math:`\| u_\theta(t z + (1 - t) \varepsilon) - (\varepsilon - z) \|^2`."""
    eps = torch.randn_like(z)
    t = (torch.rand(1, device=z.device) + torch.randperm(len(z), device=z.device) / len(z)) % 1
    s = t[:, None, None, None]
    output = network(s * z + (1 - s) * eps, 1000 * (1 - t), return_dict=False)[0]
    return (output.float() - (eps - z)).square().mean()


def bare(
    args: Any,
    images: Tensor,
    network: nn.Module,
    *,
    fused: bool = True,
    foreach: bool = True,
    bf16: bool = False,
    channels_last: bool = False,
    compile: bool = False,
) -> None:
    """Train in plain PyTorch.

    Args:
        args: with `train_batch_size`.
        images: uint8 `(n, C, H, W)`.
        network: to train.
        fused: one kernel for the optimizer, in place of a loop over the parameters.
        foreach: a few kernels for the moving average, likewise.
        bf16: autocast.
        channels_last: memory format of weights and images.
        compile: the network.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.train().to(memory_format=layout)
    if compile:
        network.forward = torch.compile(network.forward)
    trained = list(network.parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0, fused=fused)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=200, num_training_steps=ENDLESS)
    ema = EMAModel(trained, decay=0.999, foreach=foreach)
    for batch in batches(images, args.train_batch_size):
        z = batch.float() / 127.5 - 1
        with torch.autocast(z.device.type, torch.bfloat16, enabled=bf16):
            loss = flow_matching(network, z.to(memory_format=layout))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        ema.step(trained)


# --- our script ----------------------------------------------------------------------------------


def ours(args: Any, script: ModuleType, folder: str, network: nn.Module) -> None:
    """Train by our script, on RGB images without labels; pictures and checkpoints are left out.

    Args:
        args: with `dataset_name`, `resolution` and `train_batch_size`.
        script: `examples/train_mnist.py`.
        folder: for what it writes.
        network: to train.
    """
    with mock.patch.dict(BACKBONES, unet=lambda *how: network):
        script.main(
            script.Arguments(
                output_dir=folder,
                dataset_name=args.dataset_name,
                image_mode="RGB",
                resolution=args.resolution,
                label_column="",
                train_batch_size=args.train_batch_size,
                max_train_steps=ENDLESS,
                validation_steps=ENDLESS,
                checkpointing_steps=ENDLESS,
                mixed_precision="no",
            )
        )
