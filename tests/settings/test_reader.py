"""Layers of tables: what `merged`, `nested` and `build` make of recipes and flags, and what they refuse."""

import logging
from dataclasses import dataclass

import pytest

from unmask.errors import UserError
from unmask.settings.reader import Word, build, document_of, leaves, merged, nested
from unmask.settings.recipe_files import first_sentence, read_recipe, recipe_summaries
from unmask.validation import choice, section, setting


@dataclass(frozen=True, kw_only=True)
class Round:
    radius: float = setting(1.0, "from the centre", was="size")


@dataclass(frozen=True, kw_only=True)
class Square:
    side: int = setting(2, "of each edge")
    filled: bool = setting(False, "not only its edges")


SHAPES = {"round": Round, "square": Square}


@dataclass(frozen=True, kw_only=True)
class Ring:
    hole: Round = choice(SHAPES, Round, "what is cut out")
    width: int = setting(1, "of the ring")


@dataclass(frozen=True, kw_only=True)
class Pen:
    colour: str = setting("black", "of the ink")
    pressure: int | None = setting(None, "of the hand")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    title: str = setting("untitled", "written below")
    shape: Round = choice({**SHAPES, "ring": Ring}, Round, "what is drawn")
    pen: Pen = section(Pen)


def drawn(base: dict, **flags: str) -> Drawing:
    """A drawing from a table and flags, whose dots are written as double underscores."""
    given = {path.replace("__", "."): text for path, text in flags.items()}
    return build(Drawing, merged(document_of(build(Drawing, base)), nested(given)))


# ---- layers ----


def test_merged_keeps_settings_of_the_same_choice_and_drops_those_of_another():
    base = {"shape": {"name": "square", "side": 3}, "title": "a"}
    assert merged(base, {"shape": {"filled": True}})["shape"] == {"name": "square", "side": 3, "filled": True}
    assert merged(base, {"shape": {"name": "square", "filled": True}})["shape"]["side"] == 3
    assert merged(base, {"shape": {"name": "ring"}}) == {"title": "a", "shape": {"name": "ring"}}
    assert merged(base, {"shape": "ring"}) == {"title": "a", "shape": {"name": "ring"}}
    assert base == {"shape": {"name": "square", "side": 3}, "title": "a"}


def test_nested_puts_a_choice_s_name_before_its_settings_in_any_order():
    flags = {"shape.hole.side": "3", "shape.hole": "square", "shape": "ring", "title": "x"}
    table = {"title": "x", "shape": {"name": "ring", "hole": {"name": "square", "side": "3"}}}
    assert nested(flags) == nested(dict(reversed(flags.items()))) == table
    assert isinstance(nested(flags)["shape"]["hole"]["side"], Word)


def test_build_reads_choices_within_choices_from_flags():
    drawing = drawn({"shape": {"name": "square", "side": 9}}, shape="ring", shape__hole="square", shape__hole__side="3")
    assert drawing == Drawing(shape=Ring(hole=Square(side=3)))


def test_build_reads_a_flag_below_a_choice_that_no_table_names():
    assert drawn({}, shape__radius="2") == Drawing(shape=Round(radius=2.0))


def test_build_takes_the_default_of_a_choice_whose_settings_alone_are_flags():
    assert drawn({}, shape="ring", shape__hole__radius="2").shape == Ring(hole=Round(radius=2.0))


def test_build_keeps_the_recipe_s_settings_where_a_flag_names_the_same_choice():
    assert drawn({"shape": {"name": "square", "side": 9}}, shape="square").shape == Square(side=9)


def test_build_reads_a_choice_s_name_alone():
    assert build(Drawing, {"shape": "square"}) == Drawing(shape=Square())


# ---- kinds ----


@pytest.mark.parametrize(
    ("settings", "table", "value"),
    [
        (Square, {"side": 3}, 3),
        (Square, {"side": Word("3")}, 3),
        (Square, {"filled": Word("true")}, True),
        (Square, {"filled": False}, False),
        (Round, {"radius": 3}, 3.0),
        (Round, {"radius": Word("1e-3")}, 1e-3),
        (Pen, {"pressure": Word("4")}, 4),
        (Pen, {"colour": Word("4")}, "4"),
        (Pen, {"colour": Word("")}, ""),
    ],
)
def test_build_reads_values_and_words_to_exactly_their_kind(settings, table, value):
    (read,) = (getattr(build(settings, table), name) for name in table)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("settings", "table", "line"),
    [
        (Square, {"side": 3.0}, "side is 3.0: give an integer"),
        (Square, {"side": True}, "side is True: give an integer"),
        (Square, {"side": "3"}, "side is '3': give an integer"),
        (Square, {"side": Word("3.5")}, "--side is '3.5': give an integer"),
        (Square, {"filled": 1}, "filled is 1: give true or false"),
        (Square, {"filled": Word("yes")}, "--filled is 'yes': give true or false"),
        (Round, {"radius": "1"}, "radius is '1': give a number"),
        (Round, {"radius": True}, "radius is True: give a number"),
        (Pen, {"colour": 4}, "colour is 4: give text"),
        (Pen, {"colour": {"x": 4}}, "colour is {'x': 4}: give text"),
        (Drawing, {"pen": 3}, "pen is 3: give a table of settings, [pen]"),
        (Drawing, {"pen": Word("3")}, "--pen is '3': give one of its settings, --pen.NAME VALUE"),
        (Drawing, {"shape": {"radius": 1}}, "shape.name is missing: give one of ring, round, square"),
        (
            Drawing,
            {"shape": {"name": 3}},
            "shape.name is 3: give one of ring, round, square, or FILE.py:NAME",
        ),
        (Drawing, {"shape": {"name": "rnd"}}, "shape.name is 'rnd': perhaps you meant 'round', or FILE.py:NAME"),
        (Drawing, {"shape": Word("rnd")}, "--shape is 'rnd': perhaps you meant 'round', or FILE.py:NAME"),
        (Drawing, {"pen": {"color": "red"}}, "unknown setting 'pen.color': perhaps you meant 'colour'"),
    ],
)
def test_build_refuses_in_one_line_with_value_and_mend(settings, table, line):
    with pytest.raises(UserError) as refused:
        build(settings, table)
    assert str(refused.value) == line


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"pne.colour": "red"}, "unknown argument '--pne.colour': perhaps you meant '--pen.colour'"),
        ({"shape.radios": "1"}, "unknown argument '--shape.radios': perhaps you meant '--shape.radius'"),
        ({"shape": "ring", "shape.widht": "1"}, "unknown argument '--shape.widht': perhaps you meant '--shape.width'"),
        ({"shape": "ring", "shape.hole.x": "1"}, "unknown argument '--shape.hole.x': give one of --shape.hole.radius"),
        ({"title.size": "1"}, "unknown argument '--title.size': --title has no settings of its own"),
        ({"pen.pressure.x": "1"}, "unknown argument '--pen.pressure.x': --pen.pressure has no settings of its own"),
    ],
)
def test_build_compares_an_unknown_flag_with_those_of_the_choices_made(flags, line):
    with pytest.raises(UserError) as refused:
        build(Drawing, merged(document_of(Drawing()), nested(flags)))
    assert str(refused.value) == line


def test_document_of_makes_the_table_that_build_read():
    drawing = Drawing(title="x", shape=Ring(hole=Square(side=3)), pen=Pen(pressure=4))
    table = document_of(drawing)
    assert table["shape"] == {"name": "ring", "hole": {"name": "square", "side": 3, "filled": False}, "width": 1}
    assert table["pen"] == {"colour": "black", "pressure": 4}
    assert document_of(Drawing())["pen"] == {"colour": "black"}  # unset values are left out
    assert build(Drawing, table) == drawing


def test_leaves_are_the_settings_of_the_choices_made():
    paths = [leaf.path for leaf in leaves(Drawing(shape=Ring(hole=Square())))]
    inner = ["shape.hole", "shape.hole.side", "shape.hole.filled", "shape.width"]
    assert paths == ["title", "shape", *inner, "pen.colour", "pen.pressure"]


# ---- old names ----


def test_build_reads_an_old_name_with_a_notice(caplog):
    assert build(Drawing, {"shape": {"name": "round", "size": 3}}).shape == Round(radius=3.0)
    notice = "unmask: shape.size is now shape.radius; the next version refuses the old name"
    assert caplog.record_tuples == [("unmask", logging.WARNING, notice)]


def test_build_reads_an_old_flag_with_a_notice_even_if_an_error_follows(caplog):
    with pytest.raises(UserError, match=r"^--shape\.radius is 'x': give a number$"):
        drawn({}, shape__size="x")
    with pytest.raises(UserError, match=r"^unknown argument '--shape\.x'"):
        drawn({}, shape__x="1", shape__size="2")
    notice = "unmask: --shape.size is now --shape.radius; the next version refuses the old name"
    assert caplog.messages == [notice, notice]


def test_build_lets_the_upper_layer_hold_whichever_of_two_names_it_uses(tmp_path):
    (tmp_path / "base.toml").write_text('[shape]\nname = "round"\nradius = 1\n')
    (tmp_path / "old.toml").write_text(f"base = '{tmp_path}/base.toml'\n[shape]\nsize = 2\n")
    (tmp_path / "new.toml").write_text(f"base = '{tmp_path}/old.toml'\n[shape]\nradius = 3\n")
    assert build(Drawing, read_recipe(str(tmp_path / "old.toml"))).shape == Round(radius=2.0)
    assert build(Drawing, read_recipe(str(tmp_path / "new.toml"))).shape == Round(radius=3.0)
    assert drawn({"shape": {"name": "round", "radius": 1}}, shape__size="4").shape == Round(radius=4.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# One line. More.\nsteps = 3\n", "One line."),
        ("# Over two\n# lines, 0.5 of it: yes. Then\n# more.\n", "Over two lines, 0.5 of it: yes."),
        ("#No full stop\n# at all\n\n# Another comment.\n", "No full stop at all"),
        ("steps = 3\n# Late.\n", ""),
    ],
)
def test_first_sentence_is_that_of_the_first_comment_over_all_its_lines(text, sentence):
    assert first_sentence(text) == sentence


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_recipe_summaries_are_whole_sentences(command):
    assert all(summary.endswith(".") and summary.count(". ") == 0 for summary in recipe_summaries(command).values())
