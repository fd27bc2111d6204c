r"""Networks that several processes share (FSDP2): each holds a part of every weight, a `DTensor`.

The parts are gathered when a layer is called through its module, and let go again. What is done
to weights one by one, such as averaging them, is done to the parts.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

try:
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError:  # of a torch that shares no networks
    DTensor = FSDPModule = ()  # type: ignore[misc, assignment]  # for isinstance, nothing is one


def prepare(
    accelerator: Accelerator, network: nn.Module, optimizer: Optimizer, loader: DataLoader[Any]
) -> tuple[nn.Module, Optimizer, DataLoader[Any]]:
    """Return what `Accelerator.prepare` makes of them.

    A shared network computes in half precision what one that is not shared does. By itself FSDP2
    would round all that a network is given, the times too: of 1000 timesteps it would leave 256.
    """
    if accelerator.is_fsdp2 and accelerator.native_amp:
        policy = MixedPrecisionPolicy(output_dtype=torch.float32, cast_forward_inputs=False)
        accelerator.state.fsdp_plugin.mixed_precision_policy = policy
        network.forward = convert_outputs_to_fp32(accelerator.autocast()(network.forward))
    return accelerator.prepare(network, optimizer, loader)


def parts(weights: Iterable[Tensor]) -> list[Tensor]:
    """Return what this process holds of weights, in the same memory."""
    with torch.enable_grad():  # a part requires a gradient if its weight does
        return [w.to_local() if isinstance(w, DTensor) else w for w in weights]


def whole(part: Tensor, weight: Tensor) -> Tensor:
    """Return what all processes hold of a tensor that is divided as a weight is."""
    if not isinstance(weight, DTensor):
        return part
    placed = weight.device_mesh, weight.placements
    divided = DTensor.from_local(part, *placed, shape=weight.shape, stride=weight.stride())
    return divided.full_tensor().cpu()


def part_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return this process's part of a tensor, on the device of a weight and divided as it is."""
    tensor = tensor.to(weight.device)
    if not isinstance(weight, DTensor):
        return tensor
    return distribute_tensor(tensor, weight.device_mesh, weight.placements).to_local()


@contextmanager
def gathered(network: nn.Module) -> Iterator[nn.Module]:
    """Hold all weights of a network on every process, for the time of a `with` block.

    Any layer can be called by itself there. After it no process holds them: the next step of a
    training would be taken from them, whatever has become of its parts.
    """
    shared = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for module in shared:
        module.unshard()
    try:
        yield network
    finally:
        for module in shared:
            module.reshard()
