"""Folders that are broken or mean harm: each row spoils one thing of a pipeline that was saved.

A row is a function of a folder, a copy of what `save_pretrained` wrote, which it changes. Code
that a row leaves there writes `RAN` when it runs.
"""

import json
import os
import pickle
import shutil
import struct
from functools import partial

import numpy as np

INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
NETWORK, WEIGHTS = "unet/config.json", "unet/diffusion_pytorch_model.safetensors"
#: The file whose presence says that code of a folder ran; the folder of every case is beside it.
RAN = "code-ran"


def edit(file, values, folder):
    """Set values of a JSON file; `...` leaves a key out."""
    path = folder / file
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def write(file, content, folder):
    """Write a file anew, as text or bytes."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def remove(file, folder):
    """Delete a file or a folder."""
    path = folder / file
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def editing(file, **rows):
    """Return rows that each set values of a file."""
    return {
        f"{file.split('/')[0]}: {name}": partial(edit, file, row) for name, row in rows.items()
    }


def both(*changes):
    """Return a row that makes several changes."""
    return lambda folder: [change(folder) for change in changes] and None


# --- JSON that is none ---------------------------------------------------------------------------

DEEP = 100_000
TEXTS = {
    "empty": "",
    "nothing but spaces": "  \n",
    "text": "this is no JSON",
    "cut off": '{"a": [1, 2',
    "deep lists": "[" * DEEP,
    "deep lists that end": "[" * DEEP + "]" * DEEP,
    "deep dictionaries": '{"a":' * DEEP + "1" + "}" * DEEP,
    "deep value": '{"_class_name": "X", "path_kwargs": ' + "[" * 900 + "]" * 900 + "}",
    "list": "[1, 2, 3]",
    "number": "3",
    "null": "null",
    "string": '"model"',
    "list of pairs": '[["_class_name", "FlowMatchingPipeline"]]',
    "number of 10000 digits": '{"a": ' + "1" * 10_000 + "}",
    "bytes": b"\xff\xfe\x00\x01\x80",
    "zeros": b"\x00" * 512,
    "gzip": b"\x1f\x8b\x08\x00" + b"\x00" * 64,
    "two documents": "{}{}",
    "python": "{'_class_name': 'X'}",
    "one key twice": '{"_class_name": "A", "_class_name": "B"}',
    "empty dictionary": "{}",
}
BROKEN = {
    f"{file.split('/')[0]} {name}": partial(write, file, text)
    for file in (INDEX, SCHEDULER, NETWORK)
    for name, text in TEXTS.items()
    # a scheduler without a word is that of the defaults
    if (file, name) != (SCHEDULER, "empty dictionary")
}
BROKEN |= {
    "model_index.json folder": both(
        partial(remove, INDEX), lambda folder: (folder / INDEX).mkdir()
    ),
    "scheduler_config.json folder": both(
        partial(remove, SCHEDULER), lambda folder: (folder / SCHEDULER).mkdir()
    ),
    "scheduler missing": partial(remove, "scheduler"),
    "scheduler_config.json missing": partial(remove, SCHEDULER),
    "unet missing": partial(remove, "unet"),
    "unet config.json missing": partial(remove, NETWORK),
    "unet weights missing": partial(remove, WEIGHTS),
    "scheduler_config.json link to itself": both(
        partial(remove, SCHEDULER),
        lambda folder: os.symlink(folder / SCHEDULER, folder / SCHEDULER),
    ),
    "scheduler_config.json link to nothing": both(
        partial(remove, SCHEDULER), lambda folder: os.symlink("/no/where", folder / SCHEDULER)
    ),
}

# --- model_index.json ----------------------------------------------------------------------------

OURS = ["scheduling_gaussian_flow", "GaussianFlowScheduler"]
INDICES = editing(
    INDEX,
    **{
        "no scheduler": {"scheduler": ...},
        "no network": {"unet": ...},
        "no class": {"_class_name": ...},
        "class null": {"_class_name": None},
        "class number": {"_class_name": 3},
        "class dictionary": {"_class_name": {}},
        "class list of one": {"_class_name": ["pipeline_flow_matching"]},
        "class empty list": {"_class_name": []},
        "class list of numbers": {"_class_name": [1, 2]},
        "class list of lists": {"_class_name": [["a"], ["b"]]},
        "class list of three": {"_class_name": ["a", "b", "c"]},
        "scheduler null": {"scheduler": None},
        "scheduler pair of null": {"scheduler": [None, None]},
        "scheduler text": {"scheduler": "GaussianFlowScheduler"},
        "scheduler one": {"scheduler": ["diffusers"]},
        "scheduler three": {"scheduler": [*OURS, 3]},
        "scheduler numbers": {"scheduler": [1, 2]},
        "scheduler lists": {"scheduler": [[], []]},
        "scheduler dictionaries": {"scheduler": [{}, {}]},
        "scheduler dictionary": {"scheduler": {"a": 1}},
        "scheduler number": {"scheduler": 3},
        "scheduler half null": {"scheduler": [None, "GaussianFlowScheduler"]},
        "scheduler other half null": {"scheduler": ["diffusers", None]},
        "scheduler empty names": {"scheduler": ["", ""]},
        "scheduler no such class": {"scheduler": ["diffusers", "NoSuchScheduler"]},
        "scheduler is a network": {"scheduler": ["diffusers", "UNet2DModel"]},
        "scheduler is a pipeline": {"scheduler": ["diffusers", "DDPMPipeline"]},
        "scheduler is a function": {"scheduler": ["diffusers", "logging"]},
        "scheduler is a private name": {"scheduler": ["diffusers", "__name__"]},
        "scheduler is a module": {"scheduler": ["diffusers", "utils"]},
        "network is a scheduler": {"unet": ["diffusers", "DDPMScheduler"]},
        "network is another": {"unet": ["diffusers", "AutoencoderKL"]},
        "network is the mixin": {"unet": ["diffusers", "ModelMixin"]},
        "network of transformers": {"unet": ["transformers", "CLIPTextModel"]},
        "network twice": {"transformer": ["diffusers", "UNet2DModel"]},
        "vae that is not there": {"vae": ["diffusers", "AutoencoderKL"]},
        "tokenizer that is not there": {"tokenizer": ["transformers", "CLIPTokenizer"]},
        "null_label text": {"null_label": "3"},
        "null_label beyond": {"null_label": 10**12},
        "null_label negative": {"null_label": -1},
        "null_label list": {"null_label": [3]},
        "null_label 1e308": {"null_label": 1e308},
        "null_label NaN": {"null_label": float("nan")},
        "null_label infinite": {"null_label": float("inf")},
        "null_label true": {"null_label": True},
        "id2label list": {"id2label": ["a", "b"]},
        "id2label text": {"id2label": "a"},
        "id2label number": {"id2label": 3},
        "id2label names are numbers": {"id2label": {"0": 1}},
        "id2label names are lists": {"id2label": {"0": ["a"]}},
        "id2label no numbers": {"id2label": {"zero": "a"}},
        "id2label beyond": {"id2label": {"10000000000000": "a"}},
        "id2label negative": {"id2label": {"-1": "a"}},
        "id2label 100000 names": {"id2label": {str(i): f"n{i}" for i in range(100_000)}},
        "id2label a pair": {"id2label": ["evil", "Evil"]},
        "no version of diffusers": {"_diffusers_version": {}, "scheduler": 3},
    },
)

# --- scheduler_config.json -----------------------------------------------------------------------

FOREIGN = {"_class_name": "DDPMScheduler", "path": ..., "prediction_type": "epsilon"}
LTX = {"_class_name": "LTXEulerAncestralRFScheduler", "path": ...}
EDM = {"_class_name": "EDMEulerScheduler", "path": ...}
FIT = {"log_snr": [0.0], "method": {"solver_order": 2}, "rows": [[1.0, 0.5], [1.0, 0.5, 0.1]]}


def fitted(steps):
    """Return a configuration with a calibration."""
    return {"calibration": {"for": {}, "steps": steps}}


CONFIGS = editing(
    SCHEDULER,
    **{
        "steps of 10^12": {"num_train_timesteps": 10**12},
        "steps of 1e308": {"num_train_timesteps": 1e308},
        "steps text": {"num_train_timesteps": "1000"},
        "steps NaN": {"num_train_timesteps": float("nan")},
        "steps infinite": {"num_train_timesteps": float("inf")},
        "steps negative": {"num_train_timesteps": -1},
        "steps list": {"num_train_timesteps": [1000]},
        "steps true": {"num_train_timesteps": True},
        "path number": {"path": 3},
        "path null": {"path": None},
        "path list": {"path": ["linear"]},
        "path unknown": {"path": "../../etc/passwd"},
        "path dunder": {"path": "__class__"},
        "path_kwargs list": {"path_kwargs": [1]},
        "path_kwargs unknown": {"path_kwargs": {"evil": 1}},
        "path_kwargs 1e308": {"path": "polynomial", "path_kwargs": {"degree": 1e308}},
        "path_kwargs NaN": {"path": "polynomial", "path_kwargs": {"degree": float("nan")}},
        "path_kwargs text": {"path": "polynomial", "path_kwargs": {"degree": "3"}},
        "path_kwargs nested": {"path": "polynomial", "path_kwargs": {"degree": [[[1]]]}},
        "path_kwargs self": {"path_kwargs": {"self": 1}},
        "solver number": {"solver": 3},
        "solver unknown": {"solver": "os.system"},
        "solver order 10^9": {
            "solver": "adams_bashforth",
            "solver_kwargs": {"solver_order": 10**9},
        },
        "solver order text": {"solver": "unipc", "solver_kwargs": {"solver_order": "2"}},
        "solver order 2.5": {"solver": "unipc", "solver_kwargs": {"solver_order": 2.5}},
        "solver order list": {"solver": "unipc", "solver_kwargs": {"solver_order": [2]}},
        "solver order negative": {"solver": "unipc", "solver_kwargs": {"solver_order": -2}},
        "solver_kwargs path": {"solver_kwargs": {"path": "linear"}},
        "diffusion number": {"diffusion": 3},
        "diffusion unknown": {"diffusion": "evil"},
        "diffusion scale text": {"diffusion": "beta", "diffusion_kwargs": {"scale": "1"}},
        "diffusion scale negative": {"diffusion": "beta", "diffusion_kwargs": {"scale": -1}},
        "diffusion scale NaN": {"diffusion": "beta", "diffusion_kwargs": {"scale": float("nan")}},
        "diffusion scale list": {"diffusion": "beta", "diffusion_kwargs": {"scale": [1]}},
        "noise unknown": {"noise": "loud"},
        "grid unknown": {"grid": "evil"},
        "grid number": {"grid": 3},
        "grid_kwargs list": {"grid": "karras", "grid_kwargs": []},
        "grid_kwargs text": {"grid": "karras", "grid_kwargs": {"rho": "7"}},
        "t_min NaN": {"t_min": float("nan")},
        "t_min beyond": {"t_min": 2.0},
        "t_max 1e308": {"t_max": 1e308},
        "t_max text": {"t_max": "1"},
        "shift 0": {"shift": 0},
        "shift text": {"shift": "3"},
        "shift NaN": {"shift": float("nan")},
        "shift infinite": {"shift": float("inf")},
        "betas text": {"trained_betas": "0.1"},
        "betas NaN": {"path": "discrete", "trained_betas": [float("nan")] * 1000},
        "betas nested": {"path": "discrete", "trained_betas": [[0.1]]},
        "betas empty": {"path": "discrete", "trained_betas": []},
        "betas of 2": {"path": "discrete", "trained_betas": [2.0] * 1000},
        "beta_start 1e308": {"path": "discrete", "beta_start": 1e308},
        "beta_end text": {"path": "discrete", "beta_end": "0.02"},
        "beta_schedule number": {"path": "discrete", "beta_schedule": 3},
        "beta_schedule unknown": {"path": "discrete", "beta_schedule": "evil"},
        "timestep_spacing list": {"timestep_spacing": ["leading"]},
        "steps_offset -1": {"steps_offset": -1},
        "clip_sample text": {"clip_sample": "false"},
        "variance_type number": {"variance_type": 3},
        "clip_sample_range 0": {"clip_sample_range": 0},
        "thresholding null": {"thresholding": None},
        "base_shift text": {"base_shift": "0.5"},
        "invert_sigmas 1": {"invert_sigmas": 1},
        "time_convention list": {"time_convention": []},
        "calibration text": {"calibration": "none"},
        "calibration list": {"calibration": []},
        "calibration without steps": {"calibration": {"for": {}}},
        "calibration steps list": {"calibration": {"for": {}, "steps": []}},
        "calibration no number": fitted({"two": FIT}),
        "calibration NaN": {
            "calibration": {"for": {}, "steps": {"2": FIT | {"log_snr": [float("nan")]}}}
        },
        "calibration 10^12 steps": fitted({str(10**12): FIT}),
        "calibration number of 5000 digits": {
            "calibration": {"for": {}, "steps": {"9" * 5000: FIT}}
        },
        "calibration superscript": fitted({"²": FIT}),
        "calibration rows text": {
            "calibration": {"for": {}, "steps": {"2": FIT | {"rows": "ab"}}}
        },
        "calibration method list": {
            "calibration": {"for": {}, "steps": {"2": FIT | {"method": [1]}}}
        },
        "class number": {"_class_name": 3, "path": ...},
        "class list": {"_class_name": ["DDPMScheduler"], "path": ...},
        "class null and no path": {"_class_name": None, "path": ...},
        "class of a network": {"_class_name": "UNet2DModel", "path": ...},
        "class of a pipeline": {"_class_name": "DiffusionPipeline", "path": ...},
        "defaults text": {"_use_default_values": "path"},
        "defaults number": {"_use_default_values": 3},
        "defaults lists": {"_use_default_values": [[1]]},
        "DDPM steps null": FOREIGN | {"num_train_timesteps": None},
        "DDPM steps text": FOREIGN | {"num_train_timesteps": "1000"},
        "DDPM steps 0": FOREIGN | {"num_train_timesteps": 0},
        "DDPM steps list": FOREIGN | {"num_train_timesteps": [1]},
        "DDPM prediction list": FOREIGN | {"prediction_type": ["epsilon"]},
        "DDPM prediction dictionary": FOREIGN | {"prediction_type": {"a": 1}},
        "DDPM prediction unknown": FOREIGN | {"prediction_type": "evil"},
        "DDPM spacing list": FOREIGN | {"timestep_spacing": ["leading"]},
        "DDPM betas text": FOREIGN | {"trained_betas": "abc"},
        "DDPM schedule list": FOREIGN | {"beta_schedule": ["linear"]},
        "DDPM clip list": FOREIGN | {"clip_sample": [1]},
        "LTX eta text": LTX | {"eta": "much"},
        "LTX eta list": LTX | {"eta": [1]},
        "LTX eta NaN": LTX | {"eta": float("nan")},
        "LTX noise text": LTX | {"s_noise": "1"},
        "our eta text": {"eta": "much"},
        "our eta list": {"eta": [1]},
        "UniPC flow steps text": {
            "_class_name": "UniPCMultistepScheduler",
            "path": ...,
            "use_flow_sigmas": True,
            "num_train_timesteps": "1000",
        },
        "UniPC flow karras steps 0": {
            "_class_name": "UniPCMultistepScheduler",
            "path": ...,
            "use_flow_sigmas": True,
            "use_karras_sigmas": True,
            "num_train_timesteps": 0,
        },
        "flow shift list": {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "path": ...,
            "shift": [3],
        },
        "EDM sigma_min text": EDM | {"sigma_min": "0.002"},
        "EDM sigma_max list": EDM | {"sigma_max": [80]},
        "EDM sigma_data text": EDM | {"sigma_data": "0.5"},
        "EDM sigma_data NaN": EDM | {"sigma_data": float("nan")},
        "EDM rho list": EDM | {"rho": [7]},
        "EDM schedule list": EDM | {"sigma_schedule": ["karras"]},
    },
)

# --- the network and its weights -----------------------------------------------------------------

SIZES = {
    "text": "8",
    "null": None,
    "list of texts": ["8"],
    "empty list": [],
    "zero": [0],
    "negative": [-8],
    "fraction": [8.5],
    "NaN": [float("nan")],
    "infinite": [float("inf")],
    "10^12": [10**12],
    "10^30": [10**30],
    "dictionary": {"a": 8},
}
NETWORKS = editing(
    NETWORK,
    **{f"channels {name}": {"block_out_channels": value} for name, value in SIZES.items()},
    **{
        "another size": {"block_out_channels": [16, 16]},
        "layers 10^9": {"layers_per_block": 10**9},
        "layers text": {"layers_per_block": "1"},
        "layers list": {"layers_per_block": [10**9, 10**9]},
        "layers 1e308": {"layers_per_block": 1e308},
        "many blocks": {"down_block_types": ["DownBlock2D"] * 10**4},
        "blocks unknown": {"down_block_types": ["EvilBlock2D", "DownBlock2D"]},
        "blocks code": {"down_block_types": ["__import__('os')", "DownBlock2D"]},
        "blocks number": {"down_block_types": 3},
        "classes 10^12": {"num_class_embeds": 10**12},
        "classes text": {"num_class_embeds": "4"},
        "classes negative": {"num_class_embeds": -4},
        "groups 0": {"norm_num_groups": 0},
        "groups text": {"norm_num_groups": "4"},
        "activation unknown": {"act_fn": "evil"},
        "activation list": {"act_fn": ["silu"]},
        "in_channels text": {"in_channels": "1"},
        "in_channels 10^12": {"in_channels": 10**12},
        "in_channels null": {"in_channels": None},
        "out_channels 3": {"out_channels": 3},
        "sample_size text": {"sample_size": "8"},
        "sample_size negative": {"sample_size": -8},
        "sample_size three": {"sample_size": [8, 8, 8]},
        "head 0": {"attention_head_dim": 0},
        "quantization text": {"quantization_config": "evil"},
        "quantization unknown": {"quantization_config": {"quant_method": "evil"}},
        "quantization without method": {"quantization_config": {"bits": 4}},
        "class unknown": {"_class_name": "Evil", "block_out_channels": ["x"]},
    },
)


def header(content):
    """Return the header of a file of safetensors, and where its numbers begin."""
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), 8 + size


def tampered(change, folder):
    """Write the weights with another header; `change` gets and returns it."""
    content = (folder / WEIGHTS).read_bytes()
    fields, begin = header(content)
    told = json.dumps(change(fields)).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(told)) + told + content[begin:])


def bytes_of(change, folder):
    """Write the weights with other bytes."""
    path = folder / WEIGHTS
    path.write_bytes(change(path.read_bytes()))


def first_tensor(**values):
    """Return a change of a header: values of its first tensor."""

    def change(fields):
        name = next(name for name in fields if name != "__metadata__")
        return fields | {name: fields[name] | values}

    return change


def without_first(fields):
    """Return a header with one tensor less, and the numbers of it given to the next."""
    names = [name for name in fields if name != "__metadata__"]
    fields = {**fields, "more": fields[names[0]]}
    del fields[names[0]]
    return fields


def of_other_shapes(folder):
    """Write weights that fit no layer."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    grown = {k: np.concatenate([v, v]) for k, v in tensors.items()}
    save_file(grown, folder / WEIGHTS, {"format": "pt"})


def of_other_names(folder):
    """Write weights by names that no layer has."""
    from safetensors.numpy import load_file, save_file

    tensors = {f"x.{k}": v for k, v in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


TAMPERED = {
    "empty": partial(bytes_of, lambda b: b""),
    "seven bytes": partial(bytes_of, lambda b: b[:7]),
    "header alone": partial(bytes_of, lambda b: b[:8]),
    "half": partial(bytes_of, lambda b: b[: len(b) // 2]),
    "one byte short": partial(bytes_of, lambda b: b[:-1]),
    "one byte more": partial(bytes_of, lambda b: b + b"\0"),
    "zeros": partial(bytes_of, lambda b: b"\0" * len(b)),
    "text": partial(bytes_of, lambda b: b"version https://git-lfs.github.com/spec/v1\n"),
    "header of 10^18 bytes": partial(bytes_of, lambda b: struct.pack("<Q", 10**18) + b[8:]),
    "header of 2^64 - 1 bytes": partial(bytes_of, lambda b: b"\xff" * 8 + b[8:]),
    "header no JSON": partial(bytes_of, lambda b: b[:8] + b"x" * 40 + b[48:]),
    "header a list": partial(tampered, lambda fields: [1]),
    "header deep": partial(bytes_of, lambda b: struct.pack("<Q", DEEP) + b"[" * DEEP + b[8:]),
    "shape of 10^18": partial(tampered, first_tensor(shape=[10**18])),
    "shape that overflows": partial(tampered, first_tensor(shape=[2**63, 2**63])),
    "shape negative": partial(tampered, first_tensor(shape=[-1])),
    "dtype unknown": partial(tampered, first_tensor(dtype="EVIL")),
    "dtype wider": partial(tampered, first_tensor(dtype="F64")),
    "offsets beyond": partial(tampered, first_tensor(data_offsets=[0, 10**15])),
    "offsets reversed": partial(tampered, first_tensor(data_offsets=[100, 0])),
    "name changed": partial(tampered, without_first),
    "other shapes": of_other_shapes,
    "other names": of_other_names,
}
SHARDED = {
    "outside": {"conv_in.weight": "../../../../etc/passwd"},
    "absolute": {"conv_in.weight": "/etc/passwd"},
    "missing": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors"},
    "number": {"conv_in.weight": 3},
}


def sharded(weight_map, folder):
    """Leave an index of shards in the place of the weights."""
    remove(WEIGHTS, folder)
    index = {"metadata": {"total_size": 8}, "weight_map": weight_map}
    write(f"{WEIGHTS}.index.json", json.dumps(index), folder)


FILES = {f"weights: {name}": change for name, change in TAMPERED.items()}
FILES |= {f"shards: {name}": partial(sharded, value) for name, value in SHARDED.items()}
FILES |= {
    "shards: no map": both(
        partial(remove, WEIGHTS), partial(write, f"{WEIGHTS}.index.json", '{"metadata": {}}')
    ),
    "shards: a list": both(
        partial(remove, WEIGHTS), partial(write, f"{WEIGHTS}.index.json", "[]")
    ),
}

# --- code ----------------------------------------------------------------------------------------


def program(folder):
    """Return a program that says that it ran, with a class that a pipeline may name."""
    return f"open({str(folder.parent / RAN)!r}, 'w').close()\n\nclass Evil:\n    pass\n"


class Bomb:
    """An object that runs code when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (open, (str(self.place), "w"))


def bomb(folder):
    """Return bytes that run code when they are unpickled."""
    return pickle.dumps(Bomb(folder.parent / RAN))


def zipped_bomb(folder):
    """Return a file of `torch.save` that runs code when it is unpickled."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save({"conv_in.weight": Bomb(folder.parent / RAN)}, buffer)
    return buffer.getvalue()


def with_code(change, *files):
    """Return a row that leaves programs in a folder, and changes what names them."""

    def row(folder):
        for file in files:
            write(file, program(folder), folder)
        change(folder)

    return row


def names(component, library, name="Evil", **more):
    """Return a change of the index: where a component comes from."""
    return partial(edit, INDEX, {component: [library, name]} | more)


def pickled(make, name, folder, keep=False):
    """Leave a pickle in the place of the weights, or beside them."""
    if not keep:
        remove(WEIGHTS, folder)
    write(f"unet/{name}", make(folder), folder)


CODE = {
    "module of the folder": with_code(names("unet", "evil"), "evil.py"),
    "module of the component": with_code(names("unet", "evil"), "unet/evil.py"),
    "module of both": with_code(names("unet", "evil"), "evil.py", "unet/evil.py"),
    "package of the folder": with_code(names("unet", "evil_package"), "evil_package/__init__.py"),
    "module of a package": with_code(
        names("unet", "evil_package.inner"), "evil_package/__init__.py", "evil_package/inner.py"
    ),
    "module of the scheduler": with_code(names("scheduler", "evil"), "scheduler/evil.py"),
    "module for the scheduler": with_code(names("scheduler", "evil"), "evil.py"),
    "module above": with_code(names("unet", "../evil"), "evil.py"),
    "module by its path": both(
        with_code(lambda folder: None, "evil.py"),
        lambda folder: names("unet", str(folder / "evil"))(folder),
    ),
    "vae of a module": with_code(names("vae", "evil"), "evil.py", "vae/evil.py"),
    "guider of a module": with_code(names("guider", "evil"), "evil.py", "guider/evil.py"),
    "tokenizer of a module": with_code(
        both(names("tokenizer", "evil"), names("text_encoder", "evil")), "evil.py"
    ),
    "module of the standard library": names("unet", "os", "system"),
    "module that is not imported": names("unet", "antigravity", "fly"),
    "subprocess": names("unet", "subprocess", "Popen"),
    "builtins": names("unet", "builtins", "exec"),
    "torch": names("unet", "torch", "load"),
    "pickle": names("unet", "pickle", "loads"),
    "inner module of diffusers": names("unet", "diffusers.utils", "logging"),
    "inner module of ours": names("unet", "fm_diffusers.training.plugins", "load_plugin"),
    "pipelines of diffusers": names("unet", "pipeline_utils", "os"),
    "ours that is not there": names("unet", "fm_diffusers.evil", "Evil"),
    "name that begins as ours": with_code(
        names("unet", "fm_diffusers_evil"), "fm_diffusers_evil.py"
    ),
    "name that begins as theirs": with_code(names("unet", "diffusers_evil"), "diffusers_evil.py"),
    "empty library": names("unet", ""),
    "relative library": names("unet", ".evil"),
    "our file that was changed, by their word": with_code(
        names("scheduler", "evil_gaussian_flow"), "scheduler/evil_gaussian_flow.py"
    ),
    "class with a dot": names("unet", "diffusers", "utils.logging"),
    "FlashPack": names("unet", "diffusers", "FlashPackEvil"),
    "AutoModel with code": both(
        with_code(names("unet", "diffusers", "AutoModel"), "unet/evil.py"),
        partial(edit, NETWORK, {"auto_map": {"AutoModel": "evil.Evil"}, "_class_name": "Evil"}),
    ),
    "AutoModel of transformers with code": both(
        with_code(names("text_encoder", "transformers", "AutoModel"), "text_encoder/evil.py"),
        names("tokenizer", "transformers", "AutoTokenizer"),
        partial(
            write,
            "text_encoder/config.json",
            json.dumps({"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}),
        ),
        with_code(lambda folder: None, "tokenizer/evil.py"),
        partial(
            write,
            "tokenizer/tokenizer_config.json",
            json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}),
        ),
    ),
    "pickle in place": partial(pickled, bomb, "diffusion_pytorch_model.bin"),
    "zipped pickle in place": partial(pickled, zipped_bomb, "diffusion_pytorch_model.bin"),
    "pickle by the name of safetensors": partial(
        pickled, bomb, "diffusion_pytorch_model.safetensors"
    ),
    "zipped pickle by the name of safetensors": partial(
        pickled, zipped_bomb, "diffusion_pytorch_model.safetensors"
    ),
    "pickle by another name": partial(pickled, bomb, "pytorch_model.bin"),
}
#: Code that lies there and that nothing has a use for: the folder loads, and none of it runs.
ASIDE = {
    "plain": lambda folder: None,
    "pipeline_flow_matching.py": with_code(lambda folder: None, "pipeline_flow_matching.py"),
    "scheduling_gaussian_flow.py": with_code(
        lambda folder: None, "scheduler/scheduling_gaussian_flow.py"
    ),
    "modular_flow_matching.py": with_code(lambda folder: None, "modular_flow_matching.py"),
    "evil.py": with_code(lambda folder: None, "evil.py", "unet/evil.py", "sitecustomize.py"),
    "pipeline.py": with_code(lambda folder: None, "pipeline.py", "unet.py", "__init__.py"),
    "foreign pipeline": with_code(
        partial(edit, INDEX, {"_class_name": ["evil", "Evil"]}), "evil.py"
    ),
    "modules by the names of ours": with_code(
        lambda folder: None, "diffusers.py", "torch.py", "safetensors.py", "fm_diffusers.py"
    ),
    "pickle beside the weights": partial(pickled, bomb, "diffusion_pytorch_model.bin", keep=True),
    "auto_map of a network": both(
        with_code(lambda folder: None, "unet/evil.py"),
        partial(edit, NETWORK, {"auto_map": {"AutoModel": "evil.Evil"}}),
    ),
    "component of no pipeline": with_code(names("evil", "evil"), "evil.py", "evil/evil.py"),
    "component above": with_code(names("../evil", "evil"), "evil.py"),
    "_ignore_files": partial(edit, INDEX, {"_ignore_files": ["unet/config.json"]}),
}

#: All that is refused, by name.
HOSTILE = (
    BROKEN | INDICES | CONFIGS | NETWORKS | FILES | {f"code: {k}": v for k, v in CODE.items()}
)

# --- modular pipelines ---------------------------------------------------------------------------

MODULAR, BLOCKS = "modular_model_index.json", "modular_config.json"


def spec(library="diffusers", name="UNet2DModel", hint=None, **where):
    """Return what a modular index says of a component."""
    beside = {"pretrained_model_name_or_path": None, "subfolder": "unet"}
    where = beside | {"variant": None, "revision": None, "type_hint": hint or [library, name]}
    return [library, name, {k: v for k, v in where.items() if v is not ...}]


def says_of_unet(value, folder):
    """Write into the modular index what the network is."""
    edit(MODULAR, {"unet": value}, folder)


UNETS = {
    "module of the folder": spec("evil", "Evil"),
    "hint of a module": spec(hint=["evil", "Evil"]),
    "module without a hint": spec("evil", "Evil", hint=[None, None]),
    "module of the standard library": spec("os", "system"),
    "hint of builtins": spec(hint=["builtins", "eval"]),
    "no class": spec(name="Evil"),
    "class null": spec(name=None),
    "numbers": [1, 2, 3],
    "place null": ["diffusers", "UNet2DModel", None],
    "place list": ["diffusers", "UNet2DModel", []],
    "place empty": ["diffusers", "UNet2DModel", {}],
    "hint number": spec(hint=3),
    "hint list of one": spec(hint=["diffusers"]),
    "unknown key": ["diffusers", "UNet2DModel", spec()[2] | {"evil": 1}],
}
MODULARS = {
    f"{file} {name}": partial(write, file, text)
    for file in (MODULAR, BLOCKS)
    for name, text in TEXTS.items()
    # neither must say anything
    if name != "empty dictionary"
}
MODULARS |= {
    f"modular: {name}": with_code(partial(says_of_unet, value), "evil.py", "unet/evil.py")
    for name, value in UNETS.items()
}
MODULARS |= {
    "modular: blocks of a module": with_code(
        partial(edit, BLOCKS, {"auto_map": {"ModularPipelineBlocks": "evil.Evil"}}), "evil.py"
    ),
    "modular: blocks text": partial(edit, BLOCKS, {"auto_map": "evil.Evil"}),
    "modular: blocks number": partial(edit, BLOCKS, {"auto_map": 3}),
    "modular: blocks list": partial(edit, BLOCKS, {"auto_map": ["ModularPipelineBlocks"]}),
}
#: What lies in the folder of a component shows when the component is loaded.
MODULARS |= {
    f"modular: {name}": change
    for name, change in (NETWORKS | FILES | {k: CODE[k] for k in CODE if "pickle in" in k}).items()
    if name.split(": ")[-1] in ("layers 10^9", "half", "outside", "pickle in place", "other names")
}
