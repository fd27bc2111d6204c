"""The pictures of the theory: drawn by the script as a user runs it, and true in their numbers."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

for name in ("matplotlib", "sklearn"):
    pytest.importorskip(name, reason=f"the pictures need {name}: install the extra `bench`")

SCRIPT = Path(__file__).parents[1] / "examples" / "plot_paths.py"
PICTURES = {
    "conditional_and_marginal",
    "conditional_and_marginal_digits",
    "posterior_weights",
    "equal_marginals",
}


@pytest.mark.slow
@pytest.mark.parametrize("path", ["linear", "cosine", "polynomial", "variance_preserving"])
def test_pictures(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output_dir", str(tmp_path), "--path", path])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    said = capsys.readouterr().out

    assert {file.stem for file in tmp_path.glob("*.png")} == PICTURES
    for file in tmp_path.glob("*.png"):
        assert str(file) in said
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert min(pixels.shape[:2]) >= 500
        inked = (pixels != 255).any(axis=2)
        assert 0.05 < inked.mean() < 0.95
        # no part of the picture is empty: every twelfth of its width shows something
        assert all(part.mean() > 0.01 for part in np.array_split(inked, 12, axis=1))

    # the ODE and the SDEs end in the same distribution, as near to the data as fresh data is;
    # what the trajectory remembers of its start tells them apart
    worst_fresh = float(re.search(r"fresh samples.* to ([\d.]+)", said)[1])
    rows = re.findall(r"^(.*): W1 ([\d.]+), correlation .* (-?[\d.]+)$", said, re.M)
    errors, memories = ([float(row[i]) for row in rows] for i in (1, 2))
    assert [row[0].split(",")[0] for row in rows] == ["ODE", "SDE", "SDE"]
    assert max(errors) < 1.5 * worst_fresh
    ode, little, memoryless = memories
    assert ode > 0.9 > little > 0.5 and abs(memoryless) < 0.05
