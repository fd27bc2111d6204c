"""Flow models of video in the table of `tiny_pipelines`."""

import diffusers
from tiny_inputs import (
    SIZE,
    TOKENS,
    WIDTH,
    Row,
    dynamic,
    flow,
    picture,
    size,
    static,
    text,
    unipc,
    video,
)
from tiny_networks import video_vae
from tiny_transformers import HEADS, network


def wan(channels=16, **kwargs):
    return network(
        "WanTransformer3DModel",
        video_vae("Wan"),
        **HEADS | {"attention_head_dim": 12},
        in_channels=channels,
        text_dim=WIDTH,
        freq_dim=8,
        ffn_dim=16,
        rope_max_seq_len=32,
        **kwargs,
    )


def clip(frames=5, width=SIZE, **kwargs):
    return text() | size(width) | {"num_frames": frames} | kwargs


def ltx():
    return network(
        "LTXVideoTransformer3DModel",
        video_vae("LTXVideo"),
        **HEADS,
        in_channels=8,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
    )


def ltx_shift():
    return dynamic(base_image_seq_len=1024, base_shift=0.95, max_shift=2.05, shift_terminal=0.1)


def ltx_clip(**kwargs):
    return clip(9, 32) | text(mask=True) | kwargs


def hunyuan():
    return network(
        "HunyuanVideoTransformer3DModel",
        video_vae("HunyuanVideo"),
        **HEADS | {"attention_head_dim": 10},
        in_channels=4,
        out_channels=4,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 4, 4),
    )


def mochi():
    return network(
        "MochiTransformer3DModel",
        video_vae("Mochi"),
        **HEADS,
        pooled_projection_dim=8,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        max_sequence_length=TOKENS,
    )


class Unguarded:
    """Stands for the safety checker, of which the package is not installed."""

    def to(self, device):
        return self

    def check_text_safety(self, prompt):
        return True

    def check_video_safety(self, frames):
        return frames


def cosmos(channels=4, autoencoder="Cosmos"):
    return {"safety_checker": Unguarded()} | network(
        "CosmosTransformer3DModel",
        video_vae(autoencoder),
        **HEADS | {"attention_head_dim": 16},
        in_channels=channels,
        out_channels=channels,
        mlp_ratio=2,
        concat_padding_mask=False,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
    )


def edm():
    return diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)


VIDEO = {
    "wan": Row("WanPipeline", unipc, None, wan, clip),
    "wan_flow": Row("WanPipeline", static, "euler", wan, clip),
    "wan_i2v": Row(
        "WanImageToVideoPipeline", unipc, None, lambda: wan(36), lambda: clip(image=picture())
    ),
    "wan_v2v": Row(
        "WanVideoToVideoPipeline", unipc, None, wan, lambda: text() | size() | {"video": video()}
    ),
    "skyreels": Row(
        "SkyReelsV2Pipeline",
        unipc,
        None,
        lambda: network(
            "SkyReelsV2Transformer3DModel",
            video_vae("Wan"),
            **HEADS | {"attention_head_dim": 12},
            text_dim=WIDTH,
            freq_dim=8,
            ffn_dim=16,
            rope_max_seq_len=32,
        ),
        clip,
    ),
    "ltx": Row("LTXPipeline", ltx_shift, "euler", ltx, ltx_clip),
    "ltx_i2v": Row(
        "LTXImageToVideoPipeline", ltx_shift, "euler", ltx, lambda: ltx_clip(image=picture(32))
    ),
    "ltx_condition": Row(
        "LTXConditionPipeline", flow, "euler", ltx, lambda: ltx_clip(image=picture(32))
    ),
    "hunyuan": Row(
        "HunyuanVideoPipeline",
        lambda: flow(shift=7.0),
        "euler",
        hunyuan,
        lambda: text(mask=True, pooled=True, negative=False) | size() | {"num_frames": 5},
    ),
    "mochi": Row(
        "MochiPipeline",
        lambda: flow(invert_sigmas=True),
        "euler",
        mochi,
        lambda: text(mask=True) | size() | {"num_frames": 7},
    ),
    "cosmos": Row("CosmosTextToWorldPipeline", edm, "euler", cosmos, lambda: clip(9, 32)),
}
