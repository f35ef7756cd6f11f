"""A real browser without a window: Debian's chromium, where there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync", "--no-sandbox", "--enable-logging=stderr"]

# Runs inside a page that holds the report in a frame of a given width, and leaves what it saw in <pre id=seen>.
PROBE = """
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {
  const view = frame.contentWindow, page = frame.contentDocument, width = page.documentElement.clientWidth;
  const seen = { width, scroll: page.documentElement.scrollWidth, cut: [], sorted: {}, errors: view.seenErrors };
  for (const element of page.querySelectorAll("body *")) {
    const box = element.getBoundingClientRect();
    if (box.width && (box.right > width + 0.5 || box.left < -0.5)) seen.cut.push(element.tagName + " " + box.right);
  }
  for (const table of page.querySelectorAll("table")) {
    const title = table.closest("div").parentElement.id || table.tHead.textContent;
    const column = [...table.tHead.rows[0].cells].findIndex((cell, place) =>
      new Set([...table.tBodies[0].rows].map(row => row.cells[place].textContent)).size > 1);
    if (column < 0) continue;
    const read = () => [...table.tBodies[0].rows].map(row => row.cells[column].textContent);
    const button = table.tHead.rows[0].cells[column].querySelector("button");
    button.click();
    const up = read();
    button.click();
    seen.sorted[title] = { up, down: read() };
  }
  const zoom = page.querySelector(".zoom"), dialog = page.querySelector("dialog");
  if (zoom) {
    zoom.click();
    seen.zoomed = dialog.open && dialog.querySelector("img").naturalWidth > 0 | !!dialog.querySelector("img").src;
    dialog.click();
    seen.closed = !dialog.open;
  }
  seen.images = [...page.images].filter(image => !dialog.contains(image)).map(image => image.naturalWidth);
  seen.ink = view.getComputedStyle(page.body).color;
  document.querySelector("pre").textContent = JSON.stringify(seen);
});
"""


def look_at(
    page: Path, width: int, folder: Path, dark: bool = False, probe: str = PROBE, milliseconds: int = 8000
) -> dict[str, Any]:
    """The view that a browser has of a page at a width: see PROBE; `console` holds the lines of its console.

    probe          another script that leaves what it saw in <pre>, as JSON
    milliseconds   how long it has, in time of the page
    """
    listener = "<script>seenErrors = []; onerror = message => seenErrors.push(String(message));</script>"
    content = page.read_text().replace("<head>", f"<head>{listener}", 1)
    wrapper = folder / f"wrapper_{width}.html"
    frame = f'<iframe srcdoc="{html.escape(content)}" style="width:{width}px;height:2000px;border:0"></iframe>'
    wrapper.write_text(f"<!doctype html><body><pre id=seen></pre>{frame}<script>{probe}</script></body>")
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            *QUIET,
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width + 100},2100",
            f"--virtual-time-budget={milliseconds}",
            "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    found = re.search(r"<pre id=\"seen\">(.*?)</pre>", done.stdout, re.DOTALL)
    assert found and found[1], done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return {**json.loads(html.unescape(found[1])), "console": console}
