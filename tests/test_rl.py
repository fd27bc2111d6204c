"""The steps of reinforcement learning: the published ones, log-probabilities, replay."""

import math
from itertools import cycle

import pytest
import torch
from torch.distributions import Normal

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.paths import PATHS
from fm_diffusers.predictions import PREDICTIONS
from fm_diffusers.rl import (
    ALIASES,
    DYNAMICS,
    flow_factory_step,
    guarded_ratio,
    importance_ratio,
    sde_step_with_logprob,
    transition,
    verl_omni_step,
)

SIGMAS = [1.0, 0.93, 0.8, 0.66, 0.5, 0.31, 0.2, 0.08]
LEVELS = {"flow_grpo": 0.7, "dance": 0.3, "cps": 0.7, "precise": 1.5, "dance_precise": 0.3}
LEVELS |= {"nft": 0.7, "ode": 0.0}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def planned(**config):
    scheduler = GaussianFlowScheduler(**{"prediction_type": "flow_prediction"} | config)
    scheduler.set_timesteps(sigmas=SIGMAS)
    return scheduler


def drawn(count=4, seed=0, dtype=torch.float64):
    """Return samples and what a network says about them."""
    return torch.randn(2, count, 3, 2, generator=seeded(seed), dtype=torch.float64).to(dtype)


# --- the published formulas, in diffusers' frame: v is noise less data ---------------------------


def driven(rate):
    """Return Euler-Maruyama's mean and standard deviation for a rate of the noise."""

    def formula(x, v, a, b, eta):
        g = rate(a, b, eta)
        drift = v + g**2 * (x + (1 - a) * v) / (2 * a)
        return x - (a - b) * drift, g * math.sqrt(a - b)

    return formula


def renoised(std):
    """Return the mean and the standard deviation of a step that keeps the noise level."""

    def formula(x, v, a, b, eta):
        s = std(a, b, eta)
        data, noise = x - a * v, x + (1 - a) * v
        return (1 - b) * data + math.sqrt(b**2 - s**2) * noise, s

    return formula


def snr_ratio(a, b):
    return b * (1 - a) / (a * (1 - b))


def dance_share(a, b, eta):
    return 1 - math.exp(-(eta**2) * (1 / b - 1 / a)) if b else 0.0


PUBLISHED = {
    "flow_grpo": driven(lambda a, b, eta: eta * math.sqrt(a / (1 - (b if a == 1 else a)))),
    "dance": driven(lambda a, b, eta: eta),
    "cps": renoised(lambda a, b, eta: b * math.sin(eta * math.pi / 2)),
    "precise": renoised(lambda a, b, eta: b * math.sqrt(1 - snr_ratio(a, b) ** (eta**2))),
    "dance_precise": renoised(lambda a, b, eta: b * math.sqrt(dance_share(a, b, eta))),
    "nft": renoised(lambda a, b, eta: eta * b * math.sqrt(1 - snr_ratio(a, b) ** 2)),
    "ode": driven(lambda a, b, eta: 0.0),
}


def sigmas_of(scheduler):
    """Return the noise levels of the steps, the times that float32 timesteps stand for."""
    return [t / 1000 for t in scheduler.timesteps.double().tolist()] + [0.0]


def test_every_row_has_its_formula_here():
    assert set(PUBLISHED) == set(DYNAMICS) == set(LEVELS)
    assert set(ALIASES.values()) <= set(DYNAMICS)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_means_and_deviations_are_the_published_ones_on_every_step(name, factor):
    scheduler, level, (x, v) = planned(), LEVELS[name] * factor, drawn()
    sigmas = sigmas_of(scheduler)
    for i, t in enumerate(scheduler.timesteps):
        mean, std = PUBLISHED[name](x, v, sigmas[i], sigmas[i + 1], level)
        step = transition(scheduler, v, t, x, name, level)
        torch.testing.assert_close(step.mean, mean, rtol=1e-9, atol=1e-12)
        assert math.isclose(step.std.item(), std, rel_tol=1e-9, abs_tol=1e-12)
        torch.testing.assert_close(step.pred_original_sample, x - sigmas[i] * v)
        assert (std == 0) == (level == 0 or (i == 7 and DYNAMICS[name].solver == "ddim"))


@pytest.mark.parametrize("name", [name for name in DYNAMICS if name != "ode"])
def test_the_step_is_that_of_a_scheduler_which_is_configured_so(name):
    row, (x, q) = DYNAMICS[name], drawn()
    for path, prediction in zip(PATHS, cycle(PREDICTIONS), strict=False):
        model = {"path": path, "prediction_type": prediction}
        kwargs = {"scale": LEVELS[name]}
        own = GaussianFlowScheduler(
            **model, solver=row.solver, diffusion=row.diffusion, diffusion_kwargs=kwargs
        )
        plain = GaussianFlowScheduler(**model, solver="heun")
        start = own.to_timestep(torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=torch.float64))
        own.set_timesteps(timesteps=start)
        plain.set_timesteps(timesteps=start)
        before = vars(plain).copy()
        for t in own.timesteps:
            expected = own.transition(q, t, x)
            found = transition(plain, q, t, x, name, LEVELS[name])
            torch.testing.assert_close(found.mean, expected.mean, rtol=1e-12, atol=1e-12)
            assert math.isclose(found.std.item(), expected.std, rel_tol=1e-12)
        assert vars(plain) == before  # nothing is changed


# --- the trainers' signatures --------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_batch_of_eight_timesteps_equals_eight_calls_bit_for_bit(name):
    scheduler, (x, v), level = planned(), drawn(8, dtype=torch.float32), LEVELS[name]
    following = torch.randn(x.shape, generator=seeded(1))
    keep = slice(0, 8) if name in ("flow_grpo", "dance", "cps", "ode") else slice(0, 7)
    times, x, v, following = scheduler.timesteps[keep].flip(0), x[keep], v[keep], following[keep]
    together = sde_step_with_logprob(scheduler, v, times, x, level, following, sde_type=name)
    for i, t in enumerate(times):
        one = slice(i, i + 1)
        alone = sde_step_with_logprob(
            scheduler, v[one], t, x[one], level, following[one], sde_type=name
        )
        for both, single in zip(together, alone, strict=True):
            assert (both is None) == (single is None) == (both is None and name == "ode")
            assert both is None or torch.equal(both[one], single)


@pytest.mark.parametrize("name", PUBLISHED)
def test_two_seeds_differ_and_those_of_the_ode_do_not(name):
    scheduler, (x, v) = planned(), drawn()
    steps = [
        sde_step_with_logprob(
            scheduler, v, scheduler.timesteps[2], x, 0.5, generator=seeded(i), sde_type=name
        )[0]
        for i in range(2)
    ]
    assert torch.equal(*steps) == (name == "ode")


@pytest.mark.parametrize("name", PUBLISHED)
def test_log_probabilities_are_read_as_the_trainers_read_them(name):
    scheduler, (x, v), level = planned(), drawn(), LEVELS[name]
    t, sigmas = scheduler.timesteps[3], sigmas_of(scheduler)
    mean, std = PUBLISHED[name](x, v, sigmas[3], sigmas[4], level)
    following = x + 0.1

    def read(**options):
        return sde_step_with_logprob(
            scheduler, v, t, x, level, following, sde_type=name, **options
        )

    squared = -(following - mean).square().flatten(1).mean(1)
    torch.testing.assert_close(read(log_prob_type="squared")[1], squared, rtol=1e-9, atol=0)
    if name == "ode":
        assert read()[1] is None and read(log_prob_type="sum")[1] is None
        return
    density = Normal(mean, std).log_prob(following).flatten(1)
    own = squared if name == "cps" else density.mean(1)
    torch.testing.assert_close(read()[1], own, rtol=1e-9, atol=0)
    torch.testing.assert_close(read(log_prob_type="mean")[1], density.mean(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(read(log_prob_type="sum")[1], density.sum(1), rtol=1e-9, atol=0)
    *_, mean_again, std_dev_t, sqrt_dt = read(return_sqrt_dt=True)
    torch.testing.assert_close(mean_again, mean, rtol=1e-9, atol=1e-12)
    assert math.isclose(sqrt_dt.item(), math.sqrt(sigmas[3] - sigmas[4]), rel_tol=1e-9)
    rate = name in ("flow_grpo", "dance")  # where flow_grpo has the rate, not the deviation
    assert math.isclose(std_dev_t.item(), std / (sqrt_dt.item() if rate else 1), rel_tol=1e-9)


@pytest.mark.parametrize("alias", ALIASES)
def test_the_three_signatures_say_the_same_by_any_name(alias):
    scheduler, (x, v) = planned(), drawn()
    t, name = scheduler.timesteps[2], ALIASES[alias]
    for kind in (alias, name):
        grpo = sde_step_with_logprob(scheduler, v, t, x, 0.6, None, seeded(), kind)
        verl = verl_omni_step(scheduler, v, t, x, seeded(), noise_level=0.6, sde_type=kind)
        factory = flow_factory_step(
            scheduler, v, t, x, generator=seeded(), noise_level=0.6, dynamics_type=kind
        )
        fields = ("next_latents", "log_prob", "next_latents_mean", "std_dev_t")
        flow = tuple(getattr(factory, field) for field in fields)
        read = (verl.prev_sample, verl.log_prob, verl.prev_sample_mean, verl.std_dev_t)
        for found in (read, flow):
            for one, other in zip(grpo, found, strict=True):
                assert one is other is None or torch.equal(one, other)
    assert torch.equal(factory.noise_pred, v)
    assert math.isclose(factory.dt.item(), 0.66 - 0.8, rel_tol=1e-6)


def test_outputs_are_tuples_or_the_fields_that_are_wanted():
    scheduler, (x, v) = planned(), drawn()
    t = scheduler.timesteps[2]
    given = {"scheduler": scheduler, "timestep": t, "generator": seeded()}
    wanted = ["next_latents", "dt"]
    out = flow_factory_step(noise_pred=v, latents=x, return_kwargs=wanted, **given)
    assert [*out] == ["next_latents", "dt"]
    tupled = flow_factory_step(
        noise_pred=v, latents=x, compute_log_prob=False, return_dict=False, **given
    )
    assert len(tupled) == 6 and tupled[3] is None and tupled[2] is v
    with pytest.raises(ValueError, match=r"return_kwargs must be among .*, got \['velocity'\]"):
        flow_factory_step(noise_pred=v, latents=x, return_kwargs=["velocity"], **given)
    tupled = verl_omni_step(
        model_output=v, sample=x, return_dict=False, return_logprobs=False, **given
    )
    assert len(tupled) == 4 and tupled[1] is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_everything_may_come_from_the_arguments(name):
    """With the next timestep given there is no plan, and several steps in one batch."""
    scheduler, (x, v) = planned(), drawn(7)
    bare = GaussianFlowScheduler.from_config(scheduler.config)
    now, then = scheduler.timesteps[:-1], scheduler.timesteps[1:]
    found = flow_factory_step(
        bare, v, now, x, x, then, noise_level=0.5, dynamics_type=name, return_dict=False
    )
    expected = flow_factory_step(
        scheduler, v, now, x, x, noise_level=0.5, dynamics_type=name, return_dict=False
    )
    for one, other in zip(found, expected, strict=True):
        assert one is other is None or torch.equal(one, other)
    end = flow_factory_step(bare, v, 80.0, x, timestep_next=0, dynamics_type=name)
    torch.testing.assert_close(
        end.next_latents_mean[0],
        transition(scheduler, v, scheduler.timesteps[-1], x, name).mean[0],
        rtol=1e-5,
        atol=1e-6,
    )


# --- windows, noise levels, timesteps ------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in DYNAMICS if name != "ode"])
def test_a_window_of_the_scheduler_holds(name):
    scheduler, (x, v) = GaussianFlowScheduler(diffusion="beta"), drawn()
    scheduler.set_timesteps(sigmas=SIGMAS, noisy_steps=[1, 2])
    for i, t in enumerate(scheduler.timesteps):
        _, log_prob, mean, std = sde_step_with_logprob(
            scheduler, v, t, x, 0.5, sde_type=name, log_prob_type="mean"
        )
        assert (log_prob is not None) == (std.item() > 0) == (i in (1, 2))
        if i not in (1, 2):  # Euler's step in one of the two clocks
            ode = "ode" if DYNAMICS[name].solver == "euler_maruyama" else name
            expected = transition(planned(prediction_type="velocity"), v, t, x, ode, 0.0)
            torch.testing.assert_close(mean, expected.mean, rtol=1e-12, atol=1e-12)


def test_a_batch_with_and_without_noise_has_not_all_log_probabilities():
    scheduler, (x, v) = GaussianFlowScheduler(diffusion="beta"), drawn(2)
    scheduler.set_timesteps(sigmas=SIGMAS, noisy_steps=[1, 2])
    with pytest.raises(ValueError, match="log_prob needs noise"):
        sde_step_with_logprob(scheduler, v, scheduler.timesteps[[0, 1]], x)


@pytest.mark.parametrize("wrong", [3, 3.0, 640.0, torch.tensor(2), torch.tensor([930.0, 7.0])])
def test_a_timestep_that_is_none_of_the_schedulers_is_refused(wrong):
    scheduler, (x, v) = planned(), drawn(2)
    with pytest.raises(ValueError, match=r"timestep must be one of .* at which a step starts"):
        sde_step_with_logprob(scheduler, v, wrong, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_timesteps_may_have_gone_through_another_dtype(dtype):
    scheduler, (x, v) = planned(), drawn(8)
    found = transition(scheduler, v, scheduler.timesteps.to(dtype), x)
    assert torch.equal(found.mean, transition(scheduler, v, scheduler.timesteps, x).mean)


def test_what_cannot_be_stepped_is_refused():
    scheduler, (x, v) = planned(), drawn()
    t = scheduler.timesteps[0]
    with pytest.raises(ValueError, match="unknown sde_type 'flow'"):
        sde_step_with_logprob(scheduler, v, t, x, sde_type="flow")
    with pytest.raises(ValueError, match="unknown log_prob_type 'max'"):
        sde_step_with_logprob(scheduler, v, t, x, log_prob_type="max")
    with pytest.raises(ValueError, match="one for each of the 4 samples, got 2"):
        sde_step_with_logprob(scheduler, v, scheduler.timesteps[:2], x)
    with pytest.raises(ValueError, match="the scale of .*'cps'.* must be at most 1"):
        sde_step_with_logprob(scheduler, v, t, x, 1.5, sde_type="cps")
    with pytest.raises(ValueError, match="must lead from noise towards the data"):
        flow_factory_step(scheduler, v, t, x, timestep_next=t)
    with pytest.raises(ValueError, match="call set_timesteps"):
        transition(GaussianFlowScheduler(), v, t, x)
    from diffusers import FlowMatchEulerDiscreteScheduler

    with pytest.raises(ValueError, match=r"make one by GaussianFlowScheduler.from_config"):
        transition(FlowMatchEulerDiscreteScheduler(), v, t, x)


# --- replay --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", [name for name in DYNAMICS if name != "ode"])
def test_a_stored_trajectory_replays_to_a_ratio_of_one(name, dtype, tmp_path):
    scheduler, x = planned(), drawn(5, dtype=dtype)[0]

    def network(x, t):
        return torch.tanh(x.float() * t.reshape(-1, 1, 1) / 500).to(dtype)

    stored, generator = [], seeded()
    for t in scheduler.timesteps[:-1]:
        following, log_prob, mean, _ = sde_step_with_logprob(
            scheduler, network(x, t), t, x, 0.5, None, generator, name
        )
        assert following.dtype == dtype
        stored.append({"t": t, "x": x, "next": following, "log_prob": log_prob, "mean": mean})
        x = following
    torch.save(stored, tmp_path / "trajectory.pt")
    stored = torch.load(tmp_path / "trajectory.pt")
    for one in stored:
        again = sde_step_with_logprob(
            scheduler,
            network(one["x"], one["t"]),
            one["t"],
            one["x"],
            0.5,
            one["next"],
            None,
            name,
        )
        assert torch.equal(importance_ratio(again[1], one["log_prob"]), torch.ones(5))
        std = transition(scheduler, x, t, x, name, 0.5).std
        guarded = guarded_ratio(again[1], one["log_prob"], again[2], one["mean"], std)
        assert torch.equal(guarded, torch.ones(5))
    # samples of all steps together, in another order: the ratio is 1 all the same
    order = torch.randperm(len(stored), generator=seeded())
    x, following = (torch.stack([stored[i][key][0] for i in order]) for key in ("x", "next"))
    old = torch.stack([stored[i]["log_prob"][0] for i in order])
    t = torch.stack([stored[i]["t"] for i in order])
    again = sde_step_with_logprob(scheduler, network(x, t), t, x, 0.5, following, None, name)
    assert torch.equal(again[1], old)


def test_a_sample_of_a_bfloat16_network_is_what_is_handed_out():
    """verl-omni's step hands out the dtype of the network."""
    scheduler, (x, v) = planned(), drawn(dtype=torch.float32)
    t, v = scheduler.timesteps[2], v.bfloat16()
    first = verl_omni_step(scheduler, v, t, x, seeded())
    again = verl_omni_step(scheduler, v, t, x, prev_sample=first.prev_sample)
    assert first.prev_sample.dtype == torch.bfloat16
    assert torch.equal(first.log_prob, again.log_prob)
