"""Diffusion models of video and sound in the table of `tiny_pipelines`."""

import diffusers
import torch
from tiny_inputs import TOKENS, WIDTH, Row, make, noise, picture, size, table, text, video
from tiny_networks import unet, vae, video_vae
from tiny_transformers import HEADS, network
from tiny_video import clip


def cogvideox(channels=4, **kwargs):
    return network(
        "CogVideoXTransformer3DModel",
        video_vae("CogVideoX"),
        **HEADS,
        in_channels=channels,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=TOKENS,
        **kwargs,
    )


def zero_snr():
    return diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


def animatediff():
    adapter = make(
        "MotionAdapter",
        block_out_channels=(4, 8),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
    )
    return {"unet": unet(), "vae": vae(), "motion_adapter": adapter}


def svd():
    network = make(
        "UNetSpatioTemporalConditionModel",
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=2,
        sample_size=8,
    )
    return {"unet": network, "vae": video_vae("TemporalDecoder")}


def svd_sigmas():
    return diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
    )


def stable_audio():
    transformer = make(
        "StableAudioDiTModel",
        sample_size=4,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        cross_attention_dim=WIDTH,
        time_proj_dim=8,
        global_states_input_dim=2 * WIDTH,
        cross_attention_input_dim=WIDTH,
    )
    return {
        "transformer": transformer,
        "vae": make(
            "AutoencoderOobleck",
            encoder_hidden_size=4,
            downsampling_ratios=[1, 2],
            channel_multiples=[2, 4],
            decoder_channels=4,
            decoder_input_channels=4,
            sampling_rate=4,
        ),
        "projection_model": make(
            "StableAudioProjectionModel",
            text_encoder_dim=WIDTH,
            conditioning_dim=WIDTH,
            min_value=0,
            max_value=32,
        ),
    }


def edm_v():
    return diffusers.EDMDPMSolverMultistepScheduler(
        sigma_min=0.3,
        sigma_max=500.0,
        sigma_data=1.0,
        sigma_schedule="exponential",
        prediction_type="v_prediction",
    )


def audio_text():
    mask = {
        k: torch.ones(1, TOKENS, dtype=torch.long)
        for k in ("attention_mask", "negative_attention_mask")
    }
    return text() | mask


VIDEO_DIFFUSION = {
    "cogvideox": Row("CogVideoXPipeline", zero_snr, "ddim", cogvideox, lambda: clip(9)),
    "cogvideox_v2v": Row(
        "CogVideoXVideoToVideoPipeline",
        zero_snr,
        "ddim",
        cogvideox,
        lambda: text() | size() | {"video": video(9)},
    ),
    "cogvideox_i2v": Row(
        "CogVideoXImageToVideoPipeline",
        zero_snr,
        "ddim",
        lambda: cogvideox(8),
        lambda: clip(9, image=picture()),
    ),
    "allegro": Row(
        "AllegroPipeline",
        table,
        "ddim",
        lambda: network(
            "AllegroTransformer3DModel",
            video_vae("Allegro"),
            **HEADS | {"attention_head_dim": 12},
            cross_attention_dim=24,
            sample_width=8,
            sample_height=8,
            sample_frames=8,
            caption_channels=WIDTH,
        ),
        lambda: text(mask=True) | size() | {"num_frames": 8, "negative_prompt": None},
        prepare=lambda pipe: pipe.vae.enable_tiling(),
    ),
    "latte": Row(
        "LattePipeline",
        table,
        "ddim",
        lambda: network(
            "LatteTransformer3DModel",
            vae(),
            **HEADS,
            in_channels=4,
            out_channels=8,
            sample_size=8,
            patch_size=2,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            video_length=2,
        ),
        lambda: (
            text() | size() | {"video_length": 2, "clean_caption": False, "negative_prompt": None}
        ),
    ),
    "animatediff": Row(
        "AnimateDiffPipeline",
        lambda: table(beta_schedule="linear"),
        "ddim",
        animatediff,
        lambda: clip(2),
    ),
    "animatediff_v2v": Row(
        "AnimateDiffVideoToVideoPipeline",
        lambda: table(beta_schedule="linear"),
        "ddim",
        animatediff,
        lambda: text() | size() | {"video": video(2)},
    ),
    "text_to_video": Row(
        "TextToVideoSDPipeline",
        table,
        "ddim",
        lambda: {
            "unet": make(
                "UNet3DConditionModel",
                block_out_channels=(4, 8),
                norm_num_groups=2,
                layers_per_block=1,
                cross_attention_dim=WIDTH,
                attention_head_dim=4,
                down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
                up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            ),
            "vae": vae(),
        },
        lambda: clip(2),
    ),
    "svd": Row(
        "StableVideoDiffusionPipeline",
        svd_sigmas,
        "euler",
        svd,
        lambda: size() | {"image": picture(), "num_frames": 2},
        prepare=lambda pipe: setattr(
            pipe, "_encode_image", lambda *a: noise(2, 1, WIDTH).to(pipe.dtype)
        ),
    ),
}


SOUND = {
    "stable_audio": Row("StableAudioPipeline", edm_v, "dpm_solver++", stable_audio, audio_text),
}
