"""How a command is refused."""

from jaxsae.cli import main


def refused(capsys, args, *said):
    """The command ends with status 2 and one line that says all of `said`."""
    assert main(args) == 2
    # A progress bar may have stood in its line.
    error = capsys.readouterr().err.strip().replace("\r", "\n").split("\n")[-1]
    assert error.startswith("jaxsae: ") and all(s in error for s in said), error
