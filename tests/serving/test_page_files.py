"""The page's files, as they are served."""

import re
from pathlib import Path

import pytest
from served import Served, run

PAGE = Path(__file__).parents[2] / "runtime" / "serving" / "web"
TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript"}


def test_every_file_is_served_with_its_type_and_a_policy() -> None:
    async def work(served: Served) -> None:
        assert {path.name for path in PAGE.iterdir()} >= {"index.html", "style.css", "app.js"}
        for path in PAGE.iterdir():
            address = "/" if path.name == "index.html" else f"/{path.name}"
            answer = await served.get(address)
            assert (answer.status, answer.body) == (200, path.read_bytes())
            assert answer.headers["content-type"] == f"{TYPES[path.suffix]}; charset=utf-8"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-cache"
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "unsafe" not in policy
            etag = answer.headers["etag"]
            for known in (etag, f"W/{etag}", f'"another", {etag}'):
                again = await served.get(address, headers=[(b"if-none-match", known.encode())])
                assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
            assert (await served.get(address, headers=[(b"if-none-match", b'"another"')])).status == 200
            assert (await served.post(address, body=[b""])).status == 405

    run(work)


def test_a_server_without_a_page_has_none() -> None:
    async def work(served: Served) -> None:
        assert [(await served.get(address)).status for address in ("/", "/app.js", "/style.css")] == [404] * 3

    run(work, page=False)


@pytest.mark.parametrize("path", sorted(PAGE.iterdir()), ids=lambda path: path.name)
def test_nothing_in_the_page_needs_more_than_its_policy_allows(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function", text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)  # nothing from elsewhere
    if path.suffix == ".html":
        assert not re.search(r"<style|\bstyle=|\son\w+=|<script(?![^>]*\bsrc=)", text)
