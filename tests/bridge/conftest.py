"""Session files for the tests of the service; the rest of their tools is in `harness`."""

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import session


@pytest.fixture
def session_file(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a session file on free ports."""

    def write(text: str) -> Path:
        path = tmp_path / "session.toml"
        path.write_text(session(text).effective_toml())
        return path

    return write
