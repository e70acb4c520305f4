"""What every page is made of: its style, sections, tables and numbered figures. Light and dark, for a screen, a phone and paper."""

from __future__ import annotations

import io
import re
from html import escape
from typing import Any

from . import figures

CSS = """
:root { color-scheme: light dark; --ink: #1b1c1d; --soft: #5d6166; --rule: #d8d9da; --page: #ffffff; --card: #f6f7f8;
  --yes: #00704f; --no: #8a4b00; --link: #0072b2; --blue: #0072b2; --red: #d55e00; --control: #9a9b9c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9ea; --soft: #a4a9ae; --rule: #3d4146; --page: #15171a; --card: #1e2125;
  --yes: #4fd1a5; --no: #f0b35a; --link: #6cbcf0; --blue: #4aa8e8; --red: #f0803c; --control: #7d8186; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 .4rem; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { max-width: 46rem; margin: .5rem 0; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
ul.answers { list-style: none; padding: 0; margin: 1rem 0; display: grid; gap: .5rem; }
ul.answers li { padding: .6rem .8rem; border-left: 4px solid var(--no); background: var(--card); border-radius: 0 .3rem .3rem 0; }
ul.answers li.yes { border-color: var(--yes); }
ul.answers b { color: var(--no); } ul.answers li.yes b { color: var(--yes); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1.5rem; align-items: start; }
figure { margin: .5rem 0; break-inside: avoid; min-width: 0; }
figure svg { display: block; width: 100%; max-width: 30rem; height: auto; }
figure svg text { font-family: inherit !important; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .4rem; border-bottom: 1px solid var(--rule); vertical-align: baseline; overflow-wrap: normal; }
th { font-weight: 600; color: var(--soft); }
td.name, th.name { text-align: left; overflow-wrap: break-word; min-width: 6.5rem; }
td:not(.name) { white-space: nowrap; } td.sig { font-weight: 650; }
blockquote { margin: .6rem 0; padding: .8rem 1rem; background: var(--card); border-radius: .3rem; max-width: 52rem; }
ol.refs { font-size: .875rem; padding-left: 1.4rem; max-width: 52rem; } ol.refs li, ul.plain li { margin: .25rem 0; }
ul.plain { padding-left: 1.2rem; max-width: 46rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .875rem; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--link); }
@media (max-width: 44rem) {
  body { padding: 1rem .9rem 3rem; }
  table.wide thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
  table.wide tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--rule); }
  table.wide td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .1rem 0; text-align: right; }
  table.wide td::before { content: attr(data-label); color: var(--soft); text-align: left; }
  table.wide td.name { font-weight: 600; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .35rem; }
}
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --rule: #bbb; --page: #fff; --card: #f4f4f4; --yes: #00543b; --no: #6b3a00;
    --blue: #0072b2; --red: #d55e00; --control: #9a9b9c; }
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  .scroll { overflow: visible; } h2 { break-after: avoid; } .cards { grid-template-columns: 1fr 1fr; } tr, li { break-inside: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; } summary { display: none; }
}
"""


def render(figure, kind: str) -> bytes:
    """The bytes of a figure as "svg" or "pdf"; without dates, so that equal runs give equal files."""
    buffer = io.BytesIO()
    # A ligature is a glyph without a character: PDF would embed the font once more for it. Matplotlib makes them since 3.11.
    for text in figure.findobj(lambda artist: hasattr(artist, "set_fontfeatures")):
        text.set_fontfeatures(["-liga"])
    with figures.rc_context(figures.STYLE):
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {"CreationDate": None})
    # Solved once: the second rendering keeps the places that the first one found.
    figure.set_layout_engine("none")
    return buffer.getvalue()


def inline_svg(svg: str, number_on_page: int, label: str) -> str:
    """An SVG file as an element of the page: ids of its own, the theme's colours, no namespaces or metadata."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg, count=2)
    prefix = f"f{number_on_page}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}").replace('xlink:href="#', f'href="#{prefix}')
    for colour, name in (
        (figures.INK, "ink"),
        (figures.RULE, "rule"),
        (figures.BLUE, "blue"),
        (figures.RED, "red"),
        (figures.CONTROL, "control"),
    ):
        svg = svg.replace(colour.lower(), f"var(--{name})")
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert found is not None  # matplotlib writes one into every file
    width, height = found.groups()
    opening = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label, quote=True)}">'
    return opening + re.sub(r"^<svg[^>]*>", "", svg).rstrip()


def css_class(name: str) -> str:
    """A class attribute, or nothing."""
    return f' class="{name}"' if name else ""


class Page:
    """Collects sections and numbers the figures."""

    def __init__(self, title: str) -> None:
        self.title, self._count = title, 0
        self.parts: list[str] = []
        self.files: dict[str, bytes] = {}

    def add(self, html: str) -> None:
        """A piece of HTML."""
        self.parts.append(html)

    def heading(self, text: str, level: int = 2) -> None:
        """A heading."""
        self.add(f"<h{level}>{escape(text)}</h{level}>")

    def text(self, text: str, soft: bool = False) -> None:
        """A paragraph."""
        self.add(f"<p{css_class('soft' if soft else '')}>{escape(text)}</p>")

    def items(self, lines: list[str], kind: str = "ul", css: str = "plain") -> None:
        """A list."""
        self.add(f"<{kind}{css_class(css)}>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + f"</{kind}>")

    def figure(self, figure, name: str, caption: str) -> str:
        """A figure with its caption; kept under `name` to be written as SVG and PDF. Returns the HTML."""
        self._count += 1
        if f"{name}.svg" in self.files:  # names that differ in signs a file name does not have
            name = f"{name}-{self._count}"
        svg = render(figure, "svg")
        self.files[f"{name}.svg"], self.files[f"{name}.pdf"] = svg, render(figure, "pdf")
        return f"<figure>{inline_svg(svg.decode(), self._count, caption)}<figcaption>{escape(caption)}</figcaption></figure>"

    def cards(self, figures_html: list[str]) -> None:
        """Figures side by side where there is room."""
        self.add('<div class="cards">' + "".join(figures_html) + "</div>")

    def table(self, header: list[str], rows: list[list[Any]], names: int, caption: str = "", bold=None) -> None:
        """A table whose first `names` columns are words; what is too wide scrolls, and on a phone each row becomes a card."""
        css = ["name" if i < names else "" for i in range(len(header))]
        head = "".join(f"<th{css_class(c)}>{escape(h)}</th>" for h, c in zip(header, css))
        body = []
        for r, row in enumerate(rows):
            cells = "".join(
                f'<td data-label="{escape(h, quote=True)}"{css_class(c or ("sig" if bold and bold(r, i) else ""))}>'
                f"{breakable(str(v)) if c else escape(str(v))}</td>"
                for i, (v, h, c) in enumerate(zip(row, header, css))
            )
            body.append(f"<tr>{cells}</tr>")
        css_table = css_class("wide" if len(header) > 4 else "")
        table = f"<table{css_table}><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        self.add(f'<div class="scroll">{table}</div>')
        if caption:
            self.text(caption, soft=True)

    def html(self) -> str:
        """The whole page."""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<link rel="icon" href="data:,">'
            f"<title>{escape(self.title)}</title><style>{CSS}</style></head>\n<body>\n" + "\n".join(self.parts) + "\n</body></html>\n"
        )


def breakable(name: str) -> str:
    """A name that may break after underscores, hyphens, slashes and dots."""
    return re.sub(r"([_\-/.]+)", r"\1<wbr>", escape(name))


def slug(text: str) -> str:
    """A file name from a table's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "table"
