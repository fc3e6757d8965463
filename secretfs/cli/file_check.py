"""What rendered files need, found out with placeholders: no store is asked."""

import json
from collections.abc import Iterator, Mapping
from typing import Final

from secretfs.dapr.declaration import Declaration
from secretfs.errors import Notice, RenderingFailed
from secretfs.rendering.conversation import Asked
from secretfs.rendering.job import Job, Mode
from secretfs.rendering.renderer import Renderer

_LONGEST: Final = 12
"""Values of a file that are named; of more there is the number."""


async def needs(declaration: Declaration, notices: list[Notice]) -> list[str]:
    """Return a line for each rendered file with what it needs. What does not render is noted."""
    lines: list[str] = []
    if not declaration.files:
        return lines
    renderer = Renderer()
    try:
        for shown, declared in sorted(declaration.files.items()):
            try:
                found = await _needs(renderer, declared.file.job)
            except RenderingFailed as error:
                reason = f"file {declared.file.name} does not render with placeholders: {error}"
                notices.append(Notice(reason, declared.file.source))
            else:
                lines.append(f"{shown}: {_enumerated(found)}")
    finally:
        renderer.close()
    return lines


async def _needs(renderer: Renderer, job: Job) -> list[str]:
    found = json.loads(await renderer.render(job, Asked(_no_secret, _no_folder), Mode.NEEDS))
    return ["/".join(place) for place in found]


async def _no_secret(store: str, name: str) -> Mapping[str, bytes]:
    raise RenderingFailed(f"a placeholder of {store} was not enough")


async def _no_folder(store: str, folder: str) -> list[str]:
    raise RenderingFailed(f"a placeholder of {store} was not enough")


def _enumerated(found: list[str]) -> str:
    if not found:
        return "needs no secret"
    more = f" and {len(found) - _LONGEST} more" if len(found) > _LONGEST else ""
    return f"needs {', '.join(found[:_LONGEST])}{more}"


def places(declaration: Declaration) -> Iterator[list[str]]:
    """Yield the path of each rendered file, in parts."""
    for shown in declaration.files:
        yield shown.split("/")
