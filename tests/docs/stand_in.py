#!/usr/bin/env python3
"""Stands in for a program of the command blocks that would compile for minutes, change a cluster or publish an image.

It checks the command line, by the real program where there is one and by the repository, and leaves what the next commands
of a block need. The name by which it is called is the name of the program.

Environment: DOCS_ROOT (the repository), DOCS_CARGO, DOCS_HELM, and DOCS_KUBECTL if kubectl is installed.
"""

import argparse
import json
import os
import re
import runpy
import sqlite3
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import NoReturn

ROOT = Path(os.environ["DOCS_ROOT"])
# What the chart renders, for kubectl; and the name of the image, for skopeo.
RELEASE, IMAGE = Path("release.yaml"), Path("image-name")
NAMESPACE = "integration"
NOWHERE = "http://127.0.0.1:1"
# The flags of kubectl that the docs use; those with a value end with "=".
FLAGS = {
    "create": ["--from-literal="],
    "describe": ["-l="],
    "exec": [],
    "get": ["-l=", "-o=", "--sort-by="],
    "logs": ["-l=", "--tail=", "--previous"],
    "rollout restart": [],
    "scale": ["--replicas="],
}
KINDS = {"deploy": "Deployment", "deployment": "Deployment", "job": "Job"}


def fail(problem: str) -> NoReturn:
    sys.exit(f"{' '.join(sys.argv)}: {problem}")


def run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        fail(result.stderr)
    return result.stdout


def accepted(program: str, arguments: list[str], server: list[str]) -> None:
    """The real program reads its command line, and fails only when it connects to the cluster."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.getcwd()}
    result = subprocess.run(
        [program, *server, *arguments], env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    if result.returncode == 0 or "refused" not in result.stderr:
        fail(f"the command line is invalid: {result.stdout}{result.stderr}")


# Cargo.


def packages() -> dict[str, dict]:
    command = [os.environ["DOCS_CARGO"], "metadata", "--no-deps", "--offline", "--locked", "--format-version=1"]
    text = run(*command, f"--manifest-path={ROOT / 'Cargo.toml'}")
    return {package["name"]: package for package in json.loads(text)["packages"]}


def targets(package: dict, kind: str) -> list[str]:
    return [target["name"] for target in package["targets"] if kind in target["kind"]]


def has_test(word: str) -> bool:
    """A test of a library has this word in its path."""
    for file in [*ROOT.glob("src/**/*.rs"), *ROOT.glob("crates/*/src/**/*.rs")]:
        module = "::".join(file.relative_to(ROOT).with_suffix("").parts)
        names = re.findall(r"#\[(?:tokio::)?test[^\n]*\]\s+(?:async )?fn (\w+)", file.read_text())
        if any(word in f"{module}::{name}" for name in names):
            return True
    return False


def cargo(arguments: list[str]) -> None:
    own, program = arguments, []
    if "--" in arguments:
        own, program = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    known = packages()
    parser = argparse.ArgumentParser(prog="cargo", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", allow_abbrev=False).add_argument("--release", action="store_true")
    install = commands.add_parser("install", allow_abbrev=False)
    install.add_argument("--path", required=True)
    build = commands.add_parser("build", allow_abbrev=False)
    build.add_argument("--profile", required=True)
    build.add_argument("-p", dest="package", required=True, choices=known)
    test = commands.add_parser("test", allow_abbrev=False)
    test.add_argument("--lib", action="store_true")
    test.add_argument("--test", choices=targets(known["integration-hub"], "test"))
    test.add_argument("filter", nargs="?")
    options = parser.parse_args(own)
    if options.command == "run":
        print(run(known["integration-hub"]["default_run"], *program, "--help"))
    elif options.command == "install":
        manifest = ROOT / options.path / "Cargo.toml"
        if not any(Path(one["manifest_path"]) == manifest and targets(one, "bin") for one in known.values()):
            fail(f"{manifest} is the manifest of no package with a program")
    elif options.command == "build":
        profiles = tomllib.loads((ROOT / "Cargo.toml").read_text())["profile"]
        if options.profile not in profiles:
            fail(f"unknown profile; profiles: {', '.join(profiles)}")
        folder = Path("target", options.profile)
        folder.mkdir(parents=True, exist_ok=True)
        for name in targets(known[options.package], "bin"):
            folder.joinpath(name).unlink(missing_ok=True)
            folder.joinpath(name).symlink_to(Path(__file__).resolve())
    else:
        if options.filter and not has_test(options.filter):
            fail(f"no test has {options.filter} in its path")
        if any(word != "--nocapture" for word in program):
            fail("unknown option of a test")
        kinds = (ROOT / "tests/chaos/plan.rs").read_text()
        for name in filter(None, os.environ.get("HUB_CHAOS_FAULTS", "").split(",")):
            if f'=> "{name}",' not in kinds:
                fail(f"unknown kind of fault {name}")


def bench(arguments: list[str]) -> None:
    """Measures nothing. A test of hub-bench itself (crates/bench/src/documented.rs) reads the command lines of the pages."""


# Kubernetes.


def scalars(document: str) -> dict[str, str]:
    """The mappings of an object of the chart: paths, such as `metadata.name`, and their values. Without lists."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in document.splitlines():
        match = re.fullmatch(r'( *)([\w./-]+):(?: "?(.*?)"?)?', line)
        if match is None:
            continue
        depth = len(match[1])
        above = [one for one in above if one[0] < depth]
        above.append((depth, match[2]))
        found["\0".join(name for _, name in above)] = match[3] or ""
    return found


def objects() -> list[tuple[str, str, dict[str, str]]]:
    """Kind, name and labels of the pods of each object of the installed chart."""
    if not RELEASE.exists():
        fail("the chart is not installed")
    found = []
    for document in re.split(r"^---.*$", RELEASE.read_text(), flags=re.MULTILINE):
        fields = scalars(document)
        prefix = "spec\0template\0metadata\0labels\0"
        labels = {path.removeprefix(prefix): value for path, value in fields.items() if path.startswith(prefix)}
        found.append((fields.get("kind", ""), fields.get("metadata\0name", ""), labels))
    return found


def helm(arguments: list[str]) -> None:
    program = os.environ["DOCS_HELM"]
    if "upgrade" in arguments:
        words = ["template" if word == "upgrade" else word for word in arguments if word != "--install"]
        RELEASE.write_text(run(program, *words))
    elif "test" in arguments:
        if "helm.sh/hook: test" not in RELEASE.read_text():
            fail("the chart has no test")
    elif "uninstall" not in arguments:
        fail("unknown command")
    if "hub" not in arguments or NAMESPACE not in arguments:
        fail(f"the release is hub in the namespace {NAMESPACE}")
    accepted(program, arguments, ["--kube-apiserver", NOWHERE])


def kubectl(arguments: list[str]) -> None:
    own, program = arguments, []
    if "--" in arguments:
        own, program = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    real = os.environ.get("DOCS_KUBECTL")
    if real and own[0] != "create" and "create" not in own:
        accepted(real, arguments, ["--server", NOWHERE])
    if own[:2] == ["-n", NAMESPACE]:
        own = own[2:]
    elif own != ["create", "namespace", NAMESPACE]:
        fail(f"the namespace of the release is {NAMESPACE}")
    verb = " ".join(own[:2]) if own[0] == "rollout" else own[0]
    if verb not in FLAGS:
        fail("unknown command")
    words, selectors = [], []
    rest = iter(own[len(verb.split()) :])
    for word in rest:
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            if name in FLAGS[verb] and not equals:
                continue
            if f"{name}=" not in FLAGS[verb]:
                fail(f"{name} is not an option of kubectl {verb} that the docs use")
            value = value if equals else next(rest)
            selectors += [value] if name == "-l" else []
        else:
            words.append(word)
    if verb == "create":
        created(words, own)
        if real:
            run(real, *arguments, "--dry-run=client", "-o", "name")
        return
    for selector in selectors:
        label, _, value = selector.partition("=")
        if not any(labels.get(label) == value for kind, _, labels in objects() if kind == "Deployment"):
            fail(f"no pod of a Deployment has the label {selector}")
    named = [word.split("/") for word in words if "/" in word]
    for kind, name in named:
        if not any(one[:2] == (KINDS.get(kind), name) for one in objects()):
            fail(f"the chart has no {kind}/{name}")
    if verb in {"exec", "rollout restart", "scale"} and not named:
        fail("names no object")
    if verb in {"get", "describe"} and words not in (["pods"], ["events"]):
        fail("unknown kind of object")
    if verb == "exec":
        sys.exit(subprocess.run(program).returncode)


def created(words: list[str], arguments: list[str]) -> None:
    """The chart refers to each Secret, and to each of its keys."""
    if words[0] == "namespace":
        return
    if words[:2] != ["secret", "generic"]:
        fail("unknown kind of object")
    for word in arguments:
        if word.startswith("--from-literal="):
            _, key, value = word.split("=", 2)
            reference = rf"secretKeyRef:\s+key: {re.escape(key)}\s+name: {re.escape(words[2])}\s"
            if not value or not re.search(reference, RELEASE.read_text()):
                fail(f"the values of the page do not use the key {key} of the Secret {words[2]}")


# The image.


def build_image(arguments: list[str]) -> None:
    """Reads the options with image/build.py itself; .ci/image builds the image."""
    sys.path.insert(0, str(ROOT / "image"))
    sys.argv[0] = "image/build.py"
    build = runpy.run_path(str(ROOT / "image/build.py"))
    options = build["options"]()
    (options.output.relative_to(ROOT) / "oci").mkdir(parents=True, exist_ok=True)
    IMAGE.write_text(options.name)


def skopeo(arguments: list[str]) -> None:
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    match arguments:
        case ["copy", source, target]:
            if not source.startswith("oci:") or not Path(source.removeprefix("oci:")).is_dir():
                fail("no image is there")
            if target != f"docker://{IMAGE.read_text()}:{version}":
                fail(f"the name is {IMAGE.read_text()}, and the version {version}")
        case _:
            fail("unknown command")


# Python and SQLite.


def pip(arguments: list[str]) -> None:
    """The version is that of .ci/parts/protean.sh, and has the extras."""
    match arguments:
        case ["install", *_, requirement]:
            named = re.fullmatch(r"protean\[([\w,]+)\]==([\d.]+)", requirement)
            if named is None:
                fail("not a version of Protean")
            part = (ROOT / ".ci/parts/protean.sh").read_text()
            if f"version=${{1:-{named[2]}}}" not in part:
                fail(".ci/parts/protean.sh installs another version")
            metadata = Path(os.environ["HUB_TEST_PROTEAN"], f"protean-{named[2]}.dist-info/METADATA").read_text()
            for extra in named[1].split(","):
                if f"\nProvides-Extra: {extra}\n" not in metadata:
                    fail(f"Protean has no extra {extra}")
        case _:
            fail("unknown command")


def sqlite(arguments: list[str]) -> None:
    """Prints the answer to each query, as soon as there is one; sqlite3 itself may not be installed."""
    file, script = arguments
    deadline = time.monotonic() + 60
    for query in script.split(";"):
        while True:
            try:
                rows = sqlite3.connect(f"file:{file}?mode=ro", uri=True).execute(query).fetchall()
            except sqlite3.OperationalError as error:
                rows, problem = [], error
            else:
                problem = None
            if rows:
                print(*rows, sep="\n")
                break
            if time.monotonic() > deadline:
                fail(f"{query}: no row: {problem}")
            time.sleep(0.05)


# Scripts of the repository.


def part(arguments: list[str]) -> None:
    print(f"part:{Path(sys.argv[0]).stem}")


def chart(arguments: list[str]) -> None:
    """.ci/run runs the script itself, with the same parts."""
    parts = re.search(r"^chart\(\) \{(.*?)^\}", (ROOT / ".ci/run").read_text(), re.DOTALL | re.MULTILINE)
    expected = [f"part:{name}" for name in re.findall(r"^ +part (\S+)$", parts[1], re.MULTILINE)]
    if arguments != expected:
        fail(f".ci/run passes {expected}")


def main() -> None:
    path = Path(sys.argv[0])
    script = path.parent.name in {".ci", "parts", "image"}
    if script:
        real = ROOT.joinpath(*path.parts[path.parts.index(".ci") if ".ci" in path.parts else -2 :])
        if not real.is_file() or (real.suffix != ".py" and not os.access(real, os.X_OK)):
            fail(f"{real} cannot be run")
    programs = {
        "cargo": cargo, "helm": helm, "kubectl": kubectl, "skopeo": skopeo, "pip": pip, "sqlite3": sqlite,
        "hub-bench": bench, "build.py": build_image, "chart": chart,
    }
    action = part if path.parent.name == "parts" else programs[path.name]
    action(sys.argv[1:])


if __name__ == "__main__":
    main()
