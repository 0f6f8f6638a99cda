"""Files that a user names: on this machine, in a bucket (`gs://`), or wherever fsspec reaches.

    path(value)             the `Path` of what a user named; an unknown scheme is a ConfigError
    local_path(value)       the same for what can only be on this machine
    write(path, content)    the whole file in one operation: readers see the old or the new one
    replacing(path)         a file object for the same
    local_copy(path)        a file or folder on this machine, for libraries that know no other
    local_output(path)      likewise for what a library writes
    names_under(path)  files_under(path)  folders_in(path)  matching(pattern)
                            what is in a folder
    read_range(path, ...)   some bytes of a file
    remove_tree(path)  move_tree(source, target)
    writable(value, what)   `path(value)`, or a ConfigError if nothing can be written there
    writable_file(value, what)
                            likewise for a file that is written later
    Appender(path)          a file that grows by records
    Lock(path, what)        one process at a time, by flock or by a lease in the bucket

`Path` is `pathlib.Path` on this machine and `StorePath`, which has the same methods as far as
they are used here, elsewhere. A `StorePath` is no `os.PathLike`: what it is given to by mistake
fails, where a URL taken for a local path would make a folder called `gs:`.

Everything that fails raises OSError, `FileNotFoundError` and `PermissionError` included. A store
that does not answer is asked again for `stores.PATIENCE_S`. Only this package uses fsspec and
gcsfs, and only it opens files that a user names (`tests/style_test.py`).

A new operation goes to `files.py`; a new kind of store is a driver of fsspec, and needs nothing
here unless it can refuse a second writer (`lease.py`).
"""

from deit_jax.storage.append import Appender
from deit_jax.storage.files import (
    files_under,
    folders_in,
    free_bytes,
    local_copy,
    local_output,
    matching,
    move_tree,
    names_under,
    read_range,
    remove_tree,
    replacing,
    writable,
    writable_file,
    write,
)
from deit_jax.storage.lock import Lock, LockedError
from deit_jax.storage.paths import Path, StorePath, is_remote, local_path, path
from deit_jax.storage.stores import is_refusal

__all__ = [
    "Appender",
    "Lock",
    "LockedError",
    "Path",
    "StorePath",
    "files_under",
    "folders_in",
    "free_bytes",
    "is_refusal",
    "is_remote",
    "local_copy",
    "local_output",
    "local_path",
    "matching",
    "move_tree",
    "names_under",
    "path",
    "read_range",
    "remove_tree",
    "replacing",
    "writable",
    "writable_file",
    "write",
]
