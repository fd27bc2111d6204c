"""The model card of what a script has trained, made from what is written beside the weights.

`training.json` is written by the script and says of which `kind` the card is, `evaluation.json` is
added by `examples/evaluate.py`. So the card of an evaluated model has the numbers that were
measured and no others.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fm_diffusers.files import read_json, reading
from fm_diffusers.pipelines.cards import URL, USAGE, listed, steps_shown
from fm_diffusers.training.plugins import plugin_lines

CARD = """# {title}

{said}{classes}
![samples]({picture})

{usage}
{evaluation}
## Training

| | |
|---|---|
{table}

```
{command}
```
"""
PIPELINE = """{told} images by flow matching, trained with [`fm_diffusers`]({url}) on `{dataset}`.
{drawn}.
"""
COUPLED = "Noise and data were coupled in the training, so it is sampled as an ODE"
BOTH = "One network, sampled as an ODE and as an SDE"
ADAPTER = """LoRA weights for `{model}`, trained with [`fm_diffusers`]({url}) on `{dataset}`. The
same noise without them and with them.{away}
"""
AWAY = """
`{model}` was a folder of the machine of the training: put it beside this one, or push it."""
AUTOENCODER = """An autoencoder of images, trained with [`fm_diffusers`]({url}) on `{dataset}`.
Images, and what comes back from their codes.
"""
DRAW = """from fm_diffusers import FlowMatchingPipeline
{plugins}
pipe = FlowMatchingPipeline.from_pretrained("{title}")
images = pipe({asked}, num_inference_steps={ode_steps}).images"""
DRAW_BOTH = """from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
{plugins}
pipe = FlowMatchingPipeline.from_pretrained("{title}")
ode = pipe({asked}, num_inference_steps={ode_steps}).images
pipe.scheduler = GaussianFlowScheduler.from_config(
    pipe.scheduler.config, diffusion="memoryless"
)
sde = pipe({asked}, num_inference_steps={sde_steps}).images"""
ADAPT = """from fm_diffusers import FlowMatchingPipeline
{plugins}
pipe = FlowMatchingPipeline.from_pretrained("{model}")
pipe.load_lora_weights("{title}")
images = pipe({asked}, num_inference_steps=20).images"""
ENCODE = """import torch
from diffusers import AutoencoderKL

vae = AutoencoderKL.from_pretrained("{title}")
images = torch.zeros(1, {shape})  # in [-1, 1]
with torch.no_grad():
    codes = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
    images = vae.decode(codes / vae.config.scaling_factor).sample"""
EVALUATION = """
## Evaluation

{num_samples:,} samples beside images of `{dataset}`; distances are between features of a
classifier of these, {floor}.

{table}
{bits}
![quality against evaluations](evaluation.png)
"""
#: What a pipeline is asked with: in words, the Hub's task, and what any of its kind can be asked.
CONDITIONED = {
    "prompt": ("Prompted", "text-to-image", '""'),
    "class": ("Class-conditional", "unconditional-image-generation", "0"),
    None: ("Unconditional", "unconditional-image-generation", "batch_size=4"),
}
#: What a record says elsewhere than in the table of the card.
HIDDEN = {
    "title",
    "kind",
    "repo_id",
    "dataset",
    "dataset_on_hub",
    "model",
    "model_on_hub",
    "conditioning",
    "asked",
    "num_classes",
    "id2label",
    "shape",
    "command",
}
#: Columns of `evaluation.json` and their names in the card.
FIGURES = {
    "frechet_distance": "Fréchet distance",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "classifier accuracy",
    "sliced_wasserstein": "sliced Wasserstein",
}


def write_card(folder: Path) -> None:
    """Write `README.md` from `training.json` and, where there is one, `evaluation.json`.

    Raises:
        ValueError: if these are not what the scripts write.
    """
    record = read_json(folder / "training.json")
    evaluation = folder / "evaluation.json"
    measured = read_json(evaluation) if evaluation.exists() else None
    with reading(f"{folder / 'training.json'} or {evaluation.name}"):
        card_of(record, measured).save(folder / "README.md")


def card_of(record: dict[str, Any], measured: dict[str, Any] | None) -> ModelCard:
    """Return the card of a record, and of what was measured."""
    data, parts = KINDS[record.get("kind", "pipeline")](record)
    rows = {name: value for name, value in record.items() if name not in HIDDEN}
    text = CARD.format(
        **{"title": record["title"], "classes": "", "picture": "samples.png"} | parts,
        usage=USAGE.format(code=parts["code"]),
        evaluation=evaluation_section(measured) if measured else "",
        table="\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in rows.items()),
        command=record["command"],
    )
    card = ModelCardData(
        **data,
        library_name="diffusers",
        license=record["license"],
        datasets=[record["dataset"]] if record["dataset_on_hub"] else None,
        model_name=record["title"],
        eval_results=results(measured) if measured else None,
    )
    return ModelCard(f"---\n{card.to_yaml()}\n---\n{text}")


def fillings(record: dict[str, Any]) -> dict[str, Any]:
    """Return what the templates of all kinds are filled with."""
    asked = CONDITIONED[record.get("conditioning")][2]
    return {"asked": asked} | record | {"url": URL, "plugins": plugin_lines(record)}


def of_pipeline(record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the metadata and the text of a pipeline's card."""
    told, task, _ = CONDITIONED[record["conditioning"]]
    stochastic = record.get("coupling", "independent") == "independent"
    said = fillings(record) | {"told": told, "drawn": BOTH if stochastic else COUPLED}
    said |= dict(zip(("ode_steps", "sde_steps"), steps_shown(record.get("sampler")), strict=True))
    tags = ["flow-matching", "fm_diffusers", record["path"]]
    return {"pipeline_tag": task, "tags": tags}, {
        "said": PIPELINE.format(**said),
        "classes": listed(record.get("id2label"), record.get("num_classes", 0)),
        "code": (DRAW_BOTH if stochastic else DRAW).format(**said),
    }


def of_adapter(record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the metadata and the text of the card of a LoRA."""
    away = "" if record["model_on_hub"] else AWAY.format(**record)
    said, task = fillings(record) | {"away": away}, CONDITIONED[record["conditioning"]][1]
    base = {"base_model": record["model"], "base_model_relation": "adapter"}
    data = {"pipeline_tag": task, "tags": ["flow-matching", "fm_diffusers", "lora"]}
    return data | (base if record["model_on_hub"] else {}), {
        "said": ADAPTER.format(**said),
        "classes": listed(record.get("id2label"), record.get("num_classes", 0)),
        "code": ADAPT.format(**said),
    }


def of_autoencoder(record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the metadata and the text of the card of an autoencoder."""
    said = fillings(record) | {"shape": ", ".join(map(str, record["shape"]))}
    return {"tags": ["fm_diffusers", "autoencoder"]}, {
        "said": AUTOENCODER.format(**said),
        "picture": "reconstructions.png",
        "code": ENCODE.format(**said),
    }


#: What is trained, and its part of the card.
KINDS = {"pipeline": of_pipeline, "adapter": of_adapter, "autoencoder": of_autoencoder}


def process(row: dict[str, Any]) -> str:
    """Return what has drawn the samples of a row, beside the solver."""
    return "ODE" if row["diffusion"] is None else f"SDE ({row['diffusion']})"


def evaluation_section(measured: dict[str, Any]) -> str:
    """Return the table of what `examples/evaluate.py` measured."""
    columns = [name for name in FIGURES if measured["rows"][0].get(name) is not None]
    lines = [
        "| solver | process | evaluations | guidance | "
        + " | ".join(FIGURES[c] for c in columns)
        + " |",
        "|---" * (4 + len(columns)) + "|",
    ]
    for row in measured["rows"]:
        told = f"{row['evaluations']} | {row['guidance_scale']:g}"
        values = " | ".join(f"{row[c]:.3g}" for c in columns)
        lines.append(f"| {row['solver']} | {process(row)} | {told} | {values} |")
    floor = ", ".join(
        f"{FIGURES[name]} {value:.3g}"
        for name, value in measured["real"].items()
        if name in FIGURES and value is not None
    )
    return EVALUATION.format(
        dataset=measured["dataset"],
        num_samples=measured["num_samples"],
        floor=f"of real images {floor}",
        table="\n".join(lines),
        bits=bits_line(measured.get("bits_per_dimension")),
    )


def bits_line(bits: dict[str, Any] | None) -> str:
    """Return what was measured of the likelihood, "" if nothing was."""
    if not bits:
        return ""
    sampler = f", by {bits['sampler']}" if "sampler" in bits else ""
    return (
        f"\nBits per dimension of {bits['num_images']} further real images{sampler}: "
        f"{bits['value']:.3f}, with a standard error of {bits['standard_error']:.3f}.\n"
    )


def results(measured: dict[str, Any]) -> list[EvalResult]:
    """Return the figures of the best row, and the likelihood, for the metadata of the card."""
    best = min(measured["rows"], key=lambda row: row["frechet_distance"])
    sampler = (
        f"{best['solver']}, {process(best)}, {best['evaluations']} evaluations, guidance "
        f"{best['guidance_scale']:g}"
    )
    found = [
        (name, f"{title} ({sampler})", best[name])
        for name, title in FIGURES.items()
        if best.get(name) is not None
    ]
    if bits := measured.get("bits_per_dimension"):
        by = bits.get("sampler", "ODE")
        found.append(("bits_per_dimension", f"bits per dimension ({by})", bits["value"]))
    return [
        EvalResult(
            task_type="image-generation",
            dataset_type=measured["dataset"],
            dataset_name=measured["dataset"],
            metric_type=name,
            metric_name=title,
            metric_value=round(value, 4),
        )
        for name, title, value in found
    ]
