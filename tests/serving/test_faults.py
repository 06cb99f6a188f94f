"""What goes wrong while pictures are made: nobody waits for ever, no place is lost, no other picture is touched."""

import asyncio
import gc
from typing import Any

import numpy as np
import pytest
from served import Control, Served, run

from safelight.runtime.serving.errors import ApiError
from safelight.runtime.serving.jobs import Job
from safelight.runtime.serving.worker import cause_of

LIMIT = 60.0


def broken(number: int, error: Exception) -> Any:
    """Raises in one of the UNet's runs, and in none after it."""

    def before(found: int, _: Any) -> None:
        if found == number:
            raise error

    return before


async def until(condition: Any) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("number", [0, 2])
def test_who_goes_away_while_his_picture_is_made_leaves_his_place_within_a_step(number: int, stream: bool) -> None:
    control = Control()
    control.hold(number)

    async def test(served: Served) -> None:
        exchange = served.generation(num_inference_steps=40, stream=stream)
        await control.until_held()
        exchange.disconnect()
        await until(lambda: not served.dispatcher._jobs)
        control.release.set()
        await served.until_idle()
        await asyncio.wait_for(exchange.task, LIMIT)
        assert len(control.rows) == number + 1  # not one step more
        assert await served.counted('safelight_pictures_total{outcome="cancelled"}') == 1
        assert (await served.generate()).status == 200

    run(test, control)


@pytest.mark.parametrize(
    ("network", "number", "stream", "previews"),
    [
        (("text_encoder", "network"), 0, False, 0),
        (("text_encoder", "network"), 0, True, 0),
        (("vae", "decoder"), 0, False, 0),
        (("vae", "decoder"), 1, True, 3),  # after a preview
    ],
)
def test_who_goes_away_at_another_stage_leaves_his_place_too(
    network: tuple[str, str], number: int, stream: bool, previews: int
) -> None:
    control = Control(network=network)
    control.hold(number)

    async def test(served: Served) -> None:
        exchange = served.generation(stream=stream, partial_images=previews)
        await control.until_held()
        exchange.disconnect()
        await until(lambda: not served.dispatcher._jobs)
        control.release.set()
        await served.until_idle()
        await asyncio.wait_for(exchange.task, LIMIT)
        assert len(control.rows) == number + 1
        assert not any(b"completed" in message.get("body", b"") for message in exchange.sent)
        assert await served.counted('safelight_pictures_total{outcome="cancelled"}') == 1
        assert await served.counted('safelight_pictures_total{outcome="ok"}') == 0
        assert (await served.generate()).status == 200

    run(test, control)


def test_who_goes_away_while_he_waits_is_never_started() -> None:
    control = Control()
    control.hold(0)

    async def test(served: Served) -> None:
        first = served.generation()
        await control.until_held()
        second = served.generation(seed=5)
        await until(lambda: served.dispatcher.waiting == 1)
        second.disconnect()
        await until(lambda: served.dispatcher.waiting == 0)
        control.release.set()
        assert (await first.answer()).status == 200
        await asyncio.wait_for(second.task, LIMIT)
        assert second.sent == []
        assert control.rows == [2] * len(control.rows)
        assert len(control.rows) == 4

    run(test, control, max_batch=1)


def test_who_goes_away_in_the_middle_of_his_request_is_no_error() -> None:
    async def test(served: Served) -> None:
        headers = [(b"content-type", b"application/json")]
        exchange = served.open("POST", "/v1/images/generations", body=None, headers=headers)
        exchange._incoming.put_nowait({"type": "http.request", "body": b'{"pro', "more_body": True})
        exchange.disconnect()
        await asyncio.wait_for(exchange.task, LIMIT)
        assert exchange.sent == []
        assert (await served.generate()).status == 200

    run(test)


def test_a_request_is_cancelled_by_its_id_wherever_it_is() -> None:
    control = Control()
    control.hold(1)

    async def test(served: Served) -> None:
        running = served.generation(request_id="runs", num_inference_steps=30)
        await control.until_held()
        waiting = served.generation(request_id="waits")
        await until(lambda: served.dispatcher.waiting == 1)
        for name, exchange in (("waits", waiting), ("runs", running)):
            found = await served.post(f"/v1/images/requests/{name}/cancel", body=[b""])
            assert (found.status, found.json) == (200, {"id": name, "cancelled": True})
            answer = await exchange.answer()
            assert (answer.status, answer.error["code"]) == (409, "cancelled")
            assert answer.headers["x-should-retry"] == "false"
        assert (await served.post("/v1/images/requests/runs/cancel", body=[b""])).status == 404
        control.release.set()
        await served.until_idle()
        assert len(control.rows) == 2

    run(test, control, max_batch=1)


def test_a_stream_that_is_cancelled_says_so() -> None:
    control = Control()
    control.hold(1)

    async def test(served: Served) -> None:
        exchange = served.generation(request_id="mine", stream=True, progress=True)
        await control.until_held()
        await served.post("/v1/images/requests/mine/cancel", body=[b""])
        control.release.set()
        events = (await exchange.answer()).events
        assert events[-1]["type"] == "error"
        assert events[-1]["error"]["code"] == "cancelled"
        assert not any(event["type"].endswith("completed") for event in events)

    run(test, control)


def test_an_id_is_one_requests_at_a_time() -> None:
    control = Control()
    control.hold(0)

    async def test(served: Served) -> None:
        first = served.generation(request_id="mine")
        await control.until_held()
        again = await served.generation(request_id="mine").answer()
        assert (again.status, again.error["code"]) == (409, "duplicate_request_id")
        control.release.set()
        assert (await first.answer()).status == 200
        assert (await served.generation(request_id="mine").answer()).status == 200

    run(test, control)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeError("/secret/path: the engine broke"), 500, "internal_error"),
        (MemoryError("bad alloc"), 503, "out_of_memory"),
    ],
)
def test_an_engine_that_fails_in_the_middle_fails_one_picture(error: Exception, status: int, code: str) -> None:
    control = Control()
    control.before = broken(2, error)

    async def test(served: Served) -> None:
        found = await served.generate()
        assert (found.status, found.error["code"]) == (status, code)
        assert "secret" not in found.body.decode()
        assert found.headers["x-should-retry"] == ("true" if status == 503 else "false")
        assert ("retry-after" in found.headers) == (status == 503)
        assert (await served.generate()).status == 200
        assert await served.counted('safelight_pictures_total{outcome="failed"}') == 1

    run(test, control)


def test_the_log_has_an_engines_words_and_no_others() -> None:
    assert cause_of(RuntimeError("unet failed on (2, 4)")) == "RuntimeError: unet failed on (2, 4)"
    try:
        {}["a prompt"]
    except KeyError as error:
        found = cause_of(error)
    assert found.startswith("KeyError in test_faults.py, line ")
    assert "a prompt" not in found + cause_of(ValueError("a prompt"))


def test_a_picture_that_breaks_the_engine_breaks_none_that_shares_its_calls() -> None:
    control = Control()
    poison: list[Any] = []

    def note(_: int, inputs: Any) -> None:
        poison.append(inputs["encoder_hidden_states"][-1])

    def before(number: int, inputs: Any) -> None:
        if number == 1:  # of the one that holds the place until the others have come
            control.held.set()
            assert control.release.wait(LIMIT)
        if any(np.allclose(row, poison[0], atol=1e-3) for row in inputs["encoder_hidden_states"]):
            raise RuntimeError("poison")

    async def test(served: Served) -> None:
        control.before = note
        assert (await served.generate(prompt="pizza", guidance_scale=1, num_inference_steps=1)).status == 200
        control.before = before
        holder = served.generation(seed=9, num_inference_steps=1)
        await control.until_held()
        good = [served.generation(seed=seed, guidance_scale=1) for seed in (1, 2)]
        bad = served.generation(prompt="pizza", guidance_scale=1)
        await until(lambda: served.dispatcher.running == 4)
        control.release.set()
        assert (await holder.answer()).status == 200
        assert (await bad.answer()).error["code"] == "internal_error"
        assert [(await each.answer()).status for each in good] == [200, 200]
        assert 3 in control.rows  # they did share a call

    run(test, control)


def test_numbers_that_are_not_finite_are_no_black_picture() -> None:
    control = Control()

    def after(number: int, found: dict[str, Any]) -> dict[str, Any]:
        return {name: np.full_like(array, np.nan) for name, array in found.items()} if number == 1 else found

    control.after = after

    async def test(served: Served) -> None:
        found = await served.generate()
        assert (found.status, found.error["code"], found.error["type"]) == (500, "numerical_error", "server_error")
        assert len(control.rows) == 2
        assert (await served.generate()).status == 200

    run(test, control)


def test_a_queue_that_is_full_says_when_to_come_again() -> None:
    control = Control()
    control.hold(0)

    async def test(served: Served) -> None:
        first = served.generation(seed=0)
        await control.until_held()
        second, third = served.generation(seed=1), served.generation(seed=2)
        await until(lambda: served.dispatcher.waiting == 2)
        refused = await served.generate(seed=3)
        assert (refused.status, refused.error["code"]) == (429, "queue_full")
        assert refused.error["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["x-should-retry"] == "true"
        too_many = await served.generate(n=2)
        assert too_many.status == 429
        control.release.set()
        assert [(await each.answer()).status for each in (first, second, third)] == [200] * 3
        assert await served.counted('safelight_pictures_total{outcome="rejected"}') == 3
        assert await served.counted('safelight_pictures_total{outcome="ok"}') == 3

    run(test, control, max_batch=1, max_queue=2)


def test_who_is_first_comes_first_but_for_priority_and_further_pictures() -> None:
    control = Control()
    control.hold(0)
    order: list[str] = []

    async def test(served: Served) -> None:
        holder = served.generation(seed=0, num_inference_steps=1)
        await control.until_held()
        exchanges = {}
        for name, fields in (
            ("many", {"n": 2}),
            ("low", {"priority": "low"}),
            ("normal", {}),
            ("high", {"priority": "high"}),
        ):
            exchanges[name] = served.generation(request_id=name, num_inference_steps=1, **fields)
            count = len(served.dispatcher._jobs)
            await until(lambda count=count: len(served.dispatcher._jobs) > count or count > 4)
        tasks = [asyncio.ensure_future(noted(name, exchange)) for name, exchange in exchanges.items()]
        control.release.set()
        await asyncio.gather(holder.answer(), *tasks)
        assert order == ["high", "normal", "many", "low"]  # one of many's comes first, and its second after the others

    async def noted(name: str, exchange: Any) -> None:
        assert (await exchange.answer()).status == 200
        order.append(name)

    run(test, control, max_batch=1)


def test_a_deadline_that_passes_in_the_queue_starts_nothing() -> None:
    control = Control()
    control.hold(0)

    async def test(served: Served) -> None:
        first = served.generation(seed=0)
        await control.until_held()
        late = await served.generate(seed=1, timeout=0.01)  # answered while the first is still held
        assert (late.status, late.error["code"]) == (504, "deadline_exceeded")
        assert late.headers["x-should-retry"] == "false"
        control.release.set()
        assert (await first.answer()).status == 200
        assert len(control.rows) == 4
        assert await served.counted('safelight_pictures_total{outcome="expired"}') == 1

    run(test, control, max_batch=1)


def test_a_deadline_that_passes_while_it_is_made_ends_it_within_a_step() -> None:
    control = Control()
    control.hold(1)

    async def test(served: Served) -> None:
        late = await served.generate(num_inference_steps=50, timeout=0.3)
        assert late.error["code"] == "deadline_exceeded"
        control.release.set()
        await served.until_idle()
        assert len(control.rows) <= 2

    run(test, control)


def test_a_request_that_is_done_is_forgotten_before_its_deadline() -> None:
    async def test(served: Served) -> None:
        answer = await served.generate(timeout=3600)
        assert answer.status == 200
        gc.collect()  # a job and its tasks know each other
        jobs = [found for found in gc.get_objects() if type(found) is Job]
        assert not any(job.id == answer.json["id"] for job in jobs)

    run(test)


def test_draining_finishes_what_was_let_in_and_refuses_what_is_new() -> None:
    control = Control()
    control.hold(1)

    async def test(served: Served) -> None:
        running = served.generation(seed=0)
        await control.until_held()
        waiting = served.generation(seed=1)
        await until(lambda: served.dispatcher.waiting == 1)
        drained = asyncio.ensure_future(served.dispatcher.drain(LIMIT))
        await until(lambda: served.dispatcher.draining)
        refused = await served.generate(seed=2)
        assert (refused.status, refused.error["code"]) == (503, "shutting_down")
        assert (await served.get("/health/ready")).status == 503
        assert (await served.get("/health/live")).status == 200
        assert not drained.done()
        control.release.set()
        assert await drained is True
        assert [(await each.answer()).status for each in (running, waiting)] == [200, 200]

    run(test, control, max_batch=1)


def test_what_is_not_done_when_the_patience_ends_is_told_so() -> None:
    control = Control()
    control.hold(1)

    async def test(served: Served) -> None:
        running = served.generation(seed=0)
        await control.until_held()
        assert await served.dispatcher.drain(0.01) is False
        answer = await running.answer()
        assert (answer.status, answer.error["code"]) == (503, "shutting_down")
        control.release.set()

    run(test, control)


def test_a_probe_makes_a_picture_and_says_when_it_cannot() -> None:
    control = Control()

    async def test(served: Served) -> None:
        await served.dispatcher.probe()
        assert control.rows == [1]
        control.before = broken(1, RuntimeError("broken"))
        with pytest.raises(ApiError, match="could not be made"):
            await served.dispatcher.probe()

    run(test, control)
