"""The registry: what order stores are opened in, what fails, what it says, and that all are closed."""

import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from secretfs.cache.freshness import Freshness
from secretfs.cache.health import FAILURES, SHORTEST, Kind, State
from secretfs.dapr.declaration import Declaration, load
from secretfs.errors import AccessDenied, ConfigurationError, DeadlineExceeded, StoreError, StoreUnavailable
from secretfs.registry.opening import ComponentsFailed, Registry, check_references, open_registry
from tests.conftest import ExpectLog
from tests.support import fake_type
from tests.support.canary import secret
from tests.support.fake_type import Fakes, FakeStore, reference

IGNORED = {"ignoreErrors": True}
WITHOUT_ITS_TEXT = "a defect in secretfs or in a store"


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[Fakes]:
    with fake_type.installed(tmp_path / "site") as site:
        yield Fakes(tmp_path / "components", site)


def declared(fakes: Fakes, app_id: str = "") -> Declaration:
    return load([fakes.directory], [], app_id, {})


def opening(fakes: Fakes, app_id: str = "") -> AbstractAsyncContextManager[Registry]:
    declaration = declared(fakes, app_id)
    return open_registry(declaration.components, declaration.context, Freshness())


def told(registry: Registry, fakes: Fakes) -> list[str]:
    return [str(failure).replace(f"{fakes.directory}/", "") for failure in registry.failures]


def opened(kind: str = "open") -> list[str]:
    return [event.split()[1] for event in fake_type.events if event.startswith(kind)]


class TestOrder:
    async def test_each_after_the_one_it_takes_its_credentials_from(self, fakes: Fakes) -> None:
        fakes.add("a-last", {"token": reference("deep", "k")}, secret_store="b-middle")
        fakes.add(
            "b-middle", {"token": reference("key"), "secrets": stored("deep", k="from-b")}, secret_store="c-first"
        )
        fakes.add("c-first", {"secrets": stored("key", key="from-c"), "token": "literal"})
        async with opening(fakes) as registry:
            registry.require()
            assert list(registry.stores) == ["a-last", "b-middle", "c-first"]
        assert opened() == ["c-first", "b-middle", "a-last"]
        assert fake_type.tokens == {"c-first": "literal", "b-middle": secret("from-c"), "a-last": secret("from-b")}

    async def test_a_store_is_asked_only_once_it_is_known_to_answer(self, fakes: Fakes) -> None:
        fakes.add("needy", {"token": reference("key")}, secret_store="source")
        fakes.add("source", {"secrets": stored("key", key="x")})
        async with opening(fakes):
            assert fake_type.events == ["open source", "check source", "open needy", "check needy"]

    async def test_a_builtin_store_takes_its_settings_from_a_file(self, fakes: Fakes, tmp_path: Path) -> None:
        (tmp_path / "boot.json").write_text(f'{{"path": "{tmp_path}/real.json"}}', encoding="utf-8")
        (tmp_path / "real.json").write_text('{"user": "me"}', encoding="utf-8")
        fakes.add("boot", {"secretsFile": tmp_path / "boot.json"}, type="local.file")
        fakes.add("app", {"secretsFile": reference("path")}, type="local.file", secret_store="boot")
        async with opening(fakes) as registry:
            registry.require()
            assert registry.stores["app"].store.fetch("user").values == {"user": b"me"}

    async def test_the_one_waiting_does_not_use_up_its_own_init_timeout(self, fakes: Fakes) -> None:
        fakes.add("needy", {"token": reference("key")}, secret_store="slow", spec={"initTimeout": "100ms"})
        fakes.add("slow", {"secrets": stored("key", key="x"), "fail": "check=hang"})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(release_after, 0.3)
            async with opening(fakes) as registry:
                assert registry.failures == []


async def release_after(seconds: float) -> None:
    await trio.sleep(seconds)
    fake_type.released.set()


def stored(name: str, **values: str) -> dict[str, object]:
    """Make the value of ``secrets``: one secret with marked values."""
    return {"value": {name: {key: secret(value) for key, value in values.items()}}}


class TestBrokenReferences:
    async def test_a_store_that_is_not_declared(self, fakes: Fakes) -> None:
        fakes.add("a", {"token": reference("x")}, secret_store="b")
        fakes.add("b", {"token": reference("x")}, secret_store="c")
        async with opening(fakes) as registry:
            assert told(registry, fakes) == [
                "a.yaml:1: a -> b -> c: there is no secret store c for this app id to take a secret from (component a)",
                "b.yaml:1: b -> c: there is no secret store c for this app id to take a secret from (component b)",
            ]
        assert opened() == []

    async def test_a_store_out_of_this_apps_scope_counts_as_missing_and_is_never_opened(self, fakes: Fakes) -> None:
        fakes.add("a", {"token": reference("x")}, secret_store="b")
        fakes.add("b", {"secrets": stored("x", x="x")}, scopes=("other",))
        async with opening(fakes, "shop") as registry:
            assert told(registry, fakes) == [
                "a.yaml:1: a -> b: there is no secret store b for this app id to take a secret from (component a)"
            ]
        assert opened() == []
        async with opening(fakes, "other") as registry:
            assert registry.failures == []

    @pytest.mark.parametrize(
        ("references", "chains"),
        [
            ({"a": "a"}, ["a -> a"]),
            ({"a": "b", "b": "a"}, ["a -> b -> a", "b -> a -> b"]),
            ({"a": "b", "b": "c", "c": "b"}, ["a -> b -> c -> b", "b -> c -> b", "c -> b -> c"]),
        ],
    )
    async def test_a_circle(self, fakes: Fakes, references: dict[str, str], chains: list[str]) -> None:
        for name, needed in references.items():
            fakes.add(name, {"token": reference("x")}, secret_store=needed)
        fakes.add("sound")
        async with opening(fakes) as registry:
            assert [str(failure.error).split(": ", 1)[1] for failure in registry.failures] == [
                f"{chain}: these stores wait for each other's secrets" for chain in chains
            ]
            with pytest.raises(ComponentsFailed) as caught:
                registry.require()
        assert caught.value.exit_code == ConfigurationError.exit_code
        assert opened() == ["sound"]

    async def test_a_reference_that_nothing_needs_is_no_reference(self, fakes: Fakes) -> None:
        fakes.add("a", {"token": "literal"}, secret_store="missing")
        assert check_references(declared(fakes).components) == []
        async with opening(fakes) as registry:
            assert list(registry.stores) == ["a"]

    async def test_no_store_named_at_all(self, fakes: Fakes) -> None:
        fakes.add("a", {"token": reference("x")})
        async with opening(fakes) as registry:
            assert told(registry, fakes) == [
                (
                    "a.yaml:9: token has a secretKeyRef, but the component does not say of which store:"
                    " set auth.secretStore (component a)"
                )
            ]

    async def test_a_secret_that_is_not_there_leaves_the_value_and_is_noted(self, fakes: Fakes) -> None:
        fakes.add("a", {"token": {"value": "literal"} | reference("nothing")}, secret_store="b")
        fakes.add("b")
        async with opening(fakes) as registry:
            assert [notice.message for notice in registry.notices] == [
                "secretKeyRef of token: there is no secret nothing in b; it stays with the value in the manifest"
            ]
        assert fake_type.tokens["a"] == "literal"

    async def test_secret_scopes_do_not_apply_to_references(self, fakes: Fakes, tmp_path: Path) -> None:
        config = tmp_path / "config.yaml"
        config.write_text(
            "apiVersion: dapr.io/v1alpha1\nkind: Configuration\n"
            "spec: {secrets: {scopes: [{storeName: b, defaultAccess: deny}]}}\n",
            encoding="utf-8",
        )
        fakes.add("a", {"token": reference("key")}, secret_store="b")
        fakes.add("b", {"secrets": stored("key", key="x")})
        declaration = load([fakes.directory], [config], "", {})
        async with open_registry(declaration.components, declaration.context, Freshness()) as registry:
            registry.require()
        assert fake_type.tokens["a"] == secret("x")


class TestReadingReferences:
    """References are read as everybody reads: with the deadline, statistics and circuit breaker of their store."""

    async def test_they_count(self, fakes: Fakes) -> None:
        fakes.add("needy", {"token": reference("x", "k")}, secret_store="source")
        fakes.add("source", secrets={"value": '{"x": {"k": "v"}}'})
        async with opening(fakes) as registry:
            registry.require()
            assert registry.stores["source"].client.stats.asked == {Kind.FETCH: 1}

    async def test_one_that_hangs_has_the_deadline_of_its_store(self, fakes: Fakes, expect_log: ExpectLog) -> None:
        expect_log("source: no answer within 100ms")
        fakes.add("needy", {"token": reference("x", "k")}, secret_store="source", spec={"initTimeout": "50s"})
        fakes.add("source", {"fail": "fetch:x=hang"}, annotations={"secretfs/deadline": "100ms"})
        async with opening(fakes) as registry:
            assert [str(failure.error) for failure in registry.failures] == ["no answer within 100ms"]

    async def test_a_store_that_is_down_is_not_asked_and_one_that_is_back_is(
        self, fakes: Fakes, mock_clock: MockClock, expect_log: ExpectLog
    ) -> None:
        """Whether it is served or only others refer to it: so nothing else may be needed to find out."""
        expect_log("source: down")
        fakes.add("source", secrets={"value": '{"x": {"k": "v"}}'})
        async with opening(fakes) as registry:
            client = registry.stores["source"].client
            store = cast("FakeStore", client.store)
            store.fail_with = StoreUnavailable("down")
            for _ in range(FAILURES + 1):
                with pytest.raises(StoreUnavailable):
                    await client.fetch_reference("x")
            assert store.calls["fetch:x"] == FAILURES
            store.fail_with = None
            mock_clock.jump(2 * SHORTEST)
            assert (await client.fetch_reference("x")).values == {"k": b"v"}


class TestIgnoreErrors:
    """Which failures stop a mount, and which stores are there all the same."""

    async def test_a_store_that_does_not_accept_us_stops_everything(self, fakes: Fakes) -> None:
        fakes.add("bad", {"fail": "check=AccessDenied"})
        fakes.add("good")
        async with opening(fakes) as registry:
            with pytest.raises(ComponentsFailed) as caught:
                registry.require()
        assert str(caught.value) == f"{fakes.directory}/bad.yaml:1: component bad: the fake says so"
        assert caught.value.exit_code == AccessDenied.exit_code

    async def test_ignored_it_stays_open_for_it_may_answer_later(self, fakes: Fakes) -> None:
        fakes.add("bad", {"fail": "check=StoreUnavailable"}, spec=IGNORED)
        fakes.add("good")
        async with opening(fakes) as registry:
            registry.require()
            assert list(registry.stores) == ["bad", "good"]
            assert told(registry, fakes) == ["bad.yaml:1: component bad: the fake says so"]

    async def test_ignored_it_is_in_doubt_from_the_start(self, fakes: Fakes) -> None:
        fakes.add("bad", {"fail": "check=StoreUnavailable"}, spec=IGNORED)
        fakes.add("refused", {"fail": "check=AccessDenied"}, spec=IGNORED)
        async with opening(fakes) as registry:
            states = {name: opened.client.state for name, opened in registry.stores.items()}
            assert states == {"bad": State.IN_DOUBT, "refused": State.REFUSED}

    @pytest.mark.parametrize(
        ("fail", "error", "reason"),
        [
            ("open=ConfigurationError", StoreError, "token: cannot be used"),
            ("open=StoreUnavailable", StoreUnavailable, "the fake says so"),
            ("open=AccessDenied", AccessDenied, "the fake says so"),
        ],
    )
    async def test_ignored_and_not_to_be_opened_it_answers_with_the_reason(
        self, fakes: Fakes, fail: str, error: type[StoreError], reason: str
    ) -> None:
        fakes.add("bad", {"fail": fail}, spec=IGNORED)
        fakes.add("good")
        async with opening(fakes) as registry:
            registry.require()
            assert list(registry.stores) == ["bad", "good"]
            assert len(registry.failures) == 1
            bad = registry.stores["bad"]
            assert bad.was_never_open
            client = bad.client
            calls: list[Callable[[], Awaitable[object]]] = [partial(client.names, ""), partial(client.fetch, "x")]
            for call in (*calls, client.check):
                with pytest.raises(error, match=reason) as caught:
                    await call()
                assert type(caught.value) is error
            statistics = client.statistics(names=0, cached=0, stale=0)
            assert statistics.state is (State.REFUSED if error is AccessDenied else State.DOWN)
            assert statistics.last_error is not None
            assert reason in statistics.last_error.message
            assert statistics.next_try is None

    @pytest.mark.parametrize(("fail", "there"), [("open=ConfigurationError", []), ("check=AccessDenied", ["pod"])])
    async def test_the_store_of_every_pod_is_not_missed(self, fakes: Fakes, fail: str, there: list[str]) -> None:
        """Its SDK may not be installed, and the pod may not be allowed to read secrets: nobody asked for it."""
        fakes.add("pod", {"fail": fail}, spec=IGNORED)
        declaration = declared(fakes)
        components = [replace(component, builtin=True) for component in declaration.components]
        async with open_registry(components, declaration.context, Freshness()) as registry:
            registry.require()
            assert [failure.component.name for failure in registry.failures] == ["pod"]
            assert list(registry.stores) == there
            assert all(opened.client.state is State.OK for opened in registry.stores.values())

    @pytest.mark.parametrize(
        ("source", "needy", "fatal"),
        [(False, False, ["needy", "source"]), (True, False, ["needy"]), (False, True, ["source"]), (True, True, [])],
    )
    async def test_a_store_whose_source_failed(
        self, fakes: Fakes, *, source: bool, needy: bool, fatal: list[str]
    ) -> None:
        fakes.add("needy", {"token": reference("x")}, secret_store="source", spec={"ignoreErrors": needy})
        fakes.add("source", {"fail": "open=StoreUnavailable"}, spec={"ignoreErrors": source})
        async with opening(fakes) as registry:
            assert told(registry, fakes) == [
                "needy.yaml:1: component needy: it takes its credentials from source, which could not be opened",
                "source.yaml:1: component source: the fake says so",
            ]
            shown = [name for name, ignored in (("needy", needy), ("source", source)) if ignored]
            assert [name for name, it in registry.stores.items() if it.was_never_open] == shown
            if not fatal:
                registry.require()
                return
            with pytest.raises(ComponentsFailed) as caught:
                registry.require()
        assert re.findall(r"component (\w+):", str(caught.value)) == fatal

    async def test_a_source_that_opens_but_does_not_answer_is_asked_all_the_same(self, fakes: Fakes) -> None:
        fakes.add("needy", {"token": reference("x")}, secret_store="source", spec=IGNORED)
        fakes.add("source", {"fail": "check=StoreUnavailable fetch:x=StoreUnavailable"}, spec=IGNORED)
        async with opening(fakes) as registry:
            assert [failure.component.name for failure in registry.failures] == ["needy", "source"]
            assert [(name, it.was_never_open) for name, it in registry.stores.items()] == [
                ("needy", True),
                ("source", False),
            ]

    async def test_a_broken_reference_may_be_ignored_too(self, fakes: Fakes) -> None:
        fakes.add("a", {"token": reference("x")}, secret_store="missing", spec=IGNORED)
        fakes.add("b")
        async with opening(fakes) as registry:
            registry.require()
            assert [(name, it.was_never_open) for name, it in registry.stores.items()] == [("a", True), ("b", False)]

    async def test_the_exit_code_is_that_of_the_first_failure_that_counts(self, fakes: Fakes) -> None:
        fakes.add("a", {"fail": "open=ConfigurationError"}, spec=IGNORED)
        fakes.add("b", {"fail": "check=StoreUnavailable"})
        fakes.add("c", {"fail": "open=ConfigurationError"})
        async with opening(fakes) as registry:
            with pytest.raises(ComponentsFailed) as caught:
                registry.require()
        assert caught.value.exit_code == 4
        assert [line.split(":")[0].rsplit("/")[-1] for line in str(caught.value).splitlines()] == ["b.yaml", "c.yaml"]


class TestTimeouts:
    @pytest.mark.parametrize("where", ["open", "check"])
    async def test_an_overrun_is_told_as_dapr_does(self, fakes: Fakes, where: str) -> None:
        fakes.add("slow", {"fail": f"{where}=hang"}, spec={"initTimeout": "50ms"})
        fakes.add("good")
        async with opening(fakes) as registry:
            (failure,) = registry.failures
            assert isinstance(failure.error, DeadlineExceeded)
            told, _, more = str(failure.error).partition(": ")
            assert told == "init timeout for component slow (secretstores.fake/v1)"
            assert more == "no answer within 50ms (initTimeout)"
            assert "good" in registry.stores


class TestDefects:
    @pytest.mark.parametrize("where", ["open", "check"])
    @pytest.mark.parametrize("kind", ["ValueError", "OSError"])
    async def test_one_in_a_store_fails_that_store_and_withholds_the_text(
        self, fakes: Fakes, expect_log: ExpectLog, where: str, kind: str
    ) -> None:
        expect_log(WITHOUT_ITS_TEXT)
        fakes.add("bad", {"fail": f"{where}={kind}"})
        fakes.add("good")
        async with opening(fakes) as registry:
            assert told(registry, fakes) == [f"bad.yaml:1: component bad: unexpected {kind}; the log has the place"]
            assert registry.failures[0].error.exit_code == StoreError.exit_code
            assert "good" in registry.stores

    async def test_an_unknown_type(self, fakes: Fakes) -> None:
        fakes.add("bad", type="secretstores.fakes")
        async with opening(fakes) as registry:
            assert told(registry, fakes) == [
                (
                    "bad.yaml:1: couldn't find secret store secretstores.fakes/v1 (did you mean secretstores.fake?)"
                    " (component bad)"
                )
            ]


class TestClosing:
    async def test_all_are_closed_even_when_one_raises(self, fakes: Fakes, expect_log: ExpectLog) -> None:
        expect_log(WITHOUT_ITS_TEXT)
        fakes.add("a")
        fakes.add("bad", {"fail": "close=ValueError"})
        fakes.add("c")
        async with opening(fakes):
            assert opened("close") == []
        assert sorted(opened("close")) == ["a", "bad", "c"]

    async def test_one_that_failed_its_check_is_closed_too(self, fakes: Fakes) -> None:
        fakes.add("bad", {"fail": "check=AccessDenied"})
        async with opening(fakes):
            pass
        assert opened("close") == ["bad"]

    def test_one_that_hangs_is_left_behind(self, fakes: Fakes) -> None:
        clock = trio.testing.MockClock(rate=1)
        for name in ("a", "c"):
            fakes.add(name)
        fakes.add("bad", {"fail": "close=hang"})

        async def open_and_close() -> None:
            async with opening(fakes):
                clock.autojump_threshold = 0.1  # from here on nothing takes as long but the one that hangs

        trio.run(open_and_close, clock=clock)
        assert sorted(opened("close")) == ["a", "bad", "c"]

    async def test_also_when_the_mount_fails(self, fakes: Fakes) -> None:
        fakes.add("a")
        with pytest.raises(OSError, match="gone"):
            async with opening(fakes):
                raise OSError("gone")
        assert opened("close") == ["a"]

    async def test_also_when_cancelled(self, fakes: Fakes) -> None:
        fakes.add("a")
        with trio.CancelScope() as scope:
            async with opening(fakes):
                scope.cancel()
                await trio.sleep_forever()
        assert opened("close") == ["a"]


class TestNotices:
    async def test_unknown_properties_are_named_with_their_place_and_the_nearest_name(self, fakes: Fakes) -> None:
        fakes.add("b", {"tokn": "x", "something": "x"})
        fakes.add("a", {"ACCESSTOKEN": "fine", "acessToken": "x"})
        async with opening(fakes) as registry:
            notices = [str(notice).removeprefix(f"{fakes.directory}/") for notice in registry.notices]
        assert notices == [
            "a.yaml:11: unknown property acessToken is ignored (did you mean accessToken?)",
            "b.yaml:9: unknown property tokn is ignored (did you mean token?)",
            "b.yaml:11: unknown property something is ignored",
        ]

    async def test_they_come_in_the_order_of_the_components_however_long_each_takes(self, fakes: Fakes) -> None:
        fakes.add("a", {"x1": "x", "token": reference("x")}, secret_store="c")
        fakes.add("b", {"x2": "x"})
        fakes.add("c", {"x3": "x", "secrets": stored("x", x="x")})
        async with opening(fakes) as registry:
            assert [notice.message.split()[2] for notice in registry.notices] == ["x1", "x2", "x3"]


async def test_tells_of_each_component_once(fakes: Fakes) -> None:
    fakes.add("broken", {"token": reference("x")}, secret_store="missing")
    fakes.add("failing", {"fail": "check=AccessDenied"})
    fakes.add("good")
    declaration = declared(fakes)
    seen: list[str] = []
    async with open_registry(
        declaration.components, declaration.context, Freshness(), lambda component: seen.append(component.name)
    ):
        assert sorted(seen) == ["broken", "failing", "good"]


async def test_annotations_decide_freshness(fakes: Fakes) -> None:
    fakes.add("a", annotations={"secretfs/ttl": "7s"})
    fakes.add("b", annotations={"secretfs/tll": "7s"})
    async with opening(fakes) as registry:
        assert registry.stores["a"].freshness == Freshness(ttl=7)
        assert told(registry, fakes) == [
            "b.yaml:6: unknown annotation secretfs/tll (did you mean secretfs/ttl?) (component b)"
        ]
