"""A network of class labels that predicts the exact field of mixtures, whatever the prediction."""

import torch
from diffusers.configuration_utils import FrozenDict

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.fields import GaussianMixture

SHAPE = (1, 2, 2)


def mixture(seed, components=3, std=0.3):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(components, 4, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, std)


class ExactNetwork(torch.nn.Module):
    """Class `k` is one data set, and the null label the last of them."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, scheduler, data):
        super().__init__()
        self.scheduler, self.data, self.calls = scheduler, data, []
        self.config = FrozenDict(
            in_channels=1, out_channels=1, sample_size=2, num_class_embeds=len(data)
        )

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        scheduler = self.scheduler
        self.calls.append(len(sample))
        clock = scheduler.clock
        t = clock.convention.time(clock.path, clock.num_train_timesteps, timestep[0].double())
        flat = sample.flatten(1).double()
        predictions = torch.stack(
            [d.field(scheduler.path, scheduler.config.prediction_type)(flat, t) for d in self.data]
        )
        chosen = predictions[class_labels, torch.arange(len(sample))]
        return (chosen.reshape(sample.shape),)


def exact_pipe(path="linear", prediction_type="velocity", data=None, **config):
    scheduler = GaussianFlowScheduler(
        path=path, prediction_type=prediction_type, t_min=0.02, t_max=0.98, **config
    )
    data = data or [mixture(0), mixture(1), mixture(2, 6)]
    network = ExactNetwork(scheduler, data)
    pipe = FlowMatchingPipeline(network, scheduler, null_label=len(data) - 1)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)
