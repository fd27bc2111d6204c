"""Flow models of pictures in the table of `tiny_pipelines`."""

from tiny_inputs import WIDTH, Row, dynamic, flow, half, make, picture, size, static, text
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


def sd3_controlnet():
    return make("SD3ControlNetModel", **SD3)


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
}
