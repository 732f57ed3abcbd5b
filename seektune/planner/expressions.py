"""Formulas as data: arithmetic expressions that both Python and the script of the HTML report evaluate.

An expression uses numbers, names, + - * /, comparisons, and the functions of `FUNCTIONS`, which mean the same in both.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any, Literal

Number = float
Row = Mapping[str, Number]
Tables = Mapping[str, Sequence[Row]]

FUNCTIONS: dict[str, Any] = {
    "min": min,
    "max": max,
    "ceil": math.ceil,
    "floor": math.floor,
    "where": lambda condition, yes, no: yes if condition else no,
}


@dataclass(frozen=True)
class Formula:
    """A named number: an expression, or its sum or maximum over the rows of a table."""

    name: str
    expression: str
    meaning: str = ""
    over: str = ""
    """Name of a table whose columns the expression may use; empty for a single number."""
    fold: Literal["sum", "max", "column"] = "sum"
    """`column` adds the values to the rows of the table, for later formulas."""


def evaluate(formulas: Sequence[Formula], given: Mapping[str, Number], tables: Tables) -> dict[str, Number]:
    """Evaluate formulas in order; each may use the given numbers and those of earlier formulas.

    The sum and maximum over a table without rows are 0.
    """
    values: dict[str, Number] = dict(given)
    distinct: dict[str, list[dict[str, Number]]] = {}
    order: dict[str, list[int]] = {}
    # most layers of a model are alike: equal rows are evaluated once
    for name, rows in tables.items():
        numbers: dict[tuple[tuple[str, Number], ...], int] = {}
        order[name] = [numbers.setdefault(tuple(row.items()), len(numbers)) for row in rows]
        distinct[name] = [dict(row) for row in numbers]
    for formula in formulas:
        code = _compiled(formula.expression)
        if not formula.over:
            values[formula.name] = _value(code, values)
            continue
        table = distinct[formula.over]
        results = [_value(code, {**values, **row}) for row in table]
        if formula.fold == "column":
            for row, value in zip(table, results, strict=True):
                row[formula.name] = value
        else:
            each = [results[number] for number in order[formula.over]]
            values[formula.name] = sum(each) if formula.fold == "sum" else max(each, default=0)
    return values


def _value(code: CodeType, names: Mapping[str, Number]) -> Number:
    value: Number = eval(code, _SCOPE, names)
    return value


_SCOPE = {"__builtins__": {}, **FUNCTIONS}


@cache
def _compiled(expression: str) -> CodeType:
    return compile(expression, expression, "eval")


EVALUATE_JS = """
const FUNCTIONS = {min: Math.min, max: Math.max, ceil: Math.ceil, floor: Math.floor, where: (c, a, b) => c ? a : b};
const compiled = new Map();
function value(expression, names) {
  if (!compiled.has(expression)) {
    compiled.set(expression, new Function("names", "with (names) { return (" + expression + "); }"));
  }
  return Number(compiled.get(expression)(names));
}
function evaluate(formulas, given, tables) {
  const values = Object.assign({}, FUNCTIONS, given);
  const extended = {};
  for (const name in tables) extended[name] = tables[name].map(row => Object.assign({}, row));
  for (const formula of formulas) {
    if (!formula.over) { values[formula.name] = value(formula.expression, values); continue; }
    const rows = extended[formula.over];
    const each = rows.map(row => value(formula.expression, Object.assign({}, values, row)));
    if (formula.fold === "column") rows.forEach((row, i) => { row[formula.name] = each[i]; });
    else if (formula.fold === "sum") values[formula.name] = each.reduce((a, b) => a + b, 0);
    else values[formula.name] = each.length ? Math.max(...each) : 0;
  }
  return values;
}
"""
"""`evaluate` in JavaScript, for the same formulas as JSON objects."""
