"""Noise from one Brownian path for each sample: the same image from every grid and batch."""

import copy
import math
import pickle
import warnings
from itertools import product

import pytest
import torch
from diffusers import UNet2DModel
from loops import loop, model_of, start
from oracles import NO_SDES, takes

from fm_diffusers import (
    DIFFUSIONS,
    PATHS,
    SOLVERS,
    FlowMatchingPipeline,
    GaussianFlowScheduler,
)
from fm_diffusers.diffusions import get_diffusion, windowed
from fm_diffusers.fields import GaussianMixture, from_model
from fm_diffusers.scheduling import noise
from fm_diffusers.scheduling.brownian import BrownianClock, BrownianPaths
from fm_diffusers.solvers import integrate

pytest.importorskip("torchsde", reason="Brownian paths need torchsde: pip install .[sde]")

T = torch.tensor([0.02, 0.3, 0.31, 0.7, 0.999], dtype=torch.float64)
#: Coefficients whose noise is infinite and finite at pure noise, and vanishes at the data.
VANISHING = ["memoryless", "beta", "linear"]
LINES = ["linear", "cosine", "variance_preserving"]
DRIVEN = ["predictor_corrector", "euler_maruyama"]


def few(always, everything):
    """Return all of it as parameters, marked slow where it is not among the first."""
    slow = pytest.mark.slow
    return [pytest.param(*p, marks=() if p in always else slow) for p in everything]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def brownian(steps=6, **config):
    config = {"diffusion": "memoryless", "noise": "brownian"} | config
    scheduler = GaussianFlowScheduler(**config)
    scheduler.set_timesteps(steps)
    return scheduler


def spans_of(path, diffusion, times):
    clock = BrownianClock(PATHS[path](), get_diffusion(diffusion))
    return clock.spans(list(zip(times[:-1], times[1:], strict=True)))


# --- the clock -----------------------------------------------------------------------------------

#: The clock in closed form, up to a factor: V = 1 on the cosine path.
CLOCKS = {
    ("linear", "memoryless", 1.0): lambda t: t**2 / (t**2 + (1 - t) ** 2),
    ("cosine", "memoryless", 0.3): lambda t: torch.sin(math.pi / 2 * t) ** (2 * 0.3),
    ("cosine", "flow_grpo", 0.7): lambda t: torch.sin(math.pi / 2 * t) ** (2 * 0.245),
    ("cosine", "precise", 0.7): lambda t: torch.sin(math.pi / 2 * t) ** (2 * 0.245),
    ("cosine", "constant", 1.5): lambda t: torch.expm1(1.5**2 * t),
    ("cosine", "beta_squared", 2.0): lambda t: torch.expm1(
        2 * 2.0 * (t / 2 + torch.sin(math.pi * t) / (2 * math.pi))
    ),
    ("linear", "dance_precise", 0.3): lambda t: torch.expm1(0.3**2 * torch.atan2(t, 1 - t)),
}


@pytest.mark.parametrize(("path", "diffusion", "scale"), CLOCKS)
def test_the_clock_is_that_of_the_closed_form(path, diffusion, scale):
    clock = BrownianClock(PATHS[path](), get_diffusion(diffusion, scale))
    ratio = torch.exp2(clock(T)) / CLOCKS[path, diffusion, scale](T)
    torch.testing.assert_close(ratio, ratio[:1].expand(len(T)), rtol=1e-4, atol=0)
    only = windowed(clock.diffusion, [(0.3, 0.5)])
    assert torch.equal(BrownianClock(clock.path, only)(T), clock(T))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_every_clock_rises_and_is_finite_at_the_data(diffusion, path):
    clock = BrownianClock(PATHS[path](), get_diffusion(diffusion))
    with warnings.catch_warnings():
        warnings.simplefilter("error" if diffusion not in NO_SDES else "ignore")
        reading = clock(torch.linspace(0, 1, 997, dtype=torch.float64))
    assert (reading.diff() > 0).all() and reading[-1].isfinite()


@pytest.mark.parametrize("diffusion", NO_SDES)
def test_what_no_steps_refine_says_so(diffusion):
    with pytest.warns(UserWarning, match=f"{diffusion}.*the step of no SDE.*take 'precise'"):
        brownian(diffusion=diffusion, solver="ddim")


# --- the increments ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["linear", "discrete"])
@pytest.mark.parametrize("diffusion", ["memoryless", "constant", "flow_grpo", "zero_ends"])
def test_the_increments_of_two_steps_are_that_of_the_whole(diffusion, path):
    paths, like = BrownianPaths((3, 2**61)), torch.zeros(2, 50, dtype=torch.float64)
    times = [0.0, 0.1, 0.1001, 0.63, 1.0]
    parts, (whole,) = spans_of(path, diffusion, times), spans_of(path, diffusion, times[::4])
    unit = 2.0**whole.stop
    sizes = [(2.0**span.stop - 2.0**span.start) / unit for span in (*parts, whole)]
    # asked in another order than that of the times
    found = {span: paths.increments(span, like) for span in (whole, *parts[::-1])}
    total = sum(math.sqrt(size) * found[s] for s, size in zip(parts, sizes, strict=False))
    torch.testing.assert_close(total, math.sqrt(sizes[-1]) * found[whole], rtol=0, atol=1e-3)
    assert not torch.equal(*found[whole])


@pytest.mark.parametrize("diffusion", ["memoryless", "constant", "er_sde"])
def test_increments_are_standard_normal_and_independent(diffusion):
    count = 20_000
    spans = spans_of("linear", diffusion, [0.0, 1e-7, 0.2, 0.5, 0.6, 0.9999999, 1 - 1e-12, 1.0])
    paths, like = BrownianPaths((0, 1)), torch.zeros(2, count // 2)
    draws = torch.stack([paths.increments(span, like).flatten() for span in spans])
    assert (draws.mean(1).abs() < 4.5 / count**0.5).all()
    error = (draws @ draws.T / count - torch.eye(len(draws))).abs()
    assert (error < 4.5 * (2 / count) ** 0.5).all()
    assert ((draws**4).mean(1) - 3).abs().max() < 4.5 * (96 / count) ** 0.5


def test_another_scale_has_another_path():
    """Steps of two noise levels, one after the other, would else read the same piece."""
    scheduler, x = brownian(diffusion="flow_grpo"), torch.zeros(1, 10_000, dtype=torch.float64)
    t, place = scheduler.timesteps[2], scheduler.first_place(1, seeded(), index=2)

    def drawn(level):
        transition = scheduler.transition(x, t, x, place, noise_level=level)
        return (transition.sample() - transition.mean) / transition.std

    own, same, other = (drawn(level) for level in (None, 0.7, 0.3))
    assert torch.equal(own, same)
    assert abs((own * other).mean()) < 4.5 / 100


# --- a loop --------------------------------------------------------------------------------------


def exact(scheduler, x):
    r"""Return where the SDE of data N(0, 1) goes from noise, by one increment of its paths.

    With the variance V of samples, x/sqrt(V) keeps exp(-L), L the integral of sigma^2/(2 V).
    """
    path, diffusion = scheduler.path, scheduler.diffusion
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    c = path(t)
    kept = torch.exp(-(diffusion.squared(path, t) / (2 * (c.alpha**2 + c.beta**2))).mean())
    kept = kept if scheduler.config.diffusion != "memoryless" else 0 * kept  # L is infinite
    (whole,) = BrownianClock(path, diffusion).spans([(0.0, 1.0)])
    n = noise.brownian_paths(len(x), seeded()).increments(whole, x)
    size = torch.hypot(*path(torch.tensor([0.0, 1.0], dtype=torch.float64))[:2])
    return size[1] * (kept * x / size[0] + (1 - kept**2).sqrt() * n)


def strong_errors(counts, **config):
    """Return the RMS distance from the exact solution after loops of so many steps."""
    data = GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), 1.0)
    errors = []
    for count in counts:
        scheduler = brownian(count, **config)
        model = model_of(scheduler, data)
        x = torch.randn(1, 400, generator=seeded(7), dtype=torch.float64)
        x = scheduler.init_noise_sigma * x  # one sample, of as many problems as elements
        end = loop(scheduler, x, generator=seeded(), model=lambda x, t, m=model: m(x.T, t).T)
        errors.append((end - exact(scheduler, x)).square().mean().sqrt().item())
    return errors


@pytest.mark.parametrize("solver", DRIVEN)
@pytest.mark.parametrize(
    ("diffusion", "path"),
    few(list(zip(VANISHING, LINES, strict=True)), list(product(VANISHING, LINES))),
)
def test_more_steps_converge_to_the_exact_solution_on_the_path(solver, diffusion, path):
    """Strong order 1: four times the steps leave at most .4 of the error, and it is small."""
    coarse, fine = strong_errors((8, 32), solver=solver, diffusion=diffusion, path=path)
    assert fine < 0.4 * coarse and fine < 0.15


@pytest.mark.parametrize("solver", DRIVEN)
def test_independent_noise_does_not_converge_on_a_path(solver):
    coarse, fine = strong_errors((8, 32), solver=solver, noise="independent")
    assert fine > 0.9 * coarse > 0.5


def end_of(count, solver="predictor_corrector"):
    scheduler = brownian(count, solver=solver, diffusion="beta")
    return loop(scheduler, start(scheduler, batch=2), generator=seeded())


@pytest.fixture(scope="module")
def converged():
    return end_of(96)


@pytest.mark.parametrize(
    "solver", few([(s,) for s in (*DRIVEN, "ddim", "heun")], [(s,) for s in SOLVERS])
)
def test_more_steps_refine_the_same_image_of_a_mixture(solver, converged):
    """A field that is not linear; every solver comes to the image of the others."""
    coarse, fine = ((end_of(n, solver) - converged).square().mean().sqrt() for n in (6, 24))
    assert fine < 0.6 * coarse and fine < 0.15


def test_an_image_depends_on_no_other_of_its_batch_nor_on_their_order():
    scheduler = brownian()
    x, model = start(scheduler, batch=5), model_of(scheduler)
    whole = loop(scheduler, x, generator=[seeded(i) for i in range(5)])
    for some in ([3], [4, 0, 2]):
        scheduler.set_timesteps(6)
        part = loop(scheduler, x[some], generator=[seeded(i) for i in some], model=model)
        torch.testing.assert_close(part, whole[some], rtol=1e-10, atol=1e-10)
    scheduler.set_timesteps(6)
    shifted = loop(scheduler, x, generator=[seeded(i + 1) for i in range(5)])
    assert ((shifted - whole).abs().amax(1) > 0.01).all()


#: A solver of one evaluation and one of two, of both kinds, with all coefficients that they take.
COMBINATIONS = [
    (solver, name)
    for solver in ("ddim", "heun", "euler_maruyama", "stochastic_heun")
    for name in DIFFUSIONS
    if takes(solver, name)
]


@pytest.mark.parametrize(("solver", "diffusion"), COMBINATIONS)
@pytest.mark.filterwarnings("ignore:the diffusion")
def test_a_generator_is_asked_once_a_loop(solver, diffusion):
    scheduler, (generator, expected) = brownian(2, solver=solver, diffusion=diffusion), pair()
    x = loop(scheduler, start(scheduler, batch=1), generator=generator)
    noise.brownian_paths(1, expected)
    assert torch.equal(generator.get_state(), expected.get_state())
    assert x.isfinite().all()


def test_every_loop_has_paths_of_its_own():
    scheduler, generator = brownian(3), seeded()
    first, second = (loop(scheduler, start(scheduler), generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    scheduler.set_timesteps(3)
    assert torch.equal(loop(scheduler, start(scheduler), generator=seeded()), first)


def pair():
    return seeded(), seeded()


def test_noise_is_the_same_in_every_precision_and_window():
    whole, some = brownian(diffusion="constant"), brownian(diffusion="constant")
    some.set_timesteps(6, noisy_steps=[2])
    t = whole.timesteps[2]
    drawn = []
    for scheduler, dtype in (
        (whole, torch.float64),
        (whole, torch.float32),
        (some, torch.float64),
    ):
        x = torch.zeros(2, 9, dtype=dtype)
        place = scheduler.first_place(2, seeded(), index=2)
        transition = scheduler.transition(x, t, x, place)
        drawn.append(transition.sample().double() / transition.std)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-6, atol=1e-6)
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_in_the_middle_of_a_loop_goes_on_with_the_same_bits(copied):
    scheduler = brownian()
    x, (first, second) = start(scheduler), (scheduler.timesteps[:3], scheduler.timesteps[3:])
    x = loop(scheduler, x, first, seeded())
    twin = copied(scheduler)
    ends = [loop(s, x, s.timesteps[3:], seeded(seed)) for seed, s in enumerate((scheduler, twin))]
    assert torch.equal(*ends) and len(second) == 3


def test_a_step_taken_back_is_taken_again_with_the_same_noise():
    scheduler = brownian()
    x, model = start(scheduler), model_of(scheduler)
    x = loop(scheduler, x, scheduler.timesteps[:2], seeded())
    t = scheduler.timesteps[2]
    once = scheduler.step(model(x, t), t, x).prev_sample
    scheduler.step_index -= 1
    assert torch.equal(scheduler.step(model(x, t), t, x).prev_sample, once)


def test_steps_without_noise_keep_the_paths():
    scheduler = brownian(diffusion="flow_grpo", solver="ddim")
    x, model = start(scheduler), model_of(scheduler)
    x, paths = loop(scheduler, x, scheduler.timesteps[:2], seeded()), scheduler._place.paths
    for level, t in zip((0.0, None), scheduler.timesteps[2:4], strict=True):
        x = scheduler.step(model(x, t), t, x, seeded(9), noise_level=level).prev_sample
        assert paths is not None and scheduler._place.paths == paths


@pytest.mark.parametrize("solver", ["predictor_corrector", "heun", "stochastic_heun"])
def test_the_solvers_own_driver_reads_the_same_path(solver):
    scheduler = brownian(solver=solver)
    x, times = start(scheduler), scheduler._plan.times
    paths, clock = noise.brownian_paths(len(x), seeded()), scheduler._plan.brownian

    def drawn(t, s):
        return paths.increments(*clock.spans([(t, s)]), x)

    expected = integrate(scheduler.solver, from_model(model_of(scheduler)), x, times, drawn)
    torch.testing.assert_close(loop(scheduler, x, generator=seeded()), expected)


def test_a_loop_may_begin_anywhere():
    """At an index, and at a time between: its noise is that of a grid that starts there."""
    scheduler, x = brownian(diffusion="constant", solver="ddim"), torch.ones(1, 8)
    t = scheduler.timesteps[2].item() - 10.0
    from_between = scheduler.step(x, t, x, seeded()).prev_sample
    rest = scheduler.timesteps[3:].tolist()
    other = GaussianFlowScheduler.from_config(scheduler.config)
    other.set_timesteps(timesteps=[t, *rest])
    from_start = other.step(x, other.timesteps[0], x, seeded()).prev_sample
    torch.testing.assert_close(from_between, from_start)
    both = []
    for s in (scheduler, other):  # and both go on on their path
        s.step_index = s.step_index
        both.append(s.step(x, rest[0], x).prev_sample)
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("solver", ["predictor_corrector", "heun", "stochastic_heun"])
@pytest.mark.parametrize("kind", ["independent", "brownian"])
def test_a_loop_of_transitions_is_that_of_steps(kind, solver):
    scheduler, generator = brownian(noise=kind, solver=solver), seeded()
    x, model = start(scheduler), model_of(scheduler)
    expected = loop(scheduler, x, generator=seeded())
    place = scheduler.first_place(len(x), generator)
    for t in scheduler.timesteps:
        transition = scheduler.transition(model(x, t), t, x, place)
        x, place = transition.sample(generator), transition.place
    assert torch.equal(x, expected)


def test_a_pipeline_draws_an_image_whatever_its_batch():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    pipe = FlowMatchingPipeline(unet.eval(), GaussianFlowScheduler(noise="brownian"))
    pipe.scheduler = GaussianFlowScheduler.from_config(pipe.scheduler.config, diffusion="beta")
    pipe.set_progress_bar_config(disable=True)

    def draw(seeds, n=4):
        generators = [seeded(seed) for seed in seeds]
        kwargs = {"generator": generators, "num_inference_steps": n, "output_type": "latent"}
        return pipe(batch_size=len(seeds), **kwargs, return_dict=False)[0]

    whole, some = draw([0, 1, 2]), draw([2, 0])
    torch.testing.assert_close(whole[[2, 0]], some, rtol=1e-4, atol=1e-4)
    # more steps lead to the same images, of which each is nearest to its own
    distance = torch.cdist(whole.flatten(1), draw([0, 1, 2], 16).flatten(1))
    assert distance.argmin(1).tolist() == [0, 1, 2]
    assert distance.diagonal().max() < 0.5 * (distance + 99 * torch.eye(3)).min()


# --- what cannot be ------------------------------------------------------------------------------


def test_a_step_of_no_loop_has_a_density_and_no_sample():
    scheduler = brownian()
    x, t = start(scheduler), scheduler.timesteps[2]
    each = t.repeat(len(x)) - torch.arange(len(x))
    for time in (t, each):
        transition = scheduler.transition(x, time, x)
        assert transition.log_prob(x).isfinite().all()
        with pytest.raises(ValueError, match=r"belongs to none: .*scheduler.first_place\("):
            transition.sample(seeded())
    with pytest.raises(ValueError, match="belongs to none"):
        scheduler.step(x, each, x)


def test_wrong_batches_and_generators_are_refused():
    scheduler = brownian()
    x, (first, second) = start(scheduler, batch=4), scheduler.timesteps[:2]
    with pytest.raises(ValueError, match="one for each of the 4 samples, got 3"):
        scheduler.step(x, first, x, [seeded()] * 3)
    scheduler.step(x, first, x, seeded())
    with pytest.raises(ValueError, match="began with 4 samples, .* now has 3"):
        scheduler.step(x[:3], second, x[:3])
    with pytest.raises(ValueError, match="unknown noise 'pink': choose one of independent, brow"):
        GaussianFlowScheduler(noise="pink")


def test_without_torchsde_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(noise, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install fm_diffusers\[sde\]"):
        brownian()
    brownian(diffusion=None)  # the word rests
    brownian(noise="independent")


def test_one_generator_and_a_list_of_one_are_the_same():
    scheduler = brownian()
    one, many = (scheduler.first_place(3, g).paths for g in (seeded(), [seeded()]))
    assert one == many and len(set(one.seeds)) == 3
    scheduler.set_generator(seeded())
    assert scheduler.first_place(3).paths == one
    torch.manual_seed(0)
    scheduler.set_generator(None)
    assert len(scheduler.first_place(2).paths.seeds) == 2


def test_a_compiled_step_breaks_its_graph_and_draws_the_same():
    torch.compiler.reset()
    ends = []
    for compiled in (False, True):
        scheduler = brownian(4, solver="ddim")
        step = torch.compile(scheduler.step, backend="eager") if compiled else scheduler.step
        x, generator = start(scheduler), seeded()
        model = model_of(scheduler)
        for t in scheduler.timesteps:
            x = step(model(x, t), t, x, generator, return_dict=False)[0]
        ends.append(x)
    torch.testing.assert_close(*ends)
