"""The options of a command that say which engine runs the networks, and how."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_engine_arguments(parser: argparse.ArgumentParser, *, backend: str = "auto") -> None:
    """Adds the options; see `engine_of`.

    Args:
        parser: of the command.
        backend: the default.
    """
    parser.add_argument("--backend", default=backend, help="(default: %(default)s)")
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda or cuda:N; with OpenVINO gpu, gpu:N or npu (default: %(default)s)"
    )
    parser.add_argument(
        "--engines", type=Path, metavar="DIR", help="where safelight build has put them (default: the cache)"
    )
    parser.add_argument(
        "--precision",
        metavar="PRECISION",
        help="of the arithmetic: fp32, bf16, fp16, auto for the fastest that the device has; or by network, "
        "unet=bf16,vae_decoder=fp32 (default: as exported)",
    )
    parser.add_argument("--threads", type=int, help="of the CPU (default: the engine's choice)")
    parser.add_argument(
        "--engine-option", action="append", metavar="NAME=VALUE", help="the engine's own, by its own name; repeatable"
    )


def engine_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What these options say, as arguments of `DiffusionPipeline.from_pretrained`.

    Raises:
        ValueError: one of them is not of the form that it has to be.
    """
    return {
        "backend": arguments.backend,
        "device": arguments.device,
        "engines": arguments.engines,
        "precision": _precision(arguments.precision),
        "threads": arguments.threads,
        "engine_options": dict(named_value("--engine-option", text) for text in arguments.engine_option or ()),
    }


def named_value(option: str, text: str) -> tuple[str, Any]:
    """The name and the value of NAME=VALUE; a value that is no JSON is a string.

    Raises:
        ValueError: the text is not of that form.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"{option} must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _precision(text: str | None) -> str | dict[str, str] | None:
    if text is None or "=" not in text:
        return text
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(network and precision for network, _, precision in pairs):
        raise ValueError(f"--precision must be one, or NETWORK=PRECISION with commas between, got {text!r}")
    return {network: precision for network, _, precision in pairs}
