#!/usr/bin/env python3
"""Builds the image of the hub without a container daemon: a static program, the public root certificates, licences and
a list of the parts (SBOM), as an OCI image layout and as an archive for `docker load`, `podman load` and
`ctr image import`.

Needs Rust with the target (rustup target add x86_64-unknown-linux-musl), a C compiler for it (Debian: musl-tools), git
and Python 3.11. The same program and root certificates give the same digest.
"""

import argparse
import datetime
import os
import pathlib
import platform
import struct
import subprocess
import sys

import contents
import oci

ROOT = pathlib.Path(__file__).resolve().parent.parent
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# As in the images of distroless: a number, so that Kubernetes can verify that it is not root.
USER = 65532
PASSWD = f"root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:{USER}:{USER}:nonroot:/nonexistent:/sbin/nologin\n"
GROUP = f"root:x:0:\nnonroot:x:{USER}:\n"
ROOTS = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
]
DOCS = "usr/share/doc/integration-hub"


class Problem(Exception):
    """Something that the user can mend."""


def output(*command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="image/build.py"
    )
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "target" / "image", metavar="DIRECTORY",
                        help="where the layout (oci/) and the archive (image.tar) go (default: target/image)")
    parser.add_argument("--files", type=pathlib.Path, metavar="DIRECTORY",
                        help="write the files of the image here, and no image; for a Dockerfile")
    parser.add_argument("--name", default="integration-hub", help="repository of the image (default: %(default)s)")
    parser.add_argument("--tag", help="tag of the image (default: the version of the hub)")
    parser.add_argument("--target", default=f"{platform.machine()}-unknown-linux-musl",
                        help="target of the compiler (default: %(default)s)")
    parser.add_argument("--roots", type=pathlib.Path, metavar="FILE",
                        help="root certificates in PEM (default: those of this machine)")
    return parser.parse_args()


def commit():
    """The commit, and its time in seconds, which the files of the image have, so that two builds are the same."""
    environment = os.environ.get("HUB_COMMIT"), os.environ.get("SOURCE_DATE_EPOCH")
    if None not in environment:
        return environment[0], int(environment[1])
    if output("git", "status", "--porcelain", "--untracked-files=no"):
        print("There are changes that are not committed; the image is named after the commit before them.", file=sys.stderr)
    return output("git", "rev-parse", "HEAD"), int(output("git", "show", "-s", "--format=%ct", "HEAD"))


def compiled(target, revision, time):
    """The path of the program. Paths of this machine are left out of it."""
    if not (pathlib.Path(output("rustc", "--print", "sysroot")) / "lib" / "rustlib" / target / "lib").is_dir():
        raise Problem(f"the compiler has no target {target}: run 'rustup target add {target}'")
    home = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo"))
    paths = [(ROOT, "/src"), (home, "/cargo")]
    flags = [f"--remap-path-prefix={path}={name}" for path, name in paths]
    c_flags = " ".join(f"-ffile-prefix-map={path}={name}" for path, name in paths)
    directory = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
    environment = os.environ | {
        "HUB_COMMIT": revision,
        "CARGO_ENCODED_RUSTFLAGS": "\x1f".join(["-Ctarget-feature=+crt-static", *flags]),
        "CARGO_TARGET_DIR": str(directory),
        "CFLAGS": c_flags,
        # The time that C sources see as that of their compilation.
        "SOURCE_DATE_EPOCH": str(time),
        # Archives of C objects have no times and owners.
        "ZERO_AR_DATE": "1",
    }
    command = ["cargo", "build", "--profile", "dist", "--locked", "--bin", "hub", "--target", target]
    if subprocess.run(command, cwd=ROOT, env=environment).returncode:
        raise Problem("the build failed; a missing C compiler is the package musl-tools of Debian and Ubuntu")
    return directory / target / "dist" / "hub"


def is_static(program):
    """Whether an ELF file names no dynamic loader (PT_INTERP), which the image does not have."""
    table, size, count = struct.unpack_from("<Q", program, 32)[0], *struct.unpack_from("<HH", program, 54)
    return all(struct.unpack_from("<I", program, table + number * size)[0] != 3 for number in range(count))


def roots(chosen):
    candidates = [chosen] if chosen else [pathlib.Path(path) for path in ROOTS]
    for path in candidates:
        if path.is_file():
            pem = path.read_bytes()
            if b"-----BEGIN CERTIFICATE-----" in pem:
                return pem
    raise Problem(f"no root certificates in {', '.join(map(str, candidates))}: name a PEM file with --roots")


def build(options):
    architecture = ARCHITECTURES.get(options.target.split("-")[0])
    if architecture is None:
        raise Problem(f"no image for {options.target}: name one for {' or '.join(ARCHITECTURES)} with --target")
    revision, time = commit()
    certificates = roots(options.roots)
    program = compiled(options.target, revision, time).read_bytes()
    if not is_static(program):
        raise Problem(f"the program for {options.target} is not static: name a target of musl with --target")
    linked, compiler = contents.crates(ROOT, options.target), output("rustc", "--version")
    version = next(crate["version"] for crate in linked if crate["name"] == "integration-hub")
    system = {
        "etc/passwd": (PASSWD.encode(), 0o644),
        "etc/group": (GROUP.encode(), 0o644),
        "etc/ssl/certs/ca-certificates.crt": (certificates, 0o644),
        "tmp": (None, 0o1777),
    }
    hub = {
        "usr/local/bin/hub": (program, 0o755),
        f"{DOCS}/LICENSE": ((ROOT / "LICENSE").read_bytes(), 0o644),
        f"{DOCS}/LICENSES.txt": (contents.notices(linked), 0o644),
        f"{DOCS}/sbom.cdx.json": (contents.sbom(ROOT, linked, compiler, version, revision), 0o644),
    }
    if options.files:
        oci.write_files(system | hub, options.files)
        return
    config = {
        "User": f"{USER}:{USER}",
        "WorkingDir": "/",
        "Entrypoint": ["/usr/local/bin/hub"],
        "Cmd": ["serve"],
        "ExposedPorts": {"8080/tcp": {}, "8090/tcp": {}},
        "Env": ["PATH=/usr/local/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"],
    }
    created = datetime.datetime.fromtimestamp(time, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    annotations = {
        "org.opencontainers.image.title": "Integration Hub",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.revision": revision,
        "org.opencontainers.image.created": created,
    }
    config["Labels"] = annotations
    layout = oci.Layout()
    layers = [oci.layer(system, time), oci.layer(hub, time)]
    manifest = layout.image(layers, config, created, architecture, annotations)
    tag = options.tag or version
    files = list(layout.files(manifest, options.name, tag))
    oci.write_directory(files, options.output / "oci")
    oci.write_archive(files, options.output / "image.tar")
    size = sum(len(data) for _, data in files)
    print(f"{options.name}:{tag} for {architecture}: {manifest['digest']}")
    print(f"{size / 1e6:.1f} MB compressed, {sum(map(len, layers)) / 1e6:.1f} MB unpacked")
    print(f"layout:  {options.output / 'oci'}\narchive: {options.output / 'image.tar'}")


if __name__ == "__main__":
    try:
        build(options())
    except (Problem, OSError) as problem:
        sys.exit(f"error: {problem}")
