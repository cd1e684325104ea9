# SPDX-License-Identifier: Apache-2.0
"""Tables for people."""

from __future__ import annotations

from ansible_collections.gpufleet.deepseek.plugins.module_utils._table import render_table


def test_columns_are_as_wide_as_their_widest_cell_and_numbers_stand_right() -> None:
    assert render_table(["host", "n"], [["gpu1", "7"], ["a", "12"]]) == [
        "  host   n",
        "  ----  --",
        "  gpu1   7",
        "  a     12",
    ]


def test_no_rows() -> None:
    assert render_table(["host"], []) == ["  host", "  ----"]
