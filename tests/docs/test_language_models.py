"""docs/language-models.md names the families and hook points that there are."""

import re
from pathlib import Path

from jaxsae.lm.architecture import ARCHITECTURES
from jaxsae.lm.hooks import KINDS
from jaxsae.lm.layers import ACTIVATIONS
from jaxsae.lm.rotary import SETTINGS

PAGE = (Path(__file__).parents[2] / "docs" / "language-models.md").read_text()


def first_cells(heading):
    """The first cell of every row of the table whose head begins with `heading`, without the head."""
    table = PAGE.split(f"\n| {heading} |")[1].split("\n\n")[0]
    return [row.split("|")[1] for row in table.splitlines()[2:]]


def test_the_page_names_all_families_and_all_hook_points():
    assert {*re.findall(r"`(\w+)`", " ".join(first_cells("`model_type`")))} == {*ARCHITECTURES}
    assert [cell.strip(" `") for cell in first_cells("hook point")] == [*KINDS]
    for allowed in (*ACTIVATIONS, *SETTINGS):
        assert f"`{allowed}`" in PAGE
