"""The test that every secret store passes: `StoreContract`. Needs pytest.

Inherit from it, say what your store is, and provide two fixtures::

    class TestMyStore(StoreContract):
        multi_valued = False
        can_be_denied = False          # "there is no access control": said aloud, and shown as a skip

        @pytest.fixture
        def store(self, server):
            with closing(open_store(Settings(server.address), StoreContext("my", deadline=self.deadline))) as store:
                yield store

        @pytest.fixture
        def seed(self, server):
            return lambda name, values: server.put(name, values[name])

        @pytest.fixture
        def unreachable(self):
            with closing(open_store(Settings("127.0.0.1:1"), StoreContext("my", deadline=self.deadline))) as store:
                yield store

Flags are True until you say otherwise: a promise that a store does not make is written down in its test, and each test
that it would have is reported as skipped with the flag's name. All values carry `mark`; set it to something your other
tests look for, too.
"""
# ruff: noqa: S101 - this is a test

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from secretfs.errors import AccessDenied, DeadlineExceeded, SecretNotFound, StoreError, StoreUnavailable
from secretfs.store import BatchingStore, Names, SecretStore, VersionedStore, reads_have_effects

Seed = Callable[[str, Mapping[str, bytes]], None]
"""Puts a secret into the backend, or a new version of it: the name, then all its values."""

AWKWARD_NAMES = (
    " leading", "trailing ", "in side", ".hidden", "..dots", "-rf", "~", "a=b", "a:b", "a;b", "a,b", "a&b", "a+b",
    "a*b", "a|b", "a<b>", "(a)", "[a]", "{a}", "a@b", "a!", "$HOME", "`a`", "^", "a'b", 'a"b', "back\\slash",
    "100%", "%2F", "%41", "a?b=c", "a#b", "CASE", "case", "under_score", "naïve", "日本語", "\N{GRINNING FACE}",
    "e\N{COMBINING ACUTE ACCENT}", "é", "\N{ZERO WIDTH SPACE}", "line\nfeed", "tab\tbed", "\N{DELETE}",
    "x" * 255, "y" * 300,
)  # fmt: skip
"""Names that somebody's encoding gets wrong. `StoreContract.can_hold` picks those that a store can have."""

IMPOSSIBLE_NAMES = ("", "/", "a//b", "../a", "a/..", ".", "..", "a/", "/a", "\0", "a\nb", "\udcff")
"""Names that no backend of ours has, or that mean another one to a careless server."""

AWKWARD_VALUES = {
    "newline": b"ends with a newline\n",
    "spaces": b"  around  ",
    "quotes": b"'single' \"double\" `back` \\",
    "json": b'{"is": ["not", "parsed"]}',
    "escapes": b"<&> \\u0041 %41 $HOME",
    "unicode": "ünïcödé 日本語 \N{GRINNING FACE} \N{LINE SEPARATOR}".encode(),
    "long": b"0123456789abcdef" * 1024,
}


class StoreContract:
    """What secretfs relies on, whatever the store."""

    multi_valued: ClassVar[bool]
    """What the store declares."""
    deadline: ClassVar[float] = 2.0
    """Seconds: what your fixtures open the store with."""
    mark: ClassVar[str] = "contract-mark"
    """A part of every value, which must show up nowhere else."""
    missing: ClassVar[str] = "no-such-secret"
    """A name that the backend could hold and does not."""

    has_folders: ClassVar[bool] = True
    """Names with "/" are folders, which `SecretStore.names` lists one at a time or all at once."""
    can_be_empty: ClassVar[bool] = True
    """A value can be the empty string."""
    free_values: ClassVar[bool] = True
    """A value is what was put in. Without it the store gives values a form of its own: let `values` return it."""
    binary_values: ClassVar[bool] = True
    """A value can be any bytes. Without it: any Unicode text without NUL."""
    has_versions: ClassVar[bool] = True
    """`Secret.version` is set and differs from version to version."""
    tells_modified: ClassVar[bool] = True
    """`Secret.modified` is set."""
    can_be_denied: ClassVar[bool] = True
    """The backend can refuse. Provide the fixture `denied`."""
    can_be_unreachable: ClassVar[bool] = True
    """The backend can be gone. Provide the fixture `unreachable`."""
    counts_reads: ClassVar[bool] = True
    """The backend knows how many values were read. Provide the fixture `reads`."""
    issues: ClassVar[bool] = False
    """A fetch may issue a credential: `secretfs.store.IssuingStore`."""

    # --- what a subclass provides ---

    @pytest.fixture
    def store(self) -> Iterator[SecretStore]:
        """Open the store, yield it, and close it."""
        raise NotImplementedError("provide a fixture `store`")

    @pytest.fixture
    def seed(self) -> Seed:
        """Give the function that puts a secret into the backend of `store`."""
        raise NotImplementedError("provide a fixture `seed`")

    @pytest.fixture
    def denied(self) -> Iterator[tuple[SecretStore, str]]:
        """Open a store that may not read a secret which is there; yield both, and close the store."""
        raise NotImplementedError("provide a fixture `denied`, or say can_be_denied = False")

    @pytest.fixture
    def unreachable(self) -> Iterator[SecretStore]:
        """Open a store whose backend does not answer, yield it, and close it."""
        raise NotImplementedError("provide a fixture `unreachable`, or say can_be_unreachable = False")

    @pytest.fixture
    def reads(self) -> Callable[[], int]:
        """Give the function that counts the values read from the backend so far."""
        raise NotImplementedError("provide a fixture `reads`, or say counts_reads = False")

    def can_hold(self, name: str) -> bool:
        """Tell whether the backend takes a secret of this name."""
        return bool(name)

    def values(self, name: str, version: str = "first") -> dict[str, bytes]:
        """Make up the values of one version of a secret."""
        keys = ["username", "password"] if self.multi_valued else [name]
        return {key: f"{self.mark} {version} {key[:20]}".encode() for key in keys}

    # --- the promises ---

    def test_declares_its_shape(self, store: SecretStore) -> None:
        """A store says whether its secrets are directories or files, before any is read."""
        assert store.multi_valued is self.multi_valued

    def test_declares_whether_a_read_has_effects(self, store: SecretStore) -> None:
        """A store that issues credentials says so before any is read: its values are not listed."""
        assert reads_have_effects(store) is self.issues

    def test_check_passes_while_the_backend_is_well(self, store: SecretStore) -> None:
        """`check` returns."""
        store.check()

    def test_fetches_what_was_seeded(self, store: SecretStore, seed: Seed) -> None:
        """All values of a secret come back, and nothing else."""
        values = self.values("known")
        seed("known", values)
        assert store.fetch("known").values == values

    def test_a_single_value_is_under_the_name_asked_for(self, store: SecretStore, seed: Seed) -> None:
        """Dapr's shape for stores without multiple keys."""
        if self.multi_valued:
            pytest.skip("a secret of this store has more than one value")
        seed("single", self.values("single"))
        assert list(store.fetch("single").values) == ["single"]

    def test_a_missing_secret_is_not_found(self, store: SecretStore) -> None:
        """Not an empty secret, and no other error."""
        with pytest.raises(SecretNotFound, match=self.missing):
            store.fetch(self.missing)

    def test_impossible_names_are_not_found(self, store: SecretStore) -> None:
        """Whatever a file name can be turned into, it is never another error, and never another secret."""
        for name in IMPOSSIBLE_NAMES:
            with pytest.raises(SecretNotFound):
                store.fetch(name)

    def test_names_hold_all_that_was_seeded(self, store: SecretStore, seed: Seed) -> None:
        """There may be more: backends have secrets of their own."""
        for name in ("one", "two", "three"):
            seed(name, self.values(name))
        assert {"one", "two", "three"} <= _all_names(store)

    def test_names_that_are_not_seeded_are_not_listed(self, store: SecretStore) -> None:
        """No name comes from nowhere."""
        assert self.missing not in _all_names(store)

    def test_a_folder_that_is_not_there_is_empty(self, store: SecretStore) -> None:
        """It may just have been deleted."""
        assert store.names("no-such-folder") == Names()

    def test_folders(self, store: SecretStore, seed: Seed) -> None:
        """Secrets in folders are listed and fetched by their full name, at any depth."""
        self._needs("has_folders")
        for name in ("team/db", "team/sub/deep/key", "beside"):
            seed(name, self.values(name))
        assert {"team/db", "team/sub/deep/key", "beside"} <= _all_names(store)
        assert store.fetch("team/sub/deep/key").values == self.values("team/sub/deep/key")
        with pytest.raises(SecretNotFound):
            store.fetch("team")

    def test_a_folder_and_a_secret_of_one_name(self, store: SecretStore, seed: Seed) -> None:
        """Neither hides the other."""
        self._needs("has_folders")
        for name in ("same", "same/inner"):
            seed(name, self.values(name))
        assert {"same", "same/inner"} <= _all_names(store)
        assert store.fetch("same").values == self.values("same")
        assert store.fetch("same/inner").values == self.values("same/inner")

    def test_names_read_no_values(self, store: SecretStore, seed: Seed, request: pytest.FixtureRequest) -> None:
        """Listing is not reading: somebody audits the latter."""
        self._needs("counts_reads")
        reads = request.getfixturevalue("reads")
        seed("listed", self.values("listed"))
        before = reads()
        _all_names(store)
        assert reads() == before

    def test_a_fetch_reads_one_value(self, store: SecretStore, seed: Seed, request: pytest.FixtureRequest) -> None:
        """Retries and caches are secretfs's, not the store's."""
        self._needs("counts_reads")
        reads = request.getfixturevalue("reads")
        seed("counted", self.values("counted"))
        store.fetch("counted")
        before = reads()
        store.fetch("counted")
        assert reads() == before + 1

    def test_a_batch_reads_what_single_reads_do(self, store: SecretStore, seed: Seed) -> None:
        """Whatever is asked for beside it: a name that is not there, or cannot be, costs the others nothing."""
        if not isinstance(store, BatchingStore):
            pytest.skip("the store reads secrets one by one")
        names = tuple(f"batch{index}" for index in range(min(store.largest_batch, 30) - 2))
        for name in names:
            seed(name, self.values(name))
        for other in (self.missing, *IMPOSSIBLE_NAMES):
            found = store.fetch_many((*names, other, "batch0/other"))
            alone = [name for name in names if name not in found]
            assert {name: found.get(name) for name in names if name not in alone} == {
                name: store.fetch(name) for name in names if name not in alone
            }
            assert len(alone) in (0, len(names))
            assert isinstance(found.get(other, SecretNotFound()), SecretNotFound)

    def test_versions_stay_what_they_were(self, store: SecretStore, seed: Seed) -> None:
        """Each is found by the name that it had when it was the newest, and by no other."""
        seed("kept", self.values("kept"))
        first = store.fetch("kept")
        if not (isinstance(store, VersionedStore) and store.keeps_versions):
            pytest.skip("the store keeps no versions")
        seed("kept", self.values("kept", "second"))
        second = store.fetch("kept")
        assert second.version != first.version
        for secret in (first, second, first):
            found = store.fetch_version("kept", secret.version)
            assert (found.values, found.version) == (secret.values, secret.version)
        for name, version in (("kept", "9999"), ("kept", ""), ("kept", "no version"), (self.missing, first.version)):
            with pytest.raises(SecretNotFound):
                store.fetch_version(name, version)

    def test_an_empty_value(self, store: SecretStore, seed: Seed) -> None:
        """Empty is not missing."""
        self._needs("can_be_empty")
        values = {"key" if self.multi_valued else "empty": b""}
        seed("empty", values)
        assert store.fetch("empty").values == values

    @pytest.mark.parametrize("kind", AWKWARD_VALUES)
    def test_values_come_back_exactly(self, store: SecretStore, seed: Seed, kind: str) -> None:
        """No byte more, no byte less, nothing interpreted."""
        self._needs("free_values")
        values = {"key" if self.multi_valued else kind: AWKWARD_VALUES[kind] + self.mark.encode()}
        seed(kind, values)
        assert store.fetch(kind).values == values

    def test_binary_values_come_back_exactly(self, store: SecretStore, seed: Seed) -> None:
        """Keystores are secrets, too."""
        self._needs("binary_values")
        values = {"key" if self.multi_valued else "binary": bytes(range(1, 256)) + self.mark.encode()}
        seed("binary", values)
        assert store.fetch("binary").values == values

    def test_awkward_names(self, store: SecretStore, seed: Seed) -> None:
        """A name that the backend takes is listed and fetched as it is."""
        names = [name for name in AWKWARD_NAMES if self.can_hold(name)]
        for name in names:
            seed(name, self.values(name))
        assert set(names) - _all_names(store) == set()
        assert [name for name in names if store.fetch(name).values != self.values(name)] == []

    def test_names_in_either_case_are_two(self, store: SecretStore, seed: Seed) -> None:
        """They would be two files."""
        if not (self.can_hold("CASE") and self.can_hold("case")):
            pytest.skip("the backend takes no upper case, or treats it as lower case")
        seed("CASE", self.values("CASE"))
        seed("case", self.values("case"))
        assert store.fetch("CASE").values == self.values("CASE")
        assert store.fetch("case").values == self.values("case")

    def test_a_new_version_shows_at_once(self, store: SecretStore, seed: Seed) -> None:
        """A store keeps no cache."""
        seed("rotated", self.values("rotated"))
        first = store.fetch("rotated")
        seed("rotated", self.values("rotated", "second"))
        second = store.fetch("rotated")
        assert first.values == self.values("rotated")
        assert second.values == self.values("rotated", "second")
        if self.has_versions:
            assert first.version
            assert second.version != first.version

    def test_tells_when_a_version_was_written(self, store: SecretStore, seed: Seed) -> None:
        """Seconds since the epoch, and not when it was read."""
        self._needs("tells_modified")
        seed("dated", self.values("dated"))
        modified = store.fetch("dated").modified
        assert modified is not None
        assert abs(time.time() - modified) < 60
        assert store.fetch("dated").modified == modified

    def test_threads_agree(self, store: SecretStore, seed: Seed) -> None:
        """Several worker threads call a store at once."""
        names = [f"shared{index}" for index in range(4)]
        for name in names:
            seed(name, self.values(name))
        with ThreadPoolExecutor(8) as pool:
            fetched = list(pool.map(lambda name: (name, store.fetch(name).values), names * 16))
        assert all(values == self.values(name) for name, values in fetched)

    def test_repr_is_silent(self, store: SecretStore, seed: Seed) -> None:
        """Neither the store nor a secret shows a value in ``repr``."""
        seed("silent", self.values("silent"))
        secret = store.fetch("silent")
        assert self.mark not in f"{secret} {secret!r} {store} {store!r}"

    def test_a_refusal_is_access_denied(self, request: pytest.FixtureRequest) -> None:
        """Distinct from not found and from an outage: a stale value is never served after it."""
        self._needs("can_be_denied")
        store, name = request.getfixturevalue("denied")
        with pytest.raises(AccessDenied) as caught:
            store.fetch(name)
        self._silent(caught.value)

    @pytest.mark.parametrize("method", ["fetch", "names", "check"])
    def test_an_unreachable_backend_is_an_outage(self, request: pytest.FixtureRequest, method: str) -> None:
        """One that is noticed in time, and never looks like an empty store."""
        self._needs("can_be_unreachable")
        store = request.getfixturevalue("unreachable")
        call = {"fetch": lambda: store.fetch("known"), "names": lambda: store.names(""), "check": store.check}[method]
        started = time.monotonic()
        with pytest.raises((StoreUnavailable, DeadlineExceeded)) as caught:
            call()
        assert time.monotonic() - started < self.deadline + 1
        self._silent(caught.value)

    # --- helpers ---

    def _needs(self, flag: str) -> None:
        if not getattr(self, flag):
            pytest.skip(f"the store declares {flag} = False")

    def _silent(self, error: StoreError) -> None:
        shown: BaseException | None = error
        while shown is not None:
            assert self.mark not in f"{shown} {shown!r}"
            shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)


def _all_names(store: SecretStore) -> set[str]:
    found: set[str] = set()
    folders = [""]
    while folders:
        names = store.names(folders.pop())
        found |= names.secrets
        folders += names.folders
    return found
