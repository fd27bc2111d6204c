"""Noise from one Brownian path for each sample: the same image from every grid and batch."""

import copy
import pickle

import pytest
import torch
from diffusers import UNet2DModel
from loops import brownian, loop, model_of, seeded, start
from oracles import takes

from fm_diffusers import DIFFUSIONS, FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.fields import from_model
from fm_diffusers.scheduling import noise
from fm_diffusers.solvers import integrate

pytest.importorskip("torchsde", reason="Brownian paths need torchsde: pip install .[sde]")


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
    scheduler, (generator, expected) = (
        brownian(2, solver=solver, diffusion=diffusion),
        (seeded(), seeded()),
    )
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

    def draw(seeds, n=8):
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
