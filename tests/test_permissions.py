import pytest

from secretfs.permissions import PermissionRule, Permissions, ViewPermissions, parse_mode

DEFAULT = Permissions(1000, 1000, 0o400)


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("vault/tls/*", "vault/tls/crt", True),
        ("vault/tls/*", "vault/tls", False),
        ("vault/tls/*", "vault/tls/deep/crt", True),  # a secret "tls/deep" with its keys, or a key of it
        ("vault/tls", "vault/tls/crt", True),  # a secret, and so its keys
        ("vault/ssh/id_*", "vault/ssh/id_rsa", True),
        ("vault/ssh/id_*", "vault/ssh/known_hosts", False),
        ("*/tls", "kubernetes/tls", True),
        ("*/tls", "a/b/tls", False),
        ("**/tls", "a/b/tls", True),
        ("vault/?", "vault/a", True),
        ("vault/?", "vault/ab", False),
        ("vault/a.c", "vault/abc", False),
        ("vault/a[b]", "vault/a[b]", True),
        ("vault/a\nb", "vault/a\nb", True),
    ],
)
def test_globs(glob: str, path: str, *, matches: bool) -> None:
    assert PermissionRule(glob).matches(path) is matches


def test_the_first_rule_that_matches_decides() -> None:
    rules = [PermissionRule("vault/tls/*", gid=7), PermissionRule("vault/**", gid=8, mode=0o440)]
    view = ViewPermissions(DEFAULT, rules)
    assert view.of_file("vault/tls/crt") == Permissions(1000, 7, 0o400)
    assert view.of_file("vault/db/password") == Permissions(1000, 8, 0o440)
    assert view.of_file("env/HOME") == DEFAULT


def test_a_file_of_many_secrets_is_as_closed_as_the_most_closed_of_them() -> None:
    wide = Permissions(1000, 1000, 0o440)
    assert ViewPermissions(wide).of_bulk_file() == wide
    assert ViewPermissions(wide, [PermissionRule("vault/ssh", mode=0o400)]).of_bulk_file() == wide._replace(mode=0o400)


@pytest.mark.parametrize(("file", "directory"), [(0o400, 0o500), (0o440, 0o550), (0o444, 0o555)])
def test_a_directory_can_be_entered_by_the_readers_of_its_files(file: int, directory: int) -> None:
    assert parse_mode(f"{file:04o}") == file
    assert ViewPermissions(DEFAULT._replace(mode=file)).of_directory().mode == directory


@pytest.mark.parametrize(
    ("rule", "mode"),
    [
        (PermissionRule("a", gid=7, mode=0o440), 0o511),
        (PermissionRule("a", mode=0o440), 0o511),
        (PermissionRule("a", gid=1000), 0o500),
        (PermissionRule("a", mode=0o400), 0o500),
    ],
)
def test_a_rule_that_lets_others_in_lets_them_through_the_directories(rule: PermissionRule, mode: int) -> None:
    assert ViewPermissions(DEFAULT, [rule]).of_directory().mode == mode


@pytest.mark.parametrize("text", ["", "rw", "0600", "0755", "8", "04440"])
def test_no_other_mode_is_possible(text: str) -> None:
    with pytest.raises(ValueError, match="0440"):
        parse_mode(text)
