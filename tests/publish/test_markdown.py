"""Texts of others stay texts in a card: rendered by a parser of CommonMark, they are what they were."""

import pytest

from hssl_hf.publish.markdown import block, code, plain

HOSTILE = [
    "<script>alert(1)</script>",
    "[click](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "a | b",
    "`code`",
    "**bold**",
    "_it_",
    "line\nbreak",
    "```\n# heading\n```",
    "``a``",
    "$x$",
    "\\",
    "a\u202eb",
    "https://evil.example",
    "&lt;b&gt;",
]
INLINE = r"(?<!\\)(?:\\\\)*[<\[`|*$&!]"  # markup that no backslash precedes


@pytest.mark.fault("texts of others in cards")
@pytest.mark.parametrize("text", HOSTILE)
def test_plain_text_has_no_markup(text):
    import re

    shown = plain(text)
    assert "\n" not in shown and not re.search(INLINE, shown) and "://" not in shown and "\u202e" not in shown
    assert re.sub(r"\\(.)", r"\1", shown) == " ".join("".join(c if c.isprintable() else " " for c in text).split())


@pytest.mark.fault("texts of others in cards")
@pytest.mark.parametrize("text", HOSTILE)
def test_code_ends_where_it_should(text):
    shown = code(text, in_table=True)
    fence = shown[: len(shown) - len(shown.lstrip("`"))]
    assert (shown.endswith(fence) and fence not in shown[len(fence) : -len(fence)].strip("\x00")) or "`" not in text
    assert "\n" not in shown and "|" not in shown.replace("\\|", "")
    inner = block(text, "yaml").splitlines()
    assert inner[0].rstrip("yaml") == inner[-1] and inner[-1] not in inner[1:-1] and set(inner[-1]) == {"`"}


@pytest.mark.parametrize(
    "text", ["pre-trained backbone", "fashion_mnist, split test, 2000 images", "user/images", "k-NN top-1 (%)"]
)
def test_ordinary_text_stays(text):
    assert plain(text) == text and code(text) == f"`{text}`" and block(text, "yaml") == f"```yaml\n{text}\n```"
