"""The Linux control groups that confine this process.

A control group limits memory and processor time, for instance of a container. Groups are nested,
and every one on the way up to the root limits what is below it. Version 2 has one hierarchy,
version 1 one for each controller, and a machine may mount both.

Sources: cgroups(7); proc_pid_cgroup(5); proc_pid_mountinfo(5); the kernel's
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class ControlGroup:
    """One group that holds this process for one controller.

    Attributes:
        directory: where its files lie.
        version: 1 or 2, which decides how its files are called.
    """

    directory: Path
    version: int

    def read(self, name: str) -> str | None:
        """The text of one of its files without surrounding space, None if there is none."""
        try:
            return (self.directory / name).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            return None

    def read_integer(self, name: str) -> int | None:
        """The file's integer; None if there is none, which includes the word "max"."""
        text = self.read(name)
        try:
            return None if text is None else int(text)
        except ValueError:
            return None


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[ControlGroup]:
    """The groups that confine this process for `controller`, from the innermost to the root.

    Yields nothing where there are no control groups: on other systems, or outside Linux.

    Args:
        controller: "memory" or "cpu".
        root: the directory that holds proc and sys.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in memberships:
        number, controllers, group = [*line.split(":", 2), "", ""][:3]
        version = 2 if number == "0" and not controllers else 1
        if version == 1 and controller not in controllers.split(","):
            continue
        mount = _mount(mounts, version, controller)
        if mount is None:
            continue
        mount_point, mounted_group = mount
        top = root / mount_point.lstrip("/")
        directory = top / _below(group, mounted_group)
        while True:
            yield ControlGroup(directory, version)
            if directory == top:
                break
            directory = directory.parent


def _mount(mounts: list[str], version: int, controller: str) -> tuple[str, str] | None:
    """(mount point, the group mounted there) of the hierarchy, or None if it is not mounted."""
    for line in mounts:
        # "36 35 98:0 /root /point options [optional...] - type source super-options"
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if not separator or len(fields) < 5 or not kind:
            continue
        if version == 2 and kind[0] == "cgroup2":
            return _unescaped(fields[4]), _unescaped(fields[3])
        if version == 1 and kind[0] == "cgroup" and controller in kind[-1].split(","):
            return _unescaped(fields[4]), _unescaped(fields[3])
    return None


def _below(group: str, mounted_group: str) -> PurePosixPath:
    """`group` relative to what is mounted.

    Inside a container /proc may name a group of the host that the container does not see; what
    is mounted is then its own group.
    """
    try:
        relative = PurePosixPath(group).relative_to(mounted_group)
    except ValueError:
        return PurePosixPath()
    return PurePosixPath() if ".." in relative.parts else relative


def _unescaped(field: str) -> str:
    """mountinfo writes space, tab, newline and backslash as three octal digits."""
    for octal, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        field = field.replace(f"\\{octal}", character)
    return field
