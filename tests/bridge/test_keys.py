"""Keys: the files of the daemon and its clients, who may read them, and the commands that make and revoke them."""

import ast
import errno
import json
import logging
import os
import stat
import sys
from pathlib import Path

import pytest
import zmq.auth
from typer.testing import CliRunner

from neuromod.bridge import keys
from neuromod.bridge.admission import Admission
from neuromod.bridge.cli import app
from neuromod.bridge.commands import COMMANDS, CommandError
from neuromod.bridge.config import load
from neuromod.bridge.limits import Bucket, SparingLog
from neuromod.bridge.roles import COMMAND_ROLES, EVERY_ROLE, INGEST_ROLES, NO_ROLE, Role, Sender, names_of, roles_of
from neuromod.bridge.security_config import SecurityConfig
from neuromod.bridge.wire import INGEST_TOPICS
from neuromod.engine.errors import ConfigError

ROOT = Path(__file__).parents[2]
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps no modes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys.init_folder(tmp_path / "keys")
    return tmp_path / "keys"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- files


@posix
def test_secrets_belong_to_their_owner_alone(folder: Path, tmp_path: Path) -> None:
    out = keys.new_client(folder, "anna", Role.OBSERVE, tmp_path / "anna.key")

    assert [mode(path) for path in (folder, folder / "clients")] == [0o700, 0o700]
    assert [mode(path) for path in (folder / "server.key_secret", out)] == [0o600, 0o600]


def test_one_file_is_all_that_a_client_needs(folder: Path, tmp_path: Path) -> None:
    server = keys.load_server(folder)
    out = keys.new_client(folder, "anna", Role.OBSERVE | Role.FEED, tmp_path / "anna.key")

    found = keys.load_client(out)

    assert (found.name, found.roles, found.server) == ("anna", Role.OBSERVE | Role.FEED, server.public)
    assert zmq.curve_public(found.secret) == found.public
    assert keys.clients(folder) == {found.public: Sender("anna", Role.OBSERVE | Role.FEED)}


def test_other_programs_of_zeromq_read_the_files(folder: Path, tmp_path: Path) -> None:
    out = keys.new_client(folder, "anna", Role.OBSERVE, tmp_path / "anna.key_secret")

    assert zmq.auth.load_certificate(out) == (keys.load_client(out).public, keys.load_client(out).secret)
    assert keys.load_client(out).public in zmq.auth.load_certificates(folder / "clients")


def test_certificates_of_other_programs_are_read(tmp_path: Path) -> None:
    public, secret = zmq.auth.create_certificates(tmp_path, "made", metadata={"roles": "observe"})

    assert keys.read_certificate(Path(public)).public == zmq.auth.load_certificate(public)[0]
    found = keys.read_certificate(Path(secret))
    assert (found.secret, found.metadata) == (zmq.auth.load_certificate(secret)[1], {"roles": "observe"})


@posix
@pytest.mark.parametrize("bits", [0o640, 0o604, 0o666])
def test_a_secret_that_others_may_read_is_refused(folder: Path, tmp_path: Path, bits: int) -> None:
    out = keys.new_client(folder, "anna", Role.OBSERVE, tmp_path / "anna.key")
    for path in (out, folder / "server.key_secret"):
        path.chmod(bits)

    with pytest.raises(ConfigError, match=f"others may read .*mode {bits:04o}, expected 0600.*chmod 600"):
        keys.load_client(out)
    with pytest.raises(ConfigError, match="chmod 600"):
        keys.load_server(folder)


@posix
def test_a_folder_that_others_may_write_to_is_refused(folder: Path) -> None:
    (folder / "clients").chmod(0o777)

    with pytest.raises(ConfigError, match=r"others may let clients in.*mode 0777.*chmod 700"):
        keys.load_server(folder)


@posix
@pytest.mark.parametrize("which", [".", "clients"])
def test_a_folder_of_another_user_is_refused(folder: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(folder / which, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)

    with pytest.raises(ConfigError, match=r"belongs to another user \(uid \d+\), who may let clients in"):
        keys.load_server(folder)


def test_a_folder_that_may_not_be_entered_is_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "session.toml"
    file.write_text('source = "zmq"\n[security]\nkeys = "keys"\n')

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "exists", fail)  # as it does for anybody but root

    for ask in (keys.load_server, keys.init_folder, lambda at: keys.new_client(at, "anna", Role.OBSERVE)):
        with pytest.raises(ConfigError, match="Permission denied"):
            ask(folder)
    with pytest.raises(ConfigError, match=r"security.keys names .*keys, which cannot be reached: Permission denied"):
        load(file)


def test_no_key_is_overwritten(folder: Path, tmp_path: Path) -> None:
    out = keys.new_client(folder, "anna", Role.OBSERVE, tmp_path / "anna.key")
    before = out.read_bytes()

    with pytest.raises(ConfigError, match="there already: clients believe that key alone"):
        keys.init_folder(folder)
    with pytest.raises(ConfigError, match="there is a client of that name"):
        keys.new_client(folder, "anna", Role.FEED, tmp_path / "other.key")
    with pytest.raises(ConfigError, match="keys are not overwritten"):
        keys.new_client(folder, "berta", Role.FEED, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="no empty folder"):
        keys.init_folder(tmp_path / "full")

    assert out.read_bytes() == before
    assert list(keys.clients(folder).values()) == [Sender("anna", Role.OBSERVE)]


@pytest.mark.parametrize("name", ["", "../anna", "a/b", ".hidden", "a b", "-rf", "x" * 64, "a\n", "C:x"])
def test_a_name_is_one_of_a_file(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a client's name"):
        keys.new_client(folder, name, Role.OBSERVE)
    with pytest.raises(ConfigError, match="has no client"):
        keys.revoke_client(folder, name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "public-key of 40 characters"),
        (b"curve\n    public-key = short\n", "public-key of 40 characters"),
        (b"\xff\xfe", "no certificate"),
        (b"x" * 20_000, "longer than"),
        (f"curve\n    public-key = {'a' * 40}\n    secret-key = {'b' * 40}\n".encode(), "not that of its secret key"),
    ],
)
def test_a_damaged_file_is_told(folder: Path, tmp_path: Path, text: bytes, says: str) -> None:
    path = tmp_path / "bad.key"
    path.write_bytes(text)
    path.chmod(0o600)

    with pytest.raises(ConfigError, match=says):
        keys.load_client(path)


def test_a_public_file_is_told_from_a_secret_one(folder: Path, tmp_path: Path) -> None:
    keys.new_client(folder, "anna", Role.OBSERVE, tmp_path / "anna.key")

    with pytest.raises(ConfigError, match="holds no secret key"):
        keys.load_client(folder / "clients" / "anna.key")
    with pytest.raises(ConfigError, match="which daemon it is for"):
        keys.load_client(folder / "server.key_secret")
    with pytest.raises(ConfigError, match="cannot be read"):
        keys.load_client(tmp_path / "gone")


def test_a_damaged_client_keeps_nobody_else_out(folder: Path) -> None:
    keys.new_client(folder, "anna", Role.OBSERVE)
    (folder / "clients" / "bad.key").write_text("nonsense")
    told: list[str] = []

    assert list(keys.clients(folder, damaged=told.append).values()) == [Sender("anna", Role.OBSERVE)]
    assert "bad.key" in told[0]


@posix
def test_a_client_that_others_may_write_to_is_let_in_once_they_may_not(folder: Path) -> None:
    keys.new_client(folder, "anna", Role.OBSERVE)
    listed = folder / "clients" / "anna.key"
    listed.chmod(0o620)
    told: list[str] = []

    assert keys.clients(folder, damaged=told.append) == {}
    assert "others may write to" in told[0]
    assert f"chmod 600 {listed}" in told[0]
    listed.chmod(0o640)
    assert list(keys.clients(folder).values()) == [Sender("anna", Role.OBSERVE)]


@pytest.mark.parametrize("name", ["a b", "anna\nboss", ".anna", "x" * 64])
def test_a_client_whose_file_has_no_name_of_a_client_is_not_let_in(folder: Path, name: str) -> None:
    keys.new_client(folder, "anna", Role.OBSERVE)
    (folder / "clients" / "anna.key").rename(folder / "clients" / f"{name}.key")
    told: list[str] = []

    assert keys.clients(folder, damaged=told.append) == {}
    assert "cannot be a client's name" in told[0]
    assert "\n" not in told[0]


def test_files_that_cannot_be_read_at_this_moment_say_nothing_of_their_clients(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.new_client(folder, "anna", Role.OBSERVE)
    told: list[str] = []

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    for name in ("open", "iterdir"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, fail)
            with pytest.raises(keys.UnreadableError, match="Too many open files"):
                keys.clients(folder, damaged=told.append)
    assert told == []


# -- roles


def test_a_user_id_says_name_and_roles() -> None:
    for mask in range(16):
        sender = Sender("rig-2", Role(mask))
        assert sender.user_id == f"{chr(64 + mask)}:rig-2"
        assert Sender.of(sender.user_id) == sender


def test_roles_are_named_in_files_and_commands() -> None:
    assert roles_of(["feed", "observe"]) == Role.FEED | Role.OBSERVE
    assert names_of(EVERY_ROLE) == ["observe", "feed", "stimulate", "control"]
    with pytest.raises(ValueError, match="'dance' is no role; choose from observe, feed, stimulate, control"):
        roles_of(["dance"])
    with pytest.raises(ValueError, match="good for nothing"):
        roles_of([])


def test_every_message_and_command_has_its_role() -> None:
    assert set(INGEST_ROLES) == set(INGEST_TOPICS)
    assert set(COMMAND_ROLES) <= set(COMMANDS)


# -- requests


def test_without_the_role_a_command_is_refused() -> None:
    admission = Admission(200.0)
    with pytest.raises(CommandError, match="set needs the role control; this key has observe") as caught:
        admission.check(Sender("anna", Role.OBSERVE), "set", None, None)
    assert caught.value.reason == "role"
    with pytest.raises(CommandError, match="none that is still valid"):
        admission.check(Sender("anna", NO_ROLE), "status", None, None)


def test_a_number_is_good_once() -> None:
    admission, anna = Admission(200.0), Sender("anna", EVERY_ROLE)
    session = admission.hello(anna)
    for seq in (1, 2, 9):
        admission.check(anna, "set", session, seq)

    for seq in (9, 8, 1):
        with pytest.raises(CommandError) as caught:
            admission.check(anna, "set", session, seq)
        assert caught.value.reason == "replayed"


def test_a_session_belongs_to_its_key_and_is_forgotten_in_time() -> None:
    admission, anna = Admission(200.0), Sender("anna", EVERY_ROLE)
    first = admission.hello(anna)
    for who, session in ((Sender("berta", EVERY_ROLE), first), (anna, "made up"), (anna, None)):
        with pytest.raises(CommandError) as caught:
            admission.check(who, "set", session, None if session is None else 1)
        assert caught.value.reason == "session"
    used = admission.hello(anna)
    for seq in range(1, 64):
        admission.check_stimulate(anna, used, seq)
        admission.hello(anna)

    admission.check(anna, "set", used, 100)
    with pytest.raises(CommandError) as caught:
        admission.check(anna, "set", first, 1)
    assert caught.value.reason == "session"


def test_without_keys_numbers_are_checked_where_they_are_given() -> None:
    admission, anybody = Admission(None), Sender()
    admission.check(anybody, "set", None, None)
    admission.check_stimulate(anybody, None, None)
    session = admission.hello(anybody)
    admission.check_stimulate(anybody, session, 1)

    with pytest.raises(CommandError, match="seq 1 is not above 1"):
        admission.check_stimulate(anybody, session, 1)


def test_a_key_may_ask_so_often_and_disarm_always() -> None:
    admission, anna = Admission(1.0), Sender("anna", EVERY_ROLE)
    for _ in range(2):
        admission.check(anna, "status", None, None)

    with pytest.raises(CommandError) as caught:
        admission.check(anna, "status", None, None)
    assert caught.value.reason == "rate"
    admission.check(anna, "disarm", None, None)
    admission.check(Sender("berta", EVERY_ROLE), "status", None, None)


def test_requests_without_the_role_for_them_count_too() -> None:
    admission, anna = Admission(1.0), Sender("anna", Role.OBSERVE)
    reasons = []
    for _ in range(3):
        with pytest.raises(CommandError) as caught:
            admission.check(anna, "set", None, None)
        reasons.append(caught.value.reason)

    assert reasons == ["role", "role", "rate"]


def test_a_bucket_fills_with_time() -> None:
    now = 0.0
    bucket = Bucket(10.0, 3.0, lambda: now)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    now = 0.25
    assert [bucket.take() for _ in range(3)] == [True, True, False]


def test_the_log_is_not_filled_by_repetition_nor_by_variety(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    sparing = SparingLog(logging.getLogger("test"), lambda: now)
    for _ in range(1000):
        sparing.say(logging.WARNING, "knock", "one")
    assert caplog.messages == ["knock"]
    now = 61.0
    sparing.say(logging.WARNING, "knock", "one")
    assert caplog.messages[-1] == "knock (999 times more before)"
    for k in range(100_000):
        sparing.say(logging.WARNING, f"knock {k}", str(k))
    assert len(caplog.messages) < 60
    now = 70.0
    sparing.say(logging.WARNING, "at last", "last")
    assert "other lines were kept back" in caplog.messages[-1]


# -- the section, and the commands


def test_lsl_sources_are_host_and_id() -> None:
    config = SecurityConfig(keys=Path("keys"), lsl_sources=("rig/emg-1", "lab/*"))

    assert config.allows("rig", "emg-1")
    assert config.allows("lab", "anything")
    assert not config.allows("rig", "emg-2")
    assert not config.allows("lab", "")
    with pytest.raises(ValueError, match="hostname/source_id"):
        SecurityConfig(keys=Path("keys"), lsl_sources=("rig",))


def test_a_session_names_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "session.toml"
    file.write_text('source = "zmq"\n[security]\nkeys = "keys"\n')
    with pytest.raises(ConfigError, match=r"security.keys names .*which does not exist; 'neuromod keys init' makes it"):
        load(file)
    keys.init_folder(tmp_path / "keys")

    security = load(file).security
    assert security is not None
    assert security.keys == tmp_path / "keys"


def run(*args: str | Path) -> "tuple[int, str, str]":
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    return result.exit_code, result.stdout, result.stderr


def test_the_commands_make_list_and_revoke(tmp_path: Path) -> None:
    folder, out = tmp_path / "keys", tmp_path / "anna.key"
    assert run("keys", "init", folder)[0] == 0
    assert run("keys", "new", "anna", "--roles", "observe,feed", "--folder", folder, "--out", out)[0] == 0
    assert run("keys", "new", "berta", "--roles", "control", "-f", folder)[0] == 0
    code, listed, _ = run("keys", "list", "-f", folder, "--json")
    body = json.loads(listed)

    assert code == 0
    assert {client["name"]: client["roles"] for client in body["clients"]} == {
        "anna": ["observe", "feed"],
        "berta": ["control"],
    }
    public = keys.load_client(out).public
    assert keys.fingerprint(public) == body["clients"][0]["fingerprint"]
    assert keys.load_client(out).secret.decode() not in listed
    assert run("keys", "revoke", "anna", "-f", folder)[0] == 0
    assert run("keys", "revoke", "berta", "-f", folder)[0] == 0
    assert list((folder / "clients").iterdir()) == []
    code, _, said = run("keys", "revoke", "anna", "-f", folder)
    assert (code, "has no client 'anna'" in said) == (2, True)


@posix
def test_list_tells_of_secrets_that_others_may_read(folder: Path) -> None:
    keys.new_client(folder, "anna", Role.OBSERVE).chmod(0o644)
    keys.new_client(folder, "berta", Role.OBSERVE)

    code, listed, said = run("keys", "list", "-f", folder)

    assert code == 0
    assert [line.split()[0] for line in listed.splitlines()] == ["the", "anna", "berta"]
    assert said.count("others may read") == 1
    assert "anna.key_secret (mode 0644, expected 0600)" in said


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["new", "anna", "--roles", "dance"], "'dance' is no role"),
        (["new", "anna", "--roles", ","], "good for nothing"),
        (["list", "--folder", "gone"], "'neuromod keys init gone' makes it"),
        (["revoke", "anna", "--folder", "gone"], "has no client"),
    ],
)
def test_what_cannot_be_is_one_sentence(args: list[str], says: str) -> None:
    code, out, said = run("keys", *args)

    assert (code, out) == (2, "")
    assert says in said


# -- nothing that arrives is ever carried out


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def test_no_source_unpickles_or_evaluates_what_it_reads() -> None:
    found = []
    for path in sorted(p for part in ("engine", "sorting", "adapters", "bridge") for p in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            match node:
                case ast.Import(names=names):
                    found += [where for name in names if name.name.partition(".")[0] in FORBIDDEN_MODULES]
                case ast.ImportFrom(module=str(module)):
                    found += [where] * (module.partition(".")[0] in FORBIDDEN_MODULES)
                case ast.Call(func=ast.Name(id="eval" | "exec")):
                    found.append(where)
                case ast.Call(func=ast.Attribute(value=ast.Name(id="yaml"), attr="load" | "load_all" | "unsafe_load")):
                    found.append(where)
                case ast.Call(func=ast.Attribute(attr="read_pickle" | "to_pickle" | "dump_to_pickle" | "read_prb")):
                    found.append(where)
                case ast.keyword(arg="allow_pickle", value=value):
                    found += [where] * (not (isinstance(value, ast.Constant) and value.value is False))
                case _:
                    pass

    assert found == []
