"""Components of plug-ins, as the registry opens them: who is asked when, and what one costs that does not answer."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from secretfs.cache.freshness import Freshness
from secretfs.dapr.declaration import load
from secretfs.errors import StoreUnavailable
from secretfs.registry.open_store import open_store as open_component
from secretfs.registry.opening import KnownStore, Registry, open_registry
from tests.support.manifests import component
from tests.support.pluggable import socket_folder
from tests.support.scripted_plug_in import ScriptedPlugIn, scripted_plug_in


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return socket_folder(tmp_path, monkeypatch)


@pytest.fixture
def plug_in(folder: Path) -> Iterator[ScriptedPlugIn]:
    with scripted_plug_in(folder / "example.sock") as plug_in:
        yield plug_in


@pytest.fixture
def components(tmp_path: Path) -> Path:
    """Two components with ignoreErrors, of which one is that of a plug-in."""
    component(tmp_path / "c", "env", "local.env")
    manifest = component(tmp_path / "c", "example", "example", {"password": "x"})
    manifest.write_text(manifest.read_text().replace("spec:\n", "spec:\n  ignoreErrors: true\n"))
    return tmp_path / "c"


async def test_it_is_asked_what_it_is_when_it_has_been_opened(components: Path, plug_in: ScriptedPlugIn) -> None:
    declaration = load([components], [], "", {})
    (example,) = (one for one in declaration.components if one.name == "example")
    store, notices = open_component(example, declaration.context, Freshness(), None)
    assert (plug_in.calls, notices) == ([], [])
    store.close()
    async with open_registry(declaration.components, declaration.context, Freshness()) as registry:
        assert registry.failures == []
        assert registry.stores["example"].store.multi_valued is False
    assert plug_in.calls[1:] == ["Init", "Features", "Ping"]


@pytest.mark.parametrize("known", [{}, {"example": KnownStore(multi_valued=True)}])
async def test_one_that_does_not_answer_is_a_store_that_says_why(
    components: Path, folder: Path, known: dict[str, KnownStore]
) -> None:
    """What kind of store it is only a process before this one can tell."""
    with socket.socket(socket.AF_UNIX) as nobody:
        nobody.bind(str(folder / "example.sock"))
        declaration = load([components], [], "", {})
        async with open_registry(declaration.components, declaration.context, Freshness(), known=known) as registry:
            assert _told(registry) == ["example"]
            example = registry.stores["example"]
            assert (example.was_never_open, example.store.multi_valued) == (not known, bool(known))
            with pytest.raises(StoreUnavailable, match=r"plug-in example\.sock: .*it does not answer"):
                example.store.fetch("a")


def _told(registry: Registry) -> list[str]:
    return [failure.component.name for failure in registry.failures]
