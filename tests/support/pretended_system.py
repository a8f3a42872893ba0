"""Files as Linux shows them under /proc and /sys, written to a directory of a test."""

from __future__ import annotations

from pathlib import Path

Groups = dict[str, dict[str, str]]


def version_2(root: Path, group: str, groups: Groups, mounted: str = "/") -> None:
    """One hierarchy of control groups.

    Args:
        root: the directory to write to.
        group: the process's own group, as /proc names it.
        groups: path below the mount point -> file name -> content.
        mounted: the group that is mounted.
    """
    _proc(root, f"0::{group}\n", f"30 24 0:26 {mounted} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    _files(root / "sys/fs/cgroup", groups)


def version_1(root: Path, controller: str, group: str, groups: Groups) -> None:
    """The hierarchy of one controller, beside an unused one of version 2."""
    _proc(
        root,
        f"5:cpuset:/\n4:{controller}:{group}\n0::/\n",
        f"35 31 0:32 / /sys/fs/cgroup/{controller} rw,relatime - cgroup cgroup rw,{controller}\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
    )
    _files(root / "sys/fs/cgroup" / controller, groups)
    (root / "sys/fs/cgroup/unified").mkdir(parents=True, exist_ok=True)


def _proc(root: Path, cgroup: str, mountinfo: str) -> None:
    directory = root / "proc/self"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup").write_text(cgroup)
    (directory / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda rw\n" + mountinfo)


def _files(top: Path, groups: Groups) -> None:
    for path, files in groups.items():
        directory = top / path.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name).write_text(content + "\n")
