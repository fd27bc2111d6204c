"""What a scheduler carries along: precision, randomness, copies, its configuration, graphs."""

import copy
import json
import pickle
import sys

import diffusers
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from swapping import X, network, sample
from torch._dynamo.testing import CompileCounter

from fm_diffusers import GaussianFlowScheduler

FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
TABLE = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
EDM = diffusers.EDMEulerScheduler()
SOURCES = pytest.mark.parametrize("source", [FLOW, TABLE, EDM], ids=["flow", "table", "edm"])


def swap(source, **kwargs):
    return GaussianFlowScheduler.from_config(source.config, **kwargs)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- precision, randomness, copies ---------------------------------------------------------------


@pytest.mark.parametrize("of_sample", [torch.bfloat16, torch.float32])
def test_a_float32_state_stays_one_beside_a_network_in_bfloat16(of_sample):
    """Pipelines that start in float32 cast for their network, and lose nothing here."""
    ours = swap(FLOW)
    x = X.to(of_sample)
    y = x.float()
    ours.set_timesteps(30)
    twin = copy.deepcopy(ours)
    for t in ours.timesteps:
        q = network(y, t).to(torch.bfloat16)
        q = q if of_sample == torch.float32 else q.float()
        x, y = (ours.step(q, t, x).prev_sample, twin.step(q.float(), t, y).prev_sample)
    assert x.dtype == torch.float32 and torch.equal(x, y)


@pytest.mark.parametrize("make", [seeded, lambda: [seeded(1), seeded(2)]])
def test_noise_comes_from_the_generator_that_was_set(make):
    ours, results = swap(FLOW, diffusion="memoryless"), []
    for way in ("set", "given"):
        ours.set_generator(make() if way == "set" else None)
        ours.set_timesteps(4)
        x, generator = X, make()
        for t in ours.timesteps:
            given = {"generator": generator} if way == "given" else {}
            x = ours.step(network(x, t), t, x, **given).prev_sample
        results.append(x)
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("diffusion", [None, "memoryless"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_in_the_middle_goes_on_identically(way, diffusion, dtype):
    ours, x = swap(FLOW, diffusion=diffusion), X.to(dtype)
    ours.set_generator(seeded())
    ours.set_timesteps(6)
    for i, t in enumerate(ours.timesteps):
        if i == 3:
            twin, y = (copy.deepcopy(ours), x)
            if way == "pickle":
                twin, y = pickle.loads(pickle.dumps((ours, x)))
        if i >= 3:
            y = twin.step(network(y.float(), t).to(dtype), t, y).prev_sample
        x = ours.step(network(x.float(), t).to(dtype), t, x).prev_sample
    assert torch.equal(x, y)


# --- configuration -------------------------------------------------------------------------------


def test_pipelines_and_scripts_rewrite_the_configuration_after_construction():
    ours = swap(TABLE)
    ours.register_to_config(prediction_type="v_prediction")
    ours._internal_dict = FrozenDict(dict(ours.config) | {"steps_offset": 0, "clip_sample": True})
    expected = swap(TABLE, prediction_type="v_prediction", steps_offset=0, clip_sample=True)
    assert torch.equal(
        sample(ours, num_inference_steps=5), sample(expected, num_inference_steps=5)
    )


@SOURCES
def test_configuration_is_json_and_keeps_what_is_not_ours(source):
    ours = swap(source, solver_kwargs={"solver_order": 2})
    saved = json.loads(ours.to_json_string())
    hidden = {k: v for k, v in source.config.items() if k not in saved or k[0] != "_"}
    assert hidden.keys() - {"_use_default_values"} <= ours.config.keys()
    assert ours.config.num_train_timesteps == ours.config["num_train_timesteps"] == 1000
    assert isinstance(ours.config, FrozenDict)
    again = GaussianFlowScheduler.from_config(saved)
    assert torch.equal(sample(again, num_inference_steps=3), sample(ours, num_inference_steps=3))


def test_a_saved_pipeline_finds_the_class():
    module = sys.modules[GaussianFlowScheduler.__module__]
    assert hasattr(module, "SchedulerMixin")
    assert not hasattr(diffusers.pipelines, module.__name__.split(".")[-2])


@pytest.mark.parametrize("solver", ["ddim", "predictor_corrector"])
def test_a_compiled_loop_of_a_bounded_table_has_two_graphs(solver):
    torch.compiler.reset()
    counter = CompileCounter()
    ours, plain = (swap(TABLE, solver=solver, clip_sample=True) for _ in range(2))
    compiled = torch.compile(ours.step, fullgraph=True, backend=counter)
    for scale in (1.0, 0.5):
        x = y = scale * X
        for scheduler in (ours, plain):
            scheduler.set_timesteps(6)
        for t in ours.timesteps:
            x = compiled(network(x, t), t, x, return_dict=False)[0]
            y = plain.step(network(y, t), t, y, return_dict=False)[0]
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 2


def test_the_place_can_be_written():
    def run(write, timesteps):
        ours = swap(FLOW)
        ours.set_timesteps(6)
        write(ours)
        x = X
        for t in ours.timesteps[timesteps]:
            x = ours.step(network(x, t), t, x).prev_sample
        return x, ours

    expected, _ = run(lambda ours: ours.set_begin_index(2), slice(2, None))
    for name in ("step_index", "_step_index", "begin_index"):
        found, ours = run(lambda ours, name=name: setattr(ours, name, 2), slice(2, None))
        assert torch.equal(found, expected)
        assert ours.step_index == 6
    # None begins anew, at the timestep that comes
    ours.step_index = ours.begin_index = None
    assert ours.step_index is None
    ours.step(X, ours.timesteps[3], X)
    assert ours.step_index == 4
