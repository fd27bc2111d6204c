"""LoRA files with kohya's names: the adapter that was written, in every network of a pipeline."""

import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from test_adapters import make as make_adapted
from test_lora import PIPES, images, name_of, randomise

#: Layers by the beginning of their names, each with a rank and an alpha of its own.
TARGETS = {
    "unet": ["to_q", "to_out.0", "conv1", "time_emb_proj", "time_embedding.linear_1", "conv_in"],
    "transformer": [
        "to_q",
        "to_out.0",
        "ff.net.0.proj",
        "timestep_embedder.linear_1",
        "proj_out_1",
    ],
    "text": ["to_q", "to_out.0", "ff.net.0.proj", "proj_in", "conv2", "conv_in", "time_emb_proj"],
}
CLIP = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
RANKS, ALPHAS = {"to_q": 3}, {"to_q": 1.5, "to_out.0": 8.0}


def adapted(kind, of_text=False, **config):
    """Return a pipeline with a LoRA, and its networks' prefixes by kohya."""
    pipe = PIPES[kind]()
    networks = {"lora_unet_": pipe.network}
    if of_text:
        networks["lora_te_"] = pipe.text_encoder
    for seed, (prefix, network) in enumerate(networks.items()):
        targets = CLIP if prefix == "lora_te_" else TARGETS[kind]
        network.add_adapter(LoraConfig(**{"r": 2, "target_modules": targets} | config))
        randomise(network, seed)
    return pipe, networks


def written(networks, old_clip=True):
    """Return the adapters of networks as kohya's trainer writes them."""
    file = {}
    for prefix, network in networks.items():
        layers = dict(network.named_modules())
        for key, weight in get_peft_model_state_dict(network).items():
            layer, _, side = key.removesuffix(".weight").rpartition(".")
            name = layer.replace(".", "_")
            if prefix == "lora_te_" and old_clip:
                name = f"text_model_{name}"
            what = {"lora_A": "lora_down", "lora_B": "lora_up"}[side]
            file[f"{prefix}{name}.{what}.weight"] = weight.clone()
            file[f"{prefix}{name}.alpha"] = torch.tensor(
                float(layers[layer].lora_alpha["default"])
            )
    return file


@pytest.mark.parametrize("kind", PIPES)
def test_a_file_of_kohya_is_the_adapter_that_was_written(kind, tmp_path):
    pipe, networks = adapted(kind, rank_pattern=RANKS, alpha_pattern=ALPHAS, lora_alpha=4)
    expected, file = images(kind, pipe), written(networks)
    save_file(file, tmp_path / "kohya.safetensors", metadata={"ss_network_dim": "2"})
    base = images(kind, PIPES[kind]())
    assert (expected - base).abs().max() > 1e-2
    for source, more in ((file, {}), (tmp_path, {"weight_name": "kohya.safetensors"})):
        again, kept = PIPES[kind](), dict(file)
        again.load_lora_weights(source, adapter_name="style", **more)
        torch.testing.assert_close(images(kind, again), expected, rtol=1e-6, atol=1e-6)
        assert again.get_list_adapters() == {name_of(again): ["style"]}
        assert file.keys() == kept.keys() and all(torch.equal(file[k], kept[k]) for k in file)
    again.unload_lora_weights()
    assert torch.equal(images(kind, again), base)


@pytest.mark.parametrize("old_clip", [True, False])
@pytest.mark.parametrize("prefix", ["lora_te_", "lora_te1_"])
def test_the_text_encoder_goes_along(prefix, old_clip):
    pipe, networks = adapted("text", of_text=True, lora_alpha=3)
    file = {
        key.replace("lora_te_", prefix): weight
        for key, weight in written(networks, old_clip).items()
    }
    again = PIPES["text"]()
    again.load_lora_weights(file)
    expected = images("text", pipe)
    torch.testing.assert_close(images("text", again), expected, rtol=1e-6, atol=1e-6)
    assert again.get_list_adapters() == {"unet": ["default_0"], "text_encoder": ["default_0"]}
    pipe.text_encoder.delete_adapter("default")
    assert (images("text", pipe) - expected).abs().max() > 1e-3


def test_it_loads_as_in_diffusers():
    pipe, networks = adapted("text", of_text=True, lora_alpha=3)
    file, other = written(networks), PIPES["text"]()
    layers, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(file))
    other.unet.load_lora_adapter(layers, prefix="unet", network_alphas=alphas)
    StableDiffusionLoraLoaderMixin.load_lora_into_text_encoder(
        layers, alphas, text_encoder=other.text_encoder
    )
    ours = PIPES["text"]()
    ours.load_lora_weights(file)
    torch.testing.assert_close(images("text", ours), images("text", other), rtol=1e-6, atol=1e-6)


def test_an_alpha_that_is_left_out_is_the_rank():
    pipe, networks = adapted("unet", rank_pattern=RANKS, alpha_pattern={"to_q": 3}, lora_alpha=2)
    file = {key: weight for key, weight in written(networks).items() if "alpha" not in key}
    again = PIPES["unet"]()
    again.load_lora_weights(file)
    torch.testing.assert_close(images("unet", again), images("unet", pipe), rtol=1e-6, atol=1e-6)


def test_names_of_the_original_stable_diffusion_are_diffusers_blocks():
    pipe, networks = adapted("text", target_modules=["to_q", "conv1", "time_emb_proj"])
    each, names = pipe.unet.config.layers_per_block, {}
    for key, weight in written(networks).items():
        side, *rest = key.removeprefix("lora_unet_").split("_")
        if side == "mid":
            _, kind, i, *inner = rest
            place = f"middle_block_{1 if kind == 'attentions' else 2 * int(i)}"
        else:
            _, block, kind, i, *inner = rest
            more = 1 if side == "down" else 0
            index = int(block) * (each + 1) + int(i) + more
            words = {"down": "input_blocks", "up": "output_blocks"}
            place = f"{words[side]}_{index}_{1 if kind == 'attentions' else 0}"
        inner = "_".join(inner).replace("conv1", "in_layers_2")
        inner = inner.replace("time_emb_proj", "emb_layers_1")
        names[f"lora_unet_{place}_{inner}"] = weight
    again = PIPES["text"]()
    again.load_lora_weights(names)
    torch.testing.assert_close(images("text", again), images("text", pipe), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"lora_unet_absent_to_q.lora_down.weight": torch.ones(2, 8)}, "absent_to_q.lora_down"),
        ({"lora_te2_encoder_q.alpha": torch.tensor(1.0)}, "lora_te2_encoder_q.alpha"),
        ({"lora_te_encoder_q.alpha": torch.tensor(1.0)}, "lora_te_encoder_q.alpha"),
        ({"unet.conv_in.lora_A.weight": torch.ones(2, 8)}, "unet.conv_in.lora_A.weight"),
        ({"{}.dora_scale": torch.ones(8)}, "{}.dora_scale"),
        ({"{}.hada_w1_a": torch.ones(8)}, "{}.hada_w1_a"),
        ({"{}.lora_mid.weight": torch.ones(8)}, "{}.lora_mid.weight"),
        ({"{}.lora_up.weight": None}, "{}.lora_down.weight"),
    ],
)
def test_weights_that_belong_nowhere_are_named(more, named):
    _, networks = adapted("unet")
    file = written(networks)
    layer = next(iter(file)).split(".")[0]
    file |= {key.format(layer): weight for key, weight in more.items()}
    file = {key: weight for key, weight in file.items() if weight is not None}
    pipe = PIPES["unet"]()
    with pytest.raises(ValueError, match=f"belong to no layer of .*{named.format(layer)}"):
        pipe.load_lora_weights(file)
    assert pipe.get_list_adapters() == {}


def test_other_networks_and_arguments_are_refused():
    _, networks = adapted("unet")
    file = written(networks)
    with pytest.raises(ValueError, match=r"belong to no layer of \['transformer'\]"):
        PIPES["transformer"]().load_lora_weights(file)
    with pytest.raises(ValueError, match=r"belong to no layer of \[\]"):
        make_adapted("torchcfm").load_lora_weights(file)
    with pytest.raises(ValueError, match=r"has no arguments \['weights_name'\]: where to look"):
        PIPES["unet"]().load_lora_weights(file, weights_name="kohya.safetensors")
