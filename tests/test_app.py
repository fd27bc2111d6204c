"""What the page of `examples/app.py` draws; `test_app_page.py` has the page itself."""

import re
import sys
from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_pipeline import CLASSES, make_pipe, make_unet
from test_pipeline_text import make_text_pipe
from test_pipeline_threads import in_threads

from fm_diffusers import DIFFUSIONS, GRIDS, SOLVERS, FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.flow_map_networks import with_two_times

SCRIPT = Path(__file__).parents[1] / "examples" / "app.py"
sys.path.append(str(SCRIPT.parent))
import app  # noqa: E402
import app_drawing  # noqa: E402
from app_drawing import EVERY, MOMENTS, NONE, ODE, OWN_GRID, Asked, Sampler, draw  # noqa: E402

NAMES = {0: "circle", 1: "square", 2: "triangle"}
EULER, SDE = Sampler("euler", OWN_GRID, 2), Sampler("unipc", "karras", 5, "constant", 0.5)
MAP = Sampler("flow_map", OWN_GRID, 1)


def make_map(guidance):
    network = with_two_times(make_unet(CLASSES + 1), guidance)
    return FlowMatchingPipeline(network, GaussianFlowScheduler(solver="flow_map"), CLASSES)


PIPES = {
    "guided": lambda: make_pipe("guided"),
    "conditional": lambda: make_pipe("conditional"),
    "unconditional": lambda: make_pipe("unconditional"),
    "named": lambda: FlowMatchingPipeline(**make_pipe().components, id2label=NAMES),
    "text": lambda: make_text_pipe(autoencoder=True),
    "map": lambda: make_map(2.0),
    "map of scales": lambda: make_map([1.5, 4.0]),
}


@pytest.fixture(scope="module")
def pipes():
    return {name: make() for name, make in PIPES.items()}


def pixels(pictures):
    return [picture.tobytes() for picture in pictures]


@pytest.mark.parametrize(
    ("sampler", "config"),
    [
        (Sampler("heun", "karras", 3), {"solver": "heun", "grid": "karras"}),
        (Sampler("unipc", OWN_GRID, 3, "beta", 1), {"solver": "unipc", "diffusion": "beta"}),
        (
            Sampler("ddim", "uniform", 3, "cps", 0.5),
            {"solver": "ddim", "grid": "uniform", "diffusion": "cps"}
            | {"diffusion_kwargs": {"scale": 0.5}},
        ),
    ],
    ids=["ode", "sde", "strength"],
)
def test_a_drawing_is_the_call_of_a_pipeline_with_that_scheduler(pipes, sampler, config):
    noise = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    told = {"num_inference_steps": 3, "guidance_scale": 2.0, "generator": noise}
    drawing = draw(pipes["guided"], Asked(1, 2.0, 2, 5), sampler)
    assert pixels(drawing.images) == pixels(make_pipe(**config)([1, 1], **told).images)


@pytest.mark.parametrize(
    ("condition", "labels"),
    [(EVERY, [0, 1, 2, 0]), (NONE, [3] * 4), (1, [1] * 4), ("triangle", [2] * 4), ("2 ", [2] * 4)],
)
def test_what_is_chosen_is_what_the_network_is_told(condition, labels):
    pipe, fed = PIPES["named"](), []
    pipe.unet.register_forward_pre_hook(lambda network, told: fed.append(told[2].tolist()))
    draw(pipe, Asked(condition, 1.0, 4, 0), EULER)
    assert fed == [labels, labels]


def test_prompts_differ_and_other_networks_need_none(pipes):
    seven, zero = (draw(pipes["text"], Asked(p, 2.0, 1, 0), EULER) for p in ("seven", "zero"))
    assert pixels(seven.images) != pixels(zero.images)
    assert len(draw(pipes["unconditional"], Asked(None, 1.0, 3, 0), EULER).images) == 3


def test_two_samplers_begin_at_one_noise_and_an_image_does_not_depend_on_the_others(pipes):
    few = draw(pipes["guided"], Asked(0, 1.0, 1, 7), EULER)
    more = draw(pipes["guided"], Asked(0, 1.0, 3, 7), EULER)
    other = draw(pipes["guided"], Asked(0, 1.0, 1, 7), SDE)
    assert pixels(few.states[:1]) == pixels(other.states[:1])
    assert pixels(few.images) == pixels(more.images[:1]) != pixels(other.images)


@pytest.mark.parametrize("solver", [*SOLVERS])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("diffusion", [ODE, "constant"])
def test_the_evaluations_shown_are_those_that_the_network_was_asked_for(
    pipes, solver, guidance, diffusion
):
    pipe, fed = pipes["map of scales" if solver == "flow_map" else "guided"], []
    hook = pipe.unet.register_forward_pre_hook(lambda network, told: fed.append(len(told[0])))
    asked = Asked(0, 2 * guidance if solver == "flow_map" else guidance, 2, 0)
    try:
        drawing = draw(pipe, asked, Sampler(solver, OWN_GRID, 3, diffusion, 1.0))
    except ValueError as error:
        assert solver.startswith(("euler_m", "stochastic")) and diffusion == ODE, error
        return
    finally:
        hook.remove()
    assert drawing.evaluations * 2 == sum(fed) > 0 and drawing.seconds > 0


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_a_way_leads_from_the_noise_to_the_first_image(pipes, steps):
    sampler = Sampler("predictor_corrector", OWN_GRID, steps)
    drawing = draw(pipes["guided"], Asked(0, 1.0, 2, 0), sampler)
    assert drawing.times[0] == 0 and drawing.times[-1] == 1
    assert drawing.times == sorted(set(drawing.times))
    assert len(drawing.times) == min(steps + 1, MOMENTS)
    assert len(drawing.states) == len(drawing.forecasts) == len(drawing.times)
    assert pixels(drawing.states[-1:]) == pixels(drawing.images[:1]) != pixels(drawing.states[:1])


def test_a_flow_map_foretells_at_the_noise_where_its_one_step_leads(pipes):
    drawing = draw(pipes["map"], Asked(0, 2.0, 1, 0), MAP)
    assert drawing.evaluations == 1 and drawing.times == [0, 1]
    assert pixels(drawing.forecasts[:1]) == pixels(drawing.images)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("table", ["SOLVERS", "GRIDS", "DIFFUSIONS"])
def test_every_row_of_the_tables_draws_or_says_why_not(pipes, table):
    rows = {
        "SOLVERS": [Sampler(name, OWN_GRID, 8) for name in SOLVERS],
        "GRIDS": [Sampler("euler", name, 8) for name in GRIDS],
        "DIFFUSIONS": [Sampler("ddim", OWN_GRID, 8, n, d.scale) for n, d in DIFFUSIONS.items()],
    }[table]
    refused = {}
    for sampler in rows:
        try:
            drawing = draw(pipes["guided"], Asked(0, 1.0, 1, 0), sampler)
            assert pixels(drawing.images) != pixels(drawing.states[:1])
        except ValueError as error:
            refused[sampler.solver] = str(error)
    assert set(refused) <= {"flow_map", "euler_maruyama", "stochastic_heun"}
    assert all("choose another solver" in m or "diffusion" in m for m in refused.values())


def test_threads_with_samplers_of_their_own_share_one_pipeline(pipes):
    pipe, samplers = pipes["guided"], [EULER, SDE, Sampler("heun", "uniform", 3)]
    before = (pipe.scheduler, pipe.scheduler.config, pipe.scheduler.timesteps.tolist())

    def one(i):
        return pixels(draw(pipe, Asked(i % CLASSES, 1.0 + i % 2, 2, i), samplers[i % 3]).images)

    assert in_threads(one, 12) == [one(i) for i in range(12)]
    now = (pipe.scheduler, pipe.scheduler.config, pipe.scheduler.timesteps.tolist())
    assert now == before


REFUSED = {
    "no steps": (EULER, {"steps": 0}, {}, "Steps must be a whole number from 1 to 1000, got 0"),
    "many steps": (EULER, {"steps": 10**9}, {}, "Steps must be a whole number from 1 to 1000"),
    "half a step": (EULER, {"steps": 1.5}, {}, "Steps must be a whole number .*got 1.5"),
    "steps left out": (EULER, {"steps": None}, {}, "Steps is empty: enter a whole number from 1"),
    "no images": (EULER, {}, {"number": 0}, "Images must be a whole number from 1 to 100"),
    "many images": (EULER, {}, {"number": 10**9}, "Images must be a whole number from 1 to 100"),
    "seed": (EULER, {}, {"seed": -1}, "Seed must be a whole number from 0 to 4294967295"),
    "no number": (EULER, {}, {"number": None}, "Images is empty: enter a whole number from 1"),
    "no seed": (EULER, {}, {"seed": None}, "Seed is empty: enter a whole number from 0"),
    "class": (
        EULER,
        {},
        {"condition": "cir"},
        "Class must .* 'cir': the closest name is 'circle'",
    ),
    "number": (EULER, {}, {"condition": "7"}, "Class must be one .* number from 0 to 2, got '7'"),
    "no class": (EULER, {}, {"condition": None}, "Class is empty: choose one of its list"),
    "guidance": (EULER, {}, {"guidance_scale": 1e300}, "Guidance scale must be a finite number"),
    "no guidance": (EULER, {}, {"guidance_scale": None}, "Guidance scale is empty: enter 1 for"),
    "to nothing": (EULER, {}, {"condition": NONE, "guidance_scale": 2}, "1, .* no class to guide"),
    "no strength": (SDE, {"scale": None}, {}, "Strength is empty: enter 1 for example"),
    "negative": (SDE, {"scale": -1}, {}, "Strength must be 0, which is no noise, or more, got -1"),
    "solver": (EULER, {"solver": "heum"}, {}, "unknown solver 'heum': choose one of euler"),
    "grid": (EULER, {"grid": "fine"}, {}, "unknown grid 'fine': choose one of"),
    "noise": (SDE, {"diffusion": "loud"}, {}, "unknown diffusion 'loud': choose one of"),
    "strength": (SDE, {"diffusion": "cps", "scale": 2}, {}, "scale .* must be at most 1"),
    "map": (MAP, {}, {}, "network is told where a step leads"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_is_told(pipes, name):
    sampler, choices, asked, message = REFUSED[name]
    asked = {"condition": 0, "guidance_scale": 1.0, "number": 1, "seed": 0} | asked
    with pytest.raises(ValueError, match=message):
        draw(pipes["named"], Asked(**asked), Sampler(**vars(sampler) | choices))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("conditional", "Guidance scale must be 1, .*got 3.0: this network takes no other"),
        ("unconditional", "Guidance scale must be 1"),
        ("map", "Guidance scale must be 2.0, as the network has learned, got 3.0"),
        ("map of scales", None),
    ],
)
def test_only_a_network_that_can_be_guided_is(pipes, kind, message):
    asked = Asked(0, 3.0, 1, 0)
    sampler = MAP if "map" in kind else EULER
    if message is None:
        assert draw(pipes[kind], asked, sampler).evaluations == 1
        return
    with pytest.raises(ValueError, match=message):
        draw(pipes[kind], asked, sampler)


def test_an_entry_that_a_network_has_not_learned_is_refused(pipes):
    with pytest.raises(ValueError, match="Class must be one of its list.*got 'no class'"):
        draw(pipes["conditional"], Asked(NONE, 1.0, 1, 0), EULER)
    with pytest.raises(ValueError, match="Guidance scale must be from 1.5 to 4.0, as"):
        draw(pipes["map of scales"], Asked(0, 1.0, 1, 0), MAP)


@pytest.mark.parametrize("kind", PIPES)
def test_the_page_begins_with_what_its_pipeline_can_draw(pipes, kind):
    asked, samplers = app_drawing.first_entries(pipes[kind])
    ode, sde = samplers.values()
    assert ode.diffusion == ODE and sde.diffusion in DIFFUSIONS
    assert (ode.steps, sde.steps) == ((1, 4) if "map" in kind else (20, 50))
    few = replace(asked, number=2)
    first, second = (draw(pipes[kind], few, sampler) for sampler in (ode, sde))
    assert pixels(first.images) != pixels(second.images)


def test_pictures_are_shown_as_they_are(pipes):
    drawing = draw(pipes["guided"], Asked(EVERY, 2.0, 3, 0), Sampler("euler", OWN_GRID, 5))
    files = re.findall(r'class="small"[^>]*base64,([^"]*)"', app.shown(drawing))
    found = [Image.open(BytesIO(b64decode(file))) for file in files]
    assert pixels(found) == pixels([*drawing.images, *drawing.states, *drawing.forecasts])
    assert "each image: <b>10</b>" in app.shown(drawing)


def test_without_gradio_the_page_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"needs gradio.*pip install '\.\[app\]'"):
        app.main(app.AppArguments())
