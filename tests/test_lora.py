"""Low-rank adapters of every network that a pipeline holds, by diffusers' methods."""

import copy
import json
import pickle

import pytest
import torch
from diffusers import UNet2DModel
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from test_adapters import make as make_adapted
from test_pipeline import draw, make_unet
from test_pipeline import make_pipe as make_label_pipe
from test_pipeline_text import make_text_pipe
from test_pipeline_transformer import CLASSES, make_transformer
from test_pipeline_transformer import make_pipe as make_transformer_pipe
from transformers.integrations import peft as peft_integration

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.pipelines.lora import lora_layers

TARGETS = ["to_q", "to_v"]
PIPES = {
    "unet": lambda: make_label_pipe("guided"),
    "transformer": lambda: make_transformer_pipe(make_transformer(), CLASSES),
    "text": lambda: make_text_pipe("clip"),
}
ASKED = {"text": {"prompt": ["seven", "zero"]}}


def name_of(pipe):
    return "unet" if pipe.unet is not None else "transformer"


def images(kind, pipe):
    return draw(pipe, **ASKED.get(kind, {"class_labels": [0, 2]}), guidance_scale=2.0)


def randomise(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator))


def add(network, name="default", rank=2, alpha=6, targets=TARGETS):
    network.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), name)


@pytest.fixture(scope="module", params=PIPES)
def saved(request, tmp_path_factory):
    """A pipeline's kind, its images without and with an adapter, and the folder that holds it."""
    kind, folder = request.param, tmp_path_factory.mktemp("lora")
    pipe = PIPES[kind]()
    base = images(kind, pipe)
    add(pipe.network)
    zero = images(kind, pipe)
    randomise(pipe.network)
    FlowMatchingPipeline.save_lora_weights(folder, **lora_layers(**{name_of(pipe): pipe.network}))
    return kind, base, zero, images(kind, pipe), folder


def loaded(kind, folder, name="style"):
    pipe = PIPES[kind]()
    pipe.load_lora_weights(folder, adapter_name=name)
    return pipe


# --- what an adapter does ------------------------------------------------------------------------


def test_a_new_adapter_changes_nothing_and_a_trained_one_does(saved):
    _, base, zero, adapted, _ = saved
    assert torch.equal(zero, base)
    assert (adapted - base).abs().max() > 1e-2


def test_a_saved_adapter_is_loaded_bit_by_bit(saved):
    kind, _, _, adapted, folder = saved
    pipe = loaded(kind, folder)
    assert torch.equal(images(kind, pipe), adapted)
    config = pipe.network.peft_config["style"]
    assert (config.r, config.lora_alpha, set(config.target_modules)) == (2, 6, set(TARGETS))
    assert pipe.get_list_adapters() == {name_of(pipe): ["style"]}


def test_an_adapter_adds_alpha_by_rank_b_a_to_the_weight(saved):
    kind, _, _, adapted, folder = saved
    pipe = PIPES[kind]()
    with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as file:
        layers = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    weights = dict(pipe.network.named_parameters())
    for key, low in layers.items():
        if "lora_A" in key:
            name = key.removeprefix(f"{name_of(pipe)}.").replace("lora_A.", "")
            weights[name].data += 6 / 2 * layers[key.replace("lora_A", "lora_B")] @ low
    torch.testing.assert_close(images(kind, pipe), adapted, rtol=1e-4, atol=1e-5)


def test_unloading_restores_the_network_bit_by_bit(saved):
    kind, base, _, adapted, folder = saved
    pipe = PIPES[kind]()
    weights = copy.deepcopy(pipe.network.state_dict())
    pipe.unload_lora_weights()  # of nothing
    pipe.load_lora_weights(folder)
    pipe.unload_lora_weights()
    assert torch.equal(images(kind, pipe), base)
    after = pipe.network.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())
    pipe.load_lora_weights(folder)
    assert torch.equal(images(kind, pipe), adapted)


def test_a_fused_adapter_is_the_adapter_and_unfusing_takes_it_out(saved):
    kind, base, _, adapted, folder = saved
    pipe = loaded(kind, folder)
    pipe.fuse_lora()
    assert pipe.num_fused_loras == 1
    torch.testing.assert_close(images(kind, pipe), adapted, rtol=1e-5, atol=1e-5)
    pipe.disable_lora()  # a merged layer unmerges when its adapters are off
    torch.testing.assert_close(images(kind, pipe), base, rtol=1e-5, atol=1e-5)
    pipe = loaded(kind, folder)
    pipe.fuse_lora(lora_scale=0.5)
    half = images(kind, pipe)
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    assert not torch.allclose(half, adapted, atol=1e-3)


def test_adapters_are_scaled_and_mixed(saved):
    kind, base, _, adapted, folder = saved
    pipe = loaded(kind, folder)
    pipe.set_adapters("style", 0.0)
    torch.testing.assert_close(images(kind, pipe), base, rtol=1e-6, atol=1e-6)
    pipe.load_lora_weights(folder, adapter_name="twin")
    pipe.set_adapters(["style", "twin"], [0.25, 0.75])
    torch.testing.assert_close(images(kind, pipe), adapted, rtol=1e-5, atol=1e-5)
    pipe.delete_adapters("twin")
    pipe.set_adapters("style")
    assert torch.equal(images(kind, pipe), adapted)


# --- training and files --------------------------------------------------------------------------


def test_training_moves_the_adapter_only(saved):
    kind = saved[0]
    pipe = PIPES[kind]()
    network = pipe.network.requires_grad_(False)
    add(network)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    condition = pipe.encode_prompt("seven")[0] if kind == "text" else torch.tensor([1])
    x = torch.randn(1, network.config.in_channels, 8, 8)
    output = network(x, torch.tensor([300.0]), condition, return_dict=False)[0]
    output.square().sum().backward()
    optimizer.step()
    moved = {n for n, w in network.state_dict().items() if not torch.equal(w, before[n])}
    assert moved == {name for name in before if "lora_B" in name}  # A has no gradient at B = 0


def test_the_file_has_diffusers_layout(saved):
    kind, *_, folder = saved
    name = "transformer" if kind == "transformer" else "unet"
    with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as file:
        keys, metadata = list(file.keys()), json.loads(file.metadata()["lora_adapter_metadata"])
    ends = (".lora_A.weight", ".lora_B.weight")
    assert all(key.startswith(f"{name}.") and key.endswith(ends) for key in keys)
    assert metadata[f"{name}.r"] == 2 and metadata[f"{name}.lora_alpha"] == 6
    assert sorted(metadata[f"{name}.target_modules"]) == TARGETS


def test_diffusers_own_loader_reads_the_file(saved):
    kind, _, _, adapted, folder = saved
    pipe = PIPES[kind]()
    pipe.network.load_lora_adapter(folder, prefix=name_of(pipe), use_safetensors=True)
    assert torch.equal(images(kind, pipe), adapted)


def test_an_adapter_is_swapped_for_another_of_its_name(saved, tmp_path):
    kind, _, _, adapted, folder = saved
    pipe = PIPES[kind]()
    add(pipe.network)
    randomise(pipe.network, seed=1)
    pipe.save_lora_weights(tmp_path, **lora_layers(**{name_of(pipe): pipe.network}))
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    assert not torch.allclose(images(kind, pipe), adapted, atol=1e-3)
    pipe.load_lora_weights(folder, adapter_name="style", hotswap=True)
    assert torch.equal(images(kind, pipe), adapted)


def test_weights_come_from_a_file_a_dictionary_or_another_name(tmp_path):
    pipe = PIPES["unet"]()
    add(pipe.unet, rank=2, alpha=2, targets=["to_k", "conv1"])  # a convolution too
    randomise(pipe.unet)
    expected = images("unet", pipe)
    options = lora_layers(unet=pipe.unet)
    pipe.save_lora_weights(tmp_path, **options, weight_name="mine.safetensors")
    state = {f"unet.{key}": value for key, value in options["unet_lora_layers"].items()}
    kept = dict(state)
    for source, more in (
        (tmp_path / "mine.safetensors", {}),
        (tmp_path, {"weight_name": "mine.safetensors"}),
        (state, {}),
    ):
        again = PIPES["unet"]()
        again.load_lora_weights(source, **more)
        assert torch.equal(images("unet", again), expected)
    assert state.keys() == kept.keys()


def peft_suits_transformers():
    """Whether transformers, which gives text encoders their adapters, takes this peft."""
    try:
        peft_integration.check_peft_version(peft_integration.MIN_PEFT_VERSION)
    except ValueError:
        return False
    return True


@pytest.mark.skipif(not peft_suits_transformers(), reason="transformers asks for a newer peft")
def test_an_adapter_of_the_text_encoder_goes_along(tmp_path):
    pipe = PIPES["text"]()
    base = images("text", pipe)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    pipe.text_encoder.add_adapter(config)
    add(pipe.unet)
    randomise(pipe.text_encoder, 1)
    of_text = images("text", pipe)
    randomise(pipe.unet)
    both = images("text", pipe)
    assert (of_text - base).abs().max() > 1e-3
    layers = lora_layers(unet=pipe.unet, text_encoder=pipe.text_encoder)
    pipe.save_lora_weights(tmp_path, **layers)
    again = PIPES["text"]()
    again.load_lora_weights(tmp_path, adapter_name="style")
    assert torch.equal(images("text", again), both)
    again.set_adapters("style", {"unet": 0.0, "text_encoder": 1.0})
    torch.testing.assert_close(images("text", again), of_text, rtol=1e-6, atol=1e-6)
    again.unload_lora_weights()
    assert torch.equal(images("text", again), base)


def test_a_fused_pipeline_is_saved_as_a_plain_one(saved, tmp_path):
    kind, _, _, adapted, folder = saved
    pipe = loaded(kind, folder)
    with pytest.raises(ValueError, match=r"has adapters .*'style'.*: unload_lora_weights\(\)"):
        pipe.save_pretrained(tmp_path)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path)
    again = FlowMatchingPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert not any(isinstance(module, BaseTunerLayer) for module in again.network.modules())
    torch.testing.assert_close(images(kind, again), adapted, rtol=1e-4, atol=1e-4)


def test_networks_stay_diffusers_own(tmp_path):
    unet = make_unet(CLASSES + 1)
    assert type(unet).__module__.startswith("diffusers.")
    unet.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"] == "UNet2DModel"
    copied = pickle.loads(pickle.dumps(copy.deepcopy(unet)))
    assert type(copied) is type(UNet2DModel.from_pretrained(tmp_path)) is UNet2DModel


# --- errors --------------------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_refused(saved):
    kind, *_, folder = saved
    other = PIPES["unet" if kind == "transformer" else "transformer"]()
    with pytest.raises(ValueError, match="adapters of this pipeline are those of .* got .'"):
        other.load_lora_weights(folder)
    with pytest.raises(ValueError, match="save_lora_weights wrote"):
        other.load_lora_weights({"unet.conv_in.weight": torch.zeros(1)})
    absent = {f"{name_of(other)}.absent.lora_A.weight": torch.zeros(1, 1)}
    with pytest.raises(ValueError, match=r"and their layers, .* got .'\w+.absent.lora_A.weight"):
        other.load_lora_weights(absent)
    assert other.get_list_adapters() == {}
    with pytest.raises(ValueError, match="got none"):
        other.load_lora_weights({})
    pipe = loaded(kind, folder)
    with pytest.raises(ValueError, match="already in use"):
        pipe.load_lora_weights(folder, adapter_name="style")


def test_networks_of_other_projects_take_no_adapters(saved):
    _, *_, folder = saved
    pipe = make_adapted("torchcfm")
    with pytest.raises(ValueError, match=r"are those of \[\]"):
        pipe.load_lora_weights(folder)
    pipe.unload_lora_weights()


def test_what_is_not_there_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match=r"pass layers of one of .* lora_layers\(unet=unet\)"):
        FlowMatchingPipeline.save_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="unet has no adapter 'default': give it one by"):
        lora_layers(unet=make_unet())
