"""Blobs as files of one filesystem: the adapter of node.blobs that a site of its own disk uses.

    <root>/sha256/<ab>/<hex>.<generation>     copies; <ab> are the first two digits of <hex>
    <root>/sha512/<ab>/<hex>.<generation>
    <root>/uploads/<session>/<n>-<nonce>      pieces, one for each request body, counted from 0
    <root>/uploads/<session>/whole-<nonce>    several pieces on their way to become a copy

A copy appears by a rename, after its bytes were synced and before its folder is: a crash between
any two of these loses an upload, and never leaves a name with other bytes behind it (RELIABILITY
4).  A sync that failed is never tried again, for the kernel may have dropped the pages it could
not write and would report success the second time.

Every call that may touch the disk runs in the threads of the store.  A thread that works for a
caller who was cancelled goes on to its end; what it makes then is named by nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, ParamSpec, Self, TypeVar

from node.blob_open import OpenFile
from node.blob_pieces import FilePiece
from node.blobs import Generation, Piece, SessionId, Usage
from node.digest import Algorithm, Digest, Verifier
from node.errors import BlobDamaged, StorageFailed, UploadUnknown
