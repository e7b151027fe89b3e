"""A file system of the spool that a test can watch, fail or cut."""

from pathlib import Path

from nemt_dicom.files import Fs


class WatchedFs(Fs):
    """Calls `before` ahead of each operation."""

    def before(self, operation: str, *paths: Path) -> None:
        """What the test does then; an error that it raises is that of the operation."""

    def read(self, path: Path) -> bytes:
        self.before("read", path)
        return super().read(path)

    def write(self, path: Path, data: bytes) -> None:
        self.before("write", path)
        super().write(path, data)

    def fsync(self, path: Path) -> None:
        self.before("fsync", path)
        super().fsync(path)

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        self.before("mkdir", path)
        super().mkdir(path, mode)

    def rename(self, source: Path, target: Path) -> None:
        self.before("rename", source, target)
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self.before("unlink", path)
        super().unlink(path)
