"""The table of docs/formats.md: differences between what jaxsae computes from other libraries' files and what they did.

python -m tests.interop.table docs/formats.md     # puts it between the marks in the page
"""

import sys
from pathlib import Path

from tests.interop.peers import NAMES, Peer, compared, difference


def rows() -> list[str]:
    lines = ["| files | latents | reconstructions | other arrays of the fixture |", "|---|---|---|---|"]
    for name in NAMES:
        found = {array: difference(*pair) for array, pair in compared(Peer(name)).items()}
        # Some have several positions, each with latents of its own.
        acts, recon = (
            max(v for array, v in found.items() if array.split("/")[0] == kind) for kind in ("acts", "recon")
        )
        others = {array: value for array, value in found.items() if array.split("/")[0] not in ("acts", "recon")}
        text = f"{', '.join(f'`{array}`' for array in others)}: {max(others.values()):.0e}" if others else ""
        lines.append(f"| `{name}` | {acts:.0e} | {recon:.0e} | {text} |")
    return lines


def put(page: str, name: str, lines: list[str]) -> str:
    """The page with these lines between the marks called `name`."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = page.split(begin)
    return "\n".join([before + begin, "", *lines, "", end]) + rest.split(end)[1]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(put(path.read_text(), "tests.interop.table", rows()))
