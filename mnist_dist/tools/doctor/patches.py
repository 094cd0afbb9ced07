"""How a function of a library is watched: it is called as before, and something is noted."""

import functools
from collections.abc import Callable
from typing import Any


def call_before(owner: Any, name: str, note: Callable[..., Any]) -> None:
    """Have something noted before each call of a function.

    Args:
        owner: the class or module that has it.
        name: its name.
        note: is called with the same arguments.
    """
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        note(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, watched)


def call_around(
    owner: Any,
    name: str,
    before: Callable[..., Any],
    after: Callable[[], Any],
) -> None:
    """Have something noted before and after each call of a function, however it ends.

    Args:
        owner: the class or module that has it.
        name: its name.
        before: is called with the same arguments.
        after: is called without arguments.
    """
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        before(*args, **kwargs)
        try:
            return original(*args, **kwargs)
        finally:
            after()

    setattr(owner, name, watched)


def call_after(owner: Any, name: str, note: Callable[..., Any]) -> None:
    """Have something noted after each call of a function that ends well.

    Args:
        owner: the class or module that has it.
        name: its name.
        note: is called with what the function returned, and its arguments.
    """
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        note(result, *args, **kwargs)
        return result

    setattr(owner, name, watched)
