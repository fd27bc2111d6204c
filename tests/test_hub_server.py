"""The loopback Hub, asked by the real clients: what is pushed is what is loaded, and who may.

A client is a function of this file that runs in a process of its own and returns plain data.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hub_server import HubServer, Repo, blob, run

MNIST_CARD = """---
license: mit
configs:
- config_name: mnist
  default: true
  data_files:
  - split: train
    path: mnist/train-*.parquet
  - split: test
    path: mnist/test-*.parquet
---
# MNIST, in the layout of `ylecun/mnist`
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub


def push_twice_and_load() -> Any:
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel

    blocks = dict(down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"])
    unet = UNet2DModel(8, 1, 1, block_out_channels=[32], layers_per_block=1, **blocks)
    pipeline = DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=7))
    commits = [pipeline.push_to_hub("user/ddpm").oid for _ in range(2)]
    loaded = DiffusionPipeline.from_pretrained("user/ddpm", revision=commits[0])
    pairs = zip(unet.state_dict().values(), loaded.unet.state_dict().values(), strict=True)
    steps = loaded.scheduler.config.num_train_timesteps
    return {"commits": commits, "equal": all(torch.equal(*p) for p in pairs), "steps": steps}


@pytest.mark.slow
def test_a_pipeline_comes_back_bit_for_bit_and_a_second_push_changes_nothing(
    hub: HubServer,
) -> None:
    told = run(push_twice_and_load, hub.env)
    repo = hub.repos["model", "user/ddpm"]
    assert told == {"commits": [repo.refs["main"]] * 2, "equal": True, "steps": 7}
    assert len(repo.history) == 2  # the empty tree of the creation, and one commit
    assert set(repo.files) == {
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    assert hub.requests.count("POST /api/models/user/ddpm/commit/main") == 1
    assert [r for r in hub.requests if r.startswith("PUT")]  # the weights went as an LFS file


def outcome(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return call(*args, **kwargs) and 200
    except HfHubHTTPError as error:
        return [error.response.status_code, type(error).__name__]


def knock_with_three_tokens() -> Any:
    from huggingface_hub import HfApi

    api, told = HfApi(), {}
    api.create_repo("user/secret", private=True)
    for name, token in {"right": None, "none": False, "wrong": "hf_wrong"}.items():
        told[f"read, {name}"] = outcome(api.model_info, "user/secret", token=token)
        told[f"write, {name}"] = outcome(api.create_repo, f"user/{name}", token=token)
    return told


def test_a_private_repository_and_every_write_need_the_token(hub: HubServer) -> None:
    assert run(knock_with_three_tokens, hub.env) == {
        "read, right": 200,
        "write, right": 200,
        "read, none": [401, "RepositoryNotFoundError"],
        "write, none": [401, "HfHubHTTPError"],
        "read, wrong": [401, "HfHubHTTPError"],
        "write, wrong": [401, "HfHubHTTPError"],
    }
    assert hub.repos["model", "user/secret"].private
    assert not hub.repos["model", "user/right"].private
    assert len(hub.repos) == 2


def commit_and_delete() -> Any:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import hf_hub_download as download

    api, repo = HfApi(), "user/files"
    with TemporaryDirectory() as folder:
        for path, content in {"a.txt": b"old", "b/c.bin": b"\0\1\2", "b/d/e.txt": b""}.items():
            file = Path(folder, path)
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
        first = api.upload_folder(repo_id=repo, folder_path=folder).oid
    api.upload_file(repo_id=repo, path_in_repo="a.txt", path_or_fileobj=b"new")
    snapshot = Path(snapshot_download(repo))
    told = {
        "snapshot": sorted(str(p.relative_to(snapshot)) for p in snapshot.rglob("*.*")),
        "top": sorted(entry.path for entry in api.list_repo_tree(repo)),
        "a.txt": [Path(download(repo, "a.txt", revision=r)).read_text() for r in (first, "main")],
        "absent": outcome(download, repo, "absent"),
        "revision": outcome(download, repo, "a.txt", revision="absent"),
    }
    api.delete_folder("b/d", repo)
    api.delete_file("a.txt", repo)
    told["left"] = api.list_repo_files(repo)
    api.create_repo("user/gone")
    api.delete_repo("user/gone")
    return told


def test_files_are_committed_read_at_a_revision_and_deleted(hub: HubServer) -> None:
    hub.repos["model", "user/files"] = Repo()
    assert run(commit_and_delete, hub.env) == {
        "snapshot": ["a.txt", "b/c.bin", "b/d/e.txt"],
        "top": ["a.txt", "b"],
        "a.txt": ["old", "new"],
        "absent": [404, "RemoteEntryNotFoundError"],
        "revision": [404, "RevisionNotFoundError"],
        "left": ["b/c.bin"],
    }
    assert hub.repos["model", "user/files"].files == {"b/c.bin": b"\0\1\2"}
    assert ("model", "user/gone") not in hub.repos


def push_and_load_digits() -> Any:
    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Image, load_dataset
    from huggingface_hub import HfApi
    from PIL.Image import fromarray

    features = Features({"image": Image(), "label": ClassLabel(names=list("0123456789"))})
    images = [fromarray(np.full((28, 28), grey, np.uint8)) for grey in range(12)]
    columns = {"image": images, "label": [grey % 10 for grey in range(12)]}
    digits = Dataset.from_dict(columns, features=features)
    name = "ylecun/mnist"
    with TemporaryDirectory() as folder:
        Path(folder, "README.md").write_text(MNIST_CARD)
        for split, rows in {"train": range(10), "test": range(10, 12)}.items():
            file = Path(folder, "mnist", f"{split}-00000-of-00001.parquet")
            file.parent.mkdir(exist_ok=True)
            digits.select(rows).to_parquet(file)
        HfApi().create_repo(name, repo_type="dataset")
        HfApi().upload_folder(repo_id=name, repo_type="dataset", folder_path=folder)
    digits.push_to_hub("user/digits", private=True)
    loaded = load_dataset(name) | {
        "streamed test": load_dataset(name, split="test", streaming=True),
        "pushed": load_dataset("user/digits", split="train"),
    }
    assert all(rows.features == features for rows in loaded.values())
    return {
        key: [(int(np.unique(row["image"]).item()), row["label"]) for row in rows]
        for key, rows in loaded.items()
    }


def test_a_data_set_in_the_layout_of_mnist_is_loaded_whole_and_streamed(hub: HubServer) -> None:
    digits = [[grey, grey % 10] for grey in range(12)]
    assert run(push_and_load_digits, hub.env) == {
        "train": digits[:10],
        "test": digits[10:],
        "streamed test": digits[10:],
        "pushed": digits,
    }
    assert set(hub.repos) == {("dataset", "ylecun/mnist"), ("dataset", "user/digits")}
    assert hub.repos["dataset", "user/digits"].private


def test_contents_have_the_names_that_git_gives_them() -> None:
    assert blob(b"")["oid"] == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # git hash-object
    assert blob(b"what is up, doc?")["oid"] == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
