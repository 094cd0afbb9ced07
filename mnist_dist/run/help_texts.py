"""Rewrites tyro's help and error messages: no box drawing, and advice on what to do."""

import difflib
import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence

WIDTH = 79  # columns of a page of help

UNKNOWN_FLAG = re.compile(r"Unrecognized options: (--[\w-]+)")
OF_ANOTHER_TYPE = re.compile(
    r"Error parsing (--[\w-]+): "
    r"no type matching (.*) could be instantiated from "
    r"\['(.*?)'\]"
)
SEVERAL_IN_ONE_WORD = re.compile(r"Error parsing (--[\w-]+).*: \['(.*[, ].*)'\]$")


def complaint_in_a_sentence(box: str, known: Sequence[str]) -> str:
    """Turn a tyro error into one sentence, with a suggestion if there is one.

    Args:
        box: what tyro printed: a heading, a ruler, the complaint, and perhaps remarks below another
            ruler.
        known: the flags that there are.

    Returns:
        The sentence.
    """
    message = complaint_without_frame(box)
    unknown = UNKNOWN_FLAG.match(message)
    of_another_type = OF_ANOTHER_TYPE.match(message)
    several = SEVERAL_IN_ONE_WORD.match(message)
    if unknown:
        written_properly = unknown[1].replace("_", "-")
        near = difflib.get_close_matches(written_properly, known, n=1)
        if near:
            message += f": did you mean {near[0]}?"
    elif of_another_type:
        name, possible, word = of_another_type.groups()
        one_of = "one of " if "{" in possible else ""
        choices = re.sub(r",\s*", ", ", possible.strip("{}"))
        message = f"{name} {word} is not possible: give {one_of}{choices}"
    elif several:
        name, words = several.groups()
        given = words.replace("', '", " ")
        values = re.findall(r"[\w.+-]+", words)
        example = f"{name} {' '.join(values)}"
        message = f"{name} {given} is not possible: put spaces between the values, as in {example}"
    return f"{message} (see --help)"


def complaint_without_frame(box: str) -> str:
    """Take the complaint out of what tyro printed.

    Args:
        box: as for `complaint_in_a_sentence`.

    Returns:
        The complaint in one line, without a full stop.
    """
    lines = [line.strip() for line in box.splitlines()]
    _heading, _ruler, *body = lines
    above_next_ruler = itertools.takewhile(lambda line: not line.startswith("---"), body)
    message = " ".join(above_next_ruler).strip().rstrip(".")
    # tyro offers None as a value even where it refuses it.
    return re.sub(r"'None', |, 'None'", "", message)


def page_in_groups(page: str, groups: Mapping[str, str]) -> str:
    """Rewrite tyro's page of help without rulers, its one list of options divided into several.

    Args:
        page: what tyro printed.
        groups: by title the flags of each group, without the hyphens before them, in the order in
            which they are to appear. The flags of no group come last.

    Returns:
        The page.
    """
    page = without_rulers(page)
    before, _, box = page.partition("options:\n")
    lines = [textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in before.split("\n")]
    text = "\n".join(lines)
    entries = entries_by_flag(box)
    for title, names in groups.items():
        text += group_of_entries(title, names.split(), entries)
    text += group_of_entries("options", list(entries), entries)
    return re.sub(r" +$", "", text, flags=re.MULTILINE)


def without_rulers(page: str) -> str:
    """Turn tyro's headings, which stand above rulers, into words with a colon."""
    page = re.sub(r"^ (\S.*?) *\n -+ *\n", r"\1:\n", page, flags=re.MULTILINE)
    # An empty default is left out: the words before it say what happens without the flag.
    return re.sub(r"\s+\(default:\s*(None)?\)", "", page)


def entries_by_flag(box: str) -> dict[str, str]:
    """Divide tyro's list of options.

    Args:
        box: the list.

    Returns:
        What it says of each flag, by the flag without the hyphens before it.
    """
    entries = re.split(r"^(?=  -)", box.rstrip() + "\n", flags=re.MULTILINE)
    by_flag = {}
    for entry in entries:
        if "--" in entry:
            _, _, from_name_on = entry.partition("--")
            name, *_ = from_name_on.split()
            by_flag[name] = entry
    return by_flag


def group_of_entries(title: str, names: Sequence[str], entries: dict[str, str]) -> str:
    """Write one group of flags.

    Args:
        title: its title.
        names: its flags, of which some may not exist.
        entries: what is said of each flag that has not been written yet; these are taken out.

    Returns:
        The title and the entries. Empty if none of the flags exists.
    """
    found = [entries.pop(name, "") for name in names]
    part = "".join(found)
    return f"{title}:\n{part}\n" if part else ""
