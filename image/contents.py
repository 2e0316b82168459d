"""What the image says about itself: the parts of the program (CycloneDX 1.6) and their licences."""

import json
import pathlib
import re
import subprocess
import tomllib

NOTICE = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense|authors)", re.IGNORECASE)


def crates(root, target):
    """The crates that are linked into the hub for this target, in the order of their names."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    metadata = json.loads(subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    first = next(id for id, package in packages.items() if package["name"] == "integration-hub")
    linked, waiting = set(), [first]
    while waiting:
        id = waiting.pop()
        # What a procedural macro needs runs in the compiler.
        if id in linked or any("proc-macro" in part["kind"] for part in packages[id]["targets"]):
            continue
        linked.add(id)
        for dependency in nodes[id]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    return sorted((packages[id] for id in linked), key=lambda crate: (crate["name"], crate["version"]))


def sbom(root, linked, compiler, version, commit):
    """The parts, as CycloneDX JSON. Without a time and a serial number, which would differ in each build."""
    locked = tomllib.loads((root / "Cargo.lock").read_text())["package"]
    checksums = {(one["name"], one["version"]): one.get("checksum") for one in locked}
    components = []
    for crate in linked:
        if crate["name"] == "integration-hub":
            continue
        url = f"pkg:cargo/{crate['name']}@{crate['version']}"
        component = {"type": "library", "bom-ref": url, "name": crate["name"], "version": crate["version"], "purl": url}
        if crate["license"]:
            component["licenses"] = [{"expression": crate["license"].replace("/", " OR ")}]
        if checksum := checksums.get((crate["name"], crate["version"])):
            component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        components.append(component)
    for name, licence in (("rust-std", "MIT OR Apache-2.0"), ("musl", "MIT")):
        component = {"type": "library", "bom-ref": name, "name": name, "description": f"of {compiler}"}
        components.append(component | {"licenses": [{"expression": licence}]})
    hub = {"type": "application", "bom-ref": "integration-hub", "name": "integration-hub", "version": version}
    properties = [{"name": "commit", "value": commit}, {"name": "compiler", "value": compiler}]
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": hub | {"properties": properties}},
        "components": components,
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def notices(linked):
    """The licence texts of the crates, each text once."""
    by_text, without = {}, []
    for crate in linked:
        name = f"{crate['name']} {crate['version']}"
        directory = pathlib.Path(crate["manifest_path"]).parent
        files = sorted(path for path in directory.iterdir() if path.is_file() and NOTICE.match(path.name))
        texts = {path.read_text(errors="replace").strip() for path in files}
        for text in sorted(texts - {""}):
            by_text.setdefault(text, []).append(name)
        if not texts - {""}:
            by = ", ".join(crate["authors"]) or "its authors"
            without.append(f"{name}: {crate['license'] or 'see its source'}, by {by}")
    parts = ["Integration Hub contains these libraries."]
    if without:
        parts.append("Without a text of their own:\n" + "\n".join(without))
    for text, names in sorted(by_text.items(), key=lambda item: (item[1], item[0])):
        parts.append(", ".join(names) + ":\n\n" + text)
    return ("\n\n" + "-" * 78 + "\n\n").join(parts).encode() + b"\n"
