"""`safelight push MODEL OWNER/NAME`: an exported model to the hub, with a card that shows its fidelity."""

import argparse
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safelight.runtime.hub import in_the_users_words
from safelight.runtime.manifest import MANIFEST_NAME, Manifest, file_record
from safelight.runtime.model_folder import check_inside, open_model_folder
from safelight.runtime.source import is_hub_id

from .model_card import LICENCE_KEYS, model_card

SUMMARY = "put an exported model on the hub"
CARD = "README.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="a folder that safelight export wrote")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="the repository, which is made if it is not there")
    parser.add_argument("--private", action="store_true", help="for nobody else to see")
    parser.add_argument("--token", help="for the hub (default: that of `hf auth login`, or HF_TOKEN)")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(arguments: argparse.Namespace) -> int:
    """Pushes; prints where the model is."""
    create_repository(arguments.repo_id, private=arguments.private, token=arguments.token)
    url = push(arguments.model, arguments.repo_id, token=arguments.token)
    if not arguments.quiet:
        print(url)
    return 0


def create_repository(repo_id: str, *, private: bool = False, token: str | None = None) -> None:
    """Makes a repository on the hub if it is not there yet: whoever cannot write to it learns it before an export.

    Args:
        repo_id: owner/name.
        private: for nobody else to see.
        token: for the hub; the one that `hf auth login` saved, or `HF_TOKEN`, when None.

    Raises:
        PermissionError: the token may not do this, or there is none.
        ConnectionError: the hub cannot be reached.
        ValueError: the name is none; or the repository should be private and is there already, for all to see.
    """
    from huggingface_hub import HfApi

    if not is_hub_id(repo_id):
        raise ValueError(f"a repository on the hub is called owner/name, got {repo_id!r}")
    with in_the_users_words(repo_id, token=token):
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise ValueError(f"{repo_id} is there already and not private; nothing was sent")


def push(
    folder: Path, repo_id: str, *, token: str | None = None, progress: Callable[[str], None] = lambda _: None
) -> str:
    """Puts an exported model into a repository that is there, in one commit, with its card.

    Args:
        folder: an exported model; what its manifest names is sent, and nothing else.
        repo_id: owner/name.
        token: for the hub; the one that `hf auth login` saved, or `HF_TOKEN`, when None.
        progress: told how much is sent, in one line.

    Returns:
        The address of the repository.

    Raises:
        FileNotFoundError: there is no such folder or repository, or the folder lacks a file.
        ValueError: the folder is no model that safelight exported, or a file was changed since.
        PermissionError: the token may not write there.
        ConnectionError: the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    model = open_model_folder(folder)
    if model.manifest is None:
        raise ValueError(f"{folder} was not exported by safelight: it has no {MANIFEST_NAME}")
    _check_files(folder, model.manifest)
    names = [MANIFEST_NAME, *model.manifest.files]
    size = sum((folder / name).stat().st_size for name in names)
    progress(f"{repo_id}: uploading {size / 1e6:.1f} MB in {len(names)} files")
    with in_the_users_words(repo_id, token=token):
        api = HfApi(token=token)
        base = str(model.manifest.source.get("id"))
        card = model_card(model.manifest, repo_id=repo_id, class_name=model.class_name, licence=_licence(base, token))
        operations = [CommitOperationAdd(name, str((folder / name).resolve())) for name in names]
        operations.append(CommitOperationAdd(CARD, card.encode()))
        message = f"{base}, exported by safelight {model.manifest.versions.get('safelight', '')}".rstrip()
        api.create_commit(repo_id, operations, commit_message=message)
        return f"{api.endpoint}/{repo_id}"


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Every file must be the one that was exported, and lie in the folder.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one was changed, or leads elsewhere.
    """
    for name, expected in manifest.files.items():
        path = check_inside(folder, folder / name)
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is not whole: {name} is missing; export it again")
        if file_record(path) != expected:
            raise ValueError(f"{path} is not the file that was exported; export it again")


def _licence(base: str, token: str | None) -> dict[str, str]:
    """What the card of a checkpoint on the hub says of its licence; nothing where it cannot be had."""
    from huggingface_hub import HfApi

    card = None
    if is_hub_id(base):
        with suppress(Exception):  # a card without it is better than no card
            card = HfApi(token=token).model_info(base).card_data
    return {key: str(card[key]) for key in LICENCE_KEYS if card and card.get(key)}
