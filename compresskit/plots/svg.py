"""SVG files as small as they read well: matplotlib writes six digits, an id for everything, and nine names of fonts."""

import re
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_NUMBERS = re.compile(r'(?<= )(?:d|x|y|width|height|transform|viewBox|points)="[^"<]*"')
_REFERRED = re.compile(r'(?:href="#|url\(#)([^")]+)')


def write_svg(figure: Figure, path: Path) -> None:
    """Texts stay texts, in the reader's own font without serifs; the same figure gives the same bytes.

    The figure keeps its panels where they lie: who has drawn it already saves the time to lay it out again.
    """
    figure.set_layout_engine("none")
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "compresskit"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(path, metadata=nothing)  # type: ignore[no-untyped-call]
    path.write_text(compact(path.read_text()))


def compact(svg: str) -> str:
    """The same picture with two digits behind the point (a hundredth of 1/72 inch), and without what nothing needs."""
    referred = set(_REFERRED.findall(svg))
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<!DOCTYPE[^>]*>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in referred else "", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: sans-serif", svg)
    svg = _NUMBERS.sub(lambda found: " ".join(re.sub(r"(\.\d\d)\d+", r"\1", found[0]).split()), svg)
    svg = re.sub(r">\s+<", "><", svg)
    return re.sub(r"<g>((?:<(?:path|use|text)[^>]*(?:/>|>[^<]*</text>))*)</g>", r"\1", svg)
