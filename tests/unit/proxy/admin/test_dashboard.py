"""The dashboard's files, as they are given out. What they do is seen in a browser: tests/browser."""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path

import pytest

STATIC = Path(__file__).parents[4] / "proxy" / "admin" / "static"
TOKEN = "correct-horse-battery-staple"


async def test_the_page_comes_with_a_policy_that_lets_nothing_else_in(world, connect):
    client = await connect(world)
    async with client.get("/") as response:
        assert response.status == HTTPStatus.OK
        assert response.content_type == "text/html"
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_everything_that_a_file_names_is_there(world, connect):
    client = await connect(world)
    names = {"/"}
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8")
        names |= set(re.findall(r'(?:src|href)="(/[^"#]*)"', text))
        names |= {f"/static/{name}" for name in re.findall(r'from "\./([^"]+)"', text)}
    assert len(names) > 10
    for name in names:
        async with client.get(name) as response:
            assert response.status == HTTPStatus.OK, name
    assert names >= {f"/static/{file.name}" for file in STATIC.iterdir()} - {"/static/index.html"}, "a file is not used"


async def test_no_file_has_code_or_style_that_the_policy_refuses(world, connect):
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8")
        assert not re.search(r'<script(?![^>]*src=)|<style|\son\w+="|\sstyle="', text), file.name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|https?://(?!www\.w3\.org/2000/svg)", text
        ), file.name


async def test_files_need_no_token_and_what_they_show_does(world, connect):
    client = await connect(world, token=TOKEN)
    for path, status in (("/", 200), ("/static/app.js", 200), ("/api/endpoints", 401), ("/static/../api/ring", 401)):
        async with client.get(path) as response:
            assert response.status == status, path


@pytest.mark.parametrize("path", ["/static/none.js", "/static/", "/static/..%2Fapi.py", "/index.html"])
async def test_other_files_are_not_there(world, connect, path):
    client = await connect(world)
    async with client.get(path) as response:
        assert response.status == HTTPStatus.NOT_FOUND
