r"""Networks trained elsewhere: a project's convention is a row, and a scheduler's settings.

With :math:`x = \alpha_t z + \beta_t \varepsilon`, t = 0 noise and t = 1 data, shape `(batch,)`,
and :math:`\tau = 1 - t`:

================  =======================================  =======================================
from              is called as                             predicts
================  =======================================  =======================================
`from_sit`        `network(x, t, y=labels)`                dx/dt, the noise or the score
`from_repa`       `network(x, tau, y=labels)`              -dx/dt, which is eps - z if linear
`from_meanflow`   `network(x, tau, tau, y=labels)`         -dx/dt
`from_meta`       `network(x=x, t=t, label=labels)`        dx/dt, z or the noise
`from_torchcfm`   `network(t, x, y=labels)`                dx/dt
`from_edm`        `D(x, sigma, class_labels=rows)`         z; :math:`x = z + \sigma \varepsilon`
same, `raw`       `F(c_in x, c_noise, class_labels=rows)`  :math:`(z - c_{skip} x)/c_{out}`
================  =======================================  =======================================

A network may return its prediction alone, first in a tuple (REPA), or as `sample` in a dictionary
or an object; see `AdaptedNetwork`.

Each function returns the network as pipelines call a `UNet2DModel`, and the scheduler that reads
it; nothing is retrained::

    size = {"in_channels": 4, "sample_size": 32, "num_classes": 1000, "null_label": True}
    unet, scheduler = from_sit(sit, **size)
    pipe = FlowMatchingPipeline(unet, scheduler, null_label=1000)
    latents = pipe(class_labels=[207], guidance_scale=4.0, output_type="latent").images
    pipe.scheduler = GaussianFlowScheduler.from_config(scheduler.config, diffusion="memoryless")

What cannot be sampled as an SDE, because its noise was paired with the data, refuses a diffusion.

Guidance is `uncond + w (cond - uncond)` on all channels; Meta's w is one less, and SiT guides
three channels of four.

References: Ma et al., https://arxiv.org/abs/2401.08740 (SiT); Yu et al.,
https://arxiv.org/abs/2410.06940 (REPA); Geng et al., https://arxiv.org/abs/2505.13447 (MeanFlow);
Lipman et al., https://arxiv.org/abs/2412.06264 (Meta's flow_matching); Tong et al.,
https://arxiv.org/abs/2302.00482 (torchcfm); Karras et al., https://arxiv.org/abs/2206.00364 (EDM).
"""

from fm_diffusers.adapters.network import SIGNATURES, AdaptedNetwork
from fm_diffusers.adapters.projects import (
    META_PREDICTIONS,
    META_SCHEDULERS,
    REPA_PATHS,
    SIT_PATHS,
    SIT_PREDICTIONS,
    TORCHCFM_MATCHERS,
    from_edm,
    from_meanflow,
    from_meta,
    from_repa,
    from_sit,
    from_torchcfm,
)

__all__ = [
    "META_PREDICTIONS",
    "META_SCHEDULERS",
    "REPA_PATHS",
    "SIGNATURES",
    "SIT_PATHS",
    "SIT_PREDICTIONS",
    "TORCHCFM_MATCHERS",
    "AdaptedNetwork",
    "from_edm",
    "from_meanflow",
    "from_meta",
    "from_repa",
    "from_sit",
    "from_torchcfm",
]
