r"""The Hub: a repository before the training, and what was trained into it afterwards.

The Hub's client waits for ever by default. Here no request waits longer than `SILENCE` for a sign
of the server. What is to be pushed is complete in its folder before; a push that fails is tried
again, and what has failed for good is told with the command that pushes it later.
"""

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from accelerate import Accelerator
from huggingface_hub import create_repo, set_client_factory, upload_folder

from fm_diffusers.training.faults import Fault, line

if TYPE_CHECKING:
    from fm_diffusers.training.arguments import TrainingArguments

#: What stays on the machine of the training.
PRIVATE = [
    "checkpoint-*",
    "partial-*",
    "logs/*",
    "samples-*",
    "cache/*",
    ".cache/*",
    ".run.lock",
]
#: Seconds without a sign of the Hub after which a request has failed.
SILENCE = 60.0
#: Seconds before a push is tried once more, and again.
PAUSES = (2.0, 10.0)
#: Answers of the Hub that another time would not be others: of tokens, names and cards.
FINAL = {400, 401, 403, 404, 409, 422}

Pushed = TypeVar("Pushed")


def answer_in_time() -> None:
    """Let every request to the Hub fail that is not answered in time, of this process."""
    set_client_factory(client)


def client() -> Any:
    """Return a client of huggingface_hub that does not wait for ever."""
    from huggingface_hub.utils._http import default_client_factory

    made = default_client_factory()
    made.event_hooks = made.event_hooks | {
        "request": [*made.event_hooks.get("request", []), limit]
    }
    return made


def limit(request: Any) -> None:
    """Give a request of httpx the times that it leaves open; many say `timeout=None`."""
    given = request.extensions.get("timeout") or {}
    parts = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {p: given.get(p) or SILENCE for p in parts}


def attempts(call: Callable[[], Pushed]) -> Pushed:
    """Return what a call to the Hub returns, tried once more after every pause."""
    answer_in_time()
    for pause in PAUSES:
        try:
            return call()
        except Exception as error:  # of the network, in the words of whichever library
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status in FINAL:
                raise
            print(f"the Hub does not answer as it should ({line(error)}): again in {pause:g} s")
            time.sleep(pause)
    return call()


def create_repository(args: "TrainingArguments", accelerator: Accelerator) -> str | None:
    """Create the repository to push to, before the training, so that it cannot fail at the end.

    Raises:
        Fault: if the Hub does not answer, or refuses.
    """
    if not args.push_to_hub or not accelerator.is_main_process:
        return None
    name = args.hub_model_id or Path(args.output_dir).resolve().name

    def create() -> str:
        private, token = args.hub_private_repo, args.hub_token
        return create_repo(name, private=private, token=token, exist_ok=True).repo_id

    try:
        return attempts(create)
    except Exception as error:
        raise Fault(
            f"the repository {name} cannot be created on the Hub ({line(error)}), so nothing was "
            "begun: log in with `hf auth login`, choose another --hub_model_id, or train without "
            "--push_to_hub and push later"
        ) from error


def push(folder: Path, repo_id: str, message: str, token: str | None = None) -> None:
    """Upload a saved pipeline with its card, without checkpoints and logs.

    Raises:
        Fault: if that fails again and again; it tells the command that pushes later.
    """
    try:
        url = attempts(
            lambda: upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                ignore_patterns=PRIVATE,
                commit_message=message,
                token=token,
            )
        )
    except Exception as error:
        raise Fault(
            f"{folder} is complete, but it could not be pushed ({line(error)}); push it later by: "
            f"{upload_command(folder, repo_id)}"
        ) from error
    print(f"pushed to {url}")


def upload_command(folder: Path, repo_id: str) -> str:
    """Return the command line that pushes a folder."""
    excluded = (word for pattern in PRIVATE for word in ("--exclude", pattern))
    return shlex.join(["hf", "upload", repo_id, str(folder), ".", *excluded])
