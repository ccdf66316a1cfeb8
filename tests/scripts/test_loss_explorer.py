"""The loss explorer: the committed file is what the script writes, and shows what Python computes."""

import json
import re

import pytest
import torch
from torch.nn import functional

from models.head import LTRBHead
from scripts.loss_explorer import (
    CLASS_LOSSES,
    NUM_BINS,
    PATH,
    build_page,
    class_loss_and_gradient,
    side_numbers,
)
from utils.config import ModelConfig

MINUS = "\u2212"


class Page:
    """The explorer in the browser."""

    def __init__(self, browser, path, width=1200):
        self.browser = browser
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(path.as_uri())
        self.run("return new Promise(requestAnimationFrame)")  # the first drawing waits for the width

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def __getitem__(self, identity):
        return self.browser.find_element("id", identity)

    def text(self, identity):
        return self[identity].get_property("textContent")

    def number(self, identity):
        return float(self.text(identity).replace(MINUS, "-"))

    def press(self, identity, *keys):
        from selenium.webdriver.common.keys import Keys

        self[identity].send_keys(*(getattr(Keys, key) for key in keys))

    def slide(self, identity, value):
        """Moves a slider as a hand does: its value, then the event."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.run(script, self[identity], value)

    def probabilities(self):
        return torch.tensor(self.run("return side.probabilities"), dtype=torch.float64)

    def preset(self, name):
        self.browser.find_element("css selector", f'[data-preset="{name}"]').click()


@pytest.fixture
def page(browser):
    """The explorer at 1200 px; at the end its console must be empty, and nothing have been fetched."""
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")  # what lay there before
    yield Page(browser, PATH)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert sent and set(sent) == {PATH.as_uri()}


def test_the_committed_file_is_what_the_script_writes():
    assert PATH.read_bytes() == build_page().encode(), (
        "run python -m scripts.loss_explorer and commit the file"
    )


def test_the_file_stands_alone():
    text = PATH.read_text(encoding="utf-8")
    assert len(text.encode()) < 1_000_000 and "{{" not in text
    for word in (
        "src=",
        "href=",
        "@import",
        "fetch(",
        "XMLHttpRequest",
        "import(",
        'http-equiv="refresh',
    ):
        assert word not in text
    assert not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text


def class_settings(count):
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(count, generator=generator).tolist()
    targets[:4] = 0.0, 1.0, 0.0, 1.0
    for number, target in enumerate(targets):
        exponent = 0.5 + 4.5 * torch.rand((), generator=generator).item()
        alpha = torch.rand((), generator=generator).item() if number % 2 else None
        logits = 4 * torch.randn(6, generator=generator, dtype=torch.float64)
        yield target, exponent, alpha, torch.cat((logits, logits.new_tensor([-30, 0, 30])))


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_formulas_equal_the_python_functions(page, name):
    for target, exponent, alpha, logits in class_settings(40):
        script = "const [l, ...a] = arguments; return a[0].map((z) => CLASS_LOSSES[l](z, ...a.slice(1)))"
        got = torch.tensor(
            page.run(script, name, logits.tolist(), target, exponent, alpha), dtype=torch.float64
        )
        expected = torch.stack(class_loss_and_gradient(name, logits, target, exponent, alpha), 1)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_resting_score_is_the_minimum(page, name):
    rests = {
        "QFL": lambda y, exponent: y,
        "VFL": lambda y, exponent: y,
        "MAL": lambda y, exponent: y**exponent,
    }
    for target, exponent in ((0, 2), (0.13, 0.7), (0.5, 2), (0.62, 1.5), (0.8, 2), (0.97, 4), (1, 2)):
        script = "return restingScore(CLASS_LOSSES[arguments[0]], arguments[1], arguments[2], null)"
        rest = page.run(script, name, target, exponent)
        if name in rests:
            assert rest == pytest.approx(rests[name](target, exponent), abs=1e-5)
        scores = torch.linspace(1e-5, 1 - 1e-5, 2001, dtype=torch.float64)
        scores[0] = min(max(rest, 1e-9), 1 - 1e-9)
        loss, _ = class_loss_and_gradient(name, scores.logit(), target, exponent, None)
        assert loss[0] <= loss.min() + 1e-9
        if name == "FL" and 0.5 < target < 1:
            assert target < rest < 1  # what the page says: drawn to 1


def test_side_formulas_equal_the_python_functions(page):
    generator = torch.Generator().manual_seed(1)
    for number in range(150):
        logits = torch.randn(NUM_BINS, generator=generator, dtype=torch.float64) * (0.2 + number / 20)
        distance = 15 * torch.rand((), generator=generator).item() if number > 2 else (0.0, 15.0, 4.0)[number]
        if number % 3 == 0:  # narrow ones, where sigma's correction has all its terms
            logits = logits / 10 - 3 * (torch.arange(NUM_BINS) - distance).abs()
        script = """const [z, y] = arguments; return { integral: integral(z), sigma: sideSigma(z),
            dfl: distributionFocalLoss(z, y), minimum: twoBinEntropy(y, z.length) }"""
        expected = side_numbers(logits, distance)
        assert page.run(script, logits.tolist(), distance) == pytest.approx(expected, rel=0, abs=1e-9)


def shows_class_numbers(page, target, exponent, alpha, score):
    logit = torch.tensor([score], dtype=torch.float64).logit()
    for name in CLASS_LOSSES:
        loss, gradient = class_loss_and_gradient(name, logit, target, exponent, alpha)
        assert page.number(f"{name}-loss") == pytest.approx(loss.item(), abs=6e-5, rel=6e-3)
        assert page.number(f"{name}-gradient") == pytest.approx(gradient.item(), abs=6e-5, rel=6e-3)
    assert page.number("QFL-rest") == pytest.approx(target, abs=6e-4)
    shown = [page.text(f"{control}-value") for control in ("target", "exponent", "alpha", "score")]
    assert shown == [
        f"{target:.2f}",
        f"{exponent:.1f}",
        "off" if alpha is None else f"{alpha:.2f}",
        f"{score:.2f}",
    ]


def test_the_table_follows_every_slider(page):
    shows_class_numbers(page, 0.8, 2.0, None, 0.3)
    # By hand, as in docs/loss.md: 0.5^2 (-0.2 ln 0.7 - 0.8 ln 0.3) = 0.25 * 1.0345.
    assert page.text("QFL-loss") == "0.2586"
    page.press("target", "ARROW_LEFT", "ARROW_LEFT", "ARROW_LEFT")
    shows_class_numbers(page, 0.77, 2.0, None, 0.3)
    page.press("exponent", "ARROW_RIGHT", "ARROW_RIGHT")
    shows_class_numbers(page, 0.77, 2.2, None, 0.3)
    page.press("score", "END")
    shows_class_numbers(page, 0.77, 2.2, None, 0.99)
    assert not page["alpha"].is_enabled()
    page["use-alpha"].click()
    page.press("alpha", "ARROW_RIGHT")
    shows_class_numbers(page, 0.77, 2.2, 0.3, 0.99)
    page.press("target", "HOME")
    shows_class_numbers(page, 0.0, 2.2, 0.3, 0.99)
    page.slide("score", 0.01)
    shows_class_numbers(page, 0.0, 2.2, 0.3, 0.01)


def points_of(page, name):
    """(N, 2) px of a curve."""
    text = page.run("return document.querySelector(`path.curve.${arguments[0]}`).getAttribute('d')", name)
    return torch.tensor([[float(x) for x in pair.split()] for pair in text[1:].split("L")])


def axis(page, group):
    """(value of px) of the vertical axis of a drawing, from the places of its numbers."""
    script = """return [...document.querySelectorAll(`#${arguments[0]} > text.tick[text-anchor=end]`)]
        .map((tick) => [tick.textContent, tick.getAttribute("y") - 4])"""
    marks = [(float(text.replace(MINUS, "-")), y) for text, y in page.run(script, group)]
    (low, start), (high, end) = marks[0], marks[-1]
    assert len(marks) >= 3 and high > low
    return lambda px: low + (px - start) / (end - start) * (high - low)


@pytest.mark.parametrize("view", ["loss", "gradient"])
def test_the_curves_lie_where_the_axis_says(page, view):
    page[f"show-{view}"].click()
    page.slide("exponent", 1.5)
    value_of = axis(page, "class-drawing")
    scores = torch.tensor(page.run("return SCORES"), dtype=torch.float64)
    inside = (scores > 0.1) & (scores < 0.95)
    for name in CLASS_LOSSES:
        expected = class_loss_and_gradient(name, scores.logit(), 0.8, 1.5, None)[view == "gradient"]
        values = value_of(points_of(page, name)[:, 1])
        torch.testing.assert_close(values[inside], expected[inside].float(), rtol=0, atol=2e-3)
    assert view in page["class-drawing"].text


def test_curves_can_be_hidden_and_coinciding_ones_all_show(page):
    page["show-FL"].click()
    names = page.run("return [...document.querySelectorAll('path.curve')].map((path) => path.classList[1])")
    assert names == ["QFL", "VFL", "MAL", "dfl"]
    page["show-FL"].click()
    page.press("target", "HOME")
    script = """return [...document.querySelectorAll("#class-drawing path")]
        .map((path) => parseFloat(path.style.strokeWidth))"""
    widths = page.run(script)
    assert widths == sorted(widths, reverse=True) and len(set(widths)) == 4
    page.press("target", "END")
    assert len(set(page.run(script))) < 4


def drag(page, drawing, start, end):
    """Holds the pointer down from one place of a drawing to another, in px from its left upper corner."""
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    script = """arguments[0].scrollIntoView({ block: "center" });
        const box = arguments[0].getBoundingClientRect(); return [box.left, box.top]"""
    left, top = page.run(script, drawing)
    actions = ActionBuilder(page.browser, duration=50)
    actions.pointer_action.move_to_location(round(left + start[0]), round(top + start[1])).pointer_down()
    actions.pointer_action.move_to_location(round(left + end[0]), round(top + end[1])).pointer_up()
    actions.perform()


def test_the_drawing_sets_the_score(page):
    drawing = page["class-drawing"]
    right = page.run("return arguments[0].clientWidth", drawing) - 12
    drag(page, drawing, (100, 150), (46 + 0.6 * (right - 46), 150))
    shows_class_numbers(page, 0.8, 2.0, None, 0.6)


def shows_side_numbers(page):
    """The numbers are those of the Python functions for the bars and the true distance shown."""
    distance = float(page.text("distance-value"))
    probabilities = page.probabilities()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-9) and probabilities.min() > 0
    expected = side_numbers(probabilities.log(), distance)
    for name, value in expected.items():
        assert page.number(f"{name}-value") == pytest.approx(value, abs=6e-5)
    assert page.number("excess-value") == pytest.approx(
        expected["dfl"] - expected["minimum"], abs=6e-5, rel=6e-3
    )
    value_of = axis(page, "loss-by-distance")
    for mark, name in (("dfl-mark", "dfl"), ("minimum-mark", "minimum")):
        assert value_of(float(page[mark].get_attribute("cy"))) == pytest.approx(expected[name], abs=1e-3)
    bar_of = axis(page, "bar-axes")
    script = """return [...document.querySelectorAll("#bars rect")]
        .map((bar) => [bar.getAttribute("aria-valuenow"), bar.getAttribute("y")])"""
    told, tops = torch.tensor([[float(text) for text in bar] for bar in page.run(script)]).double().T
    torch.testing.assert_close(told, probabilities, rtol=0, atol=6e-5)
    torch.testing.assert_close(bar_of(tops), probabilities, rtol=0, atol=1e-5)
    return expected


def test_distance_and_presets(page):
    shows_side_numbers(page)
    page.preset("two-bin")
    numbers = shows_side_numbers(page)
    # By hand, as in docs/loss.md: 0.7 in bin 2, 0.3 in bin 3, entropy 0.6109; the others hold 1e-6 each.
    assert page.probabilities()[2:4].tolist() == pytest.approx([0.7, 0.3], abs=2e-5)
    assert (page.text("minimum-value"), page.text("integral-value")) == ("0.6109", "2.3001")
    assert numbers["dfl"] == pytest.approx(0.6109, abs=1e-4)
    assert page.text("sigma-note") == "at the limit of the bins" and page.text("sigma-value") == "0.1500"
    page.press("distance", "ARROW_RIGHT", "ARROW_RIGHT")
    assert page.text("distance-value") == "2.40"
    shows_side_numbers(page)
    page.preset("two-peaks")
    assert shows_side_numbers(page)["integral"] == pytest.approx(2.4, abs=1e-3)
    page.preset("flat")
    assert shows_side_numbers(page)["dfl"] == pytest.approx(2.7726, abs=1e-4)  # ln 16
    for distance in (0, 7.5, 15):
        page.slide("distance", distance)
        page.preset("two-peaks")
        assert shows_side_numbers(page)["integral"] == pytest.approx(distance, abs=1e-3)
        page.preset("spread")
        shows_side_numbers(page)


def test_untrained_is_how_the_head_starts(page):
    page.preset("start")
    bias = LTRBHead([16], 1, ModelConfig()).box_outputs[0].bias[:NUM_BINS].detach().double()
    torch.testing.assert_close(page.probabilities(), bias.softmax(0), rtol=0, atol=1e-6)
    assert page.text("integral-value") == "2.7255"
    shows_side_numbers(page)


def edited(probabilities, bin, value):
    """What an edit should give: the bin takes the value, the others make room in proportion."""
    others = probabilities * (1 - value) / (1 - probabilities[bin])
    others[bin] = value
    return others


def test_bars_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    page.preset("flat")
    before = page.probabilities()
    bars = page.browser.find_elements("css selector", "#bars rect")
    assert [bar.get_attribute("tabindex") for bar in bars].count("0") == 1
    page["step"].send_keys(Keys.SHIFT, Keys.TAB)  # backwards from the button: presets, slider, the bars
    for _ in range(5):
        page.browser.switch_to.active_element.send_keys(Keys.SHIFT, Keys.TAB)
    assert page.browser.switch_to.active_element.get_attribute("id") == "distance"
    page.browser.switch_to.active_element.send_keys(Keys.SHIFT, Keys.TAB)
    focused = page.browser.switch_to.active_element
    assert focused.get_attribute("aria-label") == "bin 2"
    focused.send_keys(Keys.ARROW_RIGHT)
    focused = page.browser.switch_to.active_element
    assert focused.get_attribute("aria-label") == "bin 3"
    focused.send_keys(Keys.PAGE_UP, Keys.PAGE_UP, Keys.ARROW_UP)
    torch.testing.assert_close(page.probabilities(), edited(before, 3, 0.27), rtol=0, atol=1e-5)
    assert page.text("bin-value") == "Bin 3 holds 27.0 % of the probability."
    shows_side_numbers(page)
    focused.send_keys(Keys.END)
    page.browser.switch_to.active_element.send_keys(*[Keys.PAGE_UP] * 12)
    assert page.probabilities()[15] == pytest.approx(1, abs=2e-5)
    shows_side_numbers(page)
    page.browser.switch_to.active_element.send_keys(*[Keys.PAGE_DOWN] * 12)
    assert page.probabilities()[15] == pytest.approx(0, abs=2e-6)
    shows_side_numbers(page)


def test_bars_by_pointer(page):
    page.preset("flat")
    before = page.probabilities()
    x, y, low = page.run("return [side.x(9), side.y(0.4), side.y(0)]")
    drag(
        page, page["side-drawing"], (x, low - 5), (x + 40, y)
    )  # the bar that was taken, though the hand wanders
    value = page.probabilities()[9].item()
    assert value == pytest.approx(0.4, abs=0.01)  # whole pixels
    torch.testing.assert_close(page.probabilities(), edited(before, 9, value), rtol=0, atol=1e-5)
    shows_side_numbers(page)
    drag(page, page["side-drawing"], (x, low + 100), (x, low + 60))  # the drawing below is not for editing
    assert page.probabilities()[9].item() == value


def test_a_finger_draws_on_the_bars_and_scrolls_elsewhere(browser):
    page = Page(browser, PATH, width=400)
    page.preset("flat")
    script = """arguments[0].scrollIntoView({ block: "center" });
        const { left, top } = arguments[0].getBoundingClientRect();
        return [left + side.x(9), top + side.y(0.02)]"""

    def swipe_up(x, y):
        before = page.run("return scrollY")
        for step in range(13):
            event = {
                "type": "touchMove" if step else "touchStart",
                "touchPoints": [{"x": x, "y": y - 10 * step}],
            }
            browser.execute_cdp_cmd("Input.dispatchTouchEvent", event)
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        return page.run("return scrollY") - before

    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    x, y = page.run(script, page["side-drawing"])
    assert swipe_up(x, y) == 0
    assert page.probabilities()[9] > 0.4  # 120 of some 210 px
    held = page.probabilities()
    assert swipe_up(x, y + 130) > 50
    assert torch.equal(page.probabilities(), held)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_gradient_step_is_one_of_dfl(page):
    page.preset("two-peaks")
    page.slide("distance", 3.25)
    for _ in range(3):
        logits = page.probabilities().log().requires_grad_()
        low = torch.tensor([3, 4])
        loss = -(logits.log_softmax(0)[low] * torch.tensor([0.75, 0.25])).sum()  # eq. 6 by hand
        (gradient,) = torch.autograd.grad(loss, logits)
        page["step"].click()
        expected = functional.softmax(logits.detach() - gradient, 0)
        torch.testing.assert_close(page.probabilities(), expected, rtol=0, atol=2e-5)
        shows_side_numbers(page)
    for _ in range(40):
        page.run("arguments[0].click()", page["step"])
    assert shows_side_numbers(page)["dfl"] == pytest.approx(page.number("minimum-value"), abs=0.05)


def test_page_checks_itself(page, browser, tmp_path):
    assert "1584 numbers" in page.text("checks") and "wrong" not in page["checks"].get_attribute("class")
    text = PATH.read_text(encoding="utf-8")
    for old, new in (("Math.pow(y, gamma)),", "y),"), ('"sigma":0.15,', '"sigma":0.16,')):
        assert old in text
        (tmp_path / "broken.html").write_text(text.replace(old, new, 1), encoding="utf-8")
        broken = Page(browser, tmp_path / "broken.html")
        assert "does not agree" in broken.text("checks") and "wrong" in broken["checks"].get_attribute(
            "class"
        )
    browser.get_log("performance")
    Page(browser, PATH)


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_window(page, browser, width):
    narrow = Page(browser, PATH, width)
    assert narrow.run("const page = document.documentElement; return page.scrollWidth === page.clientWidth")
    assert narrow.run("return document.getElementById('class-drawing').clientWidth") > 0.55 * width
    script = """return [...document.querySelectorAll("svg text")].filter((text) => {
        const box = text.getBoundingClientRect(), room = text.ownerSVGElement.getBoundingClientRect();
        return box.left < room.left - 2 || box.right > room.right + 12; }).map((text) => text.textContent)"""
    for distance in (0, 2.3, 7.5, 15):
        narrow.slide("distance", distance)
        narrow.slide("target", distance / 15)
        narrow.preset("spread")
        assert narrow.run(script) == []
