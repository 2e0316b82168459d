"""Writes an OCI image layout (image-spec 1.1): the same bytes for the same files."""

import gzip
import hashlib
import io
import json
import os
import pathlib
import tarfile

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def layer(files, time):
    """A tar of these files, each a path with its bytes (None: a directory) and mode, owned by root."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        paths = {path.strip("/"): (data, mode) for path, (data, mode) in files.items()}
        for path in list(paths):
            for parent in pathlib.PurePosixPath(path).parents[:-1]:
                paths.setdefault(str(parent), (None, 0o755))
        for path, (data, mode) in sorted(paths.items()):
            entry = tarfile.TarInfo(path)
            entry.mode, entry.mtime = mode, time
            entry.uname = entry.gname = "root"
            if data is None:
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            else:
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return raw.getvalue()


class Layout:
    """The blobs of one image, by digest."""

    def __init__(self):
        self.blobs = {}

    def add(self, media_type, data):
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def add_json(self, media_type, value):
        return self.add(media_type, json.dumps(value, sort_keys=True, separators=(",", ":")).encode())

    def image(self, layers, config, created, architecture, annotations):
        """Adds the layers (uncompressed tars) and their manifest. Returns the descriptor of the manifest."""
        packed = [self.add(LAYER, gzip.compress(data, 9, mtime=0)) for data in layers]
        image = {
            "architecture": architecture,
            "os": "linux",
            "created": created,
            "config": config,
            "rootfs": {
                "type": "layers",
                "diff_ids": ["sha256:" + hashlib.sha256(data).hexdigest() for data in layers],
            },
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.add_json(CONFIG, image),
            "layers": packed,
            "annotations": annotations,
        }
        descriptor = self.add_json(MANIFEST, manifest)
        return descriptor | {"platform": {"architecture": architecture, "os": "linux"}}

    def files(self, manifest, name, tag):
        """The files of the layout, by path. containerd reads the name from the first annotation."""
        named = manifest | {
            "annotations": {
                "io.containerd.image.name": f"{name}:{tag}",
                "org.opencontainers.image.ref.name": tag,
            }
        }
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]}
        yield "oci-layout", b'{"imageLayoutVersion":"1.0.0"}'
        yield "index.json", json.dumps(index, sort_keys=True, separators=(",", ":")).encode()
        for digest, data in sorted(self.blobs.items()):
            yield f"blobs/sha256/{digest}", data


def write_files(files, directory):
    """Writes the files of a layer below a directory."""
    for path, (data, mode) in files.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            target.mkdir(exist_ok=True)
        else:
            target.write_bytes(data)
        target.chmod(mode)


def write_directory(files, directory):
    """Replaces what an earlier image left there, and nothing else."""
    if directory.exists() and any(directory.iterdir()) and not (directory / "oci-layout").is_file():
        raise FileExistsError(f"{directory} has other files; name an empty or a new directory")
    kept = set()
    for path, data in files:
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        kept.add(target)
    for blob in (directory / "blobs" / "sha256").iterdir():
        if blob not in kept:
            blob.unlink()


def write_archive(files, archive):
    """Writes the layout as one tar, as `ctr image import`, `docker load` and `podman load` take it."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    new = archive.with_name(archive.name + ".new")
    with tarfile.open(new, "w", format=tarfile.PAX_FORMAT) as tar:
        for path, data in files:
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    os.replace(new, archive)
