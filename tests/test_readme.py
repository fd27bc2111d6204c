"""What the documents name and point at is there, and their figures are those of the tables."""

import importlib.util
import inspect
import re
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
CHOICES, SAMPLERS = (
    (ROOT / "docs" / f"{name}.md").read_text() for name in ("choices", "samplers")
)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_every_name_of_the_tables_is_documented():
    from fm_diffusers import DIFFUSIONS, GRIDS, PATHS, PREDICTIONS, SOLVERS

    for table in (DIFFUSIONS, GRIDS, PATHS, PREDICTIONS, SOLVERS):
        assert all(f"`{name}`" in CHOICES for name in table)


def test_every_name_of_a_training_is_documented_with_its_parameters():
    pytest.importorskip("datasets")
    from fm_diffusers import COUPLINGS, TIME_SAMPLERS, WEIGHTINGS
    from fm_diffusers.training.flow import OBJECTIVES

    tables = {
        "objective": OBJECTIVES,
        "time_sampler": TIME_SAMPLERS,
        "coupling": COUPLINGS,
        "weighting": WEIGHTINGS,
    }
    for flag, table in tables.items():
        shown = CHOICES.partition(f"\n| `--{flag}` |")[2].partition("\n\n")[0]
        rows = re.findall(r"^\| `(\w+)`[^|]*\|([^|]*)\|", shown, flags=re.M)
        assert {name for name, _ in rows} == {*table}, flag
        if flag == "objective":
            continue
        for name, said in rows:
            own = inspect.signature(table[name]).parameters.values()
            own = {f"{p.name}={p.default!r}" for p in own if p.default is not p.empty}
            given = {*re.findall(r"`([^`]+)`", said)}
            assert given == {each.removesuffix(".0").replace("'", '"') for each in own}, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_points_at_exists(document):
    text = document.read_text()
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", prose)
    assert [link for link in links if not (document.parent / link).exists()] == []
    paths = re.findall(r"\b(?:examples|benchmarks|tests|docs|src)/[\w/.]*\w\.\w+", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_benchmark_that_is_written_down_runs_by_that_name():
    places = [*DOCUMENTS, ROOT / "Makefile", *(ROOT / "benchmarks").rglob("*.[pm][yd]")]
    found = {
        name
        for place in places
        for name in re.findall(r"-m (benchmarks\.[\w.]*\w)", place.read_text())
    }
    assert len(found) >= 6
    assert [name for name in found if importlib.util.find_spec(name) is None] == []


def ratios(kind, guidance):
    """Return the ratios of medians of a table row of the benchmark on networks, by its place."""
    rows = (ROOT / "benchmarks/results/network.md").read_text().splitlines()
    cells = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows if "|" in row]
    return {
        (row[0], evaluations): float(cell.split("/")[1])
        for row in cells
        if row[1:3] == [guidance, f"ours over {kind} peer"]
        for evaluations, cell in zip((4, 6, 8, 10, 16, 20), row[3:], strict=True)
    }


@pytest.mark.parametrize("kind", ["best default", "best tuned"])
@pytest.mark.parametrize("guidance", ["1", "3", "7"])
def test_the_figures_on_networks_are_those_of_the_table(guidance, kind):
    found = ratios(kind, guidance)
    values = sorted(found.values())
    network, evaluations = max(found, key=found.get)
    shown = [f"{value:.2f}".lstrip("0") for value in (values[0], median(values), values[-1])]
    shown += [f"{sum(v < 1 for v in values)} of {len(values)}", f"`{network}`, {evaluations}"]
    (row,) = re.findall(rf"^\| {guidance}\b[^|]*\| {kind} peer \|(.*)\|$", SAMPLERS, flags=re.M)
    assert [cell.strip() for cell in row.split("|")] == shown
