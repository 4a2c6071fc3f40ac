"""The configuration: what is wrong is said, all at once, and nothing is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from node.config import ConfigError, ensure_folders, load, warnings
from node.config_values import Address

ROOT = Path(__file__).parents[2]
PEER = {"site": "nyc", "http": "http://127.0.0.1:5100", "grpc": "127.0.0.1:5101"}


def problems(tmp_path: Path, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    file = tmp_path / "entrepot.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, tmp_path, environ or {})
    return list(caught.value.problems)


def test_everything_has_a_default(tmp_path: Path) -> None:
    """A site needs no file and no variable, and keeps its data in the data folder."""
    config = load(None, tmp_path, {})
    assert config.http.listen == (Address("127.0.0.1", 5000),)
    assert config.metadata.sqlite.path == tmp_path / "metadata.db"
    assert config.blobs.files.root == tmp_path / "blobs"
    assert config.peers == ()


def test_an_empty_file_is_no_problem(tmp_path: Path) -> None:
    """A file that holds nothing says nothing, and its folder is where the data lies."""
    file = tmp_path / "entrepot.yaml"
    file.write_text("# nothing yet\n")
    config = load(file, tmp_path / "elsewhere", {})
    assert config.metadata.sqlite.path == tmp_path / "metadata.db"


def test_relative_paths_begin_at_the_file(tmp_path: Path) -> None:
    """A path means the same whatever the working directory is; an absolute one stays."""
    file = tmp_path / "entrepot.yaml"
    file.write_text("metadata: {sqlite: {path: db/m.db}}\nblobs: {files: {root: /srv/blobs}}\n")
    config = load(file, Path("elsewhere"), {})
    assert config.metadata.sqlite.path == tmp_path / "db/m.db"
    assert config.blobs.files.root == Path("/srv/blobs")


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    """Each problem is one line with its path, and none hides another."""
    found = problems(
        tmp_path,
        """
site: FRA
http: {listn: [a], listen: "127.0.0.1:5000"}
auth: {}
limits: {page: yes, manifest_bytes: 5}
peers: [{site: nyc, grpc: "127.0.0.1:99999"}, 7]
read_only: perhaps
5: 6
""",
        {"ENTREPOT_COLLECT__GRACE": "0", "ENTREPOT_WEBHOOKS__0__NAME": "ci"},
    )
    assert sorted(found) == [
        "5: a key is text",
        "auth: not built yet",
        "collect.grace: must be at least 1, is '0' (from ENTREPOT_COLLECT__GRACE)",
        "http.listen: expected a list, found '127.0.0.1:5000'",
        "http.listn: unknown key (did you mean listen?)",
        "limits.manifest_bytes: must be at least 1024, is 5",
        "limits.page: expected a whole number, found true",
        "peers[0].grpc: 99999 is no port (1 to 65535)",
        "peers[0].http: is required",
        "peers[1]: expected keys with values, found 7",
        "read_only: expected true or false, found 'perhaps'",
        "site: a site's name is 1 to 63 of a-z, 0-9 and -, with no - at either end",
        "webhooks: not built yet (from ENTREPOT_WEBHOOKS__0__NAME)",
    ]


def test_parts_that_are_wrong_hide_no_contradiction_of_others(tmp_path: Path) -> None:
    """What can be read is compared although something else can't, and nothing else is."""
    (tmp_path / "short").write_text("secret\n")
    found = problems(
        tmp_path,
        """
site: fra
http: {listen: ["127.0.0.1:5002", "5001"], headers: {"a b": c, Date: now, B: "", C: 5}}
grpc: {listen: "127.0.0.1:6000"}
replicator: {listen: "127.0.0.1:6000"}
peers:
- {site: NYC, http: "http://127.0.0.1:1", grpc: "127.0.0.1:1"}
- {site: fra, http: "http://127.0.0.1", grpc: nowhere, secret_file: short}
- 7
- {site: ams, http: "http://ams.example", tags: [a/b, c/d]}
- {site: ams, http: "http://127.0.0.1", grpc: "127.0.0.1:1", secret_file: 5}
""",
    )
    assert [line.partition(": ")[0] for line in sorted(found)] == [
        "http.headers.B",
        "http.headers.C",
        "http.headers.Date",
        "http.headers.a b",
        "http.listen[1]",
        "peers[0].site",
        "peers[1].grpc",
        "peers[1].secret_file",
        "peers[1].site",
        "peers[2]",
        "peers[3].grpc",
        "peers[3].secret_file",
        "peers[3].tags[0]",
        "peers[3].tags[1]",
        "peers[4].secret_file",
        "peers[4].site",
        "replicator.listen",
    ]


def test_what_cannot_be_read_contradicts_nothing(tmp_path: Path) -> None:
    """No default takes the place of a wrong value, to be called wrong itself."""
    found = problems(
        tmp_path,
        """
site: Local
metrics: {listen: "127.0.0.1:5001"}
grpc: {listen: 5001}
peers: [{site: local, http: "http://nyc.example", grpc: "nyc.example:1", secret_file: 5}]
""",
    )
    assert sorted(line.partition(": ")[0] for line in found) == [
        "grpc.listen",
        "peers[0].secret_file",
        "site",
    ]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("http: {5: 6, listn: a}", id="a number as key"),
        pytest.param("peers: [&a {site: A, tags: [/]}, *a]", id="the same peer twice"),
        pytest.param("peers: {0: {site: A}}\nhttp: [a]\nblobs: 5", id="no sections at all"),
        pytest.param("metadata: {sqlite: {path: [a]}, etcd: {5: 6}}", id="inside of a section"),
    ],
)
def test_whatever_is_wrong_is_found_in_the_end(tmp_path: Path, text: str) -> None:
    """Nothing that YAML can hold keeps the search from its end."""
    assert problems(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("site: [", ":1:8: ", id="a list that never ends"),
        pytest.param("site: a\nsite: b\n", ":2:1: site is given twice", id="a key twice"),
        pytest.param("http: {public_url: null, public_url: null}", "twice", id="twice, inside"),
        pytest.param("- site: a", "expected keys with values, found a list", id="a list"),
        pytest.param("!!python/object/apply:os.getcwd []", "constructor", id="a Python object"),
        pytest.param("5: 6", "5: a key is text", id="a number as key"),
        pytest.param("site: \udcff", "is no YAML", id="not UTF-8"),
    ],
)
def test_what_is_no_configuration_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    """A file that is no YAML, or no configuration, is refused in one line with its place."""
    file = tmp_path / "entrepot.yaml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        load(file, tmp_path, {})
    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]
    assert "\n" not in caught.value.problems[0]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """No file is one line, not a traceback."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.yaml", tmp_path, {})
    assert caught.value.problems == (
        f"{tmp_path}/none.yaml: can't be read: No such file or directory",
    )


def test_two_listeners_never_share_an_address(tmp_path: Path) -> None:
    """The same port twice is seen before anything listens, any-host addresses included."""
    found = problems(
        tmp_path, "grpc: {listen: '0.0.0.0:5002'}\nreplicator: {listen: '127.0.0.1:5000'}"
    )
    assert found == [
        "replicator.listen: 127.0.0.1:5000 is taken by http.listen[0]",
        "metrics.listen: 127.0.0.1:5002 is taken by grpc.listen",
    ]


# --- peers


@pytest.mark.parametrize(
    ("peer", "problem"),
    [
        pytest.param("site: local", "peers[0].site: local is this site's own name", id="itself"),
        pytest.param("deletes: some", "peers[0].deletes: expected true or", id="some deletes"),
        pytest.param("bandwidth: fast", "peers[0].bandwidth: expected a rate", id="no rate"),
        pytest.param("bandwidth: 100", "peers[0].bandwidth: ", id="a rate without a unit"),
        pytest.param("bandwidth: 63kbit/s", "at least 64kbit/s", id="too slow a rate"),
        pytest.param("blobs_in_flight: 0", "must be at least 1, is 0", id="no blob in flight"),
        pytest.param("repositories: []", "may not be empty", id="no pattern"),
        pytest.param("repositories: [a//b]", "is no pattern of repositories", id="empty segment"),
        pytest.param("repositories: ['{a}']", "'{a}' is no pattern of repositories", id="braces"),
        pytest.param("repositories: [A]", "is no pattern of repositories", id="upper case"),
        pytest.param("tags: [a/b]", "is no pattern of tags", id="a slash in a tag"),
        pytest.param("http: 'http://nyc.example'", "secret_file: is required", id="far, over HTTP"),
        pytest.param("grpc: 'nyc.example:1'", "secret_file: is required", id="far, over gRPC"),
        pytest.param("secret_file: none", "none: can't be read: No such file", id="no secret"),
        pytest.param("secret_file: short", "at least 16 printable", id="a short secret"),
    ],
)
def test_peers_are_checked(tmp_path: Path, peer: str, problem: str) -> None:
    """A peer that can't be followed, or not safely, is refused."""
    (tmp_path / "short").write_text("secret\n")
    changed = PEER | {peer.partition(":")[0]: ""}
    lines = [f"  {key}: {value}" for key, value in changed.items() if value]
    (found,) = problems(tmp_path, "\n".join(["peers:", "-", *lines, f"  {peer}"]))
    assert problem in found


def test_two_peers_of_one_name_are_refused(tmp_path: Path) -> None:
    """A site is followed once."""
    (found,) = problems(tmp_path, f"peers: [{PEER}, {PEER}]")
    assert found == "peers[1].site: nyc is the name of peers[0] already"


def test_without_a_secret_our_own_feed_stays_on_this_machine(tmp_path: Path) -> None:
    """Anybody could say that it is the peer: then only this machine may."""
    (found,) = problems(tmp_path, f"grpc: {{listen: '10.0.0.1:5001'}}\npeers: [{PEER}]")
    assert found.startswith("peers[0].secret_file: is required")


def test_a_secret_is_read_and_never_shown(tmp_path: Path) -> None:
    """The secret of a pair is the text of its file, and no output of the configuration holds it."""
    (tmp_path / "pair.secret").write_text("correct-horse-battery\n")
    file = tmp_path / "entrepot.yaml"
    file.write_text(
        "peers: [{site: nyc, http: 'https://nyc.example', grpc: 'nyc.example:1',"
        " secret_file: pair.secret}]"
    )
    config = load(file, tmp_path, {})
    secret = config.peers[0].secret
    assert secret is not None
    assert secret.get_secret_value() == "correct-horse-battery"
    assert "horse" not in f"{config!r} {config.peers[0]!r}"


# --- variables


def test_variables_go_over_the_file(tmp_path: Path) -> None:
    """A variable wins, also inside of a list; lists are given as YAML."""
    file = tmp_path / "entrepot.yaml"
    file.write_text(f"site: fra\npeers: [{PEER}]\nhttp: {{public_url: 'http://a'}}\n")
    config = load(
        file,
        tmp_path,
        {
            "ENTREPOT_SITE": "123",
            "ENTREPOT_HTTP__LISTEN": '["127.0.0.1:6000", "127.0.0.1:6001"]',
            "ENTREPOT_HTTP__PUBLIC_URL": "null",
            "ENTREPOT_PEERS__0__FOLLOW": "false",
            "ENTREPOT_READ_ONLY": "true",
            "ENTREPOT_LIMITS__PAGE": "",
        },
    )
    assert config.site == "123"
    assert [address.port for address in config.http.listen] == [6000, 6001]
    assert config.http.public_url is None
    assert config.peers[0].site == "nyc"
    assert not config.peers[0].follow
    assert config.read_only
    assert config.limits.page == 1000


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("ENTREPOT_HTP__LISTEN", "x", "htp: unknown key (did you mean http?) (from"),
        ("ENTREPOT_PEERS__5__SITE", "x", "ENTREPOT_PEERS__5__SITE: there is no such key"),
        ("ENTREPOT_SITE__NAME", "x", "ENTREPOT_SITE__NAME: there is no such key"),
        ("ENTREPOT_HTTP__LISTEN", "[a", "ENTREPOT_HTTP__LISTEN:1:3: "),
        ("ENTREPOT_HTTP", "x", "http: expected keys with values, found 'x'"),
    ],
)
def test_no_variable_is_ignored(tmp_path: Path, name: str, value: str, problem: str) -> None:
    """A variable that names nothing is a problem as much as a key that does."""
    (found,) = problems(tmp_path, f"site: fra\npeers: [{PEER}]\n", {name: value})
    assert found.startswith(problem)


def test_variables_of_others_are_left_alone(tmp_path: Path) -> None:
    """What Kubernetes sets beside a Service called entrepot, and what the command takes itself."""
    environ = {
        "ENTREPOT_SERVICE_HOST": "10.0.0.1",
        "ENTREPOT_PORT": "tcp://10.0.0.1:5000",
        "ENTREPOT_PORT_5000_TCP_ADDR": "10.0.0.1",
        "ENTREPOT_SERVICE_PORT_HTTP": "5000",
        "ENTREPOT_CONFIG": "x",
        "ENTREPOT_DATA": "y",
        "ENTREPOT_SUPERVISOR": "z",
        "PATH": "/bin",
    }
    assert load(None, tmp_path, environ) == load(None, tmp_path, {})


def test_what_is_left_of_another_registry_is_named(tmp_path: Path) -> None:
    """Variables of registry:2 do nothing here, and an operator hears of it."""
    config = load(None, tmp_path, {})
    found = warnings(config, {"REGISTRY_AUTH": "htpasswd"})
    assert any("REGISTRY_AUTH" in warning for warning in found)
    assert not any("REGISTRY" in warning for warning in warnings(config, {}))


def test_an_open_door_is_named(tmp_path: Path) -> None:
    """Listening to other machines without auth is possible, and said."""
    config = load(None, tmp_path, {"ENTREPOT_HTTP__LISTEN": '["0.0.0.0:5000"]'})
    assert len(warnings(config, {})) == len(warnings(load(None, tmp_path, {}), {})) + 1


# --- the folders


def test_the_folders_are_made(tmp_path: Path) -> None:
    """A first start needs no preparation."""
    config = load(None, tmp_path / "a/b", {})
    ensure_folders(config)
    assert (tmp_path / "a/b/blobs").is_dir()


def test_folders_that_cannot_be_written_are_all_named(tmp_path: Path) -> None:
    """Both are said at once, by the key that names them."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        ensure_folders(
            load(
                None,
                tmp_path,
                {
                    "ENTREPOT_METADATA__SQLITE__PATH": "file/metadata.db",
                    "ENTREPOT_BLOBS__FILES__ROOT": "file/blobs",
                },
            )
        )
    assert [line.partition(":")[0] for line in caught.value.problems] == [
        "metadata.sqlite.path",
        "blobs.files.root",
    ]
