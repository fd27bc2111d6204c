"""Exact networks in other projects' conventions, adapted, against exact flows and fields."""

import math

import pytest
import torch
from covers import covering
from foreign_networks import (
    CLASSES,
    COEFFICIENTS,
    MEANS,
    NULL,
    OF_ALL,
    OF_CLASS,
    REPA,
    SHAPE,
    SIGMA,
    STDS,
    Coupled,
    Denoiser,
    MeanFlow,
    Meta,
    Raw,
    SiT,
    TorchCFM,
)
from torch import nn

from fm_diffusers import DIFFUSIONS, PATHS, SOLVERS, FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.adapters import (
    META_PREDICTIONS,
    META_SCHEDULERS,
    REPA_PATHS,
    SIT_PATHS,
    SIT_PREDICTIONS,
    TORCHCFM_MATCHERS,
    AdaptedNetwork,
    from_edm,
    from_meanflow,
    from_meta,
    from_repa,
    from_sit,
    from_torchcfm,
)
from fm_diffusers.fields import guided
from fm_diffusers.predictions import convert
from fm_diffusers.solvers import integrate

SIZE = {"in_channels": 1, "sample_size": 4}
LABELLED = SIZE | {"num_classes": CLASSES, "null_label": True}


def degree(name):
    return {"n": 3} if name == "Polynomial" else None


INDEPENDENT = [name for name, row in TORCHCFM_MATCHERS.items() if not row.get("coupled")]
PAIRED = [name for name in TORCHCFM_MATCHERS if name not in INDEPENDENT]

MAKERS = {
    **{
        f"sit-{path}-{kind}": lambda o, p=path, k=kind: from_sit(SiT(p, k), p, k, **o)
        for path in SIT_PATHS
        for kind in SIT_PREDICTIONS
    },
    **{f"meta-{s}": lambda o, s=s: from_meta(Meta(s), s, degree(s), **o) for s in META_SCHEDULERS},
    **{
        f"meta-{s}-{kind}": lambda o, s=s, k=kind: from_meta(Meta(s, k), s, None, k, **o)
        for s in ("CondOT", "LinearVP")
        for kind in META_PREDICTIONS
        if kind != "velocity"
    },
    **{f"repa-{path}": lambda o, p=path: from_repa(REPA(p), p, **o) for path in REPA_PATHS},
    "meanflow": lambda o: from_meanflow(MeanFlow(), **o),
    "torchcfm": lambda o: from_torchcfm(TorchCFM(), **o),
    **{
        f"torchcfm-{name}-{sigma}": lambda o, n=name, s=sigma: from_torchcfm(
            TorchCFM(n, s), n, s, **o
        )
        for name in INDEPENDENT
        for sigma in (0.0, SIGMA)
    },
    "edm": lambda o: from_edm(Denoiser(), sigma_min=0.01, sigma_max=50, **o),
    "edm-raw": lambda o: from_edm(Raw(), True, 0.01, 50, sigma_data=0.7, **o),
}


def make(name, labelled=True, **config):
    unet, scheduler = MAKERS[name](LABELLED if labelled else SIZE)
    scheduler = GaussianFlowScheduler.from_config(scheduler.config, **config)
    pipe = FlowMatchingPipeline(unet, scheduler, NULL if labelled else None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def left(name):
    """Return the standard deviation of the noise that a project's path leaves at the data."""
    return SIGMA if str(SIGMA) in name else 0.0


def start(name, timestep):
    """Return alpha and beta at what a network is fed first, by its project's formulas."""
    if name.startswith("edm"):
        return torch.tensor(1.0).double(), (4 * timestep.double()).exp()
    kind, path = [*name.split("-"), None][:2]
    if kind in ("torchcfm", "meanflow"):
        # torchcfm's start from noise, blurred noise but for the target matcher
        blur = 0.0 if "Target" in name else left(name)
        return torch.tensor(0.0).double(), torch.tensor(math.hypot(1, blur)).double()
    if kind == "repa":
        timestep = 1 - timestep
    return COEFFICIENTS[path](timestep.double())[:2]


def draw(pipe, x, **kwargs):
    """Return the final samples, in float64."""
    generator = torch.Generator().manual_seed(7)
    steps = {"num_inference_steps": 8} | kwargs
    return pipe(latents=x, output_type="latent", generator=generator, **steps).images


def noise(seed=0, batch=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64)


# --- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_samples_follow_the_exact_flow_of_gaussian_data(name):
    pipe, labels = make(name), torch.tensor([0, 1, 1, 0])
    pipe.scheduler.set_timesteps(100)
    alpha, beta = start(name, pipe.scheduler.timesteps[0])
    eps, mean, std = noise(), MEANS[labels].reshape(4, 1, 1, 1), STDS[labels].reshape(4, 1, 1, 1)
    # the flow keeps the place within the marginal N(alpha m, alpha^2 s^2 + beta^2)
    x = alpha * mean + (alpha**2 * std**2 + beta**2).sqrt() * eps
    drawn = draw(pipe, x, class_labels=labels, num_inference_steps=100)
    end = (std**2 + left(name) ** 2).sqrt()
    torch.testing.assert_close(drawn, mean + end * eps, rtol=0, atol=2e-3)


SDES = [
    *((name, "memoryless") for name in MAKERS if not name.startswith(("sit", "edm"))),
    *((name, "beta") for name in MAKERS if left(name)),
    *(("repa-linear", "linear"), ("repa-cosine", "linear"), ("meanflow", "constant")),
]
#: One of each project and coefficient; test_samples_are_those_of_our_exact_field has all names.
FIRST = {(name.split("-")[0], diffusion): (name, diffusion) for name, diffusion in SDES[::-1]}


@pytest.mark.parametrize(
    ("name", "diffusion"),
    [pytest.param(*s, marks=() if s in FIRST.values() else pytest.mark.slow) for s in SDES],
)
def test_sdes_have_the_standard_deviation_of_the_data(name, diffusion):
    pipe = make(name, diffusion=diffusion)
    pipe.scheduler.set_timesteps(250)
    alpha, beta = start(name, pipe.scheduler.timesteps[0])
    mean, std = MEANS[1], STDS[1]
    x = alpha * mean + (alpha**2 * std**2 + beta**2).sqrt() * noise(batch=600)
    drawn = draw(pipe, x, class_labels=[1] * len(x), num_inference_steps=250)
    # 9,600 values: a standard error of 0.7 %
    assert abs(drawn.std() / math.hypot(std, left(name)) - 1) < 0.02
    assert abs(drawn.mean() - mean) < 0.02


@pytest.mark.parametrize("covariance", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("sigma", [0.0, SIGMA])
@pytest.mark.parametrize("matcher", PAIRED)
def test_coupled_noise_has_its_ode_and_refuses_an_sde(matcher, sigma, covariance, tmp_path):
    bridge = matcher.startswith("Schrodinger")
    network = Coupled(covariance, sigma, bridge)
    unet, scheduler = from_torchcfm(network, matcher, sigma, **LABELLED)
    pipe = FlowMatchingPipeline(unet, scheduler, NULL)
    pipe.set_progress_bar_config(disable=True)
    labels, eps, blur = torch.tensor([0, 1, 1, 0]), noise(), 0.0 if bridge else sigma
    assert scheduler.init_noise_sigma == pytest.approx(math.hypot(1, blur))
    mean, std = (v[labels].reshape(4, 1, 1, 1) for v in (MEANS, STDS))
    # in the frame of independent noise the velocity is not smooth: Runge-Kutta does not use one
    end, start = mean + (std**2 + blur**2).sqrt() * eps, math.hypot(1, blur) * eps
    for solver, tolerance in (("predictor_corrector", 2e-2), ("rk4", 1e-5)):
        pipe.scheduler = GaussianFlowScheduler.from_config(scheduler.config, solver=solver)
        drawn = draw(pipe, start, class_labels=labels, num_inference_steps=100)
        torch.testing.assert_close(drawn, end, rtol=0, atol=tolerance)
    scheduler.save_pretrained(tmp_path)
    message = "diffusion must be None on Interpolant.*paired in the training.*sample the ODE"
    for diffusion in DIFFUSIONS:
        with pytest.raises(ValueError, match=message):
            GaussianFlowScheduler.from_config(scheduler.config, diffusion=diffusion)
        with pytest.raises(ValueError, match=message):
            GaussianFlowScheduler.from_pretrained(tmp_path, diffusion=diffusion)
    for path in ("cosine", "noise_level"):  # sampled on another path, it is the same network
        with pytest.raises(ValueError, match=message):
            GaussianFlowScheduler.from_config(
                scheduler.config, sampling_path=path, diffusion="memoryless"
            )


def test_coupled_noise_has_no_score():
    path, x = PATHS["interpolant"](coupled=True), torch.ones(2, 1)
    with pytest.raises(ValueError, match="no score on Interp.*: noise and data were pa.*ask for"):
        convert(path, "velocity", "score", x, x, 0.5)
    independent = PATHS["interpolant"]()
    for kind in ("sample", "epsilon"):
        given = "velocity", kind, x, x, 0.5
        assert torch.equal(convert(path, *given), convert(independent, *given))


@pytest.mark.parametrize(
    ("name", "guidance_scale", "diffusion"),
    covering(MAKERS, [None, 1.0, 2.0], [None, "memoryless"]),
)
def test_samples_are_those_of_our_exact_field(name, guidance_scale, diffusion):
    pipe = make(name, guidance_scale is not None, diffusion=diffusion)
    scheduler, x = pipe.scheduler, 2 * noise()
    scheduler.set_timesteps(8)
    x = x * scheduler.init_noise_sigma
    path = scheduler.sampling_path
    field = OF_ALL.field(path, "sample")
    labels = {}
    if guidance_scale is not None:
        field = guided(OF_CLASS[1].field(path, "sample"), field, guidance_scale)
        labels = {"class_labels": [1] * len(x), "guidance_scale": guidance_scale}
    else:
        labels = {"batch_size": len(x)}
    drawn = draw(pipe, x, **labels)
    solver = SOLVERS["predictor_corrector"](path, "sample", scheduler.diffusion)
    generator = torch.Generator().manual_seed(7)
    times = scheduler.to_time(scheduler.timesteps.double()).clamp(0, 1)
    expected = integrate(
        solver,
        field,
        x,
        torch.cat([times, torch.ones(1, dtype=torch.float64)]),
        lambda t, s: torch.randn(x.shape, generator=generator, dtype=torch.float64),
    )
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", META_SCHEDULERS)
def test_samples_are_those_of_metas_solver(name):
    pytest.importorskip("torchdiffeq")
    solver = pytest.importorskip("flow_matching.solver").ODESolver
    pipe, x = make(f"meta-{name}", labelled=False), noise()
    pipe.scheduler.set_timesteps(60)
    first = pipe.scheduler.timesteps[0].item()
    network = Meta(name)
    expected = solver(velocity_model=lambda **given: network(**given)).sample(
        x_init=x,
        step_size=1 / 400,
        method="midpoint",
        time_grid=torch.tensor([first, 1.0], dtype=torch.float64),
    )
    drawn = draw(pipe, x, batch_size=len(x), num_inference_steps=60)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=2e-3)


def test_paths_are_those_of_metas_schedulers():
    theirs = pytest.importorskip("flow_matching.path.scheduler")
    t = torch.linspace(0.01, 0.99, 21, dtype=torch.float64)
    pairs = {
        ("CondOT", None): theirs.CondOTScheduler(),
        ("Cosine", None): theirs.CosineScheduler(),
        ("LinearVP", None): theirs.LinearVPScheduler(),
        ("VP", None): theirs.VPScheduler(),
        ("VP", (("beta_min", 0.2), ("beta_max", 9.0))): theirs.VPScheduler(0.2, 9.0),
        ("Polynomial", (("n", 3),)): theirs.PolynomialConvexScheduler(3),
    }
    assert {name for name, _ in pairs} == set(META_SCHEDULERS)
    for (name, parameters), scheduler in pairs.items():
        _, ours = from_meta(Meta(name), name, dict(parameters or ()), **SIZE)
        given = scheduler(t)
        their = (given.alpha_t, given.sigma_t, given.d_alpha_t, given.d_sigma_t)
        torch.testing.assert_close(tuple(ours.path(t)), their)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "flow_map"])
@pytest.mark.parametrize("name", ["edm", "edm-raw"])
def test_denoisers_are_never_asked_where_no_noise_is_left(name, solver):
    for steps in (1, 30):
        pipe = make(name, labelled=False, solver=solver)
        drawn = draw(pipe, 50 * noise(), batch_size=4, num_inference_steps=steps)
        fed = torch.stack(pipe.unet.network.fed)
        assert fed.isfinite().all() and (name == "edm-raw" or (fed > 0).all())
        assert drawn.isfinite().all()


# --- what the networks are fed -------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_networks_are_fed_their_own_time_one_for_each_sample(name):
    pipe = make(name)
    draw(pipe, noise(), class_labels=[0, 1, 1, 0], guidance_scale=2.0)
    fed = torch.stack(pipe.unet.network.fed)
    assert fed.shape == (8, 8) and fed.dtype == torch.float64
    first, rising = {"edm": (50.0, -1), "edm-raw": (math.log(50) / 4, -1)}.get(name, (0.0, 1))
    # prediction of the noise, and the polynomial path, begin a little inside
    assert abs(fed[0, 0] - first) < (0.25 if name.startswith(("sit", "meta")) else 1e-4)
    assert (rising * fed.diff(dim=0) > 0).all()
    each, x = torch.full((8,), 0.3, dtype=torch.float64), noise(1, 8)
    for timestep in (0.3, each[0], each[:1]):
        output = pipe.unet(x, timestep, return_dict=False)[0]
        assert torch.equal(output, pipe.unet(x, each).sample)


def test_a_time_is_not_rounded_to_the_precision_of_the_network():
    class Half(nn.Module):
        def forward(self, t, x):
            assert (t.dtype, x.dtype) == (torch.float32, torch.bfloat16)
            assert t[0].item() == pytest.approx(0.7003, abs=1e-6)
            return x

    unet, _ = from_torchcfm(Half(), **SIZE)
    unet(noise().bfloat16(), torch.tensor(0.7003))


def test_labels_and_extras_have_the_names_that_are_asked_for():
    class Guided(nn.Module):
        def forward(self, x, t, cfg_scale, kind):
            assert cfg_scale == 0.5 and kind.tolist() == [1, 0]
            return x

    class Integers(nn.Module):
        def forward(self, x, sigma, class_cond):
            assert class_cond.tolist() == [NULL, 0] and sigma.tolist() == [1.0, 1.0]
            return x

    options = LABELLED | {"label_name": "kind", "extras": {"cfg_scale": 0.5}}
    from_meta(Guided(), **options)[0](noise(0, 2), 0.5, torch.tensor([1, 0]))
    unet, _ = from_edm(Integers(), one_hot=False, label_name="class_cond", **LABELLED)
    unet(noise(0, 2), 0.0, torch.tensor([NULL, 0]))


# --- pipelines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_a_pipeline_draws_images(name):
    pipe = make(name)
    assert pipe.num_classes == CLASSES and pipe.unet.dtype == torch.float64
    images = pipe([0, 1], guidance_scale=1.5, num_inference_steps=3).images
    assert [image.size for image in images] == [(4, 4)] * 2
    # data of class 0 are dark, data of class 1 bright: the labels have reached the network
    seeded = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 20}
    dark, bright = pipe([0] * 8 + [1] * 8, output_type="pt", **seeded).images.chunk(2)
    assert abs(dark.mean() - 0.2) < 0.05 and abs(bright.mean() - 0.85) < 0.05


def test_networks_are_sampled_in_evaluation_mode():
    network = SiT("Linear", "velocity")
    assert network.training
    unet, _ = from_sit(network, **SIZE)
    assert not unet.training and not network.training


def test_saving_says_what_to_save_instead_and_that_works(tmp_path):
    unet, scheduler = from_torchcfm(torch.nn.Identity(), **SIZE)
    with pytest.raises(NotImplementedError, match="Identity.*state_dict.*adapt the network again"):
        FlowMatchingPipeline(unet, scheduler).save_pretrained(tmp_path)
    for name in MAKERS:
        pipe = make(name)
        pipe.scheduler.save_pretrained(tmp_path)
        drawn, adapted_again = draw(pipe, noise(), class_labels=[1] * 4), make(name)
        adapted_again.scheduler = GaussianFlowScheduler.from_pretrained(tmp_path)
        assert torch.equal(draw(adapted_again, noise(), class_labels=[1] * 4), drawn)


@pytest.mark.parametrize(
    ("adapt", "options", "message"),
    [
        (
            from_sit,
            {"path": "linear"},
            "unknown path_type 'linear': choose one of Linear, GVP, VP",
        ),
        (from_sit, {"prediction": "epsilon"}, "'epsilon': choose one of velocity, score, noise"),
        (from_meta, {"scheduler": "Convex"}, "'Convex': choose one of CondOT, Cosine, VP, Lin"),
        (from_meta, {"scheduler": "LinearVP", "scheduler_kwargs": {"n": 2}}, "has no parameters"),
        (from_meta, {"prediction": "x_1"}, "'x_1': choose one of velocity, target, epsilon"),
        (
            from_repa,
            {"path": "Linear"},
            "unknown path_type 'Linear': choose one of linear, cosine",
        ),
        (from_torchcfm, {"matcher": "CFM"}, "'CFM': choose one of ConditionalFlowMatcher, Target"),
        (from_torchcfm, {"sigma": -0.5}, "at least 0 and less than inf, got -0.5"),
        (from_torchcfm, {"matcher": INDEPENDENT[1], "sigma": 1.0}, "less than 1.0, got 1.0"),
        (from_meta, {"scheduler": "Polynomial"}, "its n, got None: pass"),
        (from_meta, {"scheduler": "Polynomial", "scheduler_kwargs": {"n": 0.5}}, "at least 1"),
        (from_meta, {"scheduler_kwargs": {"n": 2}}, "no parameters of 'linear'"),
        (from_edm, {"sigma_min": 0.0}, "must hold, got 0.0 and 80.0: pass the last"),
        (from_edm, {"sigma_min": 2, "sigma_max": 1}, "must hold, got 2 and 1"),
        (from_edm, {"sigma_max": math.inf}, "must hold, got 0.002 and inf"),
        (from_edm, {"raw": True, "sigma_data": 0}, "data_std must be positive"),
        (from_torchcfm, {"num_classes": 0}, "at least 1, or None .* got 0: pass the number"),
        (from_torchcfm, {"null_label": True}, "None where there is no null_label, got None"),
    ],
)
def test_bad_options_name_value_rule_and_way_out(adapt, options, message):
    with pytest.raises(ValueError, match=message):
        adapt(torch.nn.Identity(), **SIZE | options)


def test_an_unconditional_network_is_called_without_labels():
    pipe = make("edm-raw", labelled=False)
    draw(pipe, noise(), batch_size=4)
    assert pipe.unet.network.denoiser.labels == [None] * 8
    assert pipe.unet.config.num_class_embeds is None and isinstance(pipe.unet, AdaptedNetwork)
