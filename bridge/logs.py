"""How the log is written: for people, for programs as a line of JSON a record, and for the journal of systemd.

Below this, everybody says `logging.getLogger(__name__)` and no more. The log goes to stderr, and to a file beside it
where one is asked for.
"""

import datetime
import json
import logging
import logging.handlers
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

from neuromod.engine.errors import ConfigError

log = logging.getLogger(__name__)

FILE_BYTES = 10_000_000
OLD_FILES = 5
"""A log file that has grown to `FILE_BYTES` is put aside as FILE.1, and so many of those are kept."""

_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_IN_JOURNAL = "%(name)s: %(message)s"  # which notes the time by itself
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


class LogFormat(StrEnum):
    """For whom the log is written."""

    TEXT = "text"
    JSON = "json"


class Context:
    """What a record of the log is told with, beside what it says.

    Attributes
    ----------
    session : str
        Name of the session; empty where there is none.
    clock : callable, optional
        Returns the local clock, in seconds: that of the time stamps in messages and in the session's record.
    tick : callable, optional
        Returns the number of the newest tick.
    """

    def __init__(self, session: str = "") -> None:
        self.session = session
        self.clock: Callable[[], float] | None = None
        self.tick: Callable[[], int] | None = None

    def facts(self) -> dict[str, Any]:
        """Return what is known now, by name."""
        found: dict[str, Any] = {"session": self.session} if self.session else {}
        if self.clock is not None:
            found["local_clock"] = self.clock()
        if self.tick is not None:
            found["tick"] = self.tick()
        return found


class JsonLines(logging.Formatter):
    """One JSON object a line, in ASCII, so that nothing in a message can begin a line of its own."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        body: dict[str, Any] = {"time": time.isoformat(timespec="microseconds")}
        body |= {"level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        # asked for once a record: stderr and the file say the same of it
        body |= record.__dict__.setdefault("neuromod", self._context.facts())
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)
        return json.dumps(body)


class ForJournal(logging.Formatter):
    """Begins every line with the priority by which the journal of systemd sorts it, as in sd-daemon(3)."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines."""
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), _DEBUG)
        return "\n".join(f"<{priority}>{line}" for line in self.inner.format(record).splitlines())


class _LogFile(logging.handlers.RotatingFileHandler):
    """A file that says once, and elsewhere, that it cannot be written: a session does not end for want of its log."""

    _has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._has_failed:
            self._has_failed = True
            log.error("%s cannot be written: %s; the log goes on on stderr", self.baseFilename, sys.exc_info()[1])


def set_up(
    *,
    form: LogFormat = LogFormat.TEXT,
    file: Path | None = None,
    journal_stream: str = "",
    context: Context | None = None,
) -> None:
    """Direct the log to stderr, and to a file; replaces what was set up before, and leaves the level as it is.

    Parameters
    ----------
    form : LogFormat
        Of both.
    file : Path, optional
        Written beside stderr, with rotation: see `FILE_BYTES`.
    journal_stream : str
        What systemd says of the journal in JOURNAL_STREAM; lines get their priority where stderr is that stream.
    context : Context, optional
        What lines of JSON tell beside the message.

    Raises
    ------
    ConfigError
        The file cannot be written.
    """
    context = context if context is not None else Context()
    in_journal = is_journal(sys.stderr, journal_stream)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setFormatter(_formatter(form, context, in_journal=in_journal))
    if file is not None:
        try:
            handlers.append(_LogFile(file, maxBytes=FILE_BYTES, backupCount=OLD_FILES, encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"--log-file: {file} cannot be written: {error.strerror}; name a file in a folder that is there"
            ) from None
        handlers[1].setFormatter(_formatter(form, context, in_journal=False))
    logging.basicConfig(handlers=handlers, force=True, level=logging.getLogger().level)


def _formatter(form: LogFormat, context: Context, *, in_journal: bool) -> logging.Formatter:
    if form is LogFormat.JSON:
        inner: logging.Formatter = JsonLines(context)
    else:
        inner = logging.Formatter(_IN_JOURNAL if in_journal else _TEXT)
    return ForJournal(inner) if in_journal else inner


def is_journal(stream: TextIO, journal_stream: str) -> bool:
    """Say whether a stream is the one that systemd connected to its journal: "DEVICE:INODE" of it, or an empty string.

    A program that was started by a service, with its stderr elsewhere, inherits the variable and not the stream.
    """
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return journal_stream == f"{found.st_dev}:{found.st_ino}"


def say(sentence: str, level: int = logging.INFO) -> None:
    """Tell whoever started the program something, whatever the level of the log: on stderr, in the form of the log."""
    for handler in logging.getLogger().handlers:
        inner = handler.formatter.inner if isinstance(handler.formatter, ForJournal) else handler.formatter
        if isinstance(inner, JsonLines):
            handler.handle(logging.LogRecord("neuromod", level, __file__, 0, sentence, None, None))
            return
    print(f"neuromod: {sentence}", file=sys.stderr, flush=True)
