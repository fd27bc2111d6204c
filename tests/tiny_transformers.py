"""More flow models of pictures in the table of `tiny_pipelines`."""

import diffusers
import torch
from packaging.version import Version
from tiny_inputs import TOKENS, WIDTH, Row, dynamic, flow, half, make, picture, size, static, text
from tiny_networks import vae, video_vae

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}


def network(name, autoencoder, **kwargs):
    return {"transformer": make(name, **kwargs), "vae": autoencoder}


def flux2():
    transformer = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "axes_dims_rope": (4, 4, 4, 4),
    }
    autoencoder = make(
        "AutoencoderKLFlux2",
        block_out_channels=(4,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        latent_channels=4,
        norm_num_groups=2,
        layers_per_block=1,
    )
    return network("Flux2Transformer2DModel", autoencoder, **transformer)


def chroma():
    return network(
        "ChromaTransformer2DModel",
        vae(4, 1, shift_factor=0.1),
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=16,
        approximator_layers=1,
        approximator_num_channels=16,
    )


def qwen():
    return network(
        "QwenImageTransformer2DModel",
        video_vae("QwenImage"),
        **HEADS | {"attention_head_dim": 16},
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )


def masked(**kwargs):
    """Return embeddings with a mask for each, as Qwen-Image names them."""
    found = text()
    masks = {f"{name}_mask": torch.ones(1, TOKENS, dtype=torch.long) for name in found}
    return found | masks | size() | kwargs


def z_image():
    return network(
        "ZImageTransformer2DModel",
        vae(16, shift_factor=0.1),
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )


def floats(found):
    return {name: value.float() for name, value in found.items()}


def words():
    """Return embeddings as lists, one for each prompt."""
    return {name: [value[0]] for name, value in text().items()}


def lumina2():
    return network(
        "Lumina2Transformer2DModel",
        vae(4, shift_factor=0.1),
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128),
        cap_feat_dim=WIDTH,
    )


def lumina():
    return network(
        "LuminaNextDiT2DModel",
        vae(4, shift_factor=0.1),
        sample_size=4,
        hidden_size=24,
        num_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=24,
    )


SANA = {
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 4,
    "cross_attention_dim": 8,
    "caption_channels": WIDTH,
}


def sana():
    autoencoder = make(
        "AutoencoderDC",
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 2,
        decoder_block_types=("ResBlock",) * 2,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    )
    shape = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "sample_size": 8}
    return network(
        "SanaTransformer2DModel", autoencoder, in_channels=4, out_channels=4, **shape | SANA
    )


def aura():
    return network(
        "AuraFlowTransformer2DModel",
        vae(),
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )


def cogview4():
    return network(
        "CogView4Transformer2DModel",
        vae(),
        **HEADS,
        in_channels=4,
        out_channels=4,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(8, 8),
    )


def cogview3():
    return network(
        "CogView3PlusTransformer2DModel",
        vae(),
        **HEADS,
        in_channels=4,
        out_channels=4,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
    )


def unbinned(mask=True):
    return text(mask=mask) | size() | {"use_resolution_binning": False, "negative_prompt": None}


TRANSFORMERS = {
    "flux2": Row("Flux2Pipeline", dynamic, "euler", flux2, lambda: text(negative=False) | size(8)),
    "chroma": Row(
        "ChromaPipeline", flow, "euler", chroma, lambda: floats(text(mask=True)) | size(8)
    ),
    "chroma_img2img": Row(
        "ChromaImg2ImgPipeline",
        flow,
        "euler",
        chroma,
        lambda: text(mask=True) | size(8) | {"image": picture(8)},
    ),
    "qwen": Row(
        "QwenImagePipeline",
        lambda: dynamic(shift_terminal=0.02, base_shift=0.5, max_shift=0.9),
        "euler",
        qwen,
        masked,
    ),
    "qwen_img2img": Row(
        "QwenImageImg2ImgPipeline", dynamic, "euler", qwen, lambda: masked(image=picture())
    ),
    "qwen_inpaint": Row(
        "QwenImageInpaintPipeline",
        dynamic,
        "euler",
        qwen,
        lambda: masked(image=picture(), mask_image=half()),
    ),
    "z_image": Row("ZImagePipeline", static, "euler", z_image, lambda: words() | size()),
    "z_image_img2img": Row(
        "ZImageImg2ImgPipeline",
        static,
        "euler",
        z_image,
        lambda: words() | size() | {"image": picture()},
        bfloat16=False,
    ),
    "lumina2": Row("Lumina2Pipeline", dynamic, "euler", lumina2, lambda: text(mask=True) | size()),
    "lumina": Row("LuminaPipeline", flow, "euler", lumina, lambda: text(24, mask=True) | size()),
    "sana": Row("SanaPipeline", static, "euler", sana, lambda: unbinned() | size(32)),
    "aura": Row(
        "AuraFlowPipeline",
        lambda: flow(shift=1.73),
        "euler",
        aura,
        lambda: text(mask=True) | size(),
    ),
    "cogview4": Row(
        "CogView4Pipeline",
        lambda: dynamic(base_shift=0.25, max_shift=0.75, time_shift_type="linear"),
        # below 0.42 their scheduler passes over the timesteps that this pipeline gives
        "euler" if Version(diffusers.__version__) >= Version("0.42") else None,
        cogview4,
        lambda: text(tokens=16) | size(),
    ),
    "cogview3": Row(
        "CogView3PlusPipeline",
        lambda: diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
        ),
        "ddim",
        cogview3,
        lambda: text(tokens=224) | size(),
    ),
}
