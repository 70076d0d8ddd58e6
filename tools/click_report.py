#!/usr/bin/env python3
"""Clicks through report.html of `greta bisect` in headless Chromium and holds what it shows against its summary.

    python3 tools/click_report.py REPORT.html... [--summary FILE] [--dark]
                                  [--screenshot FILE.png [--prompt NAME] [--height PIXELS]]

Of every prompt: its button, the verdict's lines and counts, cells of the heat map by mouse (first, last, largest, one
that was not judged) and by keyboard, the stages, every step of the logits, the failures. Then: nothing but the page's
own two scripts, no message on the console. --summary names the summary.json that the page must carry. --screenshot
takes the page of --prompt, whole or --height pixels from its top. Exit status: 0, or 1 with one line for each thing
that is wrong.
Needs chromium and chromedriver (scripts/test-report.sh installs them); speaks W3C WebDriver with the standard library.
"""

import argparse
import base64
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"right": "\ue014", "down": "\ue015", "home": "\ue011", "end": "\ue010"}


class Driver:
    """A chromedriver of its own and one headless session."""

    def __init__(self, dark):
        self.profile = tempfile.TemporaryDirectory(prefix="greta-report-", ignore_cleanup_errors=True)
        self.process = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True, start_new_session=True)
        self.session = ""
        for line in self.process.stdout:
            if match := re.search(r"started successfully on port (\d+)", line):
                break
        else:
            raise SystemExit("chromedriver did not start")
        self.base = f"http://127.0.0.1:{match[1]}/session"
        options = {"args": ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu", "--disable-dev-shm-usage",
                            "--window-size=1366,900", f"--user-data-dir={self.profile.name}"]}
        self.session = "/" + self.call("POST", "", {"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}})["sessionId"]
        self.call("POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {
            "features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.call("DELETE", "")
        finally:
            os.killpg(self.process.pid, signal.SIGKILL)  # the driver, and a browser that did not go
            self.process.wait()
            self.profile.cleanup()

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + self.session + path, data, {"Content-Type": "application/json"},
                                         method=method)
        try:
            with urllib.request.urlopen(request, timeout=25) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            value = json.load(error)["value"]
            raise LookupError(f"{value['error']}: {value['message'].splitlines()[0]}") from None

    def open(self, file):
        self.call("POST", "/url", {"url": pathlib.Path(file).resolve().as_uri()})

    def find(self, css):
        return self.call("POST", "/element", {"using": "css selector", "value": css})[ELEMENT]

    def click(self, css):
        self.call("POST", f"/element/{self.find(css)}/click", {})

    def text(self, css):
        """What a reader sees."""
        return self.call("GET", f"/element/{self.find(css)}/text")

    def texts(self, css, attribute):
        """The same of several elements, by the value of an attribute."""
        return self.run("return Object.fromEntries([...document.querySelectorAll(arguments[0])].map("
                        "e => [e.getAttribute(arguments[1]), e.innerText]))", css, attribute)

    def run(self, script, *arguments):
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, key):
        steps = [{"type": kind, "value": KEYS[key]} for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def messages(self):
        return [entry["message"] for entry in self.call("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, file, height):
        self.call("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": {
            "width": 1366, "height": height or self.run("return document.documentElement.scrollHeight"),
            "deviceScaleFactor": 1, "mobile": False}})
        pathlib.Path(file).write_bytes(base64.b64decode(self.call("GET", "/screenshot")))
        self.call("POST", "/goog/cdp/execute", {"cmd": "Emulation.clearDeviceMetricsOverride", "params": {}})


def same(shown, value):
    """The text shown says exactly this value of the summary."""
    if value is None or shown is None:
        return shown == "–"
    if isinstance(value, (int, float)):
        try:
            return float(shown) == value
        except ValueError:
            return False
    return shown == value


def in_css(text):
    return '"' + "".join(c if c.isalnum() else f"\\{ord(c):x} " for c in text) + '"'


class Page:
    """One report, its summary, and what is wrong with it."""

    def __init__(self, driver, file):
        self.driver, self.file, self.wrong, self.checks = driver, file, [], 0
        driver.open(file)
        text = driver.run("return document.getElementById('summary')?.textContent ?? ''")
        try:
            self.summary = json.loads(text)
        except ValueError as error:
            raise SystemExit(f"{file}: what #summary holds is no JSON: {error}") from None

    def expect(self, good, what):
        self.checks += 1
        if not good:
            self.wrong.append(what)

    def shows(self, css, text, what):
        try:
            shown = self.driver.text(css)
        except LookupError as error:
            shown = str(error)
        self.expect(text in shown, f"{what}: {text!r} is not in {shown[:200]!r}")

    def cell(self, prompt, row, column, how):
        """#cell must show this cell's numbers."""
        heat, fields = prompt["heat"], self.driver.texts("#cell [data-field]", "data-field")
        for field, value in (("ratio", heat["ratio"][row][column]), ("stage", heat["stage"][row][column]),
                             ("token", heat["token"][row][column]), ("layer", heat["rows"][row])):
            shown = fields.get(field)
            good = shown == "not judged" if field == "ratio" and value is None else same(shown, value)
            self.expect(good, f"cell {row}, {column} {how}: {field} shows {shown!r}, the summary has {value!r}")

    def heat(self, prompt):
        heat = prompt["heat"]
        rows, columns = len(heat["rows"]), len(heat["tokens"])
        drawn = self.driver.run("return document.querySelectorAll('#heat [data-row]').length")
        self.expect(drawn == rows * columns > 0, f"the heat map has {drawn} cells, not {rows} x {columns}")
        cells = {(r, c): ratio for r, line in enumerate(heat["ratio"]) for c, ratio in enumerate(line)}
        judged = {at: float(ratio) for at, ratio in cells.items() if ratio is not None}
        outside = [at for at, ratio in judged.items() if not ratio <= 1]
        marked = self.driver.run("return [...document.querySelectorAll('#heat .cell.over')].map(c => "
                                 "[Number(c.dataset.row), Number(c.dataset.column)])")
        self.expect(sorted(map(tuple, marked)) == sorted(outside), f"cells marked outside: {marked}, not {outside}")
        unjudged = [at for at, ratio in cells.items() if ratio is None]
        hatched = self.driver.run("return document.querySelectorAll('#heat .cell.none').length")
        self.expect(hatched == len(unjudged), f"{hatched} cells look not judged, not {len(unjudged)}")
        largest = max(judged, key=lambda at: math.inf if math.isnan(judged[at]) else judged[at])
        for row, column in [(0, 0), (rows - 1, columns - 1), largest, (rows // 2, columns // 3), *unjudged[:1]]:
            self.driver.click(f'#heat [data-row="{row}"][data-column="{column}"]')
            self.cell(prompt, row, column, "clicked")
        self.driver.click('#heat [data-row="0"][data-column="0"]')
        self.driver.run("document.getElementById('heat').focus()")
        for key, row, column in (("right", 0, min(1, columns - 1)), ("down", 1, min(1, columns - 1)),
                                 ("end", 1, columns - 1), ("home", 1, 0)):
            self.driver.press(key)
            self.cell(prompt, row, column, f"after the key {key}")

    def tables(self, prompt):
        """Tables say as many rows as the summary, and the values that matter in them."""
        shown = self.driver.run("""const rows = id => [...document.querySelectorAll(`#${id} tbody tr`)].map(
            row => [...row.cells].map(cell => cell.title || cell.textContent));
            return Object.fromEntries(['stages-table', 'failures-table', 'contributors'].map(id => [id, rows(id)]))""")
        expected = {
            "stages-table": [(r["stage"], r["ratio"], r["hash_b"]) for r in (prompt.get("stages") or {}).get("rows", [])],
            "failures-table": [(f["stage"], f["ratio"]) for f in prompt.get("failures", [])],
            "contributors": [(c["what"], c["shift"]) for c in (prompt.get("rounding") or {}).get("contributors", [])]}
        for name, rows in expected.items():
            self.expect(len(rows) == len(shown[name]), f"{name} has {len(shown[name])} rows, not {len(rows)}")
            for want, got in zip(rows, shown[name]):
                self.expect(all(any(same(cell, value) for cell in got) for value in want), f"{name}: {want} not in {got}")

    def logits(self, prompt):
        for index, row in enumerate(prompt.get("logits", [])):
            self.driver.click(f'#step option[value="{index}"]')
            self.expect(same(self.driver.text("#kl"), row["kl"]), f"step {row['step']}: KL is not {row['kl']}")
            shown = self.driver.run("return [...document.querySelectorAll('#logits-table tbody tr')].map(row => "
                                    "[...row.cells].map(cell => cell.title || cell.textContent))")
            want = [[a["id"], json.dumps(a["piece"], ensure_ascii=False), a["logit"], b["id"],
                     json.dumps(b["piece"], ensure_ascii=False), b["logit"]] for a, b in zip(row["a"], row["b"])]
            good = len(shown) == len(want) and all(same(s, w) for got, line in zip(shown, want)
                                                   for s, w in zip(got[1:7], line))
            self.expect(good, f"step {row['step']}: the logits shown are {shown}")

    def prompt(self, prompt):
        name = prompt["name"]
        before = time.monotonic()
        self.driver.click(f"[data-prompt={in_css(name)}]")
        self.driver.run("return document.getElementById('prompt').getBoundingClientRect().height")
        print(f"  {name}: drawn in {1000 * (time.monotonic() - before):.0f} ms")
        self.shows("#verdict h2", " ".join(name.split()), "the verdict's prompt")
        self.shows("#verdict .chip", "ERROR" if prompt.get("error") else prompt["kind"], f"{name}: kind")
        for css, key in (("#error", "error"), ("#first-fail", "first_fail"), ("#cause", "cause")):
            if prompt.get(key):
                self.shows(css, " ".join(prompt[key].split()), f"{name}: {key}")
        shown, counts = self.driver.texts("#verdict [data-count]", "data-count"), prompt.get("counts", {})
        self.expect(shown == {key: f"{value:,}" for key, value in counts.items()}, f"{name}: counts {shown}, not {counts}")
        if prompt.get("nonfinite"):
            self.shows("#nonfinite", prompt["nonfinite"]["value"], f"{name}: the value that is not finite")
        if prompt.get("heat"):
            self.heat(prompt)
        drawn = self.driver.run("return document.querySelectorAll('#drift [data-row]').length")
        cells = sum(map(len, (prompt.get("drift") or {}).get("relative", [])))
        self.expect(drawn == cells, f"{name}: the drift map has {drawn} cells, not {cells}")
        self.tables(prompt)
        self.logits(prompt)
        text = self.driver.run("return document.getElementById('prompt-text').textContent")
        self.expect(text == prompt["prompt_text"], f"{name}: the prompt's text shows as {text[:80]!r}")

    def check(self):
        summary = self.summary
        kind = summary["kind"] or "ERROR"
        self.shows("#kind", kind, "the verdict")
        self.shows("#status", str(summary["status"]), "the exit status")
        self.shows("#header", summary["build"]["commit"], "the build")
        for side in ("a", "b"):
            self.shows("#subjects", summary["subjects"][side]["text"], f"subject {side}")
        names = self.driver.run("return [...document.querySelectorAll('[data-prompt]')].map(b => b.dataset.prompt)")
        self.expect(names == [p["name"] for p in summary["prompts"]], f"the prompts' buttons are {names}")
        for difference in summary["input"]["differences"]:
            self.shows("#differences", difference["detail"], "an input's difference")
        for prompt in summary["prompts"]:
            self.prompt(prompt)
        alien = self.driver.run("return [...document.querySelectorAll('script, img, iframe, object, link')].map(e => "
                                "e.tagName + ' ' + (e.type || e.rel || ''))")
        self.expect(alien == ["LINK icon", "SCRIPT application/json", "SCRIPT "], f"the page holds {alien}")
        self.expect(self.driver.run("return document.title").startswith(kind), "the page's title")
        for message in self.driver.messages():
            self.expect(False, f"console: {message}")
        wide = self.driver.run("return document.documentElement.scrollWidth - window.innerWidth")
        self.expect(wide <= 0, f"the page is {wide} pixels wider than the window")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="+", metavar="REPORT.html")
    parser.add_argument("--summary", help="the summary.json that the page must carry")
    parser.add_argument("--screenshot", metavar="FILE.png")
    parser.add_argument("--prompt", help="whose screenshot")
    parser.add_argument("--height", type=int, help="of the screenshot; default: the whole page")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    wrong = 0
    with Driver(options.dark) as driver:
        for file in options.reports:
            print(file)
            page = Page(driver, file)
            if options.summary:
                with open(options.summary, encoding="utf-8") as other:
                    page.expect(json.load(other) == page.summary, f"the page does not carry {options.summary}")
            try:
                page.check()
            except (LookupError, TypeError) as error:
                page.expect(False, f"{type(error).__name__}: {error}")
            for line in page.wrong:
                print(f"  WRONG {line}")
            print(f"  {page.checks} checks, {len(page.wrong)} wrong")
            wrong += len(page.wrong)
        if options.screenshot:
            driver.open(options.reports[-1])
            if options.prompt:
                driver.click(f"[data-prompt={in_css(options.prompt)}]")
            driver.screenshot(options.screenshot, options.height)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
