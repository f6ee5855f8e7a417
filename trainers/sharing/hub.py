"""A run's adapter or model, with its card, on its way to the Hugging Face hub."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lora_core.config import CONFIG_FILE as ADAPTER_CONFIG
from lora_core.files import read_json_object
from lora_core.models.pretrained.source import CONFIG_FILE, EMBEDDED, HUB_ID
from trainers.sharing.card import CARD, EMBEDDED_ID

REMEDIES = {
    401: "The hub does not accept the token: log in again with `hf auth login`, or set HF_TOKEN.",
    403: "The token may not write there: take one with write access (https://huggingface.co/settings/tokens), or "
    "another name.",
    404: "There is no such place that the token may see: check the name before the slash.",
    409: "Something else has changed the repository meanwhile: run the same again.",
    413: "A file is larger than the hub takes.",
    429: "The hub has had too many requests: wait some minutes and run the same again.",
}
"""What to do, by the status with which the hub answers."""


@dataclass(frozen=True)
class Upload:
    """One file, as it goes to the hub."""

    name: str
    """With / between its folders."""
    content: Path | bytes
    """Where it lies, or what it holds there."""

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def uploads(folder: Path) -> list[Upload]:
    """The files of an adapter's or a model's folder as the hub is to have them, sorted by name.

    An adapter of the embedded model names that model as the hub knows it.

    Raises:
        ValueError: the folder holds neither an adapter nor a model, or no card.
    """
    if not any((folder / name).is_file() for name in (ADAPTER_CONFIG, CONFIG_FILE)):
        raise ValueError(f"{folder} holds neither an adapter nor a model: name a finished run, its adapter/ or best/.")
    if not (folder / CARD).is_file():
        raise ValueError(f"{folder} has no {CARD} that says what it is: name the run, which writes one, or write it.")
    found = [
        Upload(path.relative_to(folder).as_posix(), path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return [_with_public_base(upload) if upload.name == ADAPTER_CONFIG else upload for upload in found]


def _with_public_base(upload: Upload) -> Upload:
    assert isinstance(upload.content, Path)
    values = read_json_object(upload.content, "Save or copy the adapter again.")
    if values.get("base_model_name_or_path") != EMBEDDED:
        return upload
    values["base_model_name_or_path"] = EMBEDDED_ID
    return Upload(upload.name, (json.dumps(values, indent=2) + "\n").encode())


def check_name(name: str) -> None:
    """Raises ValueError for what is no name of a repository of the hub."""
    if not HUB_ID.fullmatch(name) or "/" not in name:
        raise ValueError(f"{name!r} is no repository of the hub: expected user/name.")


def push(files: list[Upload], name: str, *, private: bool | None = None, message: str = "") -> str:
    """Make a repository for a model if there is none, and commit files into it; the commit's address.

    Args:
        name: user/name.
        private: whether a new repository is; None: as the user's settings have it.
        message: of the commit.

    Raises:
        ValueError: there is no token, or the hub refuses (the message says what to do).
    """
    import huggingface_hub
    from huggingface_hub import CommitOperationAdd, HfApi, constants, errors

    check_name(name)
    if not huggingface_hub.get_token():
        raise ValueError(
            "There is no token for the hub. Log in with `hf auth login`, or set HF_TOKEN to a token with write access "
            "(https://huggingface.co/settings/tokens)."
        )
    api = HfApi(library_name="lora-core")
    additions = [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file.content) for file in files]
    # The hub's HTTP library is another by version; its errors are not all OSErrors.
    failures = cast(tuple[type[Exception], ...], (OSError, *errors.HfHubHTTPError.__bases__))
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.create_commit(name, additions, commit_message=message or "Upload with lora-core")
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        said = (error.server_message or str(error)).splitlines()[0] if (error.server_message or str(error)) else ""
        remedy = REMEDIES.get(status, "Run the same again later: the hub has failed.")
        raise ValueError(f"{name} was not written (status {status}: {said}). {remedy}") from error
    except failures as error:
        cause = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}: {cause}), so {name} was not written. "
            "Connect, and run the same again."
        ) from error
    return commit.commit_url
