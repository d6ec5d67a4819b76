"""The dashboard as its reader sees it: in a real browser, of a real proxy, while stock clients call through it."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from proxy.commands.operate.traffic import quantile
from tests.browser.conftest import CHATS, IDS, Cluster
from tests.support.proxy_process import proxy_process, toml

if TYPE_CHECKING:
    from tests.support.browser import Browser

TOKEN = "correct-horse-battery-staple"
NOBODY = dict.fromkeys(IDS, "127.0.0.1:1")
"""Servers that cannot be connected to."""

_HATCHED = """
    const hatch = document.querySelector("#ring .all .hatch").getAttribute("d") ?? "";
    const arcs = [...document.querySelectorAll("#ring .all .arc")];
    return arcs.filter((arc) => hatch.includes(arc.getAttribute("d"))).map((arc) => arc.dataset.id);
"""

_CONTRASTS = Path(__file__).with_name("contrasts.js").read_text(encoding="utf-8")


def open_page(page: Browser, url: str, servers: int = len(IDS)) -> None:
    """Go there, and wait until the proxy has told everything."""
    page.open(url)
    page.until(lambda: len(page.all("#ring .all .arc")) == servers, "the ring")


def search(page: Browser, chat: str) -> None:
    """Type a chat id, and wait for its explanation."""
    field = page.find("#key")
    field.clear()
    field.send_keys(chat, Keys.ENTER)
    page.until(lambda: page.text("#explanation h3") == chat, f"the explanation of {chat}")


def press(page: Browser, server: str, verb: str) -> None:
    """Press the button of a server's row and confirm."""
    page.until(lambda: page.text(f'tr[data-id="{server}"] button') == verb, f"the button {verb}")
    page.find(f'tr[data-id="{server}"] button').click()
    page.until(lambda: page.text("#drain-title") == f"{verb} {server}?", "the dialog")
    page.until(lambda: "Looking up" not in page.text("#drain-plan"), "the plan")
    page.find("#drain-confirm").click()


def status(page: Browser, server: str) -> str:
    return page.text(f'tr[data-id="{server}"] .badge')


async def test_search_finds_the_owner_that_real_calls_reach(cluster: Cluster, page: Browser) -> None:
    open_page(page, cluster.url)
    for chat, server in (await cluster.served_by(*CHATS[:6])).items():
        search(page, chat)
        assert page.text("#explanation .chosen .id") == server
        assert page.text("#explanation .walk li .id") == cluster.proxy.owner(chat)
        assert page.all("#ring .marks .key-point"), "the key's point on the ring"
    assert page.console() == []


async def test_a_search_can_be_sent_on_as_a_link(cluster: Cluster, page: Browser) -> None:
    open_page(page, f"{cluster.url}/#key=chat%20%2F7")
    page.until(lambda: page.text("#explanation h3") == "chat /7", "the explanation")
    page.find("#explanation .close").click()
    assert not page.find("#explanation").is_displayed()
    assert not page.all("#ring .marks .key-point")


async def test_the_lines_survive_a_reload_of_the_page(cluster: Cluster, page: Browser) -> None:
    open_page(page, cluster.url)
    points = "return document.querySelector('#figure-active .stroke').getAttribute('d')?.split(' ').length ?? 0"
    page.until(lambda: page.run(points) >= 7, "some points of the line")
    open_page(page, cluster.url)
    page.until(lambda: page.run(points), "the first line after the reload")
    assert page.run(points) >= 7


async def test_the_page_computes_percentiles_as_the_command_line_does(cluster: Cluster, page: Browser) -> None:
    chance = random.Random(7)
    bounds = [0.001, 0.01, 0.1, 1.0]
    counts = [[chance.choice((0, 0, 1, 9, 500)) for _ in range(5)] for _ in range(60)]
    cases = [(each, bounds, share) for each in counts for share in (0.5, 0.99)]
    open_page(page, cluster.url)
    found = page.driver.execute_async_script(
        """
        const [cases, done] = arguments;
        import("/static/traffic.js").then(({ quantile }) => done(cases.map((each) => quantile(...each))));
        """,
        cases,
    )
    assert found == pytest.approx([quantile(*case) for case in cases])


async def test_recent_calls_are_told(cluster: Cluster, page: Browser) -> None:
    open_page(page, cluster.url)
    served = await cluster.served_by("chat-000")
    page.until(lambda: page.all("#calls .id"), "the call")
    assert page.text("#calls .id") == served["chat-000"]
    assert page.text("#calls .badge") == "OK"


async def test_a_killed_server_turns_hatched_and_the_feed_says_why(cluster: Cluster, page: Browser) -> None:
    open_page(page, cluster.url)
    assert page.run(_HATCHED) == []

    cluster.servers["Server-B"].kill()

    page.until(lambda: page.run(_HATCHED) == ["Server-B"], "the arcs of the dead server turning hatched")
    page.until(lambda: status(page, "Server-B") in {"unreachable", "unhealthy"}, "its state in the table")
    page.until(lambda: page.all('#feed li[data-endpoint="Server-B"]'), "the event")
    assert page.text("#fact-servers") == "2 of 3 available"


async def test_drain_moves_only_that_servers_new_calls_and_undrain_brings_them_back(
    cluster: Cluster, page: Browser
) -> None:
    open_page(page, cluster.url)
    at_home = await cluster.served_by(*CHATS)
    assert set(at_home.values()) == set(IDS)

    press(page, "Server-C", "Drain")
    page.until(lambda: status(page, "Server-C") == "draining", "the drain")
    share = page.text('tr[data-id="Server-C"] td[data-label="Share"]')
    chats = list(at_home.values()).count("Server-C")
    assert page.text("#drain-plan").startswith(
        f"Server-C owns {share} of the key space. {chats} of 24 chats seen recently are among them."
    )
    assert page.run(_HATCHED) == ["Server-C"]
    moved = await cluster.served_by(*CHATS)
    assert {chat for chat in CHATS if moved[chat] != at_home[chat]} == {
        chat for chat in CHATS if at_home[chat] == "Server-C"
    }
    page.until(lambda: page.all('#feed li[data-type="drained"][data-endpoint="Server-C"]'), "the event")

    press(page, "Server-C", "Undrain")
    page.until(lambda: status(page, "Server-C") == "available", "the end of the drain")
    assert await cluster.served_by(*CHATS) == at_home
    page.until(lambda: page.all('#feed li[data-type="undrained"]'), "the event")
    assert page.run(_HATCHED) == []
    assert page.console() == []


async def test_the_last_server_is_drained_only_if_one_insists(cluster: Cluster, page: Browser) -> None:
    open_page(page, cluster.url)
    for server in IDS[:2]:
        press(page, server, "Drain")
        page.until(lambda server=server: status(page, server) == "draining", "the drain")

    press(page, "Server-C", "Drain")

    page.until(lambda: "only server" in page.text("#drain-error"), "the refusal")
    assert status(page, "Server-C") == "available"
    page.find("#drain-force").click()
    page.find("#drain-confirm").click()
    page.until(lambda: status(page, "Server-C") == "draining", "the drain")


async def test_a_token_is_asked_for_and_a_wrong_one_is_refused(tmp_path: Path, page: Browser) -> None:
    async with proxy_process(tmp_path, toml(NOBODY, admin={"address": "127.0.0.1:0", "token": TOKEN})) as proxy:
        page.open(await proxy.admin_url())
        page.until(lambda: page.find("#token-dialog").is_displayed(), "the question")
        page.find("#token").send_keys("a-wrong-token-of-somebody", Keys.ENTER)
        page.until(lambda: page.find("#token-error").is_displayed(), "the refusal")
        assert not page.all("#ring .arc"), "nothing is told without a token"

        page.find("#token").send_keys(TOKEN, Keys.ENTER)

        page.until(lambda: len(page.all("#ring .all .arc")) == len(IDS), "the ring")
        page.until(lambda: page.all("#feed li[data-type]"), "the events, which need the token too")
        page.find("#forget-token").click()
        page.until(lambda: page.all("#token-dialog[open]"), "the question again")


async def test_the_page_says_that_the_proxy_is_gone_and_goes_on_when_it_is_back(tmp_path: Path, page: Browser) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    async with proxy_process(first, toml(NOBODY, admin={"address": "127.0.0.1:0"})) as proxy:
        url = await proxy.admin_url()
        open_page(page, url)
        proxy.signal(signal.SIGTERM)
        assert await proxy.ended() == 0

    page.until(lambda: page.find("#gone").is_displayed(), "the message")
    assert page.text("#gone").startswith("The proxy does not answer")
    async with proxy_process(second, toml(NOBODY, admin={"address": url.removeprefix("http://")})):
        page.until(lambda: not page.find("#gone").is_displayed(), "the proxy's return")


async def test_names_are_text_whatever_is_in_them(cluster: Cluster, page: Browser) -> None:
    open_page(page, cluster.url)
    name = "<img src=x onerror=\"document.title='owned'\">"
    search(page, name)
    page.until(lambda: page.text("#explanation h3") == name, "the explanation")
    assert page.run("return document.title") == "DistriChat"
    assert not page.all("#explanation img")
    assert page.console() == [], "nothing has even been tried"


async def test_markup_would_not_become_part_of_the_page_if_it_tried(cluster: Cluster, page: Browser) -> None:
    open_page(page, cluster.url)
    refused = page.run("try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return error.name; }")
    assert refused == "TypeError", "the page's policy demands trusted types"
    page.run("const s = document.createElement('style'); s.textContent = 'body{display:none}'; document.head.append(s)")
    assert page.find("main").is_displayed(), "inline styles do not hold"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_stands_out_from_its_ground(cluster: Cluster, page: Browser, scheme: str) -> None:
    page.prefer(scheme)
    cluster.servers["Server-A"].kill()
    open_page(page, f"{cluster.url}/#key=chat-000")
    page.until(lambda: page.all('#feed [data-endpoint="Server-A"]') and page.all("#explanation .walk"), "all of it")
    press(page, "Server-C", "Drain")
    page.until(lambda: status(page, "Server-C") == "draining", "the drain")

    contrasts = page.run(_CONTRASTS)

    assert len(contrasts) > 40
    assert min(contrasts)[0] >= 4.5, min(contrasts)  # WCAG 2.2, 1.4.3, level AA


async def test_nothing_is_wider_than_a_phone(cluster: Cluster, page: Browser) -> None:
    page.resize(360, 740)
    open_page(page, f"{cluster.url}/#key=chat-000")
    page.until(lambda: page.all("#explanation .walk"), "the explanation")
    assert page.run("return document.documentElement.scrollWidth") == 360
    assert page.run(
        "return [...document.querySelectorAll('button')].every((each) => !each.checkVisibility() || "
        "each.getBoundingClientRect().right <= 360)"
    )


async def test_the_keyboard_reaches_everything(cluster: Cluster, page: Browser) -> None:
    open_page(page, cluster.url)
    seen: list[str] = []
    for _ in range(40):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        seen.append(page.run("const it = document.activeElement; return it.id || it.ariaLabel || it.textContent"))
        if seen[-1] == "ring-group":
            ActionChains(page.driver).send_keys(Keys.ARROW_RIGHT).perform()
            assert "Server-A" in page.text("#ring-label")
            ActionChains(page.driver).send_keys(Keys.ARROW_RIGHT).perform()
            assert "Server-B" in page.text("#ring-label")
    assert {"key", "ring-group", "feed", "filter", "Share", "Drain Server-C"} <= set(seen)


async def test_the_ring_tells_the_share_of_the_server_pointed_at(cluster: Cluster, page: Browser) -> None:
    open_page(page, cluster.url)
    box = page.find("#ring").rect
    # Twelve o'clock is position zero, which the first point clockwise owns.
    pointer = ActionChains(page.driver).move_to_element_with_offset(page.find("#ring"), 1, -172 * box["width"] / 440)
    pointer.perform()
    name, share = page.text("#ring-label strong"), page.text("#ring-label span")
    assert name in IDS
    assert share == page.text(f'tr[data-id="{name}"] td[data-label="Share"]')


async def test_a_thousand_servers_are_drawn_in_bounds(tmp_path: Path, page: Browser) -> None:
    many = {f"gpu-{number:04d}": "127.0.0.1:1" for number in range(1000)}
    async with proxy_process(tmp_path, toml(many, admin={"address": "127.0.0.1:0"})) as proxy:
        open_page(page, await proxy.admin_url(), servers=1000)
        page.until(lambda: len(page.run(_HATCHED)) == 1000, "all of them hatched")
        assert page.run("return document.querySelector('#ring .hatch').getAttribute('d').length") < 500_000
        assert len(page.all("#endpoints tbody tr")) == 100
        assert page.text("#more").startswith("100 of 1,000 servers.")
        page.find("#filter").send_keys("gpu-0777")
        page.until(lambda: len(page.all("#endpoints tbody tr")) == 1, "the filter")
        page.find("#filter").clear()
        page.find("#filter").send_keys(Keys.SPACE, Keys.BACKSPACE)
        page.find("#more button").click()
        page.until(lambda: len(page.all("#endpoints tbody tr")) == 1000, "all rows")
