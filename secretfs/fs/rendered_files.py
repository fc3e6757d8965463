"""The rendered files in one directory, as a store: each file is a secret with a single value.

So all that is true of a value is true of a rendered file: an inode for each version, publishing, takeover, idleness. A
rendering is as fresh as the oldest of its parts, and stale if one of them is. When a part changes, the file is rendered
again, and a change is announced if it is another one. While its parts are what they were, nothing is rendered: the same
parts give the same file.

Belongs to one trio thread.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from secretfs.cache.answers import given, if_secret
from secretfs.cache.change import Announce, Change
from secretfs.cache.deadlines import TimeLimit, own_deadlines
from secretfs.cache.health import FileHealth, State, Statistics
from secretfs.cache.limits import DEFAULT, StoreLimits
from secretfs.cache.ttl_cache import CachedAnswer, TTLCache
from secretfs.errors import PartMissing, RenderingFailed, SecretFSError, SecretNotFound, StoreError
from secretfs.fs.inode import DIRECTORY_TIMEOUT
from secretfs.fs.keys import app_of
from secretfs.fs.rendering_failures import RenderingFailures
from secretfs.fs.rendering_parts import Part, Parts, PartValue
from secretfs.rendering.conversation import Asked
from secretfs.rendering.job import MOST_PARTS, Job
from secretfs.rendering.renderer import Renderer
from secretfs.store import Names, Secret

LONGEST: Final = 60.0
"""Seconds that a rendering may take, with all that it waits for."""
REPEAT_FAILURE: Final = 30.0
"""Seconds for which a template that failed is not tried again, unless one of its parts changes."""
REPEAT_MISSING: Final = 1.0
"""Seconds for which a file is not rendered again that asks for a secret which is not there."""
NO_PARTS_TTL: Final = 60.0
"""Seconds that a file holds which is made of no secret."""

_Outcome = Secret | StoreError


@dataclass(frozen=True, slots=True)
class FileToRender:
    """How a file is made, and which stores that may involve: by where they are shown, without the app."""

    job: Job = field(repr=False)
    stores: frozenset[str] = frozenset()
    asks_others: bool = False


@dataclass(slots=True)
class _Made:
    """A rendering, or how it failed, and what it was made of."""

    outcome: _Outcome
    parts: dict[Part, CachedAnswer[PartValue]]
    rendered: float | None
    """When it last could be rendered, in seconds since the epoch."""
    outdated: bool = False
    """Whether it has to be rendered again, even if its parts are what they were."""

    @property
    def may_hold(self) -> bool:
        """Whether it is what the file is for as long as its parts are what they were."""
        return isinstance(self.outcome, Secret) and not self.outdated


class _NoVersions:
    """The versions of rendered files: none but the current one can be asked for."""

    kept = False

    async def fetch(self, name: str, version: str) -> CachedAnswer[Secret]:
        raise SecretNotFound("a rendered file has no versions")

    def peek(self, name: str, version: str) -> CachedAnswer[Secret] | None:
        return None

    def use(self, name: str, version: str, until: float = -math.inf) -> None:
        """Ignore it: there is no such version."""

    def idle_for(self, name: str, version: str) -> float:
        return math.inf

    def expire(self, concerned: Callable[[str], bool]) -> None:
        """Ignore it: there is nothing that could expire."""


class RenderedFiles:
    """Files by their paths below one directory. ``turn`` lets one of them be rendered at a time."""

    multi_valued = False
    reads_have_effects = True  # of some, see `issues`; so there is no bulk file either
    largest_batch = 1
    negative_ttl = DIRECTORY_TIMEOUT

    def __init__(
        self,
        component: str,
        parts: Parts,
        renderer: Renderer,
        nursery: trio.Nursery,
        announce: Announce,
        turn: trio.Lock,
        idle: float,
    ) -> None:
        self.component = component
        """Where the directory is shown: ``NAME``, and in a mount for many apps ``APP/NAME``."""
        self.idle = idle
        self.versions = _NoVersions()
        self.limits = StoreLimits(component, DEFAULT)
        self._app = app_of(component)
        self._prefix = "" if self._app is None else f"{self._app}/"
        self._parts = parts
        self._renderer = renderer
        self._nursery = nursery
        self._announce = announce
        self._turn = turn
        self._files: Mapping[str, FileToRender] = {}
        self._names = Names()
        self._made: dict[str, _Made] = {}
        self._making: dict[str, dict[Part, CachedAnswer[PartValue]]] = {}
        """What the files that are being rendered are made of, so far."""
        self._failures = RenderingFailures(component)
        self._answers = TTLCache[str, _Outcome](self._load, nursery, self._loaded)

    def replace(self, files: Mapping[str, FileToRender], concerned: Callable[[Part], bool]) -> None:
        """Show other files from now on, of parts of which some are ``concerned``, and announce what that changes."""
        before, self._files = self._files, dict(files)
        self._failures.keep_only(files)
        for name in [name for name in before if files.get(name) != before[name]]:
            self._outdate(name)
            self._answers.expire(name)  # one that is being rendered for the first time, too
        if before.keys() != files.keys():
            self._names = Names(secrets=frozenset(files))
            if before:
                self._announce(Change(self.component, names=frozenset(before.keys() ^ files.keys())))
        self.look_again(concerned)

    def note(self, change: Change) -> None:
        """Render again what a change upstream concerns."""
        secrets = {name for name, _ in change.values} | change.names
        everything = change.whole or bool(change.names)  # a folder may list others

        def concerned(part: Part) -> bool:
            return part.component == change.component and (everything or part.is_folder or part.name in secrets)

        self.look_again(concerned)

    def look_again(self, concerned: Callable[[Part], bool]) -> None:
        """Find out anew what is in the files that are known, and of which a part is ``concerned``."""
        for name in [*self._made, *(name for name in self._making if name not in self._made)]:
            made = self._made.get(name)
            parts = [*(made.parts if made else ()), *self._making.get(name, ())]
            always = made is not None and (made.outdated or isinstance(made.outcome, PartMissing))
            if always or any(map(concerned, parts)):
                self._answers.expire(name)
                if self.issues(name):
                    self._announce(Change(self.component, values=frozenset({(name, name)})))
                else:
                    self._nursery.start_soon(self._load_quietly, name)

    def issues(self, name: str) -> bool:
        """Whether to render a file may issue a credential: it then is found by its name, and never listed."""
        file = self._files.get(name)
        if file is None:
            return False
        if file.asks_others:
            return self._parts.any_issues(self._app)
        return any(self._parts.issues(self._prefix + store) for store in file.stores)

    async def names(self, folder: str, *, max_age: float = math.inf) -> CachedAnswer[Names]:
        """Return the names of all files. ``max_age`` does not matter: they are what is declared."""
        now = trio.current_time()
        return CachedAnswer(self._names, now, now + DIRECTORY_TIMEOUT, time.time())

    def recall_names(self, folder: str) -> CachedAnswer[Names] | None:
        """Return `names`."""
        now = trio.current_time()
        return CachedAnswer(self._names, now, now + DIRECTORY_TIMEOUT, time.time())

    async def fetch(self, name: str) -> CachedAnswer[Secret]:
        """Return a file. Raises `RenderingFailed`, or why one of its parts cannot be had."""
        return self.recall(name) or given(await self._answers.load(name))

    def peek(self, name: str) -> CachedAnswer[Secret] | None:
        """Return a file if it may be served at once."""
        self._confirm(name)
        return if_secret(self._answers.peek(name))

    def recall(self, name: str) -> CachedAnswer[Secret] | None:
        """Return `fetch`, if that takes no waiting; else None. Raises `RenderingFailed` if that is known."""
        self._confirm(name)
        answer = self._answers.access(name)
        return None if answer is None else given(answer)

    def _confirm(self, name: str) -> None:
        """Let a rendering hold on that has expired, if the stores' caches say of each part that it is what it was."""
        made, known = self._made.get(name), self._answers.known(name)
        if made is None or not made.may_hold or known is None or known.remaining or name not in self._files:
            return
        now = {part: self._parts.peek(part) for part in made.parts}
        found = {part: answer for part, answer in now.items() if answer is not None}
        if len(found) == len(made.parts) and _same(found, made.parts):
            made.parts = found
            self._answers.keep(name, self._answer(made, found))

    def use(self, name: str, until: float = -math.inf) -> None:
        """Take note that a file is in use, or may be ``until``, and with it all that it is made of."""
        self._answers.use(name, until)
        made = self._made.get(name)
        for part in made.parts if made else ():
            self._parts.use(part, until)

    def idle_for(self, name: str) -> float:
        """Return for how many seconds nobody has asked for a file; infinity if it is not known."""
        return self._answers.idle_for(name)

    def prefetch(self, names: Iterable[str]) -> None:
        """Render nothing ahead: it costs a process."""

    def drop_idle(self) -> None:
        """Forget the files that nobody uses. Call it at times."""
        self._answers.drop_idle(self.idle)
        known = set(self._answers)
        self._made = {name: made for name, made in self._made.items() if name in known}
        self._failures.drop_idle(self.idle)

    async def refresh(self, concerned: Callable[[str], bool] = lambda _: True) -> None:
        """Render again, now, what is known of the files that are ``concerned``."""
        for name in [name for name in self._made if concerned(name) and not self.issues(name)]:
            await self.fetch_anew(name)

    async def list_anew(self, folders: frozenset[str]) -> None:
        """Do nothing: the names are what is declared."""

    async def fetch_anew(self, name: str) -> CachedAnswer[Secret]:
        """Return a file, rendered now, of what the stores have now."""
        made = self._made.get(name)
        for part in made.parts if made else ():
            await self._parts.refresh(part)
        self._outdate(name)
        self._answers.expire(name)
        return given(await self._answers.load(name))

    def statistics(self, visible: Callable[[str], bool] | None = None) -> Statistics:
        """Return how many files are declared, rendered, and could not be when that was last tried."""
        cached = sum(isinstance(made.outcome, Secret) for made in self._made.values())
        state = State.IN_DOUBT if self._failures else State.OK
        known = [name for name in dict.fromkeys([*self._made, *self._failures]) if name in self._files]
        rendered = {name: made.rendered for name, made in self._made.items()}
        return Statistics(
            "files",
            state,
            last_success=None,
            last_error=self._failures.last,
            next_try=None,
            names=len(self._files),
            cached=cached,
            stale=len(self._failures),
            asked={},
            failed={},
            work={},
            breaker_openings=0,
            files={name: FileHealth(rendered.get(name), self._failures.get(name)) for name in known},
        )

    def _outdate(self, name: str) -> None:
        """Have a file rendered again, even if its parts are what they were."""
        made = self._made.get(name)
        if made is not None:
            self._made[name] = replace(made, outdated=True)

    async def _load_quietly(self, name: str) -> None:
        """Find out what is in a file, for those who have used it; they learn of a refusal, too."""
        try:
            await self._answers.load(name)
        except SecretFSError:  # logged where it happened
            self._announce(Change(self.component, values=frozenset({(name, name)})))

    def _loaded(self, name: str, before: CachedAnswer[_Outcome] | None, after: CachedAnswer[_Outcome]) -> None:
        if before is not None and _content(before.value) != _content(after.value):
            self._announce(Change(self.component, values=frozenset({(name, name)})))

    async def _load(self, name: str) -> CachedAnswer[_Outcome]:
        file, made = self._files.get(name), self._made.get(name)
        if file is None:
            raise SecretNotFound("there is no such rendered file")
        if made is not None and made.may_hold:
            found = await self._parts_now(list(made.parts))
            if found is not None and self._made.get(name) is made and _same(found, made.parts):
                made.parts = found
                return self._answer(made, found)
        return await self._render(name, file)

    async def _parts_now(self, parts: list[Part]) -> dict[Part, CachedAnswer[PartValue]] | None:
        """Return what parts are now; None if one cannot be had, which may not be asked for any more."""
        try:
            with own_deadlines():
                return {part: await self._parts.get(part) for part in parts}
        except SecretFSError:  # if it is asked for, it fails again, and is logged
            return None

    async def _render(self, name: str, file: FileToRender) -> CachedAnswer[_Outcome]:
        parts: dict[Part, CachedAnswer[PartValue]] = {}

        async def ask_secret(store: str, secret: str) -> Mapping[str, bytes]:
            return (await self._take(parts, Part(self._prefix + store, secret))).values

        async def ask_folder(store: str, folder: str) -> list[str]:
            component = self._prefix + store
            names = (await self._take(parts, Part(component, folder, is_folder=True))).names
            if len(parts.keys() | {Part(component, name) for name in names}) > MOST_PARTS:
                raise RenderingFailed(f"it asks for more than {MOST_PARTS} secrets")
            await self._parts.fetch_ahead(component, names)
            return list(names)

        outcome: _Outcome
        try:
            async with self._turn:
                self._making[name] = parts
                with TimeLimit(LONGEST, trio.current_time()), own_deadlines():
                    data = await self._renderer.render(file.job, Asked(ask_secret, ask_folder))
        except StoreError as error:
            self._failures.note(name, error)
            if not isinstance(error, RenderingFailed):
                raise
            outcome = error
        else:
            self._failures.forget(name)
            outcome = Secret({name: data}, modified=self._modified(name, data, parts))
        finally:
            if self._making.get(name) is parts:
                del self._making[name]
        before = self._made.get(name)
        rendered = time.time() if isinstance(outcome, Secret) else None if before is None else before.rendered
        replaced = self._files.get(name) != file  # while it was rendered
        made = self._made[name] = _Made(outcome, parts, rendered, outdated=replaced)
        return self._answer(made, parts)

    async def _take(self, parts: dict[Part, CachedAnswer[PartValue]], part: Part) -> PartValue:
        """Return a part, and keep it: it is asked for once, so no file is made of two versions of it."""
        if part not in parts:
            parts[part] = await self._parts.get(part)
        return parts[part].value

    def _modified(self, name: str, data: bytes, parts: Mapping[Part, CachedAnswer[PartValue]]) -> float:
        """Return when a file was modified: as the newest of its parts, and later than what it was before."""
        now = time.time()
        newest = max((answer.value.modified or 0.0 for answer in parts.values()), default=now) or now
        before = self._made.get(name)
        if before is None or not isinstance(before.outcome, Secret):
            return newest
        last = before.outcome.modified or 0.0
        return last if before.outcome.values[name] == data else newest if newest > last else now

    @staticmethod
    def _answer(made: _Made, parts: Mapping[Part, CachedAnswer[PartValue]]) -> CachedAnswer[_Outcome]:
        """Return a rendering, as old as the oldest of its parts."""
        now = trio.current_time()
        answer: CachedAnswer[_Outcome] = CachedAnswer(made.outcome, now, now + NO_PARTS_TTL, time.time())
        if isinstance(made.outcome, RenderingFailed):
            again = REPEAT_MISSING if isinstance(made.outcome, PartMissing) else REPEAT_FAILURE
            return replace(answer, expires=now + again)
        oldest = answer
        for part in parts.values():
            oldest = oldest.limited_by(part)
        return oldest


def _same(now: Mapping[Part, CachedAnswer[PartValue]], before: Mapping[Part, CachedAnswer[PartValue]]) -> bool:
    return all(answer.value == before[part].value for part, answer in now.items())


def _content(outcome: _Outcome) -> object:
    return outcome.values if isinstance(outcome, Secret) else type(outcome)
