"""What networks of other projects return, and the noise levels that denoisers know."""

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from foreign_networks import Denoiser
from test_adapters import SIZE, noise
from torch import nn

from fm_diffusers.adapters import from_edm, from_repa, from_sit


class Returns(nn.Module):
    """Returns whatever a function makes of the samples."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x, t, **more):
        return self.make(x)


class Named(NamedTuple):
    features: torch.Tensor
    sample: torch.Tensor


@pytest.mark.parametrize(
    ("make_output", "entry"),
    [
        (lambda x: 2 * x, None),
        (lambda x: (2 * x, [x]), None),
        (lambda x: [2 * x], None),
        (lambda x: (2 * x, None, x), None),
        (lambda x: {"loss": x, "sample": 2 * x}, None),
        (lambda x: UNet2DOutput(sample=2 * x), None),
        (lambda x: SimpleNamespace(sample=2 * x), None),
        (lambda x: torch.cat([2 * x, x], 1), None),
        (lambda x: (torch.cat([2 * x, x], 1), [x]), None),
        (lambda x: (x, 2 * x), 1),
        (lambda x: (x, 2 * x), -1),
        (lambda x: {"x": 2 * x, "sample": x}, "x"),
        (lambda x: SimpleNamespace(mean=2 * x, sample=x), "mean"),
        (lambda x: Named(x, 2 * x), "sample"),
    ],
)
@pytest.mark.parametrize("adapt", [from_sit, from_repa])
def test_the_prediction_is_found_in_what_a_network_returns(adapt, make_output, entry):
    unet, _ = adapt(Returns(make_output), entry=entry, **SIZE)
    for x in (noise(), noise(batch=1)):
        assert torch.equal(unet(x, 0.5).sample, 2 * x)
        assert torch.equal(unet(x, 0.5, return_dict=False)[0], 2 * x)


@pytest.mark.parametrize(
    ("make_output", "entry", "message"),
    [
        (lambda x: (), None, "at entry 0 of what the network returns, got a tuple of nothing"),
        (lambda x: ([x], x), None, "entry 0 .* got a tuple of list, Tensor: pass entry="),
        (lambda x: {"x": x, "v": x}, None, "entry 'sample' .* got a dict of x, v: pass entry="),
        (lambda x: {}, None, "got a dict of nothing"),
        (lambda x: SimpleNamespace(mean=x), None, "'sample' .* got a SimpleNamespace"),
        (lambda x: None, None, "entry 'sample' .* got a NoneType"),
        (lambda x: (x, x), 2, "entry 2 .* got a tuple of Tensor, Tensor"),
        (lambda x: x, 0, "entry 0 .* got a Tensor"),
        (lambda x: {"sample": x}, 0, "entry 0 .* got a dict of sample"),
        (lambda x: torch.cat([x, x, x], 1), None, r"\(4, 1, 4, 4\), or twice .* \(4, 3, 4, 4\)"),
        (lambda x: x[:, :, :2], None, r"got \(4, 1, 2, 4\)"),
        (lambda x: x[:1], None, r"got \(1, 1, 4, 4\)"),
        (lambda x: (x.mean(), x), None, r"got \(\): pass entry="),
    ],
)
def test_a_missing_prediction_says_what_was_returned(make_output, entry, message):
    unet, _ = from_sit(Returns(make_output), entry=entry, **SIZE)
    with pytest.raises(ValueError, match=message):
        unet(noise(), 0.5)


@pytest.mark.parametrize(
    ("levels", "asked", "message"),
    [
        (
            (0.02, 100.0),
            {},
            "from 0.02 to 100, got 0.002 and 80.0: pass its own",
        ),
        ((0.0, 14.6), {}, "from 0 to 14.6, got 0.002 and 80.0"),
        ((0.02, 100.0), {"sigma_min": 0.02, "sigma_max": 101}, "got 0.02 and 101"),
    ],
)
def test_noise_levels_are_those_that_a_denoiser_knows(levels, asked, message):
    network = Denoiser()
    network.sigma_min, network.sigma_max = levels[0], torch.tensor(levels[1])
    with pytest.raises(ValueError, match=message):
        from_edm(network, **SIZE | asked)
    inside = {"sigma_min": levels[0] or 0.002, "sigma_max": float(network.sigma_max)}
    from_edm(network, **SIZE | inside)
