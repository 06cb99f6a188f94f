"""The table, and whether the targets are reached."""

from collections.abc import Iterable, Mapping, Sequence

from .cases import Target
from .contenders import CONTENDERS, PEERS
from .rows import GpuRow

#: columns; what is wide is in the legend
HEADS = (
    "contender",
    "UNet error",
    "PSNR dB",
    "ms/step",
    "% peak",
    "text ms",
    "VAE ms",
    "s/picture",
    "x",
    "img/s b1",
    "img/s b4",
    "steps/s",
    "cold s",
    "GPU GiB",
)
LEGEND = (
    "UNet error: of the output for one guided pair, |difference| / |output| to the float32 reference; "
    "PSNR: of the first picture",
    "ms/step: the UNet on a guided pair, batch 1 (least..most); % peak: of the measured fp16 matrix products; "
    "steps/s: guided ones within a picture",
    "text, VAE, s/picture: of one picture, from prompt to floats on the host; cold: from the start of the process to "
    "the first picture",
)
_REASON = 170  # characters of a reason


def table(case: str, rows: Sequence[GpuRow], *, steps: int, flops: int | None, teraflops: float | None) -> list[str]:
    """The lines of one case.

    Args:
        case: its name.
        rows: its rows.
        steps: of a picture.
        flops: of a guided step, where they are known.
        teraflops: the ceiling, where it is known.
    """
    peer = peer_of(rows)
    taking_part = [row for row in rows if row.step is not None or row.unet_error is not None]
    lines = [HEADS, *(_cells(row, peer, steps, flops, teraflops) for row in taking_part)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADS))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    counted = "" if flops is None else f", {flops / 1e12:.3g} TFLOP a guided step"
    remarks = [f"{row.contender}: DIFFERS: {row.differs}" for row in rows if row.differs]
    remarks += [f"{row.contender}: {note}" for row in rows for note in row.notes]
    remarks += [
        f"{row.contender}: {'not ' if row.step is None else 'not all '}measured: {_short(row.missing)}"
        for row in rows
        if row.missing
    ]
    against = f"x: times as fast as {peer.contender}" if peer else "x: there is no peer that was measured"
    return [f"== {case}: {steps} steps{counted}; {against}", *text, *remarks]


def peer_of(rows: Iterable[GpuRow]) -> GpuRow | None:
    """The one that the others are measured against."""
    found = {row.contender: row for row in rows if row.counts and 1 in row.pictures}
    return next((found[name] for name in PEERS if name in found), None)


def targets(case: str, rows: Sequence[GpuRow], target: Target | None, *, steps: int) -> list[str]:
    """What one of ours must reach, and whether it does."""
    if target is None:
        return []
    ours = [row for row in rows if row.counts and 1 in row.pictures and CONTENDERS[row.contender].exported]
    if not ours:
        return [f"target, {case}: no contender of ours was measured"]
    best = min(ours, key=lambda row: row.pictures[1].total.median)
    pictures, peer = best.pictures[1], peer_of(rows)
    lines = []
    if target.seconds is not None:
        seconds = pictures.total.median
        goal = f"{steps} steps in under {target.seconds * 1000:.0f} ms"
        lines.append(_target(case, goal, seconds < target.seconds, f"{seconds * 1000:.0f} ms", best))
    if target.steps_per_second is not None:
        speed = steps / pictures.denoise
        goal = f"at least {target.steps_per_second} guided steps/s"
        lines.append(_target(case, goal, speed >= target.steps_per_second, f"{speed:.1f}", best))
    goal = f"at least {target.times_faster} times as fast as diffusers with torch.compile"
    if peer is None or not CONTENDERS[peer.contender].compiles:
        return [*lines, f"target, {case}: {goal}: not known, torch.compile was not measured"]
    ratio = peer.pictures[1].total.median / pictures.total.median
    found = f"{ratio:.2f} times {peer.contender}"
    return [*lines, _target(case, goal, ratio >= target.times_faster, found, best)]


def _target(case: str, goal: str, reached: bool, found: str, row: GpuRow) -> str:
    return f"target, {case}: {goal}: {'REACHED' if reached else 'missed'}: {found} ({row.contender})"


def legend(names: Iterable[str]) -> list[str]:
    """What the contenders are, and the columns."""
    return [*(f"{name}: {CONTENDERS[name].says}" for name in names), *LEGEND]


def ceiling_line(ceiling: Mapping[str, object] | None) -> str:
    """The measured matrix products."""
    if not ceiling or not ceiling.get("teraflops"):
        return "matrix products: not measured"
    found, missing = dict(ceiling["teraflops"]), dict(ceiling["missing"])  # type: ignore[call-overload]
    values = [f"{dtype} {value:.3g} TFLOP/s" for dtype, value in found.items()]
    values += [f"{dtype} not: {_short(reason)}" for dtype, reason in missing.items()]
    return f"matrix products of {ceiling['side']}^3 by {ceiling['by']}: {', '.join(values)}"


def _cells(row: GpuRow, peer: GpuRow | None, steps: int, flops: int | None, teraflops: float | None) -> tuple[str, ...]:
    error = "-" if row.unet_error is None else f"{row.unet_error:.1e}"
    psnr = "-" if row.psnr is None else f"{row.psnr:.1f}"
    if not row.counts or row.step is None:
        return (row.contender, error, psnr, *["-"] * (len(HEADS) - 3))
    step, one, four = row.step, row.pictures.get(1), row.pictures.get(4)
    share = flops / step.median / (teraflops * 1e12) if flops and teraflops else None
    ratio = peer.pictures[1].total.median / one.total.median if peer and one else None
    return (
        row.contender,
        error,
        psnr,
        f"{step.median * 1000:.2f} ({step.least * 1000:.2f}..{step.most * 1000:.2f})",
        "-" if share is None else f"{share * 100:.0f}",
        "-" if one is None else f"{one.text * 1000:.1f}",
        "-" if one is None else f"{one.decode * 1000:.1f}",
        "-" if one is None else f"{one.total.median:.3f}",
        "-" if ratio is None else f"{ratio:.2f}",
        "-" if one is None else f"{1 / one.total.median:.2f}",
        "-" if four is None else f"{4 / four.total.median:.2f}",
        "-" if one is None else f"{steps / one.denoise:.1f}",
        "-" if row.cold_seconds is None else f"{row.cold_seconds:.1f}",
        "-" if row.gpu_memory is None else f"{row.gpu_memory / 2**30:.1f}",
    )


def _short(text: str | None) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= _REASON else f"{line[: _REASON - 3]}..."
