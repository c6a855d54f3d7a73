"""Every fault of the table has a test of the default suite, named by its number."""

from __future__ import annotations

import ast
from pathlib import Path

FAULTS = {*range(1, 29)}


def named() -> list[tuple[int, bool]]:
    """The number of every test of a fault, and whether it is of the default suite."""
    found = []
    for file in Path(__file__).parent.glob("test_fault_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_fault_"):
                slow = any("slow" in ast.unparse(part) for part in node.decorator_list)
                found.append((int(node.name[11:13]), not slow))
    return found


def test_every_fault_has_a_test():
    assert {number for number, _ in named()} == FAULTS


def test_every_fault_has_a_test_of_the_default_suite():
    assert {number for number, default in named() if default} == FAULTS
