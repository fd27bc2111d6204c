r"""A page in the browser that draws from a pipeline: one noise, two samplers side by side.

    python examples/app.py --model pretrained/mnist

loads a pipeline, a folder or a Hub id, and shows the page at http://127.0.0.1:7860. Each column
has a sampler of its own, and shows its images, how often the network was asked for one of them,
how long it took, and the first image on its way from noise. `pip install '.[app]'` comes first.

    python examples/app.py --model outputs/mnist --space_dir outputs/space
    hf upload user/digits outputs/space . --repo-type space

writes the page and its pipeline as a Space, and puts it on the Hub.
"""

import os
import re
import shlex
import traceback
import warnings
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from app_drawing import (
    EVERY,
    MOMENTS,
    NONE,
    ODE,
    OWN_GRID,
    Asked,
    Drawing,
    Sampler,
    draw,
    first_entries,
)
from huggingface_hub import SpaceCardData
from PIL import Image

from fm_diffusers import DIFFUSIONS, GRIDS, SOLVERS, FlowMatchingPipeline
from fm_diffusers.pipelines.cards import URL
from fm_diffusers.training.command_line import is_ours, parse, plain_errors
from fm_diffusers.training.folders import make

if TYPE_CHECKING:
    import gradio as gr

TITLE = "One noise, two samplers"
#: What the page calls the arguments that messages name.
LABELS = {
    "make it with a diffusion, diffusion=": "choose Noise on the way, ",
    "the scale of the diffusion": "the Strength of the noise",
    ", solver=": ", ",
}
#: Takes the place of pictures; an empty text would leave them.
NOTHING = "<div></div>"
#: Pixels below which a picture is small.
SMALL = 128
#: Where the pipeline of a Space is.
BESIDE = Path(__file__).with_name("pipeline")
#: What the README.md of a Space begins with.
MARK = f"---\ntitle: {TITLE}\nsdk: gradio\n"
STYLE = """
.gradio-container {max-width: 1240px !important; margin: auto}
.sheet {display: grid; gap: 6px; margin-bottom: 6px}
.sheet figure {margin: 0; text-align: center; font-size: 12px}
.sheet img {width: 100%; border-radius: 4px}
.sheet img.small {image-rendering: pixelated}
.refusal {padding: 10px 14px; border-left: 4px solid #dc2626; border-radius: 4px}
.fault:not(:has(.refusal)) {display: none}
.refusal {background: #fef2f2; color: #991b1b}
"""


@dataclass
class AppArguments:
    """Command line."""

    model: str = field(
        default=str(BESIDE) if BESIDE.is_dir() else "pretrained/mnist",
        metadata={"help": "A saved pipeline: a folder or a Hub id."},
    )
    space_dir: str | None = field(
        default=None, metadata={"help": "Write a Space to this folder, and show no page."}
    )


def sheet(images: Sequence[Image.Image], columns: str, names: Sequence[str] = ()) -> str:
    """Return pictures in rows as HTML, with names below them; small ones in large pixels."""
    cells = []
    for image, name in zip_longest(images, names, fillvalue=""):
        file, kind = BytesIO(), "small" if image.width < SMALL else "large"
        image.save(file, "PNG")
        data = b64encode(file.getvalue()).decode()
        picture = f'<img class="{kind}" alt="" src="data:image/png;base64,{data}">'
        cells.append(f"<figure>{picture}<figcaption>{name}</figcaption></figure>")
    style = f"grid-template-columns: repeat({columns})"
    return f'<div class="sheet" style="{style}">{"".join(cells)}</div>'


def shown(drawing: Drawing) -> str:
    """Return a drawing as HTML."""
    side = min(max(96, drawing.images[0].width), 256)
    return (
        sheet(drawing.images, f"auto-fill, minmax({side}px, 1fr)")
        + f"<p>Evaluations of the network for each image: <b>{drawing.evaluations}</b>. "
        + f"Time of all: <b>{drawing.seconds:.2f} s</b>.</p><br>"
        + sheet(drawing.states, f"{MOMENTS}, 1fr", [f"t = {t:.2f}" for t in drawing.times])
        + sheet(drawing.forecasts, f"{MOMENTS}, 1fr")
        + "<p>The first image on its way from noise, and what the network took it for.</p>"
    )


def refusal(error: ValueError) -> str:
    """Return an error as HTML by the labels of the page; after a traceback if it is a fault."""
    if not is_ours(error):
        traceback.print_exception(error)
    text = str(error)
    for pattern, words in LABELS.items():
        text = re.sub(pattern, words, text)
    return f'<p class="refusal" role="alert">{escape(text, quote=False)}</p>'


def page(pipe: FlowMatchingPipeline) -> "gr.Blocks":
    """Return the page: what is drawn, and a column for each of the two samplers."""
    import gradio as gr

    asked, samplers = first_entries(pipe)

    def fault(*shared: Any) -> str:
        try:
            Asked(*shared).arguments(pipe)
        except ValueError as error:
            return refusal(error)
        return NOTHING

    def drawn(*entries: Any) -> str:  # gradio runs one at a time, whose warnings and time it has
        asked, sampler = Asked(*entries[:4]), Sampler(*entries[4:])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                found = shown(draw(pipe, asked, sampler))
            except ValueError as error:
                # what is wrong for both columns is told above them
                found = NOTHING if fault(*entries[:4]) != NOTHING else refusal(error)
        kinds = UserWarning, RuntimeWarning
        for text in dict.fromkeys(str(w.message) for w in told if issubclass(w.category, kinds)):
            gr.Warning(escape(text, quote=False))
        return found

    def own_scale(name: str) -> Any:
        value = None if name == ODE else DIFFUSIONS[name].scale
        return gr.Number(value, visible=name != ODE)

    def entries_of(s: Sampler) -> list[Any]:
        with gr.Row():
            solver = gr.Dropdown([*SOLVERS], value=s.solver, label="Solver")
            grid = gr.Dropdown([OWN_GRID, *GRIDS], value=s.grid, label="Grid")
        with gr.Row():
            diffusion = gr.Dropdown(
                [ODE, *DIFFUSIONS], value=s.diffusion, label="Noise on the way", scale=2
            )
            scale = gr.Number(s.scale, label="Strength", min_width=90, visible=s.diffusion != ODE)
            steps = gr.Number(s.steps, label="Steps", min_width=90)
        diffusion.change(own_scale, diffusion, scale)
        return [solver, grid, steps, diffusion, scale]

    def condition_of() -> Any:
        if pipe.takes != "labels":
            return gr.Textbox(asked.condition, label="Prompt", visible=pipe.takes == "text")
        names = pipe.config.id2label or {}
        classes = [(names.get(i, str(i)), i) for i in range(pipe.num_classes)]
        rows = [EVERY, NONE, *classes]
        return gr.Dropdown(rows, value=EVERY, label="Class", allow_custom_value=True)

    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        gr.Markdown(
            f"# {TITLE}\nBoth columns draw with one network and begin at the same noise. An ODE "
            "follows the flow from there, an SDE puts fresh noise on the way; without guidance "
            f"their images have the same distribution. [fm_diffusers]({URL})"
        )
        with gr.Row(equal_height=True):
            shared = [
                condition_of(),
                gr.Number(asked.guidance_scale, label="Guidance scale", min_width=120),
                gr.Number(asked.number, label="Images", min_width=120),
                gr.Number(asked.seed, label="Seed", min_width=120),
            ]
            button = gr.Button("Draw", variant="primary", min_width=160, scale=0)
        gr.on([button.click, blocks.load], fault, shared, gr.HTML(elem_classes="fault"))
        with gr.Row():
            for name, sampler in samplers.items():
                with gr.Column():
                    gr.Markdown(f"## {name}")
                    entries = [*shared, *entries_of(sampler)]
                    gr.on([button.click, blocks.load], drawn, entries, gr.HTML(padding=False))
    return blocks


def space_folder(name: str) -> Path:
    """Make the folder of a Space, and return it.

    Raises:
        ValueError: for no name, a folder that cannot be written, or one that holds other files.
    """
    if not name.strip():
        raise ValueError("--space_dir is empty: name a folder, outputs/space for example")
    folder = Path(name)
    make(folder, "--space_dir")
    card = folder / "README.md"
    ours = card.is_file() and card.read_bytes().startswith(MARK.encode())
    if not ours and any(folder.iterdir()):
        raise ValueError(
            f"--space_dir {name} holds files, and is no Space that this script wrote: choose "
            "another folder, or empty it"
        )
    return folder


def write_space(pipe: FlowMatchingPipeline, folder: Path) -> None:
    """Write the page and its pipeline as a Space, which the Hub builds and shows."""
    gradio = {"sdk": "gradio", "sdk_version": version("gradio"), "app_file": "app.py"}
    about = SpaceCardData(title=TITLE, **gradio)
    # first, so that a folder that was not finished can be written again
    (folder / "README.md").write_text(f"---\n{about}\n---\n\nA page of [fm_diffusers]({URL}).\n")
    (folder / "requirements.txt").write_text(f"fm_diffusers @ git+{URL}\n")
    for name in ("app.py", "app_drawing.py"):
        (folder / name).write_bytes(Path(__file__).with_name(name).read_bytes())
    pipe.save_pretrained(folder / BESIDE.name)
    files = f"README.md, requirements.txt, app.py, app_drawing.py, {BESIDE.name}"
    print(f"wrote a Space to {folder}: {files}; put it on the Hub by")
    print(f"hf upload USER/NAME {shlex.quote(str(folder))} . --repo-type space")


def main(args: AppArguments) -> None:
    """Show the page, or write it down."""
    if find_spec("gradio") is None:
        raise ValueError("the page needs gradio, which is not installed: pip install '.[app]'")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")  # which gradio reads as it is imported
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(
            f"GRADIO_SERVER_PORT must be a whole number from 1 to 65535, got {port!r}: set "
            "another one, or unset it for 7860"
        )
    folder = None if args.space_dir is None else space_folder(args.space_dir)
    pipe = FlowMatchingPipeline.from_pretrained(args.model)
    if folder is not None:
        return write_space(pipe, folder)
    import gradio as gr

    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    look = {"theme": gr.themes.Soft(**fonts), "css": STYLE}
    page(pipe).launch(**look, footer_links=[], run_history=False)


if __name__ == "__main__":
    with plain_errors():
        main(parse(AppArguments))
