"""What diffusers' schedulers draw from a configuration of ours, the figures of docs/swap.md."""

import diffusers
import pytest
import torch
from swapping import sample

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.paths import Linear
from fm_diffusers.predictions import target

MEAN, STD = 0.7, 0.5
NOISE = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
FLOW = {"use_flow_sigmas": True}

#: (mean, standard deviation) of 20 steps, or None where theirs raises.
DRAWN = {
    ("FlowMatchEulerDiscrete", "velocity"): (-1.09, 2.07),
    ("FlowMatchHeunDiscrete", "velocity"): (-1.06, 2.01),
    ("LTXEulerAncestralRF", "velocity"): (-1.15, 1.33),
    ("FlowMatchLCM", "velocity"): (-1.21, 0.50),
    ("UniPCMultistep", "velocity"): None,
    ("DPMSolverMultistep", "velocity"): None,
    ("EulerDiscrete", "velocity"): None,
    ("DDIM", "velocity"): None,
    ("FlowMatchEulerDiscrete", "flow_prediction"): (0.694, 0.465),
    ("FlowMatchHeunDiscrete", "flow_prediction"): (0.694, 0.503),
    ("LTXEulerAncestralRF", "flow_prediction"): (0.696, 0.433),
    ("FlowMatchLCM", "flow_prediction"): (0.701, 0.326),
    ("UniPCMultistep", "flow_prediction"): (2.82, 0.02),
    ("DPMSolverMultistep", "flow_prediction"): (2.78, 0.05),
    ("EulerDiscrete", "flow_prediction"): None,
    ("DDIM", "flow_prediction"): None,
}
TOLD = {
    "UniPCMultistep": (0.694, 0.507),
    "DPMSolverMultistep": (0.694, 0.509),
    "DPMSolverSinglestep": (0.694, 0.491),
    "DEISMultistep": (0.659, 0.480),
    "SASolver": (0.663, 0.498),
}


def exact(kind):
    """Return the network of data N(MEAN, STD^2) on the linear path."""

    def network(x, timestep):
        t = 1 - torch.as_tensor(timestep, dtype=torch.float64) / 1000
        c = Linear()(t)
        variance = (c.alpha * STD) ** 2 + c.beta**2
        rest = (x.double() - c.alpha * MEAN) / variance
        data, noise = MEAN + c.alpha * STD**2 * rest, c.beta * rest
        return target(Linear(), kind, data, noise, t).to(x.dtype)

    return network


def drawn(name, kind, **told):
    torch.manual_seed(0)
    theirs = getattr(diffusers, f"{name}Scheduler")
    theirs = theirs.from_config(GaussianFlowScheduler(prediction_type=kind).config, **told)
    return sample(theirs, net=exact(kind), x=NOISE, seed=None, num_inference_steps=20)


@pytest.mark.parametrize(("name", "kind"), DRAWN)
def test_what_theirs_draw_of_ours(name, kind):
    if DRAWN[name, kind] is None:
        with pytest.raises(ValueError, match=f"prediction_type given as {kind}"):
            drawn(name, kind)
        return
    x = drawn(name, kind)
    assert (x.mean().item(), x.std().item()) == pytest.approx(DRAWN[name, kind], abs=0.02)


@pytest.mark.parametrize("name", TOLD)
def test_what_their_multistep_schedulers_draw_when_told(name):
    x = drawn(name, "flow_prediction", **FLOW)
    assert (x.mean().item(), x.std().item()) == pytest.approx(TOLD[name], abs=0.02)


def test_euler_of_theirs_is_euler_of_ours():
    config = {"prediction_type": "flow_prediction", "solver": "euler", "grid": "flow_match"}
    ours = GaussianFlowScheduler(**config)
    x = sample(ours, net=exact("flow_prediction"), x=NOISE, num_inference_steps=20)
    y = drawn("FlowMatchEulerDiscrete", "flow_prediction")
    assert (x - y).norm() < 1e-6 * y.norm()
