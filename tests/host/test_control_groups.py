"""Control groups read from a pretended system."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstlight.host.control_groups import ControlGroup, control_groups
from tests.support.pretended_system import version_1, version_2


def test_version_2_from_the_inside_out(tmp_path):
    version_2(tmp_path, "/user/session", {"/": {}, "/user": {}, "/user/session": {}})
    top = tmp_path / "sys/fs/cgroup"
    assert list(control_groups("memory", tmp_path)) == [
        ControlGroup(top / "user/session", 2),
        ControlGroup(top / "user", 2),
        ControlGroup(top, 2),
    ]


def test_version_1_by_controller(tmp_path):
    version_1(tmp_path, "memory", "/box", {"/": {}, "/box": {}})
    names = [group.directory.name for group in control_groups("memory", tmp_path)]
    # Version 2 is mounted beside it and might have the controller.
    assert names == ["box", "memory", "unified"]
    assert [group.version for group in control_groups("cpu", tmp_path)] == [2]


def test_container_that_sees_its_own_group_only(tmp_path):
    # The host's name of the group is not visible inside; its own group is what is mounted.
    version_2(tmp_path, "/host/docker/abc", {"/": {}}, mounted="/docker/abc")
    assert [g.directory for g in control_groups("cpu", tmp_path)] == [tmp_path / "sys/fs/cgroup"]
    version_2(tmp_path, "/docker/abc/inner", {"/inner": {}}, mounted="/docker/abc")
    assert [g.directory.name for g in control_groups("cpu", tmp_path)] == ["inner", "cgroup"]
    version_2(tmp_path, "/../outside", {"/": {}})
    assert [g.directory for g in control_groups("cpu", tmp_path)] == [tmp_path / "sys/fs/cgroup"]


def test_mount_point_with_a_space(tmp_path):
    directory = tmp_path / "odd place"
    directory.mkdir()
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        "30 24 0:26 / /odd\\040place rw - cgroup2 cgroup2 rw\n"
    )
    assert [group.directory for group in control_groups("cpu", tmp_path)] == [directory]


@pytest.mark.parametrize("text", ["", "nonsense", "0::", ":::::", "\n\n"])
def test_nonsense_is_ignored(tmp_path, text):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(text)
    (tmp_path / "proc/self/mountinfo").write_text(text)
    assert not list(control_groups("memory", tmp_path))


def test_no_control_groups(tmp_path):
    assert not list(control_groups("memory", tmp_path))


def test_reading(tmp_path):
    group = ControlGroup(tmp_path, 2)
    (tmp_path / "number").write_text("12\n")
    (tmp_path / "word").write_text("max\n")
    assert group.read("word") == "max"
    assert group.read_integer("number") == 12
    assert group.read_integer("word") is None
    assert group.read_integer("absent") is None
    assert group.read("absent") is None


def test_this_machine():
    for controller in ("memory", "cpu"):
        for group in control_groups(controller):
            assert group.version in (1, 2)
            assert isinstance(group.directory, Path)
