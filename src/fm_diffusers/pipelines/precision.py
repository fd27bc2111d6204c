r"""The precision that components compute in, which need not be the one that they are stored in.

Weights may be stored in 8 bits, quantised or cast layer by layer, and are computed with in 16 or
32: a component is fed the latter. The largest half-precision number is 65504, which activations of
some autoencoders exceed; those have `force_upcast` in their configuration and are computed with in
float32.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

#: Precisions that layers compute in; all others only store.
COMPUTED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
#: One autoencoder at a time is held in another precision than its own.
UPCASTING = threading.RLock()


def compute_dtype(component: nn.Module) -> torch.dtype:
    """Return the precision that a component is fed: its `dtype`, float32 if that only stores.

    Example:
        >>> from diffusers import AutoencoderKL
        >>> compute_dtype(AutoencoderKL().to(torch.bfloat16))
        torch.bfloat16
    """
    dtype: Any = component.dtype
    return dtype if dtype in COMPUTED else torch.float32


def numbers(component: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Return the parameters and buffers of a component that are floating-point, by name."""
    tensors = chain(component.named_parameters(), component.named_buffers())
    return ((name, tensor) for name, tensor in tensors if tensor.is_floating_point())


@contextmanager
def upcast(vae: Any) -> Iterator[torch.dtype]:
    """Hold an autoencoder in float32 if it is in half precision and must not compute in it.

    It must not where its configuration has `force_upcast`. Weights and precision are the same
    afterwards: float32 holds every half-precision number. Meanwhile other threads wait that want
    to use it; one that was cast layer by layer keeps computing in what it casts to.

    Args:
        vae: the autoencoder.

    Yields:
        The precision to feed it.
    """
    if not vae.config.get("force_upcast"):
        yield compute_dtype(vae)
        return
    with UPCASTING:
        stored = dict(numbers(vae))
        halves = {name for name, tensor in stored.items() if tensor.dtype == torch.float16}
        if vae.dtype == torch.float16 and all(t.element_size() > 1 for t in stored.values()):
            try:
                cast(vae, halves, torch.float32)
                yield compute_dtype(vae)
            finally:
                cast(vae, halves, torch.float16)
            return
    yield compute_dtype(vae)


def cast(component: nn.Module, names: set[str], dtype: torch.dtype) -> None:
    """Bring parameters and buffers of a component to a precision, where they are."""
    for name, tensor in numbers(component):
        if name in names:
            tensor.data = tensor.data.to(dtype)
