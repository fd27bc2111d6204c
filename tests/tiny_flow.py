"""Flow models of pictures in the table of `tiny_pipelines`."""

import torch
from tiny_inputs import (
    SIZE,
    WIDTH,
    Row,
    dynamic,
    flow,
    half,
    make,
    noise,
    picture,
    size,
    static,
    text,
)
from tiny_networks import vae

FLUX = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (4, 4, 8),
}
POOLED = {"pooled_projection_dim": WIDTH}


def flux(channels=16, **kwargs):
    out = {"out_channels": 16} if channels != 16 else {}
    shape = FLUX | POOLED | {"in_channels": channels} | out | kwargs
    return {"transformer": make("FluxTransformer2DModel", **shape), "vae": flat_vae()}


def flat_vae():
    """Return an autoencoder that leaves pictures as large as they are."""
    return vae(4, 1, shift_factor=0.1)


def flux_text(**kwargs):
    return text(pooled=True, negative=False) | size(8) | kwargs


SD3 = {
    "sample_size": 8,
    "in_channels": 16,
    "num_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "caption_projection_dim": 16,
    "pooled_projection_dim": WIDTH,
}


def sd3(**kwargs):
    transformer = make("SD3Transformer2DModel", **SD3)
    return {"transformer": transformer, "vae": vae(16, shift_factor=0.1)} | kwargs


def sd3_controlnet(**kwargs):
    return make("SD3ControlNetModel", **SD3, **kwargs)


def wide(**kwargs):
    return text(pooled=True) | size() | kwargs


FLOW = {
    "sd3": Row("StableDiffusion3Pipeline", static, "euler", sd3, wide),
    "sd3_img2img": Row(
        "StableDiffusion3Img2ImgPipeline", static, "euler", sd3, lambda: wide(image=picture())
    ),
    "sd3_inpaint": Row(
        "StableDiffusion3InpaintPipeline",
        static,
        "euler",
        sd3,
        lambda: wide(image=picture(), mask_image=half()),
    ),
    "sd3_controlnet": Row(
        "StableDiffusion3ControlNetPipeline",
        static,
        "euler",
        lambda: sd3(controlnet=sd3_controlnet()),
        lambda: wide(control_image=picture()),
    ),
    "flux": Row("FluxPipeline", dynamic, "euler", flux, flux_text),
    "flux_static": Row("FluxPipeline", flow, "euler", flux, flux_text),
    "flux_img2img": Row(
        "FluxImg2ImgPipeline", dynamic, "euler", flux, lambda: flux_text(image=picture(8))
    ),
    "flux_inpaint": Row(
        "FluxInpaintPipeline",
        dynamic,
        "euler",
        flux,
        lambda: flux_text(image=picture(8), mask_image=half(8)),
    ),
    "flux_control": Row(
        "FluxControlPipeline",
        dynamic,
        "euler",
        lambda: flux(32),
        lambda: flux_text(control_image=picture(8)),
    ),
    "flux_controlnet": Row(
        "FluxControlNetPipeline",
        dynamic,
        "euler",
        lambda: flux() | {"controlnet": make("FluxControlNetModel", **FLUX | POOLED)},
        lambda: flux_text(control_image=picture(8)),
    ),
    "flux_fill": Row(
        "FluxFillPipeline",
        dynamic,
        "euler",
        lambda: flux(36),
        lambda: flux_text(image=picture(8), mask_image=half(8)),
    ),
    "flux_kontext": Row(
        "FluxKontextPipeline",
        dynamic,
        "euler",
        flux,
        lambda: flux_text(image=picture(8), max_area=64, _auto_resize=False),
    ),
    "flux_control_img2img": Row(
        "FluxControlImg2ImgPipeline",
        dynamic,
        "euler",
        lambda: flux(32),
        lambda: flux_text(image=picture(8), control_image=picture(8)),
    ),
    "flux_control_inpaint": Row(
        "FluxControlInpaintPipeline",
        dynamic,
        "euler",
        lambda: flux(32),
        lambda: flux_text(image=picture(8), control_image=picture(8), mask_image=half(8)),
    ),
    "flux_controlnet_img2img": Row(
        "FluxControlNetImg2ImgPipeline",
        dynamic,
        "euler",
        lambda: flux() | {"controlnet": make("FluxControlNetModel", **FLUX | POOLED)},
        lambda: flux_text(image=picture(8), control_image=picture(8)),
    ),
    "sd3_pag": Row(
        "StableDiffusion3PAGPipeline",
        static,
        "euler",
        lambda: sd3(pag_applied_layers="blocks.0"),
        lambda: wide(pag_scale=2.0),
    ),
    "sd3_controlnet_inpaint": Row(
        "StableDiffusion3ControlNetInpaintingPipeline",
        static,
        "euler",
        lambda: sd3(controlnet=sd3_controlnet(extra_conditioning_channels=1)),
        lambda: wide(
            control_image=noise(1, 3, SIZE, SIZE), control_mask=torch.ones(1, 1, SIZE, SIZE)
        ),
    ),
    "prx": Row(
        "PRXPipeline",
        static,
        "euler",
        lambda: {
            "transformer": make(
                "PRXTransformer2DModel",
                in_channels=4,
                context_in_dim=WIDTH,
                hidden_size=16,
                num_heads=2,
                depth=1,
                axes_dim=[4, 4],
                bottleneck_size=8,
            ),
            "vae": vae(shift_factor=0.1),
        },
        lambda: text(mask=True) | size() | {"use_resolution_binning": False},
    ),
    "bria": Row(
        "BriaPipeline",
        static,
        "euler",
        lambda: {
            "transformer": make("BriaTransformer2DModel", **FLUX),
            "vae": vae(4, 4, shift_factor=0.0),
        },
        lambda: text() | size(32),
    ),
}
