"""Every block of Python in README and docs runs as it is written, on tiny pipelines.

What a page needs beside its own code is a row of `PAGES`: files and names that are there before,
how many steps suffice, and which blocks are compiled only, because they ask the Hub.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pipeline import make_unet
from torch import nn

import fm_diffusers
from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.flow_map_networks import with_two_times

ROOT = Path(__file__).parents[1]


def blocks(page):
    text = (ROOT / page).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M)


def save(folder, scheduler=None, **config):
    """Save a tiny pipeline of ten classes where a page expects a trained one."""
    pipe = FlowMatchingPipeline(make_unet(11), scheduler or GaussianFlowScheduler(), 10, **config)
    pipe.save_pretrained(folder)
    return pipe


def save_map(folder):
    pipe = FlowMatchingPipeline(
        with_two_times(make_unet(11)), GaussianFlowScheduler(solver="flow_map"), 10
    )
    pipe.save_pretrained(folder)
    return pipe


def needs_mnist():
    save("pretrained/mnist")
    save_map("pretrained/mnist-one-step")
    save_map("pretrained/mnist-mean-flow")
    return {}


def needs_map():
    network = save_map("outputs/mnist-few-steps").unet
    return {"network": network, "x": torch.randn(2, 1, 8, 8), "label": torch.tensor([3, 7])}


def needs_calibration():
    save("outputs/mnist")
    return {}


def needs_swapped():
    pipe = save("outputs/mnist")  # in the place of SD3, whose block has the import
    return {
        "pipe": pipe,
        "GaussianFlowScheduler": GaussianFlowScheduler,
        "my_sit": nn.Identity(),
    }


def needs_training():
    names = dict(enumerate(["circle", "square", "triangle"]))
    pipe = FlowMatchingPipeline(make_unet(4), GaussianFlowScheduler(), 3, id2label=names)
    pipe.save_pretrained("outputs/shapes")
    return {}


def edited(names):
    changed, image = names["completed"], names["image"]
    half = (0, 0, image.width // 2, image.height)
    assert changed.crop(half).tobytes() == image.crop(half).tobytes()
    assert changed.tobytes() != image.tobytes()
    assert len(names["between"]) == 6 and len(names["frames"]) == 10


@dataclass(frozen=True)
class Page:
    """What a page needs: names, shorter runs, the blocks that are only compiled, and a check."""

    needs: Callable[[], Mapping[str, Any]] = dict
    shorter: Mapping[str, str] = field(default_factory=dict)
    compiled: tuple[int, ...] = ()
    check: Callable[[dict[str, Any]], None] = lambda names: None


FEWER_STEPS = {r"num_inference_steps=\d+": "num_inference_steps=4"}
PAGES = {
    "README.md": Page(needs_mnist, FEWER_STEPS, compiled=(1,)),  # SD3 from the Hub
    "docs/index.md": Page(needs_mnist, FEWER_STEPS, compiled=(2,)),  # SD3 from the Hub
    "docs/editing.md": Page(
        needs_mnist,
        FEWER_STEPS,
        check=edited,
    ),
    "docs/few_evaluations.md": Page(needs_map),
    "docs/modular.md": Page(needs_mnist),
    "docs/reinforcement.md": Page(needs_mnist),
    "docs/samplers.md": Page(
        needs_calibration,
        {r"num_inference_steps=\[4, 6, 8\]": "num_inference_steps=[4], num_samples=4"},
    ),
    "docs/swap.md": Page(needs_swapped, compiled=(0,)),  # SD3 from the Hub
    "docs/training.md": Page(needs_training, compiled=(1,)),  # a trained adapter
}
TABLES = "PATHS", "DIFFUSIONS", "SOLVERS", "GRIDS", "TIME_SAMPLERS", "WEIGHTINGS", "COUPLINGS"
FOUND = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in FOUND if blocks(page)]


@pytest.fixture
def tables():
    """Take the rows that a page adds out of the tables again."""
    known = {name: dict(getattr(fm_diffusers, name)) for name in TABLES}
    yield
    for name, rows in known.items():
        table = getattr(fm_diffusers, name)
        for added in set(table) - set(rows):
            del table[added]


@pytest.mark.filterwarnings("ignore:.*experimental", "ignore:.*are passed:UserWarning")
@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_of_a_page_runs(page, tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = PAGES.get(page, Page())
    names = dict(row.needs())
    for number, block in enumerate(blocks(page)):
        for written, short in row.shorter.items():
            block = re.sub(written, short, block)
        code = compile(block, f"{page}, block {number}", "exec")
        if number not in row.compiled:
            exec(code, names)
    row.check(names)


def test_what_the_table_says_is_on_the_pages():
    assert set(PAGES) <= set(WITH_CODE)
    for page, row in PAGES.items():
        text, count = (ROOT / page).read_text(), len(blocks(page))
        assert all(re.search(written, text) for written in row.shorter), page
        assert all(number < count for number in row.compiled), page
