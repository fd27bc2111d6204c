"""A Hub that is silent, drops what it is sent or refuses does not end a run without a word."""

import os
import shlex
import socket
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path

import huggingface_hub
import pytest
from accelerate import Accelerator
from hub_server import HubServer, Repo, run
from huggingface_hub.utils._http import default_client_factory

from fm_diffusers.training import pushing
from fm_diffusers.training.arguments import TrainingArguments
from fm_diffusers.training.faults import Fault


@contextmanager
def server(answer):
    """Listen, and answer every connection by a function of it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve():
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def drop(connection):
    connection.recv(1 << 16)
    connection.close()


KEPT = []
SERVERS = {"silent": KEPT.append, "dropping": drop}


@pytest.fixture
def hub(monkeypatch):
    """Let the client of this process ask a server, and not wait long."""

    def ask(url):
        api = huggingface_hub.create_repo.__self__
        monkeypatch.setattr(api, "endpoint", url)
        monkeypatch.setattr(api, "token", "hf_test")

    monkeypatch.setattr(pushing, "SILENCE", 0.2)
    monkeypatch.setattr(pushing, "PAUSES", (0.0, 0.01))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield ask
    huggingface_hub.set_client_factory(default_client_factory)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "out" / "checkpoint-3" / "model.safetensors").write_text("state")
    (tmp_path / "out" / "README.md").write_text("card")
    return tmp_path / "out"


@pytest.mark.parametrize("kind", SERVERS)
def test_a_push_that_fails_is_tried_again_and_told_with_the_command_for_later(
    kind, hub, folder, capsys
):
    with server(SERVERS[kind]) as url:
        hub(url)
        with pytest.raises(Fault) as told:
            pushing.push(folder, "user/flow", "Train for 3 steps")
    message = str(told.value)
    assert f"{folder} is complete, but it could not be pushed" in message
    assert f"push it later by: hf upload user/flow {folder} . " in message
    assert len(message.splitlines()) == 1 and "hf_test" not in message
    assert capsys.readouterr().out.count("the Hub does not answer as it should") == 2


@pytest.mark.parametrize("kind", SERVERS)
def test_a_repository_that_cannot_be_created_is_told_before_the_training(kind, hub, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path / "flow"), push_to_hub=True)
    with server(SERVERS[kind]) as url:
        hub(url)
        with pytest.raises(Fault, match="repository flow cannot be created on the Hub .* --pu"):
            pushing.create_repository(args, Accelerator(cpu=True))


def test_what_the_hub_refuses_is_not_asked_again(hub, folder, capsys):
    with HubServer(token="hf_other") as loopback:
        loopback.repos["model", "user/flow"] = Repo()
        hub(loopback.url)
        with pytest.raises(Fault, match="could not be pushed .*401"):
            pushing.push(folder, "user/flow", "Train for 3 steps")
    assert "again in" not in capsys.readouterr().out


def push_through_a_bad_line():
    """Push while every other request finds the server gone."""
    from tempfile import TemporaryDirectory

    from fm_diffusers.training import pushing

    pushing.PAUSES = (0.0,) * 20
    with TemporaryDirectory() as name:
        Path(name, "README.md").write_text("card")
        pushing.push(Path(name), "user/flow", "Train for 3 steps")
    return True


@pytest.mark.slow  # processes of their own
def test_a_push_gets_through_a_bad_line_and_the_command_for_later_pushes_the_same(folder):
    with HubServer() as loopback:
        loopback.repos["model", "user/flow"] = Repo()
        real, calls = loopback.finish_request, []

        def finish_request(request, address):
            calls.append(address)
            if len(calls) % 2:
                return
            real(request, address)

        loopback.finish_request = finish_request
        assert run(push_through_a_bad_line, loopback.env)
        assert set(loopback.repos["model", "user/flow"].files) == {"README.md"}
        assert len(calls) > 1

        loopback.finish_request = real
        loopback.repos["model", "user/later"] = Repo()
        command = shlex.split(pushing.upload_command(folder, "user/later"))
        places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        subprocess.run(command, env=loopback.env | {"PATH": places}, check=True)
        assert set(loopback.repos["model", "user/later"].files) == {"README.md"}
