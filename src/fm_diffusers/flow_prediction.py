r"""Networks trained here, as diffusers' own flow schedulers expect them.

A network trained with `prediction_type="flow_prediction"` on the linear path runs under
`FlowMatchEulerDiscreteScheduler` and its kin as it is. `FlowPrediction` makes one of any other::

    pipe.unet = FlowPrediction(pipe.unet, pipe.scheduler)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()

(The other way, `fm_diffusers.adapters` brings networks trained elsewhere here.)
"""

from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from fm_diffusers.paths import Linear
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.solvers import RungeKutta
from fm_diffusers.solvers.runge_kutta import EULER


class FlowPrediction(nn.Module):
    r"""A network with any prediction on any path, asked and answering in diffusers' flow terms.

    At a sample :math:`x = (1 - \sigma) z + \sigma \varepsilon` of the linear path and the timestep
    :math:`N\sigma` it returns :math:`E[\varepsilon - z | x]`: the network is asked about the point
    of its own path with the same signal-to-noise ratio, and its answer is converted.

    At :math:`\sigma = 1` a noise or score network says nothing about the data, and paths such as
    `variance_preserving` and DDPM tables do not reach it: there the result is not finite. Give
    diffusers' scheduler `sigmas` that start inside.

    Args:
        network: called as `network(sample, timestep, *args)`, for example a `UNet2DModel`.
        scheduler: the one that it was trained and saved with.
        num_train_timesteps: N of diffusers' scheduler.
    """

    def __init__(
        self, network: nn.Module, scheduler: GaussianFlowScheduler, num_train_timesteps: int = 1000
    ) -> None:
        super().__init__()
        self.network = network
        # a scheduler of its own: whatever becomes of the pipeline's
        self.trained = GaussianFlowScheduler.from_config(scheduler.config, sampling_path=None)
        self.num_train_timesteps = num_train_timesteps
        prediction = self.trained.config.prediction_type
        self.frame = RungeKutta(Linear(), prediction, None, self.trained.path, EULER)

    @property
    def config(self) -> Any:
        """The network's."""
        return self.network.config

    @property
    def dtype(self) -> Any:
        """The network's."""
        return self.network.dtype

    @property
    def device(self) -> Any:
        """The network's."""
        return self.network.device

    def forward(
        self, sample: Tensor, timestep: float | Tensor, *args: Any, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor]:
        """Return :math:`E[\\varepsilon - z | x]`.

        Args:
            sample: shape `(batch, channels, ...)`.
            timestep: :math:`N\\sigma`, one for all or shape `(batch,)`.
            *args: what the network is called with besides, its class labels for example.
            return_dict: whether to return a `UNet2DOutput` or a tuple.
        """
        dtype = torch.promote_types(sample.dtype, torch.float32)
        steps = torch.as_tensor(timestep, device=sample.device).to(dtype)
        t = 1 - steps / self.num_train_timesteps
        trained = self.trained.to_timestep(self.frame.model_time(t))
        t = t.reshape(-1, *[1] * (sample.ndim - 1))
        asked = (self.frame.rescaling(t) * sample).to(sample.dtype)
        output = self.network(asked, trained, *args, return_dict=False)[0]
        of_sample, of_output = self.frame.convert("flow_prediction", t)
        flow = (of_sample * sample + of_output * output).to(sample.dtype)
        return UNet2DOutput(sample=flow) if return_dict else (flow,)
