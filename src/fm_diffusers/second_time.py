"""A second time as a network is told it: features, and where they enter beside labels.

Sines and cosines of how far a step leads, all 0 for a step of no length, go through an embedding
of their own, which is added to that of the labels. What networks of diffusers take as labels
becomes one tensor of labels and features, side by side.
"""

from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from torch import Tensor, nn

#: Features of each number that a network is told.
FEATURES = 64
#: Angle of the fastest feature at 1: slow enough that a network is smooth in it.
SCALE = 30.0


def features(value: Tensor) -> Tensor:
    """Return sines and cosines of numbers, all 0 at 0: shape `(n, FEATURES)` from `(n,)`.

    Example:
        >>> features(torch.zeros(2)).abs().max().item()
        0.0
    """
    both = torch.cat([value.float().reshape(-1), value.new_zeros(1).float()])
    found = get_timestep_embedding(both, FEATURES, downscale_freq_shift=0, scale=SCALE)
    return found[:-1] - found[-1]


def step_features(advance: Tensor, guidance_scale: Tensor | None = None) -> Tensor:
    r"""Return what a network of two times is told, shape `(n, FEATURES)` or twice as many.

    Args:
        advance: :math:`v - u` of the step of each sample, shape `(n,)`.
        guidance_scale: of each sample, shape `(n,)`, for networks that have learned several; the
            features of 1, no guidance, are 0.
    """
    if guidance_scale is None:
        return features(advance)
    return torch.cat([features(advance), features((guidance_scale - 1) / 10)], 1)


class LabelsAndFeatures(nn.Module):
    """Embeds labels and features, which lie side by side in one tensor.

    Args:
        labels: the embedding of the labels; None for a network without.
        num_features: number of features.
        width: of the embedding.
    """

    def __init__(self, labels: nn.Module | None, num_features: int, width: int) -> None:
        super().__init__()
        self.labels = labels
        self.features = TimestepEmbedding(num_features, width)
        for weight in self.features.linear_2.parameters():
            nn.init.zeros_(weight)  # a new one changes nothing

    def forward(self, told: Tensor) -> Tensor:
        """Return embeddings of labels, the first column, and of the other columns."""
        weight = self.features.linear_1.weight
        embedded = self.features(told[:, 1:].to(weight.dtype))
        if self.labels is None:
            return embedded
        return embedded + self.labels(told[:, 0].long())


def side_by_side(
    network: nn.Module, labels: Tensor | None, timestep_cond: Tensor | None, sample: Tensor
) -> Tensor:
    """Return labels and features in one tensor, shape `(batch, 1 + num_features)`.

    Raises:
        ValueError: for a network of labels without any, the reverse, or another shape of features.
    """
    config: Any = network.config
    told: Any = network.told
    count, shape = len(sample), (len(sample), config.time_cond_proj_dim)
    if (labels is None) != (told[0].labels is None):
        raise ValueError(
            f"class_labels must be {'left out' if labels is not None else 'given'}: the network "
            f"was {'not ' if labels is not None else ''}trained with classes"
        )
    if timestep_cond is None:
        timestep_cond = torch.zeros(shape, device=sample.device)
    if timestep_cond.shape != shape:
        raise ValueError(
            f"timestep_cond must have the shape {shape}, got {tuple(timestep_cond.shape)}: it is "
            "what fm_diffusers.second_time.step_features returns"
        )
    first = torch.zeros(count, device=sample.device) if labels is None else labels
    first = first.to(sample.device).expand(count).float()
    return torch.cat([first[:, None], timestep_cond.to(sample.device).float()], 1)
