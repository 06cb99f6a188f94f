"""The routes: pictures as OpenAI's clients get them, and an answer for everything that is wrong."""

import asyncio
import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import PROMPT, Control, Served, pixels, run

from safelight.runtime import (
    AutoPipelineForInpainting,
    EulerAncestralDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    bundled_model,
)
from safelight.runtime.backends import Array
from safelight.runtime.image import read_parameters
from safelight.runtime.serving.making import previewed

KEY = "a-key-of-the-test"
JSON = (b"content-type", b"application/json")
BOUNDARY = "a-boundary"
FORM = (b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())


@pytest.fixture(scope="module")
def pipeline() -> Any:
    with StableDiffusionPipeline.from_pretrained(bundled_model(), backend="onnxruntime", threads=1) as opened:
        opened.set_progress_bar_config(disable=True)
        yield opened


def alone(pipeline: Any, **options: Any) -> Array:
    return np.asarray(pipeline(**{"prompt": PROMPT, "num_inference_steps": 4, "seed": 0, **options}).images[0])


def png(array: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="png")
    return file.getvalue()


def form(fields: dict[str, str], files: list[tuple[str, bytes]]) -> list[bytes]:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'.encode() for n, v in fields.items()
    ]
    for name, content in files:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="x.png"\r\n'
        parts.append(head.encode() + b"Content-Type: image/png\r\n\r\n" + content + b"\r\n")
    return [b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()]


def test_a_picture_is_the_pipelines_and_says_how_it_was_made(pipeline: Any, tmp_path: Any) -> None:
    async def test(served: Served) -> None:
        found = await served.generate(guidance_scale=3.0, negative_prompt="red", request_id="mine")
        assert found.status == 200
        np.testing.assert_array_equal(found.pictures[0], alone(pipeline, guidance_scale=3.0, negative_prompt="red"))
        answer = found.json
        assert found.headers["x-request-id"] == answer["id"] == "mine"
        assert (answer["seed"], answer["data"][0]["seed"], answer["size"]) == (0, 0, "64x64")
        assert answer["warnings"] == []
        assert {"queue", "text", "denoise", "decode", "encode", "total"} <= set(answer["timings"])
        assert answer["timings"]["total"] >= answer["timings"]["denoise"] > 0
        assert answer["usage"]["total_tokens"] == answer["usage"]["input_tokens"] + answer["usage"]["output_tokens"]
        file = tmp_path / "picture.png"
        file.write_bytes(base64.b64decode(answer["data"][0]["b64_json"]))
        said = read_parameters(file)
        assert (said["prompt"], said["negative_prompt"], said["guidance_scale"]) == (PROMPT, "red", 3.0)

    run(test)


def test_several_pictures_have_seeds_of_their_own_and_a_scheduler_may_be_named(pipeline: Any) -> None:
    async def test(served: Served) -> None:
        found = await served.generate(n=3, seed=7, scheduler="EulerAncestralDiscreteScheduler", guidance_scale=1)
        assert [each["seed"] for each in found.json["data"]] == [7, 8, 9]
        own = pipeline.scheduler
        pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(own.config)
        try:
            for index, picture in enumerate(found.pictures):
                expected = alone(pipeline, seed=7 + index, guidance_scale=1).astype(int)
                assert np.abs(picture - expected).max() <= 1  # in a batch of three
        finally:
            pipeline.scheduler = own
        assert found.json["seed"] == 7

    run(test)


def test_requests_that_differ_in_everything_share_calls_and_keep_their_pictures(pipeline: Any) -> None:
    kinds: list[dict[str, Any]] = [
        {"seed": 1, "num_inference_steps": 6, "guidance_scale": 7.5},
        {"seed": 2, "num_inference_steps": 3, "guidance_scale": 1.0, "prompt": "pizza on a green background"},
        {"seed": 3, "num_inference_steps": 5, "scheduler": "DDIMScheduler"},
        {"seed": 4, "num_inference_steps": 4, "size": "96x64"},
        {"seed": 5, "num_inference_steps": 4, "scheduler": "HeunDiscreteScheduler", "negative_prompt": "blue"},
    ]
    control = Control()
    control.hold(0)

    async def test(served: Served) -> None:
        first = served.generation(seed=9, num_inference_steps=1)
        await control.until_held()
        others = [served.generation(**kind) for kind in kinds]
        while served.dispatcher.running + served.dispatcher.waiting < 6:
            await asyncio.sleep(0)
        control.release.set()
        answers = await asyncio.gather(first.answer(), *(other.answer() for other in others))
        assert [answer.status for answer in answers] == [200] * 6
        for kind, answer in zip(kinds, answers[1:], strict=True):
            solo = await served.generate(**kind)
            difference = np.abs(answer.pictures[0].astype(int) - solo.pictures[0].astype(int))
            assert difference.max() <= 1
        distinct = [answer.pictures[0] for answer in answers if answer.json["size"] == "64x64"]
        assert min(np.abs(a.astype(int) - b).mean() for i, a in enumerate(distinct) for b in distinct[:i]) > 5
        assert max(control.rows) > 2

    run(test, control)


def test_a_stream_shows_previews_progress_and_the_picture(pipeline: Any) -> None:
    async def test(served: Served) -> None:
        found = await served.generate(stream=True, partial_images=2, progress=True, num_inference_steps=6)
        assert found.headers["content-type"].startswith("text/event-stream")
        kinds = [event["type"].removeprefix("image_generation.") for event in found.events]
        assert kinds.count("partial_image") == 2
        assert kinds[-1] == "completed"
        steps = [event["step"] for event in found.events if event["type"].endswith("progress")]
        assert steps == sorted(steps)
        assert steps[-1] == 6
        previews = [event for event in found.events if event["type"].endswith("partial_image")]
        assert [event["partial_image_index"] for event in previews] == [0, 1]
        picture = pixels(found.events[-1]["b64_json"])
        np.testing.assert_array_equal(picture, alone(pipeline, num_inference_steps=6))
        errors = [np.abs(pixels(event["b64_json"]).astype(int) - picture).mean() for event in previews]
        assert errors[0] > errors[1] > 0  # they come nearer
        clean: list[Array] = []  # what the scheduler takes the latents for without their noise
        kind = type(pipeline.scheduler)
        step = kind.step

        def noted(*arguments: Any, **options: Any) -> Any:
            output = step(*arguments, **options)
            clean.append(output.pred_original_sample)
            return output

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind, "step", noted)
            pipeline(PROMPT, num_inference_steps=6, seed=0)
        for event, latents in zip(previews, (clean[1], clean[3]), strict=True):
            np.testing.assert_array_equal(pixels(event["b64_json"]), np.asarray(previewed(pipeline, latents)))

    run(test)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats(kind: str) -> None:
    async def test(served: Served) -> None:
        sizes = []
        for compression in (5, 95):
            found = await served.generate(output_format=kind, output_compression=compression)
            content = base64.b64decode(found.json["data"][0]["b64_json"])
            with Image.open(io.BytesIO(content)) as image:
                assert (image.format, image.size) == (kind.upper(), (64, 64))
            sizes.append(len(content))
        assert sizes[0] < sizes[1]

    run(test)


def test_an_edit_is_the_image_to_image_pipelines(pipeline: Any) -> None:
    source = alone(pipeline, num_inference_steps=8)
    edits = StableDiffusionImg2ImgPipeline.from_pipe(pipeline)
    expected = edits("red apple", image=Image.fromarray(source), strength=0.6, num_inference_steps=5, seed=3).images[0]

    async def test(served: Served) -> None:
        fields = {"prompt": "red apple", "strength": "0.6", "num_inference_steps": "5", "seed": "3"}
        body = form(fields, [("image", png(source))])
        found = await served.post("/v1/images/edits", body=body, headers=[FORM])
        assert found.status == 200
        np.testing.assert_array_equal(found.pictures[0], np.asarray(expected))
        assert found.json["usage"]["input_tokens_details"]["image_tokens"] == 1

    run(test)


def test_a_mask_changes_what_it_says_and_nothing_else(pipeline: Any) -> None:
    source = alone(pipeline, num_inference_steps=8)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    inpaint: Any = AutoPipelineForInpainting.from_pipe(pipeline)
    options = {"height": 64, "width": 64, "num_inference_steps": 5, "seed": 3, "strength": 1.0}
    expected = inpaint("pizza", image=Image.fromarray(source), mask_image=Image.fromarray(mask), **options).images[0]

    async def test(served: Served) -> None:
        body = form(
            {"prompt": "pizza", "num_inference_steps": "5", "seed": "3"},
            [("image[]", png(source)), ("mask", png(mask))],
        )
        found = await served.post("/v1/images/edits", body=body, headers=[FORM])
        assert found.status == 200
        outside = mask == 0
        np.testing.assert_array_equal(found.pictures[0][outside], source[outside])
        np.testing.assert_array_equal(found.pictures[0][~outside], np.asarray(expected)[~outside])
        assert (found.pictures[0] != source)[~outside].any()

    run(test)


def test_a_prompt_that_is_too_long_is_a_warning_without_its_words() -> None:
    async def test(served: Served) -> None:
        found = await served.generate(prompt="secretword " * 60)
        assert found.status == 200
        (warning,) = found.json["warnings"]
        assert "60" in warning or "tokens" in warning
        assert "secretword" not in warning

    run(test)


WRONG: list[tuple[dict[str, Any], int, str, str]] = [
    ({"size": "0x0"}, 400, "invalid_size", "size"),
    ({"size": "513x512"}, 400, "invalid_size", "size"),
    ({"size": "99999x99999"}, 400, "invalid_size", "size"),
    ({"n": 11}, 400, "out_of_range", "n"),
    ({"guidance_scale": float("nan")}, 400, "out_of_range", "guidance_scale"),
    ({"seed": 2**64}, 400, "out_of_range", "seed"),
    ({"promt": "x"}, 400, "unknown_field", "promt"),
    ({"model": "gpt-image-1"}, 404, "model_not_found", "model"),
    ({"prompt": "x" * 32_001}, 400, "string_too_long", "prompt"),
    ({"prompt": "a\x00b"}, 400, "invalid_value", "prompt"),
    ({"prompt": "\ud800"}, 400, "invalid_value", "prompt"),
    ({"prompt": None}, 400, "missing_field", "prompt"),
    ({"response_format": "url"}, 400, "invalid_value", "response_format"),
    ({"scheduler": "EulerDiscreteSchedular"}, 400, "invalid_value", "scheduler"),
    ({"num_inference_steps": 0}, 400, "out_of_range", "num_inference_steps"),
    ({"num_inference_steps": 251}, 400, "out_of_range", "num_inference_steps"),
    ({"num_inference_steps": True}, 400, "invalid_type", "num_inference_steps"),
    ({"strength": 0.5}, 400, "unknown_field", "strength"),
    ({"partial_images": 2}, 400, "invalid_value", "partial_images"),
    ({"partial_images": 4, "stream": True}, 400, "out_of_range", "partial_images"),
    ({"output_compression": 5}, 400, "invalid_value", "output_compression"),
]


def test_what_is_wrong_is_said_with_its_field_and_makes_nothing() -> None:
    control = Control()

    async def test(served: Served) -> None:
        for fields, status, code, param in WRONG:
            found = await served.generate(**fields)
            error = found.error
            assert (found.status, error["code"], error["param"]) == (status, code, param), fields
            assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
        assert "did you mean prompt?" in (await served.generate(promt="x")).error["message"]
        assert "nearest is 128x128" in (await served.generate(size="99999x99999")).error["message"]
        assert "nearest is 64x64" in (await served.generate(size="65x63")).error["message"]
        assert not control.rows

    run(test, control)


def test_bodies_that_are_no_requests() -> None:
    async def test(served: Served) -> None:
        path = "/v1/images/generations"
        for body in (b"{", b"", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"):
            found = await served.post(path, body=[body], headers=[JSON])
            assert (found.status, found.error["code"]) == (400, "invalid_json"), body[:20]
        found = await served.post(path, body=[b"prompt=x"], headers=[(b"content-type", b"text/plain")])
        assert (found.status, found.error["code"]) == (415, "unsupported_media_type")
        assert (await served.post(path, body=[b"{}"])).status == 415
        assert (await served.post("/v1/images/edits", body=[b"{}"], headers=[JSON])).status == 415
        found = await served.post(path, body=[b"x" * 100_000, b"x" * 100_000], headers=[JSON])
        assert (found.status, found.error["code"]) == (413, "body_too_large")
        large = [JSON, (b"content-length", b"200000")]
        assert (await served.open("POST", path, headers=large).answer()).status == 413  # before any of it came
        found = await served.open("POST", path, headers=[JSON]).answer()  # of which nothing ever comes
        assert (found.status, found.error["code"]) == (408, "body_timeout")
        assert found.headers["x-should-retry"] == "false"

    run(test, max_body=150_000, body_timeout=0.2)


def test_forms_that_are_no_edits(pipeline: Any) -> None:
    picture = png(np.zeros((64, 64, 3), np.uint8))
    sized = png(np.zeros((60, 62), np.uint8))
    cases: list[tuple[dict[str, str], list[tuple[str, bytes]], str, str | None]] = [
        ({"prompt": "x"}, [], "missing_field", "image"),
        ({"prompt": "x", "image": "https://127.0.0.1/x.png"}, [], "image_url", "image"),
        ({"prompt": "x"}, [("image", picture), ("image", picture)], "invalid_value", "image"),
        ({"prompt": "x"}, [("image", picture), ("other", picture)], "unknown_field", "other"),
        ({"prompt": "x"}, [("image", picture), ("mask", sized)], "invalid_mask_size", "mask"),
        ({"prompt": "x"}, [("image", b"<svg xmlns='http://www.w3.org/2000/svg'/>")], "invalid_image", "image"),
        ({"prompt": "x", "strength": "0"}, [("image", picture)], "invalid_value", "strength"),
        ({"prompt": "x", "seed": "one"}, [("image", picture)], "invalid_type", "seed"),
        ({"prompt": "x"}, [("image", png(np.zeros((64, 66, 3), np.uint8)))], "invalid_size", "size"),
    ]

    async def test(served: Served) -> None:
        for fields, files, code, param in cases:
            found = await served.post("/v1/images/edits", body=form(fields, files), headers=[FORM])
            assert (found.status, found.error["code"], found.error["param"]) == (400, code, param), (fields, len(files))
        found = await served.post("/v1/images/edits", body=[b"no form"], headers=[FORM])
        assert found.status == 400

    run(test)


def test_models_health_and_documents() -> None:
    async def test(served: Served) -> None:
        (model,) = (await served.get("/v1/models")).json["data"]
        assert (model["id"], model["object"], model["width"], model["factor"]) == ("emoji", "model", 64, 4)
        assert (await served.get("/v1/models/emoji")).json == model
        assert (await served.get("/v1/models/other")).error["code"] == "model_not_found"
        assert (await served.get("/health/live")).json == {"status": "live"}
        assert (await served.get("/health/ready")).json["status"] == "ready"
        assert (await served.get("/nothing")).error["code"] == "not_found"
        assert (await served.get("/v1/images/generations")).status == 405
        assert "/v1/images/generations" in (await served.get("/openapi.json")).json["paths"]
        assert (await served.get("/docs")).headers["content-type"].startswith("text/html")
        assert b"<" in (await served.get("/")).body
        await served.generate()
        assert await served.counted('safelight_pictures_total{outcome="ok"}') == 1

    run(test)


def test_a_key_is_needed_everywhere_but_for_liveness() -> None:
    async def test(served: Served) -> None:
        basic = base64.b64encode(f"anybody:{KEY}".encode())
        good = [(b"authorization", f"Bearer {KEY}".encode()), (b"authorization", b"Basic " + basic)]
        bad: list[list[tuple[bytes, bytes]]] = [
            [],
            [(b"authorization", b"Bearer ")],
            [(b"authorization", b"Bearer another")],
            [(b"authorization", KEY.encode())],
            [(b"authorization", b"Basic !!")],
            [(b"authorization", b"Basic " + base64.b64encode(b"anybody:"))],
        ]
        routes = [(sorted(route.methods)[0], route.path) for route in served.app.routes]
        assert len(routes) >= 12
        for method, path in [*routes, ("GET", "/nothing")]:
            path = path.replace("{request_id}", "x").replace("{id:path}", "emoji")
            for headers in bad:
                found = await served.open(method, path, body=[b""], headers=headers).answer()
                if path == "/health/live":
                    assert found.status == 200
                else:
                    assert (found.status, found.error["code"]) == (401, "invalid_api_key"), path
                    assert "Basic" in found.headers["www-authenticate"]
        for header in good:
            assert (await served.get("/v1/models", headers=[header])).status == 200

    run(test, api_keys=("another-key", KEY))


def test_foreign_hosts_and_origins_are_refused() -> None:
    async def test(served: Served) -> None:
        for host in (b"evil.example", b"127.0.0.1.evil.example:8000", b"", b"[::1", b"10.0.0.1"):
            found = await served.get("/health/live", host=[(b"host", host)])
            assert (found.status, found.error["code"]) == (403, "foreign_host"), host
        assert (await served.get("/health/live", host=[])).status == 403
        for host in (b"localhost:9", b"127.0.0.1", b"[::1]:8000", b"pictures.example"):
            assert (await served.get("/health/live", host=[(b"host", host)])).status == 200, host
        origin = [(b"origin", b"https://evil.example")]
        found = await served.post("/v1/images/generations", fields={"prompt": "x"}, headers=origin)
        assert (found.status, found.error["code"]) == (403, "foreign_origin")
        own = [(b"origin", b"http://127.0.0.1:8000")]
        assert (await served.post("/v1/images/requests/x/cancel", body=[b""], headers=own)).status == 404

    run(test, allowed_hosts=("pictures.example",))


def test_ids_are_the_clients_where_they_can_be() -> None:
    async def test(served: Served) -> None:
        found = await served.get("/health/live", headers=[(b"x-request-id", b"abc.1-2_3")])
        assert found.headers["x-request-id"] == "abc.1-2_3"
        for bad in (b"a b", b"x" * 129, b"\xff", b"a\nb"):
            found = await served.get("/health/live", headers=[(b"x-request-id", bad)])
            assert found.headers["x-request-id"].startswith("req_")

    run(test)


def test_no_prompt_is_logged_and_each_request_is_one_line(tmp_path: Any) -> None:
    import json

    from safelight.runtime.serving import logs

    file = tmp_path / "log.jsonl"
    logs.configure(str(file))
    try:

        async def test(served: Served) -> None:
            prompt = "secretword\n\x1b[31m" + "secretword " * 40
            await served.generate(prompt=prompt)
            await served.generate(prompt=prompt, size="1x1")
            await served.generate(**{"se\ncret": "secretword"})
            await served.get("/secretword")

        run(test)
    finally:
        logs.reset()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert "secretword" not in file.read_text()
    assert [line["status"] for line in lines if line["event"] == "request"] == [200, 400, 400, 404]
    assert len({line["request_id"] for line in lines if line["event"] == "request"}) == 4
