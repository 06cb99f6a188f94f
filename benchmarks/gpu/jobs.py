"""Commands that make something, each in a process of its own, within a time."""

import shutil
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..process_tree import failure, run


@dataclass(frozen=True, kw_only=True)
class Job:
    """How a command ended."""

    name: str
    seconds: float = 0.0  # 0 where it had been done before
    failure: str | None = None  # why what it should make is not there


def make(
    name: str, target: Path, command: Callable[[Path], Sequence[str]], *, seconds: float, environment: dict[str, str]
) -> Job:
    """Lets a command fill a folder, unless that is there already.

    Args:
        name: of the job.
        target: the folder, which is there as a whole or not at all.
        command: of the folder that it is to fill, which is not there yet; its parent is.
        seconds: after which it is stopped.
        environment: of the process.
    """
    if target.exists():
        return Job(name=name)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    job = perform(
        name, command(partial), log=target.with_name(f"{target.name}.log"), seconds=seconds, environment=environment
    )
    if job.failure is None:
        partial.rename(target)
    return job


def perform(name: str, command: Sequence[str], *, log: Path, seconds: float, environment: dict[str, str]) -> Job:
    """Runs a command; the last line of its log is why it failed."""
    if seconds <= 0:
        return Job(name=name, failure="the budget was used up")
    usage = run(command, log=log, time_limit=seconds, environment=environment)
    return Job(name=name, seconds=usage.seconds, failure=failure(usage, log))


@dataclass(frozen=True, kw_only=True)
class Tests:
    """What came of the tests that need a GPU."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: tuple[str, ...] = ()  # names
    missing: str | None = None  # why they were not run, or not to the end

    def line(self) -> str:
        """For a person."""
        counts = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        names = f" ({', '.join(self.failures)})" if self.failures else ""
        return f"GPU tests: {counts}{names}" + (f"; {self.missing}" if self.missing else "")


def run_tests(root: Path, folder: Path, *, seconds: float, environment: dict[str, str]) -> Tests:
    """Runs the tests that need a GPU.

    Args:
        root: of the repository.
        folder: for the report.
        seconds: after which they are stopped.
        environment: of the process.
    """
    tests = root / "tests" / "gpu"
    if not tests.is_dir():
        return Tests(missing=f"not run: there is no {tests.relative_to(root)} here")
    report = folder / "tests.xml"
    report.unlink(missing_ok=True)
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}", "-p", "no:cacheprovider"]
    log = folder / "tests.log"
    usage = run([*pytest, str(tests)], log=log, time_limit=seconds, environment=environment, folder=root)
    if not report.is_file():
        return Tests(missing=f"not run: {failure(usage, log)}")
    return read_report(report)


def read_report(report: Path) -> Tests:
    """Counts what pytest's JUnit XML says."""
    outcomes: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for test in ET.parse(report).getroot().iter("testcase"):
        tags = {child.tag for child in test}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        outcomes[outcome].append(str(test.get("name")))
    return Tests(
        **{outcome: len(names) for outcome, names in outcomes.items()},  # type: ignore[arg-type]
        failures=tuple(outcomes["failed"]),
    )
