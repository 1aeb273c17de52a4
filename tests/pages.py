"""Looking at pages: as text, by a parser that forgives nothing, and in a browser where one is installed."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use", "circle", "line", "rect", "image"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Page(HTMLParser):
    """A page whose elements are all closed, in the order in which they were opened, with no id twice.

    links: what attributes and styles refer to.   texts: of each kind of element, what its elements hold.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self._open == [], f"never closed: {self._open}"
        assert len(set(self.ids)) == len(self.ids), "ids that are there twice"

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        assert len(given) == len(attrs), f"<{tag}> has an attribute twice"
        self.ids += [given["id"]] if "id" in given else []
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.links += [found for _, value in attrs for found in re.findall(r"url\(([^)]*)\)", value or "")]
        self.texts.setdefault(tag, []).append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open, f"</{tag}> closes nothing"
            assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self._open:
            self.texts[self._open[-1]][-1] += data
        if self._open[-1:] == ["style"]:
            self.links += re.findall(r"url\(([^)]*)\)|@import", data)

    @property
    def outside(self) -> list[str]:
        """Links to anything but the page itself and files beside it."""
        return [link for link in self.links if re.match(r"[a-z]+:|//", link) and not link.startswith("data:")]

    @property
    def dangling(self) -> set[str]:
        """What is referred to in the page, and is not there."""
        return {link[1:] for link in self.links if link.startswith("#")} - set(self.ids)


def in_browser(page: Path, script: str = "") -> str:
    """What a browser makes of the page with a script behind its own, which may write into `report(text)`.

    Whatever the page says on the console as an error is reported, too.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed ({', '.join(BROWSERS)})")
    watch = (
        "<pre id=told></pre><script>const report = (text) => { told.textContent += text + '\\n'; };"
        "addEventListener('error', (event) => report('error: ' + event.message));"
        "console.error = (...said) => report('error: ' + said.join(' '));</script>"
    )
    copy = page.with_name("watched.html")
    text = page.read_text(encoding="utf-8")
    text = text.replace("<body>", f"<body>{watch}", 1).replace("</body>", f"<script>{script}</script></body>", 1)
    copy.write_text(text, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found is not None, done.stdout[:500] or done.stderr
    return found[1].strip()
