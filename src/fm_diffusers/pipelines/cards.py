"""What the card of a pipeline says: how to install the package, and code that draws with it.

The code is about the pipeline: labels that its network has, by name where they have names, prompts
for a network that takes text, a number of images for one that is unconditional.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from fm_diffusers.flow_map_networks import distilled_guidance
from fm_diffusers.pipelines.networks import text_width

#: Where the package is; `setup.cfg` has it too.
URL = "https://github.com/fm-diffusers/fm_diffusers"
INSTALL = f'pip install "fm_diffusers @ git+{URL}"'
#: How many conditions an example asks for, and how many names a card lists.
SHOWN, LISTED = 4, 100
CARD = """---
library_name: diffusers
tags:
- flow-matching
- fm_diffusers
---
# {title}

{classes}
{usage}
"""
#: How to install the package, and code that runs with it.
USAGE = f"""```bash
{INSTALL}
```

```python
{{code}}
```"""


def named(values: Iterable[Any], id2label: Mapping[int, str] | None) -> list[Any]:
    """Return prompts and classes, the latter by name where they are numbers that have one.

    Example:
        >>> named([0, "circle", 2], {0: "circle", 1: "square"})
        ['circle', 'circle', 2]
    """
    return [v if isinstance(v, str) else (id2label or {}).get(v, v) for v in values]


def example(
    asked: Mapping[str, Any], id2label: Mapping[int, str] | None = None, number: int = SHOWN
) -> str:
    """Return the code of the arguments of a call that asks for some of the same.

    Args:
        asked: `class_labels`, `prompt` or `batch_size`.
        id2label: names of classes, by which they are asked for.
        number: how many are asked for, at most.

    Example:
        >>> example({"class_labels": [0, 0, 2, 1]}, {0: "circle", 1: "square"})
        '["circle", 2, "square"]'
        >>> example({"prompt": ["a cat", "a dog"]}), example({"batch_size": 40})
        ('["a cat", "a dog"]', 'batch_size=4')
    """
    values = asked.get("class_labels", asked.get("prompt"))
    if values is None:
        return f"batch_size={min(number, asked.get('batch_size', number))}"
    distinct = [*dict.fromkeys(named(values, id2label))]
    return json.dumps(distinct[:number], ensure_ascii=False)


def chosen_scale(network: nn.Module) -> str:
    """Return the code of a guidance scale, the highest that a network is told; of others ""."""
    learned = distilled_guidance(network)
    return f", guidance_scale={learned[1]}" if isinstance(learned, list | tuple) else ""


def steps_shown(sampler: str | None) -> tuple[int, int]:
    """Return the numbers of steps of the ODE and of the SDE that show what a sampler does."""
    return (1, 4) if sampler == "flow_map" else (20, 50)


def anything(pipe: Any) -> str:
    """Return the code of arguments that any pipeline of its kind can be called with."""
    if pipe.takes == "text":
        if pipe.text_encoder is not None:
            return '"a picture"'
        return f"prompt_embeds=torch.zeros(1, 1, {text_width(pipe.network)})"
    asked = {"class_labels": range(pipe.num_classes)} if pipe.num_classes else {}
    return example(asked, pipe.config.id2label)


def listed(id2label: Mapping[Any, str] | None, num_classes: int) -> str:
    """Return a line about the classes, empty without classes.

    Example:
        >>> listed({0: "circle", 1: "square"}, 2)
        'Classes, to be asked for by name or by number: 0 circle, 1 square.\\n'
    """
    if not num_classes:
        return ""
    if not id2label or all(str(number) == name for number, name in id2label.items()):
        return f"Classes have no names, but the numbers from 0 to {num_classes - 1}.\n"
    rows = [f"{number} {name}" for number, name in id2label.items()]
    more = f", and {len(rows) - LISTED} more in `pipe.labels`" if rows[LISTED:] else ""
    return f"Classes, to be asked for by name or by number: {', '.join(rows[:LISTED])}{more}.\n"


def card(pipe: Any, repo_id: str) -> str:
    """Return the card of a pipeline that no script has trained."""
    asked = anything(pipe)
    steps = steps_shown(pipe.scheduler.config.get("solver"))[0]
    said = f"{asked}{chosen_scale(pipe.network)}, num_inference_steps={steps}"
    code = [
        "from fm_diffusers import FlowMatchingPipeline\n",
        f'pipe = FlowMatchingPipeline.from_pretrained("{repo_id}")',
        f"images = pipe({said}).images",
    ]
    return CARD.format(
        title=repo_id,
        classes=listed(pipe.config.id2label, pipe.num_classes),
        usage=USAGE.format(code="\n".join(["import torch\n"] * ("torch." in asked) + code)),
    )
