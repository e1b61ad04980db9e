"""The page on formats names all of them, and says which are written."""

import re
from pathlib import Path

from jaxsae import interop

PAGE = (Path(__file__).parents[2] / "docs/formats.md").read_text()


def test_the_table_of_formats():
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|.*$", PAGE, re.M))
    assert set(rows) == set(interop.FORMATS)
    assert {name for name, written in rows.items() if written != "no"} == set(interop.WRITTEN)


def test_what_is_refused_in_the_table_of_their_own_code():
    table = PAGE.split("<!-- tests.interop.written -->")[1].split("<!-- end")[0]
    assert set(re.findall(r" (\w+) \|", table.strip().splitlines()[0])) == set(interop.WRITTEN)
