"""What each of several threads hears of changes that are made together; on a real mount it is tests/containers."""

import threading
from pathlib import Path

from secretfs.daemon.app_documents import locked
from secretfs.daemon.group_commit import GroupCommit
from secretfs.errors import SecretFSError
from tests.support.waiting import wait_until


def test_each_thread_raises_an_error_of_its_own(tmp_path: Path) -> None:
    """One instance that many raise would have the traceback of all, and who adds to it would change that of others."""
    documents = tmp_path / "apps"
    documents.mkdir()
    commit = GroupCommit(tmp_path / "no-mount", documents)
    raised: list[SecretFSError] = []

    def change(name: str) -> None:
        try:
            commit.change(documents / name, b"kind: App\n")
        except SecretFSError as error:
            raised.append(error)

    threads = [threading.Thread(target=change, args=(f"{number}.yaml",)) for number in range(3)]
    with locked(documents):
        for thread in threads:
            thread.start()
        wait_until(lambda: len(commit._waiting) == len(threads))
    for thread in threads:
        thread.join()
    assert len({id(error) for error in raised}) == len(threads)
    assert len({(type(error), str(error)) for error in raised}) == 1
    assert [path.name for path in documents.iterdir() if path.suffix == ".yaml"] == []
