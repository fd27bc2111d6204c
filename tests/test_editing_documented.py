"""docs/editing.md names every guider."""

from pathlib import Path

TEXT = (Path(__file__).parents[1] / "docs/editing.md").read_text()


def test_every_guider_is_in_the_table():
    from fm_diffusers.pipelines.guidance import GUIDERS, REFUSED

    assert all(f"`{name}`" in TEXT for name in (*GUIDERS, *REFUSED))
