"""Texts of others in Markdown: names of data sets, classes and files, which must not become markup of a card."""

import re

MARKUP = re.compile(r"[\\`*\[\]<>|&!~$]|(?<!\w)_|_(?!\w)|(?<=:)/(?=/)")


def plain(text: object) -> str:
    """A text in one line, in which nothing is markup, a link or the end of a cell of a table."""
    return MARKUP.sub(lambda match: f"\\{match.group()}", _one_line(text))


def code(text: object, in_table: bool = False) -> str:
    """A text in one line as code."""
    line = _one_line(text)
    line = line.replace("|", "\\|") if in_table else line
    fence = "`" * (1 + _longest_run(line))
    space = " " if "`" in line[:1] + line[-1:] else ""
    return f"{fence}{space}{line}{space}{fence}"


def block(text: str, language: str) -> str:
    """A text of several lines as a block of code, which no line of it can end."""
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}{language}\n{text}\n{fence}"


def _one_line(text: object) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
