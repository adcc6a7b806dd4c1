"""The dashboard's page as one file: its modules, styles and uPlot written into the HTML, and answers baked in as JSON.

What is baked in is report.py's.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

STATIC = Path(__file__).parent / "static"

_IMPORT = re.compile(r'^import (?:\* as (?P<whole>\w+)|(?P<names>\{[^}]*\})) from "(?P<path>\.[^"]+)";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (?P<name>\w+))", re.MULTILINE)


def one_file(baked: Any, title: str) -> bytes:
    """The page as HTML that needs nothing beside itself; `baked` is what its api.js asks first, of JSON's types.

    A policy in the file allows its own scripts, by their hashes, and the pictures inside it: nothing else runs or is
    loaded.
    """
    data = orjson.dumps(baked, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    for char in "<\u2028\u2029":  # `<` could end the script or begin a comment; the others were once no JavaScript
        data = data.replace(char, f"\\u{ord(char):04x}")
    page = (STATIC / "index.html").read_text()
    hashes: list[str] = []

    def script(kind: str, text: str) -> str:
        if "</script" in text.lower():
            raise ValueError("a script of the page holds the end of a script: write it in two pieces")
        hashes.append(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
        return f"<script{kind}>{text}</script>"

    def tag(found: re.Match[str]) -> str:
        path, text = found["path"], found[0]
        if text.startswith("<link") and path.endswith(".css"):
            return f"<style>{(STATIC / path).read_text()}</style>"
        if text.startswith("<link"):
            icon = base64.b64encode((STATIC / path).read_bytes()).decode()
            return f'<link rel="icon" href="data:image/svg+xml;base64,{icon}">'
        return script(' type="module"', bundle(path)) if "module" in text else script("", (STATIC / path).read_text())

    page = re.sub(r'<(?:link|script)[^>]*"/static/(?P<path>[^"]+)"[^>]*>(?:</script>)?', tag, page)
    page = page.replace("<title>V-Triune</title>", f"<title>{_escaped(title)}</title>")
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes)}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
    )
    page = page.replace(
        '<meta charset="utf-8">',
        f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">',
    )
    return page.replace("</head>", f'<script type="application/json" id="baked">{data}</script>\n</head>').encode()


def bundle(entry: str) -> str:
    """The module `entry` of the static folder with all that it imports, as one script.

    Every module becomes a function that gives its exports. The page's modules keep to what this reads: imports of one
    line by name or as a whole, exports of functions, classes and constants where they are declared.
    """
    done: dict[str, str] = {}

    def add(name: str) -> None:
        if name in done:
            return
        done[name] = ""  # a circle would see what is not there yet: none of ours has one
        text, folder = (STATIC / name).read_text(), PurePosixPath(name).parent
        for found in _IMPORT.finditer(text):
            add(_joined(folder, found["path"]))
        body = _IMPORT.sub(
            lambda found: f'const {found["whole"] or found["names"]} = modules["{_joined(folder, found["path"])}"];',
            text,
        )
        exports = [found["name"] for found in _EXPORT.finditer(text)]
        body = _EXPORT.sub("", body)
        if left := re.search(r"^(?:import|export)\b.*", body, re.MULTILINE):
            raise ValueError(f"{name}: {left[0]!r} is not read here; write it as the other modules do")
        del done[name]  # after what it imports
        done[name] = f'modules["{name}"] = (() => {{\n{body}\nreturn {{ {", ".join(exports)} }};\n}})();\n'

    add(entry)
    return '"use strict";\nconst modules = {};\n' + "".join(done.values())


def _joined(folder: PurePosixPath, path: str) -> str:
    return (STATIC / folder / path).resolve().relative_to(STATIC.resolve()).as_posix()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
