"""Weights that FSDP2 divides between processes, here among one, train and average as others do."""

import pytest
import torch
import torch.distributed as dist
from diffusers.training_utils import EMAModel
from torch import nn

from fm_diffusers.training.averaging import Average, ema_weights
from fm_diffusers.training.sharding import gathered

fsdp = pytest.importorskip("torch.distributed.fsdp")
DTensor = pytest.importorskip("torch.distributed.tensor").DTensor


class Halves(nn.Module):
    """A network with a layer that is divided by itself, and one that is not."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 1)

    def forward(self, x):
        return self.second(self.first(x))


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make(divided):
    torch.manual_seed(0)
    network = Halves()
    if divided:
        fsdp.fully_shard(network.first)
        fsdp.fully_shard(network)
    weights = list(network.parameters())
    return network, weights, torch.optim.AdamW(weights, lr=0.1)


def train(network, optimizer, x):
    network(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def run(divided, look):
    """Train, and look at the averaged network after every step."""
    network, weights, optimizer = make(divided)
    ema, x, seen = Average(weights, 0.99), torch.randn(7, 3), []
    for _ in range(3):
        train(network, optimizer, x)
        ema.step(weights)
        with ema_weights(ema, network) as averaged, torch.no_grad():
            seen.append(look(averaged, x))
    return ema, seen, network.state_dict()


@pytest.mark.parametrize(
    "look", [Halves.forward, lambda network, x: network(x)], ids=["layers", "network"]
)
def test_divided_weights_are_averaged_seen_and_trained_as_others_are(look, one_process):
    """What is seen of the average leaves no trace in the steps after it."""
    ema, seen, state = run(False, look)
    other, also_seen, divided = run(True, look)
    torch.testing.assert_close(also_seen, seen, rtol=0, atol=0)
    torch.testing.assert_close({k: v.full_tensor() for k, v in divided.items()}, state)
    averages = [average.state_dict()["shadow_params"] for average in (other, ema)]
    torch.testing.assert_close(*averages, rtol=0, atol=0)
    assert not any(isinstance(weight, DTensor) for weight in averages[0])


def test_an_average_is_loaded_whole_and_kept_in_parts(one_process):
    _, weights, _ = make(True)
    ema, kept = Average(weights, 0.99), run(False, Halves.forward)[0].state_dict()
    ema.load_state_dict(kept)
    torch.testing.assert_close(ema.shadow_params, kept["shadow_params"], rtol=0, atol=0)
    assert ema.optimization_step == kept["optimization_step"] == 3


def test_an_average_that_is_loaded_goes_to_the_device_of_the_weights():
    """Accelerate reads states on the CPU, whatever the device of the run."""
    kept = Average(list(nn.Linear(3, 2).parameters()), 0.99).state_dict()
    ema = Average(list(nn.Linear(3, 2, device="meta").parameters()), 0.99)
    ema.load_state_dict(kept)
    assert [weight.device.type for weight in ema.shadow_params] == ["meta", "meta"]


def test_it_is_diffusers_average_of_weights_that_are_whole():
    network, weights, optimizer = make(False)
    ema, expected = Average(weights, 0.9), EMAModel(weights, decay=0.9, foreach=True)
    for _ in range(3):
        train(network, optimizer, torch.randn(4, 3))
        ema.step(weights)
        expected.step(weights)
    with gathered(network):
        torch.testing.assert_close(ema.state_dict(), expected.state_dict(), rtol=0, atol=0)
