"""Files that are whole or absent: in a folder of this machine, or behind a URL (s3://, gs://, memory://, ...).

a folder        temporary name in the same folder, fsync, rename, fsync of the folder
an object store one put, which is atomic there
anything else   temporary name, then a move (what sftp:// or smb:// can do)
"""

from __future__ import annotations

from .credentials import explain
from .files import Fetched, FetchedFolder, local_copy, new_file, put_files, write_atomically
from .folders import ATOMIC_PUT, Disk, Folder, RemoteFolder, open_folder
from .places import absolute, beside, is_url, local_path, name_of, suffix_of, within

__all__ = [
    "ATOMIC_PUT",
    "Disk",
    "Fetched",
    "FetchedFolder",
    "Folder",
    "RemoteFolder",
    "absolute",
    "beside",
    "explain",
    "is_url",
    "local_copy",
    "local_path",
    "name_of",
    "new_file",
    "open_folder",
    "put_files",
    "suffix_of",
    "within",
    "write_atomically",
]
