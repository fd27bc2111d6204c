r"""Where the noise of a step comes from: a generator at every step, or a path for each sample.

A loop with `brownian` noise draws one seed for each sample from its generator when it begins and
nothing afterwards. The seeds travel in its `Place`; a step reads the increment of each sample's
Brownian path between its two times (`fm_diffusers.scheduling.brownian`).
"""

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from numbers import Integral

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fm_diffusers.scheduling.brownian import BrownianPaths, Span

Generators = torch.Generator | list[torch.Generator]

#: What returns standard normal noise in the shape, on the device and in the dtype of a tensor.
Noise = Callable[[Tensor, Generators | None], Tensor]


def check_generators(generator: Generators | None, batch_size: int | None = None) -> None:
    """Raise unless noise can be drawn from generators for a batch, of any size if that is None.

    Raises:
        ValueError: for what is no generator, or a list of another length than the batch.
    """
    each = generator if isinstance(generator, list) else [generator]
    if wrong := [g for g in each if g is not None and not isinstance(g, torch.Generator)]:
        raise ValueError(
            f"generator must be a torch.Generator, or a list of them, got {reprlib.repr(wrong[0])}"
            ": pass torch.Generator().manual_seed(seed)"
        )
    if batch_size is not None and len(each) not in (1, batch_size):
        raise ValueError(
            f"generator must be one, or a list with one for each of the {batch_size} samples, got "
            f"{len(each)}"
        )


def independent(like: Tensor, generator: Generators | None = None) -> Tensor:
    """Return noise from one generator, or from one for each sample.

    Raises:
        ValueError: see `check_generators`.
    """
    check_generators(generator, len(like) if like.ndim else 1)
    return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)


@dataclass(frozen=True)
class Increment:
    """Noise of a step from the paths of a loop; a generator has no influence.

    Attributes:
        paths: of the samples.
        spans: what steps read of them.
        index: which of the steps it is; in a compiled loop a tensor.
    """

    paths: BrownianPaths
    spans: tuple[Span, ...]
    index: int | Tensor = 0

    def __call__(self, like: Tensor, generator: Generators | None = None) -> Tensor:
        """Return the increments, divided by their deviation."""
        return _increments(self, like)


@torch.compiler.disable
def _increments(increment: Increment, like: Tensor) -> Tensor:
    return increment.paths.increments(increment.spans[int(increment.index)], like)


def of_no_loop(like: Tensor, generator: Generators | None = None) -> Tensor:
    """Raise: there is no path to draw from."""
    raise ValueError(
        "noise='brownian' is read from paths that begin with a loop, and this step belongs to "
        "none: call step with elements of scheduler.timesteps, pass place=scheduler.first_place("
        "batch_size, generator) to the first transition and its place to the next, or make the "
        "scheduler with noise='independent'"
    )


# --- what a loop begins with ---------------------------------------------------------------------


def no_paths(batch_size: int, generator: Generators | None = None) -> None:
    """Return None: every step draws from its generator."""


@torch.compiler.disable
def brownian_paths(batch_size: int, generator: Generators | None = None) -> BrownianPaths:
    """Return a Brownian path for each sample, its seed drawn from the generator.

    Raises:
        ValueError: see `check_generators`.
    """
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise ValueError(
            f"batch_size must be an integer of at least 1, got {batch_size!r}: pass len(sample)"
        )
    check_generators(generator, batch_size)
    each = list(generator) if isinstance(generator, list) else [generator]
    each = each * batch_size if len(each) == 1 else each
    return BrownianPaths(tuple(_seed(g) for g in each))


def _seed(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (1,), generator=generator, device=device))


def check_torchsde() -> None:
    """Raise unless torchsde is installed."""
    if find_spec("torchsde") is None:
        raise ValueError(
            "noise='brownian' needs torchsde, got none installed: pip install fm_diffusers[sde], "
            "or make the scheduler with noise='independent'"
        )


#: By the name in a configuration what a loop begins with, a function of the number of samples and
#: the generator.
NOISES: dict[str, Callable[[int, Generators | None], BrownianPaths | None]] = {
    "independent": no_paths,
    "brownian": brownian_paths,
}
