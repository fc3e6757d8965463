"""What holds for every test: a clean environment, no leaked secret, no unexpected warning, nothing left behind."""

import gc
import logging
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest

from secretfs.errors import SecretFSError
from secretfs.linux.runtime_directory import runtime_file
from tests.support.canary import leaked
from tests.support.lacking import require_fuse, require_root
from tests.support.mounted import fuse_mounts

hypothesis.settings.register_profile("default", deadline=None)  # a loaded machine makes tests slow, never red
ExpectLog = Callable[[str], None]
"""Allows, and demands, a log record of WARNING or above whose message matches a regular expression."""

_FOREIGN = re.compile(
    r"VAULT_|BAO_|AWS_|AZURE_|DAPR_|KUBERNETES_|(KUBECONFIG|NAMESPACE|APP_API_TOKEN|POD_NAME|SSL_CERT_FILE|SSL_CERT_DIR)$"
    r"|.*_CA_BUNDLE$|.*_proxy$",
    re.IGNORECASE,
)


class _Recorder(logging.Handler):
    """Keeps what a test logs: all of it as text, and the records that tell of trouble."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self.texts: list[str] = []
        self.trouble: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self.texts += (text, repr(record.args))
        if record.levelno >= logging.WARNING:
            self.trouble.append(f"{record.levelname} {text}")


@pytest.fixture(scope="session", autouse=True)
def clean_environ() -> Iterator[None]:
    """Hide the settings of this machine that stores and SDKs would pick up."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if _FOREIGN.match(name)]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_runtime_logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove the logs of mounts that have no syslog to log to: a log outlives its mount."""
    yield
    ours = runtime_file(tmp_path_factory.getbasetemp())
    with suppress(FileNotFoundError):
        for log in ours.parent.iterdir():
            if log.name.startswith(ours.name):
                log.unlink()


@pytest.fixture
def expected_log() -> list[str]:
    """Hold the patterns given to `expect_log`."""
    return []


@pytest.fixture
def expect_log(expected_log: list[str]) -> ExpectLog:
    """Give the function that announces a warning: ``expect_log("store .* is unavailable")``."""
    return expected_log.append


@pytest.fixture(autouse=True)
def no_leaks(expected_log: list[str], constructed_errors: list[SecretFSError]) -> Iterator[None]:
    """Fail when a test shows a secret in a log or an error, warns unexpectedly, or leaves something behind."""
    recorder = _Recorder()
    loggers = (logging.getLogger(), logging.getLogger("secretfs"))
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    loggers[0].setLevel(logging.DEBUG)
    loggers[0].addHandler(recorder)
    threads = set(threading.enumerate())
    environ = _environ()
    mounts = _own_mounts()
    files = set(os.listdir(tempfile.gettempdir()))  # noqa: PTH208 - names are enough

    yield

    for logger, level, handlers, propagate in before:
        logger.level, logger.handlers, logger.propagate = level, handlers, propagate
        logger.setLevel(level)  # also forgets which levels were enabled
    errors = constructed_errors[:]
    constructed_errors.clear()
    problems = [f"a test secret was logged by {text.split(':')[0]}" for text in recorder.texts if leaked(text)]
    problems += [f"a test secret is in the text of {type(error).__name__}" for error in errors if _shows_secret(error)]
    del errors
    gc.collect()  # so that a ResourceWarning is blamed on the test that caused it
    problems += _unexpected(recorder.trouble, expected_log)
    problems += [f"left a thread: {thread.name}" for thread in set(threading.enumerate()) - threads if _stays(thread)]
    problems += [f"left {name} changed in the environment" for name, _ in environ.items() ^ _environ().items()]
    problems += [f"left a mount: {point}" for point in _own_mounts() - mounts]
    problems += [f"left {name} in the temporary directory" for name in set(os.listdir(tempfile.gettempdir())) - files]  # noqa: PTH208
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def _own_mounts() -> set[str]:
    """Say what is mounted in the directory of this run: beside it, others may mount what they like."""
    return {point for point in fuse_mounts() if point.startswith(tempfile.gettempdir())}


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def _shows_secret(error: BaseException | None) -> bool:
    """Look at an error as ``str``, ``repr`` and a traceback would show it, with the errors it came from."""
    shown: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        shown += (str(error), *getattr(error, "__notes__", ()))
        if isinstance(error, SecretFSError):
            shown.append(repr(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return any(leaked(text) for text in shown)


def _unexpected(trouble: list[str], expected: list[str]) -> Iterator[str]:
    for text in trouble:
        if not any(re.search(pattern, text) for pattern in expected):
            yield f"logged without `expect_log`: {text}"
    for pattern in expected:
        if not any(re.search(pattern, text) for text in trouble):
            yield f"expected to be logged, and was not: {pattern}"


def _stays(thread: threading.Thread) -> bool:
    """Say whether a thread outlives its test. Daemon threads may: trio keeps its idle workers."""
    if not thread.daemon:
        thread.join(timeout=1)
    return thread.is_alive() and not thread.daemon


def _checked(capture: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    read = capture.readouterr

    def readouterr() -> object:
        captured = read()
        assert not leaked(captured.out + captured.err), "a test secret was printed"
        return captured

    capture.readouterr = readouterr  # type: ignore[method-assign, assignment]
    yield capture
    readouterr()


@pytest.fixture(name="capsys")
def _capsys(capsys: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    yield from _checked(capsys)


@pytest.fixture(name="capfd")
def _capfd(capfd: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    yield from _checked(capfd)


@pytest.fixture(scope="session")
def constructed_errors() -> Iterator[list[SecretFSError]]:
    """Collect every `SecretFSError` made while tests run, raised or not."""
    errors: list[SecretFSError] = []

    def record(cls: type[SecretFSError], *args: object, **_: object) -> SecretFSError:
        error = Exception.__new__(cls, *args)
        errors.append(error)
        return error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SecretFSError, "__new__", staticmethod(record))
        yield errors


@pytest.fixture(scope="session", autouse=True)
def _own_tmpdir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give this run, and what it starts, a temporary directory of its own."""
    directory = str(tmp_path_factory.mktemp("tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", directory)
        patch.setattr(tempfile, "tempdir", directory)
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_stays(_own_tmpdir: None) -> Iterator[None]:
    """Fail the last test when fixtures with a wider scope left a mount, a process or a file."""
    mounts = _own_mounts()
    yield
    gc.collect()
    problems = [f"left a mount: {point}" for point in _own_mounts() - mounts]
    problems += [f"left a child process: {command}" for command in _children()]
    problems += [f"left {name} in the temporary directory" for name in os.listdir(tempfile.gettempdir())]  # noqa: PTH208
    if problems:
        pytest.fail("at the end of all tests:\n" + "\n".join(problems), pytrace=False)


def _children() -> Iterator[str]:
    for listing in Path("/proc/self/task").glob("*/children"):
        for pid in listing.read_text(encoding="ascii").split():
            command = Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ")
            yield f"{pid} {command.decode(errors='replace')}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that printed a test secret. The report at teardown has all that was captured for the test."""
    report = yield
    printed = (text for name, text in report.sections if name.startswith("Captured std"))
    if call.when == "teardown" and any(leaked(text) for text in printed):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} printed a test secret"
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let tests marked ``mount`` or ``root`` skip where that is missing, though not in CI."""
    if item.get_closest_marker("mount"):
        require_fuse()
    for root in item.iter_markers("root"):
        require_root(*root.args)


def pytest_configure() -> None:
    """Let signals end what tests start, also under nohup and in the background of a script, where they are ignored."""
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Take what the imports made out of the garbage collector's sight: collecting after each test then costs little."""
    gc.collect()
    gc.freeze()
