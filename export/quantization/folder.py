"""A model folder, quantized: copied, its networks written anew, measured, and kept only if that was worth it."""

import errno
import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safelight.runtime.fidelity import FidelityError, Proof, Report
from safelight.runtime.manifest import MANIFEST_NAME, ComponentRecord, Manifest, QuantizationRecord, file_record
from safelight.runtime.model_folder import CANONICAL, GRAPH, ModelFolder, open_model_folder

from ..staging import check_destination, staging
from ..worker import run_apart
from .calibration import Call, calls_of_runs
from .gate import Timing, at_own_size, fidelity, time_networks, verdict
from .network import quantize_network
from .request import Request, check_request
from .stored import WEIGHTS_NAME

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What measuring a quantized folder found."""

    report: Report
    timings: dict[str, Timing]  # by network
    reasons: list[str]  # why it is not worth keeping; empty where it is
    bytes_before: int  # of the quantized networks' weights
    bytes_after: int

    def __str__(self) -> str:
        times = [
            f"{name}: {timing.ratio:.2f} x the time of {timing.backend} in its fastest precision "
            f"({statistics.median(timing.source):.3g} s a call)"
            for name, timing in self.timings.items()
        ]
        sizes = f"weights: {self.bytes_after / 1e6:.1f} MB, {self.bytes_before / 1e6:.1f} MB before"
        return "\n".join([str(self.report), "", *times, sizes, *(f"not within the gate: {it}" for it in self.reasons)])


def quantize_model(
    source: ModelFolder,
    destination: Path,
    request: Request,
    *,
    backend: str,
    threads: int | None = None,
    keep_anyway: bool = False,
    progress: Progress = lambda _: None,
) -> Outcome:
    """Writes a quantized copy of a model folder, if that is faster and faithful.

    Args:
        source: the exported folder.
        destination: a folder that does not exist yet or is empty.
        request: what is quantized.
        backend: by which both are measured.
        threads: of the CPU.
        keep_anyway: whether the folder is kept whatever was found.
        progress: told one line at each stage.

    Returns:
        What was found; the folder is there.

    Raises:
        FidelityError: it is slower than the source or further from the reference than its limits; nothing is left.
        FileExistsError: the destination holds something.
        FileNotFoundError: the source carries no proof.
        ValueError: see `check_request`.
        OSError: the disk is full, or a folder cannot be written.
        WorkerError: the process that quantizes crashed or was killed.
    """
    check_request(source, request)
    check_destination(destination)
    source.verify()
    _check_disk(source, destination)
    assert source.manifest is not None
    proof = Proof.read(source)
    calls: dict[str, list[Call]]
    if request.activations is None:  # no range is wanted
        calls = {name: [call.arrays() for call in proof.of(name)] for name in request.networks}
    else:
        progress("calls of the folder's own runs")
        calls = calls_of_runs(source, proof, request.networks)
    with staging(destination, [str(source.path), asdict(request)], progress) as stage:
        records = _write(source, stage.folder, request, calls, progress)
        quantized = open_model_folder(stage.folder)
        outcome = _measured(source, quantized, request, calls, backend, threads, progress)
        if outcome.reasons and not keep_anyway:
            raise FidelityError("; ".join([*outcome.reasons, "not kept (--keep-anyway keeps it)"]))
        assert quantized.manifest is not None
        records = {name: replace(record, measured=outcome.timings[name].record()) for name, record in records.items()}
        outcome.report.recorded_in(_with_records(quantized.manifest, records)).write(stage.folder)
    return outcome


def _write(
    source: ModelFolder, folder: Path, request: Request, calls: dict[str, list[Call]], progress: Progress
) -> dict[str, QuantizationRecord]:
    """Fills a folder: the source's files, and graphs and weights of the networks that are quantized."""
    assert source.manifest is not None
    own = {file for name in request.networks for file in _files(source.manifest.components[name])}
    for name in source.manifest.files.keys() - own:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path / name, folder / name)
    records = {}
    for name in request.networks:
        (folder / name).mkdir(exist_ok=True)
        work = (source.graph(name), calls[name], request.activations, folder / name)
        records[name], peak = run_apart(quantize_network, *work, name=name, progress=progress)
        progress(f"{name}: finished, with {peak / 1e9:.2f} GB of memory at most")
    manifest = _with_records(source.manifest, records)
    written = {f"{name}/{file}" for name in request.networks for file in (GRAPH, WEIGHTS_NAME)}
    kept = {name: record for name, record in source.manifest.files.items() if name not in own}
    files = {**kept, **{name: file_record(folder / name) for name in written}}
    replace(manifest, files=dict(sorted(files.items()))).write(folder)
    return records


def _files(record: ComponentRecord) -> Iterator[str]:
    """The graphs of a network, its variants' too, and its weights: what a quantized one has others in place of."""
    for graphs in (record.graphs, *record.variants.values()):
        yield from graphs.values()
    yield record.weights


def _with_records(manifest: Manifest, records: dict[str, QuantizationRecord]) -> Manifest:
    """A manifest of which some networks are quantized, and without the fidelity that it had before."""
    components = {name: replace(record, fidelity=None) for name, record in manifest.components.items()}
    for name, record in records.items():
        components[name] = replace(
            components[name],
            quantization=record,
            graphs={CANONICAL: f"{name}/{GRAPH}"},
            variants={},
            cache_branch_id=None,
            weights=f"{name}/{WEIGHTS_NAME}",
        )
    return replace(manifest, components=components, fidelity=None)


def _measured(
    source: ModelFolder,
    quantized: ModelFolder,
    request: Request,
    calls: dict[str, list[Call]],
    backend: str,
    threads: int | None,
    progress: Progress,
) -> Outcome:
    progress("replaying the proof")
    report = fidelity(quantized, request, backend=backend, threads=threads)
    progress("timing both in turn")
    given = {name: at_own_size(source, name, calls[name][0]) for name in request.networks}
    timings = time_networks(source, quantized, given, backend=backend, threads=threads)
    return Outcome(
        report=report,
        timings=timings,
        reasons=verdict(report, timings, faster=request.activations is not None),
        bytes_before=_weight_bytes(source, request),
        bytes_after=_weight_bytes(quantized, request),
    )


def _weight_bytes(folder: ModelFolder, request: Request) -> int:
    assert folder.manifest is not None
    components, files = folder.manifest.components, folder.manifest.files
    return sum(files[components[name].weights].size for name in request.networks)


def _check_disk(source: ModelFolder, destination: Path) -> None:
    """Refuses to begin what the disk has no room for: at most what the source takes."""
    assert source.manifest is not None
    needed = sum(record.size for name, record in source.manifest.files.items() if name != MANIFEST_NAME)
    existing = next(path for path in (destination.absolute(), *destination.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(
            errno.ENOSPC, f"the folder takes up to {needed / 1e9:.1f} GB and {existing} has {free / 1e9:.1f} GB free"
        )
