"""What mount(8) asks, as flags: the translation alone. What comes of it is in tests/behaviour/test_fstab.py."""

import click
import pytest

from secretfs.cli.main import is_for_mount
from secretfs.cli.mount import mount_command
from secretfs.cli.mount_helper import asks_for_help, help_text, mount_options, translate
from secretfs.errors import ConfigurationError

OPTIONS = [option for option in mount_command.params if isinstance(option, click.Option)]


def flags(*arguments: str) -> list[str]:
    return translate(arguments, mount_command).flags


def test_the_first_field_is_the_directory_of_the_manifests() -> None:
    asked = translate(["/etc/secretfs/components", "/srv/secrets"], mount_command)
    assert asked.flags == ["--resources-path", "/etc/secretfs/components", "--", "/srv/secrets"]
    assert asked.source == "/etc/secretfs/components"
    assert not asked.pretend


@pytest.mark.parametrize(("spec", "source"), [("none", "none"), ("secretfs", "secretfs"), ("", "secretfs")])
def test_the_first_field_may_say_nothing(spec: str, source: str) -> None:
    asked = translate([spec, "/srv/secrets"], mount_command)
    assert (asked.flags, asked.source) == (["--", "/srv/secrets"], source)


def test_another_first_field_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match="'vault' is nothing that can be mounted; name the directory of the man"
    ):
        flags("vault", "/srv/secrets")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_each_flag_of_mount_is_an_option(option: click.Option) -> None:
    (flag,) = (spelling for spelling in option.opts if spelling.startswith("--"))
    value = "" if option.is_flag else "=7"
    for name in (flag[2:], flag[2:].replace("-", "_")):
        assert flags("", "/m", "-o", name + value) == [flag + value, "--", "/m"]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_an_option_has_a_value_if_the_flag_has_one(option: click.Option) -> None:
    name = max(option.opts, key=len)[2:]
    wrong, said = (f"{name}=1", "takes no value") if option.is_flag else (name, f"needs a value: {name}=")
    with pytest.raises(ConfigurationError, match=f"the mount option {name} {said}"):
        flags("", "/m", "-o", wrong)


def test_options_of_mount_itself_and_of_systemd_are_left_to_them() -> None:
    ours = "rw,defaults,_netdev,nofail,noauto,user,user=ann,nosuid,dev,suid,exec,relatime,default_permissions,comment=x"
    assert flags("", "/m", "-o", f"{ours},x-systemd.automount,x-systemd.idle-timeout=2,X-mount.mkdir") == ["--", "/m"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("alow_other", r"unknown mount option 'alow_other' \(did you mean allow-other\?\)"),
        ("netdev", r"unknown mount option 'netdev' \(did you mean _netdev\?\)"),
        ("password=x", r"unknown mount option 'password'$"),
        ("source=x", r"unknown mount option 'source'"),
        ("remount", "a secretfs is not mounted again for other options"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_right_name(option: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        flags("", "/m", "-o", option)


def test_a_sloppy_request_may_have_unknown_options() -> None:
    assert flags("", "/m", "-s", "-o", "alow_other,ttl=3s") == ["--ttl=3s", "--", "/m"]


def test_commas_in_quotes_and_further_options_belong_to_the_request() -> None:
    assert flags("", "/m", "-o", 'config="/a,b.yaml",ro', "-o", "config=/c.yaml") == [
        "--config=/a,b.yaml",
        "--config=/c.yaml",
        "--",
        "/m",
    ]


def test_switches_may_stand_anywhere() -> None:
    assert flags("-n", "", "-v", "/m", "-t", "secretfs") == ["--", "/m"]
    assert translate(["", "/m", "-f"], mount_command).pretend


@pytest.mark.parametrize(
    "arguments",
    [["/c", "/m"], ["/c", "/m", "-sv", "-o", "ttl=1s", "-o", "alow_other"], ["-o", "ro,mode=0440", "none", "/m"]],
)
def test_a_request_can_be_made_again(arguments: list[str]) -> None:
    asked = translate(arguments, mount_command)
    assert is_for_mount(asked.again)
    assert translate(asked.again, mount_command) == asked


@pytest.mark.parametrize("arguments", [[], ["/m"], ["", "/m", "more"], ["", "/m", "-N", "7"], ["", "/m", "-o"]])
def test_what_mount_would_not_ask_is_refused(arguments: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"usage: mount\.secretfs SPEC|option -[No] "):
        translate(arguments, mount_command)


@pytest.mark.parametrize(
    ("arguments", "is_one"),
    [
        (["/etc/secretfs/components", "/srv/secrets", "-o", "rw"], True),
        (["", "/srv/secrets", "-o", "rw"], True),
        (["mount", "/srv/secrets", "-o", "rw"], False),
        (["mont", "/srv/secrets"], False),
        (["--version"], False),
        ([], False),
    ],
)
def test_a_request_is_told_from_a_command(arguments: list[str], *, is_one: bool) -> None:
    assert is_for_mount(arguments) == is_one


@pytest.mark.parametrize(
    ("arguments", "asks"),
    [
        (["none", "/m", "-o", "help"], True),
        (["none", "/m", "-o", "rw,help"], True),
        (["--help"], True),
        (["-h"], True),
        (["none", "/m", "-o", "app-id=help"], False),
        (["help", "/m"], False),
    ],
)
def test_a_request_for_help(arguments: list[str], *, asks: bool) -> None:
    assert asks_for_help(arguments) == asks


def test_help_has_every_option_as_it_is_written() -> None:
    text = help_text(mount_command)
    assert text.startswith("Usage: mount.secretfs SPEC DIRECTORY")
    assert {name.partition("=")[0] for name, _ in mount_options(mount_command)} == {
        max(option.opts, key=len).removeprefix("--") for option in OPTIONS
    }
    for written in ("app-id=ID", "allow-other", "ttl=TIME"):
        assert f"  {written} " in text
    assert "\b" not in text
