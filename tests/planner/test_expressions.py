"""Formulas as data: order, folds, columns, and that every formula of the planner is a valid expression."""

import ast

import pytest

from seektune.planner.expressions import FUNCTIONS, Formula, evaluate
from seektune.planner.formulas import BARS, FORMULAS

ALLOWED = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Name, ast.Constant, ast.Load, ast.Add, ast.Sub,
    ast.Mult, ast.Div, ast.USub, ast.Eq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip


def test_columns_and_folds() -> None:
    formulas = [
        Formula("area", "wide * high * scale", over="boxes", fold="column"),
        Formula("sum", "area", over="boxes"),
        Formula("largest", "area", over="boxes", fold="max"),
        Formula("none", "area", over="nothing", fold="max"),
        Formula("share", "ceil(10 * largest / sum) + where(sum > 20, 100, 0)"),
    ]
    boxes = [{"wide": 2, "high": 3}, {"wide": 1, "high": 5}]
    found = evaluate(formulas, {"scale": 2}, {"boxes": boxes, "nothing": []})
    assert (found["sum"], found["largest"], found["none"], found["share"]) == (22, 12, 0, 106)
    assert "area" not in boxes[0], "the input tables must not change"


def test_unknown_name_is_an_error() -> None:
    with pytest.raises(NameError):
        evaluate([Formula("a", "b + 1")], {}, {})


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.name)
def test_formula_means_the_same_in_python_and_javascript(formula: Formula) -> None:
    for node in ast.walk(ast.parse(formula.expression, mode="eval")):
        assert isinstance(node, ALLOWED), ast.dump(node)
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name)
            assert node.func.id in FUNCTIONS
        if isinstance(node, ast.Compare):
            assert len(node.ops) == 1, "a < b < c means something else in JavaScript"


def test_formula_names_are_unique() -> None:
    names = [formula.name for formula in FORMULAS]
    assert len(set(names)) == len(names)
    assert set(BARS) <= set(names) | {"context"}
