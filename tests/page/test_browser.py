"""The page in Chromium: what a reader does with mouse, keys and eyes, and what odd texts do not."""

import json
import shutil
import tempfile
import threading
import time

import numpy as np
import pytest

from helpers.run_directory import ODD, group, metrics_row, write_run
from unmask.page import write_report
from unmask.page.watch import listening
from unmask.report.record import record_path, write_groups

pytestmark = pytest.mark.browser

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars"),
]
WIDE, PHONE = (1280, 900), (390, 844)
SAMPLES, COLUMNS, STEPS = 8, 256, 64  # of the stated size
READY = """
    const done = arguments[0];
    const wait = () =>
      window.unmaskPage
        ? window.unmaskPage.ready.then(() => done(""), (error) => done(String(error.stack)))
        : setTimeout(wait, 20);
    wait();
"""


@pytest.fixture(scope="module")
def driver():
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("there is no Chromium with its driver: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        started = webdriver.Chrome(options=options, service=Service(DRIVER))
        started.set_script_timeout(120)
        yield started
        started.quit()


def screen(driver, size, dark=False):
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def show(driver, address, size=WIDE, dark=False):
    """Open a page and wait until all of it is drawn. Nothing may be refused or fail on the way."""
    screen(driver, size, dark)
    driver.get_log("browser")
    driver.get(address)
    assert driver.execute_async_script(READY) == ""
    assert [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a run with guesses at every step."""
    place = tmp_path_factory.mktemp("page")
    run = write_run(
        place / "run", groups=lambda step: [group(samples=3, columns=12, seed=step, guesses=True), group(seed=step)]
    )
    return write_report([run], place / "page.html").as_uri()


def js(driver, text, *arguments):
    return driver.execute_script(text, *arguments)


def text_of(driver, selector):
    return js(driver, "return document.querySelector(arguments[0]).textContent", selector)


def press(driver, keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(keys).perform()


def test_denoising_slider_shows_masks_as_masks(driver, page):
    show(driver, page)
    for step in (0, 2, 4):
        found = js(
            driver,
            """const slider = document.getElementById("denoise"); slider.value = arguments[0];
               slider.dispatchEvent(new Event("input"));
               const { group, completions } = unmaskPage.state, [first] = completions;
               return first.spans.map((span, column) => [span.classList.contains("m"), getComputedStyle(span).color,
                 group.isMasked(0, arguments[0], column), group.revealed[column] >= arguments[0]])""",
            step,
        )
        for shown, colour, masked, revealed_later in found:
            assert shown == masked == revealed_later
            assert (colour == "rgba(0, 0, 0, 0)") == masked
    assert "finished" in text_of(driver, "#denoise-now")


def test_step_chosen_in_a_curve_is_the_step_shown_below(driver, page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    show(driver, page)
    plot = driver.find_element(By.CSS_SELECTOR, ".card.large .plot")
    js(driver, "arguments[0].scrollIntoView({ block: 'center', behavior: 'instant' })", plot)
    ActionChains(driver).move_to_element(plot).perform()
    assert js(driver, "return document.querySelector('.cursor').classList.contains('hover')")
    hovered = text_of(driver, ".card:not(.large) .now")
    ActionChains(driver).click().perform()
    step = js(driver, "return unmaskPage.state.step")
    assert 8 <= step <= 12
    assert text_of(driver, "#step-now") == f"{step} of 20"
    assert (
        hovered
        == text_of(driver, ".card:not(.large) .now")
        == js(driver, "return unmaskPage.figure(1 / arguments[0])", step)
    )
    deadline = time.monotonic() + 20
    while "training step 10" not in text_of(driver, "#group-lead"):
        assert time.monotonic() < deadline


def test_play_goes_through_all_steps_and_keys_work(driver, page):
    show(driver, page)
    js(driver, "document.getElementById('speed').value = 1; document.getElementById('main').focus()")
    press(driver, "p")
    assert text_of(driver, "#play") == "Pause"
    js(driver, "document.getElementById('speed').value = 60")
    deadline = time.monotonic() + 20
    while text_of(driver, "#play") == "Pause":
        assert time.monotonic() < deadline
    assert js(driver, "return unmaskPage.state.denoise") == 4
    assert text_of(driver, "#spoken")  # what a screen reader is told
    press(driver, ",")
    assert "step 4 of 4" in text_of(driver, "#denoise-now")
    before = js(driver, "return unmaskPage.state.step")
    press(driver, "[")
    assert js(driver, "return unmaskPage.state.step") < before


def test_tokens_are_read_with_arrow_keys(driver, page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(driver, page)
    tokens = driver.find_element(By.CSS_SELECTOR, "#completions .tokens")
    tokens.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert (
        js(driver, "return [...arguments[0].children].findIndex((span) => span.classList.contains('at'))", tokens) == 1
    )
    assert "confidence" in text_of(driver, "#tip")
    assert text_of(driver, "#spoken") == text_of(driver, "#tip")


@pytest.mark.parametrize("colour", ["confidence", "revealed", "logp", "credit"])
def test_tokens_are_coloured_by_what_is_chosen(colour, driver, page):
    show(driver, page)
    found = js(
        driver,
        """const select = document.getElementById("colour");
           select.value = arguments[0];
           select.dispatchEvent(new Event("change"));
           const { group, completions } = unmaskPage.state, values = unmaskPage.COLOURS[arguments[0]].of(group);
           const shade = (span) => getComputedStyle(span).backgroundColor;
           return completions[1].spans.map((span, column) => [values[group.columns + column], shade(span)])""",
        colour,
    )
    by_value = dict(found)
    assert len(set(by_value.values())) > 1
    assert all(shade == "rgba(0, 0, 0, 0)" for value, shade in found if colour == "credit" and value == 0)
    low, high = by_value[min(by_value)], by_value[max(by_value)]
    assert low != high


def test_over_denoised_completions_are_marked_with_their_rewards_by_step(driver, page):
    show(driver, page)
    badges = js(
        driver,
        """const completions = [...document.querySelectorAll("#completions article")];
           return completions.map((each) => Boolean(each.querySelector(".badge")))""",
    )
    assert badges == [True, False, False]
    words = js(driver, "return document.querySelector('.spark').getAttribute('aria-label')")
    assert words.startswith("Reward of the guess before each step: 1,")
    assert "right before step 1, wrong at the end" in words


def test_rows_that_train_are_shown_for_each_completion(driver, page):
    show(driver, page)
    shown = js(
        driver,
        """const select = document.querySelector("#trained-choice select");
           select.value = "1";
           select.dispatchEvent(new Event("change"));
           return [...document.querySelectorAll("#rows .row")].map((row) => row.querySelectorAll(".tokens .m").length
             + [...row.querySelectorAll(".tokens span")].filter((span) => span.style.backgroundColor).length)""",
    )
    expected = js(
        driver, "return unmaskPage.state.group.rows.filter((row) => row.sample === 1).map((row) => row.credit.size)"
    )
    assert shown == expected
    assert len(shown) == 2
    one_less = "const { group, trained } = unmaskPage.state; group.rows.splice(0, 1); trained.show(group)"
    told = js(driver, f"{one_less}; return document.querySelector('#trained-choice option').textContent")
    assert told.endswith(" · 1 row")


@pytest.mark.parametrize("dark", [False, True])
def test_page_is_light_or_dark_as_the_system_is_and_as_chosen(dark, driver, page):
    show(driver, page, dark=dark)

    def brightness():
        colour = js(driver, "return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3

    assert (brightness() < 60) == dark
    js(driver, "document.getElementById('theme').click()")
    assert brightness() > 200
    js(driver, "document.getElementById('theme').click()")
    assert brightness() < 60


@pytest.mark.parametrize("size", [PHONE, (320, 640), WIDE, (2200, 1000)])
def test_page_never_scrolls_sideways(size, driver, page):
    show(driver, page, size)
    js(driver, "document.getElementById('only-changed').click()")
    assert js(driver, "return document.documentElement.scrollWidth") <= size[0]


def test_every_control_has_a_name(driver, page):
    show(driver, page)
    nameless = js(
        driver,
        """return [...document.querySelectorAll("button, input, select, [role=img], [role=group]")]
             .filter((each) => !(each.getAttribute("aria-label") || each.textContent.trim() || each.labels?.length))
             .map((each) => each.outerHTML.slice(0, 80))""",
    )
    assert nameless == []


def test_odd_texts_do_nothing_and_are_shown(driver, tmp_path):
    words = [*ODD, "x" * 100_000]
    odd = group(vocabulary=words, columns=40, guesses=True, texts=["".join(words)] * 2)
    odd.arrays["token_NC"][:] = np.resize(np.arange(1, len(words) + 1), (2, 40))
    odd.about["prompt"] = "".join(words)
    long = group(columns=20_000, steps=1, vocabulary=["abcde"])
    run = write_run(tmp_path / "run", groups=lambda step: [odd, long])
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 20, "warning": "".join(ODD)}) + "\n")
    show(driver, write_report([run], tmp_path / "page.html").as_uri())
    assert js(
        driver, "return window.hit === undefined && document.querySelectorAll('main img, main script').length === 0"
    )
    shown = text_of(driver, "#completions .tokens")
    assert ODD[0] in shown
    assert "👩‍👩‍👧🙂" in shown
    assert "‹U+202E›" in shown
    assert "\u202e" not in js(driver, "return document.body.innerText")
    assert "␀␁␛[31m" in shown
    assert "x" * 100_000 in shown
    js(driver, "document.querySelectorAll('#group-choice button')[1].click()")
    assert js(driver, "return document.querySelectorAll('#completions .tokens span').length") == 2 * 4096
    js(driver, "document.querySelector('#completions .more').click()")
    assert js(driver, "return document.querySelectorAll('#completions .tokens span').length") == 20_000 + 4096


def stated(step):
    """A group of the stated size."""
    return [group(samples=SAMPLES, columns=COLUMNS, steps=STEPS, seed=step)]


def test_stated_size_opens_soon_and_plays_sixty_steps_a_second(driver, tmp_path):
    run = write_run(tmp_path / "run", steps=300, every=1, groups=stated)
    path = write_report([run], tmp_path / "page.html")
    begin = time.monotonic()
    show(driver, path.as_uri())
    assert time.monotonic() - begin < 20
    measure = """
        const done = arguments[0], times = [];
        let step = 0;
        const frame = (now) => {
          times.push(now);
          unmaskPage.showDenoise(step++);
          document.body.offsetHeight;
          step <= 64 ? requestAnimationFrame(frame) : done((1000 * (times.length - 1)) / (times.at(-1) - times[0]));
        };
        document.getElementById("completions").scrollIntoView({ behavior: "instant" });
        requestAnimationFrame(frame);
    """
    rates = []
    while len(rates) < 5 and max(rates, default=0) < 57:  # a machine that others use misses frames
        rates.append(driver.execute_async_script(measure))
    assert max(rates) >= 57, rates
    choose = """
        const done = arguments[0], begin = performance.now();
        unmaskPage.choose(150).then(() => done(performance.now() - begin));
    """
    assert driver.execute_async_script(choose) < 1500  # milliseconds to decode and show another step


def test_comparison_shows_bands_gains_and_differences(driver, tmp_path):
    runs = [write_run(tmp_path / f"a{seed}", seed=seed, gain=0.1 + seed / 50) for seed in (0, 1, 2)]
    runs.append(write_run(tmp_path / "b", method={"name": "mdpo"}, gain=0.6))
    show(driver, write_report(runs, tmp_path / "page.html").as_uri())
    assert text_of(driver, "#title") == "4 runs compared"
    assert "b over a0" in text_of(driver, "#gains")
    assert "method.alpha" in text_of(driver, "#differences")
    series = js(
        driver, "return unmaskPage.state.charts[1].spec.series.map((each) => [each.label, Boolean(each.upper)])"
    )
    assert series == [["dispo, 3 seeds", True], ["mdpo, seed 0", False]]


def test_watched_page_has_new_points_without_being_loaded_again(driver, tmp_path):
    run = write_run(tmp_path / "run", done=False)
    with listening(run) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            show(driver, server.address)
            js(driver, "window.kept = 1")
            with (run / "metrics.jsonl").open("a") as stream:
                stream.writelines(json.dumps(metrics_row(step)) + "\n" for step in range(21, 26))
            write_groups(record_path(run, "step", 25), [group(samples=4)])
            deadline = time.monotonic() + 30
            while "training step 25" not in text_of(driver, "#group-lead"):
                assert time.monotonic() < deadline
            assert js(driver, "return window.kept") == 1
            assert text_of(driver, "#step-now") == "25 of 25"
        finally:
            driver.get("about:blank")
            server.shutdown()
            thread.join()
