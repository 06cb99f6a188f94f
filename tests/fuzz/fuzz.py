"""Bytes that nobody thought of, for everything that reads what a client sends: only an `ApiError` may come out.

`python tests/fuzz/fuzz.py TARGET [libFuzzer's flags]` with a target of image, mask, request or form. Coverage
leads it through Python's code, Pillow's among it; Pillow's C is run, not seen. The corpus starts with files that this
makes, and lives in a folder that is gone afterwards. What fails is left in the working folder as `crash-...`.
"""

import asyncio
import io
import json
import logging
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["safelight.runtime.serving", "PIL", "starlette", "python_multipart", "json"]):
    import numpy as np
    import PIL.JpegImagePlugin
    import PIL.MpoImagePlugin
    import PIL.PngImagePlugin
    import PIL.TiffImagePlugin  # EXIF
    import PIL.WebPImagePlugin
    from PIL import Image

    from safelight.runtime.serving import app
    from safelight.runtime.serving.errors import ApiError
    from safelight.runtime.serving.image_request import EDIT_FIELDS, GENERATION_FIELDS, check_sides, read_request
    from safelight.runtime.serving.model_card import ModelCard
    from safelight.runtime.serving.openapi_schemas import CODES
    from safelight.runtime.serving.settings import ServerSettings
    from safelight.runtime.serving.uploads import read_image, read_mask

LIMITS = ("-rss_limit_mb=2048", "-timeout=20", "-max_len=20000", "-print_final_stats=1", "-verbosity=1")
BOUNDARY = b"frontier"
SIDE = 24

CARD = ModelCard(
    id="emoji",
    created=1,
    pipeline="StableDiffusionPipeline",
    backend="none",
    width=64,
    height=64,
    factor=8,
    most_pixels=128 * 128,
    width_range=(8, 2048),
    height_range=(8, 2048),
    num_inference_steps=50,
    guidance_scale=7.5,
    strength=0.8,
    scheduler="PNDMScheduler",
    schedulers=("DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"),
    generations=True,
    edits=True,
    masks=True,
)
SETTINGS = ServerSettings()
APPLICATION = app.create_app(SETTINGS)
APPLICATION.state.dispatcher.card = CARD


# targets


def image(data: bytes) -> None:
    found = read_image(data, most_pixels=1 << 20)
    assert found.ndim == 3
    assert found.shape[2] == 3
    assert found.dtype == np.uint8
    assert 0 < found.size <= 3 << 20


def mask(data: bytes) -> None:
    found = read_mask(data, width=SIDE, height=SIDE)
    assert found.shape == (SIDE, SIDE)
    assert set(np.unique(found).tolist()) <= {0, 255}


def request(data: bytes) -> None:
    for given in (None, np.zeros((64, 64, 3), np.uint8)):
        try:
            found = read_request(app._json_object(data), CARD, SETTINGS, image=given)
        except ApiError as error:
            check_error(error)
            continue
        check_sides(found.width, found.height, CARD)
        found.prompt.encode()
        json.dumps([found.guidance_scale, found.timeout, found.strength], allow_nan=False)


def form(data: bytes) -> None:
    """The whole way of a form through the application, until its pictures would be made."""
    status, body = asyncio.run(answer_to(data))
    error = json.loads(body)["error"]
    assert status in (400, 404, 429), body
    assert error["code"] in CODES[status], body


async def answer_to(data: bytes) -> tuple[int, bytes]:
    incoming = [{"type": "http.request", "body": data, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0) if incoming else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=" + BOUNDARY)]
    path = "/v1/images/edits"
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "headers": headers,
    }
    await APPLICATION({**scope, "query_string": b"", "client": None}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def full(*_: object) -> None:
    raise ApiError(429, "full", code="queue_full", retry_after=1)


TARGETS: dict[str, Callable[[bytes], None]] = {"image": image, "mask": mask, "request": request, "form": form}


def check_error(error: ApiError) -> None:
    assert error.status in (400, 404), error
    json.dumps(error.body(), ensure_ascii=False).encode()
    assert len(error.message) < 1000
    error.headers()


# seeds


def pictures() -> Iterator[bytes]:
    """Files of every format and mode, with text, EXIF, profiles and further pictures."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    full = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("comment", "text")
    info.add_text("packed", "text" * 50, zip=True)
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>')
    rgb = full.convert("RGB")
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield saved(full.convert(mode), "PNG", pnginfo=info, exif=exif.tobytes(), icc_profile=b"profile")
    yield saved(full.convert("P"), "PNG", transparency=bytes(range(200)))
    yield saved(Image.fromarray(np.full((SIDE, SIDE), 1000, np.uint16)), "PNG")
    yield saved(rgb, "PNG", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))])
    for mode in ("L", "RGB", "CMYK"):
        yield saved(full.convert(mode), "JPEG", exif=exif.tobytes(), icc_profile=b"p" * 100, comment=b"comment")
    yield saved(rgb, "JPEG", progressive=True, restart_marker_blocks=1)
    yield saved(rgb, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    for options in (
        {"lossless": True},
        {"lossless": False},
        {"save_all": True, "append_images": [Image.new("RGB", (SIDE, SIDE))]},
    ):
        yield saved(full, "WEBP", exif=exif.tobytes(), xmp=b"<x/>", **options)


def saved(picture: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def bodies() -> Iterator[bytes]:
    yield b'{"prompt": "a cat"}'
    full = dict.fromkeys(EDIT_FIELDS) | {"prompt": "a cat"}
    yield json.dumps(full).encode()
    yield json.dumps(full | {"seed": 1, "n": 2, "size": "64x64", "stream": True, "partial_images": 2}).encode()
    yield json.dumps(
        full | {"guidance_scale": 7.5, "timeout": 10, "output_format": "jpeg", "output_compression": 5}
    ).encode()
    yield json.dumps({"prompt": "\ud800", "scheduler": "DDIMScheduler", "priority": "low", "quality": "hd"}).encode()
    yield b'{"prompt": "a", "guidance_scale": NaN, "seed": 18446744073709551616, "size": "0x0"}'
    yield b'{"prompt": "a", "prompt": ["b", {"c": []}], "model": 1e999}'


def forms() -> Iterator[bytes]:
    for picture in pictures():
        yield formed(
            ("image", picture), ("prompt", b"a cat"), ("seed", b"1"), ("strength", b"0.5"), ("stream", b"true")
        )
    yield formed(("image[]", next(pictures())), ("mask", next(pictures())), ("n", b"2"), ("prompt", b""))
    yield formed(("image", b"http://127.0.0.1/"), ("prompt", b"x"))


def formed(*parts: tuple[str, bytes]) -> bytes:
    found = b""
    for name, content in parts:
        file = '; filename="a.png"\r\nContent-Type: image/png' if len(content) > 64 else ""
        found += (
            b"--"
            + BOUNDARY
            + f'\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
            + content
            + b"\r\n"
        )
    return found + b"--" + BOUNDARY + b"--\r\n"


SEEDS = {"image": pictures, "mask": pictures, "request": bodies, "form": forms}
WORDS = [
    *GENERATION_FIELDS,
    "strength",
    "image[]",
    "mask",
    "tEXt",
    "zTXt",
    "iTXt",
    "iCCP",
    "eXIf",
    "acTL",
    "fcTL",
    "tRNS",
]


def with_sums(data: bytes) -> bytes:
    """A PNG with the check sums that its chunks have: otherwise hardly a change gets past them."""
    found, at = bytearray(data), 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(found):
        end = at + 8 + int.from_bytes(found[at : at + 4], "big")
        if end + 4 > len(found):
            break
        found[end : end + 4] = struct.pack(">I", zlib.crc32(found[at + 4 : end]))
        at = end + 4
    return bytes(found)


def mutated(data: bytes, most: int, seed: int) -> bytes:
    changed: bytes = atheris.Mutate(data, most)
    return with_sums(changed) if seed % 4 else changed


def main(arguments: list[str]) -> None:
    name, *flags = arguments
    APPLICATION.state.dispatcher.submit = full
    logging.disable()  # what parsers say of each form
    target = TARGETS[name]

    def one(data: bytes) -> None:
        try:
            target(data)
        except ApiError as error:
            check_error(error)

    with tempfile.TemporaryDirectory() as folder:
        corpus, words = Path(folder, "corpus"), Path(folder, "words")
        corpus.mkdir()
        for number, seed in enumerate(SEEDS[name]()):
            one(seed)
            (corpus / str(number)).write_bytes(seed)
        words.write_text("".join(f'"{word}"\n' for word in WORDS))
        options = {"custom_mutator": mutated} if name in ("image", "mask") else {}
        atheris.Setup([sys.argv[0], *LIMITS, f"-dict={words}", *flags, str(corpus)], one, **options)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
