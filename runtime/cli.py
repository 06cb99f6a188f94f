"""`safelight VERB ...`: finds the verb's module among the installed commands, and runs it."""

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version

_GROUP = "safelight.commands"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0, or 1 after one sentence about what was wrong."""
    logging.basicConfig(format="safelight: %(message)s", level=logging.WARNING)
    commands = {command.name: command for command in entry_points(group=_GROUP)}
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(commands, arguments[0] if arguments else None)
    parsed = parser.parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        if logging.getLogger().isEnabledFor(logging.DEBUG):
            raise
        print(f"safelight: {_sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("safelight: interrupted", file=sys.stderr)
        return 130


def _parser(commands: dict[str, EntryPoint], verb: str | None) -> argparse.ArgumentParser:
    """The parser; only the module of the verb that was asked for is imported, or all of them for the help."""
    parser = argparse.ArgumentParser(prog="safelight", description="Stable Diffusion without PyTorch.")
    parser.add_argument("--version", action="version", version=f"safelight {version('safelight')}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, command in commands.items():
        if verb in commands and name != verb:
            verbs.add_parser(name)
            continue
        module = command.load()
        subparser = verbs.add_parser(name, help=module.SUMMARY, description=module.SUMMARY.capitalize() + ".")
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def _sentence(error: Exception) -> str:
    """What an error says; an OSError of the system with the file that it is about."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return str(error) or type(error).__name__
