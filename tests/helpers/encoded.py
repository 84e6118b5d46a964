"""Bytes of small image files and of archives that hold them."""

import io
import tarfile

from PIL import Image


def image(shade=0):
    """A grey PNG of 2 × 2 pixels."""
    file = io.BytesIO()
    Image.new("L", (2, 2), shade).save(file, "PNG")
    return file.getvalue()


def tar_of(members, path=None):
    """A tar archive of {name: bytes}, also written to `path` if given."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if path is not None:
        path.write_bytes(file.getvalue())
    return file.getvalue()
