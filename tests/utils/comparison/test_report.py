"""report.html: what its charts hold, and the page itself in a headless Chromium."""

import builtins
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from utils.comparison.report import ComparedPicture, write_report
from utils.comparison.report_charts import (
    calibration_chart,
    class_chart,
    curve_chart,
    interval_chart,
    label,
    loss_styles,
)
from utils.errors import UserError

HOSTILE = "</script><img src=x onerror=window.hacked=1>"
NAMES = ("gfl", "vfl", HOSTILE, "</style><b>%{x}</b>&amp;$body")


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(file, "PNG" if colour == "red" else "JPEG")
    return file.getvalue()


def set_width(browser, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.fixture
def page(browser, tmp_path):
    """``page(content, pictures)`` opens their report from disk; at the end nothing was logged or loaded."""
    browser.get_log("performance"), browser.get_log("browser")

    def open_page(content: dict, pictures=(), width: int = 1200):
        set_width(browser, width)
        browser.get(write_report(content, tmp_path, pictures).as_uri())
        return browser

    yield open_page
    assert_quiet(browser, (tmp_path / "report.html").as_uri())


def assert_quiet(browser, own: str) -> None:
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert own in requests and {url for url in requests if not url.startswith("data:")} == {own}


def ask(browser, expression: str):
    return browser.execute_script(f"return {expression}")


def wait(browser, expression: str):
    """The first value of an expression that holds, within 20 seconds."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20, 0.05).until(lambda _: ask(browser, expression))


def plotted(browser, chart: str, field: str) -> list:
    return ask(
        browser, f"document.querySelector('[data-chart={chart}] .plot').data.map((t) => t.{field} ?? null)"
    )


def choose(browser, chart: str, option: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element(By.CSS_SELECTOR, f"[data-chart={chart}] select")).select_by_value(option)


def test_a_reader_finds_the_verdict_first_and_turns_to_the_charts(page, make_content):
    """One visit, since a page takes its time to load: what follows are its steps."""
    content = make_content()
    browser = page(content)
    headings = ask(browser, "[...document.querySelectorAll('h2')].map((h) => h.innerText)")
    assert headings == [
        "Differences from the baseline",
        "Results",
        "Training curves",
        "Differences by class",
        "Calibration: does the score say the IoU?",
        "Time and memory",
        "Protocol",
        "How it was decided",
        "Exact figures",
    ]
    for width in (400, 1200):
        set_width(browser, width)
        check_the_first_screen(browser, width)
    check_drop_downs(browser, content)
    check_ticks(browser)
    check_hovering(browser)
    check_printing(browser)


def check_the_first_screen(browser, width: int) -> None:
    rectangle = "document.querySelector('.verdicts li:last-child').getBoundingClientRect()"
    assert 0 < ask(browser, f"{rectangle}.top") < ask(browser, f"{rectangle}.bottom") < 900
    lines = [line for line in ask(browser, "document.querySelector('main').innerText").splitlines() if line]
    assert lines[1] == "Against gfl: 1 better, 1 worse, 1 without evidence of a difference."
    best = "vfl is better than gfl: AP +0.020, 95 % interval +0.012 to +0.028, 5 seeds"
    assert lines[2:4] == ["▲ better", best]
    wait(browser, f"document.documentElement.scrollWidth <= {width}")  # charts follow; nothing sticks out


def check_drop_downs(browser, content: dict) -> None:
    for column in ("metrics/AP", "train/quality"):
        choose(browser, "curves", column)
        means = np.mean([run["curves"][column] for run in content["losses"]["gfl"]["runs"]], axis=0)
        assert plotted(browser, "curves", "y")[1] == pytest.approx(means, rel=1e-4)
    choose(browser, "intervals", "AP75")
    assert ask(browser, "document.querySelector('[data-chart=intervals] .xtitle').textContent")[:5] == "AP75:"
    choose(browser, "classes", "dfl_off")
    best = max(d["mean"] for d in content["differences"]["dfl_off"]["per_class"].values())
    assert plotted(browser, "classes", "x")[-1][0] == pytest.approx(best, rel=1e-4)


def check_ticks(browser) -> None:
    """A loss goes from all charts, and stays away when a drop-down changes."""
    browser.execute_script("document.querySelector('.legend input[value=\"1\"]').click()")
    assert plotted(browser, "curves", "visible") == [True, True, False, False, True, True, True, True]
    assert plotted(browser, "calibration", "visible") == [True, True, False, True, True]
    ticks = "[...document.querySelectorAll('.legend input[value=\"1\"]')].map((tick) => tick.checked)"
    assert ask(browser, ticks) == [False, False]
    choose(browser, "curves", "lr")
    assert plotted(browser, "curves", "visible")[2:4] == [False, False]


def check_hovering(browser) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    point = browser.find_element(By.CSS_SELECTOR, "[data-chart=intervals] .scatterlayer .points path")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(browser).move_to_element(point).perform()
    text = "document.querySelector('[data-chart=intervals] .hoverlayer').textContent"
    shown = wait(browser, text)
    assert "vfl" in shown and "AP75 +0.020, 95 % interval +0.012" in shown and "p 0.03 (Holm)" in shown


def check_printing(browser) -> None:
    """The charts fit the paper, and the screen again afterwards."""
    widths = "[...document.querySelectorAll('.main-svg')].map((svg) => svg.clientWidth)"
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert set(ask(browser, widths)) == {680}
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert min(ask(browser, widths)) > 900


def check_policy(browser) -> None:
    """What escaping might miss, the page's own policy stops."""
    assert browser.get_log("browser") == []
    browser.execute_script(
        "document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=\"window.hacked=1\">');"
        "const script = Object.assign(document.createElement('script'), {textContent: 'window.hacked = 1'});"
        "document.body.append(script)"
    )
    assert ask(browser, "window.hacked") is None
    refused = browser.get_log("browser")
    assert refused and all("Content Security Policy" in entry["message"] for entry in refused)


def test_hostile_names_are_inert_text(page, make_content):
    content = make_content(names=NAMES, classes=(HOSTILE, "<a href='https://example.com'>x</a>"))
    content["missing"] = [HOSTILE]
    content["name"] = content["protocol"]["data"] = content["protocol"]["versions"]["torch"] = HOSTILE
    content["losses"][HOSTILE]["changes"] = {HOSTILE: [HOSTILE, None]}
    for loss in content["losses"].values():
        for run in loss["runs"]:
            run["folder"], run["curves"][HOSTILE] = HOSTILE, run["curves"]["lr"]
    caption = f'gfl" onerror="window.hacked=1 {HOSTILE}\udc80'
    pictures = [ComparedPicture(HOSTILE, -0.25, (caption, picture("red")), (caption, picture("blue")))]
    browser = page(content, pictures)
    choose(browser, "curves", HOSTILE)
    choose(browser, "classes", HOSTILE)
    assert ask(browser, "window.hacked") is None
    assert ask(browser, "document.querySelectorAll('main a, main script, svg a').length") == 0
    assert ask(browser, "[...document.images].map((i) => [i.naturalWidth, i.src.slice(0, 15)])") == [
        [64, "data:image/png;"],
        [64, "data:image/jpeg"],
    ]
    assert HOSTILE in ask(browser, "document.querySelector('.verdicts').innerText")
    assert f"Runs are missing: {HOSTILE}; their" in ask(browser, "document.querySelector('main').innerText")
    ticks = "[...document.querySelectorAll('[data-chart=classes] .ytick')].map((tick) => tick.textContent)"
    assert sorted(ask(browser, ticks)) == ["</script><img src=x onerr…", "<a href='https://example.…"]
    check_policy(browser)


def test_many_losses_and_classes(page, make_content):
    names = [f"loss_{i}" for i in range(15)]
    browser = page(make_content(names=names, classes=[f"class {i}" for i in range(80)], epochs=5), width=400)
    assert ask(browser, "document.documentElement.scrollWidth") <= 400
    assert ask(browser, "document.querySelectorAll('[data-chart=classes] .ytick').length") == 80
    assert plotted(browser, "curves", "visible") == [True] * 12 + [False] * 18
    assert len({tuple(style.values()) for style in loss_styles(make_content(names=names)).values()}) == 15


def emptied(value):
    """Every number replaced by null, all else kept."""
    if isinstance(value, dict):
        return {key: emptied(part) for key, part in value.items()}
    if isinstance(value, list):
        return [emptied(part) for part in value]
    return None if isinstance(value, float) else value


def test_nulls_everywhere_leave_a_page(page, make_content):
    content = make_content(num_seeds=1)
    seeds, content = content["seeds"], emptied(content)
    content["seeds"] = seeds
    content["losses"]["vfl"].update(calibration=None, changes=None, origin=None, mean=None, sd=None)
    content["losses"]["siou"]["runs"][0].update(per_class=None, epochs=None, memory_gb=None)
    content["differences"]["vfl"] = content["differences"]["siou"]["per_class"] = None
    content["protocol"] = dict.fromkeys(content["protocol"])
    browser = page(content)
    assert "AP could not be measured" in ask(browser, "document.querySelector('.verdicts').innerText")
    assert set(ask(browser, "[...document.querySelectorAll('dd')].map((d) => d.innerText)")) == {"unknown"}


def test_the_baseline_alone_leaves_a_page(make_content, tmp_path):
    page = write_report(make_content(names=("gfl",), num_seeds=1), tmp_path, []).read_text()
    assert "Only gfl was run" in page and "Differences" not in page[: page.index("<script")]


def test_without_plotly_the_error_says_how_to_get_it(make_content, tmp_path, monkeypatch):
    original = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name.startswith("plotly"):
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match="python -m pip install plotly"):
        write_report(make_content(), tmp_path, [])
    assert not (tmp_path / "report.html").exists()


def test_the_same_content_gives_the_same_file(make_content, tmp_path):
    content = make_content()
    first = write_report(content, tmp_path, []).read_bytes()
    assert write_report(content, tmp_path, []).read_bytes() == first
    assert re.search(rb"script-src 'sha256-[^']+' 'sha256-[^']+';", first)


def test_interval_chart_by_value(make_content):
    chart = interval_chart(make_content(), "AP")
    smallest, *lines, points = chart["data"]
    assert points["x"] == [0.02, 0.003, -0.012]  # best first
    assert [line["x"] for line in lines] == [[0.012, 0.028], [-0.005, 0.011], [-0.02, -0.004]]
    assert smallest["base"] == [-0.01] * 3 and smallest["x"] == [0.02] * 3  # +-1.25 * 0.008
    low, high = chart["layout"]["xaxis"]["range"]
    assert low < -0.02 and high > 0.028
    top, bottom = chart["layout"]["yaxis"]["range"]
    assert top > 2 and bottom < 0  # row 0 on top


def test_curve_chart_by_value(make_content):
    content = make_content(num_seeds=2, names=("gfl", "vfl"), epochs=4)
    one, two = content["losses"]["gfl"]["runs"]
    one["curves"]["lr"], two["curves"]["lr"] = [None, 0.2, 0.4, float("nan")], [None, 0.6, None, None]
    band, line = curve_chart(content, "lr")["data"][:2]
    assert line["x"] == [2, 3] and line["y"] == pytest.approx([0.4, 0.4])  # (0.2 + 0.6) / 2, 0.4 alone
    assert curve_chart(content, "lr")["layout"]["xaxis"]["dtick"] == 1
    assert band["x"] == [2, 3, 3, 2] and band["y"] == [
        0.6,
        0.4,
        0.4,
        0.2,
    ]  # upper edge, then back along the lower


def test_class_and_calibration_charts_leave_out_what_has_no_value(make_content):
    content = make_content(classes=("RBC", "WBC", "Platelets", "none here"))
    per_class = content["differences"]["vfl"]["per_class"]
    per_class["RBC"] = None
    per_class["none here"].update(mean=None)
    per_class["WBC"].update(low=None, high=None)
    chart = class_chart(content, "vfl")
    assert sorted(chart["layout"]["yaxis"]["ticktext"]) == ["Platelets", "WBC"]
    assert sorted(len(trace["x"]) for trace in chart["data"]) == [0, 2, 2]
    content["losses"]["vfl"]["calibration"]["bins"][0].update(score=None, iou=None, count=0)
    lengths = [len(trace["x"]) for trace in calibration_chart(content)["data"]]
    assert lengths == [2, 10, 9, 10, 10]


def test_one_colour_per_loss_throughout(make_content):
    content = make_content()
    colours = [style["color"] for style in loss_styles(content).values()]
    assert [trace["line"]["color"] for trace in curve_chart(content, "lr")["data"][1::2]] == colours
    assert [trace["line"]["color"] for trace in calibration_chart(content)["data"][1:]] == colours
    assert interval_chart(content, "AP")["data"][-1]["marker"]["color"] == colours[1:]
    assert set(class_chart(content, "vfl")["data"][-1]["marker"]["color"]) == {colours[1]}


def test_labels_are_cut_before_they_are_escaped():
    assert label("a" * 26) == "a" * 26
    assert label("a" * 27) == "a" * 25 + "…"
    assert label("<b>&") == "&lt;b&gt;&amp;"
