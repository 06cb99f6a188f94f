"""`safelight engines list|prune`."""

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from .machine import Machine, this_machine
from .prune import prune
from .record import EngineRecord, built_at
from .store import EngineStore, default_store

SUMMARY = "list the engines that were built, or remove those that are of no use any more"

_HEADINGS = ("engine", "dtype", "built for", "on", "shapes", "size", "age", "weights", "fits here")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="one line for each engine", description="One line for each engine.")
    listing.add_argument("--json", action="store_true", help="print everything that is known of them, as JSON")
    pruning = verbs.add_parser(
        "prune",
        help="remove engines that cannot be loaded here any more",
        description="Remove engines that cannot be loaded here any more: of another version of the TensorRT that is "
        "installed, damaged, or left by a build that was killed. Engines for other GPUs stay.",
    )
    pruning.add_argument(
        "--older-than", metavar="DAYS", type=_days, help="also those that were built longer ago than this"
    )
    pruning.add_argument("--all", action="store_true", help="all of them")
    pruning.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    for verb in (listing, pruning):
        verb.add_argument("--store", metavar="DIR", type=Path, help="of the engines (default: in the user's cache)")


def run(arguments: argparse.Namespace) -> int:
    """Lists or prunes."""
    store = default_store() if arguments.store is None else EngineStore(arguments.store)
    if arguments.store is not None and not store.folder.is_dir():
        raise FileNotFoundError(f"{store.folder} is no folder of engines: it does not exist")
    return _list(store, arguments) if arguments.verb == "list" else _prune(store, arguments)


def _list(store: EngineStore, arguments: argparse.Namespace) -> int:
    records, machine = store.records(), this_machine()
    if arguments.json:
        print(json.dumps([_description(store, record, machine) for record in records], indent=2))
    elif records:
        rows = [_HEADINGS, *(_row(store, record, machine) for record in records)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    else:
        print(f"{store.folder} has no engines; safelight build makes them")
    return 0


def _prune(store: EngineStore, arguments: argparse.Namespace) -> int:
    pruned = prune(
        store,
        this_machine(),
        older_than=arguments.older_than,
        everything=arguments.all,
        dry_run=arguments.dry_run,
    )
    verb = "would be removed" if arguments.dry_run else "removed"
    for each in pruned:
        print(f"{each.name} {verb}, {_megabytes(each.size)}: {each.reason}")
    total = sum(each.size for each in pruned)
    print(f"{len(pruned)} {'engine' if len(pruned) == 1 else 'engines'} {verb}, {_megabytes(total)}")
    return 0


def _description(store: EngineStore, record: EngineRecord, machine: Machine) -> dict[str, Any]:
    refusal = machine.refusal(record.identity)
    name = record.identity.name
    return {
        "name": name,
        "path": str(store.path(name, ".plan")),
        "bytes": store.size(name),
        "fits": refusal is None,
        "why_not": refusal,
        **asdict(record),
    }


def _row(store: EngineStore, record: EngineRecord, machine: Machine) -> tuple[str, ...]:
    identity = record.identity
    refusal = machine.refusal(identity)
    return (
        identity.name,
        identity.dtype,
        f"{identity.flavour} {identity.version}",
        identity.gpu_name or ", ".join(identity.gpus),
        "; ".join(profile.label for profile in identity.profiles),
        _megabytes(store.size(identity.name)),
        _age(datetime.now(UTC) - built_at(record)),
        "stripped" if identity.weights is None else "in the plan",
        f"no: {refusal}" if refusal else "yes" if machine.gpus else "yes, but there is no GPU",
    )


def _age(age: timedelta) -> str:
    for unit, seconds in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (count := int(age.total_seconds() // seconds)) > 0:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "new"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _days(text: str) -> timedelta:
    """A number of days.

    Raises:
        ArgumentTypeError: the text is none.
    """
    try:
        days = float(text)
        if not days >= 0:
            raise ValueError
        return timedelta(days=days)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"must be a number of days, such as 30, got {text!r}") from None
