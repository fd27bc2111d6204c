"""Whole runs of every configuration on exact fields: they converge, in every dtype and order."""

import torch
from drawing import cases, configurations
from exact_runs import (
    Gaussian,
    distribution,
    first_sample,
    loop,
    mixture,
    network,
    planned,
    scheduler_of,
)
from hypothesis import strategies as st
from torch import float64

#: What changes the samples on purpose, and what need not keep the marginals.
BOUNDED = ("clip_sample", "thresholding")
NOT_LIMITS = ("cps", "refresh")  # their K does not shrink with the step
#: Ends that a user puts far from the data, or far from the noise, are no part of convergence.
CUT = (
    *("sigma_min", "sigma_max", "shift_terminal"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
)
P = torch.linspace(0.05, 0.95, 7, dtype=float64)


def quantiles(data, path, t):
    """Return the quantiles P of a mixture's marginal at time t, by bisection."""
    size = 4 + 4 * torch.hypot(path.alpha(t), path.beta(t))
    low, high = -size.expand(len(P)).clone(), size.expand(len(P)).clone()
    for _ in range(60):
        middle = (low + high) / 2
        below = distribution(data, path, t, middle[:, None]) < P
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return ((low + high) / 2)[:, None]


def ends(scheduler):
    """Return the first and the last time of a run."""
    first = scheduler.to_time(scheduler.timesteps[:1].double())[0].clamp(0, 1)
    last = 1.0 if scheduler.config.t_max is None else scheduler.config.t_max
    return first, torch.tensor(last, dtype=float64)


def error_of_ode(scheduler, n, mu):
    """Return the largest error of the distribution function at quantiles that the ODE carries."""
    if not planned(scheduler, num_inference_steps=n, mu=mu):
        return None
    data, path, (first, last) = mixture(), scheduler.sampling_path, ends(scheduler)
    *_, (_, _, _, out) = loop(scheduler, data, quantiles(data, path, first))
    return (distribution(data, path, last, out.prev_sample) - P).abs().max().item()


def error_of_sde(scheduler, n, mu):
    """Return the relative error of mean and deviation on Gaussian data: a run is affine in noise.

    Row 0 has no noise, row k the k-th noise alone.
    """
    if not planned(scheduler, num_inference_steps=n, mu=mu):
        return None
    data, path, (_, last) = Gaussian(), scheduler.sampling_path, ends(scheduler)
    count = len(scheduler.timesteps) + 1
    sources = torch.eye(count + 1, dtype=float64)[1:, :, None]
    x, place, used = first_sample(scheduler, data, sources[0]), None, 1
    ask = network(scheduler, data)
    for t in scheduler.timesteps:
        q, told = ask(x, t)
        step = scheduler.transition(q, t, x, place=place, **told)
        x, place = step.mean, step.place
        if step.std:
            x, used = x + step.std * sources[used], used + 1
    centre, size = data.spread(path, last)
    std = (x[1:] - x[0]).norm()
    return (abs(x[0].item() - centre) / size + abs(std / size - 1)).item()


@cases(configurations(without=(*BOUNDED, *CUT, "noise"), most=2), fast=60, slow=7_000)
def test_more_steps_converge_to_the_exact_distribution(config):
    scheduler = scheduler_of(config)
    if scheduler is None or config.get("diffusion") in NOT_LIMITS:
        return
    if config.get("grid") == "ays":  # from its last ratio to the data is one step, however many
        return
    mu = 0.5 if scheduler.config.use_dynamic_shifting else None
    single = scheduler.solver.noisy or config.get("solver") == "flow_map"
    error = error_of_sde if single else error_of_ode
    errors = [error(scheduler, 24, mu)]
    # again where equal steps crowd where little happens, or where errors of few steps cancel
    for n, falls in ((96, 0.0), (384, 0.7), (1000, 0.7)):
        if errors[-1] is None or errors[-1] < 0.02:
            return
        errors.append(error(scheduler, n, mu))
        if errors[-1] is None or errors[-1] < falls * errors[-2]:
            return
    assert errors[-1] < 0.02, errors


#: Dtypes of the sample and of the model output.
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
NOISE = torch.tensor([[-1.5], [0.25], [1.0]], dtype=float64)


@cases(
    configurations(without=(*BOUNDED, "carry_rounding"), most=1),
    st.sampled_from([1, 2, 3, 5, 8]),
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
    fast=250,
    slow=20_000,
)
def test_steps_in_every_dtype_are_those_in_float64(config, n, dtype, dtype_of_model):
    """To rounding: of float32 in every term of the sum, and of the wider dtype at the end."""
    scheduler, data = scheduler_of(config), Gaussian()
    if scheduler is None:
        return
    mu = 0.5 if scheduler.config.use_dynamic_shifting else None
    if not planned(scheduler, num_inference_steps=n, mu=mu):
        return
    brownian = scheduler.config.noise == "brownian"
    x, ask = first_sample(scheduler, data, NOISE).to(dtype), network(scheduler, data)
    place = exact_place = scheduler.first_place(len(x)) if brownian else None
    wider = torch.promote_types(dtype, dtype_of_model)
    for index, t in enumerate(scheduler.timesteps):
        q, told = ask(x, t)
        q = q.to(dtype_of_model)
        if not (x.isfinite().all() and q.isfinite().all()):
            return  # half precision holds no more than 65504
        step = scheduler.transition(q, t, x, place=place, **told)
        exact = scheduler.transition(q.double(), t, x.double(), place=exact_place, **told)
        row = scheduler._plan.row(index, index)[6:]
        terms = (x.double(), *exact.place.memory[:1], *(exact_place.memory if index else ()))
        terms = [q.double(), *terms] if len(terms) == 1 else terms
        size = sum(abs(w) * v.abs() for w, v in zip(row, terms, strict=False)) + x.double().abs()
        size = size + sum(abs(c) for c in row[1:]) * q.double().abs()
        tolerance = (2**-18 if wider != float64 else 2**-46) * size
        assert step.mean.dtype == torch.promote_types(wider, torch.float32)
        assert ((step.mean - exact.mean).abs() <= tolerance).all(), (t, step.mean, exact.mean)
        assert step.std == exact.std
        seeded = torch.Generator().manual_seed(index)
        out = scheduler.step(q, t, x, generator=seeded, **told)
        assert out.prev_sample.dtype == out.pred_original_sample.dtype == wider
        if not brownian:
            seeded.manual_seed(index)
            assert torch.equal(out.prev_sample, step.sample(seeded))
        x, place, exact_place = step.sample(seeded).to(dtype), step.place, exact.place


@cases(
    configurations(without=(*BOUNDED, "noise"), most=1),
    st.integers(0, 999),
    st.sampled_from([2, 3, 6]),
    fast=200,
    slow=10_000,
)
def test_steps_from_any_time_are_exact_for_data_at_one_point(config, permille, n):
    """The data that is predicted is the point, and what noise goes comes back as new noise.

    With z = m every sample is alpha m + beta eps, and eps after the step has variance one again.
    """
    scheduler, data = scheduler_of(config), Gaussian(0.7, 0.0)
    if scheduler is None or scheduler.config.solver == "flow_map":
        return
    mu = 0.5 if scheduler.config.use_dynamic_shifting else None
    if not planned(scheduler, num_inference_steps=n, mu=mu):
        return
    path, clock, solver = scheduler.sampling_path, scheduler.clock, scheduler.solver
    first, last = ends(scheduler)
    t = first + (last - first) * permille / 1000
    fed = clock.to_timestep(t).float()
    t = clock.to_time(fed.double())
    after = min(s for s in (*scheduler._plan.times.tolist(),) if s > t + 1e-6)
    known = torch.stack(solver.convert("sample", t)).isfinite().all()
    if not (known and solver.exists(t)) or (scheduler.timesteps - fed).abs().min() < 1e-3:
        return
    x = first_sample(scheduler, data, NOISE) * 0 + path.alpha(t) * 0.7 + path.beta(t) * NOISE
    q, _ = network(scheduler, data)(x, fed)
    end = path(torch.tensor(after, dtype=float64))
    for given in (fed, fed.expand(len(x)).clone()):
        step = scheduler.transition(q, given, x)
        std = torch.as_tensor(step.std, dtype=float64).flatten()[0]
        kept = (step.mean - end.alpha * 0.7) / NOISE
        scale = end.beta + end.alpha
        assert ((kept**2 + std**2 - end.beta**2).abs() <= 1e-5 * scale**2).all(), (kept, std, end)
        assert ((step.pred_original_sample - 0.7).abs() < 1e-4 * (1 + x.abs())).all()
