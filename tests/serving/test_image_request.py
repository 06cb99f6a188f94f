"""A request's fields: each value is taken as it is, or refused with the field's name; nothing is clamped."""

import json
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from served import card

from safelight.runtime.serving.errors import ApiError
from safelight.runtime.serving.image_request import (
    EDIT_FIELDS,
    GENERATION_FIELDS,
    GUIDANCE,
    MOST_CHARACTERS,
    MOST_PREVIEWS,
    MOST_SECONDS,
    MOST_SEED,
    OUTPUT_FORMATS,
    PRIORITIES,
    WITHOUT_EFFECT,
    ImageRequest,
    check_sides,
    read_request,
)
from safelight.runtime.serving.model_card import ModelCard
from safelight.runtime.serving.settings import ServerSettings

CARD = card(
    width=512,
    height=512,
    most_pixels=1024 * 1024,
    width_range=(256, 2048),
    height_range=(256, 2048),
)
SETTINGS = ServerSettings()
IMAGE = np.zeros((512, 768, 3), np.uint8)

#: what JSON can hold, in numbers also what Python's reader takes beyond it
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["auto", "512x512", "png", "b64_json", "emoji", "1", "true", "nan", "", "\x00", "\ud800"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


def read(fields: Mapping[str, Any], *, card: ModelCard = CARD, text: bool = False, **given: Any) -> ImageRequest:
    return read_request({"prompt": "a cat", **fields}, card, SETTINGS, text=text, **given)


def refusal(fields: Mapping[str, Any], **options: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(fields, **options)
    return caught.value


def check_refusal(error: ApiError, param: str | None = None) -> None:
    """Whatever is refused says so in a way that reaches the client."""
    assert error.status in (400, 404)
    json.dumps(error.body(), ensure_ascii=False, allow_nan=False).encode()
    assert error.message.isprintable()
    assert len(error.message) < 1000
    assert error.param == param if param else error.param
    assert error.code in (
        *("invalid_type", "invalid_value", "out_of_range", "missing_field", "unknown_field"),
        *("string_too_long", "invalid_size", "model_not_found"),
    )


def check_request(request: ImageRequest) -> None:
    """Whatever is let in can be made."""
    assert 1 <= request.n <= SETTINGS.max_images
    check_sides(request.width, request.height, CARD)
    assert 1 <= request.num_inference_steps <= SETTINGS.max_steps
    assert GUIDANCE[0] <= request.guidance_scale <= GUIDANCE[1]
    assert 0 <= request.seed <= request.seed + request.n - 1 <= MOST_SEED
    assert request.scheduler is None or request.scheduler in CARD.schedulers
    assert request.output_format in OUTPUT_FORMATS
    assert request.output_compression is None or 0 <= request.output_compression <= 100
    assert request.stream or not (request.partial_images or request.progress)
    assert 0 <= request.partial_images <= MOST_PREVIEWS
    assert request.priority in PRIORITIES
    assert request.timeout is None or 0 <= request.timeout <= MOST_SECONDS
    for prompt in (request.prompt, request.negative_prompt or ""):
        assert len(prompt) <= MOST_CHARACTERS
        assert "\x00" not in prompt
        prompt.encode()
    for number in (request.n, request.num_inference_steps, request.seed, request.partial_images):
        assert type(number) is int


# any value in any field


@settings(max_examples=400, deadline=None)
@given(
    fields=st.dictionaries(st.sampled_from(EDIT_FIELDS) | st.text(max_size=80), VALUES, max_size=5), text=st.booleans()
)
@example(fields={"seed": 2**64}, text=False)
@example(fields={"guidance_scale": 10**400}, text=False)
@example(fields={"guidance_scale": "9" * 400}, text=True)
@example(fields={"timeout": "1_0"}, text=True)
@example(fields={"n": "\u0663"}, text=True)
@example(fields={"\ud800": 1}, text=False)
@example(fields={"model": "\ud800"}, text=False)
@example(fields={"model": "x" * 31_000}, text=False)
def test_any_fields_make_a_request_or_a_refusal(fields: dict[str, Any], text: bool) -> None:
    for image in (None, IMAGE):
        try:
            found = read(fields, text=text, image=image)
        except ApiError as error:
            check_refusal(error)
        else:
            check_request(found)
            assert set(fields) <= set(GENERATION_FIELDS if image is None else EDIT_FIELDS)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(EDIT_FIELDS), value=VALUES)
def test_what_is_refused_names_its_field_and_nothing_is_changed(name: str, value: object) -> None:
    try:
        found = read({name: value}, image=IMAGE)
    except ApiError as error:
        check_refusal(error, name)
    else:
        kept = {"size": f"{found.width}x{found.height}"}.get(name, getattr(found, name, None))
        if value is None or name in (*WITHOUT_EFFECT, "model", "response_format", "user"):
            return
        assert kept == (value or None) if name == "scheduler" else kept == value or value == "auto"


@settings(max_examples=200, deadline=None)
@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "n": st.integers(1, SETTINGS.max_images),
            "num_inference_steps": st.integers(1, SETTINGS.max_steps),
            "guidance_scale": st.floats(*GUIDANCE),
            "seed": st.integers(0, MOST_SEED - SETTINGS.max_images),
            "strength": st.floats(0, 1, exclude_min=True),
            "timeout": st.floats(0, MOST_SECONDS),
            "stream": st.just(True),
            "scheduler": st.sampled_from(CARD.schedulers),
            "priority": st.sampled_from(PRIORITIES),
            "output_format": st.sampled_from(OUTPUT_FORMATS),
            "negative_prompt": st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
        },
    )
)
def test_a_form_says_the_same_as_json(values: dict[str, Any]) -> None:
    as_text = {name: str(value) if not isinstance(value, float) else repr(value) for name, value in values.items()}
    first, second = read(values, image=IMAGE), read(as_text, image=IMAGE, text=True)
    for name, value in values.items():
        assert getattr(first, name) == getattr(second, name) == value


@settings(max_examples=200, deadline=None)
@given(value=st.text(st.characters(categories=["Nd", "Po", "Pc"], include_characters="+-.eE1 \n"), max_size=6))
@example(value="1_0")
@example(value=" 1")
@example(value="1\n")
@example(value="\u0663")
def test_a_forms_numbers_are_plain(value: str) -> None:
    for name in ("n", "timeout", "seed", "strength"):
        try:
            read({name: value}, text=True, image=IMAGE)
        except ApiError as error:
            check_refusal(error)
        else:
            assert re.fullmatch(r"[-+0-9.eE]+", value)


# what issue lists of servers name, one by one


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("n", 0, "out_of_range"),
        ("n", 11, "out_of_range"),
        ("n", -1, "out_of_range"),
        ("n", 1.5, "invalid_type"),
        ("n", 11.0, "out_of_range"),
        ("seed", 1e19, "invalid_type"),  # a float tells it not from its neighbours
        ("n", True, "invalid_type"),
        ("n", "1", "invalid_type"),
        ("n", [1], "invalid_type"),
        ("guidance_scale", math.nan, "out_of_range"),
        ("guidance_scale", math.inf, "out_of_range"),
        ("guidance_scale", -0.1, "out_of_range"),
        ("guidance_scale", 100.1, "out_of_range"),
        ("guidance_scale", False, "invalid_type"),
        ("guidance_scale", "7", "invalid_type"),
        ("seed", 2**64, "out_of_range"),
        ("seed", -1, "out_of_range"),
        ("seed", 0.5, "invalid_type"),
        ("num_inference_steps", 0, "out_of_range"),
        ("num_inference_steps", 251, "out_of_range"),
        ("timeout", math.nan, "out_of_range"),
        ("timeout", -1, "out_of_range"),
        ("output_compression", 50, "invalid_value"),  # of a PNG
        ("output_compression", 101, "out_of_range"),
        ("partial_images", 1, "invalid_value"),  # of what is no stream
        ("partial_images", 4, "out_of_range"),
        ("progress", True, "invalid_value"),
        ("stream", "true", "invalid_type"),
        ("response_format", "url", "invalid_value"),
        ("output_format", "gif", "invalid_value"),
        ("background", "transparent", "invalid_value"),
        ("priority", "urgent", "invalid_value"),
        ("scheduler", "EulerScheduler", "invalid_value"),
        ("prompt", "a\x00b", "invalid_value"),
        ("prompt", "\ud800", "invalid_value"),
        ("prompt", 5, "invalid_type"),
        ("prompt", None, "missing_field"),
        ("prompt", "x" * (MOST_CHARACTERS + 1), "string_too_long"),
        ("negative_prompt", "x" * (MOST_CHARACTERS + 1), "string_too_long"),
        ("negative_prompt", "\x00", "invalid_value"),
        ("user", "\x00", "invalid_value"),
    ],
)
def test_a_wrong_value_is_refused(name: str, value: object, code: str) -> None:
    error = refusal({name: value})
    assert (error.status, error.code, error.param) == (400, code, name)
    check_refusal(error)


def test_the_longest_prompt_and_the_highest_seed_are_taken() -> None:
    found = read({"prompt": "🐱" * MOST_CHARACTERS, "seed": MOST_SEED, "guidance_scale": 100, "n": 1})
    assert (len(found.prompt), found.seed, found.guidance_scale) == (MOST_CHARACTERS, MOST_SEED, 100.0)
    assert refusal({"seed": MOST_SEED, "n": 2}).param == "seed"


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ("0x0", "256x256"),
        ("513x512", "512x512"),
        ("517x517", "520x520"),
        ("99999x99999", "1024x1024"),
        ("4000x100", "2048x256"),
        ("100x4000", "256x2048"),
        ("512x0", "512x256"),
    ],
)
def test_a_size_that_cannot_be_made_names_the_nearest(size: str, nearest: str) -> None:
    error = refusal({"size": size})
    assert (error.code, error.param) == ("invalid_size", "size")
    assert error.message.endswith(f"nearest is {nearest}")


def test_a_size_outside_of_the_engines_range_names_the_range() -> None:
    compiled = replace(CARD, width_range=(512, 768), height_range=(512, 512))
    error = refusal({"size": "1024x512"}, card=compiled)
    assert "between 512 and 768" in error.message
    assert "nearest is 768x512" in error.message
    assert read({"size": "768x512"}, card=compiled).width == 768


@pytest.mark.parametrize(
    "size",
    ["", "512", "512x", "x512", "512X512", "-8x8", "512x512x3", "5e2x512", "\u0665\u0661x51", "1" * 10 + "x8"],
)
def test_a_size_that_is_none_is_refused(size: str) -> None:
    error = refusal({"size": size})
    assert (error.code, error.param) == ("invalid_size", "size")
    assert "512x512" in error.message


@settings(max_examples=500, deadline=None)
@given(
    width=st.integers(0, 999_999_999) | st.integers(0, 3000),
    height=st.integers(0, 999_999_999) | st.integers(0, 3000),
    factor=st.sampled_from([1, 8, 16, 64]),
    widths=st.tuples(st.integers(1, 2048), st.integers(1, 2048)).map(sorted),
    heights=st.tuples(st.integers(1, 2048), st.integers(1, 2048)).map(sorted),
    most_pixels=st.integers(1, 2048 * 2048),
)
@example(width=4096, height=100, factor=8, widths=[512, 2048], heights=[512, 2048], most_pixels=768 * 1024)
@example(width=0, height=0, factor=8, widths=[300, 2048], heights=[300, 2048], most_pixels=768 * 1024)
def test_the_nearest_size_can_be_made(
    width: int, height: int, factor: int, widths: list[int], heights: list[int], most_pixels: int
) -> None:
    least = [-(-sides[0] // factor) * factor for sides in (widths, heights)]
    assume(all(side <= sides[1] for side, sides in zip(least, (widths, heights), strict=True)))
    assume(math.prod(least) <= most_pixels)
    card = replace(
        CARD,
        factor=factor,
        width_range=(widths[0], widths[1]),
        height_range=(heights[0], heights[1]),
        most_pixels=most_pixels,
    )
    try:
        check_sides(width, height, card)
    except ApiError as error:
        nearest = re.search(r"nearest is (\d+)x(\d+)$", error.message)
        assert nearest is not None
        check_sides(int(nearest[1]), int(nearest[2]), card)
    else:
        assert width % factor == height % factor == 0
        assert width * height <= most_pixels
        assert widths[0] <= width <= widths[1]
        assert heights[0] <= height <= heights[1]


# fields


@pytest.mark.parametrize(
    ("name", "near"), [("steps", "num_inference_steps"), ("guidance", "guidance_scale"), ("promt", "prompt")]
)
def test_an_unknown_field_is_refused_with_the_one_that_is_like_it(name: str, near: str) -> None:
    error = refusal({name: 1})
    assert (error.status, error.code, error.param) == (400, "unknown_field", name)
    assert error.message.endswith(f"did you mean {near}?")


def test_an_unknown_field_is_refused_even_if_it_is_null() -> None:
    assert refusal({"sede": None}).code == "unknown_field"


def test_strength_is_for_edits() -> None:
    assert refusal({"strength": 0.5}).code == "unknown_field"
    assert read({"strength": 0.5}, image=IMAGE).strength == 0.5
    assert refusal({"strength": 0}, image=IMAGE).param == "strength"


def test_another_model_is_not_found() -> None:
    error = refusal({"model": "gpt-image-1"})
    assert (error.status, error.code, error.param, error.kind) == (404, "model_not_found", "model", "not_found_error")
    assert "emoji" in error.message
    assert read({"model": "emoji"}).n == 1


def test_what_is_not_given_is_the_models() -> None:
    found = read({})
    assert (found.width, found.height, found.num_inference_steps, found.guidance_scale) == (512, 512, 50, 7.5)
    assert (found.n, found.output_format, found.stream, found.priority, found.timeout) == (
        1,
        "png",
        False,
        "normal",
        None,
    )
    assert found.scheduler is None
    assert found.strength is None
    assert found.warnings == ()


def test_null_is_as_good_as_not_given() -> None:
    given = dict.fromkeys(GENERATION_FIELDS) | {"prompt": "a cat", "seed": 3}
    assert read(given) == read({"seed": 3})


def test_an_edit_has_its_images_size_and_with_a_mask_its_whole_strength() -> None:
    found = read({}, image=IMAGE)
    assert (found.width, found.height, found.strength) == (768, 512, 0.8)
    mask = np.zeros((512, 768), np.uint8)
    assert read({}, image=IMAGE, mask=mask).strength == 1.0
    odd = np.zeros((513, 512, 3), np.uint8)
    assert refusal({}, image=odd).message.endswith("nearest is 512x512")
    assert read({"size": "512x512"}, image=odd).height == 512


def test_json_has_one_kind_of_numbers() -> None:
    found = read({"n": 2.0, "seed": 5e3, "guidance_scale": 7})
    assert (found.n, found.seed, found.guidance_scale) == (2, 5000, 7.0)
    assert (type(found.n), type(found.seed), type(found.guidance_scale)) == (int, int, float)


def test_a_scheduler_is_one_that_the_model_can_have() -> None:
    assert read({"scheduler": "DDIMScheduler"}).scheduler == "DDIMScheduler"
    assert "did you mean DDIMScheduler?" in refusal({"scheduler": "DDIM"}).message
    assert refusal({"scheduler": "EDMEulerScheduler"}).param == "scheduler"


def test_seed_zero_is_a_seed_and_none_is_chosen() -> None:
    assert read({"seed": 0}).seed == 0
    assert len({read({}).seed for _ in range(5)}) > 1


def test_openais_fields_without_effect_say_so() -> None:
    assert read({"quality": "hd", "style": "vivid", "background": "opaque"}).warnings == (
        "quality has no effect on this model",
        "style has no effect on this model",
    )
    assert read({"quality": "auto"}).warnings == ()


@pytest.mark.parametrize("value", ["true", "True", "1", "false", "False", "0"])
def test_a_forms_truth_is_a_word(value: str) -> None:
    assert read({"stream": value}, text=True).stream == (value in ("true", "True", "1"))
    assert refusal({"stream": "yes"}, text=True).param == "stream"


# errors


def test_an_error_survives_the_way_between_processes() -> None:
    error = ApiError(503, "later", code="out_of_memory", param="size", retry_after=2.6, headers={"a": "b"})
    found = pickle.loads(pickle.dumps(error))
    assert (found.status, found.body(), found.headers()) == (error.status, error.body(), error.headers())
    assert str(found) == "later"


@pytest.mark.parametrize(
    ("status", "retry_after", "again"),
    [(400, None, None), (409, None, "false"), (500, None, "false"), (503, 0.1, "true")],
)
def test_an_error_says_whether_to_ask_again(status: int, retry_after: float | None, again: str | None) -> None:
    found = ApiError(status, "x", code="x", retry_after=retry_after).headers()
    assert found.get("x-should-retry") == again
    assert found.get("retry-after") == (None if retry_after is None else "1")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (404, "not_found_error"), (500, "server_error")],
)
def test_an_error_has_openais_type(status: int, kind: str) -> None:
    assert ApiError(status, "x", code="y").body() == {
        "error": {"message": "x", "type": kind, "param": None, "code": "y"}
    }


# settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_queue": 0},
        {"max_images": 0},
        {"max_steps": -1},
        {"max_body": 0},
        {"body_timeout": 0},
        {"body_timeout": math.nan},
        {"drain_timeout": -1},
        {"port": 65536},
        {"port": -1},
        {"api_keys": (" ",)},
        {"api_keys": ("schlüssel",)},
        {"api_keys": ("a\nb",)},
        {"host": "0.0.0.0"},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=re.compile("must|reach")):
        ServerSettings(**wrong)


def test_a_server_that_others_reach_needs_a_key_or_says_that_it_needs_none() -> None:
    assert not ServerSettings(host="0.0.0.0", api_keys=("k",)).is_local
    assert not ServerSettings(host="0.0.0.0", allow_anyone=True).is_local
    assert all(ServerSettings(host=host).is_local for host in ("127.0.0.1", "::1", "localhost"))
