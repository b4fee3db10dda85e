"""Config files: what the sample gives, and one line of text for each way to get it wrong."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loom.errors import ActorImportError, ConfigError
from loom.node import config
from loom.supervise.spec import BackoffSpec, ChildSpec, MailboxSpec, SnapshotSpec, SupervisorSpec

SAMPLE = """
[node]
name = "alpha"
arena = "64MiB"
[supervisor]
strategy = "rest_for_one"
max_restarts = 5
within_s = 10
[supervisor.backoff]
base_s = 0.1
[[supervisor.child]]
name = "index"
actor = "myapp.index:Index"
args = [64]
mailbox = { capacity = 500 }
[[supervisor.child]]
name = "workers"
actor = "myapp.work:Worker"
kwargs = { retries = 3 }
instances = 4
restart = "transient"
shutdown_s = 2
[[supervisor.child]]
name = "edge"
[supervisor.child.supervisor]
strategy = "one_for_all"
[[supervisor.child.supervisor.child]]
name = "edge.main"
actor = "myapp.edge:Edge"
shutdown_s = "brutal_kill"
"""


def refusal(text: str) -> str:
    """The error for a config text, without the code and the file, which are always there."""
    with pytest.raises(ConfigError) as caught:
        config.parse(textwrap.dedent(text), "index.toml")
    assert type(caught.value) is ConfigError
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith("L1001 index.toml: $")
    return line.removeprefix("L1001 index.toml: ")


def child(lines: str) -> str:
    return refusal(f'[[supervisor.child]]\nactor = "m:First"\n[[supervisor.child]]\n{lines}')


# --- What is right -----------------------------------------------------------------------------------------------


def test_sample() -> None:
    made = config.parse(SAMPLE, "index.toml", Path("/"))
    assert (made.name, made.arena_bytes, made.path, made.file) == ("alpha", 64 * 1024**2, ("/",), "index.toml")
    edge = SupervisorSpec(
        "one_for_all", children=(ChildSpec("myapp.edge:Edge", (), {}, "edge.main", shutdown_s="brutal_kill"),)
    )
    assert made.supervisor == SupervisorSpec(
        strategy="rest_for_one",
        max_restarts=5,
        within_s=10,
        backoff=BackoffSpec(base_s=0.1),
        children=(
            ChildSpec("myapp.index:Index", args=(64,), name="index", mailbox=MailboxSpec(500)),
            ChildSpec(
                "myapp.work:Worker", (), {"retries": 3}, "workers", restart="transient", shutdown_s=2, instances=4
            ),
            ChildSpec(edge, name="edge"),
        ),
    )


def test_sample_of_the_docstring_is_right() -> None:
    lines = (config.__doc__ or "").splitlines()
    first = lines.index("    [node]")
    sample = textwrap.dedent("\n".join(lines[first : lines.index("", first)])).replace('path = ["src"]', "path = []")
    made = config.parse(sample)
    assert made.name == "alpha"
    assert [one.name for one in made.supervisor.children] == ["index", "workers", "edge"]
    assert made.supervisor.children[0].mailbox.capacity == 500


def test_empty_file_is_all_defaults() -> None:
    made = config.parse("", "index.toml", Path("/"))
    assert made == config.NodeConfig("default", 256 * 1024**2, ("/",), SupervisorSpec(), "index.toml")


def test_child_without_a_name_gets_its_class_name() -> None:
    made = config.parse('[[supervisor.child]]\nactor = "m:Index"')
    assert made.supervisor.children[0].name == "index"


def test_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        config.parse("").name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("size", "size_bytes"),
    [
        ('"256MiB"', 256 * 1024**2),
        ('"1GiB"', 1024**3),
        ('"4KiB"', 4096),
        ('"512B"', 512),
        ('"1KB"', 1000),
        ('"3MB"', 3_000_000),
        ('"2GB"', 2_000_000_000),
        ('"1.5GiB"', 3 * 512 * 1024**2),
        ('" 64 MiB "', 64 * 1024**2),
        ("1048576", 1024**2),
    ],
)
def test_sizes(size: str, size_bytes: int) -> None:
    assert config.parse(f"[node]\narena = {size}").arena_bytes == size_bytes


@pytest.mark.parametrize(
    "size", ['"256"', '"MiB"', '"-1MiB"', "0", "-5", '"0MiB"', "1.5", "true", "[]", '"9999999999GiB"']
)
def test_sizes_refused(size: str) -> None:
    assert refusal(f"[node]\narena = {size}").startswith('$.node.arena: expected a size such as "256MiB"')


@pytest.mark.parametrize(("size", "near"), [("256mib", "256MiB"), ("1g", "1GiB"), ("2kb", "2KB"), ("7Mib", "7MiB")])
def test_size_with_a_misspelt_unit(size: str, near: str) -> None:
    assert refusal(f'[node]\narena = "{size}"').endswith(f"did you mean '{near}'?")


# --- What is wrong, and where ------------------------------------------------------------------------------------


def test_misspelt_word() -> None:
    assert child('actor = "m:A"\nrestart = "permanant"') == (
        "$.supervisor.child[1].restart: expected 'permanent', 'transient' or 'temporary', got 'permanant': "
        "did you mean 'permanent'?"
    )


@pytest.mark.parametrize(
    ("text", "where", "remedy"),
    [
        ("[nodes]", "$.nodes", "did you mean 'node'?"),
        ("[node]\nnam = 'a'", "$.node.nam", "did you mean 'name'?"),
        (
            "[node]\nzzz = 'a'",
            "$.node.zzz",
            "the keys here are name, arena, arena_full, arena_wait_s, arena_spill, state, path",
        ),
        ("[supervisor]\nstrat = 1\nstrategi = 'x'", "$.supervisor.strat", "did you mean 'strategy'?"),
        ("[[supervisor.children]]", "$.supervisor.children", "did you mean 'child'?"),
        ("[supervisor.backoff]\nbase = 1", "$.supervisor.backoff.base", "did you mean 'base_s'?"),
        ('[supervisor]\n"a b" = 1', '$.supervisor."a b"', ", backoff"),
    ],
)
def test_unknown_keys(text: str, where: str, remedy: str) -> None:
    line = refusal(text)
    assert line.startswith(f"{where}: expected a known key, got ")
    assert line.endswith(remedy)


def test_unknown_keys_of_a_child() -> None:
    line = "$.supervisor.child[1].restrat: expected a known key, got 'restrat': did you mean 'restart'?"
    assert child('actor = "m:A"\nrestrat = 1') == line
    where = "$.supervisor.child[1].mailbox.capacty: expected a known key"
    assert child('actor = "m:A"\nmailbox = { capacty = 1 }').startswith(where)


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        ('actor = "m:A"\nshutdown_s = -1', ".shutdown_s: expected"),
        ('actor = "m:A"\ninstances = 0', ".instances: expected"),
        ('actor = "m:A"\nname = "a b"', ".name: expected"),
        ('actor = "m:A"\nname = "node"', ".name: expected a name that is not reserved"),
        ('actor = "m:A"\nargs = "64"', ".args: expected a list"),
        ('actor = "m:A"\nkwargs = [1]', ".kwargs: expected a table"),
        ('actor = "m:A"\nmailbox = 5', ".mailbox: expected a table"),
        ('actor = "m:A"\nmailbox = { capacity = 0 }', ".mailbox.capacity: expected"),
        ('actor = "m:A"\nmailbox = { policy = "refuze" }', ".mailbox.policy: expected"),
        ('actor = "m:A"\nlimits = { memory_bytes = 1 }', ".limits.memory_bytes: expected"),
        ('actor = "m:A"\nlimits = { memory_bytes = "2 gigs" }', ".limits.memory_bytes: expected a size such as"),
        ('actor = "m:A"\nlimits = { memory = 1 }', ".limits.memory: expected a known key"),
        ('actor = "m:A"\nwatchdog_s = 0', ".watchdog_s: expected"),
        ('actor = "m:A"\nsignificant = true', ".significant: expected"),
        ('actor = "m.A"', '.actor: expected "module:Class"'),
        ("actor = 5", '.actor: expected "module:Class"'),
        ("supervisor = 5", ".supervisor: expected a table"),
        ('supervisor = { strategy = "x" }', ".supervisor.strategy: expected"),
        ("supervisor = { child = [{ actor = 'm:A', restart = 'x' }] }", ".supervisor.child[0].restart: expected"),
        ("supervisor = { child = [5] }", ".supervisor.child[0]: expected a table"),
        ("supervisor = {}\nargs = [1]", ".args: expected nothing"),
        ('name = "a"', ": expected actor or supervisor, got neither"),
        ('actor = "m:A"\nsupervisor = {}', ": expected actor or supervisor, got both"),
    ],
)
def test_wrong_child(lines: str, where: str) -> None:
    assert child(lines).startswith(f"$.supervisor.child[1]{where}")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("node = 5", "$.node: expected a table, got 5 (int)"),
        ("[[node]]", "$.node: expected a table"),
        ("[node]\nname = 5", "$.node.name: expected a name"),
        ("[node]\nname = '../a'", "$.node.name: expected a name"),
        ("[node]\npath = 'src'", "$.node.path: expected a list of folders"),
        ("[node]\npath = [5]", "$.node.path[0]: expected a folder"),
        ("[node]\npath = ['']", "$.node.path[0]: expected a folder"),
        ('[node]\npath = ["a\\u0000"]', "$.node.path[0]: expected a folder"),
        ("supervisor = 5", "$.supervisor: expected a table"),
        ("[supervisor]\nstrategy = 'simple_one_for_one'", "$.supervisor.children: expected one child spec"),
        ("[supervisor]\nmax_restarts = -1", "$.supervisor.max_restarts: expected"),
        ("[supervisor]\nwithin_s = 0", "$.supervisor.within_s: expected"),
        ("[supervisor]\nauto_shutdown = 'some'", "$.supervisor.auto_shutdown: expected"),
        ("[supervisor.backoff]\nreset_after_s = 0", "$.supervisor.backoff.reset_after_s: expected"),
        ("[supervisor]\nbackoff = 5", "$.supervisor.backoff: expected a table"),
        ("[supervisor.backoff]\nfactor = 0", "$.supervisor.backoff.factor: expected"),
    ],
)
def test_wrong_node_and_supervisor(text: str, start: str) -> None:
    assert refusal(text).startswith(start)


def test_templates_and_significant_children() -> None:
    text = """
    [supervisor]
    auto_shutdown = "any"
    [[supervisor.child]]
    actor = "m:Job"
    restart = "transient"
    significant = true
    [[supervisor.child]]
    name = "sessions"
    [supervisor.child.supervisor]
    strategy = "simple_one_for_one"
    backoff = { base_s = 0.5, reset_after_s = 60 }
    [[supervisor.child.supervisor.child]]
    actor = "m:Session"
    restart = "temporary"
    """
    spec = config.parse(text).supervisor
    job, sessions = spec.children
    assert (spec.auto_shutdown, job.significant) == ("any", True)
    assert sessions.supervisor is not None
    assert sessions.supervisor.strategy == "simple_one_for_one"
    assert sessions.supervisor.backoff.reset_after_s == 60
    wrong = "[[supervisor.child]]\nactor='m:A'\nrestart='transient'\nsignificant = true"
    assert refusal(wrong).startswith("$.supervisor.child[0].significant: expected false, as the supervisor's")


def test_child_with_one_bracket() -> None:
    assert refusal("[supervisor.child]\nname = 'a'").endswith("write [[supervisor.child]], with two brackets")
    inner = "[[supervisor.child]]\nname='a'\n[supervisor.child.supervisor.child]\nname='b'"
    assert refusal(inner).endswith("write [[supervisor.child.supervisor.child]], with two brackets")


def test_one_name_twice_over_the_whole_tree() -> None:
    line = refusal(SAMPLE.replace("edge.main", "index"))
    assert line.startswith("$.supervisor.child[2].supervisor.child[0].name: expected a name that no other child")
    assert "got 'index' twice" in line


def test_name_of_an_instance_twice() -> None:
    line = refusal(SAMPLE.replace("edge.main", "workers.3"))
    assert "got 'workers.3' twice, once as a member of 'workers' (instances = 4)" in line
    assert config.parse(SAMPLE.replace("edge.main", "workers.4"))


def test_broken_toml_has_line_and_column() -> None:
    assert "(at line 2, column 8)" in refusal("[node]\nname = \n")


@pytest.mark.parametrize("text", ["x = " + "9" * 5000, "x = " + "[" * 5000, "x = " + "{a=" * 5000])
def test_toml_beyond_the_parser(text: str) -> None:
    assert refusal(text).startswith("$: expected ")


def test_huge_number() -> None:
    assert refusal("[node]\narena = 0x" + "f" * 9000).startswith("$.node.arena: expected")
    assert refusal("[supervisor]\nwithin_s = 0x" + "f" * 9000).startswith("$.supervisor.within_s: expected")


# --- Files -------------------------------------------------------------------------------------------------------


def load_refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    line = str(caught.value)
    assert line.isprintable()
    return line


def test_load_puts_the_own_folder_first(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    file = tmp_path / "index.toml"
    file.write_text('[node]\npath = ["src", ".", "src/../src"]')
    made = config.load(file)
    assert made.path == (str(tmp_path.resolve()), str((tmp_path / "src").resolve()))
    assert made.file == str(file)


def test_load_relative_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert config.load(Path("index.toml")).path == (str(tmp_path.resolve()),)


def test_load_folder_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "index.toml"
    file.write_text('[node]\npath = ["index.toml"]')
    assert "$.node.path[0]: expected a folder, got 'index.toml', which is a file" in load_refusal(file)
    file.write_text('[node]\npath = [".", "lib"]')
    assert "$.node.path[1]: expected a folder, got 'lib', which is not there" in load_refusal(file)


def test_load_accepts_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "index.toml"
    file.write_bytes(b"\xef\xbb\xbf[node]\r\nname = 'alpha'\r\n")
    assert config.load(file).name == "alpha"


def test_load_missing_file(tmp_path: Path) -> None:
    (tmp_path / "index.toml").write_text("")
    line = load_refusal(tmp_path / "idnex.toml")
    assert f"{tmp_path}/idnex.toml: $: expected a TOML file, got no such file: did you mean " in line
    assert "index.toml'?" in line
    assert "got no such file: check the path" in load_refusal(tmp_path / "no" / "such.toml")


def test_load_folder(tmp_path: Path) -> None:
    assert "got a folder" in load_refusal(tmp_path)


def test_load_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything: the refusal is played
    assert "got permission denied" in load_refusal(tmp_path / "index.toml")


def test_load_odd_paths(tmp_path: Path) -> None:
    assert "null byte" in load_refusal(tmp_path / "a\0b.toml")
    assert "a\\nb.toml: $: " in load_refusal(tmp_path / "a\nb.toml")
    assert "expected a TOML file" in load_refusal(Path(os.fsdecode(bytes(tmp_path) + b"/\xff.toml")))


def test_load_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "index.toml"
    file.write_bytes(b"[node]\nname = 'caf\xe9'\n")
    assert "$: expected UTF-8 text, got byte 0xe9 at line 2: save the file as UTF-8" in load_refusal(file)


def test_load_too_large(tmp_path: Path) -> None:
    file = tmp_path / "index.toml"
    with file.open("wb") as opened:
        opened.truncate(config.FILE_MAX_BYTES + 1)
    assert f"more than {config.FILE_MAX_BYTES} bytes" in load_refusal(file)


# --- describe ----------------------------------------------------------------------------------------------------


def test_describe_is_json() -> None:
    text = SAMPLE.replace("args = [64]", "args = [64, 1979-05-27, inf, [true, { a = 'b' }]]")
    made = config.describe(config.parse(text, "index.toml", Path("/")))
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert (made["file"], made["name"], made["arena_bytes"], made["path"]) == (
        "index.toml",
        "alpha",
        64 * 1024**2,
        ["/"],
    )
    index, workers, edge = made["supervisor"]["children"]
    assert index["args"] == [64, "1979-05-27", "inf", [True, {"a": "b"}]]
    assert index["actor"] == "myapp.index:Index"
    assert workers["members"] == ["workers.0", "workers.1", "workers.2", "workers.3"]
    assert (workers["restart"], workers["shutdown_s"], workers["kwargs"]) == ("transient", 2.0, {"retries": 3})
    assert edge["supervisor"]["children"][0]["name"] == "edge.main"
    assert made["supervisor"]["backoff"]["base_s"] == 0.1


def test_describe_names_a_class() -> None:
    spec = SupervisorSpec(children=(ChildSpec(Path),))
    child = config.describe(config.NodeConfig(supervisor=spec))["supervisor"]["children"][0]
    assert child["actor"].endswith(":Path")


# --- check_actors ------------------------------------------------------------------------------------------------

Check = Callable[[str, str], None]


@pytest.fixture
def check(tmp_path: Path) -> Iterator[Check]:
    """Writes a module `loom_test_app` beside a config with one child, and checks it."""

    def run(module: str, lines: str) -> None:
        (tmp_path / "loom_test_app.py").write_text(textwrap.dedent(module))
        file = tmp_path / "index.toml"
        file.write_text(f'[[supervisor.child]]\nname = "edge"\nsupervisor = {{ child = [{{ {lines} }}] }}')
        config.check_actors(config.load(file))

    before = list(sys.path)
    yield run
    assert sys.path == before
    for name in [name for name in sys.modules if name.startswith("loom_test_app")]:
        del sys.modules[name]


def actor_refusal(check: Check, module: str, lines: str) -> str:
    with pytest.raises(ActorImportError) as caught:
        check(module, lines)
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith("L1006 ")
    assert ".toml: $.supervisor.child[0].supervisor.child[0]." in line
    return line


GOOD = """
    from loom.actor.actor import Actor

    class Index(Actor):
        def __init__(self, dim, *, fast=False): ...

    class Plain(Actor):
        class Inner(Actor): ...

    class NoActor: ...

    def index(): ...
"""


@pytest.mark.parametrize(
    "lines",
    [
        "actor = 'loom_test_app:Index', args = [64]",
        "actor = 'loom_test_app:Index', args = [64], kwargs = { fast = true }",
        "actor = 'loom_test_app:Index', kwargs = { dim = 64 }",
        "actor = 'loom_test_app:Plain'",
        "actor = 'loom_test_app:Plain.Inner'",
    ],
)
def test_check_actors(check: Check, lines: str) -> None:
    check(GOOD, lines)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ("args = [64, 65]", ".args: expected arguments for Index(dim, *, fast=False), got (64, 65): too many"),
        ("kwargs = { dmi = 64 }", ".kwargs: expected arguments for Index(dim, *, fast=False), got (dmi=64): "),
        ("name = 'a'", "[0]: expected arguments for Index(dim, *, fast=False), got (): missing"),
    ],
)
def test_check_actors_binds_the_args(check: Check, lines: str, text: str) -> None:
    with pytest.raises(ActorImportError, match="L1006") as caught:
        check(GOOD, f"actor = 'loom_test_app:Index', {lines}")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("actor", "text"),
    [
        ("Indx", "expected a class 'Indx' in 'loom_test_app', got no 'Indx' there: did you mean 'Index'?"),
        ("Plain.Iner", "got no 'Iner' there: did you mean 'Inner'?"),
        ("Zzz", "got no 'Zzz' there: it has no class with a name like that"),
        ("NoActor", "got a class that does not derive from it: write class NoActor(loom.Actor)"),
        ("index", "to be a loom.Actor class, got <function index"),
        ("Actor", "got loom.Actor itself"),
    ],
)
def test_check_actors_wants_an_actor_class(check: Check, actor: str, text: str) -> None:
    assert text in actor_refusal(check, GOOD, f"actor = 'loom_test_app:{actor}'")


def test_check_actors_missing_module(check: Check) -> None:
    line = actor_refusal(check, "", "actor = 'loom_test_app_other.index:Index'")
    assert (
        ".actor: expected a module 'loom_test_app_other.index' that can be imported, got ModuleNotFoundError: " in line
    )
    assert "add its folder to [node] path, or pip install it" in line


def test_check_actors_module_that_needs_a_missing_one(check: Check) -> None:
    line = actor_refusal(check, "import loom_test_missing", "actor = 'loom_test_app:Index'")
    assert "'loom_test_app' needs 'loom_test_missing': pip install it" in line


@pytest.mark.parametrize(
    ("module", "got"),
    [
        ("1 / 0", "got ZeroDivisionError: division by zero"),
        ("raise ValueError('two\\nlines')", "got ValueError: two lines"),
        ("import sys; sys.exit(3)", "got SystemExit: 3"),
        ("def broken(:", "got SyntaxError: "),
    ],
)
def test_check_actors_module_that_fails(check: Check, module: str, got: str) -> None:
    line = actor_refusal(check, module, "actor = 'loom_test_app:Index'")
    assert got in line
    assert line.endswith("mend that module")


def test_check_actors_keeps_stdout_clean(check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    check("print('hello')" + GOOD.replace("\n    ", "\n"), "actor = 'loom_test_app:Plain'")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")


def test_check_actors_takes_a_class(check: Check) -> None:
    bad = config.NodeConfig(supervisor=SupervisorSpec(children=(ChildSpec(Path),)))
    with pytest.raises(ActorImportError, match="does not derive"):
        config.check_actors(bad)


# --- State -------------------------------------------------------------------------------------------------------


def test_state_and_snapshots() -> None:
    text = """
    [node]
    state = "var"
    [[supervisor.child]]
    actor = "a:B"
    snapshot = { every_messages = 3, every_s = 2, at_stop = false }
    """
    made = config.parse(text, "index.toml", Path("/srv"))
    assert made.state == "/srv/var"
    assert made.supervisor.children[0].snapshot == SnapshotSpec(3, 2.0, False)
    described = config.describe(made)
    assert described["state"] == "/srv/var"
    snapshot = described["supervisor"]["children"][0]["snapshot"]
    assert snapshot == {"every_messages": 3, "every_s": 2.0, "at_stop": False}


@pytest.mark.parametrize("value", ["3", "''", "['a']"])
def test_a_wrong_state_folder(value: str) -> None:
    assert refusal(f"[node]\nstate = {value}").startswith("$.node.state: expected a folder, got ")


def test_a_wrong_snapshot_names_the_place() -> None:
    line = refusal("[[supervisor.child]]\nactor = 'a:B'\nsnapshot = { every = 3 }")
    assert line.startswith("$.supervisor.child[0].snapshot.every: expected a known key, got 'every'")
    line = refusal("[[supervisor.child]]\nactor = 'a:B'\nsnapshot = { every_messages = 0 }")
    assert line.startswith("$.supervisor.child[0].snapshot.every_messages: expected a whole number >= 1, got 0")
