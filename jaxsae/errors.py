"""The two ways in which jaxsae stops on purpose."""


class BadInput(Exception):
    """The user's input cannot be used. The message names the value, what is allowed and the fix; exit status 2."""


class Interrupted(Exception):
    """A signal asked to stop, and everything is saved. `status` is the process's exit status (130 or 143)."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status
