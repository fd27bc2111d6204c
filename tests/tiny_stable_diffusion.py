"""Stable Diffusion in the table of `tiny_pipelines`."""

from tiny_inputs import SIZE, Row, half, make, noise, picture, size, table, text
from tiny_networks import SDXL, controlnet, unet, vae


def sd(channels=4, **kwargs):
    return {"unet": unet(in_channels=channels, **kwargs), "vae": vae()}


def sdxl(channels=4):
    return sd(channels, **SDXL)


def adapter(**kwargs):
    return make("T2IAdapter", channels=[4, 8], num_res_blocks=1, downscale_factor=2, **kwargs)


#: Blocks of which the last one only keeps the size, as adapters expect it.
LATE_DOWN = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def v_table():
    return table(prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=0)


def pndm():
    return table("PNDMScheduler", skip_prk_steps=True)


def euler():
    return table("EulerDiscreteScheduler", timestep_spacing="leading")


STABLE_DIFFUSION = {
    "sd": Row("StableDiffusionPipeline", table, "ddim", sd, lambda: text() | size()),
    "sd_v": Row("StableDiffusionPipeline", v_table, "ddim", sd, lambda: text() | size()),
    "sd_pndm": Row("StableDiffusionPipeline", pndm, None, sd, lambda: text() | size()),
    "sd_img2img": Row(
        "StableDiffusionImg2ImgPipeline", table, "ddim", sd, lambda: text() | {"image": picture()}
    ),
    "sd_inpaint": Row(
        "StableDiffusionInpaintPipeline",
        table,
        "ddim",
        sd,
        lambda: text() | size() | {"image": picture(), "mask_image": half(), "strength": 0.75},
    ),
    "sd_inpaint_9": Row(
        "StableDiffusionInpaintPipeline",
        table,
        "ddim",
        lambda: sd(9),
        lambda: text() | size() | {"image": picture(), "mask_image": half()},
    ),
    "sd_controlnet": Row(
        "StableDiffusionControlNetPipeline",
        table,
        "ddim",
        lambda: sd() | {"controlnet": controlnet()},
        lambda: text() | {"image": picture()},
    ),
    "sd_controlnet_img2img": Row(
        "StableDiffusionControlNetImg2ImgPipeline",
        table,
        "ddim",
        lambda: sd() | {"controlnet": controlnet()},
        lambda: text() | {"image": picture(), "control_image": picture()},
    ),
    "sd_controlnet_inpaint": Row(
        "StableDiffusionControlNetInpaintPipeline",
        table,
        "ddim",
        lambda: sd() | {"controlnet": controlnet()},
        lambda: text() | {"image": picture(), "control_image": picture(), "mask_image": half()},
    ),
    "sd_pix2pix": Row(
        "StableDiffusionInstructPix2PixPipeline",
        table,
        "ddim",
        lambda: sd(8),
        lambda: text() | {"image": picture()},
    ),
    "sd_depth": Row(
        "StableDiffusionDepth2ImgPipeline",
        v_table,
        "ddim",
        lambda: sd(5),
        lambda: text() | {"image": picture(), "depth_map": noise(1, SIZE, SIZE)},
    ),
    "sd_upscale": Row(
        "StableDiffusionUpscalePipeline",
        v_table,
        "ddim",
        lambda: sd(7, num_class_embeds=1000) | {"low_res_scheduler": table("DDPMScheduler")},
        lambda: text() | {"image": picture()},
    ),
    "sd_adapter": Row(
        "StableDiffusionAdapterPipeline",
        table,
        "ddim",
        lambda: sd(**LATE_DOWN) | {"adapter": adapter()},
        lambda: text() | {"image": picture()},
    ),
    "sd_pag": Row(
        "StableDiffusionPAGPipeline",
        table,
        "ddim",
        sd,
        lambda: text() | size() | {"pag_scale": 2.0},
    ),
    "sdxl": Row(
        "StableDiffusionXLPipeline", euler, "ddim", sdxl, lambda: text(pooled=True) | size()
    ),
    "sdxl_end": Row(
        "StableDiffusionXLPipeline",
        table,
        "ddim",
        sdxl,
        lambda: text(pooled=True) | size() | {"denoising_end": 0.6},
    ),
    "sdxl_img2img": Row(
        "StableDiffusionXLImg2ImgPipeline",
        euler,
        "ddim",
        sdxl,
        lambda: text(pooled=True) | {"image": picture(), "strength": 0.6},
    ),
    "sdxl_start": Row(
        "StableDiffusionXLImg2ImgPipeline",
        table,
        "ddim",
        sdxl,
        lambda: text(pooled=True) | {"image": noise(1, 4, 8, 8), "denoising_start": 0.6},
    ),
    "sdxl_inpaint": Row(
        "StableDiffusionXLInpaintPipeline",
        euler,
        "ddim",
        sdxl,
        lambda: text(pooled=True) | size() | {"image": picture(), "mask_image": half()},
    ),
    "sdxl_controlnet": Row(
        "StableDiffusionXLControlNetPipeline",
        euler,
        "ddim",
        lambda: sdxl() | {"controlnet": controlnet(**SDXL)},
        lambda: text(pooled=True) | {"image": picture()},
    ),
    "sdxl_controlnet_img2img": Row(
        "StableDiffusionXLControlNetImg2ImgPipeline",
        table,
        "ddim",
        lambda: sdxl() | {"controlnet": controlnet(**SDXL)},
        lambda: text(pooled=True) | {"image": picture(), "control_image": picture()},
    ),
    "sdxl_controlnet_inpaint": Row(
        "StableDiffusionXLControlNetInpaintPipeline",
        table,
        "ddim",
        lambda: sdxl() | {"controlnet": controlnet(**SDXL)},
        lambda: (
            text(pooled=True)
            | {"image": picture(), "control_image": picture(), "mask_image": half()}
        ),
    ),
    "sdxl_adapter": Row(
        "StableDiffusionXLAdapterPipeline",
        table,
        "ddim",
        lambda: sd(**SDXL, **LATE_DOWN) | {"adapter": adapter()},
        lambda: text(pooled=True) | size() | {"image": picture()},
    ),
    "sdxl_pag": Row(
        "StableDiffusionXLPAGPipeline",
        table,
        "ddim",
        sdxl,
        lambda: text(pooled=True) | size() | {"pag_scale": 2.0},
    ),
    "sdxl_pix2pix": Row(
        "StableDiffusionXLInstructPix2PixPipeline",
        table,
        "ddim",
        lambda: sdxl(8),
        lambda: text(pooled=True) | size() | {"image": picture()},
    ),
}
