# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Plain text tables. PRIVATE to the collection."""

from __future__ import annotations

import typing as t


def render_table(columns: t.Sequence[str], rows: t.Sequence[t.Sequence[str]]) -> list[str]:
    """Lines of a table: heading, rule, rows.

    :arg columns: headings.
    :arg rows: cells as text, as many a row as there are headings. Cells that are numbers are set right.
    :returns: lines without trailing blanks.
    """
    widths = [max([len(name), *(len(row[i]) for row in rows)]) for i, name in enumerate(columns)]
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(columns))]

    def line(cells: t.Sequence[str]) -> str:
        parts = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric)]
        return ("  " + "  ".join(parts)).rstrip()

    return [line(columns), "  " + "  ".join("-" * width for width in widths), *(line(row) for row in rows)]


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%"))
    except ValueError:
        return False
    return True
