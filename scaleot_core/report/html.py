"""What every HTML page of a report shares: its style sheet, its policy and its small parts, all text escaped."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 52rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.5rem; line-height: 1.25 } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top } th { font-weight: 600;
  white-space: nowrap } td { overflow-wrap: anywhere }
thead th { border-bottom: 1px solid #999 } .number { text-align: right } .plug-in td { font-weight: 700 }
figure { margin: 1rem 0 } figure svg { width: 100%; height: auto } figcaption, .small { color: #555; font-size: .9rem }
.limits { background: #fff7e6; border-left: 4px solid #e69f00; padding: .2rem 1rem }
.settings { columns: 2 } pre { break-inside: avoid; margin: 0 0 .8rem; white-space: pre-wrap }
.scroll { overflow-x: auto } pre { font-family: ui-monospace, monospace; font-size: .85em; overflow-wrap: anywhere }
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def html_page(title: str, parts: Sequence[str]) -> str:
    """Returns a whole page of parts that are HTML already: no script, no font, no image from elsewhere."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>ScaleOT: {escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def html_list(items: Sequence[str]) -> str:
    """Returns a list of sentences."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def html_pairs(values: Mapping[str, str]) -> str:
    """Returns names and their values as a table."""
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in values.items())
    return f"<table>{rows}</table>"


def html_plot(svg: str, caption: str) -> str:
    """Returns a plot, which is SVG already, with its caption."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def html_settings(config: Mapping[str, Any]) -> str:
    """Returns a resolved run file, section by section."""
    blocks = []
    for name, value in config.items():
        lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}"]
        if isinstance(value, Mapping):
            lines = [f"[{name}]", *(f"{key} = {json.dumps(inner, ensure_ascii=False)}" for key, inner in value.items())]
        blocks.append(f"<pre>{escape(chr(10).join(lines))}</pre>")
    return f'<div class="settings">{"".join(blocks)}</div>'
