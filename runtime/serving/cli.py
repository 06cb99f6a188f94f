"""`safelight serve`: an image server for OpenAI's clients, and for people with a browser."""

import argparse
import asyncio
from pathlib import Path

from ..engine_arguments import add_engine_arguments, engine_of
from ..model_folder import open_model_folder
from ..source import bundled_model, local_model
from ..speed import PRESETS
from .settings import ServerSettings

SUMMARY = "serve pictures over HTTP"


#: fields of `ServerSettings` that are arguments of the same name
_SAME = (
    *("model", "name", "speed", "host", "port", "allow_anyone", "log_file"),
    *("max_queue", "max_batch", "streams", "max_images", "max_steps", "max_pixels", "num_inference_steps"),
    *("max_body", "body_timeout", "drain_timeout"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments; flags are spelled as the fields of `ServerSettings`."""
    what = parser.add_argument_group("what is served")
    what.add_argument("--model", help="a folder or hub id (default: the bundled model)")
    what.add_argument("--name", help="of the model in requests (default: its folder's)")
    what.add_argument("--speed", choices=list(PRESETS), help="what is left out of a picture's computations")
    what.add_argument("--no-safety-checker", action="store_true", help="give pictures back without looking at them")
    add_engine_arguments(parser)
    where = parser.add_argument_group("where, and to whom")
    where.add_argument("--host", default=ServerSettings.host, help="(default: %(default)s: this machine alone)")
    where.add_argument("--port", type=int, default=ServerSettings.port, help="0 chooses one (default: %(default)s)")
    where.add_argument("--api-key", action="append", help="that lets a client in; repeatable")
    where.add_argument("--api-key-file", help="a file of such keys, one a line: a command line can be read by others")
    where.add_argument("--allow-anyone", action="store_true", help="let everybody in who reaches the server")
    where.add_argument("--allowed-host", action="append", help="a name that clients may call it by; repeatable")
    where.add_argument("--no-page", action="store_true", help="no page at /")
    how = parser.add_argument_group("how much")
    for name, text in (
        ("max_queue", "pictures that wait; more are answered with 429"),
        ("max_batch", "pictures that are made at a time, and share the networks' calls"),
        ("streams", "batches that run at a time (default: several for a small model on ONNX Runtime)"),
        ("max_images", "of a request"),
        ("max_steps", "of a picture"),
        ("max_pixels", "of a picture (default: four times the model's own)"),
        ("num_inference_steps", "where a request does not say (default: the pipeline's own)"),
        ("max_body", "bytes of a request"),
    ):
        default = getattr(ServerSettings, name)
        note = "" if default is None else " (default: %(default)s)"
        how.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=text + note)
    for name, text in (
        ("body_timeout", "seconds for a request's body"),
        ("drain_timeout", "seconds for what is left to do when the server is to end"),
    ):
        default = getattr(ServerSettings, name)
        how.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=default, help=f"{text} (default: %(default)s)"
        )
    how.add_argument("--log-file", help="of JSON lines (default: standard error)")


def run(arguments: argparse.Namespace) -> int:
    """Serves until a signal; 0 when everything was finished, 1 when the model could not be opened."""
    settings = settings_of(arguments)
    open_model_folder(local_model(settings.model) if settings.model else bundled_model())  # said before anything starts
    try:
        from .server import serve
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; safelight serve needs: pip install 'safelight[serve]'") from error
    return asyncio.run(serve(settings, on_listening=_say))


def _say(url: str, settings: ServerSettings) -> None:
    print(f"safelight: {settings.model_name} at {url}" + ("; a key is needed" if settings.api_keys else ""), flush=True)


def settings_of(arguments: argparse.Namespace) -> ServerSettings:
    """What the arguments say.

    Raises:
        ValueError: something that cannot be.
        FileNotFoundError: there is no such file of keys.
    """
    keys = list(arguments.api_key or ())
    if arguments.api_key_file is not None:
        lines = Path(arguments.api_key_file).read_text(encoding="utf-8").splitlines()
        keys += [line.strip() for line in lines if line.strip()]
    names = ("model", "name", "speed", "host", "port", "allow_anyone", "max_queue", "max_batch", "max_images")
    more = (
        "streams",
        "max_steps",
        "max_pixels",
        "num_inference_steps",
        "max_body",
        "body_timeout",
        "drain_timeout",
        "log_file",
    )
    return ServerSettings(
        **{name: getattr(arguments, name) for name in (*names, *more)},
        engine=engine_of(arguments),
        safety_checker=not arguments.no_safety_checker,
        api_keys=tuple(keys),
        allowed_hosts=tuple(arguments.allowed_host or ()),
        page=not arguments.no_page,
    )
