"""Grids and calibrations in flow pipelines, which say in many ways how many steps they want."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.bria.pipeline_bria import get_original_sigmas
from diffusers.pipelines.ltx import pipeline_ltx_condition
from diffusers.pipelines.mochi import pipeline_mochi
from test_modular_swap import TASKS, modular
from test_modular_swap import draw as draw_blocks
from test_swap import draw
from tiny_inputs import dynamic, flow, static, unipc
from tiny_pipelines import PIPELINES, build
from tiny_video import edm

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.grids import GRIDS
from fm_diffusers.grids.spacing import FIXED_STARTS
from fm_diffusers.scheduling.habits import SIGMAS
from fm_diffusers.scheduling.parts import calibrated_for

STEPS = 4

#: How the flow pipelines of `tiny_pipelines` ask for steps.
ASKED = {
    "number": """sd3 sd3_img2img sd3_inpaint sd3_controlnet sd3_pag sd3_controlnet_inpaint prx
        lumina sana aura wan wan_flow wan_i2v wan_v2v skyreels cosmos svd stable_audio""",
    "equal": """flux flux_static flux_img2img flux_inpaint flux_control flux_controlnet flux_fill
        flux_kontext flux_control_img2img flux_control_inpaint flux_controlnet_img2img flux2
        chroma chroma_img2img qwen qwen_img2img qwen_inpaint z_image z_image_img2img lumina2 ltx
        ltx_i2v hunyuan""",
    "training": "bria cogview4",
    "linear_quadratic": "mochi ltx_condition",
}
ROWS = {name: way for way, names in ASKED.items() for name in names.split()}
#: Those that the fast run takes.
FAST = "sd3 wan flux flux2 chroma qwen z_image lumina2 ltx hunyuan cosmos " + " ".join(
    [ASKED["training"], ASKED["linear_quadratic"]]
)


class Recording(GaussianFlowScheduler):
    """Remembers what `set_timesteps` was told."""

    def set_timesteps(
        self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None
    ):
        lists = {"sigmas": sigmas, "timesteps": timesteps}
        self.told = {"num_inference_steps": num_inference_steps, "mu": mu} | lists
        super().set_timesteps(**self.told, device=device)


def swapped(source, **config):
    return GaussianFlowScheduler.from_config(source.config, **config)


def levels(source, config, **told):
    scheduler = swapped(source, **config)
    scheduler.set_timesteps(**told)
    return scheduler.sigmas


def calibrated(source, **config):
    """Return a configuration with what `calibrate` writes into it."""
    fit = {"log_snr": [-1.1, 0.2, 1.7], "method": {"form": "velocity", "solver_order": 1}}
    steps = {str(STEPS): fit | {"readout": [1.0] + [0.2] * STEPS}}
    made_for = calibrated_for(swapped(source, **config).config)
    return config | {"calibration": {"for": made_for, "steps": steps}}


# --- in pipelines --------------------------------------------------------------------------------


def test_every_pipeline_without_a_table_is_among_them():
    paths = {name: swapped(row.scheduler()).config.path for name, row in PIPELINES.items()}
    assert {name for name, path in paths.items() if path != "discrete"} == set(ROWS)


def check(source, run):
    """Check the levels of a pipeline's run, and return what it tells its scheduler."""
    for config in ({"grid": None}, {"grid": "bong_tangent"}, calibrated(source)):
        ours = Recording.from_config(source.config, **config)
        run(ours)
        alone = {"num_inference_steps": STEPS, "mu": ours.told["mu"]}
        assert torch.equal(ours.sigmas, levels(source, config, **alone)), config
        kept = levels(source, {}, **ours.told)
        assert not torch.allclose(ours.sigmas, kept, atol=1e-3), config
    return ours.told


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST.split() else pytest.mark.slow) for n in ROWS]
)
def test_grids_and_calibrations_take_effect_in_pipelines(name):
    pipe, arguments = build(name)
    arguments = arguments | {"num_inference_steps": STEPS}
    told = check(pipe.scheduler, lambda ours: draw(pipe, arguments, ours))
    assert (told["sigmas"] is None and told["timesteps"] is None) == (ROWS[name] == "number")
    if told["sigmas"] is not None:
        row = SIGMAS[ROWS[name]](STEPS, 1000)
        np.testing.assert_allclose(told["sigmas"], row, rtol=0, atol=1e-6)


#: Those of flow networks; the fast run takes one of each kind.
MODULAR = [name for name, task in TASKS.items() if task.row in ROWS]
SLOW = ("image2image", "image2video", "inpainting", "controlnet", "edit")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n.endswith(SLOW) else ()) for n in MODULAR]
)
def test_grids_and_calibrations_take_effect_in_modular_pipelines(name):
    pipe, arguments = modular(name)
    check(pipe.scheduler, lambda ours: draw_blocks(pipe, arguments, ours, STEPS))


# --- what pipelines pass -------------------------------------------------------------------------

#: Theirs by what they pass: numbers, and the lists of diffusers' own code for n steps.
LISTS = {
    "equal": lambda n: {"sigmas": np.linspace(1.0, 1 / n, n)},
    "equal, a list in float32": lambda n: {"sigmas": torch.linspace(1, 1 / n, n).tolist()},
    "Bria": lambda n: {"sigmas": get_original_sigmas(1000, n)},
    "Mochi": lambda n: {"sigmas": pipeline_mochi.linear_quadratic_schedule(n, 0.025)},
    "LTX": lambda n: {"timesteps": 1000 * pipeline_ltx_condition.linear_quadratic_schedule(n)},
    "CogView4": lambda n: whole(np.linspace(1000, 1.0, n)),
    "GLM-Image": lambda n: whole(np.linspace(1000, 1.0, n + 1)[:-1]),
    "Cosmos 3": lambda n: {"sigmas": np.linspace(1 - 1 / 1000, 0, n + 1)[:-1]},
}
SOURCES = {
    "flow": flow(),
    "shifted": static(),
    "dynamic": dynamic(),
    "ascending": flow(invert_sigmas=True),
    "unipc": unipc(),
    "unipc, karras": diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, use_karras_sigmas=True
    ),
    "edm": edm(),
}
OURS = [name for name in GRIDS if name not in FIXED_STARTS] + [None]


def whole(timesteps):
    timesteps = timesteps.astype(np.int64).astype(np.float32)
    return {"timesteps": timesteps, "sigmas": timesteps / 1000}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_that_says_how_many_steps_is_a_number_of_steps(kind, source):
    source = SOURCES[source]
    for n in (2, 7):
        found = levels(source, {"grid": None}, **LISTS[kind](n), mu=0.8)
        expected = levels(source, {"grid": None}, num_inference_steps=n, mu=0.8)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("grid", OURS, ids=str)
def test_every_grid_in_continuous_time_goes_before_such_a_list(grid):
    for config in ({"grid": grid}, {"grid": grid, "diffusion": "memoryless", "solver": "heun"}):
        found = levels(static(), config, **LISTS["equal"](6))
        assert torch.equal(found, levels(static(), config, num_inference_steps=6))


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("source", ["shifted", "dynamic"])
def test_diffusers_own_grids_are_where_the_list_says(source, kind):
    given = LISTS[kind](7) | {"mu": 0.8}
    theirs = SOURCES[source]
    theirs.set_timesteps(**given)
    found = levels(theirs, {}, **given)
    if kind == "LTX":  # theirs shifts the levels and feeds the network others
        theirs.sigmas = torch.cat([theirs.timesteps / 1000, torch.zeros(1)])
    torch.testing.assert_close(found, theirs.sigmas, rtol=1e-5, atol=1e-6)


def test_a_network_that_is_fed_what_was_before_the_shift_is_fed_so_on_every_grid():
    """CogView4 gives both, and its own scheduler shifts one of them."""
    theirs = dynamic(time_shift_type="linear")
    for config in ({"grid": None}, {"grid": "beta57", "solver": "heun"}, calibrated(theirs)):
        ours = swapped(theirs, **config)
        ours.set_timesteps(**LISTS["CogView4"](STEPS), mu=0.6)
        shifted = theirs.time_shift(0.6, 1.0, ours.timesteps.double() / 1000)
        torch.testing.assert_close(shifted.float(), ours.sigmas[:-1], rtol=1e-5, atol=1e-6)
        assert (ours.timesteps - 1000 * ours.sigmas[:-1]).abs().max() > 1


def test_without_a_way_back_from_the_shift_such_a_network_is_not_fed():
    stretched = dynamic(shift_terminal=0.1)
    with pytest.raises(ValueError, match="before the shift, and shift_terminal=0.1 leaves no way"):
        levels(stretched, {"grid": None}, **LISTS["CogView4"](STEPS), mu=0.6)


# --- what users ask for --------------------------------------------------------------------------

EQUAL = [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    "asked",
    [
        {"sigmas": [*EQUAL, 0.0]},
        {"timesteps": [1000 * s for s in EQUAL]},
        {"sigmas": EQUAL, "timesteps": [900.0, 700.0, 500.0, 300.0]},
    ],
    ids=["with the end", "timesteps", "fed something else"],
)
@pytest.mark.filterwarnings("error")
def test_equal_steps_that_are_meant_are_taken(asked):
    scheduler = GaussianFlowScheduler()
    scheduler.set_timesteps(**asked)
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([*EQUAL, 0.0]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sigmas", [[1.0, 0.75, 0.5, 0.2499], [1.0, 0.9, 0.4], [0.75, 0.5, 0.25]])
@pytest.mark.parametrize("source", ["flow", "unipc, karras", "edm"])
def test_any_other_list_is_where_the_steps_start(sigmas, source):
    found = levels(SOURCES[source], {}, sigmas=sigmas)
    torch.testing.assert_close(found, torch.tensor([*sigmas, 0.0]))


def test_a_list_in_place_of_a_grid_that_was_named_or_fitted_says_so():
    source, sigmas = static(), [1.0, 0.9, 0.5, 0.2]
    with pytest.warns(UserWarning, match=r"sigmas=.*, grid='beta57' has no effect on this run"):
        levels(source, {"grid": "beta57"}, sigmas=sigmas)
    with pytest.warns(UserWarning, match="the calibration of 4 steps has no effect on this run"):
        found = levels(source, calibrated(source), sigmas=sigmas)
    assert torch.equal(found, levels(source, {}, sigmas=sigmas))


def test_lists_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="must have one length, got 4 and 3"):
        GaussianFlowScheduler().set_timesteps(sigmas=EQUAL, timesteps=[900.0, 600.0, 300.0])
