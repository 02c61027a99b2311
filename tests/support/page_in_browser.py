"""Check a report of the benchmark in headless Chromium, at the widths of a phone and of a desktop.

Not a test of the suite: it needs Debian's chromium, which is large. It fails on any message on the
console and if the page is wider than the screen; the screenshots have to be looked at.

    python tests/support/page_in_browser.py docs/formats/report.html [FOLDER]
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTHS = {"phone": 360, "desktop": 1100}  # CSS pixels
HEIGHT = 2400
CHROMIUM = [
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--hide-scrollbars", "--enable-logging=stderr"),
    *("--allow-file-access-from-files", "--virtual-time-budget=5000"),
]
# Chromium's windows are at least 500 pixels wide, but a frame in one can be narrower.
FRAME = """<!doctype html><body style="margin:0"><iframe src="{url}" style="border:0"
width="{width}" height="{height}"></iframe><script>onload = () => {{
const page = document.querySelector("iframe").contentDocument.documentElement;
document.title = page.scrollWidth + " " + page.querySelectorAll("svg").length;
}}</script></body>"""


def browse(page: Path, *flags: str) -> tuple[str, list[str]]:
    """Run Chromium, and return its output and the lines of its console."""
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [*CHROMIUM, f"--user-data-dir={profile}", *flags, page.absolute().as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def main(report: Path, folder: Path) -> int:
    """Check the report at each width, and return the exit status."""
    wrong = 0
    for name, width in WIDTHS.items():
        frame = folder / f"{name}.html"
        frame.write_text(FRAME.format(url=report.absolute().as_uri(), width=width, height=HEIGHT))
        picture = folder / f"{name}.png"
        size = f"--window-size={max(width, 500)},{HEIGHT}"
        _, lines = browse(frame, size, f"--screenshot={picture}")
        dom, more = browse(frame, size, "--dump-dom")
        found = re.search(r"<title>(\d+) (\d+)</title>", dom)
        wide, pictures = (int(found[1]), int(found[2])) if found else (0, 0)
        print(f"{name}: {width} px, page {wide} px, {pictures} pictures, {picture}")
        print(*lines, *more, sep="\n")
        wrong += bool(lines or more) + (wide != width) + (not pictures)
    return min(wrong, 1)


if __name__ == "__main__":
    target = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
    sys.exit(main(Path(sys.argv[1]), target))
