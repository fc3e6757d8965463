"""The command line on a terminal: colours, and Ctrl-C."""

from pathlib import Path

import pytest

from tests.support import fake_type
from tests.support.fake_type import Fakes
from tests.support.manifests import component
from tests.support.terminal import on_terminal


@pytest.mark.parametrize(("env", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)])
def test_no_colour_if_it_is_asked_for(tmp_path: Path, env: dict[str, str], *, is_coloured: bool) -> None:
    component(tmp_path, "env", "local.env", {"prefx": "A_"})
    with on_terminal("check", "--resources-path", str(tmp_path), env={"NO_COLOR": "", **env}, columns=200) as terminal:
        assert terminal.ends() == 1
        assert "warning: " in terminal.text
        assert ("\x1b[33m" in terminal.raw) == is_coloured


def test_control_c_ends_a_check_of_stores_that_do_not_answer(tmp_path: Path) -> None:
    """At once, though a store has minutes to answer: the terminal is as before, and nothing is left on it."""
    with fake_type.installed(tmp_path / "site") as site:
        fakes = Fakes(tmp_path / "components", site, {"PYTHONPATH": str(site)})
        fakes.add("slow", {"fail": "check=hang"}, spec={"initTimeout": "10m"})
        flags = ["--connect", "--resources-path", str(fakes.directory)]
        with on_terminal("check", *flags, env=fakes.env) as terminal:
            terminal.shows("connecting to the stores")
            terminal.press("\x03")
            assert terminal.ends() == 130
            assert "Traceback" not in terminal.text
            assert "\r\x1b[K" in terminal.raw
