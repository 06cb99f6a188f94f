"""What the hub's client raises, in one sentence that says what to do; no sentence holds a token."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_TOKEN = re.compile(r"[!-~]+")
_SIGN_IN = "`hf auth login`, HF_TOKEN or --token (token=) says who asks"


@contextmanager
def in_the_users_words(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Iterator[None]:
    """Turns what the client raises in the block into what a user can act on.

    Args:
        repo_id: owner/name.
        revision: that is asked for.
        token: that is used.

    Raises:
        FileNotFoundError: there is no such repository, revision or file.
        PermissionError: the repository is gated, or the token is refused.
        ConnectionError: the hub cannot be reached, or is out of order.
        ValueError: the token cannot be one.
    """
    if token is not None and not _TOKEN.fullmatch(token):
        raise ValueError("the token is empty, or has characters that no token has; it is not shown here")
    try:
        yield
    except Exception as error:
        if (explained := _explained(error, repo_id, revision, token)) is None:
            raise
        raise explained from error


def _explained(error: BaseException, repo_id: str, revision: str | None, token: str | None) -> Exception | None:
    """What to raise in place of an error; None where it speaks for itself."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    match error:
        case errors.GatedRepoError():
            return PermissionError(f"{repo_id} is gated: accept its licence at {hub}/{repo_id}; {_SIGN_IN}")
        case errors.RevisionNotFoundError():
            return FileNotFoundError(f"{repo_id} has no revision {revision!r}{_known_revisions(repo_id, token)}")
        case errors.RepositoryNotFoundError():
            return FileNotFoundError(f"{hub} has no repository {repo_id}, or it is private; {_SIGN_IN}")
        case errors.HfHubHTTPError(response=response) if response.status_code == 401:
            return PermissionError(f"{hub} does not know the token, or needs one; {_SIGN_IN}")
        case errors.HfHubHTTPError(response=response) if response.status_code == 403:
            return PermissionError(f"{hub} does not allow this for {repo_id}; {_SIGN_IN}")
        case errors.HfHubHTTPError(response=response) if response.status_code >= 429:
            return ConnectionError(f"{hub} is out of order (status {response.status_code})")
        case errors.LocalEntryNotFoundError() | RuntimeError() if error.__cause__ is not None:
            return _explained(error.__cause__, repo_id, revision, token)
    if type(error).__module__.partition(".")[0] in ("builtins", "safelight", "huggingface_hub"):
        return None
    # a connection that breaks is the HTTP library's own, and the library changes
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ConnectionError(f"{hub} cannot be reached ({reason})")


def _known_revisions(repo_id: str, token: str | None) -> str:
    """The branches and tags of a repository, to end a sentence with, if the hub tells them."""
    from huggingface_hub import HfApi

    with suppress(Exception):
        refs = HfApi(token=token).list_repo_refs(repo_id)
        return f"; it has {', '.join(ref.name for ref in [*refs.branches, *refs.tags])}, and commits by their full hash"
    return ""
