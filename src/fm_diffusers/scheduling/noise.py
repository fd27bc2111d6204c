r"""Where the noise of a step comes from: a generator at every step, or a path for each sample.

A loop with `brownian` noise draws one seed for each sample from its generator when it begins and
nothing afterwards. The seeds travel in its `Place`; a step reads the increment of each sample's
Brownian path between its two times (`fm_diffusers.scheduling.brownian`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fm_diffusers.scheduling.brownian import BrownianPaths, Span

Generators = torch.Generator | list[torch.Generator]

#: What returns standard normal noise in the shape, on the device and in the dtype of a tensor.
Noise = Callable[[Tensor, Generators | None], Tensor]


def independent(like: Tensor, generator: Generators | None = None) -> Tensor:
    """Return noise from one generator, or from one for each sample.

    Raises:
        ValueError: for what is no generator, or a list of another length than the batch.
    """
    each_of(generator, len(like))
    return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def each_of(generator: Generators | None, batch_size: int) -> list[torch.Generator | None]:
    """Return generators as a list, of one for all samples or one for each.

    Raises:
        ValueError: for what is no generator, or a list of another length than the batch.
    """
    each = generator if isinstance(generator, list) else [generator]
    if not all(g is None or isinstance(g, torch.Generator) for g in each):
        raise ValueError(
            f"generator must be a torch.Generator or a list of them, got {generator!r}: "
            "torch.Generator().manual_seed(seed) is one"
        )
    if len(each) not in (1, batch_size):
        raise ValueError(
            f"generator must be one, or a list with one for each of the {batch_size} samples, got "
            f"{len(each)}"
        )
    return each


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
        ValueError: for a list of generators of another length than the batch.
    """
    each = each_of(generator, batch_size)
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
