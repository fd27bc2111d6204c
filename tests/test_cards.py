"""What is pushed works when it is copied from the Hub's page, and tells nothing of this machine.

One process trains and pushes, a fresh one runs the code of all cards as it is. Both are real and
cost seconds: pictures must come out in the colours that their names ask for.
"""

import json
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer
from PIL import Image

from fm_diffusers.pipelines.cards import URL

pytest.importorskip("datasets")
ROOT = Path(__file__).parents[1]
COLOURS = {"circle": (230, 30, 30), "square": (30, 230, 30), "triangle": (30, 30, 230)}
NAMED = '["circle", "square", "triangle"]'
#: Scripts in turn, with what the test says and what all are told.
SCRIPTS = {
    "shapes": "train_mnist.py --dataset_name HOME/shapes --block_out_channels 16 32 "
    "--max_train_steps 150 --learning_rate 3e-3 --ema_decay 0.95",
    "text": "train_text_to_image.py --dataset_name HOME/captioned --caption_column text "
    "--block_out_channels 8 8",
    "straight": "reflow.py --model HOME/shapes-flow --num_pairs 16 --pair_steps 2",
    "adapter": "train_lora.py --model HOME/shapes-flow --dataset_name HOME/shapes --rank 2",
    "rewarded": "finetune_reward.py --model HOME/shapes-flow --reward ink --unconditional "
    "--group_size 4 --num_inference_steps 3 --num_samples 8",
    "further": "train_mnist.py --init_from HOME/shapes-flow --dataset_name HOME/shapes",
    "codes": "train_autoencoder.py --dataset_name HOME/shapes --block_out_channels 8 8",
    "latent": "train_latent.py --vae HOME/codes-flow --dataset_name HOME/shapes "
    "--block_out_channels 8",
    "plain": "train_mnist.py --dataset_name HOME/shapes --label_column= --block_out_channels 8",
}
COMMON = "--train_batch_size 16 --lr_warmup_steps 1 --report_to none"
pytestmark = pytest.mark.slow


def save_pictures(folder):
    """Save three classes in folders, told apart by their colours, and the same with captions."""
    rng, rows = np.random.default_rng(0), []
    for name, colour in COLOURS.items():
        for kind in ("shapes", "captioned"):
            (folder / kind / name).mkdir(parents=True)
        for i in range(16):
            noisy = np.clip(np.array(colour) + rng.normal(0, 10, (8, 8, 3)), 0, 255)
            for kind in ("shapes", "captioned"):
                image = Image.fromarray(noisy.astype(np.uint8))
                image.save(folder / kind / name / f"{i}.png")
            rows.append({"file_name": f"{name}/{i}.png", "text": f"a {name}, number {i % 2}"})
    lines = "\n".join(map(json.dumps, rows))
    (folder / "captioned" / "metadata.jsonl").write_text(lines)


def run_scripts(home, names):
    """Run scripts as a user does, one after the other in this process, with short pictures."""
    from fm_diffusers.training import pictures

    pictures.processes.__defaults__ = (2, 3, "memoryless")
    sys.path.insert(0, str(ROOT / "examples"))
    for name in names:
        line = SCRIPTS[name]
        words = f"{line} {COMMON} {'' if '--max_train_steps' in line else '--max_train_steps 2'} "
        words += f"--output_dir HOME/{name}-flow --push_to_hub --hub_model_id user/{name}"
        script, *sys.argv[1:] = words.replace("HOME", home).split()
        sys.argv[0] = str(ROOT / "examples" / script)
        runpy.run_path(sys.argv[0], run_name="__main__")


def push_first(home):
    """Train on the pictures, and push pipelines that are made by hand."""
    from test_pipeline_names import named
    from test_pipeline_text import make_text_pipe

    from fm_diffusers import FlowMatchingPipeline

    run_scripts(home, ["shapes", "text"])
    pipes = {"named": named(), "prompted": make_text_pipe(), "told": make_text_pipe(encoder=False)}
    for name, pipe in pipes.items():
        pipe.push_to_hub(f"user/{name}-by-hand")
        again = FlowMatchingPipeline.from_pretrained(f"user/{name}-by-hand")
        again.push_to_hub(f"user/{name}-again")  # from what lies in the cache


def push_rest(home):
    """Run the other scripts."""
    run_scripts(home, [*SCRIPTS][2:])


class Gone:
    """A finder that makes this package one that is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "fm_diffusers":
            raise ModuleNotFoundError(f"No module named {name!r}", name="fm_diffusers")


def load_without_the_package():
    """Return what a process says in which nothing of this package has been imported yet."""
    from diffusers import DiffusionPipeline

    kept = {name: sys.modules.pop(name) for name in [*sys.modules] if "fm_diffusers" in name}
    sys.meta_path.insert(0, gone := Gone())
    try:
        DiffusionPipeline.from_pretrained("user/named-by-hand", trust_remote_code=True)
    except ImportError as error:
        return f"{error}"
    finally:
        sys.meta_path.remove(gone)
        sys.modules.update(kept)


def draw_all(file):
    """Run the code of cards one after the other, and write the images that it leaves."""
    found = {"without": load_without_the_package()}
    for repo_id, code in json.loads(Path(file).read_text()).items():
        exec(compile(code, repo_id, "exec"), left := {})
        images = {name: left[name] for name in ("ode", "sde", "images") if name in left}
        found[repo_id] = {
            name: [np.asarray(i).tolist() for i in one] for name, one in images.items()
        }
    Path(file).write_text(json.dumps(found))


def process(hub, call, folder):
    """Call a function of this file with a folder or a file, in a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import test_cards as t; t."
    done = subprocess.run(
        [sys.executable, "-c", code + f"{call.__name__}({str(folder)!r})"],
        env=hub.env | {"HF_DATASETS_CACHE": str(Path(folder).parent / "cache")},
        capture_output=True,
        text=True,
        cwd=Path(folder).parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@dataclass(frozen=True)
class Lot:
    """What a process has pushed: cards, their code, and the images that the code leaves."""

    hub: HubServer
    home: Path
    cards: dict[str, str]
    codes: dict[str, str]
    drawn: dict[str, dict[str, list]]


def push(hub, home, call, elsewhere):
    """Return what a function of this file pushes in a process of its own."""
    before = {*hub.repos}
    process(hub, call, home)
    new = {name: repo for (_, name), repo in hub.repos.items() if ("model", name) not in before}
    cards = {name: repo.files["README.md"].decode() for name, repo in new.items()}
    codes = {name: re.findall(r"```python\n(.*?)```", c, flags=re.S) for name, c in cards.items()}
    codes = {name: code for name, (code,) in codes.items()}
    file = elsewhere / "codes.json"
    file.write_text(json.dumps(codes))
    assert "Expected types" not in process(hub, draw_all, file)  # diffusers, of id2label
    return Lot(hub, home, cards, codes, json.loads(file.read_text()))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    home = tmp_path_factory.mktemp("secret_home") / "of_mine"
    save_pictures(home)
    with HubServer() as hub:
        yield push(hub, home, push_first, tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="module")
def rest(first, tmp_path_factory):
    return push(first.hub, first.home, push_rest, tmp_path_factory.mktemp("elsewhere"))


def nearest(images):
    """Return the class whose colour each image has."""
    colours = np.array([*COLOURS.values()], dtype=float)
    means = np.array(images).reshape(len(images), -1, 3).mean(1)
    return [[*COLOURS][i] for i in np.abs(means[:, None] - colours).sum(-1).argmin(1)]


def test_the_code_of_a_card_draws_the_classes_of_ones_own_pictures(first):
    assert f"pipe({NAMED}, num" in first.codes["user/shapes"]
    for process in ("ode", "sde"):
        images = np.array(first.drawn["user/shapes"][process])
        assert images.shape == (3, 8, 8, 3) and nearest(images) == [*COLOURS]
    card = first.cards["user/shapes"]
    assert "0 circle, 1 square, 2 triangle." in card
    assert "on `shapes`" in card and "--dataset_name=shapes" in card
    index = json.loads(first.hub.repos["model", "user/shapes"].files["model_index.json"])
    assert index["id2label"] == {"0": "circle", "1": "square", "2": "triangle"}


def test_captions_are_the_prompts_of_a_card(first):
    code = first.codes["user/text"]
    assert re.search(r'pipe\(\["a (circle|square|triangle), number [01]", ', code)
    assert np.array(first.drawn["user/text"]["ode"]).shape == (4, 8, 8, 3)


@pytest.mark.parametrize(
    ("kind", "number", "asked"),
    [
        ("named", 3, '["circle", "square", "triangle, three-sided, cut in half"]'),
        ("prompted", 1, '"a picture"'),
        ("told", 1, "prompt_embeds=torch.zeros(1, 1, 8)"),
    ],
)
def test_the_card_of_a_pipeline_that_is_pushed_by_hand_runs(kind, number, asked, first):
    for how in ("by-hand", "again"):
        assert f"pipe({asked}, num" in first.codes[f"user/{kind}-{how}"]
        assert len(first.drawn[f"user/{kind}-{how}"]["images"]) == number


def test_what_follows_from_a_pipeline_keeps_its_names(rest):
    for name in ("straight", "adapter", "further"):
        assert f"pipe({NAMED}, num" in rest.codes[f"user/{name}"]
        assert "user/shapes" in rest.cards[f"user/{name}"]  # where it began
    assert nearest(rest.drawn["user/straight"]["images"]) == [*COLOURS]
    assert nearest(rest.drawn["user/adapter"]["images"]) == [*COLOURS]
    assert f"pipe({NAMED}, num" in rest.codes["user/latent"]


@pytest.mark.parametrize("name", ["rewarded", "plain"])
def test_what_was_trained_without_classes_is_asked_for_none(name, rest):
    assert "pipe(batch_size=4, num" in rest.codes[f"user/{name}"]
    assert "Class" not in rest.cards[f"user/{name}"]
    assert np.array(rest.drawn[f"user/{name}"]["ode"]).shape == (4, 8, 8, 3)


def test_the_card_of_an_autoencoder_brings_images_back(rest):
    assert np.array(rest.drawn["user/codes"]["images"]).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("lot", ["first", "rest"])
def test_nothing_that_is_pushed_tells_a_place_on_this_machine(lot, request):
    lot = request.getfixturevalue(lot)
    for repo_id, card in lot.cards.items():
        assert f"git+{URL}" in card
        for name, content in lot.hub.repos["model", repo_id].files.items():
            for place in (lot.home.parent.name, str(ROOT), lot.hub.home.name, "/tmp/"):
                assert place.encode() not in content, (repo_id, name, place)


def test_without_the_package_the_last_line_says_what_to_install(first):
    said = first.drawn["without"]
    assert "needs the package fm_diffusers, which is not installed: install it by" in said
    assert said.strip().endswith(f'pip install "fm_diffusers @ git+{URL}"')
    assert "pip install fm_diffusers" not in said  # a name that anybody could register
