"""What is to be rendered, and how the process that renders is spoken to. Pure.

The process and the daemon send each other messages over a stream socket: four bytes of length, one byte that says what
it is, and the rest. Whoever reads decides how much it takes: what comes from the process may come from a template.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

LARGEST_FILE: Final = 1 << 20
"""Bytes of a rendered file, at most."""
LARGEST_MESSAGE: Final = LARGEST_FILE + 1
CPU_SECONDS: Final = 2
"""Of processor time for one rendering, after which the kernel ends the process."""
MEMORY: Final = 256 << 20
"""Bytes of memory for one rendering, on top of what the process has before it begins."""
MOST_PARTS: Final = 1000
"""Secrets and folders that one file may ask for."""


WITH_CRYPTOGRAPHY: Final = b"C"
"""Asks for a process that has imported cryptography."""
WITH_JINJA: Final = b"J"
"""Asks for any."""
CHECKING: Final = b"checking"
"""The first line of a process that checks templates: from then on, what ends it is a template."""


class Format(Enum):
    """The formats of a file. All but the first are made of ``values``."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"
    DOTENV = "dotenv"
    PROPERTIES = "properties"
    PEM = "pem"
    PKCS12 = "pkcs12"
    DOCKER = "dockerconfigjson"


class Reference(NamedTuple):
    """A value of a secret."""

    store: str
    secret: str
    key: str = ""
    """Empty for the only value of a secret, in a single-valued store."""


class Template(NamedTuple):
    """A text in the template language."""

    text: str


class Job(NamedTuple):
    """A file to render: of a template, or of values in their order."""

    format: Format
    template: Template | None = None
    values: tuple[tuple[str, Reference | Template], ...] = ()

    @property
    def templates(self) -> list[tuple[str, Template]]:
        """All templates in it, each with the field that has it."""
        if self.template is not None:
            return [("spec.template", self.template)]
        return [(f"spec.values.{name}.template", value) for name, value in self.values if isinstance(value, Template)]

    @property
    def takes_cryptography(self) -> bool:
        """Whether the format takes the package cryptography."""
        return self.format in (Format.PEM, Format.PKCS12)


class Mode(Enum):
    """How a job is done."""

    RENDER = "render"
    NEEDS = "needs"
    """With a placeholder for each value, without asking for any: tells which values the file needs."""
    MASKED = "masked"
    """With asterisks for each value, so that the outcome can be shown."""


class Kind(Enum):
    """The messages. The first is to the process, as is the last."""

    JOB = b"J"
    SECRET = b"S"
    """Asks for a secret: store and name. Answered with its values."""
    FOLDER = b"F"
    """Asks for the names of the secrets in a folder: store and folder."""
    OUTCOME = b"O"
    """The file."""
    NEEDS = b"N"
    """Store, secret and key of each value that the file needs."""
    FAULT = b"X"
    """What is wrong: see `Fault`."""
    ANSWER = b"A"


class Fault(NamedTuple):
    """Why a template does not render. It quotes the template at most, and never a value."""

    message: str
    line: int = 0
    """Of the template, counted from 1; 0 where that is not known."""
    field: str = ""
    """The field of the document that has the template; empty for `Job.template`, and where no template is to blame."""

    def __str__(self) -> str:
        where = self.field or ("the template" if self.line else "")
        if self.line:
            where = f"line {self.line} of {where}"
        return f"{where}: {self.message}" if where else self.message


class Checked(NamedTuple):
    """What is known of a template that nobody has rendered."""

    stores: tuple[str, ...] = ()
    """The stores that it asks by a name that is written down in it."""
    asks_others: bool = False
    """Whether it may ask a store whose name it computes."""
    fault: Fault | None = None


def pack(kind: Kind, payload: bytes) -> bytes:
    """Return a message."""
    return len(payload).to_bytes(4, "big") + kind.value + payload


def job_to_json(job: Job, mode: Mode) -> bytes:
    """Return a job as the process reads it."""
    document = {
        "mode": mode.value,
        "format": job.format.value,
        "template": None if job.template is None else job.template.text,
        "values": [
            [name, value.text if isinstance(value, Template) else [value.store, value.secret, value.key]]
            for name, value in job.values
        ],
    }
    return json.dumps(document).encode()


def job_from_json(text: bytes) -> tuple[Job, Mode]:
    """Return what `job_to_json` wrote."""
    document = json.loads(text)
    template = document["template"]
    values: Sequence[tuple[str, Any]] = document["values"]
    return Job(
        Format(document["format"]),
        None if template is None else Template(template),
        tuple((name, Template(v) if isinstance(v, str) else Reference(*v)) for name, v in values),
    ), Mode(document["mode"])


def secret_to_json(values: Mapping[str, bytes]) -> bytes:
    """Return the values of a secret as the process reads them."""
    return json.dumps({key: base64.b64encode(value).decode() for key, value in values.items()}).encode()


def secret_from_json(text: bytes) -> dict[str, bytes]:
    """Return what `secret_to_json` wrote."""
    return {key: base64.b64decode(value) for key, value in json.loads(text).items()}
