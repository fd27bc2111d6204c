"""What components are fed where weights are stored otherwise, and autoencoders that overflow."""

import threading

import pytest
import test_pipeline
import torch
from diffusers.hooks import apply_layerwise_casting
from test_pipeline import CLASSES, assert_same, draw
from test_pipeline_latent import make_pipe as make_latent_pipe
from test_pipeline_text import make_text_pipe
from test_pipeline_transformer import make_pipe, make_transformer
from tiny_networks import vae

from fm_diffusers.pipelines.precision import compute_dtype, upcast

PIPES = {
    "labels": lambda: make_pipe(make_transformer(), CLASSES),
    "unet": lambda: test_pipeline.make_pipe("guided"),
    "unconditional": lambda: test_pipeline.make_pipe("unconditional"),
    "text": make_text_pipe,
}


def sample(name, pipe):
    """Return samples, guided where they can be."""
    if name == "text":
        return draw(pipe, prompt=["a seven"], guidance_scale=2.0)
    if name == "unconditional":
        return draw(pipe, batch_size=1)
    return draw(pipe, [0], guidance_scale=2.0)


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
def test_float8_weights_are_those_rounded_to_float8(name, compute):
    """Cast layer by layer, a network is the one whose weights were rounded once."""
    pipe, rounded = PIPES[name](), PIPES[name]()
    for one in (pipe, rounded):
        one.to(compute)
    pipe.network.enable_layerwise_casting(torch.float8_e4m3fn)
    stored = {key: x.dtype for key, x in pipe.network.state_dict().items()}
    assert torch.float8_e4m3fn in stored.values()
    weights = rounded.network.state_dict()
    for key, dtype in stored.items():
        weights[key] = weights[key].to(dtype).to(compute)
    rounded.network.load_state_dict(weights)
    assert compute_dtype(pipe.network) == compute
    assert torch.equal(sample(name, pipe), sample(name, rounded))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_network_that_only_stores_in_a_precision_is_fed_float32(dtype):
    class Quantised(type(make_transformer())):
        """A network with scaled weights of a few bits, which computes in its input's precision."""

        fed: torch.dtype

        @property
        def dtype(self):
            return dtype

        def forward(self, x, timestep, class_labels, return_dict=True):
            self.fed = x.dtype
            return (x,)

    network = Quantised(2, 8, 1, num_layers=1, sample_size=8, num_embeds_ada_norm=CLASSES)
    draw(make_pipe(network, CLASSES), 0)
    assert network.fed == torch.float32


def overflowing(**config):
    """Return an autoencoder whose activations are beyond half precision, its images are not."""
    torch.manual_seed(0)
    autoencoder = vae(**config).eval()
    with torch.no_grad():
        autoencoder.decoder.conv_in.weight.mul_(2e4)
        autoencoder.encoder.conv_in.weight.mul_(5e4)
    return autoencoder


def halved(autoencoder):
    return autoencoder.half().float().eval()


CODES = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_an_autoencoder_that_asks_for_float32_is_computed_in_it_and_stays_in_half():
    pipe, full = (make_latent_pipe(make(overflowing())) for make in (lambda x: x, halved))
    pipe.vae.half()
    before = {key: value.clone() for key, value in pipe.vae.state_dict().items()}
    found = pipe.decode_latents(CODES)
    assert found.isfinite().all() and torch.equal(found, full.decode_latents(CODES))
    after = pipe.vae.state_dict()
    assert {value.dtype for value in after.values()} == {torch.float16}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), upcast(pipe.vae) as dtype:
        encoded = pipe.vae.encode(images.to(dtype)).latent_dist.mean
    with torch.no_grad():
        assert not pipe.vae.encode(images.half()).latent_dist.mean.isfinite().all()
        assert torch.equal(encoded, full.vae.encode(images).latent_dist.mean)


@pytest.mark.parametrize(
    ("force", "dtype"), [(False, torch.float16), (True, torch.bfloat16), (True, torch.float32)]
)
def test_other_autoencoders_compute_in_their_own_precision(force, dtype):
    autoencoder = vae(force_upcast=force).to(dtype).eval()
    with upcast(autoencoder) as fed:
        assert fed == autoencoder.dtype == dtype


def test_an_autoencoder_in_half_precision_that_does_not_ask_overflows_and_says_so():
    pipe = make_latent_pipe(overflowing(force_upcast=False).half())
    with pytest.warns(RuntimeWarning, match=r"not \(NaN or infinite\) in torch.float16"):
        assert not pipe.decode_latents(CODES).isfinite().all()


def test_an_error_while_decoding_leaves_half_precision():
    pipe = make_latent_pipe(overflowing().half())
    with pytest.raises(RuntimeError):
        pipe.decode_latents(CODES[:, :3])
    assert pipe.vae.dtype == torch.float16


def test_parts_kept_in_float32_stay_there():
    autoencoder = vae().half()
    autoencoder.decoder.conv_norm_out.float()
    with upcast(autoencoder):
        pass
    found = {key: x.dtype for key, x in autoencoder.state_dict().items()}
    kept = {key for key, dtype in found.items() if dtype == torch.float32}
    assert kept == {"decoder.conv_norm_out.weight", "decoder.conv_norm_out.bias"}


def test_an_autoencoder_cast_layer_by_layer_keeps_computing_in_what_it_casts_to():
    pipe = make_latent_pipe(vae().half().eval())
    apply_layerwise_casting(pipe.vae, torch.float8_e4m3fn, torch.float16, ["norm"])
    with upcast(pipe.vae) as dtype:
        assert dtype == torch.float16
    assert pipe.decode_latents(CODES).isfinite().all()


def test_offloaded_autoencoders_are_computed_in_float32():
    pipe, expected = make_latent_pipe(overflowing().half()), make_latent_pipe(overflowing())
    halved(expected.vae)
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert torch.equal(pipe.decode_latents(CODES), expected.decode_latents(CODES))
    assert pipe.vae.dtype == torch.float16


def test_threads_decode_with_one_autoencoder():
    pipe = make_latent_pipe(overflowing().half())
    expected, found = pipe.decode_latents(CODES), []

    def decode():
        found.extend(pipe.decode_latents(CODES) for _ in range(5))

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20 and all(torch.equal(images, expected) for images in found)
    assert pipe.vae.dtype == torch.float16


# --- slices and tiles ----------------------------------------------------------------------------


def test_slices_are_the_images_of_a_batch_one_at_a_time():
    pipe = make_latent_pipe(vae().eval())
    expected, sizes = pipe.decode_latents(CODES), []
    pipe.vae.decoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    pipe.enable_vae_slicing()
    assert_same(pipe.decode_latents(CODES), expected)
    pipe.disable_vae_slicing()
    assert torch.equal(pipe.decode_latents(CODES), expected)
    assert sizes == [1, 1, 2]


def test_tiles_are_those_of_the_autoencoder():
    pipe = make_latent_pipe(vae().eval())
    codes = torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(1))
    whole = pipe.decode_latents(codes)
    small = pipe.decode_latents(CODES)
    pipe.enable_vae_tiling()
    tiled = pipe.decode_latents(codes)
    with torch.no_grad():
        expected = pipe.vae.tiled_decode(codes / pipe.vae.config.scaling_factor).sample
    torch.testing.assert_close(tiled, expected)
    assert not torch.allclose(tiled, whole, atol=1e-4)
    assert torch.equal(pipe.decode_latents(CODES), small)  # no larger than its sample_size
    pipe.disable_vae_tiling()
    assert torch.equal(pipe.decode_latents(codes), whole)


@pytest.mark.parametrize("turn", ["enable", "disable"])
@pytest.mark.parametrize("what", ["slicing", "tiling"])
def test_pixels_are_not_decoded(turn, what):
    name = f"{turn}_vae_{what}"
    with pytest.raises(ValueError, match=f"{name} needs a pipeline with a vae"):
        getattr(PIPES["unet"](), name)()
