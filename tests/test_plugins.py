"""Rows of one's own: run before anything is looked up, listed, recorded."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from fm_diffusers import DIFFUSIONS, GRIDS, PATHS, SOLVERS, FlowMatchingPipeline
from fm_diffusers.couplings import COUPLINGS
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.objectives import TIME_SAMPLERS
from fm_diffusers.solvers import integrate
from fm_diffusers.training.command_line import parse
from fm_diffusers.training.plugins import load_plugins
from fm_diffusers.weightings import WEIGHTINGS

pytest.importorskip("datasets")
pytest.importorskip("sklearn")
EXAMPLES = Path(__file__).parents[1] / "examples"
ROWS = str(EXAMPLES / "my_rows.py")
ADDED = [
    (PATHS, "square"),
    (DIFFUSIONS, "gentle"),
    (GRIDS, "cubic"),
    (SOLVERS, "ralston"),
    (TIME_SAMPLERS, "early"),
    (COUPLINGS, "reversed"),
    (WEIGHTINGS, "early"),
]
TINY = {
    "dataset_name": "digits",
    "block_out_channels": [8, 16],
    "report_to": "none",
    "train_batch_size": 256,
    "max_train_steps": 2,
    "lr_warmup_steps": 0,
}
pytestmark = pytest.mark.filterwarnings("ignore:.*lie beyond the:UserWarning")


def forget():
    """Take the rows away, and the memory of having run the file."""
    for table, name in ADDED:
        table.pop(name, None)
    for name in [name for name in sys.modules if name.startswith("plugin_")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def fresh():
    forget()
    yield
    forget()


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("train_mnist")


def test_the_documented_rows_are_what_they_say():
    """The solver has order 2 on the path, whose samples are those of every other path."""
    load_plugins([ROWS])
    path, other = PATHS["square"](), PATHS["linear"]()
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    assert torch.allclose(path.time(path.log_snr(t)), t)
    for function, derivative in ((path.alpha, path.d_alpha), (path.beta, path.d_beta)):
        slope = torch.autograd.functional.jacobian(function, t).diagonal()
        assert torch.allclose(slope, derivative(t))
    data = GaussianMixture(torch.tensor([[-1.0], [2.0]]).double(), stds=0.5)
    eps = torch.linspace(-2, 2, 9).double()[:, None]
    fine = torch.linspace(0, 1, 1001).double()
    exact = integrate(SOLVERS["rk4"](other), data.field(other), eps, fine)
    errors = []
    for n in (64, 128):
        end = integrate(
            SOLVERS["ralston"](path), data.field(path), eps, torch.linspace(0, 1, n + 1).double()
        )
        errors.append((end - exact).abs().max())
    assert 3.4 < errors[0] / errors[1] < 4.6
    grid = GRIDS["cubic"](4, path)
    assert (grid.diff() > 0).all() and grid[0] == 0 and grid[-1] == 1
    assert DIFFUSIONS["gentle"].squared(other, 0.5).item() == pytest.approx(2 * 0.25 * 0.25)


def test_flags_take_the_rows_and_help_lists_them(script, capsys):
    words = f"--plugins {ROWS} --path square --time_sampler early --weighting early"
    args = parse(script.Arguments, words.split())
    assert args.scheduler().path == PATHS["square"]()
    assert parse(script.Arguments, args.command().split()) == args
    with pytest.raises(SystemExit):
        parse(script.Arguments, ["--plugins", ROWS, "--help"])
    shown = capsys.readouterr().out
    for name in ("square", "early", "reversed", "low_discrepancy", "min_snr", "flow_prediction"):
        assert name in shown
    for module, arguments, names in (
        ("evaluate", "EvaluationArguments", ("ralston", "gentle", "none")),
        ("sample_mnist", "SamplingArguments", ("gentle",)),
    ):
        with pytest.raises(SystemExit):
            module = importlib.import_module(module)
            parse(getattr(module, arguments), ["--plugins", ROWS, "--help"])
        shown = capsys.readouterr().out
        assert all(name in shown for name in names)


def test_a_file_of_flags_may_name_them(script, tmp_path):
    (tmp_path / "run.yaml").write_text(f"plugins: ['{ROWS}']\npath: square\n")
    assert parse(script.Arguments, ["--config", str(tmp_path / "run.yaml")]).path == "square"


def test_training_records_its_rows_and_evaluation_takes_them(script, tmp_path):
    output = tmp_path / "out"
    rows = {"plugins": [ROWS], "path": "square", "coupling": "reversed", "time_sampler": "early"}
    script.main(script.Arguments(**TINY | rows, output_dir=str(output)))
    told = Path(ROWS).name  # not where it lies
    assert json.loads((output / "training.json").read_text())["plugins"] == told
    card = (output / "README.md").read_text()
    assert "load_plugins(['my_rows.py'])" in card and f"--plugins {told}" in card
    words = (
        f"--model {output} --dataset_name digits --num_samples 8 --plugins {ROWS} "
        "--solvers ralston --diffusions none --num_inference_steps 2 --num_likelihood_images 0"
    )
    forget()
    evaluate = importlib.import_module("evaluate")
    evaluate.main(parse(evaluate.EvaluationArguments, words.split()))
    (row,) = json.loads((output / "evaluation.json").read_text())["rows"]
    assert row["solver"] == "ralston"
    with pytest.raises(ValueError, match="has an evaluation.json: --overwrite_output_dir repl"):
        evaluate.main(parse(evaluate.EvaluationArguments, words.split()))
    pipe = FlowMatchingPipeline.from_pretrained(output)
    assert pipe.scheduler.path == PATHS["square"](coupled=True)


def test_modules_are_taken_and_a_file_runs_once(tmp_path, monkeypatch):
    (tmp_path / "counted.py").write_text("import sys\nsys.runs = getattr(sys, 'runs', 0) + 1\n")
    monkeypatch.setattr(sys, "runs", 0, raising=False)
    monkeypatch.chdir(tmp_path)
    first = load_plugins(["counted.py", str(tmp_path / "counted.py")])
    assert first[0] is first[1] and sys.runs == 1
    assert load_plugins(["json.tool"])[0].__name__ == "json.tool"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such.py", r"--plugins 'no_such.py': there is no such file in"),
        ("no_such.module", "is neither a file that ends in .py nor an installed module"),
        ("no/such", "is neither a file that ends in .py nor an installed module"),
        (str(EXAMPLES), "is neither a file that ends in .py nor an installed module"),
    ],
)
def test_what_is_not_there_is_told(name, message):
    with pytest.raises(ValueError, match=message):
        load_plugins([name])


def test_an_error_of_a_file_is_its_own_and_it_runs_again(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        load_plugins([str(file)])
    file.write_text("x = 1")
    assert load_plugins([str(file)])[0].x == 1
