"""Diffusers' pipelines with random weights of a few kilobytes: one row of a table each.

Text encoders are None and prompts are embeddings.
"""

import diffusers
import torch
from tiny_diffusion import DIFFUSION
from tiny_flow import FLOW
from tiny_inputs import given
from tiny_stable_diffusion import STABLE_DIFFUSION
from tiny_transformers import TRANSFORMERS
from tiny_video import VIDEO
from tiny_video_diffusion import SOUND, VIDEO_DIFFUSION

PIPELINES = STABLE_DIFFUSION | DIFFUSION | FLOW | TRANSFORMERS | VIDEO | VIDEO_DIFFUSION | SOUND


def build(name, dtype=torch.float32):
    """Return the pipeline of a row, and what it is called with, in this precision."""
    row = PIPELINES[name]
    components = row.components() | {"scheduler": row.scheduler()}
    pipe = getattr(diffusers, row.pipeline)(**given(row.pipeline, **components)).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    row.prepare(pipe)
    return pipe, {
        k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in row.arguments().items()
    }
