"""What goes wrong for the person at the keyboard: one sentence, one exit status, no traceback."""


class UserError(Exception):
    """A request that cannot be met: a sentence that names the value, the reason and the way out; an exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def explain(error: Exception) -> str:
    """The sentence for an error; an `OSError` becomes its reason and its file, without the errno."""
    if isinstance(error, OSError) and error.strerror:
        where = f" {str(error.filename)!r}" if error.filename else ""
        return f"the system refused{where}: {error.strerror}; check the path, its permissions and the free space"
    return str(error)
