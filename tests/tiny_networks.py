"""Networks of a few kilobytes for `tiny_pipelines`."""

from tiny_inputs import SIZE, WIDTH, make

TWO_BLOCKS = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2}


def unet(**kwargs):
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    attention = {"cross_attention_dim": WIDTH, "attention_head_dim": 2, "sample_size": SIZE // 2}
    return make("UNet2DConditionModel", **TWO_BLOCKS | blocks | attention | kwargs)


def simple_unet(**kwargs):
    """Return the network of DeepFloyd and Kandinsky, which learns a variance too."""
    return unet(
        **{
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "resnet_time_scale_shift": "scale_shift",
            "encoder_hid_dim": WIDTH,
        }
        | kwargs
    )


#: What SDXL networks are told about the size of the picture.
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + WIDTH,
}


def plain_unet(**kwargs):
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return make("UNet2DModel", sample_size=SIZE // 2, **TWO_BLOCKS | blocks | kwargs)


def controlnet(**kwargs):
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "conditioning_embedding_out_channels": (2, 4),
    }
    return make("ControlNetModel", **TWO_BLOCKS | blocks | kwargs)


def vae(channels=4, blocks=2, **kwargs):
    """Return an autoencoder that shrinks pictures by 2^(blocks - 1)."""
    return make(
        "AutoencoderKL",
        latent_channels=channels,
        block_out_channels=(4,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        norm_num_groups=2,
        sample_size=SIZE,
        **kwargs,
    )


def video_vae(name, **kwargs):
    """Return an autoencoder of videos by the end of its name."""
    return make(f"AutoencoderKL{name}", **VIDEO_VAES[name] | kwargs)


FOUR = (4, 4, 4, 4)
VIDEO_VAES = {
    "Wan": {"base_dim": 3, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    "QwenImage": {"base_dim": 3, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    "LTXVideo": {
        "latent_channels": 8,
        "block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (8,) * 4,
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 5,
        "spatio_temporal_scaling": (True, True, False, False),
        "decoder_spatio_temporal_scaling": (True, True, False, False),
        "patch_size": 1,
    },
    "HunyuanVideo": {
        "latent_channels": 4,
        "block_out_channels": FOUR,
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    "Mochi": {
        "encoder_block_out_channels": (32,) * 4,
        "decoder_block_out_channels": (32,) * 4,
        "layers_per_block": (1,) * 5,
    },
    "CogVideoX": {
        "latent_channels": 4,
        "block_out_channels": FOUR,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "down_block_types": ("CogVideoXDownBlock3D",) * 4,
        "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    },
    "Allegro": {"block_out_channels": FOUR, "layers_per_block": 1, "norm_num_groups": 2},
    "Cosmos": {
        "latent_channels": 4,
        "encoder_block_out_channels": (8,) * 4,
        "decode_block_out_channels": (8,) * 4,
        "attention_resolutions": (8,),
        "resolution": 64,
        "num_layers": 1,
        "spatial_compression_ratio": 4,
        "temporal_compression_ratio": 4,
    },
    "TemporalDecoder": {
        "block_out_channels": (32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
    },
}
