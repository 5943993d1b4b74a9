"""What a person is told when something does not work: one sentence that says what to do. Pure."""

from __future__ import annotations

from kumulus.kube import errors

INSTALL = "run `kumulusctl install` (as an administrator of the cluster)"


class Problem(Exception):
    """Something the person at the keyboard has to know; its text is the whole message."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Usage(Problem):
    """The command line does not make sense; exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=2)


def sentence(error: errors.KubeError, *, server: str) -> str:
    """What a failed request means to a person, and what to do about it."""
    if isinstance(error, errors.Unreachable):
        return (
            f"The API server {server} does not answer ({error}); check that it runs, and that "
            "--kubeconfig and --context name the right cluster."
        )
    if not isinstance(error, errors.ApiError):
        return str(error)
    if kinds_missing(error):
        return f"Kumulus is not installed in the cluster {server}: {INSTALL}."
    if error.status == 401:
        return f"The API server {server} does not accept your credentials; log in again or check your kubeconfig."
    if error.status == 403:
        return f"You may not do that: {as_sentence(error.message)} Ask an administrator for a role that allows it."
    if isinstance(error, errors.NotFound):
        return f"Not found: {as_sentence(error.message)}"
    if isinstance(error, errors.Conflict):
        return f"Somebody changed it at the same moment ({as_sentence(error.message)[:-1]}); try again."
    if error.status == 422:
        return f"The API server refuses that: {as_sentence(error.message)}"
    if error.status == 429 or error.status >= 500:
        return f"The API server {server} has trouble ({as_sentence(error.message)[:-1]}); try again in a moment."
    return f"The API server refuses that: {as_sentence(error.message)}"


def kinds_missing(error: errors.KubeError) -> bool:
    """Whether the API server does not even know the kind (it answers such a path with a plain 404)."""
    return isinstance(error, errors.NotFound) and error.reason != "NotFound"


def as_sentence(text: str) -> str:
    """The text as one sentence: a single line that ends in a full stop."""
    line = " ".join(text.split())
    return line if line.endswith((".", "!", "?")) else f"{line}."
