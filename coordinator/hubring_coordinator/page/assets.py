"""The page's files, and Plotly's script where the package `plotly` is installed.

Plotly is found, never imported: its script lies in its wheel. Without it the page shows tables.
"""

import base64
import hashlib
import importlib.util
import json
import re
from functools import cache
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

SCRIPTS = ("format.js", "tables.js", "charts.js", "page.js")
PLOTLY = Path("package_data") / "plotly.min.js"
MARK = re.compile("<!--(?:meta|style|data|scripts)-->")
HEADERS = {"Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}


@cache
def text(name: str) -> str:
    return (resources.files(__package__) / "static" / name).read_text(encoding="utf-8")


def plotly() -> Path | None:
    """Where Plotly's script lies; None: it is not installed."""
    spec = importlib.util.find_spec("plotly")
    folders = spec.submodule_search_locations if spec else None
    found = [Path(folder) / PLOTLY for folder in folders or ()]
    return next((file for file in found if file.is_file()), None)


def policy(scripts: str, styles: str) -> str:
    """A Content-Security-Policy: nothing is loaded or run but these.

    Styles alone may be inline: Plotly positions its marks by them.
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {scripts}",
            f"style-src {styles} 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def live_page() -> str:
    """The page as the ops port serves it, its files beside it."""
    names = [*(["plotly.js"] if plotly() else []), *SCRIPTS]
    head = '<link rel="stylesheet" href="/page.css">'
    tail = "\n".join(f'<script src="/{name}"></script>' for name in names)
    return _filled("", head, "", tail)


def saved_page(shown: dict[str, Any]) -> str:
    """The page with `shown` in it, in one file. About 5 MB where Plotly is there, else 50 kB."""
    library = plotly()
    scripts = [library.read_text(encoding="utf-8")] if library else []
    scripts += [text(name) for name in SCRIPTS]
    allowed = policy(" ".join(_hash(script) for script in scripts), "'self'")
    meta = f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'
    data = f'<script type="application/json" id="saved">{embedded(shown)}</script>'
    tail = "\n".join(f"<script>{script}</script>" for script in scripts)
    return _filled(meta, f"<style>{text('page.css')}</style>", data, tail)


def embedded(value: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    plain = json.dumps(value, allow_nan=False)
    return plain.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _filled(*parts: str) -> str:
    """The page with its four marks replaced; what a part holds is not looked into."""
    pieces = MARK.split(text("page.html"))
    return "".join(chain.from_iterable(zip(pieces, (*parts, ""), strict=True)))


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
