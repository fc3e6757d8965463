"""The names of files about a mount."""

from secretfs.linux.runtime_directory import runtime_file


def test_each_mount_point_has_names_of_its_own_that_a_file_can_have() -> None:
    points = ["/", "/m", "/a/b", "/a%2Fb", "/" + "long/" * 80 + "a", "/" + "long/" * 80 + "b", "/" + "grün/" * 40]
    files = [runtime_file(point, suffix) for point in points for suffix in ("", ".log")]
    assert len(set(files)) == len(files)
    assert len({file.parent for file in files}) == 1
    assert all(len(f"{file.name}.1") <= 255 for file in files)
    assert runtime_file("/srv/secrets", ".log").name == "%2Fsrv%2Fsecrets.log"
