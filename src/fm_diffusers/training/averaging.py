r"""The moving average of the weights, also of a network that several processes share.

Every process averages its parts of the weights, for the average of a number depends on no other.
A checkpoint has whole weights: it says the same, whatever the number of processes.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from fm_diffusers.training.sharding import gathered, part_like, parts, whole


class Average(EMAModel):
    """diffusers' moving average, of the parts of weights that this process holds.

    Args:
        weights: as the Accelerator has prepared them.
        decay: of the average after many steps.
    """

    shadow_params: list[Tensor]

    def __init__(self, weights: Sequence[nn.Parameter], decay: float) -> None:
        self.weights = list(weights)
        super().__init__(parts(weights), decay=decay, foreach=True)

    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take in the weights after a step."""
        super().step(parts(parameters))

    def copy_to(self, parameters: Iterable[nn.Parameter]) -> None:
        """Write the average into weights."""
        super().copy_to(parts(parameters))

    def store(self, parameters: Iterable[nn.Parameter]) -> None:
        """Keep weights for `restore`."""
        super().store(parts(parameters))

    def restore(self, parameters: Iterable[nn.Parameter]) -> None:
        """Write back what was stored."""
        super().restore(parts(parameters))

    def state_dict(self) -> dict[str, Any]:
        """Return the state, of whole weights; to be called on all processes."""
        pairs = zip(self.shadow_params, self.weights, strict=True)
        return super().state_dict() | {"shadow_params": [whole(*pair) for pair in pairs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, on the devices of the weights; to be called on all processes."""
        super().load_state_dict(state_dict)
        pairs = zip(self.shadow_params, self.weights, strict=True)
        self.shadow_params = [part_like(*pair) for pair in pairs]


@contextmanager
def ema_weights(ema: Average, network: nn.Module) -> Iterator[nn.Module]:
    """Put the averaged weights into the network, for the time of a `with` block."""
    ema.store(ema.weights)
    ema.copy_to(ema.weights)
    network.eval()
    try:
        with gathered(network):
            yield network
    finally:
        network.train()
        ema.restore(ema.weights)
