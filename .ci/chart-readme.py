"""Writes the list of values in helm/README.md from helm/values.yaml: each value with its default and its comment.

With --check it writes nothing, and exits with 1 if the list differs, or if no values file of helm/ci sets a value. That
requires PyYAML.

usage: chart-readme.py [--check]
"""

import re
import sys
from pathlib import Path
from typing import Iterator

CHART = Path(__file__).resolve().parent.parent / "helm"
BEGIN = "<!-- values: written by .ci/chart-readme.py -->\n"
END = "<!-- end of values -->\n"
# A key with the rest of its line, at an indentation of two spaces for each level.
KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_][A-Za-z0-9_]*):(?: (?P<value>.+))?$")
# What a person edits as a whole, although it has parts in values.yaml.
WHOLE = {"settings", "strategy", "podSecurityContext", "containerSecurityContext"}


def values(text: str) -> list[tuple[str, str | None, str]]:
    """The path, default and comment of each value; the default of a group is None."""
    found: list[tuple[str, str | None, str]] = []
    path: list[str] = []
    comment: list[str] = []
    lines = text.splitlines()
    whole = None
    for number, line in enumerate(lines):
        stripped = line.strip()
        if not stripped:
            comment = []
            continue
        indent = (len(line) - len(line.lstrip())) // 2
        if whole is not None and indent > whole:
            comment = []
            continue
        whole = None
        if stripped.startswith("#"):
            comment.append(stripped[1:].strip())
            continue
        match = KEY.match(line)
        if match is None:
            # An entry of a list, which is part of the value before.
            comment = []
            continue
        path[indent:] = [match["key"]]
        value, rest = match["value"], lines[number + 1 : number + 2]
        is_list = value is None and rest != [] and rest[0].strip().startswith("- ")
        if match["key"] in WHOLE or is_list:
            whole = indent
            value = "(see values.yaml)"
        found.append((".".join(path), value, " ".join(comment)))
        comment = []
    return found


def table(rows: list[tuple[str, str | None, str]]) -> str:
    lines = ["| value | default | meaning |", "|---|---|---|"]
    # A value without a comment belongs to that of the value before, or of its group.
    described = ""
    for path, default, comment in rows:
        if default is None and not comment:
            continue
        if comment:
            described = path
        elif path.rpartition(".")[0] in (described, described.rpartition(".")[0]):
            comment = f"See `{described}`."
        elif "." in path and path.rpartition(".")[0].startswith(described):
            comment = f"See `{described}`."
        shown = "" if default is None else default if default.startswith("(") else f"`{default}`"
        cells = (f"`{path}`", shown, comment)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def unset() -> list[str]:
    """The values that no file of helm/ci sets."""
    import yaml

    def paths(node: object, above: str = "") -> Iterator[str]:
        yield above
        if isinstance(node, dict):
            for key, below in node.items():
                yield from paths(below, f"{above}.{key}" if above else key)

    seen = {path for file in CHART.glob("ci/*-values.yaml") for path in paths(yaml.safe_load(file.read_text()))}
    known = values((CHART / "values.yaml").read_text())
    return [path for path, default, _ in known if default is not None and path not in seen]


def main(arguments: list[str]) -> int:
    readme = CHART / "README.md"
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        print(f"{readme}: has no line {BEGIN.strip()!r} with a later {END.strip()!r}", file=sys.stderr)
        return 1
    written = before + begin + "\n" + table(values((CHART / "values.yaml").read_text())) + "\n" + end + after
    if "--check" in arguments and (missing := unset()):
        print(f"no values file of {CHART / 'ci'} sets {', '.join(missing)}; add them to one", file=sys.stderr)
        return 1
    if written == text:
        return 0
    if "--check" in arguments:
        print(f"{readme}: the list of values differs from values.yaml; run `python3 .ci/chart-readme.py`", file=sys.stderr)
        return 1
    readme.write_text(written)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
