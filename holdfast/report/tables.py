"""Tables as text for papers and pages: Markdown and LaTeX, whatever the names in them are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..terminal import printable

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\u00a0": "~",
    "∞": r"$\infty$",
    "ε": r"$\varepsilon$",
    "σ": r"$\sigma$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "−": r"$-$",
    "·": r"$\cdot$",
    "–": "--",
    "…": r"\ldots{}",
    "—": "---",
} | {sign: f"\\{sign}" for sign in "&%$#_"}


def latex(text: str) -> str:
    r"""Text as LaTeX sets it, with no command of its own.

    Example:
        >>> latex("L∞ 8/255, 41 % of a_b")
        'L$\\infty$ 8/255, 41 \\% of a\\_b'
    """
    return "".join(_LATEX.get(character, character) for character in printable(text))


def markdown(text: str) -> str:
    r"""Text as Markdown shows it, with no mark of its own.

    Example:
        >>> markdown("a_b | <c>")
        'a\\_b \\| &lt;c&gt;'
    """
    plain = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~$]|^[#+-](?=\s)|^\d+(?=[.)]\s))", r"\\\1", plain)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of GitHub's Markdown; the first column is of names, the others of figures."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    cells = [line if i == 1 else [markdown(cell) for cell in line] for i, line in enumerate(lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def latex_table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    r"""A table of LaTeX's package booktabs, which has to be loaded: `\usepackage{booktabs}`."""
    lines = [r"\begin{table}", r"  \centering"]
    if caption:
        lines.append(f"  \\caption{{{latex(caption)}}}")
    lines += [f"  \\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"    \toprule"]
    body = [" & ".join(latex(cell) for cell in row) + r" \\" for row in (columns, *rows)]
    lines += [f"    {body[0]}", r"    \midrule", *(f"    {row}" for row in body[1:])]
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]) + "\n"
