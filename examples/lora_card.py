"""What `train_lora.py` saves: the adapter alone, a picture, figures, and a card that says how."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData
from PIL import Image

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.pipelines.lora import lora_layers
from fm_diffusers.training.plugins import plugin_lines
from fm_diffusers.training.publishing import ASKED, conditioning, push

if TYPE_CHECKING:
    from train_lora import LoraArguments

CARD = """# {title}

LoRA weights for `{model}`, trained with `fm_diffusers` on `{dataset}`. The same noise without
them (upper half) and with them (lower half):

![samples](samples.png)

```python
from fm_diffusers import FlowMatchingPipeline
{plugins}
pipe = FlowMatchingPipeline.from_pretrained("{model}")
pipe.load_lora_weights("{title}")
images = pipe({asked}num_inference_steps=20).images
```

| | |
|---|---|
{table}

```
accelerate launch examples/train_lora.py {command}
```
"""


def publish_adapter(
    args: "LoraArguments",
    pipe: FlowMatchingPipeline,
    name: str,
    picture: Image.Image,
    figures: dict[str, Any],
    repo_id: str | None,
) -> None:
    """Save the adapter of a component with picture, figures and card, and push it to `repo_id`."""
    folder = Path(args.output_dir)
    pipe.save_lora_weights(folder, **lora_layers(**{name: pipe.network}))
    picture.save(folder / "samples.png")
    (folder / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    local = Path(args.model).exists()
    _, task, asked = ASKED[conditioning(pipe)]
    card = ModelCardData(
        library_name="diffusers",
        license=args.license,
        pipeline_tag=task,
        tags=["flow-matching", "fm_diffusers", "lora"],
        base_model=None if local else args.model,
        base_model_relation=None if local else "adapter",
    )
    text = CARD.format(
        title=repo_id or args.output_dir,
        model=Path(args.model).name if local and repo_id else args.model,
        dataset=data.name if (data := Path(args.dataset_name)).exists() else args.dataset_name,
        asked=asked,
        plugins=plugin_lines(figures),
        table="\n".join(f"| {key} | {value} |" for key, value in figures.items()),
        command=args.command(),
    )
    ModelCard(f"---\n{card.to_yaml()}\n---\n{text}").save(folder / "README.md")
    print(f"saved {folder}: {figures}")
    if repo_id is not None:
        push(folder, repo_id, f"Train for {figures['steps']} steps", args.hub_token)
