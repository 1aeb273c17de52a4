"""Plots of a run as parts of its page: SVG without names that clash, and styles that all of them share."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

BUDGET = 6_000_000  # characters of all plots together; those beyond are links


@dataclass(frozen=True)
class Picture:
    """name: that of its file, below the folder. svg: empty where it is only linked, being too much or not ours."""

    name: str
    svg: str
    width: int  # in pixels

    @property
    def is_own(self) -> bool:
        """Of the run itself, not of one of its steps, trials or settings."""
        return "/" not in self.name


@dataclass
class Pictures:
    """All plots below a folder, its own first; `styles` are the classes that they have, by what they stand for."""

    styles: dict[str, str] = field(default_factory=dict)
    _ids: int = 0  # how many there are

    def read(self, folder: Path) -> list[Picture]:
        files = sorted(folder.rglob("*.svg"), key=lambda file: (len(file.relative_to(folder).parts), file))
        return list(self._read(folder, files))

    def _read(self, folder: Path, files: list[Path]) -> Iterator[Picture]:
        room = BUDGET
        for file in files:
            svg, width = self._inlined(file.read_text(encoding="utf-8", errors="replace"))
            room -= len(svg)
            yield Picture(file.relative_to(folder).as_posix(), svg if room >= 0 else "", width)

    def _inlined(self, svg: str) -> tuple[str, int]:
        """The element alone, with ids of its own, its styles as classes; and its width in pixels.

        Nothing of a file that is not matplotlib's, for who knows what that brings along.
        """
        start = re.search(r'<svg [^>]*?width="([\d.]+)pt"[^>]*?viewBox="([-\d. ]+)"[^>]*>', svg)
        if start is None:
            return "", 0
        body = re.sub(r"<style.*?</style>|</svg>\s*$", "", svg[start.end() :], flags=re.DOTALL)
        own: dict[str, str] = {}  # ids
        for name in re.findall(r' id="([^"]+)"', body):
            self._ids += 1
            own[name] = f"i{self._ids}"
        body = body.replace("xlink:href", "href")
        body = re.sub(r'( id="|href="#|url\(#)([^")]+)', lambda found: found[1] + own.get(found[2], found[2]), body)
        body = re.sub(r' style="([^"]*)"', lambda found: f' class="{self._class(found[1])}"', body)
        return f'<svg viewBox="{start[2]}" role="img">{body}</svg>', round(float(start[1]) * 96 / 72)

    def _class(self, style: str) -> str:
        return self.styles.setdefault(style, f"s{len(self.styles)}")
