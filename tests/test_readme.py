"""The README's library examples run as written."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_examples_without_a_trained_pipeline_run():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    blocks = [block for block in blocks if "from_pretrained" not in block]
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_every_name_of_the_tables_is_documented():
    from fm_diffusers import DIFFUSIONS, GRIDS, PATHS, PREDICTIONS, SOLVERS

    for table in (DIFFUSIONS, GRIDS, PATHS, PREDICTIONS, SOLVERS):
        assert all(f"`{name}`" in README for name in table)
