"""Results are those of the last version, of the last run, and of another number of threads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference_results import COMMAND, NAMES, TABLES, computed, kept

from fm_diffusers import GaussianFlowScheduler

ROOT = Path(__file__).parents[1]

#: How far results may be off, relative to the largest of their row: in float64, and where times
#: are drawn in float32.
TOLERANCE = {"time_samplers": 1e-6}
REFERENCES = kept()

pytestmark = pytest.mark.filterwarnings("ignore:the diffusion 'refresh'")


def results(table, name):
    if table == "couplings" and name != "independent":
        pytest.importorskip("ot")
    return torch.tensor(computed(table, name), dtype=torch.float64)


@pytest.mark.parametrize(("table", "name"), NAMES)
def test_every_row_has_the_results_that_are_kept(table, name):
    kept_ones = REFERENCES.get(table, {}).get(name)
    assert kept_ones is not None, f"{table}[{name!r}] has no reference yet, add it: {COMMAND}"
    found, wanted = results(table, name), torch.tensor(kept_ones, dtype=torch.float64)
    changed = (
        f"the results of {table}[{name!r}] are others than before. If that is meant, write it "
        f"into CHANGELOG.md and run: {COMMAND}"
    )
    assert found.shape == wanted.shape, changed
    tolerance = TOLERANCE.get(table, 1e-10) * wanted.abs().max()
    assert ((found - wanted).abs() <= tolerance).all() and found.isfinite().all(), changed


def test_nothing_is_kept_of_rows_that_are_gone():
    gone = {(t, name) for t, rows in REFERENCES.items() for name in rows} - set(NAMES)
    assert not gone, f"{sorted(gone)} are in no table any more, remove them: {COMMAND}"


@pytest.mark.parametrize("table", TABLES)
def test_the_same_seed_gives_the_same_bits(table):
    for name in TABLES[table][0]:
        assert torch.equal(results(table, name), results(table, name)), name


@pytest.mark.slow
def test_another_process_gives_the_same_bits():
    code = "from reference_results import *; import json; torch.set_num_threads(1); "
    code += "print(json.dumps([computed(*row) for row in NAMES]))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, check=True
    )
    assert json.loads(ran.stdout) == [computed(*row) for row in NAMES]


def large_run(device="cpu", **config):
    """Return samples that are large enough for several threads, after a run with known noise."""
    scheduler = GaussianFlowScheduler(**config)
    scheduler.set_timesteps(6, device=device)
    x = torch.sin(torch.arange(4 * 3 * 64 * 64, dtype=torch.float64)).reshape(4, 3, 64, 64)
    x, place = x.float().to(device), None
    for t in scheduler.timesteps:
        step = scheduler.transition(x / (1 + x * x) - 0.1, t, x, place=place)
        x, place = step.mean + step.std / (1 + x * x), step.place
    return x.cpu()


RUNS = [{}, {"diffusion": "memoryless"}, {"solver": "heun", "path": "discrete"}]


@pytest.mark.parametrize("config", RUNS, ids=str)
def test_threads_change_no_bit(config):
    """Steps combine tensors number by number, in one order whatever the number of threads."""
    before, ends = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            ends.append(large_run(**config))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*ends)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("config", RUNS, ids=str)
def test_a_gpu_gives_the_same_to_rounding(config):
    there, here = large_run("cuda", **config), large_run(**config)
    assert ((there - here).abs() <= 1e-5 * here.abs().max()).all()
