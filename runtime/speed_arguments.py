"""The options of a command that say what is left out of a picture, and how its parameters record that."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from .backends import AUTO
from .speed import PRESETS, Speed

#: the parameter that records what was left out: every option's value, so that later presets make no other picture
SPEED = "speed"
#: of that record: the preset that was named, if one was
_PRESET = "preset"


def add_speed_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options; see `recorded_speed`."""
    parser.add_argument(
        "--speed",
        choices=list(PRESETS),
        help="balanced: leave out what hardly shows, and compute in the fastest precision if --precision names none "
        "(default: exact)",
    )
    parser.add_argument(
        "--guidance-interval",
        metavar="START:STOP",
        help="compute guidance from one part of the way to another, 0 to 1, and the prompt's half alone elsewhere",
    )
    parser.add_argument("--deep-cache", type=int, metavar="N", help="compute the whole UNet in every Nth call only")
    parser.add_argument(
        "--reuse-threshold", type=float, help="use a prediction again where latents move evenly, such as 0.05; 0 is off"
    )


def recorded_speed(arguments: argparse.Namespace, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The parameter `SPEED` of a picture by its name, or nothing where everything is computed.

    Args:
        arguments: what is given here takes precedence.
        recorded: the parameters of a picture that is made again.

    Raises:
        ValueError: a value that is none of the option's.
    """
    before = recorded.get(SPEED, {})
    if not isinstance(before, Mapping):
        raise ValueError(f"the picture's speed must be options by name, got {before!r}")
    preset = before.get(_PRESET) if arguments.speed is None else arguments.speed
    speed = speed_of_record(before) if arguments.speed is None else PRESETS[arguments.speed]
    given = {
        "guidance_interval": None if arguments.guidance_interval is None else _interval(arguments.guidance_interval),
        "deep_cache_interval": arguments.deep_cache,
        "reuse_threshold": arguments.reuse_threshold,
    }
    speed = replace(speed, **{name: value for name, value in given.items() if value is not None})
    if preset not in (None, *PRESETS):
        raise ValueError(f"unknown speed {preset!r}; known: {', '.join(PRESETS)}")
    if preset == "exact" or preset is None:
        return {} if speed == Speed() else {SPEED: asdict(speed)}
    return {SPEED: {_PRESET: preset, **asdict(speed)}}


def speed_of_record(record: Mapping[str, Any]) -> Speed:
    """What the parameter says.

    Raises:
        ValueError: an option that is not known, or has no such value.
    """
    return Speed.of_record({name: value for name, value in record.items() if name != _PRESET})


def precision_of(parameters: Mapping[str, Any], precision: Any) -> Any:
    """The precision that was asked for; the fastest where a preset that leaves out something was, and no precision."""
    return AUTO if precision is None and _PRESET in parameters.get(SPEED, {}) else precision


def _interval(text: str) -> tuple[float, float]:
    start, colon, stop = text.partition(":")
    try:
        if colon:
            return float(start), float(stop)
    except ValueError:
        pass
    raise ValueError(f"--guidance-interval must be START:STOP, such as 0:0.6, got {text!r}")
