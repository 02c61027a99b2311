"""The files of deploy/ agree with each other, with the command line, and with the documents."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from bridge.cli import _parser
from bridge.options import DEFAULTS
from container import DEPLOY, SOCKET, Image

SERVER = Image(DEPLOY / "Dockerfile")
APPLICATION = Image(DEPLOY / "elixir" / "Dockerfile")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
DEPLOYMENT, *OTHERS = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
POD = DEPLOYMENT["spec"]["template"]["spec"]
(SIDECAR,) = POD["initContainers"]
(MAIN,) = POD["containers"]
LINES = {
    "Dockerfile": SERVER.command,
    "compose.yaml": COMPOSE["bridge"]["command"],
    "kubernetes.yaml": SIDECAR["args"],
}


def parsed(words):
    """Return what the real parser makes of a command line of dspex-bridge."""
    return _parser(words).parse_args(words)


def seconds(text):
    return float(re.fullmatch(r"(\d+)s", text)[1])


@pytest.mark.parametrize("name", LINES)
def test_the_flags_exist(name):
    """Each server listens where the check, the volumes and the application expect it."""
    assert SERVER.entrypoint[0] == "dspex-bridge"
    arguments = parsed([*SERVER.entrypoint[1:], *LINES[name]])
    assert arguments.listen == SOCKET
    assert arguments.max_memory == 1 << 30


@pytest.mark.parametrize("command", [SERVER.check, SIDECAR["livenessProbe"]["exec"]["command"]])
def test_the_checks_exist(command):
    assert command[0] == "dspex-bridge"
    assert parsed(command[1:]).address == SOCKET


def test_all_probes_ask_the_server():
    """Each gives up before its time limit, so that its line can be read."""
    probes = [SIDECAR[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
    for probe in probes:
        assert parsed(probe["exec"]["command"][1:]).timeout < probe["timeoutSeconds"]
    assert parsed(SERVER.check[1:]).timeout < seconds(SERVER.check_flags["timeout"])


def test_the_times_to_stop_fit():
    """The server has --drain, then --grace and a second; in a pod the application stops before that."""
    words = {name: parsed([*SERVER.entrypoint[1:], *line]) for name, line in LINES.items()}
    needs = {name: each.drain + getattr(each, "grace", DEFAULTS.grace) + 1 for name, each in words.items()}
    assert seconds(COMPOSE["bridge"]["stop_grace_period"]) > needs["compose.yaml"]
    (drains,) = re.findall(r"@drain_ms (\d+)_000", (DEPLOY / "elixir/lib/answers/application.ex").read_text())
    assert seconds(COMPOSE["application"]["stop_grace_period"]) > int(drains)
    before = int(MAIN["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["terminationGracePeriodSeconds"] > before + int(drains) + needs["kubernetes.yaml"]


def test_the_socket_is_shared():
    """In both, the application connects to where the server listens, on a volume that both have."""
    folder = str(Path(SOCKET).parent)
    for service in ("application", "bridge"):
        assert f"socket:{folder}" in COMPOSE[service]["volumes"]
    assert COMPOSE["application"]["environment"]["BRIDGE_SOCKET"] == f"unix:{SOCKET}"
    for each in (SIDECAR, MAIN):
        assert {"name": "socket", "mountPath": folder} in each["volumeMounts"]
    assert {"name": "BRIDGE_SOCKET", "value": f"unix:{SOCKET}"} in MAIN["env"]


def test_one_user_runs_the_server_and_the_application():
    """No other gets a worker; the volume of the socket belongs to it."""
    volumes = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["volumes"]
    (uid,) = {*SERVER.user, *APPLICATION.user}
    assert f"uid={uid},gid={uid},mode=0700" in volumes["socket"]["driver_opts"]["o"]
    context = POD["securityContext"]
    assert {context["runAsUser"], context["runAsGroup"], context["fsGroup"]} == {int(uid)}
    assert context["runAsNonRoot"]


def test_ports_agree():
    (exposed,) = re.findall(r"^EXPOSE (\d+)$", (DEPLOY / "elixir" / "Dockerfile").read_text(), re.MULTILINE)
    assert f'"PORT", "{exposed}"' in (DEPLOY / "elixir/lib/answers/application.ex").read_text()
    assert COMPOSE["application"]["ports"] == [f"127.0.0.1:{exposed}:{exposed}"]
    assert MAIN["ports"] == [{"name": "http", "containerPort": int(exposed)}]
    assert f"127.0.0.1/{exposed}" in APPLICATION.check[-1]


def test_paths_that_are_probed_are_served():
    text = (DEPLOY / "elixir/lib/answers/web.ex").read_text()
    paths = {MAIN[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    for path in (*paths, "/ready"):
        assert f'answer("GET", ["{path[1:]}"]' in text
    assert "GET /ready" in APPLICATION.check[-1]


def test_variables_are_those_that_the_application_reads():
    text = "".join(path.read_text() for path in (DEPLOY / "elixir/lib").rglob("*.ex"))
    read = set(re.findall(r'"([A-Z_]+)" \|> System|System\.get_env\("([A-Z_]+)"', text))
    names = {name for pair in read for name in pair if name}
    given = {each["name"] for each in MAIN["env"]} | set(COMPOSE["application"]["environment"])
    assert {name for name in given if not name.startswith(("RELEASE_", "POD_"))} <= names


@pytest.mark.parametrize("service", COMPOSE)
def test_each_service_is_confined(service):
    settings = COMPOSE[service]
    assert settings["read_only"]
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert "mem_limit" in settings
    assert "cap_add" not in settings
    assert "privileged" not in settings


@pytest.mark.parametrize("each", [SIDECAR, MAIN])
def test_each_container_of_the_pod_is_confined(each):
    settings = each["securityContext"]
    assert settings["readOnlyRootFilesystem"]
    assert not settings["allowPrivilegeEscalation"]
    assert settings["capabilities"] == {"drop": ["ALL"]}
    assert each["resources"]["limits"]["memory"]
    assert each["resources"]["requests"].keys() == {"cpu", "memory"}


def test_no_secret_is_on_a_command_line_or_in_a_file():
    """Secrets come from variables that the operator sets, and from secrets of the cluster."""
    for words in LINES.values():
        assert not re.search(r"password|:[^/@]+@", " ".join(words))
    assert COMPOSE["bridge"]["environment"]["PGPASSWORD"].startswith("${POSTGRES_PASSWORD:?")
    assert (DEPLOY / "example.env").read_text().splitlines()[-1] == "POSTGRES_PASSWORD="
    assert {each["kind"] for each in OTHERS} == {"Service", "PodDisruptionBudget"}
    (cookie,) = [each for each in MAIN["env"] if each["name"] == "CLUSTER_COOKIE"]
    assert "value" not in cookie


def test_nodes_find_each_other_by_the_headless_service():
    (service,) = [each for each in OTHERS if each["spec"].get("clusterIP") == "None"]
    assert {"name": "CLUSTER_SERVICE", "value": service["metadata"]["name"]} in MAIN["env"]
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    for each in OTHERS:
        selector = each["spec"]["selector"]
        assert selector.get("matchLabels", selector) == labels


def test_connections_to_postgresql_suffice():
    """Of all pods, also while they are replaced, with the default of PostgreSQL: see docs/scaling.md."""
    (workers,) = [int(each["value"]) for each in MAIN["env"] if each["name"] == "WORKERS"]
    pods = DEPLOYMENT["spec"]["replicas"] + DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    assert 4 * workers * pods + 3 <= 100


def test_images_are_pinned():
    """Each base image has a version."""
    for path in DEPLOY.rglob("Dockerfile"):
        text = path.read_text()
        for name, value in re.findall(r"^ARG (\w+)=(.*)$", text, re.MULTILINE):
            text = text.replace(f"${{{name}}}", value)
        for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
            assert re.search(r":[\w.-]*\d[\w.-]*$", image), image
    assert re.fullmatch(r"postgres:\d+\.\d+-\w+", COMPOSE["postgres"]["image"])


def test_packages_are_pinned_to_versions_that_are_allowed():
    """What the image installs of the package's own requirements, and what builds it."""
    lines = [line for line in (DEPLOY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    declared = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    (extras,) = re.findall(r"'\.\[(.*)\]'", (DEPLOY / "Dockerfile").read_text())
    wanted = declared["build-system"]["requires"] + declared["project"]["dependencies"]
    for extra in extras.split(","):
        wanted += declared["project"]["optional-dependencies"][extra]
    for requirement in map(Requirement, wanted):
        assert pinned[requirement.name] in requirement.specifier, requirement
    assert "PIP_CONSTRAINT=/source/deploy/constraints.txt" in (DEPLOY / "Dockerfile").read_text()


def test_what_is_copied_exists():
    """The build context has what the Dockerfiles copy; no compiler and no pip get into the last stage."""
    root = DEPLOY.parent
    for path in DEPLOY.rglob("Dockerfile"):
        for line in re.findall(r"^COPY (?!--from)(.*)$", path.read_text(), re.MULTILINE):
            for source in shlex.split(line)[:-1]:
                assert (root / source).exists()
    for line in (root / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            assert (root / line[1:]).exists(), line
    last = (DEPLOY / "Dockerfile").read_text().rpartition("FROM ")[2]
    assert last.startswith("python:${PYTHON}-slim-")
    assert not re.search(r"\bpip\b|apt-get|gcc", last)
