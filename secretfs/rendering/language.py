"""The template language: Jinja2 in its sandbox, where what is not defined is an error.

A template sees secrets, folders and filters, and nothing else: no file, no environment, no clock, nothing random. So
the same secrets give the same text. It can still run for ever; `secretfs.rendering.server` ends it then.
"""

import base64
import binascii
import importlib
import json
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

from secretfs.quoting import property_value, yaml_string
from secretfs.rendering.job import Checked, Fault
from secretfs.rendering.values import Binary, NotText, Placeholder, SecretMap, data, text

_NOT_REPEATABLE: Final = ("random",)
"""Filters of Jinja2 whose outcome differs from time to time."""
_LATE: Final = ("encodings.idna", "encodings.unicode_escape", "pprint", "textwrap")
_NAME: Final = "<template>"


_MEANINGS: Final[Mapping[type[BaseException], str]] = {
    SecurityError: "it does what the sandbox forbids",
    RecursionError: "it is nested too deeply",
    MemoryError: "it takes too much memory",
    OverflowError: "a number or a range in it is too large",
}
_UNREADABLE: Final[Mapping[type[BaseException], str]] = {
    **_MEANINGS,
    ValueError: "a number in it has too many digits",
}
"""What it means when it happens while a template is read."""
_NAME_IN_PROGRAM: Final = re.compile(r"\bl_\d+_")
"""What Jinja2 puts before the names of a template."""
_NOT_THERE: Final = re.compile(r"'([^']+)' is undefined|'[^']*' has no attribute '([^']+)'")
"""What Jinja2 says of a name that is not there."""


class FilterMisused(ValueError):
    """A filter that cannot do what it is asked for. Its text quotes no value."""


class _Environment(ImmutableSandboxedEnvironment):
    """Finds a key of a secret before a method of the map."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, SecretMap) and attribute in obj:
            return obj[attribute]
        if isinstance(obj, Placeholder):
            return obj.key(attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Placeholder) and isinstance(argument, str):
            return obj.key(argument)
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return not isinstance(obj, Binary) and super().is_safe_attribute(obj, attr, value)


def environment() -> _Environment:
    """Return what all templates share."""
    made = _Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    made.globals.clear()
    made.globals.update(range=safe_range, dict=dict)
    for name in _NOT_REPEATABLE:
        made.filters.pop(name, None)
    made.filters.update(FILTERS)
    return made


def _decoded(value: object) -> object:
    if isinstance(value, Placeholder):
        return value
    try:
        return text(base64.b64decode(data(value), validate=True))
    except binascii.Error:
        raise FilterMisused("b64decode: the value is not base64") from None


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, SecretMap):
        return dict(value)
    if isinstance(value, Binary):
        raise NotText("a value is not UTF-8 text, which JSON is; use the filter b64encode")
    raise FilterMisused(f"json: a {type(value).__name__} has no JSON")


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "b64encode": lambda value: base64.b64encode(data(value)).decode(),
    "b64decode": _decoded,
    "json": _json,
    "shell": lambda value: shlex.quote(str(value)),
    "yaml": lambda value: yaml_string(str(value)),
    "properties": lambda value: property_value(str(value)),
    "url": lambda value: quote(data(value), safe=""),
}


def warm_up() -> None:
    """Have Jinja2 import what it imports late: a process that renders may open no file."""
    for name in _LATE:
        importlib.import_module(name)
    shared = environment()
    text_ = "{% macro m(a) %}{{ a }}{% endmacro %}{% for n in [1] %}{{ m('\\u00e4') | upper ~ loop.index }}{% endfor %}"
    shared.from_string(text_).render()
    try:
        shared.from_string("{{ missing }}").render()
    except UndefinedError:  # and what it takes to say so
        return


def check(source: str) -> Checked:
    """Say what is known of a template without rendering it. Whoever calls it limits its time: constants are computed.

    Jinja2 makes a Python program of it, so what Python cannot compile is a fault of the template as well.
    """
    try:
        environment().from_string(source)
        return Checked(*_stores_in(source))
    except TemplateSyntaxError as error:
        fault = Fault(error.message or "a mistake in the template", error.lineno)
    except TemplateError as error:
        fault = Fault(str(error))
    except SyntaxError as error:
        fault = Fault(_refusal(error.msg))
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        fault = Fault(next(text for kind, text in _UNREADABLE.items() if isinstance(error, kind)))
    return Checked(fault=fault)


def _refusal(message: str) -> str:
    """Say why Python refuses the program that Jinja2 has made of a template."""
    if message.startswith("too many "):  # nested blocks, parentheses, levels of indentation
        return _MEANINGS[RecursionError]
    return f"Python refuses it: {_NAME_IN_PROGRAM.sub('', message)}"


def _stores_in(source: str) -> tuple[tuple[str, ...], bool]:
    """Return the stores that a template names where it asks for secrets, and whether it may ask others, too."""
    named: dict[str, None] = {}
    others = False
    called = set()
    tree = environment().parse(source)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name in ("secret", "secrets"):
            called.add(id(call.node))
            arguments = [*call.args, *(one.value for one in call.kwargs if one.key == "store")]
            if arguments and isinstance(arguments[0], nodes.Const) and isinstance(arguments[0].value, str):
                named[arguments[0].value] = None
            else:
                others = True
    names = (node for node in tree.find_all(nodes.Name) if node.name in ("secret", "secrets"))
    return tuple(named), others or any(id(node) not in called for node in names)


def render(shared: _Environment, source: str, names: Mapping[str, object], field: str = "") -> str:
    """Render a template. Raises `TemplateFault`; what the functions among ``names`` raise goes through."""
    try:
        return shared.from_string(source).render(names)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise TemplateFault(_fault(error, source, field)) from None


class TemplateFault(Exception):
    """A template that does not render."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


def _fault(error: BaseException, source: str, field: str) -> Fault:
    """Say what is wrong. The text of an exception may quote a value, so it is used only where that cannot be."""
    if isinstance(error, TemplateSyntaxError):
        return Fault(error.message or "a mistake in the template", error.lineno, field)
    line = _line(error)
    if isinstance(error, (NotText, FilterMisused)):
        return Fault(str(error), line, field)
    if isinstance(error, UndefinedError):
        name = _missing_name(str(error))
        known = name if name and name in source else ""
        return Fault(f"{known!r} is not there" if known else "something that it uses is not there", line, field)
    meaning = next((text for kind, text in _MEANINGS.items() if isinstance(error, kind)), "")
    return Fault(meaning or f"it fails with {type(error).__name__}", line, field)


def _missing_name(message: str) -> str:
    """Return the name in a message about what is not there, if it has one."""
    found = _NOT_THERE.fullmatch(message)
    return next(filter(None, found.groups())) if found else ""


def _line(error: BaseException) -> int:
    """Return the line of the template in which an exception was raised; Jinja2 has put it into the traceback."""
    line, step = 0, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename in (_NAME, "<unknown>"):
            line = step.tb_lineno
        step = step.tb_next
    return line
