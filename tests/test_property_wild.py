"""Values of every size and type: refused before the loop, with a way out, or a finite run."""

import torch
from drawing import ARGUMENTS, WILD, cases, configurations, wild_configurations
from exact_runs import Gaussian, first_sample, is_finite, loop, planned, refusal, scheduler_of
from hypothesis import strategies as st

NOISE = torch.tensor([[-1.5], [0.0], [1.0]], dtype=torch.float64)
FEW = st.sampled_from([1, 2, 3, 5, 8])


#: Mostly few steps, sometimes many, given by their number or by their starts.
COUNTS = st.sampled_from([*[1, 2, 3, 5, 8] * 12, 40, 120, 1000])
WAYS = st.sampled_from(["number", "number", "sigmas", "timesteps", "both"])


def starts(scheduler, n, way):
    """Return what `set_timesteps` is given for `n` steps."""
    times, clock = 0.02 + 0.9 * torch.arange(n, dtype=torch.float64) / n, scheduler.clock
    sigmas, timesteps = clock.sigma(times).tolist(), clock.to_timestep(times).tolist()
    return {
        "number": {"num_inference_steps": n},
        "sigmas": {"sigmas": sigmas},
        "timesteps": {"timesteps": timesteps},
        "both": {"sigmas": sigmas, "timesteps": timesteps},
    }[way]


def run(scheduler, n, way="number"):
    """Run a scheduler on exact Gaussian data; every sample of it is finite."""
    data, generator = Gaussian(), torch.Generator().manual_seed(0)
    mu = 0.5 if scheduler.config.use_dynamic_shifting else None
    given = starts(scheduler, n, way)
    if not planned(scheduler, mu=mu, **given):
        return
    if way == "timesteps":
        taken = scheduler.timesteps[scheduler._plan.start_indices].double()
        assert torch.allclose(taken, torch.tensor(given[way]).double(), rtol=1e-5, atol=1e-6)
    for t, x, q, out in loop(scheduler, data, first_sample(scheduler, data, NOISE), generator):
        assert is_finite(x) and is_finite(q), (t, x, q)
        assert is_finite(out.prev_sample) and is_finite(out.pred_original_sample), (t, x, q, out)


@cases(wild_configurations(), FEW, fast=1300, slow=40_000)
def test_a_wild_value_is_refused_or_runs(config, n):
    scheduler = scheduler_of(config)
    if scheduler is not None:
        run(scheduler, n)


@cases(st.sampled_from(list(ARGUMENTS)), st.sampled_from(WILD), fast=1400, slow=10_000)
def test_a_wild_value_on_its_own_is_named(argument, value):
    scheduler = scheduler_of({argument: value}, argument, repr(value), str(value))
    if scheduler is not None:
        planned(scheduler, num_inference_steps=3, mu=0.5)


@cases(configurations(), COUNTS, WAYS, fast=400, slow=40_000)
def test_a_sane_configuration_is_refused_or_runs(config, n, way):
    scheduler = scheduler_of(config)
    if scheduler is not None:
        run(scheduler, n, way)


LISTS = st.one_of(
    st.sampled_from(WILD),
    st.lists(
        st.sampled_from([1.0, 0.9, 0.5, 0.1, 0.0, 1000.0, 999, 500, 1, 0, *WILD]), max_size=4
    ),
)


@cases(
    configurations(most=1),
    st.sampled_from(["num_inference_steps", "sigmas", "timesteps", "mu", "noisy_steps"]),
    LISTS,
    fast=700,
    slow=20_000,
)
def test_wild_arguments_of_set_timesteps_are_refused_or_plan(config, name, value):
    scheduler = scheduler_of(config)
    if scheduler is None:
        return
    given = {name: value}
    if name in ("mu", "noisy_steps"):
        given["num_inference_steps"] = 4
    planned(scheduler, **given)


@cases(configurations(most=0), st.sampled_from(WILD), st.integers(0, 5), fast=250, slow=10_000)
def test_wild_arguments_of_step_are_refused_or_step(config, value, which):
    scheduler = scheduler_of(config)
    if scheduler is None or not planned(scheduler, num_inference_steps=3):
        return
    names = ["model_output", "timestep", "sample", "generator", "noise_level", "return_dict"]
    given = {"model_output": NOISE, "timestep": scheduler.timesteps[0], "sample": NOISE}
    if scheduler.is_flow_map:
        given["advance"] = scheduler.advance(scheduler.timesteps[0])
    given[names[which]] = value
    refusal(lambda: scheduler.step(**given))


#: Methods that are asked beside `step`, by their arguments.
METHODS = {
    "add_noise": ["original_samples", "noise", "timesteps"],
    "scale_noise": ["sample", "timestep", "noise"],
    "get_velocity": ["sample", "noise", "timesteps"],
    "scale_model_input": ["sample", "timestep"],
    "transition": ["model_output", "timestep", "sample", "place", "noise_level"],
    "advance": ["timestep", "noise_level"],
    "set_begin_index": ["begin_index"],
    "set_generator": ["generator"],
    "set_shift": ["shift"],
    "first_place": ["batch_size", "generator", "index"],
    "index_for_timestep": ["timestep"],
    "previous_timestep": ["timestep"],
}


@cases(
    st.sampled_from(list(METHODS)),
    st.sampled_from(WILD),
    st.integers(0, 4),
    configurations(most=0),
    st.booleans(),
    fast=400,
    slow=10_000,
)
def test_wild_arguments_of_methods_are_refused_or_answered(name, value, which, config, begun):
    scheduler = scheduler_of(config)
    if scheduler is None or (begun and not planned(scheduler, num_inference_steps=3)):
        return
    right = {"timestep": scheduler.timesteps[0], "timesteps": scheduler.timesteps[:1]}
    right |= {"place": None, "noise_level": None, "batch_size": 3, "generator": None}
    right |= {"index": None, "shift": 1.0, "begin_index": 0}
    given = {argument: right.get(argument, NOISE) for argument in METHODS[name]}
    given[METHODS[name][which % len(given)]] = value
    refusal(lambda: getattr(scheduler, name)(**given))
