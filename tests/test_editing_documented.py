"""The code of docs/editing.md runs as it is written, on a tiny pipeline in place of the demo's."""

import re
from pathlib import Path

import pytest
from test_pipeline import make_unet

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler

TEXT = (Path(__file__).parents[1] / "docs/editing.md").read_text()


@pytest.mark.filterwarnings("ignore:.*experimental")
def test_the_document_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe = FlowMatchingPipeline(make_unet(11), GaussianFlowScheduler(), 10)
    pipe.save_pretrained("outputs/demo")
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    names = {}
    for block in blocks:
        # as many steps as it takes to run
        block = re.sub(r"num_inference_steps=\d+", "num_inference_steps=4", block)
        block = block.replace("likelihood(image,", "likelihood(image, num_inference_steps=2,")
        exec(compile(block, "editing.md", "exec"), names)
    assert len(blocks) == 9 and len(names["between"]) == 6
    assert len(names["frames"]) == 10
    changed, image = names["completed"], names["image"]
    half = (0, 0, image.width // 2, image.height)
    assert changed.crop(half).tobytes() == image.crop(half).tobytes()
    assert changed.tobytes() != image.tobytes()


def test_every_guider_is_in_the_table():
    from fm_diffusers.pipelines.guidance import GUIDERS, REFUSED

    assert all(f"`{name}`" in TEXT for name in (*GUIDERS, *REFUSED))
