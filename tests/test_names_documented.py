"""Every line of docs/names.md is a scheduler that samples."""

import importlib
import math
import re
from pathlib import Path

import pytest
import torch

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.diffusions import DIFFUSIONS
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.grids import named
from fm_diffusers.paths import GaussianPath
from fm_diffusers.solvers import stochastic

TEXT = (Path(__file__).parents[1] / "docs" / "names.md").read_text()
#: The last column of every row of a table that is in code.
LINES = re.findall(r"^\|.*\| `(.*)` \|$", TEXT, flags=re.M)


def test_every_row_has_a_line_to_write():
    rows = [row for row in TEXT.splitlines() if row.startswith("|") and "write here" not in row]
    assert len(LINES) == len([row for row in rows if not row.startswith("|---")]) > 40


@pytest.mark.parametrize("line", sorted(set(LINES)))
def test_the_line_samples_data(line):
    scheduler = eval(f"GaussianFlowScheduler({line})")
    scheduler.set_timesteps(6)
    assert len(scheduler.timesteps) == 6 * scheduler.order
    data = GaussianMixture(torch.full((1, 1), 2.0, dtype=torch.float64), 0.1)
    field = data.field(scheduler.path, scheduler.config.prediction_type)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, generator=generator, dtype=torch.float64) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        output = field(x, scheduler.to_time(timestep.double()))
        x = scheduler.step(output, timestep, x, generator, return_dict=False)[0]
    assert abs(x.mean() - 2) < 0.5  # the references end with noise


def test_every_step_and_named_grid_is_on_the_page():
    steps = [name for name, diffusion in DIFFUSIONS.items() if diffusion.profile is None]
    grids = ["simple", "normal", "sgm_uniform", "bong_tangent", "ays", "beta57"]
    assert all(hasattr(named, name) for name in grids[:-1])
    for name in [*steps, "er_sde", "dance", "flow_grpo", "res_multistep", *grids]:
        assert f'="{name}"' in TEXT, name


#: Entries as the comments on the tables show them.
TABLES = {
    "diffusions": ("DIFFUSIONS", {"diffusion": "bump"}),
    "grids": ("GRIDS", {"grid": "dense_at_the_end", "grid_kwargs": {"power": 3.0}}),
    "solvers": ("SOLVERS", {"solver": "damped", "solver_kwargs": {"share": 0.8}}),
}


@pytest.mark.parametrize("module", TABLES)
def test_the_example_of_an_entry_in_the_comment_on_a_table_runs(module):
    name, config = TABLES[module]
    package = importlib.import_module(f"fm_diffusers.{module}")
    source = Path(package.__file__).read_text()
    before = source[: source.index(f"\n{name}: dict")].splitlines()
    comment = []
    while before and before[-1].startswith("#:"):
        comment.insert(0, before.pop()[2:])
    code = "\n".join(line[5:] for line in comment if line.startswith("     "))
    table = getattr(package, name)
    # what the example would import
    names = vars(stochastic) | vars(package) | {"math": math, "torch": torch, name: table}
    names |= {"GaussianFlowScheduler": GaussianFlowScheduler, "GaussianPath": GaussianPath}
    known = set(table)
    try:
        exec(compile(code, f"{module} comment", "exec"), names)
        assert set(table) > known
        scheduler = GaussianFlowScheduler(**config)
        scheduler.set_timesteps(5)
        assert len(scheduler.timesteps) == 5
    finally:
        for added in set(table) - known:
            del table[added]
