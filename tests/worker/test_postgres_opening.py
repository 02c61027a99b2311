"""Opening a PostgreSQL store: wrong addresses, passwords, foreign schemas, versions, rights, read-only servers."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

import bridge
from bridge import Client, Options, Quota, errors
from bridge.options import check
from bridge.records import SessionSettings
from bridge.worker.stores import open_store

postgres_server = pytest.importorskip("postgres_server", reason="psycopg is not installed")
schema = pytest.importorskip("bridge.worker.stores.postgres.schema")

SETTINGS = SessionSettings("2026-01-01T00:00:00.000Z", 5.0, Quota())
WAIT = 60.0


def refusal(name: str) -> str:
    """Return why a store is not opened."""
    with pytest.raises(errors.StoreFailed) as raised:
        open_store(name)
    return raised.value.message


def start_failure(*flags: str) -> tuple[int, str]:
    """Return exit status and stderr of a worker that gets no frame."""
    command = [sys.executable, "-P", "-m", "bridge", "worker", "--adapter", "echo", *flags]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as worker:
        return worker.wait(WAIT), worker.stderr.read()


@pytest.fixture
def url(postgres, database):
    return postgres.url(database)


@pytest.fixture
def execute(postgres, database):
    """Return a function that runs a statement in the database as its superuser."""
    return lambda sql, *args: postgres.execute(sql, *args, database=database)


@pytest.fixture
def role(postgres, database):
    """Return the name of a role that may do nothing in the database but connect."""
    postgres.execute("CREATE ROLE guest LOGIN", database=database)
    yield "guest"
    postgres.execute("DROP OWNED BY guest", database=database)
    postgres.execute("DROP ROLE guest", database=database)


SECRET = "hunter2-0x5Ecret"


@pytest.mark.parametrize(
    "name",
    [
        f"postgresql://user:{SECRET}@host/db",
        f"postgres://user:{SECRET}@host:5432,other/db?sslmode=require",
        f"postgresql://:{SECRET}@/db",
        f"postgresql://user:{SECRET}/{SECRET}@host/db",
        f"postgresql://user:{SECRET}?{SECRET}@host/db",
        f"postgresql://user:a@{SECRET}@host/db",
        f"postgresql://host/db?password={SECRET}",
        f"postgresql://host/db?sslmode=require&password={SECRET}",
        f"postgresql:host=h password={SECRET}",
        f"postgresql://host/db?sslpassword={SECRET}",
        f"postgresql:user:{SECRET}@host/db",
        f"mysql://user:{SECRET}@host/db",
        f"POSTGRESQL://user:{SECRET}@host/db",
        f"://user:{SECRET}@host/db",
    ],
)
def test_a_password_in_the_address_is_refused_and_never_shown(name):
    assert SECRET not in refusal(name)


@pytest.mark.parametrize("name", [f"postgresql://user:{SECRET}@host/db", f"://user:{SECRET}@host/db"])
def test_a_worker_that_gets_a_password_does_not_start(name):
    """It names other ways, in the last line."""
    status, said = start_failure("--store", name)
    assert status == 2
    assert SECRET not in said
    assert name.startswith(":") or "PGPASSFILE" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("postgresql:nonsense", "libpq"),
        ("postgresql://host:port/db", "port"),
        ("postgresql://host/db?colour=red", "colour"),
        ("postgresql:///db?host=/no/such/folder", "cannot be reached"),
        ("postgresql://127.0.0.1:1/db", "cannot be reached"),
        ("postgresql:///?service=no-such-service", "no-such-service"),
    ],
)
def test_a_wrong_address_is_explained(name, words):
    assert words in refusal(name)


def test_addresses_are_options():
    """Of workers, whichever form of the scheme they have."""
    for name in ("postgresql://host/db", "postgres://u@host,other:5433/db?sslmode=require", "postgresql:///"):
        assert check("store", name) == name
        assert Options(store=name).store == name


def test_a_sign_of_a_password_elsewhere_is_none(postgres, database):
    """A parameter may contain what follows a password, and a user's name may contain it in percent encoding."""
    for name in (
        f"postgresql://127.0.0.1:1/{database}?user=me@here&connect_timeout=2",
        f"postgres://me%40here@127.0.0.1:1/{database}",
    ):
        assert "cannot be reached" in refusal(name)


@pytest.mark.parametrize("sign", ["\0", "\udcff", "%ff"])
def test_an_address_is_text(sign):
    """libpq would end it at a zero byte, which is another database. The second one is a byte of a command line."""
    assert "zero byte, or bytes that are not UTF-8" in refusal(f"postgresql:///db{sign}other")


def test_a_wrong_database_role_or_password_is_explained(postgres, database, monkeypatch):
    assert 'database "missing" does not exist' in refusal(postgres.url("missing"))
    assert 'role "stranger" does not exist' in refusal(postgres.url(database, "stranger"))
    by_tcp = postgres.url(database, tcp=True)
    monkeypatch.setenv("PGPASSWORD", SECRET)
    said = refusal(by_tcp)
    assert "password authentication failed" in said
    assert SECRET not in said
    monkeypatch.delenv("PGPASSWORD")
    assert "no password supplied" in refusal(by_tcp)


def test_the_password_comes_from_the_environment_or_a_file(postgres, database, monkeypatch, tmp_path):
    """Also from a service file, which may have the whole address."""
    by_tcp = postgres.url(database, tcp=True)
    monkeypatch.setenv("PGPASSWORD", postgres_server.PASSWORD)
    open_store(by_tcp).close()
    monkeypatch.delenv("PGPASSWORD")
    passwords = tmp_path / "passwords"
    passwords.write_text(f"127.0.0.1:{postgres.port}:*:*:{postgres_server.PASSWORD}\n")
    passwords.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    open_store(by_tcp).close()
    monkeypatch.delenv("PGPASSFILE")
    services = tmp_path / "services"
    address = f"host=127.0.0.1\nport={postgres.port}\nuser=postgres\ndbname={database}\n"
    services.write_text(f"[store]\n{address}password={postgres_server.PASSWORD}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    open_store("postgresql:///?service=store").close()


def test_a_worker_uses_the_store(url):
    """Its sessions go on in the next worker."""
    flags = ["--store", url]
    with Client.start(adapter="echo", flags=flags) as client:
        client.call("create_session", {"durable": True}, session_id="s")
        client.call("update_session_data", {"key": "k", "value": 7}, session_id="s")
    with Client.start(adapter="echo", flags=flags) as again:
        assert again.call("get_session_data", session_id="s")["data"] == {"k": 7}


def test_the_database_may_be_an_applications(url, execute):
    """The store adds a schema, and leaves everything else alone, whatever the search path is."""
    execute("CREATE TABLE sessions (mine integer)")
    execute("CREATE FUNCTION nextval(text) RETURNS bigint LANGUAGE sql AS 'SELECT 1 / 0'")
    store = open_store(url)
    store.create("s", SETTINGS, {})
    store.close()
    assert execute("SELECT count(*) FROM sessions") == [(0,)]
    tables = execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'dspex_bridge'")
    assert tables == [(4,)]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE dspex_bridge.theirs (x integer)",
        "CREATE TABLE dspex_bridge.store (x integer)",
        "CREATE VIEW dspex_bridge.store AS SELECT 'other' AS application, 1 AS version",
        "CREATE TABLE dspex_bridge.store (application text, version integer)",
        "CREATE TABLE dspex_bridge.store AS SELECT 'dspex-bridge' AS application, -1 AS version",
        "CREATE TABLE dspex_bridge.store AS SELECT 'dspex-bridge' AS application, 'one' AS version",
    ],
)
def test_a_schema_of_another_application_is_not_changed(url, execute, statement):
    execute("CREATE SCHEMA dspex_bridge")
    execute(statement)
    before = execute("SELECT count(*) FROM pg_class")
    assert "another application's" in refusal(url)
    assert execute("SELECT count(*) FROM pg_class") == before


def test_a_store_of_a_later_version_is_not_changed(url, execute):
    """The error has both versions, and the worker does not start."""
    open_store(url).close()
    execute("UPDATE dspex_bridge.store SET version = 99")
    status, said = start_failure("--store", url)
    assert status == 2
    assert f"version 99, newer than this program's {len(schema.MIGRATIONS)}" in said


def test_an_older_store_is_migrated_and_keeps_everything(url, execute, monkeypatch):
    """The migration is one transaction: if it fails, nothing has changed."""
    store = open_store(url)
    store.create("s", SETTINGS, {("data", "k"): b"v"})
    store.close()
    first = schema.MIGRATIONS
    monkeypatch.setattr(schema, "MIGRATIONS", (*first, "ALTER TABLE sessions ADD COLUMN note text; nonsense"))
    assert "syntax error" in refusal(url)
    monkeypatch.setattr(schema, "MIGRATIONS", (*first, "ALTER TABLE sessions ADD COLUMN note text;"))
    store = open_store(url)
    assert store.take("s").records == {("data", "k"): b"v"}
    assert execute("SELECT version FROM dspex_bridge.store") == [(len(first) + 1,)]
    store.close()


def test_workers_that_start_at_once_create_one_schema(url, execute):
    """The others wait for the first."""
    stores = []
    threads = [threading.Thread(target=lambda: stores.append(open_store(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        store.close()
    assert len(stores) == 4
    assert execute("SELECT version FROM dspex_bridge.store") == [(len(schema.MIGRATIONS),)]


def test_missing_rights_are_named(postgres, database, execute, role):
    """For creating the schema, using it, and single tables."""
    url = postgres.url(database, role)
    said = refusal(url)
    assert f"permission denied for database {database}" in said
    assert "guest" in said
    open_store(postgres.url(database)).close()
    assert "permission denied for schema" in refusal(url)
    execute("GRANT USAGE ON SCHEMA dspex_bridge TO guest")
    execute("GRANT SELECT ON ALL TABLES IN SCHEMA dspex_bridge TO guest")
    assert "INSERT on sessions" in refusal(url)
    execute("GRANT ALL ON ALL TABLES IN SCHEMA dspex_bridge TO guest")
    assert "USAGE on the sequence epochs" in refusal(url)
    execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA dspex_bridge TO guest")
    store = open_store(url)
    epoch = store.create("s", SETTINGS, {("data", "k"): b"v"})
    store.write("s", epoch, {("data", "k"): None})
    store.close()


def test_a_role_may_own_a_schema_that_was_made_for_it(postgres, database, execute, role):
    """It needs no right in the database."""
    execute("CREATE SCHEMA dspex_bridge AUTHORIZATION guest")
    open_store(postgres.url(database, role)).close()


def test_a_read_only_database_is_refused(postgres, database, url):
    postgres.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    assert "read-only" in refusal(url)


def test_a_changed_default_of_the_database_does_not_weaken_the_store(postgres, database, url):
    """What is acknowledged is on the server's disk."""
    for setting in (
        "synchronous_commit = off",
        "statement_timeout = 30",  # ms
        "default_transaction_isolation = serializable",
        "idle_in_transaction_session_timeout = 1",
        "extra_float_digits = -10",
        "bytea_output = escape",
        "search_path = nothing",
    ):
        postgres.execute(f"ALTER DATABASE {database} SET {setting}")
    store = open_store(url)
    settings = SessionSettings("2026-01-01T00:00:00.000Z", 5.123456789012345, Quota())
    store.create("s", settings, {("data", "k"): b"\\x00\0"})
    taken = store.take("s")
    assert (taken.settings, taken.records) == (settings, {("data", "k"): b"\\x00\0"})
    connection = store._writer._link.get()  # no public way shows the settings of a session
    assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
    assert connection.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
    assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)
    store.close()


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    """Workers with another store need it neither."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for name in [each for each in sys.modules if each.startswith("bridge.worker.stores.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    assert "pip install 'dspex-bridge[postgres]'" in refusal("postgresql:///db")
    assert bridge.worker.stores.SCHEMES["sqlite"]
