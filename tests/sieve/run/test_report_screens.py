"""Pages of runs in a browser, headless Chromium, where there is one: on a phone, and in the dark."""

import html
import json
import re
import shutil
import struct
import subprocess
import zlib

import pytest

from sieve.run.report.html.compare_page import Run, compare_page
from sieve.run.report.html.run_page import run_page
from tests.sieve.run.test_report_page import interval, report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DARK, LIGHT = 0, 1
PHONE = 390

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

# The page allows no scripts, so a frame around it measures it.
FRAME = """<!DOCTYPE html><body style="margin:0">
<iframe id="page" srcdoc="{page}" style="border:0;width:{width}px;height:900px"></iframe>
<script>
onload = () => {{
  const inside = document.getElementById("page").contentDocument;
  const wide = [...inside.querySelectorAll("body *")].filter(
    (one) => one.getBoundingClientRect().right > {width} + 1 && !one.closest(".scroll"));
  const style = inside.defaultView.getComputedStyle(inside.body);
  const found = {{ width: inside.documentElement.scrollWidth, back: style.backgroundColor, ink: style.color,
    wide: wide.slice(0, 3).map((one) => one.outerHTML.slice(0, 80)) }};
  document.title = JSON.stringify(found);
}};
</script>"""


def large_report():
    """A report with as many blocks and as long names as real ones."""
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    names = [f"model.layers.{block}.{kind}" for block in range(30) for kind in kinds]
    made = report(
        model="somebody/a-model-with-a-long-name-of-135M-parameters-instruct",
        kept={name: (place % 11) / 10 for place, name in enumerate(names)},
        spectra={
            name: {"full": 576, "holds_90": 20 + place, "holds_99": 150 + 2 * place, "kept": (place % 11) * 40 or None}
            for place, name in enumerate(names)
        },
        notes=["a note that is long enough to be broken into several lines on a narrow screen " * 2],
        left_dense={"model.layers.*.a_module_with_a_very_long_name.and_another_one.linear": "an activation in between"},
    )
    made["bottlenecks"][0]["names"] = [names[7]]
    return made


def chromium(tmp_path, scheme, *arguments):
    base = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    base += [f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}"]
    done = subprocess.run([*base, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def measured(tmp_path, page, width, scheme):
    """The page's width, its colours, and elements that stick out, in a frame of this width."""
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page=html.escape(page), width=width), encoding="utf-8")
    out = chromium(tmp_path, scheme, "--dump-dom", frame.as_uri())
    return json.loads(html.unescape(re.search(r"<title>(\{.*?\})</title>", out, re.S)[1]))


def first_pixel(path):
    """Red, green, blue of a PNG's top left corner: no filter changes the first pixel of the first row."""
    content = path.read_bytes()
    data, place = b"", 8
    while place < len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        data += content[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        place += 12 + length
    return tuple(zlib.decompress(data)[1:4])


@pytest.fixture(scope="module")
def pages():
    other = large_report()
    other["accuracy"]["pruned"]["test"] = interval(0.79)
    runs = [Run("one", large_report(), {"search": "ga"}), Run("two", other, {"search": "budget"})]
    return {"run": run_page(large_report(), {"search": "ga", "task": "geography"}), "compare": compare_page(runs)}


@pytest.mark.parametrize("which", ["run", "compare"])
@pytest.mark.parametrize(("scheme", "background"), [(LIGHT, (255, 255, 255)), (DARK, (15, 19, 24))])
def test_a_page_fits_a_phone_and_is_drawn_in_the_dark(which, scheme, background, pages, tmp_path):
    found = measured(tmp_path, pages[which], PHONE, scheme)
    assert (found["width"], found["wide"]) == (PHONE, [])
    assert found["back"] == f"rgb{background}"
    # Text is light on dark and dark on light.
    assert (sum(map(int, re.findall(r"\d+", found["ink"]))) > 3 * 128) == (scheme == DARK)
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(pages[which], encoding="utf-8")
    chromium(tmp_path, scheme, f"--screenshot={picture}", "--window-size=520,6000", page.as_uri())
    assert first_pixel(picture) == background


def test_what_sticks_out_is_found(pages, tmp_path):
    page = pages["run"].replace("</h1>", '</h1><p><b style="display:inline-block;width:500px">x</b></p>')
    found = measured(tmp_path, page, PHONE, LIGHT)
    assert found["width"] > PHONE
    assert any("500px" in one for one in found["wide"])
