"""Binary tasks on Python source, made from the running Python's own files: they need no data.

A text is what stands before some place of a file, the end of a word or of an operator; the questions are about that
place. Some can be read off its last token, some need the lines before, some ask what comes next.
"""

import bisect
import io
import keyword
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxsae.data.text import stdlib_files
from jaxsae.errors import BadInput
from jaxsae.evals.probes.tasks import Task, checked

# Held out when the embedded language model was trained.
PACKAGES = ("email", "json", "unittest")
# Characters of a text, from the beginning of a line; and of the pieces of a file that are all train or all test.
BEFORE, PIECE = 120, 4000
# Texts of each class in each half, and below how many a task is left out.
EXAMPLES, FEWEST = 150, 25
SEED = 0

HEADERS = {"class", "def", "if", "elif", "else", "for", "while", "try", "except", "finally", "with"}
STRINGS = {tokenize.STRING} | {getattr(tokenize, name) for name in ("FSTRING_MIDDLE",) if hasattr(tokenize, name)}
LAYOUT = {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.COMMENT}


class Place(NamedTuple):
    """The end of a word or an operator, and what is known of it."""

    text: str  # what stands before it
    train: bool
    package: str
    kind: str  # name, keyword, operator, string, docstring, comment
    word: str
    before: str  # the token before it; in strings and comments the character after it is `after`
    after: str  # "" at the end of a line
    first: bool  # whether it begins a line of code
    line: str  # what that line begins with
    level: int  # of indentation
    brackets: str  # those that are open
    blocks: tuple[str, ...]  # the statements that it is inside of


CODE = ("name", "keyword", "operator")
prose = lambda p: p.kind in ("docstring", "comment")
code = lambda p: p.kind in CODE
name = lambda p: p.kind == "name"
inside = lambda p: name(p) and bool(p.brackets)
in_function = lambda p: code(p) and "def" in p.blocks
on_line = lambda *words: (code, lambda p: p.line in words)

# name: (which places it is asked at, the answer)
QUESTIONS: dict[str, tuple[Callable[[Place], bool], Callable[[Place], bool]]] = {
    "in_string": (lambda p: p.kind in ("name", "string"), lambda p: p.kind == "string"),
    "in_docstring": (lambda p: p.kind in ("name", "docstring"), lambda p: p.kind == "docstring"),
    "in_comment": (lambda p: p.kind in ("name", "comment"), lambda p: p.kind == "comment"),
    "comment_not_docstring": (prose, lambda p: p.kind == "comment"),
    "docstring_not_string": (lambda p: p.kind in ("string", "docstring"), lambda p: p.kind == "docstring"),
    "sentence_ends_next": (prose, lambda p: p.after == "."),
    "on_def_line": on_line("def"),
    "on_import_line": on_line("import", "from"),
    "on_return_line": on_line("return"),
    "on_if_line": on_line("if", "elif"),
    "on_raise_line": on_line("raise"),
    "in_class": (code, lambda p: "class" in p.blocks),
    "in_method": (in_function, lambda p: "class" in p.blocks),
    "in_if": (in_function, lambda p: p.blocks[-1] in ("if", "elif", "else")),
    "in_for": (in_function, lambda p: p.blocks[-1] in ("for", "while")),
    "in_try": (in_function, lambda p: p.blocks[-1] in ("try", "except", "finally")),
    "indented_3_levels": (code, lambda p: p.level >= 3),
    "in_brackets": (name, lambda p: bool(p.brackets)),
    "in_two_brackets": (inside, lambda p: len(p.brackets) > 1),
    "in_square_brackets": (inside, lambda p: p.brackets[-1] == "["),
    "is_attribute": (name, lambda p: p.before == "."),
    "is_capitalised": (name, lambda p: p.word[:1].isupper()),
    "was_named_before": (lambda p: name(p) and len(p.word) > 3, lambda p: _again(p)),
    "is_called_next": (name, lambda p: p.after == "("),
    "is_assigned_next": (lambda p: name(p) and not p.brackets, lambda p: p.after == "="),
    "is_keyword_argument": (inside, lambda p: p.after == "="),
    "line_ends_next": (code, lambda p: p.after == ""),
    "block_begins_next": (lambda p: code(p) and not p.brackets, lambda p: p.after == ":"),
    "package_email": (code, lambda p: p.package == "email"),
}


def python_tasks() -> list[Task]:
    """The tasks of QUESTIONS, balanced. Raises BadInput if this Python has no source files of its own."""
    found = [place for file in source_files() for place in places(file.read_text("utf-8"), file.parent.name)]
    # What stands in several files, such as a licence, is kept once. All tasks take places in one order: they then share
    # many texts, and these are read once.
    found = [*{place.text: place for place in found}.values()]
    found = [found[i] for i in np.random.default_rng(SEED).permutation(len(found))]
    return [task for name, (asked, answer) in QUESTIONS.items() if (task := _task(name, asked, answer, found))]


def source_files() -> list[Path]:
    """The files of PACKAGES. Raises BadInput if they are not installed."""
    files = [file for file in stdlib_files() if file.parent.name in PACKAGES]
    if not files:
        raise BadInput(
            f"the probe tasks are made from Python's packages {', '.join(PACKAGES)}, and their source files are not "
            "installed: give --probes.folder"
        )
    return files


def _task(name: str, asked: Callable, answer: Callable, found: list[Place]) -> Task | None:
    groups = {(train, label): [] for train in (True, False) for label in (True, False)}
    for place in found:
        if asked(place) and len(group := groups[place.train, answer(place)]) < EXAMPLES:
            group.append(place)
    size = min(map(len, groups.values()))
    if size < FEWEST:
        return None
    chosen = [(place, label) for (_, label), group in groups.items() for place in group[:size]]
    chosen = [chosen[i] for i in np.random.default_rng(SEED).permutation(len(chosen))]
    labels, train = np.array([label for _, label in chosen], int), np.array([place.train for place, _ in chosen])
    return checked(Task(name, [place.text for place, _ in chosen], labels, train))


def _again(place: Place) -> bool:
    """Whether its word stands in the text before."""
    return re.search(rf"\b{re.escape(place.word)}\b", place.text[: -len(place.word)]) is not None


def places(source: str, package: str) -> Iterator[Place]:
    """The places of a file, in order; none before it is BEFORE characters long."""
    starts = [0, *(match.end() for match in re.finditer("\n", source))]
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type != tokenize.ENDMARKER]
    offset = lambda at: starts[at[0] - 1] + at[1]
    level, line, brackets, blocks, fresh = 0, "", "", [], True

    def place(kind, end, word, before, after):
        begin = starts[bisect.bisect_right(starts, max(0, end - BEFORE)) - 1]
        train = end // PIECE % 2 == 0
        inside = tuple(blocks)
        return Place(source[begin:end], train, package, kind, word, before, after, fresh, line, level, brackets, inside)

    for i, token in enumerate(tokens):
        following = tokens[i + 1] if i + 1 < len(tokens) else None
        after = "" if following is None or following.type in LAYOUT else following.string
        before = tokens[i - 1].string if i else ""
        if token.type == tokenize.INDENT:
            level += 1
            blocks.append(line if line in HEADERS else "")
        elif token.type == tokenize.DEDENT:
            level -= 1
            blocks.pop()
        elif token.type == tokenize.NEWLINE:
            fresh = True
        elif token.type in STRINGS or token.type == tokenize.COMMENT:
            kind = "comment" if token.type == tokenize.COMMENT else "docstring" if fresh else "string"
            start = offset(token.start)
            yield from (
                place(kind, start + word.end(), word[0], "", token.string[word.end() : word.end() + 1])
                for word in re.finditer(r"\w+", token.string)
                if start + word.end() >= BEFORE
            )
            fresh = fresh and kind == "comment"
        elif token.type in (tokenize.NAME, tokenize.OP):
            if fresh:
                # What an `async` is of comes after it.
                line = after if token.string == "async" else token.string
            brackets = _brackets(brackets, token.string)
            kind = "operator" if token.type == tokenize.OP else "keyword" if keyword.iskeyword(token.string) else "name"
            if offset(token.end) >= BEFORE:
                yield place(kind, offset(token.end), token.string, before, after)
            fresh = False


def _brackets(open_ones: str, token: str) -> str:
    """The brackets that are open after a token."""
    if token in "([{":
        return open_ones + token
    return open_ones[:-1] if token in ")]}" else open_ones
