"""Diffusion models of pictures in the table of `tiny_pipelines`."""

import diffusers
from tiny_inputs import WIDTH, Row, half, make, noise, picture, size, table, text
from tiny_networks import plain_unet, simple_unet, vae
from tiny_stable_diffusion import sd, v_table


def clipped(name="DDPMScheduler", **kwargs):
    return getattr(diffusers, name)(**kwargs)


def deepfloyd():
    return clipped(
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
        variance_type="learned_range",
    )


def floyd(channels=3, **kwargs):
    words = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}
    return {"unet": simple_unet(in_channels=channels, out_channels=6, **words, **kwargs)}


def kandinsky(channels=4):
    blocks = {
        "block_out_channels": (32, 32),  # its norms have 32 groups
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    }
    return {
        "unet": simple_unet(
            in_channels=channels,
            out_channels=8,
            addition_embed_type="image",
            encoder_hid_dim_type="image_proj",
        ),
        "movq": make(
            "VQModel",
            **blocks,
            latent_channels=4,
            norm_num_groups=2,
            norm_type="spatial",
            num_vq_embeddings=12,
            vq_embed_dim=4,
        ),
    }


def embeddings():
    return {"image_embeds": noise(1, WIDTH), "negative_image_embeds": noise(1, WIDTH, seed=1)}


ATTENTION = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1}


def pixart():
    transformer = make(
        "PixArtTransformer2DModel",
        **ATTENTION,
        sample_size=8,
        cross_attention_dim=8,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    return {"transformer": transformer, "vae": vae()}


def dit():
    transformer = make(
        "DiTTransformer2DModel",
        **ATTENTION,
        out_channels=8,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    return {"transformer": transformer, "vae": vae()}


def hunyuan_dit():
    transformer = make(
        "HunyuanDiT2DModel",
        **ATTENTION | {"attention_head_dim": 8, "num_layers": 2},
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=WIDTH,
        text_len=TOKENS_DIT,
        text_len_t5=TOKENS_DIT,
        activation_fn="gelu-approximate",
    )
    return {"transformer": transformer, "vae": vae()}


TOKENS_DIT = 4


def two_texts():
    first = text(mask=True)
    return first | {f"{name}_2": value for name, value in first.items()}


DIFFUSION = {
    "ddpm": Row(
        "DDPMPipeline", clipped, None, lambda: {"unet": plain_unet()}, dict, bfloat16=False
    ),
    "ddim": Row(
        "DDIMPipeline",
        lambda: clipped("DDIMScheduler"),
        "ddim",
        lambda: {"unet": plain_unet()},
        dict,
        bfloat16=False,
    ),
    "if": Row("IFPipeline", deepfloyd, None, floyd, lambda: text() | size()),
    "if_img2img": Row(
        "IFImg2ImgPipeline", deepfloyd, None, floyd, lambda: text() | {"image": picture(32)}
    ),
    "if_inpaint": Row(
        "IFInpaintingPipeline",
        deepfloyd,
        None,
        floyd,
        lambda: text() | {"image": picture(32), "mask_image": half(32)},
    ),
    "if_superresolution": Row(
        "IFSuperResolutionPipeline",
        deepfloyd,
        None,
        lambda: floyd(6, class_embed_type="timestep") | {"image_noising_scheduler": clipped()},
        lambda: text() | size() | {"image": picture(8)},
    ),
    "kandinsky": Row(
        "KandinskyV22Pipeline", table, "ddim", kandinsky, lambda: embeddings() | size()
    ),
    "kandinsky_img2img": Row(
        "KandinskyV22Img2ImgPipeline",
        table,
        "ddim",
        kandinsky,
        lambda: embeddings() | size() | {"image": picture(), "strength": 0.6},
    ),
    "kandinsky_inpaint": Row(
        "KandinskyV22InpaintPipeline",
        table,
        "ddim",
        lambda: kandinsky(9),
        lambda: embeddings() | size() | {"image": picture(), "mask_image": half()},
    ),
    "pixart": Row(
        "PixArtAlphaPipeline",
        lambda: table("DPMSolverMultistepScheduler"),
        "dpm_solver++",
        pixart,
        lambda: (
            text(mask=True) | size() | {"use_resolution_binning": False, "negative_prompt": None}
        ),
    ),
    "pixart_sigma": Row(
        "PixArtSigmaPipeline",
        table,
        "ddim",
        pixart,
        lambda: (
            text(mask=True) | size() | {"use_resolution_binning": False, "negative_prompt": None}
        ),
    ),
    "dit": Row("DiTPipeline", table, "ddim", dit, lambda: {"class_labels": [1]}),
    "hunyuan_dit": Row(
        "HunyuanDiTPipeline",
        lambda: table("DDPMScheduler", prediction_type="v_prediction"),
        None,
        hunyuan_dit,
        lambda: two_texts() | size() | {"use_resolution_binning": False},
    ),
    "ldm_superresolution": Row(
        "LDMSuperResolutionPipeline",
        table,
        "ddim",
        lambda: {
            "unet": plain_unet(in_channels=6),
            "vqvae": make("VQModel", block_out_channels=(4,), norm_num_groups=2),
        },
        lambda: {"image": picture(32)},
        bfloat16=False,
    ),
    "marigold": Row(
        "MarigoldDepthPipeline",
        v_table,
        "ddim",
        lambda: sd(8) | {"prediction_type": "depth"},
        lambda: {"image": picture(), "processing_resolution": 0, "ensemble_size": 1},
        prepare=lambda pipe: setattr(pipe, "empty_text_embedding", noise(1, 2, WIDTH)),
    ),
}
