"""What goes wrong when numpy reads a file."""

import tokenize
import zipfile
import zlib
from typing import Final

NO_ARRAYS: Final = (
    OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, RuntimeError, OverflowError,
    SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy raises for a file that is not, or not wholly, one that it has written."""
