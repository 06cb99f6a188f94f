"""What a PNG tells of its making: the parameters as JSON and as text, and the origin as XMP."""

import html
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

Json: TypeAlias = "str | int | float | bool | list[Json] | Mapping[str, Json] | None"

JSON_KEYWORD = "safelight"
TEXT_KEYWORD = "parameters"  # AUTOMATIC1111's, which most viewers and tools read
XMP_KEYWORD = "XML:com.adobe.xmp"
TRAINED_ALGORITHMIC_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LARGEST_TEXT = 1 << 20  # bytes of a text chunk, compressed or not
_MOST_CHUNKS = 1 << 17

# AUTOMATIC1111's word -> ours
_FIELDS = {
    "Steps": "num_inference_steps",
    "Sampler": "scheduler",
    "CFG scale": "guidance_scale",
    "Seed": "seed",
    "Size": "size",
    "Model": "model",
    "Denoising strength": "strength",
}
_SAMPLERS = {
    "DDIMScheduler": "DDIM",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "HeunDiscreteScheduler": "Heun",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "KDPM2DiscreteScheduler": "DPM2",
    "LCMScheduler": "LCM",
    "LMSDiscreteScheduler": "LMS",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}


def parameters_json(parameters: Mapping[str, Json]) -> str:
    """The parameters as JSON text; NumPy scalars become numbers.

    Raises:
        ValueError: NaN, infinity or a lone surrogate, which JSON in UTF-8 cannot hold.
        TypeError: a value of a type that JSON does not have.
    """
    try:
        text = json.dumps(parameters, ensure_ascii=False, allow_nan=False, default=_plain)
        text.encode("utf-8")
    except ValueError as error:
        raise ValueError(f"parameters cannot be written as JSON: {error}") from error
    return text


def parameters_text(parameters: Mapping[str, Json], size: tuple[int, int]) -> str:
    """The parameters as AUTOMATIC1111 writes them: the prompt, `Negative prompt: ...`, `Steps: 25, Sampler: ...`.

    Args:
        parameters: The arguments of the call, by their names; those that this notation has no word for are left out.
        size: Width and height of the image.
    """
    known = {**parameters, "size": f"{size[0]}x{size[1]}"}
    if isinstance(scheduler := known.get("scheduler"), str):
        known["scheduler"] = _SAMPLERS.get(scheduler, scheduler)
    lines = [str(known["prompt"])] if known.get("prompt") is not None else []
    if known.get("negative_prompt"):
        lines.append(f"Negative prompt: {known['negative_prompt']}")
    fields = [f"{word}: {_quoted(known[key])}" for word, key in _FIELDS.items() if known.get(key) is not None]
    return "\n".join([*lines, ", ".join(fields)]).replace("\x00", "\ufffd")  # NUL ends a PNG text


def xmp_packet(digital_source_type: str) -> str:
    """XMP that names the origin of the image, in IPTC's vocabulary."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        ' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
        '  <rdf:Description rdf:about=""\n'
        '    xmlns:xmp="http://ns.adobe.com/xap/1.0/"\n'
        '    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"\n'
        '    xmp:CreatorTool="safelight"\n'
        f'    Iptc4xmpExt:DigitalSourceType="{html.escape(digital_source_type)}"/>\n'
        " </rdf:RDF>\n"
        "</x:xmpmeta>\n"
        '<?xpacket end="w"?>'
    )


def read_parameters(path: str | Path) -> dict[str, Any]:
    """The parameters that `save_png` wrote into a file; no pixel is decoded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no PNG, is damaged, carries no parameters, or more than 1 MiB of them.
    """
    with Path(path).open("rb") as file:
        if file.read(len(_SIGNATURE)) != _SIGNATURE:
            raise ValueError(f"{path} is no PNG file")
        try:
            text = next(_texts(file, JSON_KEYWORD.encode()), None)
            if text is None:
                raise ValueError(
                    f"it carries no parameters: it was not written by {JSON_KEYWORD}, or they were removed"
                )
            parameters = json.loads(text)
        except (ValueError, RecursionError, zlib.error) as error:
            raise ValueError(f"cannot read the parameters of {path}: {error}") from error
    if not isinstance(parameters, dict):
        raise ValueError(f"cannot read the parameters of {path}: they are no JSON object")
    return parameters


def _texts(file: BinaryIO, keyword: bytes) -> Iterator[str]:
    """The text of each text chunk of this keyword (PNG specification, third edition, 11.3.3)."""
    for _ in range(_MOST_CHUNKS):
        header = file.read(8)
        if len(header) < 8:
            raise ValueError("the file is truncated")
        length, kind = struct.unpack(">I4s", header)
        if kind == b"IEND":
            return
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            file.seek(length + 4, 1)  # a chunk ends in four bytes of CRC
            continue
        if length > _LARGEST_TEXT:
            raise ValueError(f"it has a text chunk of {length} bytes, more than the {_LARGEST_TEXT} allowed")
        data, crc = file.read(length), file.read(4)
        if len(data) < length or len(crc) < 4:
            raise ValueError("the file is truncated")
        if zlib.crc32(kind + data) != int.from_bytes(crc, "big"):
            raise ValueError("a text chunk is damaged (its checksum does not match)")
        found, _, content = data.partition(b"\x00")
        if found == keyword:
            yield _text(kind, content)
    raise ValueError(f"it has more than {_MOST_CHUNKS} chunks")


def _text(kind: bytes, content: bytes) -> str:
    if kind == b"tEXt":
        return content.decode("latin-1")
    if kind == b"zTXt":
        return _inflate(content[1:]).decode("latin-1")
    flags, rest = content[:2], content[2:]  # iTXt: compressed?, method, then language and translated keyword
    _, _, rest = rest.partition(b"\x00")
    _, _, rest = rest.partition(b"\x00")
    return (_inflate(rest) if flags[:1] == b"\x01" else rest).decode("utf-8")


def _inflate(data: bytes) -> bytes:
    """Decompressed data, with an end: a few bytes can hold gigabytes."""
    inflater = zlib.decompressobj()
    result = inflater.decompress(data, _LARGEST_TEXT)
    if not inflater.eof:
        raise ValueError(f"the compressed parameters are truncated, or larger than {_LARGEST_TEXT} bytes")
    return result


def _quoted(value: Json) -> str:
    """A value as AUTOMATIC1111 writes it: in quotes where it holds a character that separates fields."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def _plain(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"parameters must be JSON values, got {type(value).__name__}")
