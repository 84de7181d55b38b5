"""A disk that loses what was not synced: imitates power loss at a moment of a process, by what is left on a real disk.

`Disk` follows the system calls of this process that change names or sync. When the power goes, every file has of its content
what was last synced, and of what came after it all, a part, zeros or nothing; the last changes of names in a folder that was
not synced since are undone, each folder's on its own. A rename is whole or not at all. Knows nothing of what is written.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALLS = ("fsync", "rename", "replace", "mkdir", "unlink", "remove", "rmdir")


@dataclass(slots=True)
class _Change:
    """A change of names in `folder`, and how it is undone."""

    folder: Path
    undo: Callable[[], None]
    durable: bool = False


class Disk:
    """Follows what happens below `roots`; `lose` is called before call number `at`, counted from 1. `spare` is for links."""

    def __init__(self, roots: list[Path], spare: Path, draw: random.Random, at: int | None = None) -> None:
        self.roots, self.spare, self.draw, self.at = roots, spare, draw, at
        self.calls = 0
        self._plain = {name: getattr(os, name) for name in CALLS}
        self._changes: list[_Change] = []
        self._synced: dict[int, bytes] = {}
        self._listed: dict[int, set[str]] = {}  # by the number of the folder, which renames do not change

    def watch(self, ending: Callable[[], None]) -> None:
        """Follow this process from now on, till the power goes and `ending` ends it."""
        for name in CALLS:
            setattr(os, name, self._watched(name, ending))

    def _watched(self, name: str, ending: Callable[[], None]) -> Callable[..., Any]:
        def watched(*given: Any, **options: Any) -> Any:
            path = self._path(given[0], options)
            if not any(path.is_relative_to(root) for root in self.roots):
                return self._plain[name](*given, **options)
            self.calls += 1
            if self.calls == self.at:
                self.lose()
                ending()
            return getattr(self, f"_{name}")(path, given, options)

        return watched

    def _path(self, given: Any, options: dict[str, Any]) -> Path:
        """The path that a call means, which may be a number of an open file, or stand below one."""
        if isinstance(given, int):
            return Path(os.readlink(f"/proc/self/fd/{given}"))
        below = options.get("dir_fd") or options.get("src_dir_fd")
        return Path(os.path.abspath(given)) if below is None else Path(os.readlink(f"/proc/self/fd/{below}"), given)

    def _fsync(self, path: Path, given: Any, options: Any) -> None:
        self._plain["fsync"](*given)
        if path.is_dir():
            self._listed[path.stat().st_ino] = set(os.listdir(path))
            for change in self._changes:
                change.durable |= change.folder == path
        elif path.exists():
            self._synced[path.stat().st_ino] = path.read_bytes()

    def _rename(self, path: Path, given: Any, options: Any) -> None:
        target = Path(os.path.abspath(given[1]))
        before = self._link(target)
        self._plain["rename"](*given)

        def undo() -> None:
            self._plain["rename"](target, path)
            if before is not None:
                os.link(before, target)

        self._changes.append(_Change(path.parent, undo))

    def _replace(self, path: Path, given: Any, options: Any) -> None:
        self._rename(path, given, options)

    def _mkdir(self, path: Path, given: Any, options: Any) -> None:
        self._plain["mkdir"](*given, **options)
        self._listed.pop(path.stat().st_ino, None)
        self._changes.append(_Change(path.parent, lambda: shutil.rmtree(path)))

    def _unlink(self, path: Path, given: Any, options: Any) -> None:
        before = self._link(path)
        self._plain["unlink"](*given, **options)
        if before is not None:
            self._changes.append(_Change(path.parent, lambda: os.link(before, path)))

    def _remove(self, path: Path, given: Any, options: Any) -> None:
        self._unlink(path, given, options)

    def _rmdir(self, path: Path, given: Any, options: Any) -> None:
        self._plain["rmdir"](*given, **options)
        self._changes.append(_Change(path.parent, lambda: self._plain["mkdir"](path)))

    def _link(self, path: Path) -> Path | None:
        """Another name for a file that is about to lose its own."""
        if not path.is_file():
            return None
        link = self.spare / str(len(list(self.spare.iterdir())))
        os.link(path, link)
        return link

    def lose(self) -> None:
        """Leave on the disk what the power loss leaves."""
        for name, call in self._plain.items():
            setattr(os, name, call)
        self._lose_contents()
        self._lose_new_names()
        self._undo_changes()

    def _lose_contents(self) -> None:
        for path in [path for root in self.roots for path in root.rglob("*")]:
            seen = path.lstat()
            if stat.S_ISREG(seen.st_mode) and self._synced.get(seen.st_ino) != (content := path.read_bytes()):
                with path.open("r+b") as file:
                    left = self._left(content, self._synced.get(seen.st_ino, b""))
                    file.truncate(0)
                    file.write(left)

    def _left(self, content: bytes, synced: bytes) -> bytes:
        part = self.draw.randint(0, len(content))
        return self.draw.choice(
            (synced, content, content[:part], bytes(len(content)), content[:part] + bytes(len(content) - part))
        )

    def _lose_new_names(self) -> None:
        """New files whose folder was not synced since, and whose name no rename gave them, may be there or not."""
        for path in [path for root in self.roots for path in root.rglob("*") if path.is_file()]:
            if path.name not in self._listed.get(path.parent.stat().st_ino, set()) and self.draw.random() < 0.3:
                path.unlink()

    def _undo_changes(self) -> None:
        """Undo the last changes of each folder that was not synced since; how many is drawn."""
        left = {change.folder: 0 for change in self._changes}
        for change in self._changes:
            left[change.folder] += not change.durable
        lost = {folder: self.draw.randint(0, count) for folder, count in left.items()}
        for change in reversed(self._changes):
            if not change.durable and lost[change.folder] > 0:
                lost[change.folder] -= 1
                try:
                    change.undo()
                except OSError:
                    continue  # in a folder that is not there any more
