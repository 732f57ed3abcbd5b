"""A section that is one of several, chosen by a key: values, errors, schema, known keys and reference."""

import json
from typing import Annotated, Literal

import jsonschema
import pytest
from pydantic import ValidationError

from seektune.recipe.document import YamlNode, parse
from seektune.recipe.errors import find_section, first_error, known_keys
from seektune.section import OneOf, Section


class Shape(Section):
    """Any shape."""

    kind: str
    """Name."""


class Circle(Shape):
    """A circle."""

    kind: Literal["circle"] = "circle"
    """Name."""
    radius: float = 1.0
    """Radius."""


class Square(Shape):
    """A square."""

    kind: Literal["square"]
    """Name."""
    side: int = 2
    """Side."""
    corners: tuple[int, int] = (0, 0)
    """Two corners."""


class Drawing(Section):
    """A drawing."""

    shape: Annotated[Shape, OneOf("kind", {"circle": Circle, "square": Square})] = Circle()
    """What is drawn."""


class Gallery(Section):
    """Drawings."""

    shapes: Annotated[Shape | list[Shape], OneOf("kind", {"circle": Circle, "square": Square}, several=True)] = Circle()
    """What is shown."""


def read(text: str) -> Drawing:
    return Drawing.model_validate_json(json.dumps(document(text).plain()), strict=True)


def document(text: str) -> YamlNode:
    node = parse(text, "a.yaml")
    assert node is not None
    return node


def test_the_key_chooses_and_the_first_needs_none() -> None:
    assert read("shape: {radius: 2.5}").shape == Circle(radius=2.5)
    assert read("shape: {kind: square, corners: [1, 2]}").shape == Square(kind="square", corners=(1, 2))
    assert read("{}").shape == Circle()
    assert Drawing(shape=Square(kind="square", side=5)).shape.model_dump()["side"] == 5


@pytest.mark.parametrize("shape", [Circle(radius=3.0), Square(kind="square", side=7)])
def test_values_go_to_json_and_back(shape: Shape) -> None:
    drawing = Drawing(shape=shape)
    assert Drawing.model_validate_json(drawing.model_dump_json(), strict=True) == drawing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "shape:\n  kind: sqare",
            "a.yaml:2: shape.kind must be 'circle' or 'square', not 'sqare'; did you mean square?",
        ),
        ("shape:\n  kind: [a]", "a.yaml:2: shape.kind must be 'circle' or 'square', not a list"),
        ("shape:\n  side: 3", "a.yaml:2: shape.side is not a key of this section; its keys are kind, radius"),
        (
            "shape:\n  kind: square\n  size: 3",
            "a.yaml:3: shape.size is not a key of this section; did you mean shape.side?",
        ),
        (
            "shape:\n  kind: square\n  zzz: 3",
            "a.yaml:3: shape.zzz is not a key of this section; its keys are kind, side,",
        ),
        ("shape:\n  kind: square\n  side: a", "a.yaml:3: shape.side must be a whole number, not 'a'"),
        ("shape: 5", "a.yaml:1: shape is a section, whose keys are set one by one, not 5"),
    ],
)
def test_errors_name_the_written_key(text: str, expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        read(text)
    assert first_error(caught.value, document(text), Drawing).startswith(expected)


def test_locations_lose_the_name_that_pydantic_adds() -> None:
    assert find_section(("shape", "square", "corners", 1), Drawing) == (("shape", "corners", 1), Square)
    assert find_section(("shape",), Drawing) == (("shape",), Drawing)
    assert find_section((), Drawing) == ((), Drawing)


def test_keys_of_every_choice_are_known() -> None:
    assert {*known_keys(Drawing)} == {
        *("shape", "shape.kind", "shape.radius", "shape.side", "shape.corners"),
    }


def show(text: str) -> Shape | list[Shape]:
    return Gallery.model_validate_json(json.dumps(document(text).plain()), strict=True).shapes


def test_a_field_may_also_hold_a_list_of_sections() -> None:
    assert show("shapes: {radius: 2.5}") == Circle(radius=2.5)
    assert show("shapes: [{kind: square, side: 3}, {}]") == [Square(kind="square", side=3), Circle()]
    gallery = Gallery(shapes=[Circle(radius=3.0), Square(kind="square", side=7)])
    assert Gallery.model_validate_json(gallery.model_dump_json(), strict=True) == gallery


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "shapes:\n- {}\n- kind: sqare",
            "a.yaml:3: shapes.1.kind must be 'circle' or 'square', not 'sqare'; did you mean square?",
        ),
        ("shapes:\n- kind: square\n  side: a", "a.yaml:3: shapes.0.side must be a whole number, not 'a'"),
        ("shapes:\n- {}\n- zzz: 3", "a.yaml:3: shapes.1.zzz is not a key of this section; its keys are kind, radius"),
        ("shapes:\n- 5", "a.yaml:2: shapes.0 is a section, whose keys are set one by one, not 5"),
        ("shapes: []", "a.yaml:1: shapes must hold at least 1 value, not []"),
        ("shapes: x", "a.yaml:1: shapes is a section, whose keys are set one by one, not 'x'"),
    ],
)
def test_errors_in_a_list_name_the_entry(text: str, expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        show(text)
    assert first_error(caught.value, document(text), Gallery).startswith(expected)


def test_the_schema_of_a_list_tells_the_choices_apart() -> None:
    check = jsonschema.Draft202012Validator(Gallery.model_json_schema())
    for good in ({}, {"shapes": {"radius": 1}}, {"shapes": [{"kind": "square", "side": 1}, {"radius": 2}]}):
        assert list(check.iter_errors(good)) == []
    for bad in ({"shapes": []}, {"shapes": [{"side": 1}]}, {"shapes": [[{}]]}):
        assert list(check.iter_errors(bad)) != []


def test_the_schema_tells_the_choices_apart() -> None:
    check = jsonschema.Draft202012Validator(Drawing.model_json_schema())
    for good in ({}, {"shape": {"radius": 1}}, {"shape": {"kind": "square", "side": 1}}):
        assert list(check.iter_errors(good)) == []
    for bad in ({"shape": {"side": 1}}, {"shape": {"kind": "square", "radius": 1}}, {"shape": {"kind": "line"}}):
        assert list(check.iter_errors(bad)) != []
